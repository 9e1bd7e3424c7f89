"""Evaluate a part of a program on small samples, in real arithmetic, to see what function it is.

A program spells a norm or an activation in many ways, and its gradient in more. What they have in
common is what they compute. So nothing is matched by its shape: the part is evaluated in float64 on
a few rows, and compared with the function that it might be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from precir.ir import Literal, Node, Operand, Value
from precir.ops.numbers import ELEMENTWISE, evaluate, unrounded

Array = np.ndarray[Any, Any]

_CASTS: Final = ("convert_element_type", "cast")
_AXES_KEPT: Final = ("reshape", "squeeze", "expand_dims")
_MOST: Final = 400  # nodes that one value may be made of


class Unknown(Exception):
    """A value that is made of something that has no numbers here."""


class Samples:
    """Values as float64 arrays of the same rank, each axis as long as that of the samples it was
    made of, and of size 1 where it does not change along it.

    `given` has the leaves. Nodes are evaluated as they are asked for.
    """

    def __init__(self, given: Mapping[Value, Array]) -> None:
        self.known: dict[Value, Array] = dict(given)

    def of(self, operand: Operand) -> Array:
        """Raises `Unknown` where a value is made of something else than the leaves."""
        if isinstance(operand, Literal):
            return _number(operand)
        waiting = [operand]
        while waiting:
            value = waiting[-1]
            if value in self.known:
                waiting.pop()
                continue
            node = value.node
            if node is None or not computable(node) or len(self.known) > _MOST:
                raise Unknown
            missing = [o for o in node.inputs if isinstance(o, Value) and o not in self.known]
            if missing:
                waiting.extend(missing)
                continue
            self.known[value] = self._compute(node)
            waiting.pop()
        return self.known[operand]

    def _compute(self, node: Node) -> Array:
        operands = [_number(o) if isinstance(o, Literal) else self.known[o] for o in node.inputs]
        if node.regions:
            (body,) = node.regions
            inner = Samples(dict(zip(body.inputs, operands, strict=True)))
            return inner.of(body.outputs[0])
        shape = node.outputs[0].type.shape
        if node.op in _CASTS:
            return _converted(operands[0], node)
        if node.op in _REDUCE:
            return _reduced(operands[0], node)
        if node.op == "broadcast_in_dim":
            return _broadcast(operands[0], node.inputs[0].type.shape, node.params, shape)
        if node.op in _AXES_KEPT:
            return _reshaped(operands[0], node.inputs[0].type.shape, shape)
        if node.op == "transpose":
            return np.transpose(operands[0], node.params["permutation"])
        try:
            found = evaluate(node.op, node.params, operands)
        except ValueError as e:  # rows beside columns, of a square: the samples are not one
            raise Unknown from e
        if found is None:
            raise Unknown
        return found


_REDUCE: Final[dict[str, Any]] = {"reduce_sum": np.sum, "reduce_max": np.max}


def computable(node: Node) -> bool:
    """Whether there is a way to evaluate a node, of an op that makes one array of numbers."""
    if node.effects or len(node.outputs) != 1 or node.outputs[0].type.scale is not None:
        return False
    if node.regions:
        return node.op in ("custom_jvp_call", "jit") and all(computable(n) for n in node.regions[0])
    if any(o.type.scale is not None for o in node.inputs):
        return False
    if node.op == "reshard":  # JAX's own, of a constant where arguments lie on a mesh
        return not node.outputs[0].type.shape
    return node.op in _OPS


def elementwise(node: Node) -> bool:
    """Whether each element of its result is made of those in the same place."""
    if node.regions:
        return computable(node) and all(elementwise(n) for n in node.regions[0])
    return computable(node) and node.op not in (*_REDUCE, *_AXES_KEPT, "transpose")


def _number(literal: Literal) -> Array:
    value = literal.value
    if isinstance(value, bool):
        return np.asarray(value)
    if isinstance(value, complex):
        raise Unknown
    return np.asarray(unrounded(float(value), literal.type.dtype))


def _converted(x: Array, node: Node) -> Array:
    to = node.outputs[0].type.dtype
    if "float" not in to or to.startswith("float8"):
        raise Unknown
    return x.astype(np.float64)


def _reduced(x: Array, node: Node) -> Array:
    axes, shape = tuple(node.params["axes"]), node.inputs[0].type.shape
    found = np.asarray(_REDUCE[node.op](x, axis=axes))
    if node.op == "reduce_sum":
        for axis in axes:
            if x.shape[axis] == 1:  # the same all along it
                found = found * shape[axis]
    return found


def _broadcast(
    x: Array, old: tuple[int, ...], params: Mapping[str, Any], new: tuple[int, ...]
) -> Array:
    sizes = [1] * len(new)
    for i, axis in enumerate(params["broadcast_dimensions"]):
        if old[i] == new[axis]:
            sizes[axis] = x.shape[i]
        elif x.shape[i] != 1:
            raise Unknown
    return x.reshape(sizes)


def _reshaped(x: Array, old: tuple[int, ...], new: tuple[int, ...]) -> Array:
    """Where only axes of size 1 come or go."""
    longer = [size for n, size in zip(old, x.shape, strict=True) if n != 1]
    if [n for n in old if n != 1] != [n for n in new if n != 1]:
        raise Unknown
    sizes = iter(longer)
    return x.reshape([1 if n == 1 else next(sizes) for n in new])


_OPS: Final = frozenset({
    *ELEMENTWISE, *_CASTS, *_REDUCE, *_AXES_KEPT,
    "broadcast_in_dim", "transpose", "integer_pow", "one_minus_square", "select_n", "clamp",
})  # fmt: skip
