"""Reading and writing a matrix in tiles, also with its rows for columns."""

import triton
import triton.language as tl


@triton.jit
def tile_of_program(M: tl.constexpr, N: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Which matrix, and which tile of it down and across, a program has: int64, row by row."""
    down: tl.constexpr = (M + TALL - 1) // TALL
    across: tl.constexpr = (N + WIDE - 1) // WIDE
    program = tl.program_id(0).to(tl.int64)
    return program // across // down, program // across % down, program % across


@triton.jit
def load_tile(
    x, top, left, M: tl.constexpr, N: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr
):
    """TALL x WIDE elements of the M x N at ``x`` as float32: 0 past the ends."""
    row, column = tl.arange(0, TALL)[:, None], tl.arange(0, WIDE)[None, :]
    at = x + top * N + left + (row * N + column)
    inside = (row < M - top) & (column < N - left)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(
    out, top, left, data, M: tl.constexpr, N: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr
):
    """The inverse of ``load_tile``: nothing past the ends."""
    row, column = tl.arange(0, TALL)[:, None], tl.arange(0, WIDE)[None, :]
    at = out + top * N + left + (row * N + column)
    tl.store(at, data, mask=(row < M - top) & (column < N - left))
