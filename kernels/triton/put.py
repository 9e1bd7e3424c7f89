"""Writing a tile of computed float32 as FP8: under every scale that one read can have, and also
with its rows for columns, and as it is.
"""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import (
    finite_bits,
    flushed,
    inverse,
    narrow,
    scale_bits,
    store_scale,
)


@triton.jit
def load_part(
    x,
    top,
    left,
    M: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """TALL x WIDE elements of the M x N at ``x``, whose rows are STRIDE apart: float32, 0 past the
    ends, subnormals as zero.
    """
    row, column = tl.arange(0, TALL)[:, None], tl.arange(0, WIDE)[None, :]
    at = x + top * STRIDE + left + (row * STRIDE + column)
    inside = (row < M - top) & (column < N - left)
    return flushed(tl.load(at, mask=inside, other=0.0).to(tl.float32))


@triton.jit
def put(
    value,
    given,
    out,
    scales,
    flipped,
    flipped_scales,
    plain,
    part,
    top,
    left,
    M: tl.constexpr,
    N: tl.constexpr,
    TOTAL: tl.constexpr,
    FIRST: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    DATA: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    PLAIN: tl.constexpr,
    AMAX: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Write a tile of M x N, which are columns FIRST to FIRST + N of [M, TOTAL]; 0 past the ends.

    With DATA as ``out`` [M, TOTAL] in FP8, under ``given`` (float32) where SIZE is 0, else under
    ``scales`` [M, ceil(TOTAL / SIZE)] of SIZE elements of a row, which are written. With FLIP also
    as ``flipped`` [TOTAL, M], with ``flipped_scales`` of TALL elements of a column; SIZE is then
    WIDE. With PLAIN as ``plain`` [M, TOTAL], in its dtype. With AMAX the largest finite magnitude,
    as bits, at ``part``. Pointers are those of the example.
    """
    row, column = tl.arange(0, TALL)[:, None], tl.arange(0, WIDE)[None, :]
    inside = (row < M - top) & (column < N - left)
    bits = finite_bits(value)
    first = top * 0 + (FIRST + left)  # in 64 bits, as rows are counted
    start = top * TOTAL + first
    at = row * TOTAL + column
    flipped += first * M + top
    turned = tl.arange(0, WIDE)[:, None] * M + tl.arange(0, TALL)[None, :]
    within = (tl.arange(0, WIDE)[:, None] < N - left) & (tl.arange(0, TALL)[None, :] < M - top)
    if DATA:
        dtype: tl.constexpr = out.dtype.element_ty
        if SIZE == 0:
            data = narrow(value, tl.div_rn(1.0, given), dtype)
            if FLIP:
                tl.store(flipped + turned, tl.trans(data), mask=within)
        else:
            across: tl.constexpr = (TOTAL + SIZE - 1) // SIZE
            if SIZE >= WIDE:  # one group, of all that is here
                scale = scale_bits(tl.max(bits, axis=1, keep_dims=True), CARRY)
                data = narrow(value, inverse(scale), dtype)
                group = (top + row) * across + first // SIZE
                store_scale(scales + group, scale, row < M - top)
            else:
                many: tl.constexpr = WIDE // SIZE
                grouped = tl.reshape(bits, (TALL, many, SIZE))
                scale = scale_bits(tl.max(grouped, axis=2, keep_dims=True), CARRY)
                data = narrow(tl.reshape(value, (TALL, many, SIZE)), inverse(scale), dtype)
                data = tl.reshape(data, (TALL, WIDE))
                r, g = tl.arange(0, TALL)[:, None, None], tl.arange(0, many)[None, :, None]
                group = (top + r) * across + first // SIZE + g
                store_scale(scales + group, scale, (r < M - top) & (g * SIZE < N - left))
            if FLIP:
                down: tl.constexpr = (M + TALL - 1) // TALL
                scale = scale_bits(tl.max(bits, axis=0, keep_dims=True), CARRY)
                other = narrow(value, inverse(scale), dtype)
                tl.store(flipped + turned, tl.trans(other), mask=within)
                group = (first + column) * down + top // TALL
                store_scale(flipped_scales + group, scale, column < N - left)
        tl.store(out + start + at, data, mask=inside)
    if PLAIN:
        tl.store(plain + start + at, flushed(value).to(plain.dtype.element_ty), mask=inside)
    if AMAX:
        tl.store(part, tl.max(bits))
