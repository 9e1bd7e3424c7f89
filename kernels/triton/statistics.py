"""What a tensor holds, counted in one read: see `precir.kernels.observe`."""

import triton
import triton.language as tl

from precir.kernels.triton.runs import load_run


@triton.jit
def statistics(
    x,
    counts,
    sums,
    bins,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAST: tl.constexpr,
    HISTOGRAM: tl.constexpr,
):
    """Of each part of each row of ``x`` [rows, N] write ``counts`` [rows, PARTS, 8], int32: the
    bits of the largest finite magnitude and of the smallest nonzero one (0x7FFFFFFF if none),
    zeros, subnormals (below LEAST, as bits), +inf, -inf, NaN, 0; ``sums`` [rows, PARTS, 2]:
    of the elements and of their squares; and ``bins`` [rows, PARTS, 256]: how many have each
    exponent, nothing without HISTOGRAM. A program for each part.
    """
    program = tl.program_id(0).to(tl.int64)
    row, part = program // PARTS, program % PARTS
    large = tl.zeros((BLOCK,), tl.int32)
    small = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
    zeros = tl.zeros((BLOCK,), tl.int32)
    subnormal = tl.zeros((BLOCK,), tl.int32)
    positive = tl.zeros((BLOCK,), tl.int32)
    negative = tl.zeros((BLOCK,), tl.int32)
    nan = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    held = tl.zeros((256,), tl.int32)
    for start in range(part * BLOCK, N, PARTS * BLOCK):
        inside = tl.arange(0, BLOCK) < N - start
        value = load_run(x + row * N, start, N, BLOCK)
        signed = value.to(tl.int32, bitcast=True)
        bits = signed & 0x7FFFFFFF
        finite = bits < 0x7F800000
        large = tl.maximum(large, tl.where(finite, bits, 0))
        small = tl.minimum(small, tl.where(finite & (bits > 0), bits, 0x7FFFFFFF))
        zeros += (inside & (bits == 0)).to(tl.int32)
        subnormal += ((bits > 0) & (bits < LEAST)).to(tl.int32)
        positive += (signed == 0x7F800000).to(tl.int32)
        negative += (signed == -0x00800000).to(tl.int32)
        nan += (bits > 0x7F800000).to(tl.int32)
        total += value
        squares += value * value
        if HISTOGRAM:
            held += tl.histogram(bits >> 23, 256, mask=inside)
    counts += program * 8
    tl.store(counts + 0, tl.max(large))
    tl.store(counts + 1, tl.min(small))
    tl.store(counts + 2, tl.sum(zeros))
    tl.store(counts + 3, tl.sum(subnormal))
    tl.store(counts + 4, tl.sum(positive))
    tl.store(counts + 5, tl.sum(negative))
    tl.store(counts + 6, tl.sum(nan))
    tl.store(counts + 7, 0)
    tl.store(sums + program * 2, tl.sum(total))
    tl.store(sums + program * 2 + 1, tl.sum(squares))
    if HISTOGRAM:
        tl.store(bins + program * 256 + tl.arange(0, 256), held)
