"""Look rows up in a quantised table, and dequantise what was found alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from precir.errors import PrecirError
from precir.scaled import ScaledArray, full_block, spread


class TableError(PrecirError, TypeError):
    """A gather of more or less than whole parts of a quantised table."""


def lookup(
    table: ScaledArray,
    indices: ArrayLike,
    dimension_numbers: lax.GatherDimensionNumbers,
    slice_sizes: tuple[int, ...],
    *,
    mode: Any,
    fill_value: Any = None,
    out: DTypeLike = jnp.float32,
) -> Array:
    """``lax.gather(table.unscale(), ...)`` as ``out``, without making the whole table.

    Args:
      table: of any block. Along each axis the gather takes one element by its index, or all.
      indices: integers, the last axis of which are those of one element.
      dimension_numbers, slice_sizes, mode: as of ``lax.gather``, without batching dimensions.
      fill_value: None, NaN or 0: what is out of bounds is NaN, or 0.
      out: dtype of the result; data * scale is multiplied in float32 and rounded once.

    Raises ``TableError`` (a ``TypeError``) if the gather takes parts of an axis.
    """
    indexed = dimension_numbers.start_index_map
    for axis, (size, n) in enumerate(zip(slice_sizes, table.shape, strict=True)):
        if size != (1 if axis in indexed else n):
            raise TableError(
                f"axis {axis} of a quantised table of {table.shape} is cut to {size}",
                fix="look up whole rows, or gather from table.unscale()",
            )
    at = jnp.asarray(indices)
    data = lax.gather(
        table.data, at, dimension_numbers, slice_sizes, mode=mode, fill_value=fill_value
    )
    wide = data.astype(np.float32)
    if not table.block:
        return _rounded(wide * table.scale.astype(np.float32), out)
    block = full_block(table.block, table.ndim)
    scales = lax.gather(
        table.scale.astype(np.float32),
        _of_blocks(at, table.shape, block, indexed, mode),
        dimension_numbers,
        tuple(1 if i in indexed else n for i, n in enumerate(table.scale.shape)),
        mode=mode,
        fill_value=None if fill_value is None else 1.0,
    )
    offsets = iter(dimension_numbers.offset_dims)
    found = [1] * data.ndim
    for axis, b in enumerate(block):
        if axis not in dimension_numbers.collapsed_slice_dims:
            found[next(offsets)] = b
    return _rounded(wide * spread(scales, data.shape, tuple(found)), out)


def _of_blocks(
    at: Array, shape: tuple[int, ...], block: tuple[int, ...], indexed: tuple[int, ...], mode: Any
) -> Array:
    """The indices of the blocks that hold the elements of these indices."""
    sizes = [block[axis] for axis in indexed]
    if all(b == 1 for b in sizes):
        return at
    if lax.GatherScatterMode.from_any(mode) == lax.GatherScatterMode.CLIP:
        last = np.array([shape[axis] - 1 for axis in indexed], at.dtype)
        at = jnp.clip(at, 0, last)
    return jnp.floor_divide(at, np.array(sizes, at.dtype))


def _rounded(wide: Array, out: DTypeLike) -> Array:
    return wide.astype(out)
