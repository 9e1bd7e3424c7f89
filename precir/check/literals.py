"""What the program's literals were before the format rounded them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from precir.formats import FORMATS
from precir.ir import Graph, Literal, Node, Operand


def true_literals(graph: Graph, wide: Graph | None) -> dict[tuple[int, int], float]:
    """By (id of a node, operand index): the literal as a wider trace of the same function has it.

    JAX rounds a Python number into the dtype of its array when it traces, so that 1e-8 is 0 in a
    float16 program. Nodes of both traces are matched by op, user's place and order.
    """
    if wide is None:
        return {}
    there = _by_place(wide)
    found: dict[tuple[int, int], float] = {}
    for key, nodes in _by_place(graph).items():
        others = there.get(key, [])
        if len(others) != len(nodes):
            continue
        for node, other in zip(nodes, others, strict=True):
            for i, (mine, its) in enumerate(zip(node.inputs, other.inputs, strict=False)):
                if _rounded(mine, its):
                    found[(id(node), i)] = float(its.value)  # type: ignore[union-attr,arg-type]
    return found


def _rounded(mine: Operand, its: Operand) -> bool:
    return (
        isinstance(mine, Literal)
        and isinstance(its, Literal)
        and mine.value != its.value
        and mine.type.dtype in FORMATS
        and its.type.dtype in FORMATS
    )


def _by_place(graph: Graph) -> dict[Any, list[Node]]:
    found: dict[Any, list[Node]] = defaultdict(list)
    for node in graph.walk():
        if any(isinstance(o, Literal) for o in node.inputs):
            found[(node.op, node.source.where, len(node.inputs))].append(node)
    return found
