"""FP8 rounded up or down at random, by how near either is."""

import triton
import triton.language as tl

from precir.kernels.triton.dequantize import load_scales
from precir.kernels.triton.narrow import narrow
from precir.kernels.triton.tiles import load_tile, store_tile, tile_of_program


@triton.jit
def round_stochastic(
    x,
    scales,
    random,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DROPPED: tl.constexpr,
    LARGEST: tl.constexpr,
    NORMAL: tl.constexpr,
    LEAST: tl.constexpr,
):
    """Of ``x`` [matrices, M, N], its ``scales`` (as `dequantize` has them) and ``random``, uint16
    of the shape of ``x``, write ``out``: see `precir.kernels.stochastic`. DROPPED is how many bits
    of a float32 the format has no room for, NORMAL and LEAST its least normal and subnormal.
    """
    matrix, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left, start = down * TALL, across * WIDE, matrix * M * N
    value = load_tile(x + start, top, left, M, N, TALL, WIDE)
    scale = load_scales(scales, matrix, top, left, M, N, TALL, WIDE, HEIGHT, WIDTH)
    chance = load_tile(random + start, top, left, M, N, TALL, WIDE)

    finite = tl.abs(value) < float("inf")
    flushed = tl.where(tl.abs(value) < 2.0**-126, 0.0, value)
    scaled = tl.abs(flushed * tl.div_rn(1.0, scale))
    scaled = tl.where(scaled > LARGEST, LARGEST, scaled)
    # Between normals of the format, the bits that it drops and as many random ones carry.
    carried = (2 * chance.to(tl.int32) + 1) << (DROPPED - 17)
    bits = (scaled.to(tl.int32, bitcast=True) + carried) & -(1 << DROPPED)
    # Below them it counts in its least.
    steps = (scaled * (1.0 / LEAST) + (chance + 0.5) * 2.0**-16).to(tl.int32)
    fine = bits.to(tl.float32, bitcast=True)
    rounded = tl.where(scaled < NORMAL, steps.to(tl.float32) * LEAST, fine)
    # The sign by its bit: to older Triton -x is 0 - x, which makes 0 of 0.
    sign = value.to(tl.int32, bitcast=True) & -0x80000000
    rounded = (rounded.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    data = narrow(tl.where(finite, rounded, value), 1.0, out.dtype.element_ty)
    store_tile(out + start, top, left, data, M, N, TALL, WIDE)
