"""What follows a product before it is stored: bias, activation, the largest, rounding to FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from precir.kernels.primitive import Results
from precir.kernels.quantize import quantize_given_reference

ACTIVATIONS: Final = ("relu", "gelu", "gelu_tanh", "silu")


@dataclass(frozen=True)
class Epilogue:
    """What is done to a product in float32, in this order; hashable, a primitive's parameter."""

    bias: bool = False
    """Whether a bias is added: an operand of the rank of the result, of size 1 where it is one for
    all."""
    activation: str | None = None
    kept: tuple[int, ...] | None = None
    """The axes of the result along which the largest is not taken; None to take none."""
    narrow: bool = False
    """Whether the result is data under a scale that is given: an operand like the bias."""

    def __bool__(self) -> bool:
        return self != PLAIN


PLAIN: Final = Epilogue()


def finished(product: Array, extra: tuple[Array, ...], epilogue: Epilogue, out: Any) -> Results:
    """A float32 product with its epilogue, as ``out``; and the largest, if that is taken."""
    bias, scale = split(extra, epilogue)
    if bias is not None:
        product = product + bias
    product = activated(product, epilogue.activation)
    if scale is not None:
        result = quantize_given_reference(product, scale, dtype=out)[0]
    else:
        result = product.astype(out)
    if epilogue.kept is None:
        return (result,)
    axes = tuple(i for i in range(product.ndim) if i not in epilogue.kept)
    magnitude = lax.abs(product)
    finite = jnp.where(magnitude < np.inf, magnitude, 0)  # NaN compares false too
    return result, jnp.max(finite, axes, initial=0)


def split(extra: tuple[Array, ...], epilogue: Epilogue) -> tuple[Array | None, Array | None]:
    """The bias and the scale of the result, of the operands that follow the product's own."""
    bias = extra[0] if epilogue.bias else None
    return bias, extra[-1] if epilogue.narrow else None


def activated(x: Array, activation: str | None) -> Array:
    """An activation of a float32 array. "gelu" is the exact one, "gelu_tanh" its approximation."""
    if activation == "relu":
        return jnp.where((x > 0) | jnp.isnan(x), x, 0)
    if activation == "silu":
        return jax.nn.silu(x)
    if activation is not None:
        return jax.nn.gelu(x, approximate=activation == "gelu_tanh")
    return x
