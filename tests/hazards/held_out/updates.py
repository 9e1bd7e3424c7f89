"""Update rules by hand: moments, averages, clips, momentum, decays, counters."""

from typing import Any

import jax
import jax.numpy as jnp

from tests.hazards.case import Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def adamax(w: Array, g: Array, m: Array, u: Array) -> Array:
    m = 0.9 * m + 0.1 * g
    u = jnp.maximum(0.999 * u, jnp.abs(g))
    return w - 0.01 * m / u  # HERE


def yogi_second_moment(v: Array, g: Array) -> Array:
    def step(v: Array, _: None) -> tuple[Array, None]:
        change = (1.0 - 0.999) * jnp.sign(v - g * g) * g * g
        return v - change, None  # HERE

    return jax.lax.scan(step, v, None, length=200)[0]


def sign_descent(w: Array, g: Array) -> Array:
    def step(w: Array, _: None) -> tuple[Array, None]:
        return w - 1e-4 * jnp.sign(g), None  # HERE

    return jax.lax.scan(step, w, None, length=200)[0]


def clip_by_block_rms(g: Array) -> Array:
    rms = jnp.sqrt(jnp.mean(g**2))  # HERE
    return g / jnp.maximum(1.0, rms)


def clip_to_weight_size(w: Array, g: Array) -> Array:
    size = jnp.linalg.norm(g)  # HERE
    limit = 0.25 * jnp.maximum(jnp.max(jnp.abs(w)), 1e-3)
    return g * jnp.minimum(1.0, limit / (size + 1e-3))


def debiased_average(values: Array) -> Array:
    decay = jnp.asarray(0.9999, values.dtype)

    def see(carry: Array, value: Array) -> tuple[Array, None]:
        average, power = carry
        return (decay * average + (1.0 - decay) * value, power * decay), None

    start = (jnp.zeros((), values.dtype), jnp.ones((), values.dtype))
    (average, power), _ = jax.lax.scan(see, start, values)
    return average / (1.0 - power)  # HERE


def heavy_momentum(grads: Array) -> Array:
    def step(v: Array, g: Array) -> tuple[Array, None]:
        return 0.9 * v + g, None  # HERE

    return jax.lax.scan(step, jnp.zeros_like(grads[0]), grads)[0]


def polynomial_decay(step: Array, rate: Array) -> Array:
    left = 1.0 - step.astype(rate.dtype) / 1000.0
    return rate * jnp.power(left, 0.9)  # HERE


def stochastic_weight_average(weights: Array) -> Array:
    def see(carry: Array, w: Array) -> tuple[Array, None]:
        average, count = carry
        count = count + 1.0  # HERE
        return (average + (w - average) / count, count), None

    start = (jnp.zeros((), weights.dtype), jnp.zeros((), weights.dtype))
    return jax.lax.scan(see, start, weights)[0]


def preconditioned(g: Array, left: Array) -> Array:
    statistics = {"a": left + g * g, "b": left}
    roots = jax.tree.map(lambda s: jax.lax.rsqrt(s + 1e-10), statistics)  # HERE
    return g * roots["a"] * roots["b"]


def gradients_of_parts(grads: Array) -> Array:
    flat, tree = jax.tree.flatten(grads)
    total = sum(jnp.sum(g.astype(g.dtype) ** 2) for g in flat)  # HERE
    scale = 1.0 / jnp.sqrt(total + 1e-3)
    return jax.tree.unflatten(tree, [g * scale for g in flat])


def momentum_of_float8(m: Array, g: Array) -> Array:
    def step(m: Array, _: None) -> tuple[Array, None]:
        return m + 0.03 * g, None  # HERE

    return jax.lax.scan(step, m, None, length=40)[0]


HAZARDS = (
    hazard(
        adamax, Real(-1, 1), Real(-1, 1), Real(-1, 1), Real(0, 1),
        format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 0.0, 0.0, 0.0),
    ),
    hazard(
        yogi_second_moment, Real(1, 2), Real(1, 2), format="bfloat16",
        kind="absorption", root="sub", at="sub", symptom="stuck", trigger=(1.0, 1.25),
    ),
    hazard(
        sign_descent, Real(0.5, 1), Real(-1, 1), format="bfloat16", error=0.015,
        kind="absorption", root="sub", at="sub", symptom="stuck", trigger=(1.0, 0.5),
    ),
    hazard(
        clip_by_block_rms, Real(-500, 500, (8,)),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(400.0,),
    ),
    hazard(
        clip_to_weight_size, Real(-1, 1), Real(-200, 200, (64,)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(1.0, 200.0),
    ),
    hazard(
        debiased_average, Real(0.5, 1, (8,)),
        kind="rounds-to-bound", root="literal", at="div", symptom="nan", trigger=(1.0,),
    ),
    hazard(
        heavy_momentum, Real(-8000, 8000, (50, 2)),
        kind="overflow", root=("add", "mul"), at=("add", "mul"), symptom="inf",
        trigger=(8000.0,),
    ),
    hazard(
        polynomial_decay, Whole(0, 1200, ()), Real(0.1, 1, ()), format="float32", intrinsic=True,
        kind="invalid", root="pow", at="pow", symptom="nan", trigger=(1100, 0.5),
    ),
    hazard(
        stochastic_weight_average, Real(0, 1, (400,)), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.5,),
    ),
    hazard(
        preconditioned, Real(-1, 1), Real(0, 1),
        kind="underflow", root="literal", at="rsqrt", symptom="inf", trigger=(0.0, 0.0),
    ),
    hazard(
        gradients_of_parts, {"w": Real(-300, 300, (4,)), "b": Real(-300, 300, (2,))},
        kind="overflow", root=("integer_pow", "convert_element_type"),
        at=("integer_pow", "convert_element_type"), symptom="inf", trigger=(300.0,),
    ),
    hazard(
        momentum_of_float8, Real(1, 2), Real(0.5, 1), format="float8_e4m3fn",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0, 1.0),
    ),
)  # fmt: skip

