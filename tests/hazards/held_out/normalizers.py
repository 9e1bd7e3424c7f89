"""Normalisers and similarities: groups, filters, spectra, running statistics, sharpening."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.hazards.case import Real, hazard, safe

Array = Any

# --- hazards ---


def group_norm(x: Array) -> Array:
    groups = x.reshape(2, -1)
    centred = groups - jnp.mean(groups, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)  # HERE
    return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)


def standardized_filters(w: Array) -> Array:
    centred = w - jnp.mean(w, axis=(0, 1), keepdims=True)
    return centred / jnp.std(w, axis=(0, 1), keepdims=True)  # HERE


def raw_power_iterations(w: Array, u: Array) -> Array:
    def once(u: Array, _: None) -> tuple[Array, None]:
        return w.T @ (w @ u), None  # HERE

    u, _ = jax.lax.scan(once, u, None, length=6)
    return u / jnp.max(jnp.abs(u))


def running_mean(mean: Array, batches: Array) -> Array:
    def see(mean: Array, batch: Array) -> tuple[Array, None]:
        return mean + 0.001 * (batch - mean), None  # HERE

    return jax.lax.scan(see, mean, batches)[0]


def sharpened(p: Array) -> Array:
    powered = p**10.0  # OR HERE
    return powered / jnp.sum(powered, axis=-1, keepdims=True)  # HERE


def centred_far_from_zero(x: Array) -> Array:
    centred = x - jnp.mean(x)  # HERE
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred) + 1e-3)


def scaled_in_float8(x: Array) -> Array:
    square = x * x  # HERE
    return x * jax.lax.rsqrt(jnp.mean(square, axis=-1, keepdims=True))


def similarity_with_lost_floor(a: Array, b: Array) -> Array:
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    floor = jnp.maximum(lengths, 1e-8)  # OR HERE
    return jnp.sum(a * b, axis=-1) / floor  # HERE


def layer_norm_by_moments(x: Array) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean  # HERE
    return (x - mean) * jax.lax.rsqrt(variance + 1e-3)  # OR HERE


def weight_norm_gradient(v: Array, g: Array) -> Array:
    def loss(v: Array) -> Array:
        length = jnp.sqrt(jnp.sum(v * v))  # HERE
        return jnp.sum(g * v / (length + 1e-2))

    return jax.grad(loss)(v)


HAZARDS = (
    hazard(
        group_norm, Real(-600, 600, (8,)),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf",
        trigger=(np.array([600.0, -600] * 4),),
    ),
    hazard(
        standardized_filters, Real(-1, 1, (3, 3, 2)), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5,),
    ),
    hazard(
        raw_power_iterations, Real(-3, 3, (4, 4)), Real(-1, 1, (4,)),
        kind="overflow", root="dot_general", at="dot_general", symptom="inf",
        trigger=(3.0, 1.0),
    ),
    hazard(
        running_mean, Real(4, 5), Real(4, 5, (500, 4)), format="bfloat16", error=0.05,
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(4.0, 5.0),
    ),
    hazard(
        sharpened, Real(0, 0.1, (2, 4)),
        kind="underflow", root=("pow", "integer_pow"), at="div", symptom="nan", trigger=(0.1,),
    ),
    hazard(
        centred_far_from_zero, Real(100, 102), format="bfloat16",
        kind="cancellation", root=("sub", "convert_element_type", "div"),
        at=("sub", "convert_element_type"), symptom="wrong",
        trigger=(np.array([100.0, 101, 101, 101]),),
    ),
    hazard(
        scaled_in_float8, Real(-300, 300, (2, 4)), format="float8_e5m2",
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(300.0,),
    ),
    hazard(
        similarity_with_lost_floor, Real(-1, 1, (2, 3)), Real(-1, 1, (2, 3)),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0, 1.0),
    ),
    hazard(
        layer_norm_by_moments, Real(30, 33, (2, 8)),
        kind="cancellation", root="sub", at=("sub", "rsqrt"), symptom="wrong",
        trigger=(np.array([31.0, 31.25, 31.5, 31, 31.25, 31.5, 31.25, 31.1]),),
    ),
    hazard(
        weight_norm_gradient, Real(-1, 1), Real(0.5, 2, ()), format="bfloat16", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan",
        trigger=(0.0, 1.0),
    ),
)  # fmt: skip

# --- safe ---


def group_norm_in_float32(x: Array) -> Array:
    groups = x.reshape(2, -1).astype(jnp.float32)
    centred = groups - jnp.mean(groups, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape).astype(x.dtype)


def group_norm_of_tame(x: Array) -> Array:
    groups = x.reshape(2, -1)
    centred = groups - jnp.mean(groups, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1.0)).reshape(x.shape)


def standardized_filters_with_floor(w: Array) -> Array:
    centred = w - jnp.mean(w, axis=(0, 1), keepdims=True)
    return centred / (jnp.std(w, axis=(0, 1), keepdims=True) + 1e-2)


def unit_power_iterations(w: Array, u: Array) -> Array:
    def once(u: Array, _: None) -> tuple[Array, None]:
        u = w.T @ (w @ u)
        return u / (jnp.max(jnp.abs(u)) + 1e-3), None

    return jax.lax.scan(once, u, None, length=6)[0]


def fast_running_mean(mean: Array, batches: Array) -> Array:
    def see(mean: Array, batch: Array) -> tuple[Array, None]:
        return mean + 0.25 * (batch - mean), None

    return jax.lax.scan(see, mean, batches)[0]


def sharpened_in_logs(p: Array) -> Array:
    return jax.nn.softmax(10.0 * jnp.log(p), axis=-1)


def centred_in_float32(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide)
    return (centred * jax.lax.rsqrt(jnp.mean(centred * centred) + 1e-3)).astype(x.dtype)


def scaled_in_float8_that_fits(x: Array) -> Array:
    square = x * x
    return x * jax.lax.rsqrt(jnp.mean(square, axis=-1, keepdims=True) + 1.0)


def similarity_with_soft_floor(a: Array, b: Array) -> Array:
    def unit(z: Array) -> Array:
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-2)

    return jnp.sum(unit(a) * unit(b), axis=-1)


def layer_norm_by_moments_near_zero(x: Array) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean
    return (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1.0)


def weight_norm_gradient_softened(v: Array, g: Array) -> Array:
    def loss(v: Array) -> Array:
        length = jnp.sqrt(jnp.sum(v * v) + 1e-2)
        return jnp.sum(g * v / length)

    return jax.grad(loss)(v)


SAFE = (
    safe(group_norm_in_float32, Real(-600, 600, (8,))),
    safe(group_norm_of_tame, Real(-100, 100, (8,)), error=0.05),
    safe(standardized_filters_with_floor, Real(-1, 1, (3, 3, 2)), error=0.05),
    safe(unit_power_iterations, Real(0.1, 3, (4, 4)), Real(0.1, 1, (4,))),
    safe(fast_running_mean, Real(4, 5), Real(4, 5, (50, 4)), format="bfloat16"),
    safe(sharpened_in_logs, Real(0.01, 1, (2, 4)), error=0.05),
    safe(centred_in_float32, Real(100, 102), format="bfloat16"),
    safe(scaled_in_float8_that_fits, Real(-100, 100, (2, 4)), format="float8_e5m2"),
    safe(similarity_with_soft_floor, Real(-1, 1, (2, 3)), Real(-1, 1, (2, 3))),
    safe(layer_norm_by_moments_near_zero, Real(-2, 2, (2, 8))),
    safe(
        weight_norm_gradient_softened, Real(-1, 1), Real(0.5, 2, ()), format="bfloat16",
    ),
)  # fmt: skip
