"""Indices: gathers out of range, positions, token ids, counters and bins held in floats."""

from typing import Any

import jax
import jax.numpy as jnp

from .case import Fixed, Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def embed(table: Array, ids: Array) -> Array:
    rows = jnp.take(table, ids, axis=0)  # HERE
    return rows * 2.0


def position_encoding(x: Array) -> Array:
    positions = jnp.arange(3000, dtype=x.dtype)  # HERE
    return positions * x


def rotary_angles(frequency: Array) -> Array:
    positions = jnp.arange(600, dtype=frequency.dtype)  # HERE
    angles = positions[:, None] * frequency
    return jnp.cos(angles)


def ids_through_half(ids: Array, x: Array) -> Array:
    stored = ids.astype(x.dtype)  # HERE
    return stored.astype(jnp.int32)


def ratio_to_bin(x: Array, total: Array) -> Array:
    share = x / total
    return (share * 10.0).astype(jnp.int32)  # HERE


def bucket_of_exponential(x: Array) -> Array:
    size = jnp.exp(x)  # HERE
    return size.astype(jnp.int32)


def histogram(x: Array, bins: Array) -> Array:
    counts = jnp.zeros((2,), x.dtype)

    def add(counts: Array, b: Array) -> tuple[Array, None]:
        return counts.at[b].add(1.0), None  # HERE

    return jax.lax.scan(add, counts, bins)[0]


def flat_index(row: Array, column: Array, x: Array) -> Array:
    flat = row.astype(x.dtype) * 10000.0 + column.astype(x.dtype)  # HERE
    return flat + 0.0 * x


def seconds_of_day(seconds: Array, x: Array) -> Array:
    clock = seconds.astype(x.dtype)  # HERE
    return clock / 100.0 + x


def hand_one_hot(labels: Array, x: Array) -> Array:
    classes = labels[:, None].astype(x.dtype) == jnp.arange(512).astype(x.dtype)  # HERE
    return jnp.sum(classes.astype(x.dtype), axis=-1)


def segment_ids_in_float8(ids: Array, x: Array) -> Array:
    return ids.astype(x.dtype)  # HERE


def positions_from_mask(mask: Array) -> Array:
    return jnp.cumsum(mask) - 1.0  # HERE


def mean_over_many_tokens(losses: Array) -> Array:
    count = jnp.sum(jnp.ones_like(losses))  # HERE
    return jnp.sum(losses / 1000.0) / count


def log_of_index(ids: Array, x: Array) -> Array:
    return jnp.log(ids.astype(x.dtype))  # HERE


def relative_bias(ids: Array, x: Array) -> Array:
    distance = jnp.log2(ids.astype(x.dtype) / 16.0)
    return jnp.floor(distance).astype(jnp.int32)  # HERE


def gather_neighbours(values: Array, ids: Array) -> Array:
    near = values.at[ids + 1].get(mode="fill")  # HERE
    return near - values[ids]


def counter_in_float32(x: Array) -> Array:
    big = x + 16777216.0  # HERE
    return big - 16777216.0


def large_ids_in_float32(ids: Array, x: Array) -> Array:
    return ids.astype(x.dtype) + 0.0 * x  # HERE


