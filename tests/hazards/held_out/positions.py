"""Sequences: positions, masks, caches, decoding scores, decays."""

from typing import Any

import jax
import jax.numpy as jnp

from tests.hazards.case import Fixed, Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def rotate_pairs(x: Array, frequency: Array, places: Array) -> Array:
    angle = places.astype(x.dtype) * frequency  # HERE
    even, odd = x[0::2], x[1::2]
    return jnp.stack([even * jnp.cos(angle) - odd * jnp.sin(angle), even + odd])


def far_bias(slope: Array) -> Array:
    places = jnp.arange(300, dtype=slope.dtype)  # HERE
    return jax.nn.softmax(slope * (places - places[-1]))


def penalty_of_mask(scores: Array, mask: Array) -> Array:
    bias = (1.0 - mask) * -1e5  # HERE
    return jax.nn.softmax(scores + bias, axis=-1)


def capped_weights(scores: Array) -> Array:
    capped = 10.0 * jnp.tanh(scores / 10.0)
    weights = jnp.exp(capped)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)  # HERE


def sequence_score(p: Array) -> Array:
    def extend(total: Array, p: Array) -> tuple[Array, None]:
        return total * p, None  # OR HERE

    total, _ = jax.lax.scan(extend, jnp.ones((), p.dtype), p)
    return jnp.log(total)  # HERE


def cached_keys(k: Array) -> Array:
    return k * 8.0  # HERE


def long_base(position: Array) -> Array:
    exponents = jnp.arange(0, 8, 2) / 8.0
    powers = jnp.power(500000.0, exponents.astype(position.dtype))  # HERE
    inverse = 1.0 / powers
    return jnp.sin(position * inverse)


def retention(v: Array) -> Array:
    distance = jnp.arange(199, -1, -1).astype(v.dtype)
    return v * jnp.asarray(0.999, v.dtype) ** distance  # HERE


def cumulative_gates(gate: Array) -> Array:
    kept = jnp.cumprod(gate)
    return 1.0 / kept  # HERE


def summed_queries(q: Array, k: Array) -> Array:
    def add(state: Array, pair: Array) -> tuple[Array, Array]:
        state = state + jnp.outer(pair, pair)  # HERE
        return state, state @ q

    final, _ = jax.lax.scan(add, jnp.zeros((3, 3), q.dtype), k)
    return final @ q


