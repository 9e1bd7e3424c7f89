"""Constants that a format makes zero, by what guards a pole with them: nothing has to be run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from precir.check.blame import Blame, Root
from precir.domains.kinds import ZERO
from precir.ir import Graph, Literal, Node, Value
from precir.passes.facts import Facts

# What a guard passes through on its way to the pole: zero stays zero.
THROUGH: Final = frozenset((
    "sqrt", "cbrt", "square", "abs", "broadcast_in_dim", "reshape", "transpose", "squeeze",
    "expand_dims", "copy", "stop_gradient", "convert_element_type", "optimization_barrier",
))  # fmt: skip
FAR: Final = 6  # steps from the guard to the pole


def vanished(graph: Graph, facts: Facts, true: Mapping[tuple[int, int], float]) -> Iterator[Blame]:
    """Poles (a divisor, a root or a logarithm of zero) behind a guard that is zero.

    Args:
      graph: the program, in the format.
      facts: of it, from which a guarded value that is never zero is known.
      true: literals as they were before rounding (`literals.true_literals`).
    """
    for node in graph.walk():
        if node.op not in ("add", "max"):
            continue
        for i, operand in enumerate(node.inputs):
            was = true.get((id(node), i))
            if was and isinstance(operand, Literal) and operand.value == 0:
                root = Root("underflow", None, "literal", operand, (), was)
                for pole, symptom in _poles(graph, node.outputs[0], facts, FAR):
                    yield Blame(pole, symptom, root, 0)


def _poles(graph: Graph, value: Value, facts: Facts, steps: int) -> Iterator[tuple[Node, str]]:
    if not facts[value].flags & ZERO or not steps:
        return
    for user in graph.users.get(value, ()):
        if user.op in THROUGH:
            yield from _poles(graph, user.outputs[0], facts, steps - 1)
        elif _at_pole(user, value):
            above = user.inputs[0] if user.op == "div" else None
            zeros = isinstance(above, Value) and facts[above].flags & ZERO
            yield user, "nan" if zeros else "inf"


def _at_pole(node: Node, value: Value) -> bool:
    if node.op == "div":
        return node.inputs[1] is value
    if node.op == "integer_pow":
        return int(node.params["y"]) < 0
    return node.op in ("rsqrt", "log", "log2")