# --- safe ---


def adamax_with_floor(w: Array, g: Array, m: Array, u: Array) -> Array:
    m = 0.9 * m + 0.1 * g
    u = jnp.maximum(0.999 * u, jnp.abs(g))
    return w - 0.01 * m / (u + 1e-2)


def yogi_in_float32(v: Array, g: Array) -> Array:
    wide = g.astype(jnp.float32)

    def step(v: Array, _: None) -> tuple[Array, None]:
        change = (1.0 - 0.999) * jnp.sign(v - wide * wide) * wide * wide
        return v - change, None

    return jax.lax.scan(step, v.astype(jnp.float32), None, length=20)[0].astype(v.dtype)


def sign_descent_with_a_large_rate(w: Array, g: Array) -> Array:
    def step(w: Array, _: None) -> tuple[Array, None]:
        return w - 0.03125 * jnp.sign(g), None

    return jax.lax.scan(step, w, None, length=8)[0]


def clip_by_block_rms_in_float32(g: Array) -> Array:
    wide = g.astype(jnp.float32)
    rms = jnp.sqrt(jnp.mean(wide**2))
    return (wide / jnp.maximum(1.0, rms)).astype(g.dtype)


def clip_chosen_by_size(w: Array, g: Array) -> Array:
    size = jnp.max(jnp.abs(g))
    limit = 0.25 * jnp.maximum(jnp.max(jnp.abs(w)), 1e-3)
    return jnp.where(size > limit, g * (limit / size), g)


def debiased_average_in_range(values: Array) -> Array:
    def see(carry: Array, value: Array) -> tuple[Array, None]:
        average, power = carry
        return (0.875 * average + 0.125 * value, power * 0.875), None

    start = (jnp.zeros((), values.dtype), jnp.ones((), values.dtype))
    (average, power), _ = jax.lax.scan(see, start, values)
    return average / (1.0 - power)


def light_momentum(grads: Array) -> Array:
    def step(v: Array, g: Array) -> tuple[Array, None]:
        return 0.9 * v + g, None

    return jax.lax.scan(step, jnp.zeros_like(grads[0]), grads)[0]


def floored_polynomial_decay(step: Array, rate: Array) -> Array:
    left = jnp.maximum(1.0 - step.astype(rate.dtype) / 1000.0, 0.0)
    return rate * jnp.power(left, 0.9)


def average_with_whole_counter(weights: Array) -> Array:
    def see(carry: Array, w: Array) -> tuple[Array, None]:
        average, count = carry
        count = count + 1
        return (average + (w - average) / count.astype(jnp.float32), count), None

    start = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    return jax.lax.scan(see, start, weights)[0]


def preconditioned_with_kept_eps(g: Array, left: Array) -> Array:
    statistics = {"a": left + g * g, "b": left}
    roots = jax.tree.map(lambda s: jax.lax.rsqrt(s + 1e-2), statistics)
    return g * roots["a"] * roots["b"]


def gradients_of_small_parts(grads: Array) -> Array:
    flat, tree = jax.tree.flatten(grads)
    total = sum(jnp.sum(g**2) for g in flat)
    scale = 1.0 / jnp.sqrt(total + 1e-1)
    return jax.tree.unflatten(tree, [g * scale for g in flat])


def lookahead(slow: Array, fast: Array) -> Array:
    return jax.tree.map(lambda s, f: s + 0.5 * (f - s), slow, fast)


SAFE = (
    safe(adamax_with_floor, Real(-1, 1), Real(-1, 1), Real(-1, 1), Real(0, 1)),
    safe(yogi_in_float32, Real(1, 2), Real(1, 2), format="bfloat16"),
    safe(sign_descent_with_a_large_rate, Real(0.5, 1), Real(-1, 1), format="bfloat16"),
    safe(clip_by_block_rms_in_float32, Real(-500, 500, (8,))),
    safe(clip_chosen_by_size, Real(-1, 1), Real(-200, 200, (6,)), format="float32"),
    safe(debiased_average_in_range, Real(0.5, 1, (8,))),
    safe(light_momentum, Real(-5000, 5000, (50, 2)), error=0.05),
    safe(floored_polynomial_decay, Whole(0, 1200, ()), Real(0.1, 1, ())),
    safe(average_with_whole_counter, Real(0, 1, (400,)), format="bfloat16"),
    safe(preconditioned_with_kept_eps, Real(-1, 1), Real(0, 1)),
    safe(
        gradients_of_small_parts, {"w": Real(-30, 30, (4,)), "b": Real(-30, 30, (2,))},
    ),
    safe(
        lookahead, {"w": Real(-3, 3, (4,))}, {"w": Real(-3, 3, (4,))}, format="bfloat16",
    ),
)  # fmt: skip