HAZARDS = (
    hazard(
        embed, Real(-1, 1, (8, 3)), Whole(0, 10), intrinsic=True,
        kind="invalid", root=("gather", "input"), at="gather", symptom="nan", trigger=(0.5, 9),
    ),
    hazard(
        embed, Real(-1, 1, (8, 3)), Whole(0, 8), format="float32", intrinsic=True,
        kind="invalid", root=("gather", "input"), at="gather", symptom="nan", trigger=(0.5, 8),
    ),
    hazard(
        position_encoding, Real(0.5, 1, ()), error=1e-4,
        kind="inexact", root="iota", at="iota", symptom="wrong", trigger=(1.0,),
    ),
    hazard(
        position_encoding, Real(0.5, 1, ()), format="bfloat16", error=1e-3,
        kind="inexact", root="iota", at="iota", symptom="wrong", trigger=(1.0,),
    ),
    hazard(
        rotary_angles, Real(0.01, 1, (4,)), format="bfloat16",
        kind="inexact", root="iota", at="iota", symptom="wrong", trigger=(1.0,),
    ),
    hazard(
        ids_through_half, Whole(0, 5000), Real(0, 1), error=1e-4,
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="index",
        trigger=(4097, 0.0),
    ),
    hazard(
        ids_through_half, Whole(0, 50000), Real(0, 1), format="bfloat16", error=1e-3,
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="index",
        trigger=(50000, 0.0),
    ),
    hazard(
        ratio_to_bin, Real(0, 1), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="convert_element_type", symptom="index", trigger=(0.0, 0.0),
    ),
    hazard(
        bucket_of_exponential, Real(0, 15),
        kind="overflow", root="exp", at="exp", symptom="inf", trigger=(12.0,),
    ),
    hazard(
        histogram, Real(0, 1, ()), Fixed((0,) * 400), format="bfloat16",
        kind="absorption", root=("scatter-add", "add"), at=("scatter-add", "add"),
        symptom="stuck", trigger=(0.0, 0),
    ),
    hazard(
        flat_index, Whole(0, 10000, ()), Whole(0, 9999, ()), Real(0, 1, ()), format="float32",
        kind="inexact", root=("add", "mul"), at=("add", "mul"), symptom="wrong", error=5e-9,
        trigger=(5001, 1237, 0.0),
    ),
    hazard(
        seconds_of_day, Whole(0, 86400, ()), Real(0, 1, ()),
        kind="overflow", root="convert_element_type", at="convert_element_type", symptom="inf",
        trigger=(80000, 0.0),
    ),
    hazard(
        hand_one_hot, Whole(0, 511, (3,)), Real(0, 1, ()), format="bfloat16",
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(400, 0.0),
    ),
    hazard(
        segment_ids_in_float8, Whole(0, 100), Real(0, 1), format="float8_e4m3fn", error=0.01,
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(35, 0.0),
    ),
    hazard(
        positions_from_mask, Real(0, 1, (600,)), format="bfloat16", error=1e-3,
        kind=("inexact", "absorption"), root="cumsum", at="cumsum", symptom="wrong",
        trigger=(1.0,),
    ),
    hazard(
        mean_over_many_tokens, Real(0, 1, (70000,)),
        kind="overflow", root=("reduce_sum", "convert_element_type"),
        at=("reduce_sum", "convert_element_type"), symptom="inf", trigger=(1.0,),
    ),
    hazard(
        log_of_index, Whole(0, 100), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root="log", at="log", symptom="inf", trigger=(0, 0.0),
    ),
    hazard(
        relative_bias, Whole(0, 100), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root=("log", "log2", "div"), at="convert_element_type", symptom="index",
        trigger=(0, 0.0),
    ),
    hazard(
        gather_neighbours, Real(-1, 1, (6,)), Whole(0, 5), format="float32", intrinsic=True,
        kind="invalid", root=("gather", "input"), at="gather", symptom="nan", trigger=(0.5, 5),
    ),
    hazard(
        counter_in_float32, Real(0, 0.5, ()), format="float32",
        kind="absorption", root="add", at="add", symptom="zero", trigger=(0.5,),
    ),
    hazard(
        large_ids_in_float32, Whole(0, 2_000_000_000, ()), Real(0, 1, ()), format="float32",
        error=1e-8, kind="inexact", root="convert_element_type", at="convert_element_type",
        symptom="wrong", trigger=(1_234_567_891, 0.0),
    ),
)  # fmt: skip

# --- safe ---


def embed_in_range(table: Array, ids: Array) -> Array:
    return jnp.take(table, ids, axis=0) * 2.0


def embed_indexed(table: Array, ids: Array) -> Array:
    return table[ids]


def embed_clipped(table: Array, ids: Array) -> Array:
    return jnp.take(table, jnp.clip(ids, 0, table.shape[0] - 1), axis=0)


def short_positions(x: Array) -> Array:
    return jnp.arange(256, dtype=x.dtype) * x


def positions_in_float32(frequency: Array) -> Array:
    positions = jnp.arange(3000, dtype=jnp.float32)
    return jnp.cos(positions[:, None] * frequency.astype(jnp.float32)).astype(frequency.dtype)


def small_ids(ids: Array, x: Array) -> Array:
    return ids.astype(x.dtype).astype(jnp.int32)


def repaired_before_cast(x: Array, total: Array) -> Array:
    share = jnp.where(total > 0.1, x / jnp.where(total > 0.1, total, 1.0), 0.0)
    return jnp.clip(share, 0.0, 1.0)


def integer_one_hot(labels: Array, x: Array) -> Array:
    return (labels[:, None] == jnp.arange(512)).astype(x.dtype)


def integer_counts(bins: Array, x: Array) -> Array:
    counts = jnp.zeros((2,), jnp.int32).at[bins].add(1)
    return counts, x


def integer_positions(mask: Array) -> Array:
    return jnp.cumsum((mask > 0.5).astype(jnp.int32)) - 1


def log_of_index_plus_one(ids: Array, x: Array) -> Array:
    return jnp.log1p(ids.astype(x.dtype))


def quantize(x: Array) -> Array:
    return jnp.round(jnp.clip(x, -1.0, 1.0) * 127.0).astype(jnp.int8).astype(x.dtype)


SAFE = (
    safe(embed_in_range, Real(-1, 1, (8, 3)), Whole(0, 7)),
    safe(embed_indexed, Real(-1, 1, (8, 3)), Whole(0, 7)),
    safe(embed_clipped, Real(-1, 1, (8, 3)), Whole(-5, 20)),
    safe(short_positions, Real(0.5, 1, ()), format="bfloat16"),
    safe(short_positions, Real(0.5, 1, ())),
    safe(positions_in_float32, Real(0.01, 1, (4,)), format="bfloat16"),
    safe(small_ids, Whole(0, 2048), Real(0, 1)),
    safe(small_ids, Whole(0, 256), Real(0, 1), format="bfloat16"),
    safe(repaired_before_cast, Real(0, 1), Real(0, 1), error=2.0),
    safe(integer_one_hot, Whole(0, 511, (3,)), Real(0, 1, ()), format="bfloat16"),
    safe(integer_counts, Fixed((0,) * 400), Real(0, 1), format="bfloat16"),
    safe(integer_positions, Real(0, 1, (600,)), format="bfloat16"),
    safe(log_of_index_plus_one, Whole(0, 1000), Real(0, 1)),
    safe(quantize, Real(-3, 3)),
)
