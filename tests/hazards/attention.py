"""Attention: scores, masks, softmaxes by hand, online softmax, linear attention, positions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .case import Fixed, Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def additive_mask(scores: Array, mask: Array) -> Array:
    keep = mask.astype(scores.dtype)
    bias = (1.0 - keep) * -1e9  # HERE
    return jax.nn.softmax(scores + bias, axis=-1)


def padded_row(scores: Array, mask: Array) -> Array:
    scores = jnp.where(mask > 0, scores, -1e9)  # OR HERE
    return jax.nn.softmax(scores, axis=-1)  # HERE


def infinite_mask(scores: Array, mask: Array) -> Array:
    scores = jnp.where(mask > 0, scores, -jnp.inf)
    shifted = scores - jnp.max(scores, axis=-1, keepdims=True)  # HERE
    weights = jnp.exp(shifted)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def unshifted_softmax(scores: Array) -> Array:
    weights = jnp.exp(scores)  # HERE
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def denominator_overflows(scores: Array) -> Array:
    weights = jnp.exp(scores)
    total = jnp.sum(weights, axis=-1, keepdims=True)  # HERE
    return weights / total


def raw_scores(q: Array, k: Array) -> Array:
    scores = jnp.einsum("id,jd->ij", q, k)  # HERE
    return jax.nn.softmax(scores / 4.0, axis=-1)


def scores_in_float8(q: Array, k: Array) -> Array:
    return q @ k.T  # HERE


def softmax_in_float8(scores: Array) -> Array:
    return jax.nn.softmax(scores, axis=-1)  # HERE


def online_softmax(scores: Array, mask: Array) -> Array:
    scores = jnp.where(mask > 0, scores, -jnp.inf)

    def block(carry: tuple[Array, Array], s: Array) -> tuple[tuple[Array, Array], None]:
        peak, total = carry
        new_peak = jnp.maximum(peak, jnp.max(s))
        total = total * jnp.exp(peak - new_peak) + jnp.sum(jnp.exp(s - new_peak))  # HERE
        return (new_peak, total), None

    start = (jnp.array(-jnp.inf, scores.dtype), jnp.zeros((), scores.dtype))
    (peak, total), _ = jax.lax.scan(block, start, scores)
    return peak + jnp.log(total)


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    context = k.T @ v
    normalizer = q @ jnp.sum(k, axis=0)
    return (q @ context) / (normalizer[:, None] + 1e-8)  # HERE


def entropy_of_attention(scores: Array) -> Array:
    p = jax.nn.softmax(scores, axis=-1)
    return -jnp.sum(p * jnp.log(p), axis=-1)  # HERE


def temperature_scores(scores: Array, temperature: Array) -> Array:
    return jax.nn.softmax(scores / temperature, axis=-1)  # HERE


def exponential_kernel(q: Array, k: Array) -> Array:
    squared = jnp.sum(q * q, axis=-1)
    features = jnp.exp(q @ k.T - 0.5 * squared[:, None])  # HERE
    return features / jnp.sum(features, axis=-1, keepdims=True)


def renormalized_dropout(weights: Array, keep: Array) -> Array:
    kept = weights * keep.astype(weights.dtype)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)  # HERE


def mask_with_float32_minimum(scores: Array, mask: Array) -> Array:
    lowest = float(jnp.finfo(jnp.float32).min)
    bias = (mask == 0).astype(scores.dtype) * lowest  # HERE
    return jax.nn.softmax(scores + bias, axis=-1)


S = (3, 6)

HAZARDS = (
    hazard(
        additive_mask, Real(-10, 10, S), Whole(0, 1, S),
        kind=("overflow", "invalid"), root="literal", at="mul", symptom="nan", trigger=(1.0, 1),
    ),
    hazard(
        padded_row, Real(-10, 10, S), Whole(0, 1, S),
        kind=("overflow", "invalid"), root="literal", at="sub", symptom="nan", trigger=(1.0, 0),
    ),
    hazard(
        infinite_mask, Real(-10, 10, S), Whole(0, 1, S), format="float32",
        kind="invalid", root=("sub", "literal", "select_n"), at="sub", symptom="nan",
        trigger=(1.0, 0), intrinsic=True,
    ),
    hazard(
        unshifted_softmax, Real(-30, 30, S),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(20.0,),
    ),
    hazard(
        unshifted_softmax, Real(-100, 100, S), format="bfloat16",
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(95.0,), intrinsic=True,
    ),
    hazard(
        unshifted_softmax, Real(-100, 100, S), format="float32",
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(100.0,),
    ),
    hazard(
        denominator_overflows, Real(-5, 11, (2, 16)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(10.5,),
    ),
    hazard(
        raw_scores, Real(-100, 100, (3, 16)), Real(-100, 100, (3, 16)),
        kind="overflow", root="dot_general", at="dot_general", symptom="inf", trigger=(90.0, 90.0),
    ),
    hazard(
        scores_in_float8, Real(-10, 10, (3, 16)), Real(-10, 10, (3, 16)), format="float8_e4m3fn",
        kind="overflow", root="dot_general", at="dot_general", symptom="nan", trigger=(8.0, 8.0),
    ),
    hazard(
        softmax_in_float8, Real(-5, 5, S), format="float8_e4m3fn",
        kind=("overflow", "invalid"), root="literal", at=("max", "sub"), symptom="nan",
        trigger=(1.0,),
    ),
    hazard(
        online_softmax, Real(-10, 10, S), Whole(0, 1, S), format="float32",
        kind="invalid", root=("sub", "literal", "select_n"), at="sub", symptom="nan",
        trigger=(1.0, np.array([[0], [1], [1]])), intrinsic=True,
    ),
    hazard(
        linear_attention, Real(-1, 1, S), Real(-1, 1, S), Real(-1, 1, S),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(-1.0, 1.0, 1.0),
    ),
    hazard(
        entropy_of_attention, Real(-30, 30, S),
        kind="underflow", root=("exp", "div"), at="log", symptom="inf",
        trigger=(np.array([30.0, -30, 0, 0, 0, 0]),),
    ),
    hazard(
        temperature_scores, Real(-10, 10, S), Real(1e-4, 1, ()),
        kind="overflow", root="div", at="div", symptom="inf", trigger=(10.0, 1e-4),
    ),
    hazard(
        exponential_kernel, Real(-2, 2, S), Real(-2, 2, S),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(1.99, 2.0),
    ),
    hazard(
        renormalized_dropout, Real(0.01, 1, S), Whole(0, 1, S), format="float32",
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 0), intrinsic=True,
    ),
    hazard(
        mask_with_float32_minimum, Real(-10, 10, S), Whole(0, 1, S),
        kind=("overflow", "invalid"), root="literal", at="mul", symptom="nan", trigger=(1.0, 1),
    ),
)  # fmt: skip

# --- safe ---


def finfo_mask(scores: Array, mask: Array) -> Array:
    lowest = jnp.finfo(scores.dtype).min
    return jax.nn.softmax(jnp.where(mask > 0, scores, lowest), axis=-1)


def moderate_mask(scores: Array, mask: Array) -> Array:
    bias = (1.0 - mask.astype(scores.dtype)) * -1e4
    return jax.nn.softmax(scores + bias, axis=-1)


def causal(scores: Array) -> Array:
    visible = jnp.tril(jnp.ones(scores.shape, bool))
    return jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)


def shifted_softmax(scores: Array) -> Array:
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def scaled_before(q: Array, k: Array) -> Array:
    return jax.nn.softmax((q * 0.25) @ k.T, axis=-1)


def finite_online_softmax(scores: Array) -> Array:
    def block(carry: tuple[Array, Array], s: Array) -> tuple[tuple[Array, Array], None]:
        peak, total = carry
        new_peak = jnp.maximum(peak, jnp.max(s))
        total = total * jnp.exp(peak - new_peak) + jnp.sum(jnp.exp(s - new_peak))
        return (new_peak, total), None

    start = (jnp.array(-1e4, scores.dtype), jnp.zeros((), scores.dtype))
    (peak, total), _ = jax.lax.scan(block, start, scores)
    return peak + jnp.log(total)


def sigmoid_attention(scores: Array) -> Array:
    return jax.nn.sigmoid(scores - 2.0)


def masked_rows_guarded(scores: Array, mask: Array) -> Array:
    some = jnp.any(mask > 0, axis=-1, keepdims=True)
    visible = jnp.where(some, mask > 0, True)
    p = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.where(some, p, 0.0)


def attention_in_float32(q: Array, k: Array, mask: Array) -> Array:
    scores = jnp.einsum("id,jd->ij", q.astype(jnp.float32), k.astype(jnp.float32)) / 4.0
    scores = jnp.where(mask > 0, scores, -1e9)
    return jax.nn.softmax(scores, axis=-1).astype(q.dtype)


def guarded_entropy(scores: Array) -> Array:
    log_p = jax.nn.log_softmax(scores, axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def kept_linear_attention(q: Array, k: Array, v: Array) -> Array:
    q, k = jax.nn.elu(q) + 1.0, jax.nn.elu(k) + 1.0
    return (q @ (k.T @ v)) / (q @ jnp.sum(k, axis=0))[:, None]


def attention_gradient(q: Array, k: Array) -> Array:
    def loss(q: Array) -> Array:
        visible = jnp.tril(jnp.ones((q.shape[0], k.shape[0]), bool))
        scores = jnp.where(visible, q @ k.T, jnp.finfo(q.dtype).min)
        return jnp.sum(jax.nn.softmax(scores, axis=-1)[:, 0])

    return jax.grad(loss)(q)


def alibi(scores: Array) -> Array:
    distance = jnp.arange(scores.shape[-1], dtype=scores.dtype)
    return jax.nn.softmax(scores - 0.5 * distance, axis=-1)


SAFE = (
    safe(scores_in_float8, Real(-1, 1, (3, 16)), Real(-1, 1, (3, 16)), format="float8_e4m3fn"),
    safe(finfo_mask, Real(-10, 10, S), Whole(0, 1, S)),
    safe(finfo_mask, Real(-10, 10, S), Whole(0, 1, S), format="bfloat16"),
    safe(moderate_mask, Real(-10, 10, S), Fixed(((1, 1, 1, 1, 0, 0),) * 3)),
    safe(additive_mask, Real(-10, 10, S), Fixed(((1, 1, 1, 1, 0, 0),) * 3), format="bfloat16"),
    safe(causal, Real(-10, 10, (5, 5))),
    safe(causal, Real(-100, 100, (5, 5)), format="float32"),
    safe(shifted_softmax, Real(-30, 30, S)),
    safe(shifted_softmax, Real(-1000, 1000, S), format="float32"),
    safe(scaled_before, Real(-5, 5, (3, 16)), Real(-5, 5, (3, 16)), error=0.3),
    safe(finite_online_softmax, Real(-10, 10, S)),
    safe(sigmoid_attention, Real(-60, 60, S)),
    safe(masked_rows_guarded, Real(-10, 10, S), Whole(0, 1, S)),
    safe(
        attention_in_float32,
        Real(-100, 100, (3, 16)),
        Real(-100, 100, (3, 16)),
        Whole(0, 1, (3, 3)),
    ),
    safe(guarded_entropy, Real(-30, 30, S), error=0.05),
    safe(kept_linear_attention, Real(-2, 2, S), Real(-2, 2, S), Real(-1, 1, S)),
    safe(attention_gradient, Real(-1, 1, (4, 6)), Real(-1, 1, (4, 6))),
    safe(alibi, Real(-10, 10, S)),
)
