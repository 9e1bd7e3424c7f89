"""Optimizers written by hand: moments, eps, bias correction, clipping, loss scales, counters."""

from typing import Any

import jax
import jax.numpy as jnp

from .case import Fixed, Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def adam_with_lost_eps(params: Array, grads: Array, m: Array, v: Array) -> Array:
    beta1, beta2, eps, lr = 0.9, 0.99, 1e-8, 1e-2
    m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, grads)
    v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, grads)

    def update(p: Array, m: Array, v: Array) -> Array:
        return p - lr * m / (jnp.sqrt(v) + eps)  # HERE

    return jax.tree.map(update, params, m, v), m, v


def adam_bias_in_bfloat16(m: Array, v: Array, t: Array) -> Array:
    beta1, beta2 = 0.9, 0.999
    m_hat = m / (1 - beta1 ** t.astype(m.dtype))
    v_hat = v / (1 - beta2 ** t.astype(v.dtype))  # HERE
    return m_hat / (jnp.sqrt(v_hat) + 1e-3)


def bias_correction_at_zero(m: Array, step: Array) -> Array:
    correction = 1.0 - jnp.power(0.9, step.astype(m.dtype))
    return m / correction  # HERE


def rmsprop(grad: Array, v: Array) -> Array:
    v = 0.9 * v + 0.1 * grad**2
    return grad * jax.lax.rsqrt(v + 1e-8)  # HERE


def adagrad(grad: Array, accumulated: Array) -> Array:
    accumulated = accumulated + grad * grad
    scale = jnp.sqrt(accumulated) + 1e-10
    return grad / scale, accumulated  # HERE


def clip_by_global_norm(grads: Array) -> Array:
    squares = [jnp.sum(g**2) for g in jax.tree.leaves(grads)]  # HERE
    norm = jnp.sqrt(sum(squares))
    scale = jnp.minimum(1.0, 1.0 / (norm + 1e-3))
    return jax.tree.map(lambda g: g * scale, grads), norm


def second_moment_vanishes(grad: Array) -> Array:
    m = 0.1 * grad
    v = 0.1 * jnp.square(grad)  # HERE
    return m / (jnp.sqrt(v) + 1e-6), v


def sgd_swallowed(weight: Array, grad: Array) -> Array:
    lr = 1e-4
    return weight - lr * grad  # HERE


def many_small_steps(weight: Array, grad: Array) -> Array:
    def step(w: Array, _: None) -> tuple[Array, None]:
        return w + 2e-4 * grad, None  # HERE

    final, _ = jax.lax.scan(step, weight, None, length=1000)
    return final


def moment_never_decays(m: Array, grads: Array) -> Array:
    def step(m: Array, g: Array) -> tuple[Array, None]:
        return 0.999 * m + 0.001 * g, None  # HERE

    final, _ = jax.lax.scan(step, m, grads)
    return final


def polyak_average(average: Array, weights: Array) -> Array:
    decay = 0.9999
    for _ in range(3):
        average = average * decay  # HERE
        average = average + (1 - decay) * weights
    return average


def temperature_decay(temperature: Array) -> Array:
    def body(_: Array, value: Array) -> Array:
        return value * 0.9999  # HERE

    return jax.lax.fori_loop(0, 2000, body, temperature)


def unscale(grads: Array) -> Array:
    loss_scale = 2.0**16
    return jax.tree.map(lambda g: g / loss_scale, grads)  # HERE


def grow_loss_scale(scale: Array, good_steps: Array) -> Array:
    doubled = scale * 2.0  # HERE
    return jnp.where(good_steps > 100, doubled, scale)


def adafactor(grad: Array) -> Array:
    squares = grad**2 + 1e-30
    rows = jnp.mean(squares, axis=1, keepdims=True)
    columns = jnp.mean(squares, axis=0, keepdims=True)
    estimate = rows * columns / jnp.mean(rows)  # HERE
    return grad / (jnp.sqrt(estimate) + 1e-3)


