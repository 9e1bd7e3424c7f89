"""Scaling and rounding to FP8, as every kernel that writes it does."""

import triton
import triton.language as tl


@triton.jit
def finite_bits(x):
    """The bits (int32) of the magnitude of each float32, 0 for NaN, infinities and subnormals.

    Magnitudes are ordered as these integers are, and their maximum has no NaN to spread.
    """
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where((bits < 0x7F800000) & (bits >= 0x00800000), bits, 0)


@triton.jit
def scale_bits(amax, CARRY: tl.constexpr):
    """The bits of `precir.kernels.quantize.power_of_two_scale` of an amax given as bits: int32.

    ``CARRY`` is what makes a ceiling of it and divides by the format's largest: see there.
    """
    ceiling = (amax + CARRY) & -0x00800000
    ceiling = tl.where(ceiling < 0x00800000, 0x00800000, ceiling)
    ceiling = tl.where(ceiling > 0x7E800000, 0x7E800000, ceiling)
    return tl.where(amax >= 0x00800000, ceiling, 0x3F800000)


@triton.jit
def inverse(scale):
    """1 / scale, float32, of the bits of a power of two from 2^-126 to 2^126."""
    return (0x7F000000 - scale).to(tl.float32, bitcast=True)


@triton.jit
def narrow(x, inverse_scale, DTYPE: tl.constexpr, LARGEST: tl.constexpr, INF: tl.constexpr):
    """FP8 of x * inverse_scale (float32), saturated, to nearest even.

    ``DTYPE`` is the FP8 format, ``LARGEST`` its largest number, ``INF`` the bits of what an
    infinity becomes, where Hopper's conversion gives the largest. Subnormals of float32 are
    zero, as they are on a CPU. The bound is kept by ``tl.where``: NaN-propagating minima before
    a transposed FP8 store were once miscompiled (triton issue 11111).
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    scaled = tl.where(magnitude < 0x00800000, x * 0.0, x * inverse_scale)
    scaled = tl.where(scaled > LARGEST, LARGEST, scaled)
    scaled = tl.where(scaled < -LARGEST, -LARGEST, scaled)
    data = scaled.to(DTYPE).to(tl.uint8, bitcast=True)
    sign = ((bits >> 24) & 0x80).to(tl.uint8)
    data = tl.where(magnitude == 0x7F800000, sign | INF, data)
    data = tl.where(magnitude > 0x7F800000, sign | 0x7F, data)
    return data.to(DTYPE, bitcast=True)
