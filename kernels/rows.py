"""Rows of a stack: what a loop over layers takes of its parameters, and puts back."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from precir.kernels.primitive import partitioned
from precir.scaled import ScaledArray, full_block

_with_layout: Any = with_layout_constraint

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
        return _as_it_lies.bind(stack)

    if isinstance(stack, ScaledArray):  # blocks of a stack are those of its rows, and one axis more
        return ScaledArray(one(stack.data, new.data), one(stack.scale, new.scale), stack.block)
    return one(stack, new)


def _lower(context: Any, stack: Any) -> Any:
    if partitioned(context.module_context.axis_context):
        return [stack]  # XLA would collect the whole stack on every device first
    return _laid_out(context, stack)


# An array in the layout that it has outside of the loop: else XLA:GPU may keep all layers
# transposed in it, where a product wants one so.
_as_it_lies: Any = Primitive("as_it_lies")
_as_it_lies.def_impl(lambda stack: stack)
_as_it_lies.def_abstract_eval(lambda stack: stack)
_laid_out: Any = mlir.lower_fun(
    lambda stack: _with_layout(stack, Layout(tuple(range(stack.ndim)))), multiple_results=False
)
mlir.register_lowering(_as_it_lies, _lower)
batching.primitive_batchers[_as_it_lies] = lambda stacks, axes: (stacks[0], axes[0])
ad.deflinear2(_as_it_lies, lambda cotangent, _: (cotangent,))
