"""Quantise a tensor to 8 or 16 bits under power-of-two scales.

Current scaling takes each scale from the elements that it is for, so there is no state to go
stale. A power of two makes scaling exact, so that rounding to the narrow format is the only error.

Special values, whatever the format, the block and the origin of the scale:

- NaN stays NaN. An infinity stays one where the format has infinities (float8_e5m2, float16,
  bfloat16) and becomes NaN in float8_e4m3fn, which has none. Both are seen at once in whatever is
  computed next.
- Neither touches a scale, which is that of the finite elements. Zeros, nothing at all, and what is
  subnormal in float32 (which XLA:CPU reads as zero) have the scale 1.
- A scale is a power of two from 2^-126 to 2^126: neither it nor its reciprocal is ever zero,
  subnormal, infinite or NaN.
- Under a scale of its own nothing finite overflows; under one that is given, what leaves the
  format's range saturates.

On NVIDIA GPUs from Ada on, FP8 is made by Triton kernels: the same bits, subnormals of float32
read as zero. For blocks that no kernel has (see `precir.kernels.quantize_cuda`) it is XLA's code.
Where XLA divides a tensor among devices, each quantises what it has, to the same bits.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.errors import PrecirError
from precir.formats import BF16, E4M3, E5M2, E8M0FNU, F16, F32, Format, format_of, is_power_of_two
from precir.kernels import cuts, quantize_cuda
from precir.kernels.divided import Parts, Split, collectives
from precir.kernels.layer import (
    Layer,
    Source,
    as_array,
    batch_size,
    in_front,
    of_layers,
    operands,
    source,
)
from precir.kernels.powers import power_of_two_scale
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.scaled import ScaledArray, full_block, spread

_WIDE = frozenset({"float16", "bfloat16", "float32", "float64"})
_NARROW = (E4M3, E5M2, F16, BF16, F32)


class QuantizeError(PrecirError, TypeError):
    """A tensor, a format or a scale that ``quantize`` does not take."""


def quantize(
    x: ArrayLike | Layer,
    format: DTypeLike | Format,
    *,
    scaling: str = "current",
    block: tuple[int, ...] = (),
    scale: ArrayLike | None = None,
    scale_format: DTypeLike | Format = F32,
    fused: bool = False,
) -> ScaledArray:
    """``x`` (float16, bfloat16, float32 or float64, any shape) in E4M3, E5M2 or a wider format;
    of a ``Layer``, what lies there.

    The scale is 2^ceil(log2(amax / format.max)), with amax the largest finite magnitude in
    float32: the smallest power of two under which nothing finite overflows. For bfloat16 and
    float32, which have room to both sides, it is 2^ceil(log2(amax)): the data is at most 1. The
    bounds of scales
    (see the module) lose nothing: under the least, 2^-126, the smallest normal float32 becomes 1,
    and what the largest meets is bfloat16 data below 4.

    The data is x / scale, rounded to nearest, ties to even. A float64 is rounded to float32 first.

    ``block`` holds sizes of a block along the trailing axes of ``x``, each block under a scale of
    its own: ``(1, 128)`` for 128 columns of a row of a matrix, ``(1, n)`` with n columns for a
    row. The last block of an axis may be smaller. Axes before those have blocks of 1;
    ``block=()`` is one scale for all. ``scale_format`` is float32, or float8_e8m0fnu, in which
    ``block=(..., 32)`` makes OCP's MX formats. OCP MX 1.0 rounds log2(amax) down and saturates
    what is then past the format's largest; here it is rounded up as everywhere, so the data is up
    to a binade smaller and nothing saturates. Scales of E8M0 reach from 2^-127 to 2^127, more
    than is used.

    With ``scale``, a float32 scalar, that is the scale: a power of two from 2^-126 to 2^126
    (delayed and static scaling), and what leaves the format's range saturates. With
    ``scaling="unit"`` that is 1: the control that shows what scaling is for.

    With ``fused`` no kernel of precir's reads ``x``: XLA quantises it as it computes it, once for
    the scale and once for the data, so that it need not be in memory as a whole.

    Under ``jax.vmap`` each example has its own scale. Not differentiable. Raises
    ``QuantizeError`` (a ``TypeError``) on other dtypes, formats, scalings, blocks and scales.
    """
    dtype, x = checked_format(format), checked_source(x)
    block, scales = checked_block(block, x.ndim), checked_scale_format(scale_format)
    if scale is None and scaling == "current":
        primitive = quantize_fused_p if fused else quantize_p
        given = (as_array(x),) if fused else operands(x)
        data, own = primitive.bind(*given, dtype=dtype, batch_ndim=0, block=block, scales=scales)
        return ScaledArray(data, own, block)
    if scale is None and scaling == "unit":
        scale = 1.0
    elif scale is None or scaling not in ("current", "given"):
        raise QuantizeError(f"scaling is 'current', 'unit', or a scale is given, not {scaling!r}")
    if block or scales != F32.dtype:
        raise QuantizeError(
            "a given scale is one float32 scalar for the whole tensor",
            fix="leave out block and scale_format, or the scale",
        )
    one = checked_scale(scale)
    (data,) = quantize_given_p.bind(*operands(x, one), dtype=dtype)
    return ScaledArray(data, one)


def quantize_reference(
    x: ArrayLike,
    format: DTypeLike | Format,
    *,
    block: tuple[int, ...] = (),
    scale: ArrayLike | None = None,
    scale_format: DTypeLike | Format = F32,
) -> ScaledArray:
    """What ``quantize`` returns, in plain JAX."""
    dtype, x = checked_format(format), checked_array(x)
    if scale is not None:
        given = checked_scale(scale)
        return ScaledArray(quantize_given_reference(x, given, dtype=dtype)[0], given)
    block, scales = checked_block(block, x.ndim), checked_scale_format(scale_format)
    return ScaledArray(
        *quantize_p_reference(x, dtype=dtype, batch_ndim=0, block=block, scales=scales), block
    )


def quantize_p_reference(
    x: Array,
    *index: Array,
    dtype: np.dtype[Any],
    batch_ndim: int,
    block: tuple[int, ...],
    scales: Any,
    across: tuple[str, ...] = (),
) -> tuple[Array, Array]:
    """With ``index``, of that layer of ``x``. With ``across``, ``x`` is what a device has of a
    tensor, and these are the device axes that its scales reach across.
    """
    x = as_array(source(x, index))
    scale = _own_scale(x, dtype, batch_ndim, block, across)
    # Exact, being a power of two; and no finite value exceeds format.max, so nothing to clip.
    scaled = lax.convert_element_type(x, np.float32) * spread(1 / scale, x.shape, block)
    return lax.convert_element_type(scaled, dtype), lax.convert_element_type(scale, scales)


def own_scale(x: Array, dtype: np.dtype[Any], *, block: tuple[int, ...], scales: Any) -> Array:
    """The scales that ``quantize`` gives ``x``."""
    return lax.convert_element_type(_own_scale(x, dtype, 0, block), scales)


def _own_scale(
    x: Array,
    dtype: np.dtype[Any],
    batch_ndim: int,
    block: tuple[int, ...],
    across: tuple[str, ...] = (),
) -> Array:
    wide = lax.convert_element_type(x, np.float32)
    # Taken in the 16 bits of x where it has 16: else XLA:GPU stores a float32 copy of a weight.
    magnitude = lax.abs(x if x.dtype.itemsize < 4 else wide)
    finite = jnp.where(magnitude < np.inf, magnitude, 0)  # NaN compares false too
    # The maximum of nothing is -inf, which power_of_two_scale answers with 1.
    if block:
        amax = _largest_of_blocks(finite, block)
    else:
        amax = lax.reduce_max(finite, tuple(range(batch_ndim, x.ndim)))
    wide_amax = lax.convert_element_type(amax, np.float32)
    return power_of_two_scale(collectives.pmax(wide_amax, across) if across else wide_amax, dtype)


def _largest_of_blocks(finite: Array, block: tuple[int, ...]) -> Array:
    """The largest of each block, zero being the least; axis by axis, the innermost first."""
    for axis in reversed(range(finite.ndim)):
        n, b = finite.shape[axis], full_block(block, finite.ndim)[axis]
        if b >= n > 0:
            finite = jnp.max(finite, axis, keepdims=True)
        elif 1 < b < n:
            count = -(-n // b)
            if count * b > n:
                widths = [(0, (count * b - n) * (i == axis), 0) for i in range(finite.ndim)]
                finite = lax.pad(finite, np.zeros((), finite.dtype), widths)
            split = (*finite.shape[:axis], count, b, *finite.shape[axis + 1 :])
            finite = lax.reduce_max(finite.reshape(split), (axis + 1,))
    return finite


def _batch(
    primitive: Any,
    given: tuple[Array, ...],
    dims: Dims,
    *,
    dtype: np.dtype[Any],
    batch_ndim: int,
    block: tuple[int, ...],
    scales: Any,
) -> tuple[Results, Dims]:
    """One more leading axis, each of whose elements has scales of its own."""
    (x, *index), (dim, *index_dim) = given, dims
    operands = in_front(x, dim, index, index_dim, batch_size(given, dims))
    params = {"dtype": dtype, "batch_ndim": batch_ndim + 1, "block": block, "scales": scales}
    results = primitive.bind(*operands, **params)
    return results, (0, 0)


def _on_cuda(x: Array, *index: Array, **params: Any) -> Results:
    """One read of ``x`` in Triton, two where one scale is for more than a program holds; XLA's
    code for what no kernel serves.
    """
    what = source(x, index)
    found = quantize_cuda.quantized(what, **params)
    if found is not None:
        return found
    return quantize_p_reference(quantize_cuda.pinned(as_array(what)), **params)


def _of_one_device(split: Split, x: Array, *index: Array, **params: Any) -> Results:
    """What a device has of ``x``, under scales that may reach over what others have."""
    if not split.agreed:
        return _on_cuda(x, *index, **params)
    what = source(x, index)
    found = quantize_cuda.quantized_across(what, split.agreed, **params)
    if found is not None:
        return found
    here = quantize_cuda.pinned(as_array(what))
    return quantize_p_reference(here, across=split.agreed, **params)


quantize_p: Any = kernel_primitive(
    "precir_quantize",
    quantize_p_reference,
    platforms={"cuda": _on_cuda},
    batch=lambda *args, **params: _batch(quantize_p, *args, **params),
    parts=Parts(of_layers(cuts.own_scales, 1), _of_one_device),
)
# XLA's own code on every platform: it fuses with what makes the tensor.
quantize_fused_p: Any = kernel_primitive(
    "precir_quantize_fused",
    quantize_p_reference,
    platforms={},
    batch=lambda *args, **params: _batch(quantize_fused_p, *args, **params),
)


def quantize_given_reference(
    x: Array, scale: Array, *index: Array, dtype: np.dtype[Any]
) -> Results:
    """The axes of ``scale``, of examples under vmap, are the leading ones of ``x``, of which with
    ``index`` that layer is taken.
    """
    x = as_array(source(x, index))
    wide = lax.convert_element_type(x, np.float32)
    scaled, bound = wide * spread(1 / scale, x.shape, ()), np.float32(format_of(dtype).max)
    held = jnp.where(scaled > bound, bound, jnp.where(scaled < -bound, -bound, scaled))
    return (lax.convert_element_type(jnp.where(jnp.isinf(wide), wide, held), dtype),)


def _batch_given(
    given: tuple[Array, ...], dims: Dims, *, dtype: np.dtype[Any]
) -> tuple[Results, Dims]:
    (x, scale, *index), (x_dim, scale_dim, *index_dim) = given, dims
    size = batch_size(given, dims)
    x, *index = in_front(x, x_dim, index, index_dim, size)
    if scale_dim is not None:
        scale = jnp.moveaxis(scale, scale_dim, 0)
    elif scale.ndim:
        scale = jnp.broadcast_to(scale, (size, *scale.shape))
    return quantize_given_p.bind(x, scale, *index, dtype=dtype), (0,)


def _given_on_cuda(x: Array, scale: Array, *index: Array, dtype: np.dtype[Any]) -> Results:
    data = quantize_cuda.quantized_given(source(x, index), scale, dtype=dtype)
    return (data,) if data is not None else quantize_given_reference(x, scale, *index, dtype=dtype)


quantize_given_p = kernel_primitive(
    "precir_quantize_given",
    quantize_given_reference,
    platforms={"cuda": _given_on_cuda},
    batch=_batch_given,
    parts=Parts(
        of_layers(cuts.given_scale, 2),
        lambda _, *operands, **params: _given_on_cuda(*operands, **params),
    ),
)


def checked_source(x: ArrayLike | Layer) -> Source:
    if isinstance(x, Layer):
        checked_array(x.stack)
        return x
    return checked_array(x)


def checked_array(x: ArrayLike) -> Array:
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    if x.dtype.name not in _WIDE:
        raise QuantizeError(f"quantize takes a wide floating-point tensor, not {x.dtype}")
    return x


def checked_format(format: DTypeLike | Format) -> np.dtype[Any]:
    format = format_of(format)
    if format not in _NARROW:
        known = ", ".join(f.name for f in _NARROW)
        raise QuantizeError(f"quantize makes {known}, not {format.name}")
    return format.dtype


def checked_block(block: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    sizes = tuple(int(b) for b in block)
    if len(sizes) > ndim or sizes != tuple(block) or any(b < 1 for b in sizes):
        raise QuantizeError(
            f"a block is a size for each of the last axes of a tensor of {ndim}, not {block!r}"
        )
    return sizes


def checked_scale_format(format: DTypeLike | Format) -> np.dtype[Any]:
    format = format_of(format)
    if format not in (F32, E8M0FNU):
        raise QuantizeError(f"scales are {F32.name} or {E8M0FNU.name}, not {format.name}")
    return format.dtype


def checked_scale(scale: ArrayLike) -> Array:
    if isinstance(scale, (int, float)) and not (
        is_power_of_two(scale) and 2.0**-126 <= scale <= 2.0**126
    ):
        raise QuantizeError(f"a scale is a power of two from 2**-126 to 2**126, not {scale!r}")
    given = jnp.asarray(scale, np.float32)
    if given.ndim:
        raise QuantizeError(
            f"a given scale is one float32 scalar for the whole tensor, not of shape {given.shape}",
            fix="jax.vmap quantize over examples that have scales of their own",
        )
    return given
