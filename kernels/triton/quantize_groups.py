"""FP8 under a scale for each group of consecutive elements of a row: 1x128, MX's 1x32, rows."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits, inverse, narrow, scale_bits, store_scale
from precir.kernels.triton.runs import of_layer


@triton.jit
def quantize_groups(
    x,
    layer,
    out,
    scales,
    LAYER: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Of ``x`` [ROWS, N] write ``out`` and ``scales`` [ROWS, ceil(N / SIZE)].

    A program for TILE groups; WIDTH is a power of two, SIZE or the next. The scales are float32,
    or E8M0 as uint8.
    """
    x = of_layer(x, layer, LAYER)
    per_row: tl.constexpr = (N + SIZE - 1) // SIZE
    first = tl.program_id(0).to(tl.int64) * TILE
    group, column = tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    if N % SIZE == 0:  # the groups of all rows follow one another
        x += first * SIZE
        out += first * SIZE
        at = group * SIZE + column
        inside = (group < ROWS * per_row - first) & (column < SIZE)
    else:
        column += (first + group) % per_row * SIZE
        at = (first + group) // per_row * N + column
        inside = (group < ROWS * per_row - first) & (column < N)
        inside &= tl.arange(0, WIDTH)[None, :] < SIZE
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    scale = scale_bits(tl.max(finite_bits(value), axis=1, keep_dims=True), CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    tl.store(out + at, data, mask=inside)
    store_scale(scales + first + group, scale, group < ROWS * per_row - first)
