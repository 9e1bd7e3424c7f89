"""Where a value's elements come from: through broadcasts, transposes and exact conversions."""

from __future__ import annotations

from typing import NamedTuple

from precir.formats import FORMATS
from precir.ir import Literal, Node, Operand, Value

Dims = tuple[int | None, ...]


class View(NamedTuple):
    """A value's element at (i, j, ...) is the root's at the indices that `dims` names.

    `dims[k]` is the root's axis that axis k of the value runs along, None where all along axis k
    is the same (or axis k has one element).
    """

    root: Value
    dims: Dims


def view(value: Value, narrowing: bool = False) -> View:
    """The value that this one only shows; conversions that may round only if `narrowing`."""
    dims: Dims = tuple(range(value.type.rank))
    for _ in range(32):
        node = value.node
        if node is None:
            break
        inner = _step(node, narrowing)
        if inner is None:
            break
        operand, through = inner
        dims = tuple(None if d is None else through[d] for d in dims)
        value = operand
    return View(value, dims)


def _step(node: Node, narrowing: bool) -> tuple[Value, Dims] | None:
    op = node.op
    if not node.inputs or not isinstance(node.inputs[0], Value):
        shown = _beside_literal(node)
        return (shown, tuple(range(shown.type.rank))) if shown is not None else None
    operand = node.inputs[0]
    shape, result = operand.type.shape, node.outputs[0].type.shape
    if op == "broadcast_in_dim":
        axes = list(node.params["broadcast_dimensions"])
        found: list[int | None] = [None] * len(result)
        for i, axis in enumerate(axes):
            found[axis] = i if shape[i] == result[axis] and shape[i] != 1 else None
        return operand, tuple(found)
    if op in ("reshape", "squeeze", "expand_dims"):
        kept = [i for i, n in enumerate(shape) if n != 1]
        if [shape[i] for i in kept] != [n for n in result if n != 1]:
            return None
        order = iter(kept)
        return operand, tuple(None if n == 1 else next(order) for n in result)
    if op == "transpose":
        return operand, tuple(node.params["permutation"])
    if op in ("stop_gradient", "copy", "sharding_constraint", "copy_p"):
        return operand, tuple(range(len(shape)))
    if op in ("convert_element_type", "cast"):
        source, target = FORMATS.get(operand.type.dtype), FORMATS.get(node.outputs[0].type.dtype)
        if source is None or target is None:
            return None
        wider = target.mantissa_bits >= source.mantissa_bits and target.max >= source.max
        return (operand, tuple(range(len(shape)))) if wider or narrowing else None
    shown = _beside_literal(node)
    return (shown, tuple(range(shown.type.rank))) if shown is not None else None


def _beside_literal(node: Node) -> Value | None:
    """X of max(-inf, x) and of min(inf, x)."""
    if node.op not in ("max", "min") or len(node.inputs) != 2:
        return None
    neutral = float("-inf") if node.op == "max" else float("inf")
    for literal, other in (node.inputs, node.inputs[::-1]):
        if constant(literal) == neutral and isinstance(other, Value):
            return other
    return None


def constant(operand: Operand) -> float | None:
    """The number that all elements of an operand are, if it is written in the program."""
    for _ in range(8):
        if isinstance(operand, Literal):
            value = operand.value
            return float(value) if not isinstance(value, complex) else None
        node = operand.node
        if node is None or node.op not in (
            "broadcast_in_dim", "convert_element_type", "reshape", "stop_gradient", "squeeze",
            "copy",
        ):  # fmt: skip
            return None
        operand = node.inputs[0]
    return None


def alike(a: Operand, b: Operand, depth: int = 8) -> bool:
    """Whether two values are computed in the same way from the same values."""
    if a is b or (isinstance(a, Literal) and a == b):
        return True
    if not isinstance(a, Value) or not isinstance(b, Value) or depth == 0 or a.index != b.index:
        return False
    one, other = a.node, b.node
    if one is None or other is None or one.op != other.op or one.regions or one.effects:
        return False
    if one.op == "constant" or len(one.inputs) != len(other.inputs) or not one.inputs:
        return False
    try:
        if dict(one.params) != dict(other.params):
            return False
    except ValueError:  # a parameter holds arrays
        return False
    return all(alike(x, y, depth - 1) for x, y in zip(one.inputs, other.inputs, strict=True))


class Reduction(NamedTuple):
    """A reduction shown beside its operand.

    `dims[k]` is the axis of `of` that axis k runs along, None where it was reduced or has one
    element; `axes` are the reduced axes of `of`.
    """

    node: Node
    of: Value
    dims: Dims
    axes: frozenset[int]


def reduction(value: Value, op: str) -> Reduction | None:
    """If all that a value shows is a reduction of something, that reduction."""
    shown = view(value, narrowing=True)
    node = shown.root.node
    if node is None or node.op != op or not isinstance(node.inputs[0], Value):
        return None
    inner = view(node.inputs[0])
    reduced = set(node.params["axes"])
    kept = [i for i in range(node.inputs[0].type.rank) if i not in reduced]
    dims = tuple(None if d is None else inner.dims[kept[d]] for d in shown.dims)
    axes = frozenset(d for a in reduced if (d := inner.dims[a]) is not None)
    return Reduction(node, inner.root, dims, axes)


def beside(value: Value, r: Reduction) -> bool:
    """Whether each element of the value is one of those that the reduction beside it covers."""
    shown = view(value)
    if len(shown.dims) != len(r.dims) or not alike(shown.root, r.of):
        return False
    for mine, its in zip(shown.dims, r.dims, strict=True):
        if its != mine and not (its is None and (mine is None or mine in r.axes)):
            return False
    # every axis that was kept must be shown, or have one element
    kept = {i for i, n in enumerate(r.of.type.shape) if n != 1} - r.axes
    return kept <= set(shown.dims)
