"""LayerNorm and RMSNorm, written in FP8 as they are computed; and their gradients."""

import triton
import triton.language as tl

from precir.kernels.triton.put import load_part, put


@triton.jit
def norm_forward(
    x,
    weight,
    bias,
    given,
    out,
    scales,
    flipped,
    flipped_scales,
    plain,
    parts,
    means,
    roots,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    LAYER: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr,
    DATA: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    PLAIN: tl.constexpr,
    AMAX: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Of ``x`` [examples, M, N], ``weight`` and ``bias`` [WEIGHTS or BIASES, N] (0 of them for
    none, 1 for all examples) write the normalised rows as `put` does, ``means`` (of LayerNorm) and
    ``roots``, 1 / sqrt(variance + EPS): both [examples, M]. ``given`` [examples].

    A program has TALL rows. It holds them where WIDE reaches over all, and else reads them twice,
    WIDE columns at a time: the second time from a cache.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (M + TALL - 1) // TALL
    chunks: tl.constexpr = (N + WIDE - 1) // WIDE
    example, top = program // tiles, program % tiles * TALL
    x += example * M * N
    value = load_part(x, top, 0, M, N, N, TALL, WIDE)
    mean, squares = _moments(value, 0, N, TALL, WIDE, LAYER)
    total = tl.sum(value, axis=1, keep_dims=True)
    for left in range(WIDE, N, WIDE):  # as Chan, Golub and LeVeque merge variances of parts
        value = load_part(x, top, left, M, N, N, TALL, WIDE)
        its_mean, its_squares = _moments(value, left, N, TALL, WIDE, LAYER)
        size = tl.minimum(WIDE, N - left).to(tl.float32)
        whole = left + size
        apart = its_mean - mean
        squares += its_squares + apart * apart * (left * size / whole)
        mean += apart * (size / whole)
        total += tl.sum(value, axis=1, keep_dims=True)
    if LAYER:  # of an infinity, what merges is NaN
        mean = total / N
    root = tl.rsqrt(squares / N + EPS)
    row = tl.arange(0, TALL)[:, None]
    at = example * M + top + row
    tl.store(roots + at, root, mask=row < M - top)
    if LAYER:
        tl.store(means + at, mean, mask=row < M - top)

    scale = 1.0
    if SIZE == 0:
        scale = tl.load(given + example)
    groups: tl.constexpr = M * ((N + SIZE - 1) // SIZE) if SIZE > 0 else 0
    for left in range(0, N, WIDE):
        if chunks > 1:
            value = load_part(x, top, left, M, N, N, TALL, WIDE)
        y = (value - mean) * root
        if WEIGHTS:
            y *= _load_row(weight + (example if WEIGHTS > 1 else 0) * N, left, N, WIDE)
        if BIASES:
            y += _load_row(bias + (example if BIASES > 1 else 0) * N, left, N, WIDE)
        column = tl.arange(0, WIDE)[None, :]
        y = tl.where((row < M - top) & (column < N - left), y, 0.0)
        put(
            y,
            scale,
            out + example * M * N,
            scales + example * groups,
            flipped + example * M * N,
            flipped_scales + example * N * tiles,
            plain + example * M * N,
            parts + program * chunks + left // WIDE,
            top, left, M, N, N, 0, TALL, WIDE, DATA, SIZE, FLIP, PLAIN, AMAX, CARRY,
        )  # fmt: skip


@triton.jit
def norm_backward(
    x,
    gradient,
    means,
    roots,
    weight,
    besides,
    out,
    weight_parts,
    bias_parts,
    M: tl.constexpr,
    N: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    LAYER: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Of ``x`` and ``gradient`` [examples, M, N] write the gradient of ``x``, with ``besides``
    [examples, M, N] added if ADD, and those of weight and bias in parts, float32
    [examples, PARTS, N]. A program for each part.
    """
    program = tl.program_id(0).to(tl.int64)
    example, part = program // PARTS, program % PARTS
    start = example * M * N
    row, column = tl.arange(0, TALL)[:, None], tl.arange(0, WIDE)[None, :]
    if WEIGHTS:
        w = _load_row(weight + (example if WEIGHTS > 1 else 0) * N, 0, N, WIDE)
    of_weight = tl.zeros((TALL, WIDE), tl.float32)
    of_bias = tl.zeros((TALL, WIDE), tl.float32)
    for top in range(part * TALL, M, PARTS * TALL):
        value = load_part(x + start, top, 0, M, N, N, TALL, WIDE)
        g = load_part(gradient + start, top, 0, M, N, N, TALL, WIDE)
        inside = row < M - top
        root = tl.load(roots + example * M + top + row, mask=inside, other=0.0)
        if LAYER:
            mean = tl.load(means + example * M + top + row, mask=inside, other=0.0)
            value = tl.where(column < N, value - mean, 0.0)
        unit = value * root
        of_weight += g * unit
        of_bias += g
        if WEIGHTS:
            g *= w
        along = tl.sum(g * unit, axis=1, keep_dims=True) / N
        rest = g - unit * along
        if LAYER:
            rest -= tl.sum(g, axis=1, keep_dims=True) / N
        rest *= root
        if ADD:
            rest += load_part(besides + start, top, 0, M, N, N, TALL, WIDE)
        at = out + start + top * N + (row * N + column)
        tl.store(at, rest.to(out.dtype.element_ty), mask=inside & (column < N))
    within = column < N
    at = program * N + column
    tl.store(weight_parts + at, tl.sum(of_weight, axis=0, keep_dims=True), mask=within)
    tl.store(bias_parts + at, tl.sum(of_bias, axis=0, keep_dims=True), mask=within)


@triton.jit
def _moments(
    value, left, N: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, LAYER: tl.constexpr
):
    """Of each row of a tile the mean and the sum of squared distances from it: from 0 but for
    LayerNorm.
    """
    if LAYER:
        size = tl.minimum(WIDE, N - left).to(tl.float32)
        mean = tl.sum(value, axis=1, keep_dims=True) / size
        column = tl.arange(0, WIDE)[None, :]
        apart = tl.where(column < N - left, value - mean, 0.0)
        return mean, tl.sum(apart * apart, axis=1, keep_dims=True)
    else:
        nothing = tl.zeros((TALL, 1), tl.float32)
        return nothing, tl.sum(value * value, axis=1, keep_dims=True)


@triton.jit
def _load_row(x, left, N: tl.constexpr, WIDE: tl.constexpr):
    column = tl.arange(0, WIDE)[None, :]
    return tl.load(x + left + column, mask=column < N - left, other=0.0).to(tl.float32)
