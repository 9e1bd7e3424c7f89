"""Activations, gated or not, from memory to FP8 in one read; and their gradients."""

import triton
import triton.language as tl

from precir.kernels.triton.activations import activated, activated_and_slope
from precir.kernels.triton.put import load_part, put
from precir.kernels.triton.tiles import tile_of_program


@triton.jit
def act_forward(
    x,
    up,
    given,
    out,
    scales,
    flipped,
    flipped_scales,
    plain,
    parts,
    M: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    DATA: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    PLAIN: tl.constexpr,
    AMAX: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Of ``x`` and with GATED ``up`` [examples, M, N], or one of [examples, M, 2 N] (a STRIDE of 2
    N) whose halves these are, write act(x) or act(x) * up as `put` does. ``given`` [examples].
    """
    example, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left = down * TALL, across * WIDE
    start = example * M * STRIDE
    value = load_part(x + start, top, left, M, N, STRIDE, TALL, WIDE)
    value = activated(value, KIND)
    if GATED:
        second: tl.constexpr = N if STRIDE > N else 0
        value *= load_part(up + start + second, top, left, M, N, STRIDE, TALL, WIDE)
    scale = 1.0
    if SIZE == 0:
        scale = tl.load(given + example)
    groups: tl.constexpr = M * ((N + SIZE - 1) // SIZE) if SIZE > 0 else 0
    turned: tl.constexpr = N * ((M + TALL - 1) // TALL)
    put(
        value,
        scale,
        out + example * M * N,
        scales + example * groups,
        flipped + example * M * N,
        flipped_scales + example * turned,
        plain + example * M * N,
        parts + tl.program_id(0),
        top, left, M, N, N, 0, TALL, WIDE, DATA, SIZE, FLIP, PLAIN, AMAX, CARRY,
    )  # fmt: skip


@triton.jit
def act_backward(
    x,
    up,
    gradient,
    given,
    out,
    scales,
    flipped,
    flipped_scales,
    plain,
    parts,
    up_out,
    up_scales,
    up_flipped,
    up_flipped_scales,
    up_plain,
    up_parts,
    M: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    ALONE: tl.constexpr,
    DATA: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    PLAIN: tl.constexpr,
    AMAX: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Of the same and ``gradient`` [examples, M, N] write the gradient of ``x`` and, with GATED
    and not ALONE, of ``up``: as `put` does, both into the first set with a STRIDE of 2 N.
    ``given`` [examples, 2].
    """
    example, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left = down * TALL, across * WIDE
    start = example * M * STRIDE
    g = load_part(gradient + example * M * N, top, left, M, N, N, TALL, WIDE)
    if ALONE:
        g *= load_part(up + start, top, left, M, N, STRIDE, TALL, WIDE)
    value = load_part(x + start, top, left, M, N, STRIDE, TALL, WIDE)
    one, other = 1.0, 1.0
    if SIZE == 0:
        one, other = tl.load(given + example * 2), tl.load(given + example * 2 + 1)
    groups: tl.constexpr = M * ((STRIDE + SIZE - 1) // SIZE) if SIZE > 0 else 0
    turned: tl.constexpr = STRIDE * ((M + TALL - 1) // TALL)
    program = tl.program_id(0)
    if GATED and not ALONE:
        second: tl.constexpr = N if STRIDE > N else 0
        if STRIDE > N:
            put(
                activated(value, KIND) * g,
                one,
                out + start,
                scales + example * groups,
                flipped + start,
                flipped_scales + example * turned,
                plain + start,
                up_parts + program,
                top, left, M, N, STRIDE, N, TALL, WIDE, DATA, SIZE, FLIP, PLAIN, AMAX, CARRY,
            )  # fmt: skip
        else:
            put(
                activated(value, KIND) * g,
                other,
                up_out + start,
                up_scales + example * groups,
                up_flipped + start,
                up_flipped_scales + example * turned,
                up_plain + start,
                up_parts + program,
                top, left, M, N, STRIDE, 0, TALL, WIDE, DATA, SIZE, FLIP, PLAIN, AMAX, CARRY,
            )  # fmt: skip
        if FLIP and SIZE > 0:  # a tile is too large to keep: it is in a cache
            value = load_part(x + start, top, left, M, N, STRIDE, TALL, WIDE)
            g = load_part(gradient + example * M * N, top, left, M, N, N, TALL, WIDE)
        g *= load_part(up + start + second, top, left, M, N, STRIDE, TALL, WIDE)
    _, slope = activated_and_slope(value, KIND)
    if KIND == "relu":
        g = tl.where(slope > 0, g, 0.0)
    else:
        g *= slope
    put(
        g,
        one,
        out + start,
        scales + example * groups,
        flipped + start,
        flipped_scales + example * turned,
        plain + start,
        parts + program,
        top, left, M, N, STRIDE, 0, TALL, WIDE, DATA, SIZE, FLIP, PLAIN, AMAX, CARRY,
    )  # fmt: skip
