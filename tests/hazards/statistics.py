"""Statistics: moments, correlations, running estimates, sums and scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .case import Real, hazard, safe

Array = Any

# --- hazards ---


def one_pass_variance(x: Array) -> Array:
    mean = jnp.mean(x)
    mean_of_squares = jnp.mean(x * x)
    return mean_of_squares - mean * mean  # HERE


def one_pass_deviation(x: Array) -> Array:
    total, squares = jnp.sum(x), jnp.sum(x * x)
    n = x.shape[0]
    variance = squares / n - (total / n) ** 2  # OR HERE
    return jnp.sqrt(variance)  # HERE


def covariance_by_moments(x: Array, y: Array) -> Array:
    product = jnp.mean(x * y)
    return product - jnp.mean(x) * jnp.mean(y)  # HERE


def z_score(x: Array) -> Array:
    deviation = jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2))
    return (x - jnp.mean(x)) / (deviation + 1e-8)  # HERE


def correlation(x: Array, y: Array) -> Array:
    a, b = x - jnp.mean(x), y - jnp.mean(y)
    scale = jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b))
    return jnp.sum(a * b) / scale  # HERE


def kurtosis(x: Array) -> Array:
    centred = x - jnp.mean(x)
    fourth = centred**4  # HERE
    return jnp.mean(fourth)


def running_total(x: Array) -> Array:
    return jnp.cumsum(x)  # HERE


def sequential_sum(x: Array) -> Array:
    def add(i: Array, total: Array) -> Array:
        return total + x[i]  # HERE

    return jax.lax.fori_loop(0, x.shape[0], add, jnp.zeros((), x.dtype))


def geometric_mean(x: Array) -> Array:
    product = jnp.prod(x)  # HERE
    return jnp.power(product, 1.0 / x.shape[0])


def joint_odds(ratios: Array) -> Array:
    odds = jnp.prod(ratios)  # HERE
    return odds / (1.0 + odds)


def harmonic_mean(x: Array) -> Array:
    return x.shape[0] / jnp.sum(1.0 / x)  # HERE


def welford(x: Array) -> Array:
    def step(carry: tuple[Array, Array], v: Array) -> tuple[tuple[Array, Array], None]:
        n, mean = carry
        n = n + 1  # HERE
        return (n, mean + (v - mean) / n), None

    (n, _), _ = jax.lax.scan(step, (jnp.zeros((), x.dtype), x[0]), x)
    return n


def weighted_mean(x: Array, weights: Array) -> Array:
    return jnp.sum(x * weights) / jnp.sum(weights)  # HERE


def shoelace(x: Array, y: Array) -> Array:
    a = x * jnp.roll(y, 1)
    b = y * jnp.roll(x, 1)
    return jnp.sum(a - b) / 2  # HERE


def explained_variance(target: Array, prediction: Array) -> Array:
    residual = jnp.var(target - prediction)
    return 1.0 - residual / jnp.var(target)  # HERE


def quadratic_root(b: Array) -> Array:
    discriminant = jnp.sqrt(b * b - 1.0)
    return b - discriminant  # HERE


def finite_difference(x: Array) -> Array:
    h = 1e-4
    above = jnp.sin(x + h)  # HERE
    return (above - jnp.sin(x)) / h  # OR HERE


N = (16,)
NEAR = np.linspace(0, 0.02, 16)

HAZARDS = (
    hazard(
        one_pass_variance, Real(1e4, 10001, N), format="float32",
        kind="cancellation", root="sub", at="sub", symptom="wrong", trigger=(1e4 + NEAR,),
    ),
    hazard(
        one_pass_variance, Real(30, 31, N),
        kind="cancellation", root="sub", at="sub", symptom="wrong", trigger=(30 + NEAR * 50,),
    ),
    hazard(
        one_pass_variance, Real(10, 11, N), format="bfloat16",
        kind="cancellation", root="sub", at="sub", symptom="wrong", trigger=(10 + NEAR * 50,),
    ),
    hazard(
        one_pass_deviation, Real(1000, 1001, (5,)), format="float32",
        kind=("cancellation", "invalid"), root="sub", at=("sqrt", "sub"), symptom="nan",
        trigger=(1000.2999,),
    ),
    hazard(
        covariance_by_moments, Real(50, 51, N), Real(20, 21, N),
        kind="cancellation", root="sub", at="sub", symptom="wrong",
        trigger=(50 + NEAR * 50, 20 + NEAR * 50),
    ),
    hazard(
        z_score, Real(-1, 1, N),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.5,),
    ),
    hazard(
        correlation, Real(-1, 1, N), Real(-1, 1, N), format="float32",
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 0.25), intrinsic=True,
    ),
    hazard(
        kurtosis, Real(-40, 40, N),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf",
        trigger=(np.where(np.arange(16) < 8, 30.0, -30.0),),
    ),
    hazard(
        running_total, Real(0, 10000, N),
        kind="overflow", root="cumsum", at="cumsum", symptom="inf", trigger=(9000.0,),
    ),
    hazard(
        sequential_sum, Real(0, 1, (1000,)), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0,),
    ),
    hazard(
        geometric_mean, Real(0.001, 0.1, N),
        kind="underflow", root=("reduce_prod", "convert_element_type"),
        at=("reduce_prod", "convert_element_type"), symptom="zero", trigger=(0.01,),
    ),
    hazard(
        joint_odds, Real(1, 100, N),
        kind="overflow", root=("reduce_prod", "convert_element_type"),
        at=("reduce_prod", "convert_element_type"), symptom="inf", trigger=(50.0,),
    ),
    hazard(
        harmonic_mean, Real(1e-6, 1, N),
        kind="overflow", root="div", at="div", symptom="inf", trigger=(1e-6,),
    ),
    hazard(
        welford, Real(-1, 1, (400,)), format="bfloat16",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.5,),
    ),
    hazard(
        weighted_mean, Real(-1, 1, N), Real(0, 1, N), format="float32",
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 0.0), intrinsic=True,
    ),
    hazard(
        shoelace, Real(1000, 1001, (4,)), Real(1000, 1001, (4,)), format="float32",
        kind="cancellation", root="sub", at=("sub", "reduce_sum"), symptom="wrong", error=0.1,
        trigger=(1000.3 + 0.1 * np.array([0, 1, 1, 0]), 1000.7 + 0.1 * np.array([0, 0, 1, 1])),
    ),
    hazard(
        explained_variance, Real(-1, 1, N), Real(-1, 1, N),
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 0.5), intrinsic=True,
    ),
    hazard(
        quadratic_root, Real(1000, 10000, ()), format="float32",
        kind="cancellation", root="sub", at="sub", symptom="wrong", trigger=(9000.5,),
    ),
    hazard(
        finite_difference, Real(1, 3, ()),
        kind=("absorption", "cancellation"), root=("add", "literal", "sub"), at=("add", "sub"),
        symptom="zero", trigger=(1.5,),
    ),
)  # fmt: skip

# --- safe ---


def two_pass(x: Array) -> Array:
    return jnp.mean(jnp.square(x - jnp.mean(x)))


def library_deviation(x: Array) -> Array:
    return jnp.std(x), jnp.var(x)


def one_pass_of_centred(x: Array) -> Array:
    return jnp.mean(x.astype(jnp.float32) ** 2).astype(x.dtype)


def cumulative_in_range(x: Array) -> Array:
    return jnp.cumsum(x)


def log_domain_mean(x: Array) -> Array:
    return jnp.exp(jnp.mean(jnp.log(x)))


def guarded_z_score(x: Array) -> Array:
    centred = x - jnp.mean(x)
    return centred / jnp.maximum(jnp.sqrt(jnp.mean(centred**2)), 0.05)


def softened_weights(x: Array, weights: Array) -> Array:
    return jnp.sum(x * weights) / jnp.maximum(jnp.sum(weights), 0.1)


def difference_of_similar(x: Array, y: Array) -> Array:
    return jnp.abs(x - y)


def count_in_range(mask: Array) -> Array:
    return jnp.sum(mask)


def sums_in_float32_island(x: Array) -> Array:
    return jnp.mean(x)


SAFE = (
    safe(two_pass, Real(-100, 100, N)),
    safe(two_pass, Real(1e4, 10001, N), format="float32", error=0.01),
    safe(library_deviation, Real(-200, 200, N)),
    safe(one_pass_of_centred, Real(-200, 200, N)),
    safe(cumulative_in_range, Real(0, 1000, N)),
    safe(log_domain_mean, Real(0.001, 0.1, N)),
    safe(guarded_z_score, Real(-10, 10, N), error=0.1),
    safe(softened_weights, Real(-1, 1, N), Real(0, 1, N)),
    safe(difference_of_similar, Real(0, 1, N), Real(0, 1, N)),
    safe(count_in_range, Real(0, 1, (200,))),
    safe(sums_in_float32_island, Real(0, 60000, (64,))),
    safe(sums_in_float32_island, Real(0, 1, (1000,)), format="bfloat16"),
)
