"""Whole numbers: ids, slots, counts, lengths, segments, levels, bins."""

from typing import Any

import jax
import jax.numpy as jnp

from tests.hazards.case import Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def slot_in_page(ids: Array, x: Array) -> Array:
    stored = ids.astype(x.dtype)  # HERE
    return stored - 16.0 * jnp.floor(stored / 16.0) + 0.0 * x


def row_of_share(table: Array, share: Array) -> Array:
    row = (share * 8.0).astype(jnp.int32)
    return jnp.take(table, row, axis=0)  # HERE


def mean_by_length(x: Array, lengths: Array) -> Array:
    kept = jnp.arange(4) < lengths[:, None]
    total = jnp.sum(jnp.where(kept, x, 0.0), axis=1)
    return total / lengths.astype(x.dtype)  # HERE


def seconds_between(start: Array, end: Array, x: Array) -> Array:
    first = start.astype(x.dtype)  # OR HERE
    last = end.astype(x.dtype)  # HERE
    return (last - first) * x


def popularity(counts: Array, x: Array) -> Array:
    weights = counts.astype(x.dtype) ** 0.75  # HERE
    return x / (1.0 + weights)


def inverse_document_frequency(documents: Array, x: Array) -> Array:
    return x * jnp.log(1000.0 / documents.astype(x.dtype))  # HERE


def mean_of_segments(x: Array, ids: Array) -> Array:
    totals = jax.ops.segment_sum(x, ids, num_segments=4)
    counts = jax.ops.segment_sum(jnp.ones_like(x), ids, num_segments=4)
    return totals / counts  # HERE


def counted_in_float8(x: Array) -> Array:
    def step(n: Array, _: None) -> tuple[Array, None]:
        return n + 1.0, None  # HERE

    return jax.lax.scan(step, x, None, length=24)[0]


def quantized_by_amax(x: Array) -> Array:
    scale = jnp.max(jnp.abs(x)) / 127.0
    scaled = x / scale  # HERE
    return jnp.round(scaled).astype(jnp.int8), scaled


def size_of_level(level: Array, x: Array) -> Array:
    return x * jnp.exp2(level.astype(x.dtype))  # HERE


def votes(labels: Array, x: Array) -> Array:
    counts = jnp.zeros((3,), x.dtype).at[labels].add(1.0)  # HERE
    return counts * x


def tile_of_pixel(row: Array, column: Array, x: Array) -> Array:
    pixel = (row * 640 + column).astype(x.dtype)  # HERE
    return pixel - row.astype(x.dtype) * 640.0 + x


HAZARDS = (
    hazard(
        slot_in_page, Whole(0, 40000), Real(0, 1),
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(30001, 1.0),
    ),
    hazard(
        row_of_share, Real(-1, 1, (8, 2)), Real(0, 1), format="float32", intrinsic=True,
        kind="invalid", root=("gather", "input", "convert_element_type"), at="gather",
        symptom="nan", trigger=(0.5, 1.0),
    ),
    hazard(
        mean_by_length, Real(-1, 1, (2, 4)), Whole(0, 4, (2,)), intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(1.0, 0),
    ),
    hazard(
        seconds_between, Whole(1_700_000_000, 1_700_500_000), Whole(1_700_500_001, 1_701_000_000),
        Real(0.5, 1), format="float32", error=1e-5,
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(1_700_499_937, 1_700_500_001, 1.0),
    ),
    hazard(
        popularity, Whole(0, 1_000_000), Real(1, 10),
        kind="overflow", root="convert_element_type", at="convert_element_type", symptom="inf",
        trigger=(900_000, 5.0),
    ),
    hazard(
        inverse_document_frequency, Whole(0, 1000), Real(0.5, 1),
        format="bfloat16", intrinsic=True,
        kind="invalid", root=("div", "log"), at=("div", "log"), symptom="inf",
        trigger=(0, 1.0),
    ),
    hazard(
        mean_of_segments, Real(-1, 1, (5,)), Whole(0, 2, (5,)), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 1),
    ),
    hazard(
        counted_in_float8, Real(0, 1, ()), format="float8_e4m3fn",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.0,),
    ),
    hazard(
        counted_in_float8, Real(0, 1, ()), format="float8_e5m2",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(0.0,),
    ),
    hazard(
        quantized_by_amax, Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0,),
    ),
    hazard(
        size_of_level, Whole(0, 20, ()), Real(0.001, 1),
        kind="overflow", root=("exp2", "pow"), at=("exp2", "pow"), symptom="inf",
        trigger=(17, 0.5),
    ),
    hazard(
        votes, Whole(0, 2, (600,)), Real(0.5, 1, ()), format="bfloat16",
        kind="absorption", root=("scatter-add", "add"), at=("scatter-add", "add"),
        symptom="stuck", trigger=(1, 1.0),
    ),
    hazard(
        tile_of_pixel, Whole(0, 60), Whole(0, 639), Real(0, 1),
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(59, 7, 1.0),
    ),
)  # fmt: skip

