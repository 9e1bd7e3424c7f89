"""A quantised tensor as users see it: narrow data and the scales that give them their value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.errors import PrecirError


class ScaleError(PrecirError, ValueError):
    """A method that takes one scale, called on a tensor that has several."""


@partial(jax.tree_util.register_dataclass, data_fields=["data", "scale"], meta_fields=["block"])
@dataclass(frozen=True, eq=False, repr=False)
class ScaledArray:
    """The tensor ``data * scale``; a JAX pytree with the leaves ``data`` and ``scale``.

    ``data`` is an array of any shape in a narrow format. ``scale`` is float32, or
    float8_e8m0fnu for OCP's MX formats, and ``block`` says what each scale reaches over: the
    sizes of a block along the trailing axes of ``data``. With ``block=()`` it is a scalar, one
    scale for the whole tensor; with ``block=(1, 128)`` each row of a matrix has one for every 128
    columns, the last of which may be fewer. So ``scale.shape`` is
    ``data.shape[:ndim - len(block)] + ceil(rest / block)``; with ``block=()`` it is ``()``.

    Where ``jax.vmap`` or a scan gave every example scales of its own, ``scale`` begins with the
    leading axes of ``data``; ``block`` stays what it was. Nothing is checked on construction,
    since JAX builds pytrees out of placeholders.
    """

    data: Array
    scale: Array
    block: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the data, as float8_e4m3fn."""
        return self.data.dtype

    @property
    def T(self) -> ScaledArray:
        return self.transpose()

    def reshape(self, *shape: Any) -> ScaledArray:
        """Blocks go along where `reshaped_block` says that they stay blocks."""
        data = self.data.reshape(*shape)
        block = reshaped_block(self.shape, data.shape, self.block) if self.block else None
        if block is None:
            return ScaledArray(data, self._one_scale("reshape"))
        return ScaledArray(data, self.scale.reshape(scale_shape(data.shape, block)), block)

    def transpose(self, *axes: Any) -> ScaledArray:
        """The axes of blocks and scales go with those of the data."""
        if not self.block:
            return ScaledArray(self.data.transpose(*axes), self._one_scale("transpose"))
        data, scale = self.data.transpose(*axes), self.scale.transpose(*axes)
        # NumPy reads the axes as JAX does: where a stand-in's sizes went is where the axes went.
        stand_in = np.empty(tuple(range(self.ndim)), np.bool_).transpose(*axes)
        block = full_block(self.block, self.ndim)
        return ScaledArray(data, scale, tuple(block[axis] for axis in stand_in.shape))

    def swapaxes(self, axis1: int, axis2: int) -> ScaledArray:
        axes = list(range(self.ndim))
        axes[axis1], axes[axis2] = axes[axis2], axes[axis1]
        return self.transpose(axes)

    def unscale(self, dtype: DTypeLike = jnp.float32) -> Array:
        """The plain array ``data * scale``, multiplied in float32 or wider, as ``dtype``."""
        wide = jnp.promote_types(dtype, jnp.float32)
        scale = spread(jnp.asarray(self.scale).astype(wide), self.shape, self.block)
        return (self.data.astype(wide) * scale).astype(dtype)

    def astype(self, dtype: DTypeLike) -> Array:
        """The same as ``unscale(dtype)``: the value, not the data, in another dtype."""
        return self.unscale(dtype)

    def _one_scale(self, method: str) -> Array:
        if self.block:
            raise ScaleError(
                f"ScaledArray.{method} needs one scale for the whole tensor, "
                f"and this one has a scale for each block of {self.block}",
                fix=f"{method} the plain array, .unscale(), and quantize the result",
            )
        if jnp.ndim(self.scale) != 0:
            raise ScaleError(
                f"ScaledArray.{method} needs one scale for the whole tensor, "
                f"and this one has scales of shape {jnp.shape(self.scale)}",
                fix=f"call {method} inside the jax.vmap that made the scales",
            )
        return self.scale

    def __repr__(self) -> str:
        block = f", block={self.block}" if self.block else ""
        return f"ScaledArray({_show(self.data)}, scale={_show(self.scale)}{block})"


def full_block(block: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """A block's size along each of ``ndim`` axes: 1 along the leading ones it does not name.

    Sizes too many are dropped from the front: a scan takes the leading axis off the data.
    """
    return (1,) * (ndim - len(block)) + tuple(block[max(0, len(block) - ndim) :])


def scale_shape(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of data of ``shape`` in blocks: one for each, also the last ones,
    which may reach over the end. ``()`` with no block.
    """
    if not block:
        return ()
    return tuple(-(-n // b) for n, b in zip(shape, full_block(block, len(shape)), strict=True))


def reshaped_block(
    shape: tuple[int, ...], new: tuple[int, ...], block: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The block of data of ``shape`` once it is reshaped to ``new``; None if its parts are none.

    They are where axes that are merged or split are cut into single elements alike, or not at all.
    """
    if not block or 0 in shape:
        return None if block else ()
    full = full_block(block, len(shape))
    found = [1] * len(new)
    for axes, others in _merged(shape, new):
        if len(axes) == len(others) == 1:
            found[others[0]] = min(full[axes[0]], new[others[0]])
        elif all(full[i] >= shape[i] for i in axes):
            for i in others:
                found[i] = new[i]
        elif not all(full[i] == 1 for i in axes):
            return None
    return tuple(found)


def _merged(shape: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of a shape, and those of another that hold the same elements; none of size 1."""
    left = [i for i, n in enumerate(shape) if n != 1]
    right = [i for i, n in enumerate(new) if n != 1]
    while left and right:
        axes, others = [left.pop(0)], [right.pop(0)]
        a, b = shape[axes[0]], new[others[0]]
        while a != b:
            if a < b:
                axes.append(left.pop(0))
                a *= shape[axes[-1]]
            else:
                others.append(right.pop(0))
                b *= new[others[-1]]
        yield axes, others


def spread(scale: Array, shape: tuple[int, ...], block: tuple[int, ...]) -> Array:
    """A scale for each element of data of ``shape``, in a shape that broadcasts against it."""
    if not block:
        return scale.reshape(scale.shape + (1,) * (len(shape) - scale.ndim))
    for axis, (n, b) in enumerate(zip(shape, full_block(block, len(shape)), strict=True)):
        if 1 < b < n:
            repeated = lax.broadcast_in_dim(
                scale,
                (*scale.shape[: axis + 1], b, *scale.shape[axis + 1 :]),
                tuple(i + (i > axis) for i in range(scale.ndim)),
            )
            count = scale.shape[axis]
            whole = repeated.reshape(*scale.shape[:axis], count * b, *scale.shape[axis + 1 :])
            scale = lax.slice_in_dim(whole, 0, n, axis=axis)
    return scale


def _show(leaf: Any) -> str:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    if concrete and leaf.ndim == 0 and leaf.is_fully_addressable:
        return f"{leaf.item()!r}"
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return repr(leaf)
