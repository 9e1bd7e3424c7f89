"""What samples cannot show: a program that compares may do something else where no sample is.

So what a function is made of has to be smooth, by the ops that make it, but where it compares with
zero: that is a place that samples can be at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from precir.ir import Literal, Node, Operand, Value

FLOATS: Final = ("float32", "bfloat16", "float16")
_CASTS: Final = ("convert_element_type", "cast")
_SPREADS: Final = ("broadcast_in_dim", "reshape", "expand_dims", "squeeze", *_CASTS)
_SMOOTH: Final = frozenset({
    "add", "add_any", "sub", "mul", "div", "neg", "square", "sqrt", "rsqrt", "integer_pow", "pow",
    "one_minus_square", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc",
    "copy", "reshard", "stop_gradient", "broadcast_in_dim", "reshape", "expand_dims", "squeeze",
    "transpose", "reduce_sum",
})  # fmt: skip
_COMPARE: Final = frozenset({"max", "min", "eq", "ne", "lt", "le", "gt", "ge"})
_CHOOSE: Final = frozenset({"select_n", "and", "or", "not"})


def compared(values: Iterable[Operand], leaves: Iterable[Value]) -> list[Value] | None:
    """What is compared with zero where `values` are made of `leaves`; None where anything else is
    not smooth, or they are made of something else.
    """
    found: list[Value] = []
    waiting, met = _values(values), set(leaves)
    while waiting:
        value = waiting.pop()
        if value in met:
            continue
        met.add(value)
        node = value.node
        asked = _asked(node) if node is not None else None
        if node is None or asked is None:
            return None
        found += asked
        waiting += _values(node.inputs)
    return found


def _asked(node: Node) -> list[Value] | None:
    """What a node compares with zero; None where it does something else that is not smooth."""
    if node.op in _COMPARE:
        return _with_zero(node)
    if not node.regions:
        return [] if node.op in _CHOOSE or is_smooth(node) else None
    (body,) = node.regions
    asked = compared(body.outputs, body.inputs)
    if asked is None or any(uncast(v) not in body.inputs for v in asked):
        return None
    return _values(node.inputs[body.inputs.index(uncast(v))] for v in asked)


def is_smooth(node: Node) -> bool:
    """Whether it is of an op that has all derivatives where it is finite, on floats that are wide.
    Truths may become numbers, and constants anything.
    """
    if node.op in _CASTS:
        kinds = [o.type.dtype for o in (*_values(node.inputs), *node.outputs)]
        return all(kind in (*FLOATS, "float64", "bool") for kind in kinds)
    return node.op in _SMOOTH


def _with_zero(node: Node) -> list[Value] | None:
    a, b = node.inputs
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Value) and _zero(other):
            return [one]
    # Whether a number is the larger of it and zero, as derivatives of that ask.
    for one, other in ((a, b), (b, a)):
        made = other.node if isinstance(other, Value) else None
        if node.op == "eq" and made is not None and made.op in ("max", "min"):
            return _with_zero(made) if one in made.inputs else None
    return None


def _zero(operand: Operand) -> bool:
    """Whether it is nothing but zero, spread or not."""
    while not isinstance(operand, Literal):
        if operand.node is None or operand.node.op not in _SPREADS:
            return False
        operand = operand.node.inputs[0]
    return operand.value == 0


def _values(operands: Iterable[Operand]) -> list[Value]:
    return [o for o in operands if isinstance(o, Value)]


def uncast(value: Value) -> Value:
    """What it was made of by other formats alone."""
    while value.node is not None and value.node.op in _CASTS:
        source = value.node.inputs[0]
        if not isinstance(source, Value):
            break
        value = source
    return value
