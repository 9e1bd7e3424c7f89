"""Probability: densities, samplers, reparametrisations, flows, odds and information."""

from typing import Any

import jax
import jax.numpy as jnp

from .case import Real, hazard, safe

Array = Any

# --- hazards ---


def gumbel_noise(u: Array) -> Array:
    u = jnp.clip(u, 1e-4, 1 - 1e-4)
    inner = -jnp.log(u)
    return -jnp.log(inner)  # HERE


def likelihood_product(p: Array) -> Array:
    likelihood = jnp.prod(p)  # HERE
    return likelihood


def entropy(p: Array) -> Array:
    return -jnp.sum(p * jnp.log(p))  # HERE


def inverse_cdf(u: Array, rate: Array) -> Array:
    return -jnp.log(1.0 - u) / rate  # HERE


def logit_of(p: Array) -> Array:
    p = jnp.clip(p, 1e-3, 0.9999)
    return jnp.log(p) - jnp.log(1.0 - p)  # HERE


def gaussian_density(x: Array, log_sigma: Array) -> Array:
    sigma = jnp.exp(log_sigma)
    z = x / sigma  # HERE
    return -0.5 * z * z - log_sigma


def standard_density(x: Array) -> Array:
    density = jnp.exp(-0.5 * x * x)
    return jnp.log(density)  # HERE


def mixture(log_weights: Array, x: Array) -> Array:
    components = jnp.exp(log_weights - 0.5 * x**2)
    return jnp.log(jnp.sum(components))  # HERE


def kl_of_gaussians(mean: Array, log_variance: Array) -> Array:
    variance = jnp.exp(log_variance)  # HERE
    return 0.5 * jnp.sum(variance + mean**2 - 1.0 - log_variance)


def squashed_log_prob(pre: Array) -> Array:
    action = jnp.tanh(pre)
    return jnp.sum(jnp.log(1.0 - action**2 + 1e-8))  # HERE


def inverse_tanh(action: Array) -> Array:
    action = jnp.clip(action, -1 + 1e-6, 1 - 1e-6)
    return jnp.arctanh(action)  # HERE


def importance_ratio(new: Array, old: Array) -> Array:
    ratio = jnp.exp(new - old)  # HERE
    return jnp.minimum(ratio, 2.0) * ratio


def probit(u: Array) -> Array:
    u = jnp.minimum(u, 0.9999)
    return 1.4142 * jax.scipy.special.erfinv(2.0 * u - 1.0)  # HERE


def box_muller(u: Array, v: Array) -> Array:
    radius = jnp.sqrt(-2.0 * jnp.log(u))  # HERE
    return radius * jnp.cos(6.2831853 * v)


def survival(x: Array) -> Array:
    cdf = jax.nn.sigmoid(x)
    return -jnp.log1p(-cdf)  # HERE


def log_one_plus(x: Array) -> Array:
    shifted = 1.0 + x  # HERE
    return jnp.log(shifted) / x


def exp_minus_one(x: Array) -> Array:
    return (jnp.exp(x) - 1.0) / x  # HERE


def bernoulli_keep(x: Array, drop: Array) -> Array:
    keep = 1.0 - drop
    return x / keep  # HERE


def square_root_of_noise(alpha: Array) -> Array:
    return jnp.sqrt(1.0 - alpha * alpha)  # HERE


