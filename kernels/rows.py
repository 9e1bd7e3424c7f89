"""Rows of a stack: what a loop over layers takes of its parameters, and puts back."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint

from precir.scaled import ScaledArray, full_block

# JAX's own are not typed.
_with_layout: Any = with_layout_constraint
_custom_partitioning: Any = custom_partitioning

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

    taken = jax.tree.map(one, stack)
    if isinstance(taken, ScaledArray):
        return ScaledArray(
            taken.data, taken.scale, full_block(stack.block, taken.ndim) if stack.block else ()
        )
    return taken


def put_row(stack: Any, new: Any, at: Any) -> Any:
    """The stack with `new` as its row `at`; in place, where nothing else reads the stack."""

    def one(array: Any, part: Any) -> Any:
        start = (at, *(0 for _ in array.shape[1:]))
        part = lax.expand_dims(part, (0,))
        stack = lax.dynamic_update_slice(array, part, start, allow_negative_indices=False)
        return _as_it_lies(stack)

    if isinstance(stack, ScaledArray):  # blocks of a stack are those of its rows, and one axis more
        return ScaledArray(one(stack.data, new.data), one(stack.scale, new.scale), stack.block)
    return one(stack, new)


def _pinned(stack: jax.Array) -> jax.Array:
    """An array in the layout that it has outside of the loop: else XLA:GPU may keep all layers
    transposed in it, where a product wants one so.
    """
    pinned: jax.Array = _with_layout(stack, Layout(tuple(range(stack.ndim))))
    return pinned


def _partition(mesh: Any, given: Any, result: Any) -> Any:
    """Each device pins what it has of it; XLA would collect the whole stack first."""
    return mesh, _pinned, given[0].sharding, (given[0].sharding,)


_pinned_apart: Any = _custom_partitioning(_pinned)
_pinned_apart.def_partition(
    partition=_partition,
    infer_sharding_from_operands=lambda mesh, given, result: given[0].sharding,
    sharding_rule="... -> ...",
    decode_shardings=False,  # XLA divides by parts of an axis too, which no spec of JAX says
)
_as_it_lies: Any = custom_vmap(lambda stack: _pinned_apart(stack))
_as_it_lies.def_vmap(lambda size, batched, stack: (stack, batched[0]))
