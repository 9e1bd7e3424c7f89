"""Losses: regression, segmentation, alignment, densities, distillation, contrast."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.hazards.case import Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def soft_focal(logit: Array) -> Array:
    def loss(logit: Array) -> Array:
        p = jax.nn.sigmoid(logit)
        focus = (1.0 - p) ** 0.5  # HERE
        return -jnp.mean(focus * jax.nn.log_sigmoid(logit))

    return jax.grad(loss)(logit)


def alignment(log_probs: Array) -> Array:
    outside = jnp.full((1,), -jnp.inf, log_probs.dtype)

    def step(alpha: Array, row: Array) -> tuple[Array, None]:
        moved = jnp.concatenate([outside, alpha[:-1]])
        peak = jnp.maximum(alpha, moved)
        total = jnp.exp(alpha - peak) + jnp.exp(moved - peak)  # HERE
        return peak + jnp.log(total) + row, None

    start = jnp.full((4,), -jnp.inf, log_probs.dtype).at[0].set(0.0)
    return jnp.max(jax.lax.scan(step, start, log_probs)[0])


def generalized_dice(p: Array, labels: Array) -> Array:
    y = labels.astype(p.dtype)
    weights = 1.0 / jnp.sum(y, axis=0) ** 2  # HERE
    overlap = jnp.sum(weights * jnp.sum(p * y, axis=0))
    return 1.0 - 2.0 * overlap / jnp.sum(weights * jnp.sum(p + y, axis=0))


def pseudo_huber(prediction: Array, target: Array) -> Array:
    delta = 1e-3
    ratio = (prediction - target) / delta
    return jnp.mean(delta * delta * (jnp.sqrt(1.0 + ratio**2) - 1.0))  # HERE


def triplet(anchor: Array, positive: Array, negative: Array) -> Array:
    def loss(anchor: Array) -> Array:
        near = jnp.sqrt(jnp.sum((anchor - positive) ** 2, axis=-1))  # HERE
        far = jnp.sum(jnp.abs(anchor - negative), axis=-1)
        return jnp.mean(jax.nn.relu(near - far + 0.2))

    return jax.grad(loss)(anchor)


def density_of_softplus_scale(mean: Array, raw: Array, y: Array) -> Array:
    sigma = jax.nn.softplus(raw)  # OR HERE
    z = (y - mean) / sigma  # HERE
    return jnp.mean(jnp.abs(z) + jnp.log(2.0 * sigma))


def mixture_of_bells(log_weights: Array, centres: Array, y: Array) -> Array:
    weights = jax.nn.softmax(log_weights)
    bells = jnp.exp(-0.5 * (y - centres) ** 2)  # OR HERE
    return -jnp.log(jnp.sum(weights * bells))  # HERE


def flow_by_product(log_scales: Array, x: Array) -> Array:
    scales = jnp.exp(log_scales)
    volume = jnp.prod(scales)  # HERE
    return 0.5 * jnp.mean(x * x) - jnp.log(volume)


def poisson_with_stirling(rate: Array, count: Array) -> Array:
    stirling = count * jnp.log(count) - count  # HERE
    return jnp.mean(rate - count * jnp.log(rate) + stirling)


def distillation(teacher: Array, student: Array) -> Array:
    p = jax.nn.softmax(teacher, axis=-1)  # OR HERE
    gap = jnp.log(p) - jax.nn.log_softmax(student, axis=-1)  # HERE
    return jnp.mean(jnp.sum(p * gap, axis=-1))


def sharp_contrast(left: Array, right: Array) -> Array:
    similarity = left @ right.T
    logits = similarity / 0.07  # HERE
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)))


def critic_penalty(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        slope = jax.grad(lambda point: jnp.dot(point, w))(x)
        return (jnp.linalg.norm(slope) - 1.0) ** 2  # HERE

    return jax.grad(loss)(w)


def intersection_over_union(a: Array, b: Array) -> Array:
    low, high = jnp.maximum(a[:2], b[:2]), jnp.minimum(a[2:], b[2:])
    overlap = jnp.prod(jax.nn.relu(high - low))
    sizes = jnp.prod(a[2:] - a[:2]) + jnp.prod(b[2:] - b[:2])  # HERE
    return overlap / (sizes - overlap)


HAZARDS = (
    hazard(
        soft_focal, Real(-12, 12),
        kind=("rounds-to-bound", "invalid"), root=("logistic", "pow"), at=("pow", "mul"),
        symptom="nan", trigger=(12.0,),
    ),
    hazard(
        alignment, Real(-5, 0, (3, 4)), format="float32", intrinsic=True,
        kind="invalid", root=("sub", "literal"), at="sub", symptom="nan", trigger=(-1.0,),
    ),
    hazard(
        generalized_dice, Real(0, 1, (8, 3)), Whole(0, 1, (8, 3)),
        format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="inf", trigger=(0.5, np.array([1, 1, 0])),
    ),
    hazard(
        pseudo_huber, Real(-5, 5), Real(-5, 5),
        kind="overflow", root=("integer_pow", "literal"), at="integer_pow", symptom="inf",
        trigger=(5.0, -5.0),
    ),
    hazard(
        triplet, Real(-1, 1, (3, 4)), Real(-1, 1, (3, 4)), Real(-1, 1, (3, 4)),
        format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan",
        trigger=(0.5, 0.5, 0.5),
    ),
    hazard(
        density_of_softplus_scale, Real(-5, 5), Real(-20, 5), Real(-5, 5),
        kind=("underflow", "overflow"), root=("exp", "log1p", "add"), at="div", symptom="inf",
        trigger=(0.0, -20.0, 5.0),
    ),
    hazard(
        mixture_of_bells, Real(-2, 2), Real(-10, 10), Real(-10, 10, ()),
        kind="underflow", root="exp", at="log", symptom="inf", trigger=(0.0, -3.0, 3.0),
    ),
    hazard(
        flow_by_product, Real(-1, 1, (16,)), Real(-3, 3, (16,)),
        kind="overflow", root=("reduce_prod", "convert_element_type"),
        at=("reduce_prod", "convert_element_type"), symptom="inf", trigger=(1.0, 1.0),
    ),
    hazard(
        poisson_with_stirling, Real(0.5, 20), Real(0, 20), format="float32", intrinsic=True,
        kind="invalid", root="log", at=("log", "mul"), symptom="nan", trigger=(1.0, 0.0),
    ),
    hazard(
        distillation, Real(-25, 25, (2, 4)), Real(-5, 5, (2, 4)),
        kind="underflow", root=("exp", "div"), at="log", symptom="nan",
        trigger=(np.array([25.0, -25, 0, 0]), 0.0),
    ),
    hazard(
        sharp_contrast, Real(-10, 10, (2, 64)), Real(-10, 10, (2, 64)),
        kind="overflow", root=("div", "literal"), at="div", symptom="inf", trigger=(10.0, 10.0),
    ),
    hazard(
        critic_penalty, Real(-1, 1), Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan",
        trigger=(0.0, 0.5),
    ),
    hazard(
        intersection_over_union, Real(0, 1000), Real(0, 1000),
        kind="overflow", root=("reduce_prod", "convert_element_type"),
        at=("reduce_prod", "convert_element_type"), symptom="inf",
        trigger=(np.array([0.0, 0, 800, 800]), np.array([100.0, 100, 900, 900])),
    ),
)  # fmt: skip

# --- safe ---


def squared_focal(logit: Array) -> Array:
    def loss(logit: Array) -> Array:
        p = jax.nn.sigmoid(logit)
        return -jnp.mean((1.0 - p) ** 2 * jax.nn.log_sigmoid(logit))

    return jax.grad(loss)(logit)


def finite_alignment(log_probs: Array) -> Array:
    outside = jnp.full((1,), -1e4, log_probs.dtype)

    def step(alpha: Array, row: Array) -> tuple[Array, None]:
        moved = jnp.concatenate([outside, alpha[:-1]])
        peak = jnp.maximum(alpha, moved)
        total = jnp.exp(alpha - peak) + jnp.exp(moved - peak)
        return peak + jnp.log(total) + row, None

    start = jnp.full((4,), -1e4, log_probs.dtype).at[0].set(0.0)
    return jnp.max(jax.lax.scan(step, start, log_probs)[0])


def generalized_dice_of_counts(p: Array, labels: Array) -> Array:
    y = labels.astype(p.dtype)
    weights = 1.0 / jnp.maximum(jnp.sum(y, axis=0), 1.0) ** 2
    overlap = jnp.sum(weights * jnp.sum(p * y, axis=0))
    return 1.0 - 2.0 * overlap / (jnp.sum(weights * jnp.sum(p + y, axis=0)) + 1.0)


def wide_pseudo_huber(prediction: Array, target: Array) -> Array:
    ratio = prediction - target
    return jnp.mean(jnp.sqrt(1.0 + ratio**2) - 1.0)


def softened_triplet(anchor: Array, positive: Array, negative: Array) -> Array:
    def loss(anchor: Array) -> Array:
        near = jnp.sqrt(jnp.sum((anchor - positive) ** 2, axis=-1) + 1e-4)
        far = jnp.sum(jnp.abs(anchor - negative), axis=-1)
        return jnp.mean(jax.nn.softplus(near - far + 0.2))

    return jax.grad(loss)(anchor)


def density_of_floored_scale(mean: Array, raw: Array, y: Array) -> Array:
    sigma = jax.nn.softplus(raw) + 0.1
    z = (y - mean) / sigma
    return jnp.mean(0.5 * z * z + jnp.log(sigma))


def mixture_in_logs(log_weights: Array, centres: Array, y: Array) -> Array:
    logs = jax.nn.log_softmax(log_weights) - 0.5 * (y - centres) ** 2
    return -jax.scipy.special.logsumexp(logs)


def flow_by_sum(log_scales: Array, x: Array) -> Array:
    return 0.5 * jnp.mean(x * x) - jnp.sum(log_scales)


def poisson_with_chosen_stirling(rate: Array, count: Array) -> Array:
    stirling = count * jnp.log(count) - count
    extra = jnp.where(count > 1.0, stirling, 0.0)
    return jnp.mean(rate - count * jnp.log(rate) + extra)


def distillation_in_logs(teacher: Array, student: Array) -> Array:
    log_p = jax.nn.log_softmax(teacher, axis=-1)
    gap = log_p - jax.nn.log_softmax(student, axis=-1)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * gap, axis=-1))


def normalized_contrast(left: Array, right: Array) -> Array:
    def unit(z: Array) -> Array:
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1.0)

    logits = (unit(left) @ unit(right).T) / 0.07
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)))


def softened_penalty(w: Array, x: Array) -> Array:
    def loss(w: Array) -> Array:
        slope = jax.grad(lambda point: jnp.dot(point, w))(x)
        return (jnp.sqrt(jnp.sum(slope**2) + 1e-4) - 1.0) ** 2

    return jax.grad(loss)(w)


def union_of_unit_boxes(a: Array, b: Array) -> Array:
    low, high = jnp.maximum(a[:2], b[:2]), jnp.minimum(a[2:], b[2:])
    overlap = jnp.prod(jax.nn.relu(high - low))
    sizes = jnp.prod(jax.nn.relu(a[2:] - a[:2])) + jnp.prod(jax.nn.relu(b[2:] - b[:2]))
    return overlap / (sizes - overlap + 0.5)


def smoothed_labels(logits: Array, labels: Array) -> Array:
    onehot = jax.nn.one_hot(labels, 4, dtype=logits.dtype)
    target = onehot * 0.9 + 0.025
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


SAFE = (
    safe(squared_focal, Real(-12, 12)),
    safe(finite_alignment, Real(-5, 0, (3, 4))),
    safe(generalized_dice_of_counts, Real(0, 1, (8, 3)), Whole(0, 1, (8, 3)), format="float32"),
    safe(wide_pseudo_huber, Real(-5, 5), Real(-5, 5)),
    safe(
        softened_triplet, Real(-1, 1, (3, 4)), Real(-1, 1, (3, 4)), Real(-1, 1, (3, 4)),
        format="float32",
    ),
    safe(density_of_floored_scale, Real(-5, 5), Real(-20, 5), Real(-5, 5)),
    safe(mixture_in_logs, Real(-2, 2), Real(-10, 10), Real(-10, 10, ()), error=0.1),
    safe(flow_by_sum, Real(-1, 1, (16,)), Real(-3, 3, (16,))),
    safe(poisson_with_chosen_stirling, Real(0.5, 20), Real(0, 20), format="float32"),
    safe(distillation_in_logs, Real(-25, 25, (2, 4)), Real(-5, 5, (2, 4)), error=0.1),
    safe(normalized_contrast, Real(-10, 10, (2, 64)), Real(-10, 10, (2, 64)), error=0.2),
    safe(softened_penalty, Real(-1, 1), Real(-1, 1), format="float32"),
    safe(union_of_unit_boxes, Real(0, 1), Real(0, 1)),
    safe(smoothed_labels, Real(-30, 30, (3, 4)), Whole(0, 3, (3,))),
)  # fmt: skip
