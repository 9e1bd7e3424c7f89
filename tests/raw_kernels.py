"""Raw kernels to test the interpreter and the cross-lowering with."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import finite_bits, inverse, narrow, scale_bits


@triton.jit
def amax_scale_cast(
    x, out, scale, N: tl.constexpr, BLOCK: tl.constexpr, CARRY: tl.constexpr,
):  # fmt: skip
    """One scale for N numbers, in one program."""
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < N, other=0).to(tl.float32)
    bits = scale_bits(tl.max(finite_bits(value)), CARRY)
    data = narrow(value, inverse(bits), out.dtype.element_ty)
    tl.store(out + at, data, mask=at < N)
    tl.store(scale, bits.to(tl.float32, bitcast=True))


@triton.jit
def product(x, y, out, N: tl.constexpr):
    """FP8 x @ y.T in one program."""
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    left = tl.load(x + row * N + column)
    right = tl.load(y + column * N + row)
    tl.store(out + row * N + column, tl.dot(left, right).to(out.dtype.element_ty))


@triton.jit
def too_far(x, out, N: tl.constexpr):
    """Writes one element past its end."""
    at = tl.arange(0, N)
    tl.store(out + at + 1, tl.load(x + at))
