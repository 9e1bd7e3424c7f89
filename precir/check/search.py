"""Try inputs until something goes wrong, and say what: the dynamic half of the linter."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from precir.check.births import specials
from precir.check.blame import Blame, Root
from precir.check.evaluate import NotEvaluated
from precir.check.fills import Fill, Leaf, fills
from precir.check.losses import inexact, loss
from precir.check.shadow import Pair, Run, TooLong, numbers, run
from precir.formats import FORMATS
from precir.ir import Graph, Node, Value

Array = Any
PATIENCE: Final = 3  # times the time given, for the first run

# Relative to the largest element of a result: an error that nobody takes for rounding.
TOLERANCE: Final = {
    "float64": 1e-6, "float32": 1e-2, "float16": 0.06, "bfloat16": 0.2,
    "float8_e4m3fn": 0.3, "float8_e5m2": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Witnessed:
    """Something that happened in a simulated run, on an input, with all of its results."""

    blame: Blame
    fill: Fill
    outs: tuple[Pair, ...]

    @property
    def shows(self) -> str:
        """What the result holds: "NaN", "inf", "0"; nothing if it is only wrong."""
        low = numbers(self.outs[self.blame.output].low)
        if low.dtype.kind != "f":
            return ""
        if np.isnan(low).any():
            return "NaN"
        if np.isinf(low).any():
            return "inf"
        return "0" if low.size and not low.any() else ""


@dataclass
class Search:
    """What a search gave.

    Attributes:
      found: what went wrong, the first input of each.
      runs: how many inputs were run.
      complete: whether all inputs were tried in the time given.
      refused: the op that cannot be run on its own, if that ended it.
    """

    found: dict[Any, Witnessed] = field(default_factory=dict)
    runs: int = 0
    complete: bool = False
    refused: str = ""

    def add(self, blame: Blame, fill: Fill, outs: Sequence[Pair]) -> None:
        key = (id(blame.birth), blame.symptom, blame.root.kind)
        if key not in self.found:
            self.found[key] = Witnessed(blame, fill, tuple(outs))


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
    suspects: list[Suspect] = []
    sizes: dict[int, list[float]] = defaultdict(list)
    for fill in fills(leaves):
        left = deadline - time.monotonic()
        if not made.runs:
            left = PATIENCE * seconds  # one run says more than none
        if left <= 0:
            break
        try:
            result, outs = run(graph, fill.pairs, true, left)
        except TooLong:
            break
        except NotEvaluated as error:
            made.refused = str(error)
            return made
        made.runs += 1
        with np.errstate(all="ignore"):
            for blame in broken(graph, result, outs, fill, state):
                made.add(blame, fill, outs)
            if fill.typical:
                suspects += _suspects(graph, result, outs, fill, sizes)
    else:
        made.complete = True
    usual = {i: float(np.median(found)) for i, found in sizes.items()}
    with np.errstate(all="ignore"):
        for suspect in suspects:
            if suspect.error > suspect.tolerance * usual[suspect.output]:
                for blame in _inaccurate(graph, suspect):
                    made.add(blame, suspect.fill, suspect.outs)
    return made


def broken(
    graph: Graph, result: Run, outs: Sequence[Pair], fill: Fill, state: Sequence[tuple[int, int]]
) -> Iterator[Blame]:
    """What is wrong with one run, whatever others give."""
    special = list(specials(graph, result, outs))
    yield from special
    for node in result.endless:
        yield from _endless(result, node)
    yield from inexact(graph, result)
    for i, (operand, pair) in enumerate(zip(graph.outputs, outs, strict=True)):
        whole = numbers(pair.low).dtype.kind in "iu"
        if whole and fill.typical and not pair.same and isinstance(operand, Value):
            yield from _misplaced(result, operand, pair, i)
    if not special and fill.name in ("uniform", "example"):
        for given, carried in state:
            yield from _stuck(graph, result, outs, given, carried)


def _misplaced(result: Run, operand: Value, pair: Pair, i: int) -> Iterator[Blame]:
    root = loss(result, operand, pair, ())
    if root.kind in ("inexact", "absorption", "invalid"):
        birth = _birth(root, operand)
        if birth is not None:
            yield Blame(birth, "index", root, i)


@dataclass(frozen=True)
class Suspect:
    """A result that differs from its shadow by more than rounding, for its own size."""

    output: int
    error: float
    tolerance: float
    run: Run
    outs: Sequence[Pair]
    fill: Fill


def _suspects(
    graph: Graph, result: Run, outs: Sequence[Pair], fill: Fill, sizes: dict[int, list[float]]
) -> Iterator[Suspect]:
    for i, (operand, pair) in enumerate(zip(graph.outputs, outs, strict=True)):
        if not isinstance(operand, Value) or operand.type.dtype not in FORMATS:
            continue
        low, wide = np.asarray(pair.low, np.float64), np.asarray(pair.wide, np.float64)
        if not low.size or not np.isfinite(wide).all():
            continue
        size = float(np.abs(wide).max())
        sizes[i].append(size)
        error = float(np.abs(low - wide).max()) if np.isfinite(low).all() else 0.0
        tolerance = TOLERANCE.get(operand.type.dtype, 1.0)
        if error > tolerance * size:
            yield Suspect(i, error, tolerance, result, outs, fill)


def _inaccurate(graph: Graph, suspect: Suspect) -> Iterator[Blame]:
    i, result = suspect.output, suspect.run
    operand, pair = graph.outputs[i], suspect.outs[i]
    assert isinstance(operand, Value)
    low, wide = np.asarray(pair.low, np.float64), np.asarray(pair.wide, np.float64)
    vanished = not low.any() and bool(wide.any())
    root = loss(result, operand, pair, ())
    if root.kind == "wrong":
        root = _phase(root)
    if root.kind == "wrong":
        return
    birth = _birth(root, operand, vanished)
    if birth is None:
        return
    symptom = "zero" if vanished else "stuck" if root.kind == "absorption" else "wrong"
    if root.kind == "overflow" and root.node is not None:
        symptom = "inf"
    yield Blame(birth, symptom, root, i)


def _phase(root: Root) -> Root:
    """Ordinary rounding that a sine, a remainder or an exponential made much of."""
    for node in root.path:
        if node.op in ("sin", "cos", "tan", "rem", "floor"):
            return Root("inexact", root.node, root.name, root.value, root.path)
    return root


def _birth(root: Root, operand: Value, vanished: bool = False) -> Node | None:
    """The node that shows a loss: the root itself, or what reads a constant or an input."""
    if root.node is None:
        return root.path[-1] if root.path else operand.node
    if root.kind == "rounds-to-bound" and vanished and len(root.path) > 1:
        return root.path[-2]
    return root.node


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
    if still.sum() < 0.6 * moves.sum():
        return
    root = loss(result, operand, after, ())
    if root.kind in ("absorption", "underflow", "rounds-to-bound"):
        birth = _birth(root, operand) or operand.node
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
