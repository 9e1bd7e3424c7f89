"""Power-of-two scales from the bits of the largest magnitude."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from precir.formats import Format, format_of

_INF: Final = 0x7F800000  # the bits of float32's infinity
_EXPONENT: Final = -1 << 23  # the bits of sign and exponent: what fell below zero stays there
_LARGEST: Final = 253 << 23  # the bits of 2^126


def power_of_two_scale(amax: Array, format: DTypeLike | Format) -> Array:
    """2^ceil(log2(amax / format.max)) for each float32 ``amax``, from its bits; float32.

    1 for an amax of zero, subnormal, infinite or NaN; from 2^-126 to 2^126. Golden values for
    float8_e4m3fn: 1 gives 2^-8, 10 2^-5, 32 2^-3, 448 1, 449 2, 10000 2^5. For bfloat16 the
    largest is taken to be 1. `precir.formats.power_of_two` is the same of one Python number.
    """
    bits = lax.bitcast_convert_type(amax, np.int32)
    normal = (bits >= 1 << 23) & (bits < _INF)
    ceiling = (bits + power_of_two_carry(format)) & _EXPONENT
    ceiling = lax.clamp(np.int32(1 << 23), ceiling, np.int32(_LARGEST))
    one = lax.full_like(ceiling, 127 << 23)
    return lax.bitcast_convert_type(lax.select(normal, ceiling, one), np.float32)


def power_of_two_carry(format: DTypeLike | Format) -> int:
    """What, added to the bits of an amax, leaves those of 2^ceil(log2(amax / format.max)) in the
    sign and the exponent.
    """
    # largest = 2^exponent * (1 + fraction / 2^23). The sum carries into the exponent where amax
    # has the larger fraction, which is the ceiling.
    mantissa, exponent = math.frexp(format_of(format).largest_scaled)
    mantissa, exponent = 2 * mantissa, exponent - 1
    fraction = int((mantissa - 1) * 2**23)
    return 2**23 - 1 - fraction - (exponent << 23)
