"""FP8 of matrices and of their transposes in one read, under every kind of scale.

Each kernel takes ``x`` [matrices, M, N], or of a stack of such the ``layer`` (see `of_layer`), and
writes ``out`` [matrices, M, N] and ``flipped`` [matrices, N, M]; a program has one tile of TALL x
WIDE.
"""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits, inverse, narrow, scale_bits, store_scale
from precir.kernels.triton.runs import of_layer, scale_of_parts
from precir.kernels.triton.tiles import load_tile, store_tile, tile_of_program


@triton.jit
def both_given(
    x,
    layer,
    scales,
    out,
    flipped,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Under ``scales`` [matrices], float32."""
    _given(x, layer, scales, out, flipped, LAYER, M, N, TALL, WIDE)


@triton.jit
def both_given_amax(
    x,
    layer,
    scales,
    out,
    flipped,
    parts,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The same, and the largest finite magnitude of each tile in ``parts``: as bits, int32."""
    value = _given(x, layer, scales, out, flipped, LAYER, M, N, TALL, WIDE)
    tl.store(parts + tl.program_id(0), tl.max(finite_bits(value)))


@triton.jit
def both_current(
    x,
    layer,
    parts,
    out,
    flipped,
    scales,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Under the scale of each matrix, of its amax in ``parts`` [matrices, PARTS]."""
    matrix, down, across = tile_of_program(M, N, TALL, WIDE)
    start = matrix * M * N
    x = of_layer(x, layer, LAYER)
    value = load_tile(x + start, down * TALL, across * WIDE, M, N, TALL, WIDE)
    scale = scale_of_parts(parts + matrix * PARTS, PARTS, PADDED, CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    _store_both(out + start, flipped + start, data, down, across, M, N, TALL, WIDE)
    if down + across == 0:
        tl.store(scales + matrix, scale.to(tl.float32, bitcast=True))


@triton.jit
def both_squares(
    x,
    layer,
    out,
    flipped,
    scales,
    flipped_scales,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Under one scale for each tile: they are squares, so that both ways have the same."""
    matrix, down, across = tile_of_program(M, N, TALL, WIDE)
    start = matrix * M * N
    x = of_layer(x, layer, LAYER)
    value = load_tile(x + start, down * TALL, across * WIDE, M, N, TALL, WIDE)
    amax = tl.max(finite_bits(value), axis=1, keep_dims=True)
    scale = scale_bits(tl.max(amax, axis=0, keep_dims=True), CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    _store_both(out + start, flipped + start, data, down, across, M, N, TALL, WIDE)
    tall: tl.constexpr = (M + TALL - 1) // TALL
    wide: tl.constexpr = (N + WIDE - 1) // WIDE
    one = tl.zeros((1, 1), tl.int32)
    store_scale(scales + (matrix * tall + down) * wide + across + one, scale, one == 0)
    store_scale(flipped_scales + (matrix * wide + across) * tall + down + one, scale, one == 0)


@triton.jit
def both_groups(
    x,
    layer,
    out,
    flipped,
    scales,
    flipped_scales,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Under a scale for each WIDE elements of a row, and for each TALL of a column the other way:
    ``scales`` [matrices, M, ceil(N / WIDE)], ``flipped_scales`` [matrices, N, ceil(M / TALL)].
    """
    matrix, down, across = tile_of_program(M, N, TALL, WIDE)
    top, left, start = down * TALL, across * WIDE, matrix * M * N
    x = of_layer(x, layer, LAYER)
    value = load_tile(x + start, top, left, M, N, TALL, WIDE)
    bits = finite_bits(value)

    row = tl.arange(0, TALL)[:, None]
    scale = scale_bits(tl.max(bits, axis=1, keep_dims=True), CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    store_tile(out + start, top, left, data, M, N, TALL, WIDE)
    wide: tl.constexpr = (N + WIDE - 1) // WIDE
    store_scale(scales + (matrix * M + top + row) * wide + across, scale, row < M - top)

    column = tl.arange(0, WIDE)[None, :]
    scale = scale_bits(tl.max(bits, axis=0, keep_dims=True), CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    store_tile(flipped + start, left, top, tl.trans(data), N, M, WIDE, TALL)
    tall: tl.constexpr = (M + TALL - 1) // TALL
    store_scale(
        flipped_scales + (matrix * N + left + column) * tall + down, scale, column < N - left
    )


@triton.jit
def _given(
    x,
    layer,
    scales,
    out,
    flipped,
    LAYER: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    matrix, down, across = tile_of_program(M, N, TALL, WIDE)
    start = matrix * M * N
    x = of_layer(x, layer, LAYER)
    value = load_tile(x + start, down * TALL, across * WIDE, M, N, TALL, WIDE)
    inverse = tl.div_rn(1.0, tl.load(scales + matrix))
    data = narrow(value, inverse, out.dtype.element_ty)
    _store_both(out + start, flipped + start, data, down, across, M, N, TALL, WIDE)
    return value


@triton.jit
def _store_both(
    out,
    flipped,
    data,
    down,
    across,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    store_tile(out, down * TALL, across * WIDE, data, M, N, TALL, WIDE)
    store_tile(flipped, across * WIDE, down * TALL, tl.trans(data), N, M, WIDE, TALL)
