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
from typing import Final

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from precir.formats import format_of

HEAD: Final = 10  # what stands before the histogram
EXPONENTS: Final = 256

_ABSOLUTE: Final = 0x7FFFFFFF
_INF: Final = 0x7F800000
_FRACTION: Final = 23  # bits
_WAYS: Final = 4


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
    return _observe(x.reshape(-1), (), histogram)


@partial(jax.jit, static_argnames="histogram")
def observe_each(xs: Array, *, histogram: bool = True) -> Array:
    """``observe`` of each row of a matrix: int32[rows, 266] or int32[rows, 10]."""
    return _observe(xs, xs.shape[:1], histogram)


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


def _observe(x: Array, rows: tuple[int, ...], histogram: bool) -> Array:
    """Along the last axis."""
    axis, size = len(rows), x.shape[-1]
    wide = x.astype(np.float32)
    signed = _bits(wide)
    bits = signed & _ABSOLUTE
    finite = bits < _INF
    normal = np.float32(format_of(x.dtype).smallest_normal)
    least = np.int32(np.asarray(normal).view(np.int32))
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
        return head
    return jnp.concatenate([head, _histogram(bits, math.prod(rows)).reshape(*rows, -1)], axis)


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


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, np.int32)


def _floats(x: Array) -> Array:
    return lax.bitcast_convert_type(x, np.float32)
