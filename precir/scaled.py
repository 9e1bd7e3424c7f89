"""A quantised tensor as users see it: narrow data and the scale that gives them their value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.errors import PrecirError


class ScaleError(PrecirError, ValueError):
    """A method that takes one scale, called on a tensor that has several."""


@partial(jax.tree_util.register_dataclass, data_fields=["data", "scale"], meta_fields=[])
@dataclass(frozen=True, eq=False, repr=False)
class ScaledArray:
    """The tensor ``data * scale``; a JAX pytree with the leaves ``data`` and ``scale``.

    ``data`` is an array of any shape in a narrow format; ``scale`` is a float32 scalar, one for
    the whole tensor. Where ``jax.vmap`` gave every example its own scale, ``scale`` has the
    leading axes of ``data``. Nothing is checked on construction, since JAX builds pytrees out of
    placeholders.
    """

    data: Array
    scale: Array

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
        return ScaledArray(self.data.reshape(*shape), self._one_scale("reshape"))

    def transpose(self, *axes: Any) -> ScaledArray:
        return ScaledArray(self.data.transpose(*axes), self._one_scale("transpose"))

    def swapaxes(self, axis1: int, axis2: int) -> ScaledArray:
        return ScaledArray(self.data.swapaxes(axis1, axis2), self._one_scale("swapaxes"))

    def unscale(self, dtype: DTypeLike = jnp.float32) -> Array:
        """The plain array ``data * scale``, multiplied in float32 or wider, as ``dtype``."""
        wide = jnp.promote_types(dtype, jnp.float32)
        scale = jnp.asarray(self.scale, wide)
        scale = scale.reshape(scale.shape + (1,) * (self.ndim - scale.ndim))
        return (self.data.astype(wide) * scale).astype(dtype)

    def astype(self, dtype: DTypeLike) -> Array:
        """The same as ``unscale(dtype)``: the value, not the data, in another dtype."""
        return self.unscale(dtype)

    def _one_scale(self, method: str) -> Array:
        if jnp.ndim(self.scale) != 0:
            raise ScaleError(
                f"ScaledArray.{method} needs one scale for the whole tensor, "
                f"and this one has scales of shape {jnp.shape(self.scale)}",
                fix=f"call {method} inside the jax.vmap that made the scales",
            )
        return self.scale

    def __repr__(self) -> str:
        return f"ScaledArray({_show(self.data)}, scale={_show(self.scale)})"


def _show(leaf: Any) -> str:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    if concrete and leaf.ndim == 0 and leaf.is_fully_addressable:
        return f"{leaf.item()!r}"
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return repr(leaf)
