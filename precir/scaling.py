"""Whole trees of scaled tensors: state in a narrow format between steps, and back."""

from __future__ import annotations

from typing import Any

import jax
from jax import numpy as jnp
from jax.typing import DTypeLike

from precir.formats import Format
from precir.kernels.quantize import quantize
from precir.scaled import ScaledArray

_SCALED = ("float16", "bfloat16", "float32", "float64")


def scale(tree: Any, format: DTypeLike | Format) -> Any:
    """Every float16, bfloat16, float32 and float64 array of a pytree as a ``ScaledArray``.

    ``format`` is that of the data: "float16", "bfloat16", "float8_e4m3fn" or "float8_e5m2". Each
    array gets one scale, the smallest power of two under which nothing finite overflows
    (`precir.kernels.quantize`, also for zeros, infinities and NaN). Anything else is as it was:
    integers, booleans, keys, Python numbers, 8-bit arrays, and what is scaled already.

    A ``ScaledArray`` is one leaf of the result for those who say so, ``is_leaf=lambda x:
    isinstance(x, precir.ScaledArray)``, and two arrays for the rest of JAX. Raises
    ``QuantizeError`` on another format, ``UnknownFormat`` on what is none.
    """
    return jax.tree.map(
        lambda leaf: quantize(leaf, format) if _is_wide(leaf) else leaf, tree, is_leaf=_is_scaled
    )


def unscale(tree: Any) -> Any:
    """Every ``ScaledArray`` of a pytree as a plain float32 array; anything else as it was."""
    return jax.tree.map(
        lambda leaf: leaf.unscale(jnp.float32) if _is_scaled(leaf) else leaf,
        tree,
        is_leaf=_is_scaled,
    )


def _is_scaled(leaf: Any) -> bool:
    return isinstance(leaf, ScaledArray)


def _is_wide(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return not _is_scaled(leaf) and getattr(dtype, "name", None) in _SCALED