def trust_ratio(weight: Array, update: Array) -> Array:
    weight_norm = jnp.sqrt(jnp.sum(weight * weight))
    update_norm = jnp.sqrt(jnp.sum(update * update))
    ratio = weight_norm / update_norm  # HERE
    return weight - 0.01 * ratio * update


def counted_loop(start: Array) -> Array:
    def body(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        count, total = carry
        count = count + 1  # HERE
        return (count, total), None

    (count, _), _ = jax.lax.scan(body, (start * 0, start), None, length=400)
    return count


def late_step_counter(step: Array) -> Array:
    return step + 1.0  # HERE


def accumulate_microbatches(grads: Array) -> Array:
    def add(total: Array, g: Array) -> tuple[Array, None]:
        return total + g, None  # HERE

    total, _ = jax.lax.scan(add, jnp.zeros_like(grads[0]), grads)
    return total / grads.shape[0]


def momentum_in_float8(m: Array, grad: Array) -> Array:
    m = m * 0.99  # HERE
    return m + 0.01 * grad


def lars_rate(weight: Array, grad: Array) -> Array:
    weight_norm = jnp.linalg.norm(weight)
    grad_norm = jnp.linalg.norm(grad)  # HERE
    return 0.1 * weight_norm / (grad_norm + 1e-3)


def newton_step(gradient: Array, curvature: Array) -> Array:
    return gradient / curvature  # HERE


def decoupled_decay(weight: Array) -> Array:
    lr, decay = 1e-5, 1e-3
    return weight * (lr * decay)  # HERE


TREE = {"w": Real(-1, 1, (2, 3)), "b": Real(-1, 1, (3,))}
MOMENTS = {"w": Real(0, 1, (2, 3)), "b": Real(0, 1, (3,))}

HAZARDS = (
    hazard(
        adam_with_lost_eps, TREE, TREE, TREE, MOMENTS,
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.5, 0.0, 0.0, 0.0),
    ),
    hazard(
        adam_bias_in_bfloat16, Real(-1, 1), Real(0, 1), Whole(1, 1000, ()), format="bfloat16",
        kind="rounds-to-bound", root="literal", at="div", symptom="inf", trigger=(0.1, 0.1, 5),
    ),
    hazard(
        bias_correction_at_zero, Real(-1, 1), Whole(0, 1000, ()), format="float32",
        kind="invalid", root=("div", "sub", "pow"), at="div", symptom="nan", trigger=(0.0, 0),
        intrinsic=True,
    ),
    hazard(
        rmsprop, Real(-1, 1), Real(0, 1),
        kind="underflow", root="literal", at="rsqrt", symptom="inf", trigger=(0.0, 0.0),
    ),
    hazard(
        adagrad, Real(-1, 1), Real(0, 10),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0, 0.0),
    ),
    hazard(
        clip_by_global_norm, {"w": Real(-100, 100, (4, 4)), "b": Real(-100, 100)},
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(90.0,),
    ),
    hazard(
        second_moment_vanishes, Real(1e-5, 1e-4),
        kind="underflow", root="square", at="square", symptom="zero", trigger=(1e-4,),
    ),
    hazard(
        sgd_swallowed, Real(0.5, 1), Real(-1, 1), format="bfloat16", error=1e-4,
        kind="absorption", root="sub", at="sub", symptom="stuck", trigger=(0.75, 1.0),
    ),
    hazard(
        sgd_swallowed, Real(1, 2), Real(-1, 1), error=5e-5,
        kind="absorption", root="sub", at="sub", symptom="stuck", trigger=(1.5, 1.0),
    ),
    hazard(
        many_small_steps, Real(1, 1.5), Real(0, 1),
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0, 1.0),
    ),
    hazard(
        moment_never_decays, Real(-1, 1), Real(-1, 1, (300, 4)), format="bfloat16",
        kind="rounds-to-bound", root="literal", at=("mul", "add"), symptom="stuck",
        trigger=(1.0, 0.0),
    ),
    hazard(
        polyak_average, Real(0.5, 1), Real(0, 1), format="float16", error=2e-4,
        kind="rounds-to-bound", root="literal", at="mul", symptom="stuck", trigger=(0.75, 0.0),
    ),
    hazard(
        temperature_decay, Real(0.5, 2, ()),
        kind="rounds-to-bound", root="literal", at="mul", symptom="stuck", trigger=(1.0,),
    ),
    hazard(
        unscale, {"w": Real(-6e4, 6e4)},
        kind="overflow", root="literal", at="div", symptom="zero", trigger=(5e4,),
    ),
    hazard(
        grow_loss_scale, Real(1, 65504, ()), Whole(0, 1000, ()),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(40000.0, 200),
    ),
    hazard(
        adafactor, Real(-1, 1, (3, 4)),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0,),
    ),
    hazard(
        trust_ratio, Real(-1, 1), Real(-1, 1), format="float32",
        kind="invalid", root="div", at="div", symptom="inf", trigger=(0.5, 0.0), intrinsic=True,
    ),
    hazard(
        counted_loop, Real(0, 1, ()), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.0,),
    ),
    hazard(
        counted_loop, Real(0, 1, ()), format="float8_e4m3fn",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.0,),
    ),
    hazard(
        counted_loop, Real(0, 1, ()), format="float8_e5m2",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.0,),
    ),
    hazard(
        late_step_counter, Real(16777216, 2e7, ()), format="float32", error=3e-8,
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(16777216.0,),
    ),
    hazard(
        accumulate_microbatches, Real(0, 1, (600, 2)), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0,),
    ),
    hazard(
        momentum_in_float8, Real(-1, 1), Real(-1, 1), format="float8_e5m2", error=0.005,
        kind="rounds-to-bound", root="literal", at="mul", symptom="stuck", trigger=(0.75, 0.0),
    ),
    hazard(
        lars_rate, Real(-1, 1, (16,)), Real(-200, 200, (16,)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(1.0, 150.0),
    ),
    hazard(
        newton_step, Real(-1, 1), Real(1e-9, 1e-8),
        kind="underflow", root="input", at="div", symptom="inf", trigger=(0.5, 5e-9),
    ),
    hazard(
        decoupled_decay, Real(0.1, 1),
        kind="underflow", root="literal", at="mul", symptom="zero", trigger=(0.5,),
    ),
)  # fmt: skip

