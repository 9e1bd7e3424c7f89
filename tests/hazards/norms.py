"""Normalisations: layer, RMS, batch, weight and spectral norms, unit vectors, similarities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .case import Real, hazard, safe

Array = Any

# --- hazards ---


def layer_norm_tiny_eps(x: Array, scale: Array, bias: Array) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + 1e-12)  # HERE
    return (x - mean) * inverse * scale + bias


def rms_norm(x: Array, scale: Array) -> Array:
    mean_square = jnp.mean(x**2, axis=-1, keepdims=True)  # HERE
    return x * jax.lax.rsqrt(mean_square + 1e-5) * scale


def rms_norm_lost_eps(x: Array) -> Array:
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(mean_square + 1e-8)  # HERE


def unit_vector(x: Array) -> Array:
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / length  # HERE


def library_norm(x: Array) -> Array:
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)  # HERE
    return x / jnp.maximum(norm, 1.0)


def batch_norm_one_pass(x: Array) -> Array:
    mean = jnp.mean(x, axis=0)
    variance = jnp.mean(x * x, axis=0) - mean * mean  # HERE
    return (x - mean) / jnp.sqrt(jnp.abs(variance) + 1e-3)


def batch_norm_negative(x: Array) -> Array:
    mean = jnp.mean(x, axis=0)
    variance = jnp.mean(jnp.square(x), axis=0) - jnp.square(mean)  # OR HERE
    return (x - mean) * jax.lax.rsqrt(variance)  # HERE


def standardize(x: Array) -> Array:
    centred = x - jnp.mean(x)
    return centred / jnp.std(x)  # HERE


def weight_norm(v: Array, g: Array) -> Array:
    length = jnp.sqrt(jnp.sum(v * v))
    return g * v / length  # HERE


def power_iteration(w: Array, u: Array) -> Array:
    for _ in range(2):
        v = w.T @ u
        v = v / (jnp.linalg.norm(v) + 1e-12)  # HERE
        u = w @ v
    return u


def cosine_similarity(a: Array, b: Array) -> Array:
    product = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.dot(a, b) / jnp.maximum(product, 1e-8)  # HERE


def layer_norm_of_residual(x: Array) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean  # HERE
    return centred / 60000.0


def library_variance(x: Array) -> Array:
    variance = jnp.var(x, axis=-1, keepdims=True)  # HERE
    return (x - jnp.mean(x, axis=-1, keepdims=True)) / jnp.sqrt(variance + 1e-3)


def rms_in_float8(x: Array) -> Array:
    return jnp.mean(x * x)  # HERE


def min_max(x: Array) -> Array:
    low, high = jnp.min(x), jnp.max(x)
    return (x - low) / (high - low)  # HERE


def scaled_by_maximum(x: Array) -> Array:
    return x / jnp.max(x)  # HERE


def angle_between(a: Array) -> Array:
    unit = a * jax.lax.rsqrt(jnp.sum(a * a))
    return jnp.arccos(jnp.sum(unit * unit))  # HERE


def global_response_norm(x: Array) -> Array:
    energy = jnp.sqrt(jnp.sum(x * x, axis=0, keepdims=True))
    share = energy / (jnp.mean(energy, axis=-1, keepdims=True) + 1e-8)  # HERE
    return x * share + x


ROWS = (3, 8)

HAZARDS = (
    hazard(
        layer_norm_tiny_eps, Real(-10, 10, ROWS), Real(0.5, 2, (8,)), Real(-1, 1, (8,)),
        kind="underflow", root="literal", at="rsqrt", symptom="inf", trigger=(1.0, 1.0, 0.0),
    ),
    hazard(
        rms_norm, Real(-500, 500, ROWS), Real(0.5, 2, (8,)),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(400.0, 1.0),
    ),
    hazard(
        rms_norm, Real(-1e20, 1e20, ROWS), Real(0.5, 2, (8,)), format="float32",
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(5e19, 1.0),
    ),
    hazard(
        rms_norm_lost_eps, Real(-1, 1, ROWS),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0,),
    ),
    hazard(
        unit_vector, Real(-1, 1, ROWS), format="float32",
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0,), intrinsic=True,
    ),
    hazard(
        library_norm, Real(-300, 300, ROWS),
        kind="overflow", root=("reduce_sum", "convert_element_type", "mul"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(200.0,),
    ),
    hazard(
        batch_norm_one_pass, Real(1000, 1001, (16, 2)), format="float32",
        kind="cancellation", root="sub", at="sub", symptom="wrong", error=0.02,
        trigger=(1000 + np.linspace(0, 0.02, 32).reshape(16, 2),),
    ),
    hazard(
        batch_norm_one_pass, Real(20, 21, (16, 2)),
        kind="cancellation", root="sub", at="sub", symptom="wrong", error=0.1,
        trigger=(20 + np.linspace(0, 1, 32).reshape(16, 2),),
    ),
    hazard(
        batch_norm_negative, Real(20, 21, (5, 2)),
        kind=("cancellation", "invalid"), root="sub", at=("rsqrt", "sub"), symptom="nan",
        trigger=(20 + np.linspace(0.3, 0.4, 10).reshape(5, 2),),
    ),
    hazard(
        standardize, Real(-5, 5, (8,)), format="float32",
        kind="invalid", root="div", at="div", symptom="nan", trigger=(2.0,), intrinsic=True,
    ),
    hazard(
        weight_norm, Real(-1e-4, 1e-4, (8,)), Real(0.5, 2, ()),
        kind="underflow", root="mul", at="div", symptom="inf", trigger=(1e-4, 1.0),
    ),
    hazard(
        power_iteration, Real(-1, 1, (3, 4)), Real(-1, 1, (3,)),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0, 1.0),
    ),
    hazard(
        cosine_similarity, Real(-1, 1), Real(-1, 1),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0, 1.0),
    ),
    hazard(
        layer_norm_of_residual, Real(-60000, 60000, ROWS),
        kind="overflow", root="sub", at="sub", symptom="inf",
        trigger=(60000.0 - 120000.0 * (np.arange(8) > 5),),
    ),
    hazard(
        library_variance, Real(-2000, 2000, ROWS),
        kind="overflow", root=("convert_element_type", "square", "div"),
        at="convert_element_type", symptom="inf",
        trigger=(2000.0 - 4000.0 * (np.arange(8) > 3),),
    ),
    hazard(
        rms_in_float8, Real(-50, 50), format="float8_e4m3fn",
        kind="overflow", root="mul", at="mul", symptom="nan", trigger=(40.0,),
    ),
    hazard(
        min_max, Real(0, 1), kind="invalid", root=("div", "sub"), at="div", symptom="nan",
        trigger=(0.5,), intrinsic=True,
    ),
    hazard(
        scaled_by_maximum, Real(1, 1e5),
        kind="overflow", root="input", at="div", symptom="nan", trigger=(1e5,),
    ),
    hazard(
        angle_between, Real(0.5, 1),
        kind="invalid", root=("acos", "mul", "rsqrt", "reduce_sum", "convert_element_type"),
        at="acos", symptom="nan", trigger=(np.array([0.82, 0.63, 0.52, 0.51]),),
    ),
    hazard(
        global_response_norm, Real(-1, 1, ROWS),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0,),
    ),
)  # fmt: skip

# --- safe ---


def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-3) * scale + bias


def layer_norm_in_float32(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.var(wide, axis=-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + 1e-12)).astype(x.dtype)


def rms_norm_in_range(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-2)


def rms_norm_in_float32(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def guarded_unit_vector(x: Array) -> Array:
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / jnp.maximum(length, 0.05)


def two_pass_variance(x: Array) -> Array:
    mean = jnp.mean(x, axis=0)
    return jnp.mean((x - mean) ** 2, axis=0)


def inference_batch_norm(x: Array, mean: Array, variance: Array) -> Array:
    return (x - mean) / jnp.sqrt(variance + 1e-5)


def scaled_norm(x: Array) -> Array:
    peak = jnp.maximum(jnp.max(jnp.abs(x)), 1.0)
    return peak * jnp.sqrt(jnp.sum((x / peak) ** 2))


def double_where_unit_vector(x: Array) -> Array:
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    usable = square > 0.01
    length = jnp.sqrt(jnp.where(usable, square, 1.0))
    return jnp.where(usable, x / length, 0.0)


def share_of_total(x: Array) -> Array:
    return x / jnp.sum(x, axis=-1, keepdims=True)


def max_normalized(x: Array) -> Array:
    return x / jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-3)


def eps_swallowed_harmlessly(x: Array) -> Array:
    return 1.0 / (x + 1e-6)


SAFE = (
    safe(layer_norm, Real(-10, 10, ROWS), Real(0.5, 2, (8,)), Real(-1, 1, (8,))),
    safe(layer_norm, Real(-10, 10, ROWS), Real(0.5, 2, (8,)), Real(-1, 1, (8,)), format="bfloat16"),
    safe(layer_norm_in_float32, Real(-1000, 1000, ROWS)),
    safe(rms_norm_in_range, Real(-100, 100, ROWS)),
    safe(rms_norm_in_float32, Real(-60000, 60000, ROWS)),
    safe(guarded_unit_vector, Real(-10, 10, ROWS), error=0.1),
    safe(two_pass_variance, Real(1000, 1001, (16, 2)), format="float32"),
    safe(two_pass_variance, Real(-50, 50, (16, 2))),
    safe(inference_batch_norm, Real(-10, 10), Real(-1, 1), Real(0.1, 2)),
    safe(scaled_norm, Real(-5000, 5000)),
    safe(double_where_unit_vector, Real(-10, 10, ROWS), error=1.1),
    safe(share_of_total, Real(0.1, 1, ROWS)),
    safe(share_of_total, Real(1, 1000, ROWS), format="bfloat16"),
    safe(max_normalized, Real(-100, 100, ROWS)),
    safe(eps_swallowed_harmlessly, Real(1, 10)),
)
