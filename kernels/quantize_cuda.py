"""Which Triton kernel quantises which tensor, and how it is launched.

Each function returns None where no kernel serves: the caller then takes the reference.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from precir.formats import E4M3, E5M2, F32, format_of
from precir.kernels.divided import collectives
from precir.kernels.launch import fp8_gpu, launch, result
from precir.kernels.layer import Source, pointers, step
from precir.kernels.powers import power_of_two_carry
from precir.scaled import full_block, scale_shape

RUN: Final = 8192  # elements of a program that reads a tensor in runs
PARTS: Final = 512  # programs at most that measure a row
LONGEST: Final = 16384  # elements at most under one scale, where a program holds them all
ELEMENTS: Final = 4096  # that a program holds where groups are shorter
COLUMNS: Final = 64  # side by side, where each has scales down its rows

_with_layout: Any = with_layout_constraint  # JAX's own is not typed
_TAKEN: Final = frozenset({"float16", "bfloat16", "float32"})


def quantized(
    x: Source, *, dtype: np.dtype[Any], batch_ndim: int, block: tuple[int, ...], scales: Any
) -> tuple[Array, Array] | None:
    """Data and scales of ``precir_quantize``."""
    if not serves(x, dtype):
        return None
    if not block:
        shape = x.shape[:batch_ndim]
        data, scale = _one_scale_a_row(x.reshape(math.prod(shape), -1), dtype)
        return data.reshape(x.shape), lax.convert_element_type(scale.reshape(shape), scales)
    stored = np.dtype(np.float32 if scales == F32.dtype else np.uint8)
    match merged(x.shape, full_block(block, x.ndim)):
        case [(n, size)]:
            found = _in_groups(x.reshape(1, n), size, dtype, stored)
        case [(rows, 1), (n, size)]:
            found = _in_groups(x.reshape(rows, n), size, dtype, stored)
        case [(m, height), (n, width)]:
            found = _in_tiles(x.reshape(1, m, n), height, width, dtype, stored)
        case [(z, 1), (m, height), (n, width)]:
            found = _in_tiles(x.reshape(z, m, n), height, width, dtype, stored)
        case _:
            found = None
    if found is None:
        return None
    data, scale = found
    return data.reshape(x.shape), as_scales(scale, scales).reshape(scale_shape(x.shape, block))


def quantized_across(
    x: Source,
    across: tuple[str, ...],
    *,
    dtype: np.dtype[Any],
    batch_ndim: int,
    block: tuple[int, ...],
    scales: Any,
) -> tuple[Array, Array] | None:
    """The same of what a device has of a tensor, under one scale for what lies across these device
    axes; no kernel serves blocks.
    """
    if block or not serves(x, dtype):
        return None
    shape = x.shape[:batch_ndim]
    rows = x.reshape(math.prod(shape), -1)
    parts = collectives.pmax(jnp.max(amax_parts(rows), axis=1, keepdims=True), across)
    data, scale = under_largest(rows, parts, dtype)
    return data.reshape(x.shape), lax.convert_element_type(scale.reshape(shape), scales)


def quantized_given(x: Source, scale: Array, *, dtype: np.dtype[Any]) -> Array | None:
    """Data of ``precir_quantize_given``."""
    if not serves(x, dtype):
        return None
    from precir.kernels.triton.quantize_given import quantize_given

    rows = scale.size
    n = x.size // rows
    (data,) = launch(
        quantize_given,
        [*pointers(x.reshape(rows, n)), scale.reshape(rows)],
        [result((rows, n), dtype)],
        (rows * -(-n // RUN),),
        warps=8,
        LAYER=step(x),
        N=n,
        BLOCK=RUN,
    )
    return data.reshape(x.shape)


def quantized_given_amax(
    x: Source, scale: Array, *, dtype: np.dtype[Any]
) -> tuple[Array, Array] | None:
    """Data of ``precir_quantize_given``, and the largest finite magnitude under each scale."""
    if not serves(x, dtype):
        return None
    from precir.kernels.triton.quantize_given import quantize_given_amax

    rows = scale.size
    n = x.size // rows
    runs = -(-n // RUN)
    data, parts = launch(
        quantize_given_amax,
        [*pointers(x.reshape(rows, n)), scale.reshape(rows)],
        [result((rows, n), dtype), result((rows, runs), np.int32)],
        (rows * runs,),
        warps=8,
        LAYER=step(x),
        N=n,
        BLOCK=RUN,
    )
    return data.reshape(x.shape), largest(parts, scale.shape)


def amax_parts(x: Source) -> Array:
    """The largest finite magnitudes of ``x`` [rows, n], as bits in parts: int32[rows, parts]."""
    from precir.kernels.triton.amax_parts import amax_parts as kernel

    rows, n = x.shape
    parts = min(-(-n // RUN), max(1, PARTS // rows))
    (found,) = launch(
        kernel,
        pointers(x),
        [result((rows, parts), np.int32)],
        (rows * parts,),
        warps=8,
        LAYER=step(x),
        N=n,
        PARTS=parts,
        BLOCK=RUN,
    )
    return found


def largest(parts: Array, shape: tuple[int, ...]) -> Array:
    """The float32 maximum of each row of ``parts``, which are bits."""
    bits = jnp.max(parts.reshape(*shape, -1), axis=-1)
    return lax.bitcast_convert_type(bits, np.float32)


def knows(shape: tuple[int, ...], block: tuple[int, ...]) -> bool:
    """Whether there is a kernel for these blocks, under float32 scales."""
    match merged(shape, full_block(block, len(shape))) if block else []:
        case [(n, size)] | [(_, 1), (n, size)]:
            return size <= LONGEST or n % size == 0
        case [(_, height), (_, width)] | [(_, 1), (_, height), (_, width)]:
            return power(height) * (COLUMNS if width == 1 else power(width)) <= LONGEST
        case found:
            return not found


def serves(x: Source, dtype: np.dtype[Any]) -> bool:
    """Whether the kernels take ``x``, make ``dtype``, and can be had."""
    return x.size > 0 and x.dtype.name in _TAKEN and format_of(dtype) in (E4M3, E5M2) and fp8_gpu()


def pinned(x: Array) -> Array:
    """``x`` laid out as a kernel would read it, on a GPU that has them: else XLA may keep a whole
    stack of weights transposed, for what it makes of one.
    """
    return _with_layout(x, Layout(tuple(range(x.ndim)))) if fp8_gpu() else x


def power(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length()


def warps(elements: int) -> int:
    """For a program that holds so many: 32 to a thread, and no fewer warps than Triton's 4."""
    return min(16, max(4, elements // 1024))


def as_scales(scale: Array, dtype: np.dtype[Any]) -> Array:
    """Scales as kernels write them, E8M0 in uint8, in their dtype."""
    return scale if scale.dtype == dtype else lax.bitcast_convert_type(scale, dtype)


def _one_scale_a_row(x: Source, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    rows, n = x.shape
    if n <= LONGEST:  # one read, and one launch
        data, scale = _groups(x, n, dtype, np.dtype(np.float32))
        return data, scale.reshape(rows)
    return under_largest(x, amax_parts(x), dtype)


def under_largest(x: Source, parts: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Each row of ``x`` [rows, n] under the scale of the largest of its ``parts``, as
    `amax_parts` has them: data, and float32[rows].
    """
    from precir.kernels.triton.quantize_current import quantize_current

    rows, n = x.shape
    data, scale = launch(
        quantize_current,
        [*pointers(x), parts],
        [result(x.shape, dtype), result((rows,), np.float32)],
        (rows * -(-n // RUN),),
        warps=8,
        LAYER=step(x),
        N=n,
        PARTS=parts.shape[1],
        PADDED=power(parts.shape[1]),
        BLOCK=RUN,
        CARRY=power_of_two_carry(dtype),
    )
    return data, scale


def _in_groups(
    x: Source, size: int, dtype: np.dtype[Any], scales: np.dtype[Any]
) -> tuple[Array, Array] | None:
    if size <= LONGEST:
        return _groups(x, size, dtype, scales)
    if x.shape[1] % size or scales != F32.dtype:
        return None
    return _one_scale_a_row(x.reshape(-1, size), dtype)


def _groups(
    x: Source, size: int, dtype: np.dtype[Any], scales: np.dtype[Any]
) -> tuple[Array, Array]:
    from precir.kernels.triton.quantize_groups import quantize_groups

    rows, n = x.shape
    count, width = rows * -(-n // size), power(size)
    tile = min(max(1, ELEMENTS // width), power(count))
    data, scale = launch(
        quantize_groups,
        pointers(x),
        [result(x.shape, dtype), result((count,), scales)],
        (-(-count // tile),),
        warps=warps(width * tile),
        LAYER=step(x),
        ROWS=rows,
        N=n,
        SIZE=size,
        WIDTH=width,
        TILE=tile,
        CARRY=power_of_two_carry(dtype),
    )
    return data, scale


def _in_tiles(
    x: Source, height: int, width: int, dtype: np.dtype[Any], scales: np.dtype[Any]
) -> tuple[Array, Array] | None:
    from precir.kernels.triton.quantize_tiles import quantize_tiles

    matrices, m, n = x.shape
    columns = width == 1
    tall, wide = power(height), COLUMNS if columns else power(width)
    if tall * wide > LONGEST:
        return None
    down, across = -(-m // height), -(-n // (wide if columns else width))
    shape = (matrices, down, n if columns else across)
    data, scale = launch(
        quantize_tiles,
        pointers(x),
        [result(x.shape, dtype), result(shape, scales)],
        (matrices * down * across,),
        warps=warps(tall * wide),
        LAYER=step(x),
        M=m,
        N=n,
        HEIGHT=height,
        WIDTH=width,
        TALL=tall,
        WIDE=wide,
        COLUMNS=columns,
        CARRY=power_of_two_carry(dtype),
    )
    return data, scale


def merged(shape: tuple[int, ...], block: tuple[int, ...]) -> list[tuple[int, int]]:
    """Sizes of axes and of their blocks, with axes made one where memory has them so.

    An axis is merged into the one before it where a block reaches over all of it, and where both
    have blocks of 1.
    """
    axes: list[tuple[int, int]] = []
    for n, size in zip(reversed(shape), reversed(block), strict=True):
        size = min(n, size)
        inner = axes[-1] if axes else None
        if inner is not None and inner[0] == inner[1]:
            axes[-1] = (n * inner[0], size * inner[0])
        elif inner is not None and inner[1] == 1 and size == 1:
            axes[-1] = (n * inner[0], 1)
        else:
            axes.append((n, size))
    return axes[::-1]
