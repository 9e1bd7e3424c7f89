"""Quantise a tensor to 8 bits under one power-of-two scale, taken from its largest element.

Current scaling: the scale comes from the tensor itself, so there is no state to go stale. A power
of two makes scaling exact, so that rounding to the narrow format is the only error.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.errors import PrecirError
from precir.formats import BF16, E4M3, E5M2, F16, Format, format_of
from precir.kernels.primitive import Dims, Results, kernel_primitive
from precir.scaled import ScaledArray

_WIDE = frozenset({"float16", "bfloat16", "float32", "float64"})
_INF = 0x7F800000  # the bits of float32's infinity
_EXPONENT = -1 << 23  # the bits of sign and exponent, so that what fell below zero stays there


class QuantizeError(PrecirError, TypeError):
    """A tensor or a format that ``quantize`` does not take."""


def quantize(
    x: ArrayLike, format: DTypeLike | Format, *, scaling: str = "current",
    scale: ArrayLike | None = None,
) -> ScaledArray:  # fmt: skip
    """``x`` (float16, bfloat16, float32 or float64, any shape) in E4M3, E5M2, float16 or bfloat16.

    The scale is 2^ceil(log2(amax / format.max)), with amax the largest finite magnitude in
    float32: the smallest power of two under which nothing finite overflows. It is 1 where amax
    is zero, or subnormal, and never under 2^-126: neither the scale nor its reciprocal is ever
    zero, subnormal, infinite or NaN. At that bound the smallest normal float32 still becomes 1.0
    in the data, so the bound loses nothing.

    The data is x / scale, rounded to nearest, ties to even. NaN stays NaN, and an infinity stays
    one in float8_e5m2 and becomes NaN in float8_e4m3fn, which has none: both are seen at once in
    whatever is computed next, and neither touches the scale. A float64 is rounded to float32
    first.

    bfloat16 has float32's range, so its scale is 1.

    With a ``scale`` given (a float32 scalar, a power of two), what is finite and past the
    format's range saturates at its largest number.

    With ``scaling="unit"`` the scale is always 1 and what leaves the format's range saturates:
    the control that shows what scaling is for.

    Under ``jax.vmap`` each example has its own scale. Not differentiable. Raises
    ``QuantizeError`` (a ``TypeError``) on other dtypes, formats and scalings.
    """
    if scaling == "unit":
        return _unit(_array(x), format_of(_checked(format)))
    if scaling != "current":
        raise QuantizeError(f"scaling is 'current' or 'unit', not {scaling!r}")
    dtype = _checked(format)
    x = _array(x)
    if dtype == jnp.bfloat16:
        return ScaledArray(lax.convert_element_type(x, dtype), jnp.ones((), np.float32))
    if scale is not None:
        return _given(x, format_of(format), jnp.asarray(scale, np.float32))
    data, scale = quantize_p.bind(x, dtype=dtype, batch_ndim=0)
    return ScaledArray(data, scale)


def quantize_reference(x: ArrayLike, format: DTypeLike | Format) -> ScaledArray:
    """What ``quantize`` returns, in plain JAX."""
    return ScaledArray(*_reference(_array(x), dtype=_checked(format), batch_ndim=0))


def _given(x: Array, format: Format, scale: Array) -> ScaledArray:
    wide = lax.convert_element_type(x, np.float32)
    scaled, bound = wide * (1 / scale), np.float32(format.max)
    clipped = jnp.where(scaled > bound, bound, jnp.where(scaled < -bound, -bound, scaled))
    kept = jnp.where(lax.abs(wide) < np.inf, clipped, wide)  # inf and NaN are what they are
    return ScaledArray(lax.convert_element_type(kept, format.dtype), scale)


def _unit(x: Array, format: Format) -> ScaledArray:
    wide = lax.convert_element_type(x, np.float32)
    bound = np.float32(format.max)
    clipped = jnp.where(wide > bound, bound, jnp.where(wide < -bound, -bound, wide))
    return ScaledArray(lax.convert_element_type(clipped, format.dtype), jnp.ones((), np.float32))


def power_of_two_scale(amax: Array, format: DTypeLike | Format) -> Array:
    """2^ceil(log2(amax / format.max)) for each float32 ``amax``, from its bits; float32.

    1 for an amax of zero, subnormal, infinite or NaN; at least 2^-126. Golden values for
    float8_e4m3fn: 1 gives 2^-8, 10 2^-5, 448 1, 449 2, 10000 2^5.
    """
    # max = 2^exponent * (1 + fraction / 2^23). The sum carries into the exponent where amax has
    # the larger fraction, which is the ceiling.
    mantissa, exponent = math.frexp(format_of(format).max)
    mantissa, exponent = 2 * mantissa, exponent - 1
    fraction = int((mantissa - 1) * 2**23)
    bits = lax.bitcast_convert_type(amax, np.int32)
    ceiling = (bits + (2**23 - 1 - fraction - (exponent << 23))) & _EXPONENT
    ceiling = lax.max(ceiling, lax.full_like(ceiling, 1 << 23))  # 2^-126
    normal = (bits >= 1 << 23) & (bits < _INF)
    one = lax.full_like(ceiling, 127 << 23)
    return lax.bitcast_convert_type(lax.select(normal, ceiling, one), np.float32)


def _reference(x: Array, *, dtype: np.dtype[Any], batch_ndim: int) -> tuple[Array, Array]:
    scaled, scale = _scaled(x, dtype, batch_ndim)
    return lax.convert_element_type(scaled, dtype), scale


def _scaled(x: Array, dtype: np.dtype[Any], batch_ndim: int) -> tuple[Array, Array]:
    """The tensor over its scale in float32, and the scale of each example."""
    wide = lax.convert_element_type(x, np.float32)
    # Taken in the 16 bits of x where it has 16: else XLA:GPU stores a float32 copy of a weight.
    magnitude = lax.abs(x if x.dtype.itemsize < 4 else wide)
    finite = jnp.where(magnitude < np.inf, magnitude, 0)  # NaN compares false too
    # The maximum of nothing is -inf, which power_of_two_scale answers with 1.
    amax = lax.reduce_max(finite, tuple(range(batch_ndim, x.ndim)))
    scale = power_of_two_scale(lax.convert_element_type(amax, np.float32), dtype)
    # Exact, being a power of two; and no finite value exceeds format.max, so nothing to clip.
    inverse = lax.broadcast_in_dim(1 / scale, x.shape, tuple(range(batch_ndim)))
    return wide * inverse, scale


def _batch(
    operands: tuple[Array], dims: Dims, *, dtype: np.dtype[Any], batch_ndim: int
) -> tuple[Results, Dims]:
    (x,), (dim,) = operands, dims
    assert dim is not None
    results = quantize_p.bind(jnp.moveaxis(x, dim, 0), dtype=dtype, batch_ndim=batch_ndim + 1)
    return results, (0, 0)


quantize_p = kernel_primitive("precir_quantize", _reference, platforms={}, batch=_batch)


def _array(x: ArrayLike) -> Array:
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    if x.dtype.name not in _WIDE:
        raise QuantizeError(f"quantize takes a wide floating-point tensor, not {x.dtype}")
    return x


def _checked(format: DTypeLike | Format) -> np.dtype[Any]:
    format = format_of(format)
    if format not in (E4M3, E5M2, F16, BF16):
        raise QuantizeError(
            f"quantize makes {E4M3.name}, {E5M2.name}, float16 or bfloat16, not {format.name}"
        )
    return format.dtype
