"""Physics: pair potentials, integrators, relativity, radiation, distances, constants of nature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .case import Real, hazard, safe

Array = Any

# --- hazards ---


def lennard_jones(r: Array) -> Array:
    inverse = 1.0 / r
    sixth = inverse**6
    return 4.0 * (sixth**2 - sixth)  # HERE


def coulomb_with_itself(x: Array) -> Array:
    difference = x[:, None] - x[None, :]
    distance = jnp.abs(difference)
    return jnp.sum(1.0 / distance, axis=1)  # HERE


def gravity_constant(mass: Array, r: Array) -> Array:
    strength = 6.674e-11 * mass  # HERE
    return strength / (r * r)


def rest_momentum(mass: Array) -> Array:
    return mass * 299792.0  # HERE


def particle_in_a_box(hbar: Array, n: Array) -> Array:
    action = jnp.square(hbar)  # HERE
    return n * n * action


def kinetic_relativistic(v: Array) -> Array:
    gamma = 1.0 / jnp.sqrt(1.0 - v * v)  # OR HERE
    return gamma - 1.0  # HERE


def lorentz(v: Array) -> Array:
    return 1.0 / jnp.sqrt(1.0 - v * v)  # HERE


def late_phase(t: Array, omega: Array) -> Array:
    angle = omega * t  # HERE
    return jnp.cos(angle)


def integrate_slowly(x: Array, v: Array) -> Array:
    dt = 1e-4

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        x, v = state
        x = x + v * dt  # HERE
        return (x, v), None

    (x, _), _ = jax.lax.scan(step, (x, v), None, length=300)
    return x


def pairwise_squared(a: Array, b: Array) -> Array:
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    return squares - 2.0 * a @ b.T  # HERE


def pairwise_distance(a: Array) -> Array:
    norms = jnp.sum(a * a, axis=1)
    squared = norms[:, None] + norms[None, :] - 2.0 * (a @ a.T)  # OR HERE
    return jnp.sqrt(squared)  # HERE


def planck(x: Array) -> Array:
    occupation = jnp.exp(x) - 1.0  # OR HERE
    return x**3 / occupation  # HERE


def planck_high(x: Array) -> Array:
    growth = jnp.exp(x)  # HERE
    return x**3 * growth / (growth + 1.0) ** 2


def kinetic(mass: Array, v: Array) -> Array:
    return 0.5 * mass * jnp.square(v)  # HERE


def softened_gravity(x: Array, y: Array) -> Array:
    difference = x - y
    squared = jnp.sum(difference * difference)
    return difference * (squared + 1e-9) ** -1.5  # HERE


def orbit_period(r: Array) -> Array:
    return jnp.sqrt(r**3)  # HERE


def ideal_mixing(x: Array) -> Array:
    return x * jnp.log(x) + (1 - x) * jnp.log(1 - x)  # HERE


def reduced_mass(a: Array, b: Array) -> Array:
    product = a * b  # HERE
    return product / (a + b)


def heat_equation(u: Array) -> Array:
    laplacian = jnp.roll(u, 1) + jnp.roll(u, -1) - 2.0 * u
    return u + 1e-5 * laplacian  # HERE


def sound_pressure_level(pressure: Array) -> Array:
    reference = 2e-5
    power = (pressure / reference) ** 2  # HERE
    return 10.0 * jnp.log10(power)


def inverse_square(r: Array) -> Array:
    return 1.0 / (r * r)  # HERE


def growth(x: Array) -> Array:
    def body(_: Array, x: Array) -> Array:
        return x * 3.0  # HERE

    return jax.lax.fori_loop(0, 12, body, x)


def field_in_float8(charge: Array) -> Array:
    return charge * charge * 0.001  # HERE


P = (5, 3)
CLOSE = 300 + np.arange(15).reshape(5, 3) * 0.01

HAZARDS = (
    hazard(
        lennard_jones, Real(0.3, 2),
        kind="overflow", root=("square", "integer_pow"), at=("square", "integer_pow"),
        symptom="inf", trigger=(0.35,),
    ),
    hazard(
        coulomb_with_itself, Real(-1, 1), format="float32",
        kind="invalid", root="div", at="div", symptom="inf", trigger=(0.5,), intrinsic=True,
    ),
    hazard(
        gravity_constant, Real(1, 1000), Real(0.5, 1),
        kind="underflow", root="literal", at="mul", symptom="zero", trigger=(100.0, 1.0),
    ),
    hazard(
        rest_momentum, Real(0.1, 1),
        kind="overflow", root="literal", at="mul", symptom="inf", trigger=(0.1,),
    ),
    hazard(
        particle_in_a_box, Real(1e-34, 1.1e-34, ()), Real(1, 10, ()), format="float32",
        kind="underflow", root="square", at="square", symptom="zero", trigger=(1.05e-34, 1.0),
    ),
    hazard(
        kinetic_relativistic, Real(1e-4, 1e-3), format="float32",
        kind="cancellation", root="sub", at="sub", symptom="wrong", trigger=(3.3e-4,), error=0.05,
    ),
    hazard(
        lorentz, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root=("div", "sub"), at="div", symptom="inf", trigger=(1.0,),
    ),
    hazard(
        late_phase, Real(1e8, 1e9, ()), Real(1, 10, ()), format="float32",
        kind="inexact", root="mul", at="mul", symptom="wrong", trigger=(987654336.0, 3.7),
    ),
    hazard(
        integrate_slowly, Real(1, 2), Real(-1, 1),
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0, 1.0), error=0.02,
    ),
    hazard(
        integrate_slowly, Real(1, 2), Real(-1, 1), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0, 1.0), error=0.02,
    ),
    hazard(
        pairwise_squared, Real(1000, 1001, P), Real(1000, 1001, P), format="float32",
        kind="cancellation", root="sub", at="sub", symptom="wrong",
        trigger=(CLOSE + 700, CLOSE + 700.05),
    ),
    hazard(
        pairwise_distance, Real(300, 301, P), format="float32",
        kind=("cancellation", "invalid"), root="sub", at=("sqrt", "sub"), symptom="nan",
        trigger=(CLOSE,),
        intrinsic=True,
    ),
    hazard(
        planck, Real(1e-4, 10),
        kind=("cancellation", "absorption", "underflow"), root=("sub", "exp"), at=("div", "sub"),
        symptom="nan", trigger=(4e-4,),
    ),
    hazard(
        planck_high, Real(0.1, 100), format="float32",
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(95.0,),
    ),
    hazard(
        kinetic, Real(0.1, 2), Real(0, 1000),
        kind="overflow", root="square", at="square", symptom="inf", trigger=(1.0, 500.0),
    ),
    hazard(
        softened_gravity, Real(-1, 1, (3,)), Real(-1, 1, (3,)),
        kind="underflow", root="literal", at="pow", symptom="inf", trigger=(0.5, 0.5),
    ),
    hazard(
        orbit_period, Real(1, 1000),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(500.0,),
    ),
    hazard(
        ideal_mixing, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="log", at=("log", "mul"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        reduced_mass, Real(100, 1000), Real(100, 1000),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(900.0, 900.0),
    ),
    hazard(
        heat_equation, Real(1, 1.5, (8,)), error=5e-6,
        kind="absorption", root="add", at="add", symptom="stuck",
        trigger=(1.0 + 0.5 * (np.arange(8) % 2),),
    ),
    hazard(
        sound_pressure_level, Real(0.01, 100),
        kind="overflow", root=("integer_pow", "div"), at=("integer_pow", "div"), symptom="inf",
        trigger=(1.0,),
    ),
    hazard(
        inverse_square, Real(1e-5, 1),
        kind="underflow", root="mul", at="div", symptom="inf", trigger=(1e-4,),
    ),
    hazard(
        inverse_square, Real(1e-30, 1), format="bfloat16",
        kind="underflow", root="mul", at="div", symptom="inf", trigger=(1e-25,), intrinsic=True,
    ),
    hazard(
        growth, Real(0.1, 1),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(0.5,),
    ),
    hazard(
        field_in_float8, Real(100, 1000), format="float8_e5m2",
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(800.0,),
    ),
)  # fmt: skip

# --- safe ---


def lennard_jones_apart(r: Array) -> Array:
    sixth = (1.0 / r) ** 6
    return 4.0 * (sixth**2 - sixth)


def guarded_coulomb(x: Array) -> Array:
    distance = jnp.abs(x[:, None] - x[None, :])
    apart = distance > 0.05
    inverse = 1.0 / jnp.where(apart, distance, 1.0)
    return jnp.sum(jnp.where(apart, inverse, 0.0), axis=1)


def large_softening(x: Array, y: Array) -> Array:
    difference = x - y
    return difference * (jnp.sum(difference * difference) + 0.1) ** -1.5


def differences_first(a: Array, b: Array) -> Array:
    difference = a[:, None, :] - b[None, :, :]
    return jnp.sqrt(jnp.sum(difference * difference, axis=-1))


def planck_by_expm1(x: Array) -> Array:
    return x / jnp.expm1(x)


def integrate_fast(x: Array, v: Array) -> Array:
    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        x, v = state
        v = v - 0.1 * x
        x = x + 0.1 * v
        return (x, v), x

    return jax.lax.scan(step, (x, v), None, length=20)[1]


def wrapped_phase(t: Array) -> Array:
    return jnp.cos(jnp.mod(t, 6.2831853))


def direction(x: Array, y: Array) -> Array:
    return jnp.arctan2(y, x)


def slow_lorentz(v: Array) -> Array:
    return 1.0 / jnp.sqrt(1.0 - v * v)


def fermi(energy: Array) -> Array:
    return 1.0 / (jnp.exp((energy - 1.0) / 0.05) + 1.0)


def halved(x: Array) -> Array:
    def body(_: Array, x: Array) -> Array:
        return x * 0.5

    return jax.lax.fori_loop(0, 8, body, x)


def yukawa(r: Array) -> Array:
    return jnp.exp(-r) / r


SAFE = (
    safe(lennard_jones_apart, Real(0.8, 3), error=0.1),
    safe(guarded_coulomb, Real(-1, 1), error=2.0),
    safe(large_softening, Real(-1, 1, (3,)), Real(-1, 1, (3,))),
    safe(differences_first, Real(-10, 10, P), Real(-10, 10, P)),
    safe(planck_by_expm1, Real(0.001, 10)),
    safe(integrate_fast, Real(-1, 1), Real(-1, 1)),
    safe(wrapped_phase, Real(0, 30), error=0.05),
    safe(direction, Real(-1, 1), Real(-1, 1)),
    safe(slow_lorentz, Real(0, 0.9)),
    safe(fermi, Real(-10, 10), error=0.1),
    safe(halved, Real(0, 1)),
    safe(yukawa, Real(0.1, 100)),
)
