"""Quantise a matrix and its transpose in one pass, and measure it on the way.

The FP8 products of Hopper read both operands along the contraction. A matrix is contracted along
its columns in the forward pass and along its rows in the backward one, so it is stored both ways,
and reading it once for both is what pays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax import Array
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.formats import F32, Format
from precir.kernels import cuts, quantize_cuda
from precir.kernels.both_given import (
    TALL,
    WIDE,
    flipped,
    quantize_amax_p,
    quantize_both_given_p,
    tiles,
)
from precir.kernels.divided import Parts, Split, collectives
from precir.kernels.launch import launch, result
from precir.kernels.layer import (
    Layer,
    Source,
    as_array,
    batch_size,
    in_front,
    of_layers,
    operands,
    pointers,
    source,
    step,
)
from precir.kernels.powers import power_of_two_carry
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import (
    QuantizeError,
    checked_block,
    checked_format,
    checked_scale,
    checked_scale_format,
    checked_source,
    quantize_p_reference,
)
from precir.scaled import ScaledArray, full_block, scale_shape


def quantize_both(
    x: ArrayLike | Layer,
    format: DTypeLike | Format,
    *,
    block: tuple[int, ...] = (),
    scale: ArrayLike | None = None,
    scale_format: DTypeLike | Format = F32,
) -> tuple[ScaledArray, ScaledArray]:
    """``(quantize(x, ...), quantize(x.T, ...))`` of a matrix, each stored row by row.

    Of a tensor of more axes the first is of its shape, and the second the transpose of the matrix
    to which the axes before the last are one; only the last two sizes of a ``block`` are then more
    than 1, and the first of them only where the axes before it are 1.

    Under one scale, or in square blocks, the second is the transpose of the first. With a
    ``block`` of ``(1, n)`` each has scales along its own rows: the second is rounded anew from
    ``x``, under scales for n rows of a column of ``x``.

    Raises as ``quantize`` does, and ``QuantizeError`` for what is no matrix.
    """
    dtype, whole = checked_format(format), checked_source(x)
    x, shape = _folded(whole), whole.shape
    sizes, scales = checked_block(block, whole.ndim), checked_scale_format(scale_format)
    if scale is None:
        sizes = full_block(sizes, whole.ndim) if sizes else ()
        block = sizes[-2:]
        _check_fold(sizes, shape)
        data, own, flipped, its = quantize_both_p.bind(
            *operands(x), dtype=dtype, block=block, scales=scales
        )
        lying = ScaledArray(data.reshape(shape), own.reshape(scale_shape(shape, sizes)), sizes)
        return lying, ScaledArray(flipped, its, block)
    if block or scales != F32.dtype:
        raise QuantizeError(
            "a given scale is one float32 scalar for the whole tensor",
            fix="leave out block and scale_format, or the scale",
        )
    given = checked_scale(scale)
    data, flipped = quantize_both_given_p.bind(*operands(x, given), dtype=dtype, amax=False)
    return ScaledArray(data.reshape(shape), given), ScaledArray(flipped, given)


def quantize_and_amax(
    x: ArrayLike | Layer, format: DTypeLike | Format, *, scale: ArrayLike
) -> tuple[ScaledArray, Array]:
    """``quantize(x, format, scale=scale)``, and ``finite_amax(x)`` from the same read: what
    delayed scaling needs of a tensor. Magnitudes below float32's least normal count as zero.
    """
    given = checked_scale(scale)
    data, amax = quantize_amax_p.bind(
        *operands(checked_source(x), given), dtype=checked_format(format)
    )
    return ScaledArray(data, given), amax


def quantize_both_and_amax(
    x: ArrayLike | Layer, format: DTypeLike | Format, *, scale: ArrayLike
) -> tuple[ScaledArray, ScaledArray, Array]:
    """``quantize_both(x, format, scale=scale)``, and ``finite_amax(x)`` as above."""
    given = checked_scale(scale)
    dtype, what = checked_format(format), _matrix(x)
    data, flipped, amax = quantize_both_given_p.bind(*operands(what, given), dtype=dtype, amax=True)
    return ScaledArray(data, given), ScaledArray(flipped, given), amax


def turned_back(turned: ScaledArray, shape: tuple[int, ...]) -> ScaledArray:
    """A tensor of ``shape`` from the transpose of its matrix, as fused kernels write it: in one
    block for so many rows of a column. Nothing moves: XLA reads the transpose in its place.

    Rows are counted within the second axis from the end, so that blocks of them must not reach from
    one example to the next.
    """
    block = turned.block
    data = turned.data.T.reshape(shape)
    if not block:
        return ScaledArray(data, turned.scale)
    sizes = (1,) * (len(shape) - 2) + (block[1], block[0])
    return ScaledArray(data, turned.scale.T.reshape(scale_shape(shape, sizes)), sizes)


def _folded(x: Source) -> Source:
    if x.ndim < 2:
        return _matrix(x)
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _check_fold(block: tuple[int, ...], shape: tuple[int, ...]) -> None:
    tall = block[-2] if block else 1
    ahead = any(b > 1 and n > 1 for b, n in zip(block[:-2], shape, strict=False))
    if ahead or (tall > 1 and math.prod(shape[:-2]) > 1):
        raise QuantizeError(
            f"blocks of {block} reach over axes that are one in the transpose of {shape}",
            fix="a block along the last axis, or one scale",
        )


def _matrix(x: ArrayLike | Layer) -> Source:
    x = checked_source(x)
    if x.ndim != 2:
        raise QuantizeError(
            f"a matrix is quantised both ways, not a tensor of shape {x.shape}",
            fix="jax.vmap over the leading axes",
        )
    return x


# --- under scales of its own


def _both_reference(
    x: Array, *index: Array, dtype: np.dtype[Any], block: tuple[int, ...], scales: Any
) -> Results:
    """Of the last two axes; those before are of examples."""
    x = as_array(source(x, index))
    params = {"dtype": dtype, "batch_ndim": x.ndim - 2, "block": block, "scales": scales}
    data, scale = quantize_p_reference(x, **params)
    if not block:
        return data, scale, flipped(data), scale
    if block[0] == block[1]:
        return data, scale, flipped(data), flipped(scale)
    return data, scale, *quantize_p_reference(flipped(x), **params)


def _both_on_cuda(
    stack: Array, *index: Array, dtype: np.dtype[Any], block: tuple[int, ...], scales: Any
) -> Results:
    x = source(stack, index)
    serves = quantize_cuda.serves(x, dtype)
    if serves and not block and scales == F32.dtype:
        return _under_one_scale(x, dtype, ())
    found = _launched(x, dtype, block, scales) if serves and block else None
    if found is None:
        return _both_reference(stack, *index, dtype=dtype, block=block, scales=scales)
    data, scale, flipped, its = found
    turned = (*x.shape[:-2], *x.shape[:-3:-1])
    shapes = [scale_shape(s, block) for s in (x.shape, turned)]
    own, others = (
        quantize_cuda.as_scales(s, scales).reshape(shape)
        for s, shape in zip((scale, its), shapes, strict=True)
    )
    return data.reshape(x.shape), own, flipped.reshape(turned), others


def _both_of_one_device(
    split: Split,
    stack: Array,
    *index: Array,
    dtype: np.dtype[Any],
    block: tuple[int, ...],
    scales: Any,
) -> Results:
    """What a device has of it; under one scale, of all devices."""
    if not split.agreed:
        return _both_on_cuda(stack, *index, dtype=dtype, block=block, scales=scales)
    x = source(stack, index)
    if quantize_cuda.serves(x, dtype) and scales == F32.dtype:
        return _under_one_scale(x, dtype, split.agreed)
    params = {"dtype": dtype, "batch_ndim": x.ndim - 2, "block": (), "scales": scales}
    here = quantize_cuda.pinned(as_array(x))
    data, scale = quantize_p_reference(here, across=split.agreed, **params)
    return data, scale, flipped(data), scale


def _under_one_scale(x: Source, dtype: np.dtype[Any], across: tuple[str, ...]) -> Results:
    """Quantised both ways under the largest magnitude, on devices along these axes too."""
    from precir.kernels.triton import quantize_both as raw

    (m, n), examples = x.shape[-2:], x.shape[:-2]
    matrices = math.prod(examples)
    parts = quantize_cuda.amax_parts(x.reshape(matrices, m * n))
    if across:
        parts = collectives.pmax(jnp.max(parts, axis=1, keepdims=True), across)
    count = parts.shape[1]
    data, turned, scale = launch(
        raw.both_current,
        [*pointers(x), parts],
        [
            result((*examples, m, n), dtype),
            result((*examples, n, m), dtype),
            result((matrices,), np.float32),
        ],
        (tiles(matrices, m, n),),
        warps=quantize_cuda.warps(TALL * WIDE),
        LAYER=step(x),
        M=m,
        N=n,
        TALL=TALL,
        WIDE=WIDE,
        CARRY=power_of_two_carry(dtype),
        PARTS=count,
        PADDED=quantize_cuda.power(count),
    )
    scale = scale.reshape(examples)
    return data, scale, turned, scale


def _launched(
    x: Source, dtype: np.dtype[Any], block: tuple[int, ...], scales: Any
) -> tuple[Array, Array, Array, Array] | None:
    from precir.kernels.triton import quantize_both as raw

    (m, n), matrices = x.shape[-2:], math.prod(x.shape[:-2])
    outs = [result((matrices, m, n), dtype), result((matrices, n, m), dtype)]
    size = block[1]
    if block[0] not in (1, size) or size not in (16, 32, 64, 128):
        return None
    stored = np.dtype(np.float32 if scales == F32.dtype else np.uint8)
    down, across = -(-m // size), -(-n // size)
    square = block[0] == size
    data, flipped, scale, its = launch(
        raw.both_squares if square else raw.both_groups,
        pointers(x),
        [
            *outs,
            result((matrices, down if square else m, across), stored),
            result((matrices, across if square else n, down), stored),
        ],
        (matrices * down * across,),
        warps=quantize_cuda.warps(size * size),
        LAYER=step(x),
        M=m,
        N=n,
        TALL=size,
        WIDE=size,
        CARRY=power_of_two_carry(dtype),
    )
    return data, scale, flipped, its


def _batch_both(given: tuple[Array, ...], dims: Dims, **params: Any) -> tuple[Results, Dims]:
    (x, *index), (dim, *index_dim) = given, dims
    found = in_front(x, dim, index, index_dim, batch_size(given, dims))
    return quantize_both_p.bind(*found, **params), (0, 0, 0, 0)


quantize_both_p = kernel_primitive(
    "precir_quantize_both",
    _both_reference,
    platforms={"cuda": _both_on_cuda},
    batch=_batch_both,
    parts=Parts(of_layers(cuts.both_ways, 1), _both_of_one_device),
)
