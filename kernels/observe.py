"""Measure what a tensor holds: extremes, sums, special values, and how many at each exponent.

All of it is one small vector of integers, so that counts stay exact and two vectors merge element
by element; floating-point numbers in it are kept as their bits.

How it is computed is what was fastest on a CPU (XLA of jaxlib 0.10): one variadic reduction of
integers, which LLVM vectorises (a reduction of one integer it does not, nor a variadic one of
floats); sums of squares and of the tensor as it is, which XLA hands to a library (what is masked
first it does not); one scatter into four interleaved histograms, since adding to one counter twice
in a row has to wait. Counting exponents by thresholds costs more from some 24 bins on, a product of
one-hot matrices a hundred times as much.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Final

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.interpreters import ad

from precir.formats import format_of
from precir.kernels import cuts
from precir.kernels.divided import Parts, Split, collectives
from precir.kernels.launch import fp8_gpu, launch, result
from precir.kernels.primitive import Dims, Results, kernel_primitive

HEAD: Final = 10  # what stands before the histogram
EXPONENTS: Final = 256

_ABSOLUTE: Final = 0x7FFFFFFF
_INF: Final = 0x7F800000
_FRACTION: Final = 23  # bits
_WAYS: Final = 4

_TAKEN: Final = frozenset({"float16", "bfloat16", "float32"})
_RUN: Final = 2048  # elements that a program of the CUDA kernel reads at once
_PARTS: Final = 1024  # programs at most


@partial(jax.jit, static_argnames="histogram")
def observe(x: Array, *, histogram: bool = True) -> Array:
    """Statistics of ``x`` (floating-point, any shape) as int32[266], or int32[10] without the
    histogram: `precir.domains.Stats` reads them, ``merge_stats`` merges them.

    In order: as float32 bits the largest finite magnitude, the smallest nonzero finite magnitude
    (0 if none), the sum of all elements and that of their squares; then as counts all elements,
    zeros, subnormals (of the dtype of ``x``), +inf, -inf, NaN; and for each of float32's 256
    exponents the elements that have it. Zeros and float32's subnormals have exponent 0; NaN and
    infinities 255. Other dtypes are converted to float32 first, exactly, save float64.
    """
    stats: Array
    (stats,) = observe_p.bind(x.reshape(-1), histogram=histogram)
    return stats


@partial(jax.jit, static_argnames="histogram")
def observe_each(xs: Array, *, histogram: bool = True) -> Array:
    """``observe`` of each row of a matrix: int32[rows, 266] or int32[rows, 10]."""
    stats: Array
    (stats,) = observe_p.bind(xs, histogram=histogram)
    return stats


@jax.jit
def amax(x: Array) -> Array:
    """The largest magnitude in ``x``, float32[]: 0 of nothing, inf or NaN if ``x`` holds any."""
    return amax_each(x.reshape(1, -1))[0] if not x.size else _amax(x, tuple(range(x.ndim)))


@jax.jit
def amax_each(xs: Array) -> Array:
    """``amax`` of each row of a matrix: float32[rows]."""
    return _amax(xs, (1,)) if xs.size else jnp.zeros(len(xs), np.float32)


@jax.jit
def merge_stats(a: Array, b: Array) -> Array:
    """What ``observe`` would say of both tensors together, of two arrays int32[..., 266] or
    int32[..., 10]. All zeros are the statistics of nothing.
    """
    large = lax.max(a[..., :1], b[..., :1])
    p, q = a[..., 1:2], b[..., 1:2]
    small = jnp.where((p == 0) | (q == 0), lax.max(p, q), lax.min(p, q))
    sums = _bits(_floats(a[..., 2:4]) + _floats(b[..., 2:4]))
    return jnp.concatenate([large, small, sums, a[..., 4:] + b[..., 4:]], -1)


def _amax(x: Array, axes: tuple[int, ...]) -> Array:
    wide = x if x.dtype.itemsize >= 2 else x.astype(np.float32)
    return lax.reduce_max(lax.abs(wide), axes).astype(np.float32)


def _reference(x: Array, *, histogram: bool) -> Results:
    """Along the last axis."""
    axis, rows, size = x.ndim - 1, x.shape[:-1], x.shape[-1]
    wide = x.astype(np.float32)
    signed = _bits(wide)
    bits = signed & _ABSOLUTE
    finite = bits < _INF
    least = np.int32(_least_normal(x.dtype))
    counted = [
        bits == 0,
        (bits > 0) & (bits < least),
        signed == np.int32(_INF),
        signed == np.int32(_INF - 2**31),
        bits > _INF,
    ]
    extremes = (jnp.where(finite, bits, 0), jnp.where(finite & (bits > 0), bits, _ABSOLUTE))
    *counts, large, small = lax.reduce(
        (*[c.astype(np.int32) for c in counted], *extremes),
        tuple(np.int32(i) for i in (0, 0, 0, 0, 0, 0, _ABSOLUTE)),
        _merge_counts,
        (axis,),
    )
    small = jnp.where(small == _ABSOLUTE, 0, small)
    sums = [_bits(jnp.sum(wide, axis)), _bits(jnp.sum(wide * wide, axis))]
    total = jnp.full(rows, size, np.int32)
    head = jnp.stack([large, small, *sums, total, *counts], axis)
    if not histogram:
        return (head,)
    return (jnp.concatenate([head, _histogram(bits, math.prod(rows)).reshape(*rows, -1)], axis),)


def _merge_counts(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    counts = [p + q for p, q in zip(a[:-2], b[:-2], strict=True)]
    return (*counts, lax.max(a[-2], b[-2]), lax.min(a[-1], b[-1]))


def _histogram(bits: Array, rows: int) -> Array:
    """How many elements of each row have each exponent."""
    size = bits.shape[-1]
    way = lax.iota(np.int32, size) & (_WAYS - 1)
    bins = (bits >> _FRACTION) + (way * EXPONENTS)
    if bits.ndim > 1:
        bins = bins + lax.broadcasted_iota(np.int32, bits.shape, 0) * (_WAYS * EXPONENTS)
    counts = jnp.zeros(rows * _WAYS * EXPONENTS, np.int32)
    counts = counts.at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(rows, _WAYS, EXPONENTS).sum(1)


def _least_normal(dtype: np.dtype[Any]) -> int:
    """The bits of a format's least normal number in float32."""
    return int(np.float32(format_of(dtype).smallest_normal).view(np.int32))


