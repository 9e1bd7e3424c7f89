"""Losses: cross entropies, divergences, contrastive and regression losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .case import Fixed, Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def log_of_softmax(logits: Array, labels: Array) -> Array:
    probs = jax.nn.softmax(logits, axis=-1)
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(onehot * jnp.log(probs), axis=-1)  # HERE


def log_with_lost_eps(p: Array, y: Array) -> Array:
    eps = 1e-8
    return -jnp.mean(y * jnp.log(p + eps))  # HERE


def binary_log_loss(logit: Array, y: Array) -> Array:
    p = jax.nn.sigmoid(logit)
    positive = y * jax.nn.log_sigmoid(logit)
    negative = (1 - y) * jnp.log(1 - p)  # HERE
    return -jnp.mean(positive + negative)


def clipped_log_loss(p: Array, y: Array) -> Array:
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    hit = y * jnp.log(p)
    miss = (1 - y) * jnp.log(1.0 - p)  # HERE
    return -jnp.mean(hit + miss)


def hand_softmax_loss(logits: Array) -> Array:
    weights = jnp.exp(logits)  # HERE
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return -jnp.mean(jnp.log(weights / total))


def hand_logsumexp(logits: Array) -> Array:
    scores = jnp.exp(logits)  # HERE
    partition = jnp.log(jnp.sum(scores, axis=-1))
    return partition - logits[..., 0]


def squared_error_sum(prediction: Array, target: Array) -> Array:
    difference = prediction - target
    return jnp.sum(difference**2)  # HERE


def squared_error_wide(prediction: Array, target: Array) -> Array:
    residual = prediction - target
    return jnp.mean(residual * residual)  # HERE


def kl_divergence(p: Array, q: Array) -> Array:
    ratio = p / (q + 1e-9)  # HERE
    return jnp.sum(p * jnp.log(jnp.maximum(ratio, 1e-4)))


def poisson_loss(log_rate: Array, count: Array) -> Array:
    rate = jnp.exp(log_rate)  # HERE
    return jnp.mean(rate - count * log_rate)


def contrastive(image: Array, text: Array, log_scale: Array) -> Array:
    similarity = image @ text.T
    logits = similarity * jnp.exp(log_scale)  # HERE
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def focal_loss(logit: Array) -> Array:
    p = jax.nn.sigmoid(logit)
    modulation = jnp.power(p, 2.0)
    return -jnp.mean(modulation * jnp.log(1.0 - p))  # HERE


def gaussian_nll(mean: Array, log_variance: Array, target: Array) -> Array:
    variance = jnp.exp(log_variance)
    error = (target - mean) ** 2 / variance  # HERE
    return 0.5 * jnp.mean(error + log_variance)


def perplexity(token_losses: Array) -> Array:
    return jnp.exp(jnp.mean(token_losses))  # HERE


def scaled_loss(prediction: Array, target: Array) -> Array:
    loss = jnp.mean(jnp.abs(prediction - target))
    return loss * 65536.0  # HERE


def masked_mean(losses: Array, mask: Array) -> Array:
    kept = jnp.where(mask, losses, 0.0)
    return jnp.sum(kept) / jnp.sum(mask.astype(losses.dtype))  # HERE


def weighted_total(losses: Array) -> Array:
    return 1e-9 * jnp.sum(losses)  # HERE


def log_cosh(prediction: Array, target: Array) -> Array:
    error = prediction - target
    return jnp.mean(jnp.log(jnp.cosh(error)))  # HERE


def naive_softplus(x: Array) -> Array:
    return jnp.mean(jnp.log(1.0 + jnp.exp(x)))  # HERE


def dice_loss(p: Array, y: Array) -> Array:
    overlap = 2.0 * jnp.sum(p * y)
    total = jnp.sum(p) + jnp.sum(y)
    return 1.0 - overlap / (total + 1e-8)  # HERE


def log_ratio(p: Array) -> Array:
    return jnp.log(p / (1.0 - p))  # HERE


def total_of_many(losses: Array) -> Array:
    return jnp.sum(losses) / losses.shape[0]  # HERE


def cross_entropy_in_float8(logits: Array) -> Array:
    weights = jnp.exp(logits)  # HERE
    return jnp.sum(weights, axis=-1)


def hinge_square_in_float8(margin: Array) -> Array:
    gap = jnp.maximum(1.0 - margin, 0.0)
    return gap * gap  # HERE


LOGITS = (3, 5)

HAZARDS = (
    hazard(
        log_of_softmax, Real(-30, 30, LOGITS), Whole(0, 4, (3,)),
        kind="underflow", root=("exp", "div"), at="log", symptom="inf",
        trigger=(np.array([30.0, -30, 0, 0, 0]), 1),
    ),
    hazard(
        log_of_softmax, Real(-200, 200, LOGITS), Whole(0, 4, (3,)), format="float32",
        kind="underflow", root=("exp", "div"), at="log", symptom="inf",
        trigger=(np.array([200.0, -200, 0, 0, 0]), 1),
    ),
    hazard(
        log_with_lost_eps, Real(0, 1), Real(0, 1),
        kind="underflow", root="literal", at="log", symptom="inf", trigger=(0.0, 1.0),
    ),
    hazard(
        binary_log_loss, Real(-15, 15), Real(0, 1),
        kind="rounds-to-bound", root="logistic", at="log", symptom="inf", trigger=(12.0, 0.0),
    ),
    hazard(
        binary_log_loss, Real(-10, 10), Real(0, 1), format="bfloat16",
        kind="rounds-to-bound", root="logistic", at="log", symptom="inf", trigger=(8.0, 0.0),
    ),
    hazard(
        binary_log_loss, Real(-30, 30), Real(0, 1), format="float32",
        kind="rounds-to-bound", root="logistic", at="log", symptom="inf", trigger=(25.0, 0.0),
    ),
    hazard(
        clipped_log_loss, Real(0, 1), Real(0, 1),
        kind="rounds-to-bound", root="literal", at="log", symptom="inf", trigger=(1.0, 0.0),
    ),
    hazard(
        clipped_log_loss, Real(0, 1), Real(0, 1), format="bfloat16",
        kind="rounds-to-bound", root="literal", at="log", symptom="inf", trigger=(1.0, 0.0),
    ),
    hazard(
        hand_softmax_loss, Real(-5, 20, LOGITS),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(15.0,),
    ),
    hazard(
        hand_softmax_loss, Real(-5, 100, LOGITS), format="float32",
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(95.0,),
    ),
    hazard(
        hand_logsumexp, Real(-12, 12, LOGITS),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(12.0,),
    ),
    hazard(
        squared_error_sum, Real(-100, 100, (16,)), Real(-100, 100, (16,)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(100.0, -100.0),
    ),
    hazard(
        squared_error_wide, Real(-500, 500), Real(-500, 500),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(400.0, -400.0),
    ),
    hazard(
        kl_divergence, Real(0, 1), Real(0, 1),
        kind="underflow", root="literal", at="div", symptom="inf", trigger=(0.5, 0.0),
    ),
    hazard(
        poisson_loss, Real(-5, 15), Real(0, 100),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(12.0, 3.0),
    ),
    hazard(
        contrastive, Real(-1, 1, (3, 4)), Real(-1, 1, (3, 4)), Real(0, 13, ()),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(0.5, 0.5, 12.0),
    ),
    hazard(
        focal_loss, Real(-20, 20), kind="rounds-to-bound", root="logistic", at="log",
        symptom="inf", trigger=(15.0,),
    ),
    hazard(
        gaussian_nll, Real(-10, 10), Real(-20, 5), Real(-10, 10),
        kind=("underflow", "overflow"), root=("exp", "div"), at="div",
        symptom="inf", trigger=(5.0, -19.0, -5.0),
    ),
    hazard(
        perplexity, Real(0, 15), kind="overflow", root="exp", at="exp", symptom="inf",
        trigger=(12.0,),
    ),
    hazard(
        scaled_loss, Real(-3, 3), Real(-3, 3),
        kind="overflow", root="literal", at="mul", symptom="inf", trigger=(1.0, -1.0),
    ),
    hazard(
        masked_mean, Real(0, 10, (4,)), Whole(0, 1, (4,)),
        kind="invalid", root="div", at="div", symptom="nan", trigger=(1.0, 0), intrinsic=True,
    ),
    hazard(
        weighted_total, Real(1, 10), kind="underflow", root="literal", at="mul", symptom="zero",
        trigger=(5.0,),
    ),
    hazard(
        log_cosh, Real(-20, 20), Real(-20, 20),
        kind="overflow", root="cosh", at="cosh", symptom="inf", trigger=(15.0, -15.0),
    ),
    hazard(
        naive_softplus, Real(-20, 20), kind="overflow", root="exp", at="exp", symptom="inf",
        trigger=(15.0,),
    ),
    hazard(
        dice_loss, Real(0, 1), Real(0, 1),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(0.0, 0.0),
    ),
    hazard(
        log_ratio, Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root=("div", "log"), at=("div", "log"), symptom="inf", trigger=(1.0,),
    ),
    hazard(
        total_of_many, Real(0, 1000, (256,)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(900.0,),
    ),
    hazard(
        cross_entropy_in_float8, Real(-8, 8, LOGITS), format="float8_e4m3fn",
        kind="overflow", root="exp", at="exp", symptom="nan", trigger=(7.0,),
    ),
    hazard(
        hand_logsumexp, Real(-12, 12, LOGITS), format="float8_e5m2",
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(12.0,),
    ),
    hazard(
        hinge_square_in_float8, Real(-300, 10), format="float8_e5m2",
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(-300.0,),
    ),
)  # fmt: skip

# --- safe ---


def log_softmax_loss(logits: Array, labels: Array) -> Array:
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(onehot * log_probs, axis=-1)


def shifted_logsumexp(logits: Array) -> Array:
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(jnp.exp(logits - peak), axis=-1)
    return jnp.log(total) + peak[..., 0]


def library_logsumexp(logits: Array) -> Array:
    return jax.scipy.special.logsumexp(logits, axis=-1) - logits[..., 0]


def loss_from_logits(logit: Array, y: Array) -> Array:
    positive = y * jax.nn.log_sigmoid(logit)
    negative = (1 - y) * jax.nn.log_sigmoid(-logit)
    return -jnp.mean(positive + negative)


def log_with_kept_eps(p: Array, y: Array) -> Array:
    return -jnp.mean(y * jnp.log(p + 1e-4))


def loss_clipped_inside(p: Array, y: Array) -> Array:
    p = jnp.clip(p, 1e-2, 1 - 1e-2)
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def mean_squared(prediction: Array, target: Array) -> Array:
    return jnp.mean((prediction - target) ** 2)


def mean_absolute(prediction: Array, target: Array) -> Array:
    return jnp.mean(jnp.abs(prediction - target))


def mean_over_kept(losses: Array, mask: Array) -> Array:
    kept = jnp.where(mask, losses, 0.0)
    count = jnp.sum(mask.astype(losses.dtype))
    return jnp.sum(kept) / jnp.maximum(count, 1.0)


def mean_of_known_mask(losses: Array, mask: Array) -> Array:
    kept = jnp.where(mask, losses, 0.0)
    return jnp.sum(kept) / jnp.sum(mask.astype(losses.dtype))


def huber(prediction: Array, target: Array) -> Array:
    error = jnp.abs(prediction - target)
    quadratic = jnp.minimum(error, 1.0)
    return jnp.mean(0.5 * quadratic**2 + (error - quadratic))


def stable_log_cosh(prediction: Array, target: Array) -> Array:
    error = jnp.abs(prediction - target)
    return jnp.mean(error + jax.nn.softplus(-2.0 * error) - 0.6931)


def smooth_dice(p: Array, y: Array) -> Array:
    overlap = 2.0 * jnp.sum(p * y) + 1.0
    return 1.0 - overlap / (jnp.sum(p) + jnp.sum(y) + 1.0)


def loss_in_float32(p: Array, y: Array) -> Array:
    p, y = p.astype(jnp.float32), y.astype(jnp.float32)
    return -jnp.mean(y * jnp.log(p + 1e-8))


def gradient_of_cross_entropy(logits: Array, labels: Array) -> Array:
    def loss(z: Array) -> Array:
        log_probs = jax.nn.log_softmax(z, axis=-1)
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=-1))

    return jax.grad(loss)(logits)


def clipped_scale(image: Array, text: Array, log_scale: Array) -> Array:
    logits = (image @ text.T) * jnp.exp(jnp.minimum(log_scale, 4.6))
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


SAFE = (
    safe(log_softmax_loss, Real(-30, 30, LOGITS), Whole(0, 4, (3,))),
    safe(log_softmax_loss, Real(-1000, 1000, LOGITS), Whole(0, 4, (3,)), format="bfloat16"),
    safe(log_softmax_loss, Real(-1e4, 1e4, LOGITS), Whole(0, 4, (3,)), format="float32"),
    safe(shifted_logsumexp, Real(-100, 100, LOGITS)),
    safe(shifted_logsumexp, Real(-500, 500, LOGITS), format="float32"),
    safe(library_logsumexp, Real(-100, 100, LOGITS), error=0.1),
    safe(loss_from_logits, Real(-50, 50), Real(0, 1)),
    safe(log_with_kept_eps, Real(0, 1), Real(0, 1)),
    safe(loss_clipped_inside, Real(0, 1), Real(0, 1)),
    safe(mean_squared, Real(-60, 60), Real(-60, 60)),
    safe(mean_absolute, Real(-1000, 1000, (64,)), Real(-1000, 1000, (64,))),
    safe(mean_over_kept, Real(0, 10), Whole(0, 1)),
    safe(mean_of_known_mask, Real(0, 10), Fixed((True, True, False, True))),
    safe(huber, Real(-100, 100), Real(-100, 100)),
    safe(stable_log_cosh, Real(5, 50), Real(-50, 0)),
    safe(smooth_dice, Real(0, 1), Real(0, 1), error=0.2),
    safe(loss_in_float32, Real(0, 1), Real(0, 1)),
    safe(gradient_of_cross_entropy, Real(-20, 20, LOGITS), Whole(0, 4, (3,)), error=0.1),
    safe(cross_entropy_in_float8, Real(-8, 3, LOGITS), format="float8_e4m3fn"),
    safe(hinge_square_in_float8, Real(-10, 10), format="float8_e4m3fn"),
    safe(hinge_square_in_float8, Real(-100, 10), format="float8_e5m2"),
    safe(clipped_scale, Real(-1, 1, (3, 4)), Real(-1, 1, (3, 4)), Real(0, 10, ()), error=0.1),
)
