"""FP8 under the scale of the whole tensor, or of each row of a matrix, from its amax in parts."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import inverse, narrow
from precir.kernels.triton.runs import load_run, of_layer, scale_of_parts, store_run


@triton.jit
def quantize_current(
    x,
    layer,
    parts,
    out,
    scales,
    LAYER: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CARRY: tl.constexpr,
):
    """Of ``x`` [rows, N] and ``parts`` [rows, PARTS] write ``out`` and ``scales`` [rows].

    A program for each run of BLOCK elements of a row, the last ones first: they are what the
    second-level cache still holds of the tensor after its amax was taken.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    runs: tl.constexpr = (N + BLOCK - 1) // BLOCK
    row, start = program // runs, program % runs * BLOCK
    x = of_layer(x, layer, LAYER)
    value = load_run(x + row * N, start, N, BLOCK)
    scale = scale_of_parts(parts + row * PARTS, PARTS, PADDED, CARRY)
    data = narrow(value, inverse(scale), out.dtype.element_ty)
    store_run(out + row * N, start, data, N, BLOCK)
    if start == 0:
        tl.store(scales + row, scale.to(tl.float32, bitcast=True))
