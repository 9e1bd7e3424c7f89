"""Masks of which every row keeps something: causal ones, and those written out as constants."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from precir.ir import Node, Operand, Value
from precir.ops.facts.context import Context
from precir.ops.facts.views import constant, view

_SWAPPED = {"le": "ge", "lt": "gt"}


def keeps_some(node: Node, ctx: Context) -> bool:
    """Whether a reduction of `where(mask, x, -inf)` meets an x in every row, x being finite."""
    operand = node.inputs[0]
    if not isinstance(operand, Value):
        return False
    shown = view(operand)
    chosen = shown.root.node
    if chosen is None or chosen.op != "select_n" or len(chosen.inputs) != 3:
        return False
    which, false, true = chosen.inputs
    axes = {d for a in node.params["axes"] if (d := shown.dims[a]) is not None}
    if not isinstance(which, Value) or not which.type.shape:
        return False
    if ctx.of(true).finite and not ctx.of(true).empty:
        return some(which, axes, True, ctx)
    if ctx.of(false).finite and not ctx.of(false).empty:
        return some(which, axes, False, ctx)
    return False


def some(mask: Value, axes: Collection[int], wanted: bool, ctx: Context, depth: int = 6) -> bool:
    """Whether, along these axes of a mask, some element is `wanted` wherever one stands."""
    shown = view(mask)
    node = shown.root.node
    inner = {d for a in axes if (d := shown.dims[a]) is not None}
    if node is None or depth == 0:
        return False
    f = ctx.of(shown.root)
    if f.lo == f.hi == float(wanted):
        return True
    if node.op == "constant":
        array = ctx.array(shown.root)
        if array is None:
            return False
        return bool(np.any(np.asarray(array) == wanted, axis=tuple(inner)).all())
    operands = node.inputs
    if node.op == "not" and isinstance(operands[0], Value):
        return some(operands[0], inner, not wanted, ctx, depth - 1)
    if node.op == ("or" if wanted else "and"):
        return any(
            isinstance(o, Value) and some(o, inner, wanted, ctx, depth - 1) for o in operands
        )
    if node.op == "select_n" and len(operands) == 3 and isinstance(operands[0], Value):
        cases = (constant(operands[1]), constant(operands[2]))
        if cases in ((0.0, 1.0), (1.0, 0.0)):
            same = cases == (0.0, 1.0)
            return some(operands[0], inner, wanted == same, ctx, depth - 1)
        return False
    return _compared(node, inner, wanted, ctx)


def _compared(node: Node, axes: Collection[int], wanted: bool, ctx: Context) -> bool:
    """Comparisons of something that stands still along the axes with an index along one."""
    op, (left, right) = node.op, node.inputs[:2] if len(node.inputs) > 1 else (None, None)
    if left is None or right is None:
        return False
    if not wanted:
        op = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "ne": "eq", "eq": "ne"}.get(op, "")
    if op in _SWAPPED:
        op, left, right = _SWAPPED[op], right, left
    for still, index, flipped in ((left, right, False), (right, left, True)):
        if not _stands_still(still, axes) or not (size := _index(index, axes)):
            continue
        f = ctx.of(still)
        if not f.finite or f.empty:
            continue
        if op == "eq" and f.whole and f.lo >= 0 and f.hi <= size - 1:
            return True
        if op == "ne" and size > 1:
            return True
        if op in ("ge", "gt") and not flipped:  # still >= index for index 0
            return f.lo >= 0 if op == "ge" else f.lo > 0
        if op in ("ge", "gt") and flipped:  # index >= still for the last index
            return f.hi <= size - 1 if op == "ge" else f.hi < size - 1
    return False


def _stands_still(operand: Operand, axes: Collection[int]) -> bool:
    if not isinstance(operand, Value):
        return True
    if not operand.type.shape:
        return True
    node = operand.node
    if node is not None and node.op == "iota":
        return node.params["dimension"] not in axes
    if node is not None and node.op in ("add", "sub", "mul", "add_any"):
        return all(_stands_still(o, axes) for o in node.inputs)
    shown = view(operand)
    if shown.root is operand:
        return False
    inner = [d for a, d in enumerate(shown.dims) if a in axes and d is not None]
    return not inner or _stands_still(shown.root, inner)


def _index(operand: Operand, axes: Collection[int]) -> int:
    """The length of the axis among `axes` that an operand counts along from 0; 0 if it does not."""
    if not isinstance(operand, Value):
        return 0
    shown = view(operand)
    node = shown.root.node
    if node is None or node.op != "iota":
        return 0
    along = node.params["dimension"]
    counted = [a for a, d in enumerate(shown.dims) if d == along and a in axes]
    return int(shown.root.type.shape[along]) if counted else 0
