"""Reading a tensor in runs of consecutive elements, and what of it is shared."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import scale_bits


@triton.jit
def of_layer(x, layer, LAYER: tl.constexpr):
    """Where the layer ``layer`` (int32[]) of the stack ``x`` begins, ``LAYER`` elements each; with
    0, ``x`` is no stack.
    """
    if LAYER != 0:
        x += tl.load(layer).to(tl.int64) * LAYER
    return x


@triton.jit
def load_run(x, start, N: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of the N at ``x``, from ``start``, as float32: 0 past the end."""
    at = tl.arange(0, BLOCK)
    if N % BLOCK == 0:
        value = tl.load(x + start + at)
    else:
        value = tl.load(x + start + at, mask=at < N - start, other=0)
    return value.to(tl.float32)


@triton.jit
def store_run(out, start, value, N: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse of ``load_run``: nothing past the end."""
    at = tl.arange(0, BLOCK)
    if N % BLOCK == 0:
        tl.store(out + start + at, value)
    else:
        tl.store(out + start + at, value, mask=at < N - start)


@triton.jit
def scale_of_parts(parts, PARTS: tl.constexpr, PADDED: tl.constexpr, CARRY: tl.constexpr):
    """The bits of the scale of a tensor of which each part has its amax here, as bits."""
    at = tl.arange(0, PADDED)
    return scale_bits(tl.max(tl.load(parts + at, mask=at < PARTS, other=0)), CARRY)
