"""Arithmetic on power-of-two scales, which are float32 scalars, and on data under them."""

from __future__ import annotations

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.scaled import ScaledArray

SMALLEST_SCALE = 2.0**-126
LARGEST_SCALE = 2.0**126
_EXPONENT = -1 << 23  # the bits of sign and exponent of a float32


def bounded(scale: Array) -> Array:
    """A product of scales within [2^-126, 2^126], where it and its reciprocal are normal."""
    return lax.clamp(np.float32(SMALLEST_SCALE), scale, np.float32(LARGEST_SCALE))


def rescale(x: ArrayLike, factor: ArrayLike, dtype: DTypeLike) -> Array:
    """``x * factor`` as ``dtype``, multiplied in float32 or wider: 16-bit data may be far from one
    and so may the factor, a power of two, where their product is not.
    """
    x = jnp.asarray(x)
    wide = np.float64 if x.dtype == np.float64 else np.float32  # 8 bits promote to nothing
    return (x.astype(wide) * jnp.asarray(factor, wide)).astype(dtype)


def occupied_scale(x: ScaledArray) -> Array:
    """The scale of ``x``, or 2^-126 if all its elements are zero, whose scale of one says nothing
    of how large it is: what it is added to keeps its own.
    """
    some = jnp.any((lax.abs(x.data) if x.data.dtype.itemsize > 2 else _magnitude(x.data)) != 0)
    return jnp.where(some, x.scale, np.float32(SMALLEST_SCALE))


def _magnitude(x: Array) -> Array:
    """The bits of 16-bit or 8-bit numbers without their signs: cheaper to look at on a CPU."""
    bits = lax.bitcast_convert_type(x, np.int16 if x.dtype.itemsize == 2 else np.int8)
    return bits << np.array(1, bits.dtype)


def scale_root(scale: Array, n: int) -> Array:
    """The power of two next below the ``n``-th root of a float32 power of two."""
    exponent = (lax.bitcast_convert_type(scale, np.int32) >> 23) - 127
    rooted = jnp.floor_divide(exponent, n)
    return lax.bitcast_convert_type((rooted + 127) << 23, np.float32)


def rms_scale(x: Array) -> Array:
    """The power of two nearest to the root mean square of ``x``, as a float32 scalar.

    1 where that is zero, infinite or NaN, for none of which there is a good scale.
    """
    wide = lax.convert_element_type(x, np.float32)
    rms = jnp.sqrt(jnp.sum(wide * wide) / max(x.size, 1))
    bits = lax.bitcast_convert_type(rms * np.float32(2**0.5), np.int32) & _EXPONENT
    usual = (rms >= SMALLEST_SCALE) & (rms < LARGEST_SCALE)
    return jnp.where(usual, lax.bitcast_convert_type(bits, np.float32), np.float32(1))
