"""The product of two FP8 operands under scales, and what follows it: one persistent kernel."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits, narrow


@triton.jit
def scaled_dot(
    a,
    b,
    a_scale,
    b_scale,
    bias,
    out_scale,
    out,
    amax,
    BATCH: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    A_STRIDES: tl.constexpr,
    B_STRIDES: tl.constexpr,
    A_SCALES: tl.constexpr,
    B_SCALES: tl.constexpr,
    A_BLOCK: tl.constexpr,
    B_BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NARROW: tl.constexpr,
    AMAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    FLATTEN: tl.constexpr,
    TMA: tl.constexpr,
    STORE: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):
    """out[batch, m, n] = f(sum over k of a[batch, m, k] * b[batch, n, k]), a tile at a time.

    ``A_STRIDES`` are those of the batch, of rows and of K, in elements; ``A_SCALES`` those of the
    scales (float32), 0 along what shares one; ``A_BLOCK`` is (rows, K) to a scale, with K = 0
    where no scale changes along K. ``B_...`` likewise, the rows of b being the columns of the
    result. What is summed in the tensor cores, whose accumulator keeps some 14 bits, is added up
    in float32 every ``BLOCK_K`` elements, times the scales of that block if they change there.

    Then times the other scales and ``POWER``, plus ``bias`` (float32[N]), through ``ACTIVATION``,
    and rounded to the dtype of ``out``; with ``NARROW`` that is FP8 (see `narrow`), under
    ``out_scale`` (float32[1]). With ``AMAX`` the largest finite magnitude of each tile before the
    rounding is left in amax[tile].

    Programs go through the tiles of the result in steps of ``PROGRAMS``, in groups of ``GROUP``
    rows of tiles, so that what runs at one time shares operands in the L2 cache. With ``FLATTEN``
    the loops over tiles and over K are one, so that a tile is loaded while the one before it is
    still being finished. With ``TMA`` tiles of the operands are loaded through tensor descriptors,
    and have to be contiguous along K, all other strides multiples of 16; with ``STORE`` those of
    the result are stored so, whose rows have to be multiples of 16 bytes. With ``SPECIALIZE`` too,
    four warps do nothing else than load, and the others never wait for each other; Triton does so
    for loops that are not flattened, where nothing is reduced over a tile.
    """
    program = tl.program_id(0)
    if TMA:
        a_tiles = _tiles(a, BATCH, M, K, A_STRIDES, BLOCK_M, BLOCK_K)
        b_tiles = _tiles(b, BATCH, N, K, B_STRIDES, BLOCK_N, BLOCK_K)
    if STORE:
        out_tiles = _tiles(out, BATCH, M, N, (M * N, N), BLOCK_M, BLOCK_N)
    across: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    down: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    turns = tl.cdiv(BATCH * down * across - program, PROGRAMS)
    for turn in tl.range(0, turns, flatten=FLATTEN):
        tile = program + turn * PROGRAMS
        batch = (tile // (down * across)).to(tl.int64)
        within = tile % (down * across)
        first = within // (GROUP * across) * GROUP
        height = tl.minimum(down - first, GROUP)
        m0 = (first + within % (GROUP * across) % height) * BLOCK_M
        n0 = within % (GROUP * across) // height * BLOCK_N
        rows, columns, ks = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
        row_in, column_in = rows < M - m0, columns < N - n0
        a_tile = a + batch * A_STRIDES[0] + m0.to(tl.int64) * A_STRIDES[1]
        a_tile += rows[:, None] * A_STRIDES[1] + ks[None, :] * A_STRIDES[2]
        b_tile = b + batch * B_STRIDES[0] + n0.to(tl.int64) * B_STRIDES[1]
        b_tile += ks[:, None] * B_STRIDES[2] + columns[None, :] * B_STRIDES[1]
        left = a_scale + batch * A_SCALES[0]
        right = b_scale + batch * B_SCALES[0]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in tl.range(0, K, BLOCK_K, warp_specialize=SPECIALIZE):
            # Asked for first, so that they arrive while the tensor cores work.
            if A_BLOCK[1] != 0:
                s = _scales(left, m0, rows, k, M, A_SCALES, A_BLOCK, BLOCK_M)
            if B_BLOCK[1] != 0:
                t = _scales(right, n0, columns, k, N, B_SCALES, B_BLOCK, BLOCK_N)
            if TMA:
                x = _fetch(a_tiles, batch, m0, k, BATCH)
                y = _fetch(b_tiles, batch, n0, k, BATCH).T
            else:
                x = _load(a_tile, row_in[:, None], ks[None, :] < K - k, M % BLOCK_M, K % BLOCK_K)
                y = _load(b_tile, column_in[None, :], ks[:, None] < K - k, N % BLOCK_N, K % BLOCK_K)
            part = tl.dot(x, y)
            if A_BLOCK[1] != 0 and B_BLOCK[1] != 0:
                total = tl.fma(part, s[:, None] * t[None, :], total)
            elif A_BLOCK[1] != 0:
                total = tl.fma(part, tl.broadcast_to(s[:, None], part.shape), total)
            elif B_BLOCK[1] != 0:
                total = tl.fma(part, tl.broadcast_to(t[None, :], part.shape), total)
            else:
                total += part
            if not TMA:
                a_tile += BLOCK_K * A_STRIDES[2]
                b_tile += BLOCK_K * B_STRIDES[2]
        s = tl.full((BLOCK_M,), 1.0, tl.float32)
        t = tl.full((BLOCK_N,), 1.0, tl.float32)
        if A_BLOCK[1] == 0:
            s = _scales(left, m0, rows, 0, M, A_SCALES, A_BLOCK, BLOCK_M)
        if B_BLOCK[1] == 0:
            t = _scales(right, n0, columns, 0, N, B_SCALES, B_BLOCK, BLOCK_N)
        total = _scaled(total, s[:, None], t[None, :], POWER)
        if BIAS:
            total += tl.load(bias + n0 + columns, mask=column_in, other=0.0)[None, :]
        total = _activated(total, ACTIVATION)
        inside = row_in[:, None] & column_in[None, :]
        if AMAX:
            largest = tl.max(tl.where(inside, finite_bits(total), 0))
            tl.store(amax + tile, largest.to(tl.float32, bitcast=True))
        target = out + batch * M * N + m0.to(tl.int64) * N + n0
        target += rows[:, None] * N + columns[None, :]
        if NARROW:
            held = narrow(total, 1.0 / tl.load(out_scale), out.dtype.element_ty)
        else:
            held = total.to(out.dtype.element_ty)
        if not STORE:
            tl.store(target, held, mask=inside)
        elif BATCH == 1:
            out_tiles.store([m0, n0], held)
        else:
            out_tiles.store([batch.to(tl.int32), m0, n0], held.reshape(1, BLOCK_M, BLOCK_N))


@triton.jit
def _tiles(
    array,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What tiles of an array, contiguous along the last axis, are loaded and stored through by TMA:
    zeros past the end of any axis and nothing written there, so that no tile reaches into the next
    of a batch.
    """
    if BATCH == 1:
        return tl.make_tensor_descriptor(array, [ROWS, SIZE], [STRIDES[1], 1], [BLOCK, WIDTH])
    else:
        return tl.make_tensor_descriptor(
            array, [BATCH, ROWS, SIZE], [STRIDES[0], STRIDES[1], 1], [1, BLOCK, WIDTH]
        )


