"""Rows of a stack: what a loop over layers takes of its parameters, and puts back."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

__all__ = ["put_row", "row"]


def row(stack: Any, at: Any) -> Any:
    """Row `at` of a stack: of an array, axis 0; of a `ScaledArray` with scales for each row, data
    and scales. Out of bounds, negative too, it is the nearest row there is.
    """

    def one(array: Any) -> Any:
        start = (at, *(0 for _ in array.shape[1:]))
        size = (1, *array.shape[1:])
        part = lax.dynamic_slice(array, start, size, allow_negative_indices=False)
        return lax.squeeze(part, (0,))

    return jax.tree.map(one, stack)


def put_row(stack: Any, new: Any, at: Any) -> Any:
    """The stack with `new` as its row `at`; in place, where nothing else reads the stack."""

    def one(array: Any, part: Any) -> Any:
        start = (at, *(0 for _ in array.shape[1:]))
        part = lax.expand_dims(part, (0,))
        return lax.dynamic_update_slice(array, part, start, allow_negative_indices=False)

    return jax.tree.map(one, stack, new)
