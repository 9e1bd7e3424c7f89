"""The plain array that a quantised one stands for."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.formats import E4M3, E5M2, E8M0FNU
from precir.kernels import cuts
from precir.kernels.divided import Parts
from precir.kernels.launch import fp8_gpu, launch, result
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize_cuda import merged, warps
from precir.scaled import ScaledArray, full_block

TALL: Final = 16  # a tile of a program
WIDE: Final = 256

_NARROW: Final = frozenset({E4M3.name, E5M2.name})
_WIDE: Final = frozenset({"float16", "bfloat16", "float32"})


def dequantize(x: ScaledArray, dtype: DTypeLike = jnp.float32) -> Array:
    """``x.unscale(dtype)``: data * scale, multiplied in float32 and rounded once."""
    plain: Array
    (plain,) = dequantize_p.bind(
        jnp.asarray(x.data), jnp.asarray(x.scale), dtype=np.dtype(dtype), block=x.block
    )
    return plain


def _reference(
    data: Array, scale: Array, *, dtype: np.dtype[Any], block: tuple[int, ...]
) -> Results:
    return (ScaledArray(data, scale, block).unscale(dtype),)


def as_matrices(
    shape: tuple[int, ...], scale: Array, block: tuple[int, ...]
) -> tuple[tuple[int, int, int], tuple[int, int], Array] | None:
    """Data of ``shape`` as [matrices, m, n], the size of a block of them, and their scales in
    memory's order, E8M0 as uint8; None where blocks have more than two axes.
    """
    if scale.dtype == E8M0FNU.dtype:
        scale = lax.bitcast_convert_type(scale, np.uint8)
    if not block:
        rows = scale.size
        n = math.prod(shape) // rows
        return (1, rows, n), (1, n), scale
    match merged(shape, full_block(block, len(shape))):
        case [(n, width)]:
            return (1, 1, n), (1, width), scale
        case [(m, height), (n, width)]:
            return (1, m, n), (height, width), scale
        case [(z, 1), (m, height), (n, width)]:
            return (z, m, n), (height, width), scale
        case _:
            return None


def tiling(shape: tuple[int, int, int]) -> tuple[tuple[int], dict[str, Any]]:
    """The grid over [matrices, m, n] and its constants: tiles as tall as there are rows for."""
    matrices, m, n = shape
    tall, wide = (TALL, WIDE) if m >= TALL else (1, TALL * WIDE)
    grid = (matrices * -(-m // tall) * -(-n // wide),)
    return grid, {"M": m, "N": n, "TALL": tall, "WIDE": wide}


def _on_cuda(data: Array, scale: Array, *, dtype: np.dtype[Any], block: tuple[int, ...]) -> Results:
    taken = data.size > 0 and data.dtype.name in _NARROW and dtype.name in _WIDE and fp8_gpu()
    found = as_matrices(data.shape, scale, block) if taken else None
    if found is None:
        return _reference(data, scale, dtype=dtype, block=block)
    from precir.kernels.triton.dequantize import dequantize as kernel

    shape, (height, width), scales = found
    grid, constants = tiling(shape)
    (plain,) = launch(
        kernel,
        [data.reshape(shape), scales],
        [result(shape, dtype)],
        grid,
        warps=warps(TALL * WIDE),
        HEIGHT=height,
        WIDTH=width,
        **constants,
    )
    return (plain.reshape(data.shape),)


def together(operands: tuple[Array, ...], dims: Dims) -> list[Array]:
    """Operands with the axis of examples in front, also those that had none."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    return [
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(operands, dims, strict=True)
    ]


def _batch(operands: tuple[Array, ...], dims: Dims, **params: Any) -> tuple[Results, Dims]:
    return dequantize_p.bind(*together(operands, dims), **params), (0,)


dequantize_p = kernel_primitive(
    "precir_dequantize",
    _reference,
    platforms={"cuda": _on_cuda},
    batch=_batch,
    parts=Parts(cuts.with_scales, lambda _, *operands, **params: _on_cuda(*operands, **params)),
)
