"""Activations and their slopes on float32: as `precir.kernels.act_quantize` writes them."""

import triton
import triton.language as tl

from precir.kernels.triton.narrow import flushed


@triton.jit
def activated(x, KIND: tl.constexpr):
    """Gelu (exact), gelu_tanh, silu or relu."""
    if KIND == "relu":
        return tl.where(x <= 0, 0.0, x)
    elif KIND == "gelu":
        return flushed(x * (0.5 * (1 + tl.erf(x * 0.7071067811865476))))
    else:
        s, _ = _sigmoids(_logit(x, KIND))
        return flushed(x * s)


@triton.jit
def activated_and_slope(x, KIND: tl.constexpr):
    """The activation and its derivative."""
    if KIND == "relu":
        return tl.where(x <= 0, 0.0, x), tl.where(x > 0, 1.0, 0.0)
    elif KIND == "gelu":
        half = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        return flushed(x * half), half + x * (tl.exp(-0.5 * (x * x)) * 0.3989422804014327)
    else:
        s, rest = _sigmoids(_logit(x, KIND))
        if KIND == "gelu_tanh":
            slope = 1.5957691216057308 * (1 + 0.134145 * (x * x))
            return flushed(x * s), flushed(s + x * (s * rest) * slope)
        else:
            return flushed(x * s), flushed(s + x * (s * rest))


@triton.jit
def _logit(x, KIND: tl.constexpr):
    """What the sigmoid is of by which ``x`` is multiplied."""
    if KIND == "gelu_tanh":
        return 1.5957691216057308 * (x + 0.044715 * (x * x * x))
    else:
        return x


@triton.jit
def _sigmoids(z):
    """The sigmoid of ``z`` and of its negative, of one exponential that cannot overflow."""
    small = flushed(tl.exp(0.0 - tl.abs(z)))
    most, least = 1 / (1 + small), small / (1 + small)
    return tl.where(z >= 0, most, least), tl.where(z >= 0, least, most)
