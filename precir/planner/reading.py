"""What a plan needs of a train step, read off its graph: weights, tokens, FLOPs and formats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from precir.ir import BACKWARD, FORWARD, Graph, Node
from precir.planner.errors import PlanError
from precir.program import Program
from precir.report import Report

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StepFacts:
    """One call of a train step.

    Attributes:
      params: weights that forward products multiply, those of the logits among them, those that
        are only looked up not; one that is used twice counts twice.
      tokens: rows that most of them multiply: tokens of a language model.
      flops: of all products, forward and backward, attention too.
      low_share: the part of them in 8 bits.
      recipe: its name.
    """

    params: int
    tokens: int
    flops: int
    low_share: float
    recipe: str


def read(program: Program) -> StepFacts:
    """Read a compiled program.

    A weight is an operand of a forward product without batch axes that has the shape of an
    argument (of a layer of it, if layers are scanned over), best of one that comes back.

    Raises:
      PlanError: no such product, or loops of unknown length.
    """
    graph = program.stages[0].graph
    shapes = _weight_shapes(graph)
    found = [w for node, times in _forward(graph) for w in _weight(node, times, shapes)]
    if not found:
        raise PlanError(
            "no product of the function multiplies an argument's weights",
            fix="plan with params= and tokens=",
        )
    report = Report.of(program)
    rows = [(p.flops, p.times, p.low) for p in report.products]
    if any(flops is None or times is None for flops, times, _ in rows):
        raise PlanError(
            "a loop of unknown length holds products", fix="plan with params= and tokens="
        )
    work = [((flops or 0) * (times or 0), low) for flops, times, low in rows]
    whole = sum(n for n, _ in work)
    return StepFacts(
        params=sum(size * times for size, times, _ in found),
        tokens=_usual(found),
        flops=whole,
        low_share=sum(n for n, low in work if low) / whole if whole else 0.0,
        recipe=report.recipe,
    )


def _forward(graph: Graph, times: int = 1) -> Iterator[tuple[Node, int]]:
    """Forward nodes and how often they run; what is computed again for a gradient is not."""
    for node in graph:
        if node.phase == BACKWARD:
            continue
        if node.phase == FORWARD:
            yield node, times
        inside = times * int(node.params["length"]) if node.op == "scan" else times
        for region in node.regions:
            yield from _forward(region, inside)


def _weight_shapes(graph: Graph) -> set[Shape]:
    """Shapes of arguments that come back, else of all arguments; and of a layer of each."""
    given = [v.type.shape for v in graph.inputs if len(v.type.shape) > 1]
    back = {o.type.shape for o in graph.outputs}
    kept = [s for s in given if s in back] or given
    return {s for shape in kept for s in (shape, shape[1:]) if len(s) > 1}


def _weight(node: Node, times: int, shapes: set[Shape]) -> Iterator[tuple[int, int, int]]:
    """Size, times and rows of the weight of a product."""
    if node.op != "dot_general":
        return
    numbers: Any = node.params["dimension_numbers"]
    if numbers[1] != ((), ()):
        return
    for operand in reversed(node.inputs[:2]):  # x @ w
        shape = operand.type.shape
        if shape in shapes or shape[::-1] in shapes:
            size = math.prod(shape)
            side = 1 if operand is node.inputs[1] else 0
            summed = math.prod(shape[i] for i in numbers[0][side])
            rows = math.prod(node.outputs[0].type.shape) * summed // max(1, size)
            yield size, times, rows
            return


def _usual(found: list[tuple[int, int, int]]) -> int:
    """The rows that most weights multiply."""
    sums: dict[int, int] = {}
    for size, times, rows in found:
        sums[rows] = sums.get(rows, 0) + size * times
    return max(sums, key=lambda rows: sums[rows])
