"""FP8 under a scale for each rectangle of a matrix: 128x128, and 128x1 down the columns."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits, inverse, narrow, scale_bits, store_scale
from precir.kernels.triton.runs import of_layer


@triton.jit
def quantize_tiles(
    x,
    layer,
    out,
    scales,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Of ``x`` [matrices, M, N] write ``out`` and ``scales``, one for each HEIGHT x WIDTH.

    A program for TALL x WIDE elements, powers of two: one rectangle, or with COLUMNS (a WIDTH of
    1) WIDE of them side by side. The scales are float32, or E8M0 as uint8.
    """
    x = of_layer(x, layer, LAYER)
    step: tl.constexpr = WIDE if COLUMNS else WIDTH
    down: tl.constexpr = (M + HEIGHT - 1) // HEIGHT
    across: tl.constexpr = (N + step - 1) // step
    program = tl.program_id(0).to(tl.int64)
    matrix, top, left = program // across // down, program // across % down, program % across
    row, column = tl.arange(0, TALL)[:, None], tl.arange(0, WIDE)[None, :]
    inside = (row < M - top * HEIGHT) & (column < N - left * step)
    if TALL != HEIGHT:
        inside &= row < HEIGHT
    if step != WIDE:
        inside &= column < step
    start = matrix * M * N + top * HEIGHT * N + left * step
    at = row * N + column
    value = tl.load(x + start + at, mask=inside, other=0).to(tl.float32)
    amax = tl.max(finite_bits(value), axis=0, keep_dims=True)
    if not COLUMNS:
        amax = tl.max(amax, axis=1, keep_dims=True)
    scale = scale_bits(amax, CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    tl.store(out + start + at, data, mask=inside)
    if COLUMNS:
        store_scale(
            scales + (matrix * down + top) * N + left * step + column,
            scale,
            column < N - left * step,
        )
    else:
        one = tl.zeros((1, 1), tl.int32)
        store_scale(scales + program + one, scale, one == 0)
