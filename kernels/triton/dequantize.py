"""FP8 data times its scales, whatever these reach over."""

import triton
import triton.language as tl

from precir.kernels.triton.tiles import load_tile, store_tile, tile_of_program


@triton.jit
def load_scales(
    scales,
    matrix,
    top,
    left,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """For a tile of an M x N matrix the scale of each element, float32, of ``scales``
    [matrices, ceil(M / HEIGHT), ceil(N / WIDTH)]: float32, or E8M0 as uint8.
    """
    down: tl.constexpr = (M + HEIGHT - 1) // HEIGHT
    across: tl.constexpr = (N + WIDTH - 1) // WIDTH
    row = top + tl.arange(0, TALL)[:, None]
    column = left + tl.arange(0, WIDE)[None, :]
    at = scales + (matrix * down + row // HEIGHT) * across + column // WIDTH
    scale = tl.load(at, mask=(row < M) & (column < N), other=1)
    if at.dtype.element_ty == tl.uint8:
        bits = tl.where(scale == 255, 0x7FC00000, scale.to(tl.int32) << 23)
        return bits.to(tl.float32, bitcast=True)
    else:
        return scale


@triton.jit
def dequantize(
    x,
    scales,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of ``x`` [matrices, M, N] write ``out``: each element times the scale of its HEIGHT x WIDTH.

    What is subnormal in float32 is zero, as it is on a CPU. A program for TALL x WIDE elements.
    """
    matrix, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left, start = down * TALL, across * WIDE, matrix * M * N
    value = load_tile(x + start, top, left, M, N, TALL, WIDE)
    value *= load_scales(scales, matrix, top, left, M, N, TALL, WIDE, HEIGHT, WIDTH)
    value = tl.where(tl.abs(value) < 2.0**-126, value * 0.0, value)
    store_tile(out + start, top, left, value.to(out.dtype.element_ty), M, N, TALL, WIDE)
