"""One step of AdamW on weights and moments in storage of 8, 16 or 32 bits.

Weight, first moment, second moment and gradient are [examples, M, N], and each comes in one of
three ways: PLAIN float32 or bfloat16, under ONE scale for each example, or in GROUPS of WIDE
elements of a row with a scale each. A program has a tile of TALL x WIDE of all four.
"""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import (
    finite_bits,
    flushed,
    inverse,
    narrow_any,
    scale_bits,
    store_scale,
)
from precir.kernels.triton.tiles import load_tile, store_tile, tile_of_program

PLAIN = tl.constexpr(0)
ONE = tl.constexpr(1)
GROUPS = tl.constexpr(2)


@triton.jit
def adam_amax(
    weight,
    weight_scale,
    first,
    first_scale,
    second,
    second_scale,
    gradient,
    gradient_scale,
    hyper,
    parts,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    HYPERS: tl.constexpr,
    WEIGHT: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Write the largest finite magnitudes of the new values, as bits, in ``parts``
    [examples, tiles, 3]: 0 for what is not under ONE scale, which is not read where nothing that is
    wants it.
    """
    example, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left = down * TALL, across * WIDE
    hyper += (example if HYPERS > 1 else 0) * 10
    g = _load(gradient, gradient_scale, example, top, left, M, N, TALL, WIDE, GRADIENT)
    g = flushed(g * tl.load(hyper + 9))
    w, m, v = g, g, g
    if FIRST == ONE or WEIGHT == ONE:
        m = _load(first, first_scale, example, top, left, M, N, TALL, WIDE, FIRST)
        m = _new_first(m, g, hyper)
    if SECOND == ONE or WEIGHT == ONE:
        v = _load(second, second_scale, example, top, left, M, N, TALL, WIDE, SECOND)
        v = _new_second(v, g, hyper)
    if WEIGHT == ONE:
        w = _load(weight, weight_scale, example, top, left, M, N, TALL, WIDE, WEIGHT)
        w = _new_weight(w, m, v, hyper)
    _store_largest(parts, w, top, left, M, N, TALL, WIDE, WEIGHT)
    _store_largest(parts + 1, m, top, left, M, N, TALL, WIDE, FIRST)
    _store_largest(parts + 2, v, top, left, M, N, TALL, WIDE, SECOND)


@triton.jit
def adam_write(
    weight,
    weight_scale,
    first,
    first_scale,
    second,
    second_scale,
    gradient,
    gradient_scale,
    hyper,
    scales,
    new_weight,
    new_weight_scale,
    new_first,
    new_first_scale,
    new_second,
    new_second_scale,
    parts,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    HYPERS: tl.constexpr,
    WEIGHT: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    GRADIENT: tl.constexpr,
    WEIGHT_CARRY: tl.constexpr,
    FIRST_CARRY: tl.constexpr,
    SECOND_CARRY: tl.constexpr,
    AMAX: tl.constexpr,
):
    """Write the new values: under ``scales`` [examples, 3], float32, where they have ONE, and under
    those of GROUPS, which are written too. With AMAX ``parts`` as `adam_amax` writes them.
    """
    example, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left = down * TALL, across * WIDE
    hyper += (example if HYPERS > 1 else 0) * 10
    g = _load(gradient, gradient_scale, example, top, left, M, N, TALL, WIDE, GRADIENT)
    g = flushed(g * tl.load(hyper + 9))
    m = _load(first, first_scale, example, top, left, M, N, TALL, WIDE, FIRST)
    m = _new_first(m, g, hyper)
    v = _load(second, second_scale, example, top, left, M, N, TALL, WIDE, SECOND)
    v = _new_second(v, g, hyper)
    w = _load(weight, weight_scale, example, top, left, M, N, TALL, WIDE, WEIGHT)
    w = _new_weight(w, m, v, hyper)

    scales += example * 3
    _store(
        new_weight, new_weight_scale, w, scales, example, top, left,
        M, N, TALL, WIDE, WEIGHT, WEIGHT_CARRY,
    )  # fmt: skip
    _store(
        new_first, new_first_scale, m, scales + 1, example, top, left,
        M, N, TALL, WIDE, FIRST, FIRST_CARRY,
    )  # fmt: skip
    _store(
        new_second, new_second_scale, v, scales + 2, example, top, left,
        M, N, TALL, WIDE, SECOND, SECOND_CARRY,
    )  # fmt: skip
    if AMAX:
        _store_largest(parts, w, top, left, M, N, TALL, WIDE, WEIGHT)
        _store_largest(parts + 1, m, top, left, M, N, TALL, WIDE, FIRST)
        _store_largest(parts + 2, v, top, left, M, N, TALL, WIDE, SECOND)


@triton.jit
def _new_first(m, g, hyper):
    return tl.load(hyper + 2) * g + tl.load(hyper + 1) * m


@triton.jit
def _new_second(v, g, hyper):
    return tl.load(hyper + 4) * (g * g) + tl.load(hyper + 3) * v


@triton.jit
def _new_weight(w, m, v, hyper):
    """``hyper``: -lr, b1, 1 - b1, b2, 1 - b2, eps, weight decay, the reciprocals of both bias
    corrections, and what the gradient is multiplied by.
    """
    root = tl.sqrt_rn(v * tl.load(hyper + 8))
    step = tl.div_rn(m * tl.load(hyper + 7), root + tl.load(hyper + 5))
    step += tl.load(hyper + 6) * w
    return w + tl.load(hyper) * step


@triton.jit
def _load(
    x,
    scales,
    example,
    top,
    left,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    KIND: tl.constexpr,
):
    value = load_tile(x + example * M * N, top, left, M, N, TALL, WIDE)
    if KIND == ONE:
        value *= tl.load(scales + example)
    elif KIND == GROUPS:
        row = top + tl.arange(0, TALL)[:, None]
        across: tl.constexpr = (N + WIDE - 1) // WIDE
        at = scales + (example * M + row) * across + left // WIDE
        value *= tl.load(at, mask=row < M, other=1.0)
    return flushed(value)


@triton.jit
def _store(
    out,
    scales,
    value,
    given,
    example,
    top,
    left,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    KIND: tl.constexpr,
    CARRY: tl.constexpr,
):
    out += example * M * N
    dtype: tl.constexpr = out.dtype.element_ty
    if KIND == GROUPS:
        row = top + tl.arange(0, TALL)[:, None]
        column = left + tl.arange(0, WIDE)[None, :]
        bits = tl.where(column < N, finite_bits(value), 0)
        scale = scale_bits(tl.max(bits, axis=1, keep_dims=True), CARRY)
        across: tl.constexpr = (N + WIDE - 1) // WIDE
        store_scale(scales + (example * M + row) * across + left // WIDE, scale, row < M)
        data = narrow_any(value, inverse(scale), dtype)
    elif KIND == ONE:
        data = narrow_any(value, tl.div_rn(1.0, tl.load(given)), dtype)
    else:
        data = narrow_any(value, 1.0, dtype)
    store_tile(out, top, left, data, M, N, TALL, WIDE)


@triton.jit
def _store_largest(
    parts,
    value,
    top,
    left,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    KIND: tl.constexpr,
):
    at = parts + tl.program_id(0).to(tl.int64) * 3
    if KIND == ONE:
        row = top + tl.arange(0, TALL)[:, None]
        column = left + tl.arange(0, WIDE)[None, :]
        tl.store(at, tl.max(tl.where((row < M) & (column < N), finite_bits(value), 0)))
    else:
        tl.store(at, 0)
