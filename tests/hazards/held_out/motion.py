"""Physics: bodies, springs, diffusion, orbits, potentials, rates, clocks."""

from typing import Any

import jax
import jax.numpy as jnp

from tests.hazards.case import Real, hazard, safe

Array = Any

# --- hazards ---


def bodies_with_lost_softening(x: Array) -> Array:
    def pull(one: Array, other: Array) -> Array:
        gap = other - one
        inverse = jax.lax.rsqrt(jnp.sum(gap * gap) + 1e-4**2)  # HERE
        return gap * inverse**3

    forces = jax.vmap(lambda one: jax.vmap(lambda other: pull(one, other))(x))(x)
    return jnp.sum(forces, axis=1)


def stiff_spring(x: Array, v: Array) -> Array:
    def step(state: Array, _: None) -> tuple[Array, None]:
        x, v = state
        v = v - 50.0 * x  # HERE
        return (x + 0.5 * v, v), None

    return jax.lax.scan(step, (x, v), None, length=10)[0]


def pressure_laplacian(u: Array) -> Array:
    around = 0.5 * jnp.roll(u, 1) + 0.5 * jnp.roll(u, -1)
    centre = 4.0 * u  # HERE
    return (around - centre) * 0.25


def kepler_equation(mean: Array, e: Array) -> Array:
    def newton(_: Array, anomaly: Array) -> Array:
        excess = anomaly - e * jnp.sin(anomaly) - mean
        return anomaly - excess / (1.0 - e * jnp.cos(anomaly))  # HERE

    return jax.lax.fori_loop(0, 4, newton, mean)


def arrhenius(energy: Array, temperature: Array) -> Array:
    return 1e13 * jnp.exp(-energy / temperature)  # HERE


def morse(r: Array) -> Array:
    stretch = 1.0 - jnp.exp(-5.0 * (r - 2.0))
    return 4.0 * stretch**2  # HERE


def thin_layer(intensity: Array, depth: Array) -> Array:
    return intensity * (1.0 - jnp.exp(-depth))  # HERE


def dynamic_pressure(v: Array) -> Array:
    return 0.6 * v**2  # HERE


def driven_clock(x: Array) -> Array:
    def tick(t: Array, _: None) -> tuple[Array, Array]:
        t = t + 0.01  # HERE
        return t, jnp.sin(t) * x

    return jax.lax.scan(tick, jnp.zeros((), x.dtype), None, length=600)[0]


def impact_speed(height: Array) -> Array:
    def total(height: Array) -> Array:
        return jnp.sum(jnp.sqrt(2.0 * 9.81 * height))  # HERE

    return jax.grad(total)(height)


def population(n: Array, rate: Array) -> Array:
    def year(n: Array, _: None) -> tuple[Array, None]:
        return n * (1.0 + rate), None  # HERE

    return jax.lax.scan(year, n, None, length=20)[0]


def small_displacement(place: Array, speed: Array) -> Array:
    moved = place + speed * 0.001  # HERE
    return (moved - place) / 0.001


HAZARDS = (
    hazard(
        bodies_with_lost_softening, Real(-1, 1, (3, 2)),
        kind="underflow", root="literal", at="rsqrt", symptom="inf", trigger=(0.5,),
    ),
    hazard(
        stiff_spring, Real(-1, 1, ()), Real(-1, 1, ()),
        kind="overflow", root=("mul", "sub", "literal"), at=("mul", "sub"), symptom="inf",
        trigger=(1.0, 0.0),
    ),
    hazard(
        pressure_laplacian, Real(0, 30000, (6,)),
        kind="overflow", root=("mul", "literal"), at="mul", symptom="inf", trigger=(25000.0,),
    ),
    hazard(
        kepler_equation, Real(0, 3), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0, 1.0),
    ),
    hazard(
        arrhenius, Real(20, 40), Real(1, 2),
        kind="overflow", root="literal", at="mul", symptom="inf", trigger=(30.0, 2.0),
    ),
    hazard(
        morse, Real(0, 4),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(0.2,),
    ),
    hazard(
        thin_layer, Real(1, 100), Real(1e-4, 1e-2), format="bfloat16",
        kind=("cancellation", "absorption", "rounds-to-bound"), root=("exp", "sub"),
        at=("sub", "exp"), symptom="zero", trigger=(10.0, 1e-3),
    ),
    hazard(
        dynamic_pressure, Real(-300, 300),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(300.0,),
    ),
    hazard(
        driven_clock, Real(0, 1, ()), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0,),
    ),
    hazard(
        impact_speed, Real(0, 10), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="inf", trigger=(0.0,),
    ),
    hazard(
        population, Real(1, 100), Real(0, 1),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(100.0, 1.0),
    ),
    hazard(
        small_displacement, Real(50, 100), Real(1, 10),
        kind=("absorption", "cancellation"), root=("add", "sub"), at=("add", "sub"),
        symptom="stuck", trigger=(80.0, 5.0),
    ),
)  # fmt: skip