@triton.jit
def _fetch(tiles, batch, row, k, BATCH: tl.constexpr):
    """A tile by TMA."""
    if BATCH == 1:
        return tiles.load([row, k])
    else:
        return tiles.load([batch.to(tl.int32), row, k]).reshape(tiles.block_shape[1:])


@triton.jit
def _load(pointers, outer, inner, OUTER_REST: tl.constexpr, INNER_REST: tl.constexpr):
    """A tile of an operand, with zeros past the end of it; masked only where it is ragged."""
    if OUTER_REST != 0 and INNER_REST != 0:
        return tl.load(pointers, mask=outer & inner, other=0.0)
    elif OUTER_REST != 0:
        return tl.load(pointers, mask=outer, other=0.0)
    elif INNER_REST != 0:
        return tl.load(pointers, mask=inner, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _scales(
    scales,
    first,
    rows,
    k,
    SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The scale of each of a tile's rows at ``k``; one load where they all share one."""
    at = scales
    if BLOCK[1] != 0:
        at += k // BLOCK[1] * STRIDES[2]
    if STRIDES[1] == 0:
        return tl.full((ROWS,), 1.0, tl.float32) * tl.load(at)
    elif BLOCK[0] % ROWS == 0:
        return tl.full((ROWS,), 1.0, tl.float32) * tl.load(at + first // BLOCK[0] * STRIDES[1])
    else:
        index = (first + rows) // BLOCK[0]
        return tl.load(at + index * STRIDES[1], mask=rows < SIZE - first, other=1.0)


@triton.jit
def _scaled(product, s, t, POWER: tl.constexpr):
    """Product * s * t * POWER, right wherever the result is a normal float32: see `_scaled` of
    `precir.kernels.scaled_dot`.
    """
    opposed = (s < 1) != (t < 1)
    first, second = tl.where(opposed, s * t, s), tl.where(opposed, 1.0, t)
    if POWER == 1.0:
        return product * first * second
    opposed = (first < 1) != (POWER < 1)
    first, third = tl.where(opposed, first * POWER, first), tl.where(opposed, 1.0, POWER)
    opposed = (first < 1) != (second < 1)
    first, second = tl.where(opposed, first * second, first), tl.where(opposed, 1.0, second)
    return product * first * second * third


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where((x > 0) | (x != x), x, 0.0)
    elif ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        # 1 + tanh(u) is 2 / (1 + exp(-2 u)), without the difference.
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1.0 + tl.exp(-2.0 * u))
    elif ACTIVATION == "gelu":
        return 0.5 * x * _erfc(-0.7071067811865476 * x)
    else:
        return x


@triton.jit
def _erfc(x):
    """The complementary error function, to 1.2e-7 of itself (Press et al., Numerical Recipes in C,
    2nd edition, section 6.2): what 1 - erf(x) loses to the difference, gelu needs at -4.
    """
    z = tl.abs(x)
    t = 1.0 / (1.0 + 0.5 * z)
    p = t * 0.17087277 - 0.82215223
    p = t * p + 1.48851587
    p = t * p - 1.13520398
    p = t * p + 0.27886807
    p = t * p - 0.18628806
    p = t * p + 0.09678418
    p = t * p + 0.37409196
    p = t * p + 1.00002368
    tail = t * tl.exp(-z * z - 1.26551223 + t * p)
    return tl.where(x < 0, 2.0 - tail, tail)
