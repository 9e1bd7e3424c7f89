"""The largest finite magnitude of a tensor, or of each row of a matrix, in parts."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits
from precir.kernels.triton.runs import load_run, of_layer


@triton.jit
def amax_parts(
    x,
    layer,
    parts,
    LAYER: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of ``x`` [rows, N] write ``parts`` [rows, PARTS]: as bits, int32. A program for each part."""
    x = of_layer(x, layer, LAYER)
    program = tl.program_id(0).to(tl.int64)
    row, part = program // PARTS, program % PARTS
    most = tl.zeros((BLOCK,), tl.int32)
    for start in range(part * BLOCK, N, PARTS * BLOCK):
        most = tl.maximum(most, finite_bits(load_run(x + row * N, start, N, BLOCK)))
    tl.store(parts + program, tl.max(most))
