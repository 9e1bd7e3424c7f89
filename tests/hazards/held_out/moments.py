"""Statistics: higher moments, streams, covariances, rates, robust scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.hazards.case import Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def skewness(x: Array) -> Array:
    centred = x - jnp.mean(x)
    third = jnp.mean(centred**3)  # HERE
    return third / (jnp.std(x) + 0.1) ** 3


def variance_of_stream(xs: Array) -> Array:
    def see(carry: Array, x: Array) -> tuple[Array, None]:
        total, squares = carry
        return (total + x, squares + x * x), None

    zero = jnp.zeros((), xs.dtype)
    (total, squares), _ = jax.lax.scan(see, (zero, zero), xs)
    mean = total / xs.shape[0]
    return squares / xs.shape[0] - mean * mean  # HERE


def covariance_matrix(x: Array) -> Array:
    mean = jnp.mean(x, axis=0)
    second = x.T @ x / x.shape[0]
    return second - jnp.outer(mean, mean)  # HERE


def log_of_mean_exp(x: Array) -> Array:
    return jnp.log(jnp.mean(jnp.exp(x)))  # HERE


def slow_smoothing(level: Array, xs: Array) -> Array:
    def see(level: Array, x: Array) -> tuple[Array, Array]:
        level = level + 0.002 * (x - level)  # HERE
        return level, level

    return jax.lax.scan(see, level, xs)[0]


def coefficient_of_variation(x: Array) -> Array:
    return jnp.std(x) / jnp.mean(x)  # HERE


def precision_of_labels(predicted: Array, truth: Array) -> Array:
    hits = jnp.sum(predicted * truth)
    return hits / jnp.sum(predicted)  # HERE


def energy_of_signal(x: Array) -> Array:
    return jnp.dot(x, x) / x.shape[0]  # HERE


def robust_score(x: Array) -> Array:
    centre = jnp.median(x)
    spread = jnp.median(jnp.abs(x - centre))
    return (x - centre) / spread  # HERE


def reliability_variance(x: Array, w: Array) -> Array:
    mean = jnp.sum(w * x) / 4.0
    return jnp.sum(w * (x - mean) ** 2) / (jnp.sum(w) - 1.0)  # HERE


def log_of_geometric_spread(x: Array) -> Array:
    return jnp.exp(jnp.std(jnp.log(x)))  # HERE


HAZARDS = (
    hazard(
        skewness, Real(-50, 50, (8,)),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf",
        trigger=(np.array([50.0] + [-50.0] * 7),),
    ),
    hazard(
        variance_of_stream, Real(3000, 3001, (16,)), format="float32",
        kind="cancellation", root="sub", at="sub", symptom="wrong",
        trigger=(np.linspace(3000.1, 3000.9, 16),),
    ),
    hazard(
        covariance_matrix, Real(10, 11, (16, 2)), format="bfloat16",
        kind="cancellation", root="sub", at="sub", symptom="wrong",
        trigger=(np.linspace(10, 11, 16)[:, None],),
    ),
    hazard(
        log_of_mean_exp, Real(-200, 200), format="bfloat16",
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(150.0,), intrinsic=True,
    ),
    hazard(
        slow_smoothing, Real(90, 110, ()), Real(90, 110, (300,)), error=0.02,
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(98.0, 108.0),
    ),
    hazard(
        coefficient_of_variation, Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="inf",
        trigger=(np.array([1.0, -1, 1, -1]),),
    ),
    hazard(
        precision_of_labels, Whole(0, 1, (6,)), Whole(0, 1, (6,)),
        format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0, 1),
    ),
    hazard(
        energy_of_signal, Real(-20, 20, (512,)),
        kind="overflow", root="dot_general", at="dot_general", symptom="inf", trigger=(20.0,),
    ),
    hazard(
        robust_score, Real(-1, 1, (5,)), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5,),
    ),
    hazard(
        reliability_variance, Real(-1, 1), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="inf",
        trigger=(np.array([1.0, -1, 1, -1]), 0.25),
    ),
    hazard(
        log_of_geometric_spread, Real(0, 10), format="float32", intrinsic=True,
        kind="invalid", root="log", at=("log", "sub"), symptom="nan", trigger=(0.0,),
    ),
)  # fmt: skip

# --- safe ---


def skewness_of_scores(x: Array) -> Array:
    scores = (x - jnp.mean(x)) / (jnp.std(x) + 1.0)
    return jnp.mean(scores**3)


def variance_of_shifted_stream(xs: Array) -> Array:
    def see(carry: Array, x: Array) -> tuple[Array, None]:
        total, squares = carry
        return (total + x, squares + x * x), None

    zero = jnp.zeros((), xs.dtype)
    (total, squares), _ = jax.lax.scan(see, (zero, zero), xs - xs[0])
    mean = total / xs.shape[0]
    return squares / xs.shape[0] - mean * mean


def covariance_of_centred(x: Array) -> Array:
    centred = x - jnp.mean(x, axis=0)
    return centred.T @ centred / x.shape[0]


def log_of_mean_exp_by_peak(x: Array) -> Array:
    peak = jnp.max(x)
    return peak + jnp.log(jnp.mean(jnp.exp(x - peak)))


def quick_smoothing(level: Array, xs: Array) -> Array:
    def see(level: Array, x: Array) -> tuple[Array, Array]:
        level = level + 0.125 * (x - level)
        return level, level

    return jax.lax.scan(see, level, xs)[0]


def variation_of_positive(x: Array) -> Array:
    return jnp.std(x) / jnp.mean(x)


def precision_with_floor(predicted: Array, truth: Array) -> Array:
    hits = jnp.sum(predicted * truth)
    return hits / jnp.maximum(jnp.sum(predicted), 1)


def mean_energy_of_signal(x: Array) -> Array:
    return jnp.dot(x / x.shape[0], x)


def robust_score_with_floor(x: Array) -> Array:
    centre = jnp.median(x)
    spread = jnp.median(jnp.abs(x - centre))
    return (x - centre) / jnp.maximum(spread, 1e-2)


def reliability_variance_with_floor(x: Array, w: Array) -> Array:
    mean = jnp.sum(w * x) / 4.0
    return jnp.sum(w * (x - mean) ** 2) / jnp.maximum(jnp.sum(w) - 1.0, 0.5)


def geometric_spread_of_positive(x: Array) -> Array:
    return jnp.exp(jnp.std(jnp.log(x)))


def ranks(x: Array) -> Array:
    order = jnp.argsort(jnp.argsort(x))
    return order.astype(x.dtype) / x.shape[0]


SAFE = (
    safe(skewness_of_scores, Real(-50, 50, (8,)), error=0.05),
    safe(variance_of_shifted_stream, Real(3000, 3001, (16,)), format="float32"),
    safe(covariance_of_centred, Real(10, 11, (16, 2)), format="bfloat16"),
    safe(log_of_mean_exp_by_peak, Real(-200, 200), format="bfloat16"),
    safe(quick_smoothing, Real(90, 110, ()), Real(90, 110, (50,))),
    safe(variation_of_positive, Real(1, 2)),
    safe(precision_with_floor, Whole(0, 1, (6,)), Whole(0, 1, (6,)), format="float32"),
    safe(mean_energy_of_signal, Real(-20, 20, (512,))),
    safe(robust_score_with_floor, Real(-1, 1, (5,)), format="float32"),
    safe(reliability_variance_with_floor, Real(-1, 1), Real(0, 1), format="float32"),
    safe(geometric_spread_of_positive, Real(0.1, 10)),
    safe(ranks, Real(-1, 1, (64,)), format="bfloat16"),
)  # fmt: skip