HAZARDS = (
    hazard(
        rotate_pairs, Real(-1, 1, (4,)), Real(0.1, 1, (2,)), Whole(0, 4000, ()),
        kind="inexact", root="convert_element_type", at=("convert_element_type", "mul"),
        symptom="wrong", trigger=(1.0, 1.0, 3001),
    ),
    hazard(
        far_bias, Real(0.5, 1, ()), format="bfloat16",
        kind="inexact", root=("iota", "convert_element_type"),
        at=("iota", "convert_element_type"), symptom="wrong", trigger=(1.0,),
    ),
    hazard(
        penalty_of_mask, Real(-10, 10, (2, 4)), Real(0, 1, (2, 4)),
        kind=("overflow", "invalid"), root="literal", at="mul", symptom="nan",
        trigger=(1.0, 1.0),
    ),
    hazard(
        capped_weights, Real(-100, 100, (2, 4)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(80.0,),
    ),
    hazard(
        sequence_score, Real(0.01, 1, (12,)),
        kind="underflow", root="mul", at="log", symptom="inf", trigger=(0.05,),
    ),
    hazard(
        cached_keys, Real(-100, 100), format="float8_e4m3fn",
        kind="overflow", root="mul", at="mul", symptom="nan", trigger=(100.0,),
    ),
    hazard(
        long_base, Real(0, 50, ()),
        kind="overflow", root="literal", at="pow", symptom="inf", trigger=(40.0,),
    ),
    hazard(
        retention, Real(-1, 1, (200,)), format="bfloat16",
        kind="rounds-to-bound", root="literal", at=("pow", "mul"), symptom="wrong",
        trigger=(1.0,),
    ),
    hazard(
        cumulative_gates, Real(0.1, 1, (10,)),
        kind=("underflow", "overflow"), root=("cumprod", "div"), at="div", symptom="inf",
        trigger=(0.1,),
    ),
    hazard(
        summed_queries, Real(-1, 1, (3,)), Real(-60, 60, (24, 3)),
        kind="overflow", root="add", at="add", symptom="inf", trigger=(1.0, 60.0),
    ),
)  # fmt: skip

# --- safe ---


def rotate_pairs_in_float32(x: Array, frequency: Array, places: Array) -> Array:
    angle = places.astype(jnp.float32) * frequency.astype(jnp.float32)
    cosine, sine = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    even, odd = x[0::2], x[1::2]
    return jnp.stack([even * cosine - odd * sine, even + odd])


def near_bias(slope: Array) -> Array:
    places = jnp.arange(200, dtype=slope.dtype)
    return jax.nn.softmax(slope * (places - places[-1]))


def finite_additive_mask(scores: Array, mask: Array) -> Array:
    bias = (1.0 - mask.astype(scores.dtype)) * -1e4
    return jax.nn.softmax(scores + bias, axis=-1)


def capped_weights_that_fit(scores: Array) -> Array:
    capped = 8.0 * jnp.tanh(scores / 8.0)
    weights = jnp.exp(capped)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def sequence_score_in_logs(p: Array) -> Array:
    def extend(total: Array, p: Array) -> tuple[Array, None]:
        return total + jnp.log(p), None

    return jax.lax.scan(extend, jnp.zeros((), p.dtype), p)[0]


def cached_keys_that_fit(k: Array) -> Array:
    return k * 4.0


def long_base_by_exp(position: Array) -> Array:
    exponents = (jnp.arange(0, 8, 2) / 8.0).astype(position.dtype)
    inverse = jnp.exp(exponents * -13.122)
    return jnp.sin(position * inverse)


def retention_by_exp(v: Array) -> Array:
    distance = jnp.arange(199, -1, -1).astype(v.dtype)
    return v * jnp.exp(distance * -0.001)


def open_gates(gate: Array) -> Array:
    kept = jnp.cumprod(gate)
    return 1.0 / kept


def decayed_queries(q: Array, k: Array) -> Array:
    def add(state: Array, pair: Array) -> tuple[Array, Array]:
        state = 0.5 * state + jnp.outer(pair, pair)
        return state, state @ q

    final, _ = jax.lax.scan(add, jnp.zeros((3, 3), q.dtype), k)
    return final @ q


def fully_masked_rows(scores: Array, mask: Array) -> Array:
    peak = jnp.max(jnp.where(mask, scores, -1e4), axis=-1, keepdims=True)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - peak, 0.0)), 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 0.5)


SAFE = (
    safe(rotate_pairs_in_float32, Real(-1, 1, (4,)), Real(0.1, 1, (2,)), Whole(0, 4000, ())),
    safe(near_bias, Real(0.5, 1, ()), format="bfloat16"),
    safe(finite_additive_mask, Real(-10, 10, (2, 4)), Fixed((1, 1, 0, 1)), error=0.05),
    safe(capped_weights_that_fit, Real(-100, 100, (2, 4)), error=0.05),
    safe(sequence_score_in_logs, Real(0.01, 1, (12,))),
    safe(cached_keys_that_fit, Real(-100, 100), format="float8_e4m3fn"),
    safe(long_base_by_exp, Real(0, 50, ()), error=0.05),
    safe(retention_by_exp, Real(-1, 1, (200,)), format="bfloat16"),
    safe(open_gates, Real(0.5, 1, (10,))),
    safe(decayed_queries, Real(-1, 1, (3,)), Real(-60, 60, (24, 3))),
    safe(fully_masked_rows, Real(-10, 10, (2, 4)), Fixed(((True,) * 4, (False,) * 4))),
)  # fmt: skip