def _on_cuda(x: Array, *, histogram: bool) -> Results:
    """One read in Triton, in parts that XLA then merges."""
    if not x.size or x.dtype.name not in _TAKEN or not fp8_gpu():
        return _reference(x, histogram=histogram)
    from precir.kernels.triton.statistics import statistics

    rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    parts = min(-(-n // _RUN), max(1, _PARTS // rows))
    counts, sums, bins = launch(
        statistics,
        [x],
        [
            result((rows, parts, 8), np.int32),
            result((rows, parts, 2), np.float32),
            result((rows, parts, EXPONENTS) if histogram else (1,), np.int32),
        ],
        (rows * parts,),
        warps=8,
        N=n,
        PARTS=parts,
        BLOCK=_RUN,
        LEAST=_least_normal(x.dtype),
        HISTOGRAM=histogram,
    )
    small = jnp.min(counts[..., 1], axis=1, keepdims=True)
    found = [
        jnp.max(counts[..., 0], axis=1, keepdims=True),
        jnp.where(small == _ABSOLUTE, 0, small),
        _bits(jnp.sum(sums, axis=1)),
        jnp.full((rows, 1), n, np.int32),
        jnp.sum(counts[..., 2:7], axis=1),
    ]
    if histogram:
        found.append(jnp.sum(bins, axis=1))
    return (jnp.concatenate(found, axis=1).reshape(*x.shape[:-1], -1),)


def _batch(operands: tuple[Array], dims: Dims, *, histogram: bool) -> tuple[Results, Dims]:
    (x,), (dim,) = operands, dims
    assert dim is not None
    each = jnp.moveaxis(x, dim, 0)
    *shape, n = each.shape
    (stats,) = observe_p.bind(each.reshape(math.prod(shape), n), histogram=histogram)
    return (stats.reshape(*shape, stats.shape[-1]),), (0,)


def _jvp(primals: tuple[Array], _: Any, **params: Any) -> tuple[Results, list[Any]]:
    """Integers have no derivative."""
    stats = observe_p.bind(*primals, **params)
    return stats, [ad.Zero(jax.typeof(s).to_tangent_aval()) for s in stats]


def _of_one_device(split: Split, x: Array, **params: Any) -> Results:
    """As `merge_stats` has it, of all devices at once."""
    (stats,) = _on_cuda(x, **params)
    if not split.agreed:
        return (stats,)
    large, small, sums, counts = jnp.split(stats, (1, 2, 4), axis=-1)
    small = collectives.pmin(jnp.where(small == 0, _ABSOLUTE, small), split.agreed)
    merged = [
        collectives.pmax(large, split.agreed),
        jnp.where(small == _ABSOLUTE, 0, small),
        _bits(collectives.psum(_floats(sums), split.agreed)),
        collectives.psum(counts, split.agreed),
    ]
    return (jnp.concatenate(merged, -1),)


observe_p = kernel_primitive(
    "precir_observe",
    _reference,
    platforms={"cuda": _on_cuda},
    batch=_batch,
    parts=Parts(cuts.statistics, _of_one_device),
)
ad.primitive_jvps[observe_p] = _jvp


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, np.int32)


def _floats(x: Array) -> Array:
    return lax.bitcast_convert_type(x, np.float32)