HAZARDS = (
    hazard(
        gumbel_noise, Real(0, 1),
        kind="rounds-to-bound", root="literal", at="log", symptom="inf", trigger=(1.0,),
    ),
    hazard(
        likelihood_product, Real(0.001, 0.1, (16,)),
        kind="underflow", root=("reduce_prod", "convert_element_type"),
        at=("reduce_prod", "convert_element_type"), symptom="zero", trigger=(0.1,),
    ),
    hazard(
        entropy, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="log", at=("log", "mul"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        inverse_cdf, Real(0, 1), Real(0.1, 2), format="bfloat16", intrinsic=True,
        kind="invalid", root=("log", "sub"), at="log", symptom="inf", trigger=(1.0, 1.0),
    ),
    hazard(
        logit_of, Real(0, 1),
        kind="rounds-to-bound", root="literal", at="log", symptom="inf", trigger=(1.0,),
    ),
    hazard(
        gaussian_density, Real(-5, 5), Real(-18, 2),
        kind="underflow", root="exp", at="div", symptom="inf", trigger=(2.0, -18.0),
    ),
    hazard(
        standard_density, Real(-10, 10),
        kind="underflow", root="exp", at="log", symptom="inf", trigger=(9.0,),
    ),
    hazard(
        standard_density, Real(-20, 20), format="float32",
        kind="underflow", root="exp", at="log", symptom="inf", trigger=(19.0,),
    ),
    hazard(
        mixture, Real(-5, 0), Real(-10, 10),
        kind="underflow", root="exp", at="log", symptom="inf", trigger=(-5.0, 9.0),
    ),
    hazard(
        kl_of_gaussians, Real(-3, 3), Real(-10, 15),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(0.0, 14.0),
    ),
    hazard(
        squashed_log_prob, Real(-8, 8),
        kind=("underflow", "rounds-to-bound"), root=("literal", "tanh"), at="log", symptom="inf",
        trigger=(7.0,),
    ),
    hazard(
        inverse_tanh, Real(-1, 1),
        kind="rounds-to-bound", root="literal", at="atanh", symptom="inf", trigger=(1.0,),
    ),
    hazard(
        inverse_tanh, Real(-1, 1), format="bfloat16",
        kind="rounds-to-bound", root="literal", at="atanh", symptom="inf", trigger=(1.0,),
    ),
    hazard(
        importance_ratio, Real(-8, 0), Real(-20, 0),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(-1.0, -15.0),
    ),
    hazard(
        probit, Real(0.1, 1),
        kind="rounds-to-bound", root="literal", at="erf_inv",
        symptom="inf", trigger=(1.0,),
    ),
    hazard(
        box_muller, Real(0, 1), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="log", at="log", symptom="inf", trigger=(0.0, 0.1),
    ),
    hazard(
        survival, Real(-10, 12),
        kind="rounds-to-bound", root="logistic", at="log1p", symptom="inf", trigger=(11.0,),
    ),
    hazard(
        log_one_plus, Real(1e-4, 4e-4),
        kind="absorption", root="add", at="add", symptom="zero", trigger=(2e-4,),
    ),
    hazard(
        exp_minus_one, Real(1e-5, 1e-3, ()), format="bfloat16",
        kind="cancellation", root=("sub", "exp"), at="sub", symptom="zero", trigger=(5e-4,),
    ),
    hazard(
        exp_minus_one, Real(1e-7, 1e-6, ()), format="float32", error=0.05,
        kind="cancellation", root=("sub", "exp"), at="sub", symptom="wrong", trigger=(1.7e-7,),
    ),
    hazard(
        bernoulli_keep, Real(-1, 1), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="inf", trigger=(0.5, 1.0),
    ),
    hazard(
        square_root_of_noise, Real(0, 1.5), format="float32", intrinsic=True,
        kind="invalid", root="sqrt", at="sqrt", symptom="nan", trigger=(1.2,),
    ),
)  # fmt: skip

# --- safe ---


def gumbel_in_range(u: Array) -> Array:
    u = jnp.clip(u, 0.01, 0.99)
    return -jnp.log(-jnp.log(u))


def log_likelihood(p: Array) -> Array:
    return jnp.sum(jnp.log(p))


def library_entropy(p: Array) -> Array:
    return jnp.sum(jax.scipy.special.entr(p))


def xlogy(p: Array) -> Array:
    usable = p > 0
    return jnp.sum(jnp.where(usable, p * jnp.log(jnp.where(usable, p, 1.0)), 0.0))


def stable_squashed(pre: Array) -> Array:
    return 2.0 * (0.6931 - pre - jax.nn.softplus(-2.0 * pre))


def library_log1p(x: Array) -> Array:
    return jnp.log1p(x), jnp.expm1(x)


def clipped_ratio(new: Array, old: Array) -> Array:
    return jnp.exp(jnp.clip(new - old, -5.0, 5.0))


def hand_sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + jnp.exp(-x))


def density_fades(x: Array) -> Array:
    return jnp.exp(-0.5 * x * x)


def saturating(x: Array) -> Array:
    return jnp.tanh(x * x * x)


def hand_tanh(x: Array) -> Array:
    return 1.0 - 2.0 / (jnp.exp(2.0 * x) + 1.0)


def clipped_acos(c: Array) -> Array:
    return jnp.arccos(jnp.clip(c, -1.0, 1.0))


def bounded_log_sigma(x: Array, log_sigma: Array) -> Array:
    log_sigma = jnp.clip(log_sigma, -3.0, 2.0)
    z = x * jnp.exp(-log_sigma)
    return -0.5 * z * z - log_sigma


def inverse_tanh_in_range(a: Array) -> Array:
    return jnp.arctanh(jnp.clip(a, -0.99, 0.99))


SAFE = (
    safe(gumbel_in_range, Real(0, 1)),
    safe(log_likelihood, Real(0.001, 0.1, (16,))),
    safe(library_entropy, Real(0, 1)),
    safe(xlogy, Real(0, 1)),
    safe(stable_squashed, Real(1, 8)),
    safe(library_log1p, Real(1e-4, 1e-3)),
    safe(clipped_ratio, Real(-8, 0), Real(-20, 0)),
    safe(hand_sigmoid, Real(-50, 50)),
    safe(hand_sigmoid, Real(-200, 200), format="float32"),
    safe(density_fades, Real(-20, 20)),
    safe(saturating, Real(-100, 100), error=0.05),
    safe(hand_tanh, Real(1, 20)),
    safe(clipped_acos, Real(-2, 2), error=0.06),
    safe(bounded_log_sigma, Real(-5, 5), Real(-10, 10)),
    safe(inverse_tanh_in_range, Real(-1, 1), error=0.1),
)
