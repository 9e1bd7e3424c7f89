"""Try inputs until something goes wrong, and say what: the dynamic half of the linter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from precir.check.blame import Blame, Root, loss, specials
from precir.check.evaluate import NotEvaluated
from precir.check.fills import Fill, Leaf, fills
from precir.check.shadow import Pair, Run, TooLong, run
from precir.formats import FORMATS
from precir.ir import Graph, Node, Value

Array = Any

# Relative to the largest element of a result: an error that nobody takes for rounding.
TOLERANCE: Final = {
    "float64": 1e-6, "float32": 1e-2, "float16": 0.06, "bfloat16": 0.2,
    "float8_e4m3fn": 0.9, "float8_e5m2": 1.5,
}  # fmt: skip


@dataclass(frozen=True)
class Witnessed:
    """Something that happened in a simulated run."""

    blame: Blame
    fill: Fill
    up_to: Array = None  # the shadow's result, for a comparison with a real run


@dataclass
class Search:
    """What a search gave.

    Attributes:
      found: what went wrong, the first input of each.
      killed: births of infinities and NaN that reached no result.
      runs: how many inputs were run.
      complete: whether all inputs were tried in the time given.
      refused: the op that cannot be run on its own, if that ended it.
    """

    found: dict[Any, Witnessed] = field(default_factory=dict)
    killed: dict[Node, str] = field(default_factory=dict)
    runs: int = 0
    complete: bool = False
    refused: str = ""


def search(
    graph: Graph,
    leaves: Sequence[Leaf],
    true: Mapping[tuple[int, int], float],
    state: Sequence[tuple[int, int]],
    seconds: float,
) -> Search:
    """Run a program on inputs of every kind.

    Args:
      graph: the program, in the format checked.
      leaves: its inputs.
      true: literals as they were before rounding (`shadow.run`).
      state: (input, output) pairs of one shape: what may be carried from step to step.
      seconds: the time it may take.
    """
    made = Search()
    deadline = time.monotonic() + seconds
    for fill in fills(leaves):
        left = deadline - time.monotonic()
        if left <= 0:
            return made
        try:
            result, outs = run(graph, fill.pairs, true, left)
        except TooLong:
            return made
        except NotEvaluated as error:
            made.refused = str(error)
            return made
        made.runs += 1
        with np.errstate(all="ignore"):
            for blame in went_wrong(graph, result, outs, fill, state):
                key = (id(blame.birth), blame.symptom, blame.root.kind)
                if key not in made.found:
                    wide = np.asarray(outs[blame.output].wide)
                    made.found[key] = Witnessed(blame, fill, wide)
    made.complete = True
    return made


def went_wrong(
    graph: Graph, result: Run, outs: Sequence[Pair], fill: Fill, state: Sequence[tuple[int, int]]
) -> Iterator[Blame]:
    """Everything wrong with one run's results."""
    special = list(specials(graph, result, outs))
    yield from special
    spoiled = {b.output for b in special}
    for node in result.endless:
        yield from _endless(result, node)
    if special or not fill.typical:
        return
    for i, (operand, pair) in enumerate(zip(graph.outputs, outs, strict=True)):
        if i in spoiled or pair.same or not isinstance(operand, Value):
            continue
        if operand.type.dtype in FORMATS:
            yield from _inaccurate(result, operand, pair, i)
        elif np.asarray(pair.low).dtype.kind in "iu":
            root = loss(result, operand, pair, ())
            if root.kind in ("inexact", "absorption", "invalid"):
                birth = _birth(root, operand)
                if birth is not None:
                    yield Blame(birth, "index", root, i)
    for given, carried in state:
        yield from _stuck(graph, result, outs, given, carried)


def _inaccurate(result: Run, operand: Value, pair: Pair, i: int) -> Iterator[Blame]:
    low, wide = np.asarray(pair.low, np.float64), np.asarray(pair.wide, np.float64)
    if not np.isfinite(wide).all() or not low.size:
        return
    size = np.abs(wide).max()
    error = np.abs(low - wide).max()
    if not error > TOLERANCE.get(operand.type.dtype, 1.0) * size:
        return
    vanished = not low.any() and wide.any()
    root = loss(result, operand, pair, ())
    if root.kind == "wrong":
        root = _phase(root)
    if root.kind == "wrong":
        return
    if vanished and root.kind not in ("underflow", "rounds-to-bound", "cancellation", "absorption"):
        return
    birth = _birth(root, operand)
    if birth is None:
        return
    symptom = "zero" if vanished else "stuck" if root.kind == "absorption" else "wrong"
    yield Blame(birth, symptom, root, i)


def _phase(root: Root) -> Root:
    """Ordinary rounding that a sine, a remainder or an exponential made much of."""
    for node in root.path:
        if node.op in ("sin", "cos", "tan", "rem", "floor"):
            return Root("inexact", root.node, root.name, root.value, root.path)
    return root


def _birth(root: Root, operand: Value) -> Node | None:
    """The node that shows a loss: the root itself, or what an inexact number was used by."""
    if root.kind in ("inexact", "wrong"):
        for node in root.path:
            if node.op in ("sin", "cos", "tan", "rem", "floor"):
                return node
    if root.node is not None:
        return root.node
    return root.path[-1] if root.path else operand.node


def _stuck(
    graph: Graph, result: Run, outs: Sequence[Pair], given: int, carried: int
) -> Iterator[Blame]:
    """State that a step leaves as it was, though the shadow's moves on."""
    before, after = result.env[graph.inputs[given]], outs[carried]
    operand = graph.outputs[carried]
    if not isinstance(operand, Value) or operand.node is None:
        return
    low, wide = np.asarray(after.low, np.float64), np.asarray(after.wide, np.float64)
    start = np.asarray(before.low, np.float64)
    wide_start = np.asarray(before.wide, np.float64)
    if low.shape != start.shape or not low.size:
        return
    moves = np.abs(wide - wide_start) > 1e-9 * np.abs(wide_start)
    if not moves.any():
        return
    still = moves & (low == start)
    if still.sum() < 0.5 * moves.sum():
        return
    root = loss(result, operand, after, ())
    if root.kind in ("absorption", "underflow", "rounds-to-bound"):
        birth = root.node if root.node is not None else operand.node
        yield Blame(birth, "stuck", root, carried)


def _endless(result: Run, node: Node) -> Iterator[Blame]:
    """A loop whose counter is stuck."""
    body = node.regions[1]
    for operand in body.outputs:
        made = operand.node if isinstance(operand, Value) else None
        if made is None or made.op not in ("add", "sub") or made.outputs[0] not in result.env:
            continue
        after = result.env[made.outputs[0]]
        if after.low.dtype.kind != "f" or made.outputs[0].type.dtype not in FORMATS:
            continue
        root = Root("absorption", made, made.op, made.outputs[0])
        yield Blame(made, "stuck", root, 0)
        return