# --- safe ---


def slot_in_small_page(ids: Array, x: Array) -> Array:
    stored = ids.astype(x.dtype)
    return stored - 16.0 * jnp.floor(stored / 16.0) + 0.0 * x


def row_of_share_clamped(table: Array, share: Array) -> Array:
    row = jnp.minimum((share * 8.0).astype(jnp.int32), 7)
    return jnp.take(table, row, axis=0)


def mean_by_known_length(x: Array, lengths: Array) -> Array:
    kept = jnp.arange(4) < lengths[:, None]
    total = jnp.sum(jnp.where(kept, x, 0.0), axis=1)
    return total / lengths.astype(x.dtype)


def seconds_between_whole(start: Array, end: Array, x: Array) -> Array:
    return (end - start).astype(x.dtype) * x


def popularity_in_float32(counts: Array, x: Array) -> Array:
    weights = counts.astype(jnp.float32) ** 0.75
    return x / (1.0 + weights).astype(x.dtype)


def smoothed_document_frequency(documents: Array, x: Array) -> Array:
    return x * jnp.log(1001.0 / (1.0 + documents.astype(x.dtype)))


def mean_of_segments_with_floor(x: Array, ids: Array) -> Array:
    totals = jax.ops.segment_sum(x, ids, num_segments=4)
    counts = jax.ops.segment_sum(jnp.ones_like(x), ids, num_segments=4)
    return totals / jnp.maximum(counts, 1.0)


def counted_to_fifteen(x: Array) -> Array:
    def step(n: Array, _: None) -> tuple[Array, None]:
        return n + 1.0, None

    return jax.lax.scan(step, 0.0 * x, None, length=15)[0] + x


def quantized_with_floor(x: Array) -> Array:
    scale = jnp.maximum(jnp.max(jnp.abs(x)), 1e-2) / 127.0
    scaled = x / scale
    return jnp.clip(scaled, -127.0, 127.0)


def size_of_low_level(level: Array, x: Array) -> Array:
    return x * jnp.exp2(level.astype(x.dtype))


def votes_in_integers(labels: Array, x: Array) -> Array:
    counts = jnp.zeros((3,), jnp.int32).at[labels].add(1)
    return counts.astype(x.dtype) * x


def tile_of_pixel_in_integers(row: Array, column: Array, x: Array) -> Array:
    pixel = row * 640 + column
    return (pixel - row * 640).astype(x.dtype) + x


SAFE = (
    safe(slot_in_small_page, Whole(0, 2047), Real(0, 1)),
    safe(row_of_share_clamped, Real(-1, 1, (8, 2)), Real(0, 1), format="float32"),
    safe(mean_by_known_length, Real(-1, 1, (2, 4)), Whole(1, 4, (2,))),
    safe(
        seconds_between_whole, Whole(1_700_000_000, 1_700_500_000),
        Whole(1_700_500_001, 1_701_000_000), Real(0.5, 1), format="float32",
    ),
    safe(popularity_in_float32, Whole(0, 1_000_000), Real(1, 10)),
    safe(smoothed_document_frequency, Whole(0, 1000), Real(0.5, 1), format="float32"),
    safe(mean_of_segments_with_floor, Real(-1, 1, (5,)), Whole(0, 2, (5,)), format="float32"),
    safe(counted_to_fifteen, Real(0, 1, ()), format="float8_e4m3fn"),
    safe(quantized_with_floor, Real(-1, 1), format="float32"),
    safe(size_of_low_level, Whole(0, 15, ()), Real(0.001, 1)),
    safe(votes_in_integers, Whole(0, 2, (200,)), Real(0.5, 1, ()), format="bfloat16"),
    safe(tile_of_pixel_in_integers, Whole(0, 60), Whole(0, 639), Real(0, 1)),
)  # fmt: skip