# --- safe ---


def adam_with_kept_eps(params: Array, grads: Array, m: Array, v: Array) -> Array:
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, grads)
    step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-2), m, v)
    return jax.tree.map(lambda p, s: p - 0.01 * s, params, step), m, v


def adam_in_float32(param: Array, grad: Array, m: Array, v: Array) -> Array:
    g = grad.astype(jnp.float32)
    m = 0.9 * m.astype(jnp.float32) + 0.1 * g
    v = 0.999 * v.astype(jnp.float32) + 0.001 * g * g
    update = m / (jnp.sqrt(v) + 1e-8)
    return param - (0.01 * jnp.clip(update, -10, 10)).astype(param.dtype)


def bias_correction_from_one(m: Array, step: Array) -> Array:
    return m / (1.0 - 0.9 ** step.astype(jnp.float32)).astype(m.dtype)


def rmsprop_with_kept_eps(grad: Array, v: Array) -> Array:
    v = 0.9 * v + 0.1 * grad**2
    return grad * jax.lax.rsqrt(v + 1e-3)


def clip_by_norm_in_float32(grads: Array) -> Array:
    squares = [jnp.sum(g.astype(jnp.float32) ** 2) for g in jax.tree.leaves(grads)]
    scale = jnp.minimum(1.0, 1.0 / (jnp.sqrt(sum(squares)) + 1e-6))
    return jax.tree.map(lambda g: (g.astype(jnp.float32) * scale).astype(g.dtype), grads)


