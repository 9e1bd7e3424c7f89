"""From a wrong result back to where it was born, and to what first caused it: what is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from precir.check.shadow import Pair, Run
from precir.ir import Graph, Literal, Node, Operand, Value

DEEP: Final = 400  # steps back


@dataclass(frozen=True)
class Root:
    """The first cause: a node, or a literal or an input that its user's line has."""

    kind: str
    node: Node | None
    name: str
    """A primitive, "literal" or "input"."""
    value: Value | Literal | None
    path: tuple[Node, ...] = ()
    was: float | None = None
    """What a literal was before the format rounded it."""


@dataclass(frozen=True)
class Blame:
    """One way in which a run went wrong.

    Attributes:
      birth: the node whose operands were sound and whose result is not.
      symptom: "nan", "inf", "zero", "wrong", "stuck" or "index".
      root: what first caused it.
      output: index of the result that shows it.
    """

    birth: Node
    symptom: str
    root: Root
    output: int


def written(operand: Operand) -> Literal | None:
    """The literal that an operand is, cast or broadcast at most."""
    for _ in range(6):
        if isinstance(operand, Literal):
            return operand
        node = operand.node
        if node is None or node.op not in ("convert_element_type", "broadcast_in_dim", "reshape"):
            return None
        operand = node.inputs[0]
    return None


def has_body(node: Node) -> bool:
    """Whether it runs a program of its own; a scatter's says only how two elements combine."""
    return bool(node.regions) and not node.op.startswith("scatter")


def ran(run: Run, node: Node) -> list[Graph]:
    regions = node.regions[1:] if node.op == "while" else node.regions
    return [r for r in regions if any(o in run.env for o in r.outputs if isinstance(o, Value))]


def deviation(pair: Pair) -> float:
    low, wide = np.asarray(pair.low, np.float64), np.asarray(pair.wide, np.float64)
    with np.errstate(all="ignore"):
        scale = np.nanmax(np.abs(wide)) if wide.size else 0.0
        off = np.nanmax(np.abs(low - wide)) if wide.size else 0.0
        return float(off / scale) if scale else float(off)
