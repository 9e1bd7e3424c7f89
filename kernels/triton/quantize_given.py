"""FP8 under a scale that is given, in one read; also with the amax that the next steps want."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits, narrow
from precir.kernels.triton.runs import load_run, of_layer, store_run


@triton.jit
def quantize_given(
    x,
    layer,
    scales,
    out,
    LAYER: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of ``x`` [rows, N] and ``scales`` [rows], float32, write ``out``: a program for each run."""
    _quantize_run(x, layer, scales, out, LAYER, N, BLOCK)


@triton.jit
def quantize_given_amax(
    x,
    layer,
    scales,
    out,
    parts,
    LAYER: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same, and the largest finite magnitude of each run in ``parts``: as bits, int32."""
    value = _quantize_run(x, layer, scales, out, LAYER, N, BLOCK)
    tl.store(parts + tl.program_id(0), tl.max(finite_bits(value)))


@triton.jit
def _quantize_run(
    x,
    layer,
    scales,
    out,
    LAYER: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    runs: tl.constexpr = (N + BLOCK - 1) // BLOCK
    row, start = program // runs, program % runs * BLOCK
    x = of_layer(x, layer, LAYER)
    value = load_run(x + row * N, start, N, BLOCK)
    inverse = tl.div_rn(1.0, tl.load(scales + row))
    store_run(
        out + row * N,
        start,
        narrow(value, inverse, out.dtype.element_ty),
        N,
        BLOCK,
    )
    return value
