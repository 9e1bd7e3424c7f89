"""Arithmetic on power-of-two scales, which are float32 scalars, and on data under them."""

from __future__ import annotations

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

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


def amax_scale(x: Array) -> Array:
    """The power of two under which the elements of ``x`` are typically near one; a float32 scalar.

    It is 4 to 8 times below the largest magnitude, which is what a normal distribution has among
    64 to 10^13 elements; fewer have a smaller largest one: 2 to 4 times from 4 on, below that 1 to
    2. It is 2^-126 where all is zero, so that it has no say in the scale of what it is added to,
    and 1 where something is infinite or NaN. Looks at bits, which is cheap on a CPU too.
    """
    kind = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize]
    bits = lax.bitcast_convert_type(lax.abs(x), kind)
    largest = lax.bitcast_convert_type(jnp.max(bits, initial=0), x.dtype).astype(np.float32)
    power = lax.bitcast_convert_type(
        lax.bitcast_convert_type(largest, np.int32) & _EXPONENT, np.float32
    )
    near = power / (4 if x.size >= 64 else 2 if x.size >= 4 else 1)
    found = lax.clamp(np.float32(SMALLEST_SCALE), near, np.float32(LARGEST_SCALE))
    return jnp.where(lax.is_finite(largest), found, np.float32(1))


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
