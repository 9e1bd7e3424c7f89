"""Quantise to FP8 with stochastic rounding: up or down at random, so that the mean is the number.

Small updates then add up where rounding to nearest would drop each of them. A number between two
of the format becomes the upper with a probability of how far it is on the way there, in steps of
2^-16, from 16 random bits for each element.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.formats import E4M3, E5M2, F32, Format, format_of
from precir.kernels.dequantize import TALL, WIDE, as_matrices, tiling, together
from precir.kernels.launch import launch, result
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.kernels.quantize import (
    QuantizeError,
    checked_array,
    checked_block,
    checked_format,
    checked_scale,
    checked_scale_format,
    own_scale,
)
from precir.kernels.quantize_cuda import serves, warps
from precir.scaled import ScaledArray, spread


def quantize_stochastic(
    x: ArrayLike,
    format: DTypeLike | Format,
    key: Array,
    *,
    block: tuple[int, ...] = (),
    scale: ArrayLike | None = None,
    scale_format: DTypeLike | Format = F32,
) -> ScaledArray:
    """``quantize`` to E4M3 or E5M2 with stochastic rounding, from a key of ``jax.random``.

    Scales and special values are those of ``quantize``; a number that the format holds stays.
    The mean over keys is ``x`` to 2^-17 of the distance between neighbours. Raises as
    ``quantize`` does, and ``QuantizeError`` for a wider format.
    """
    dtype, x = checked_format(format), checked_array(x)
    if format_of(dtype) not in (E4M3, E5M2):
        raise QuantizeError(f"stochastic rounding is to E4M3 or E5M2, not {dtype}")
    block, scales = checked_block(block, x.ndim), checked_scale_format(scale_format)
    if scale is None:
        used = own_scale(x, dtype, block=block, scales=scales)
    elif block or scales != F32.dtype:
        raise QuantizeError(
            "a given scale is one float32 scalar for the whole tensor",
            fix="leave out block and scale_format, or the scale",
        )
    else:
        used = checked_scale(scale)
    random = jax.random.bits(key, x.shape, np.uint16)
    (data,) = round_stochastic_p.bind(x, used, random, dtype=dtype, block=block)
    return ScaledArray(data, used, block)


def _reference(
    x: Array, scale: Array, random: Array, *, dtype: np.dtype[Any], block: tuple[int, ...]
) -> Results:
    format = format_of(dtype)
    wide, chance = x.astype(np.float32), random.astype(np.int32)
    scaled = wide * spread(1 / scale.astype(np.float32), x.shape, block)
    scaled = jnp.minimum(lax.abs(scaled), np.float32(format.max))
    # Between normals of the format, the bits that it drops and as many random ones carry: r + 1/2
    # of the 2^16 steps between neighbours, so that what the format holds never does.
    dropped = _dropped(format)
    carried = (2 * chance + 1) << (dropped - 17)
    bits = (lax.bitcast_convert_type(scaled, np.int32) + carried) & -(1 << dropped)
    # Below them it counts in its least.
    least = np.float32(format.smallest_subnormal)
    steps = (scaled * (1 / least) + (chance.astype(np.float32) + 0.5) * 2.0**-16).astype(np.int32)
    fine = lax.bitcast_convert_type(bits, np.float32)
    below = scaled < np.float32(format.smallest_normal)
    rounded = jnp.where(below, steps.astype(np.float32) * least, fine)
    rounded = jnp.where(jnp.signbit(wide), -rounded, rounded)
    return (jnp.where(jnp.isfinite(wide), rounded, wide).astype(dtype),)


def _dropped(format: Format) -> int:
    return F32.mantissa_bits - format.mantissa_bits


def _on_cuda(
    x: Array, scale: Array, random: Array, *, dtype: np.dtype[Any], block: tuple[int, ...]
) -> Results:
    found = as_matrices(x.shape, scale, block) if serves(x, dtype) else None
    if found is None:
        return _reference(x, scale, random, dtype=dtype, block=block)
    from precir.kernels.triton.round_stochastic import round_stochastic

    format = format_of(dtype)
    shape, (height, width), scales = found
    grid, constants = tiling(shape)
    (data,) = launch(
        round_stochastic,
        [x.reshape(shape), scales, random.reshape(shape)],
        [result(shape, dtype)],
        grid,
        warps=warps(TALL * WIDE),
        HEIGHT=height,
        WIDTH=width,
        DROPPED=_dropped(format),
        LARGEST=format.max,
        NORMAL=format.smallest_normal,
        LEAST=format.smallest_subnormal,
        **constants,
    )
    return (data.reshape(x.shape),)


def _batch(operands: tuple[Array, ...], dims: Dims, **params: Any) -> tuple[Results, Dims]:
    return round_stochastic_p.bind(*together(operands, dims), **params), (0,)


round_stochastic_p = kernel_primitive(
    "precir_round_stochastic", _reference, platforms={"cuda": _on_cuda}, batch=_batch
)
