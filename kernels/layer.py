"""One layer of a stack of weights, which kernels read where it lies.

A loop over layers that XLA compiles hands each kernel a copy of its layer: a kernel's operands are
whole arrays. A `Layer` is the stack and the number of the layer instead, and the kernel finds its
place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike

from precir.kernels.division import Rule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """Layer ``index`` (int32[], not negative, below ``stack.shape[0]``) of ``stack``: what
    ``quantize`` and its like take in the place of an array. It has that array's shape and dtype.
    """

    stack: Array
    index: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def ndim(self) -> int:
        return self.stack.ndim - 1

    @property
    def size(self) -> int:
        return self.stack.size // max(1, len(self.stack)) if len(self.stack) else 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stack.dtype

    def reshape(self, *shape: Any) -> Layer:
        """The same layer in another shape, as ``jax.Array.reshape`` has it."""
        sizes = shape[0] if shape and isinstance(shape[0], tuple) else shape
        like = jax.ShapeDtypeStruct(self.shape, self.dtype)  # type: ignore[no-untyped-call]
        sizes = jax.eval_shape(lambda x: x.reshape(sizes), like).shape
        return Layer(self.stack.reshape(self.stack.shape[0], *sizes), self.index)

    def array(self) -> Array:
        """A copy of it."""
        taken: Array = lax.dynamic_index_in_dim(self.stack, self.index, 0, keepdims=False)
        return taken


Source = Array | Layer
"""What a kernel reads."""


def as_array(x: ArrayLike | Layer) -> Array:
    """Itself, or a copy of the layer."""
    return x.array() if isinstance(x, Layer) else jnp.asarray(x)


def operands(x: Source, *others: Array) -> tuple[Array, ...]:
    """As a primitive takes them: the index comes last, where there is one."""
    return (x.stack, *others, x.index) if isinstance(x, Layer) else (x, *others)


def source(x: Array, index: tuple[Array, ...]) -> Source:
    """What these operands of a primitive are."""
    return Layer(x, *index) if index else x


def pointers(x: Source) -> tuple[Array, Array]:
    """As a raw kernel takes them; of what is no layer, the second is not looked at."""
    return (x.stack, x.index) if isinstance(x, Layer) else (x, x)


def step(x: Source) -> int:
    """Elements from one layer to the next, for a raw kernel: 0 of what is no layer."""
    return x.size if isinstance(x, Layer) else 0


def in_front(
    x: Array, dim: int | None, index: Sequence[Array], index_dim: Sequence[int | None], size: int
) -> tuple[Array, ...]:
    """The operand ``x``, and the index if there is one, with the batch axis, of ``size``, as the
    first of the layer.
    """
    if index and index_dim[0] is None:
        if dim is None:
            return jnp.broadcast_to(x[:, None], (len(x), size, *x.shape[1:])), *index
        return jnp.moveaxis(x, dim, 1), *index
    if index:  # each example has another layer
        return (jax.vmap(_taken, (dim, index_dim[0]))(x, *index),)
    if dim is None:
        return (jnp.broadcast_to(x, (size, *x.shape)),)
    return (jnp.moveaxis(x, dim, 0),)


def _taken(stack: Array, index: Array) -> Array:
    return Layer(stack, index).array()


def batch_size(operands: tuple[Array, ...], dims: tuple[int | None, ...]) -> int:
    """How many examples a batching rule is given."""
    return next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)


def of_layers(rule: Callable[..., Rule], count: int) -> Callable[..., Rule]:
    """The rule of division for ``count`` operands, and for an index beside them: then the first is
    a stack, of which every device needs all layers.
    """

    def made(*shapes: tuple[int, ...], **params: Any) -> Rule:
        if len(shapes) == count:
            return rule(*shapes, **params)
        plain = rule(shapes[0][1:], *shapes[1:count], **params)
        first, *others = plain.operands
        return replace(plain, operands=((None, *first), *others, ()))

    return made