def clip_by_value(grads: Array) -> Array:
    return jax.tree.map(lambda g: jnp.clip(g, -1.0, 1.0), grads)


def lion(param: Array, grad: Array, m: Array) -> Array:
    direction = jnp.sign(0.9 * m + 0.1 * grad)
    return param - 0.01 * (direction + 0.1 * param), 0.99 * m + 0.01 * grad


def sgd_with_a_large_rate(weight: Array, grad: Array) -> Array:
    return weight - 0.1 * grad


def master_weights(weight: Array, grad: Array) -> Array:
    wide = weight.astype(jnp.float32)
    return wide - 1e-4 * grad.astype(jnp.float32)


def fast_average(values: Array) -> Array:
    def step(m: Array, x: Array) -> tuple[Array, Array]:
        m = 0.9 * m + 0.1 * x
        return m, m

    return jax.lax.scan(step, jnp.zeros_like(values[0]), values)[1]


def integer_counter(step: Array, x: Array) -> Array:
    return x * 0.5, step + 1


def short_counter(x: Array) -> Array:
    def body(_: Array, count: Array) -> Array:
        return count + 1

    return jax.lax.fori_loop(0, 100, body, jnp.zeros((), x.dtype)) * 0.01 + x


def halve_loss_scale(scale: Array, finite: Array) -> Array:
    grown = jnp.minimum(scale, 32752.0) * 2.0
    return jnp.where(finite, grown, jnp.maximum(scale / 2.0, 1.0))


def guarded_trust_ratio(weight: Array, update: Array) -> Array:
    weight_norm = jnp.sqrt(jnp.sum(weight * weight))
    update_norm = jnp.sqrt(jnp.sum(update * update))
    usable = update_norm > 0.01
    ratio = jnp.where(usable, weight_norm / jnp.where(usable, update_norm, 1.0), 1.0)
    return weight - 0.01 * ratio * update


def accumulate_in_float32(grads: Array) -> Array:
    def add(total: Array, g: Array) -> tuple[Array, None]:
        return total + g.astype(jnp.float32), None

    total, _ = jax.lax.scan(add, jnp.zeros(grads.shape[1:], jnp.float32), grads)
    return (total / grads.shape[0]).astype(grads.dtype)


SAFE = (
    safe(adam_with_kept_eps, TREE, TREE, TREE, MOMENTS),
    safe(adam_in_float32, Real(-1, 1), Real(-1, 1), Real(-1, 1), Real(0, 1)),
    safe(adam_in_float32, Real(-1, 1), Real(-1, 1), Real(-1, 1), Real(0, 1), format="float32"),
    safe(bias_correction_from_one, Real(-1, 1), Whole(1, 1000, ()), format="float32"),
    safe(bias_correction_from_one, Real(-1, 1), Whole(1, 1000, ())),
    safe(rmsprop_with_kept_eps, Real(-1, 1), Real(0, 1)),
    safe(clip_by_norm_in_float32, {"w": Real(-1000, 1000, (4, 4)), "b": Real(-1000, 1000)}),
    safe(clip_by_value, TREE),
    safe(lion, Real(-1, 1), Real(0.5, 1), Real(0.5, 1)),
    safe(sgd_with_a_large_rate, Real(-1, 1), Real(-1, 1), format="bfloat16"),
    safe(master_weights, Real(0.5, 1), Real(-1, 1), format="bfloat16"),
    safe(fast_average, Real(-1, 1, (20, 3))),
    safe(integer_counter, Whole(0, 2_000_000, ()), Real(-1, 1), format="bfloat16"),
    safe(short_counter, Real(0, 1)),
    safe(halve_loss_scale, Real(1, 65504, ()), Fixed(True)),
    safe(guarded_trust_ratio, Real(-1, 1), Real(-1, 1), error=0.2),
    safe(accumulate_in_float32, Real(0, 1, (600, 2)), format="bfloat16"),
)