# --- safe ---


def bodies_with_wide_softening(x: Array) -> Array:
    def pull(one: Array, other: Array) -> Array:
        gap = other - one
        inverse = jax.lax.rsqrt(jnp.sum(gap * gap) + 0.5**2)
        return gap * inverse**3

    forces = jax.vmap(lambda one: jax.vmap(lambda other: pull(one, other))(x))(x)
    return jnp.sum(forces, axis=1)


def soft_spring(x: Array, v: Array) -> Array:
    def step(state: Array, _: None) -> tuple[Array, None]:
        x, v = state
        v = v - 0.125 * x
        return (x + 0.125 * v, v), None

    return jax.lax.scan(step, (x, v), None, length=10)[0]


def pressure_diffusion(u: Array) -> Array:
    around = 0.5 * jnp.roll(u, 1) + 0.5 * jnp.roll(u, -1)
    return (around - u) * 0.25


def kepler_equation_of_ellipses(mean: Array, e: Array) -> Array:
    def newton(_: Array, anomaly: Array) -> Array:
        excess = anomaly - e * jnp.sin(anomaly) - mean
        return anomaly - excess / (1.0 - e * jnp.cos(anomaly))

    return jax.lax.fori_loop(0, 4, newton, mean)


def arrhenius_by_logs(energy: Array, temperature: Array) -> Array:
    return jnp.exp(jnp.minimum(29.93 - energy / temperature, 10.0))


def morse_outside(r: Array) -> Array:
    stretch = 1.0 - jnp.exp(-5.0 * (r - 2.0))
    return 4.0 * stretch**2


def thin_layer_by_expm1(intensity: Array, depth: Array) -> Array:
    return -intensity * jnp.expm1(-depth)


def dynamic_pressure_in_order(v: Array) -> Array:
    return (0.6 * v) * v


def clock_from_ticks(x: Array) -> Array:
    ticks = jnp.arange(200).astype(x.dtype)
    return jnp.sin(ticks * 0.01) * x


def impact_speed_from_high(height: Array) -> Array:
    return jax.grad(lambda h: jnp.sum(jnp.sqrt(2.0 * 9.81 * h)))(height)


def slow_population(n: Array, rate: Array) -> Array:
    def year(n: Array, _: None) -> tuple[Array, None]:
        return n * (1.0 + rate), None

    return jax.lax.scan(year, n, None, length=20)[0]


def orbital_energy(v: Array, r: Array) -> Array:
    return 0.5 * v * v - 3.986e14 / r


SAFE = (
    safe(bodies_with_wide_softening, Real(-1, 1, (3, 2)), error=0.05),
    safe(soft_spring, Real(-1, 1, ()), Real(-1, 1, ())),
    safe(pressure_diffusion, Real(0, 30000, (6,))),
    safe(kepler_equation_of_ellipses, Real(0, 3), Real(0, 0.5), format="float32"),
    safe(arrhenius_by_logs, Real(20, 40), Real(1, 1.5), error=0.1),
    safe(morse_outside, Real(1.5, 4), error=0.05),
    safe(thin_layer_by_expm1, Real(1, 100), Real(1e-4, 1e-2), format="bfloat16"),
    safe(dynamic_pressure_in_order, Real(-300, 300)),
    safe(clock_from_ticks, Real(0, 1, ()), format="bfloat16"),
    safe(impact_speed_from_high, Real(0.5, 10)),
    safe(slow_population, Real(1, 100), Real(0, 0.3), error=0.05),
    safe(orbital_energy, Real(7000, 8000), Real(6.4e6, 7e6), format="float32"),
)  # fmt: skip
