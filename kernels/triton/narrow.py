"""Scaling and rounding to FP8, as every kernel that writes it does."""

import triton
import triton.language as tl


@triton.jit
def usual(bits):
    """Whether float32 numbers, given as bits (int32), are normal: no zero, infinity or NaN.

    One comparison: below the least normal, the difference is a large unsigned number.
    """
    above = ((bits & 0x7FFFFFFF) - 0x00800000).to(tl.uint32, bitcast=True)
    return above < 0x7F000000


@triton.jit
def finite_bits(x):
    """The bits (int32) of the magnitude of each float32, 0 for NaN, infinities and subnormals.

    Magnitudes are ordered as these integers are, and their maximum has no NaN to spread.
    """
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(usual(bits), bits & 0x7FFFFFFF, 0)


@triton.jit
def scale_bits(amax, CARRY: tl.constexpr):
    """The bits of `precir.kernels.powers.power_of_two_scale` of an amax given as bits: int32.

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
def narrow(x, inverse_scale, DTYPE: tl.constexpr):
    """FP8 of x * inverse_scale (float32), saturated, to nearest even.

    Hopper's conversion saturates (``cvt.rn.satfinite``), infinities too, and keeps NaN: nothing
    needs a minimum or maximum, which before a transposed FP8 store were once miscompiled (triton
    issue 11111). Times zero, an infinity is NaN, and a subnormal of float32 is zero, which is how
    a CPU reads it.
    """
    bits = x.to(tl.int32, bitcast=True)
    data = (x * tl.where(usual(bits), inverse_scale, 0.0)).to(DTYPE)
    if tl.float8e5 == DTYPE:  # which has infinities
        inf = (((bits >> 24) & 0x80) | 0x7C).to(tl.uint8).to(DTYPE, bitcast=True)
        data = tl.where((bits & 0x7FFFFFFF) == 0x7F800000, inf, data)
    return data


@triton.jit
def store_scale(at, scale, inside):
    """Write scales, given as bits, as float32 or, where the pointer is to uint8, as E8M0."""
    if at.dtype.element_ty == tl.uint8:
        tl.store(at, (scale >> 23).to(tl.uint8), mask=inside)
    else:
        tl.store(at, scale.to(tl.float32, bitcast=True), mask=inside)


@triton.jit
def flushed(x):
    """Float32 with subnormals as zeros of their sign, which is how a CPU reads and writes it."""
    return tl.where(tl.abs(x) < 2.0**-126, x * 0.0, x)


@triton.jit
def narrow_any(x, inverse_scale, DTYPE: tl.constexpr):
    """``narrow`` to FP8 or float16, whose conversion does not saturate; float32 as it is."""
    if tl.float32 == DTYPE:
        return flushed(x)
    elif tl.float16 == DTYPE:
        scaled = flushed(x) * inverse_scale
        held = tl.where(scaled > 65504.0, 65504.0, tl.where(scaled < -65504.0, -65504.0, scaled))
        return tl.where(tl.abs(x) == float("inf"), x, held).to(DTYPE)
    else:
        return narrow(x, inverse_scale, DTYPE)
