"""Where a value and its shadow first part: underflow, cancellation, absorption, bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from precir.check.blame import DEEP, Blame, Root, deviation, has_body, ran, written
from precir.check.evaluate import NotEvaluated, evaluate
from precir.check.shadow import Pair, Run, literal_array, numbers
from precir.formats import FORMATS
from precir.ir import Graph, Literal, Node, Operand, Value

Array = Any


def loss(
    run: Run, operand: Operand, pair: Pair, path: tuple[Node, ...], among: Array | None = None
) -> Root:
    """Where the difference between a value and its shadow first arose.

    `among` marks the elements that matter, while the shape stays the same.
    """
    for _ in range(DEEP):
        literal = written(operand)
        if literal is not None:
            kind = _how(pair.low, pair.wide, pair.low)
            return Root(kind, None, "literal", literal, path, _number(pair))
        assert isinstance(operand, Value)
        if among is not None and np.shape(pair.low) != among.shape:
            among = None
        node = operand.node
        if node is None:
            holder = run.outer.get(operand)
            if holder is None:
                kind = _how(pair.low, pair.wide, pair.low)
                return Root("inexact" if kind == "wrong" else kind, None, "input", operand, path)
            _, outer, looped = holder
            sources: list[Operand] = [o for o in (looped, outer) if o is not None]
            if looped is not None and looped.node in path:
                return _accumulated(run, path[path.index(looped.node) :], path)
            follow = _worst(run, sources, path)
            if follow is None:
                return Root("wrong", None, "input", operand, path)
            operand, pair = follow
            continue
        if has_body(node):
            inner = [r.outputs[operand.index] for r in ran(run, node)]
            follow = _worst(run, inner, path)
            if follow is None or node in path:
                return Root("wrong", node, node.op, operand, path)
            path = (*path, node)
            operand, pair = follow
            continue
        made = _at(run, node, operand.index, pair, among)
        if isinstance(made, Root):
            return Root(made.kind, made.node, made.name, made.value, (*path, node))
        if node in path:
            return Root("wrong", node, node.op, operand, path)
        path = (*path, node)
        operand, pair = node.inputs[made], run.read(run.env, node, made)
    return Root("wrong", path[-1] if path else None, path[-1].op if path else "input", None, path)


def _accumulated(run: Run, loop: Sequence[Node], path: tuple[Node, ...]) -> Root:
    """Of an error that grows from turn to turn: the step that rounds most."""
    best, found = 0.0, Root("wrong", None, "input", None, path)
    for node in loop:
        pairs = [run.read(run.env, node, i) for i in range(len(node.inputs))] if node.inputs else []
        for operand, pair in zip(node.inputs, pairs, strict=True):
            literal = written(operand) or written(_outer(run, operand))
            if literal is not None and not pair.same:
                kind = _how(pair.low, pair.wide, pair.low)
                if kind != "wrong":
                    before = path[: path.index(node) + 1]
                    return Root(kind, None, "literal", literal, before, _number(pair))
        if node not in run.exact or node.outputs[0] not in run.env:
            continue
        low = np.asarray(run.env[node.outputs[0]].low, np.float64)
        exact = np.asarray(run.exact[node][0], np.float64)
        if exact.dtype.kind != "f" or not exact.size:
            continue
        wide = np.asarray(run.env[node.outputs[0]].wide, np.float64)
        if node.op in ("mul", "div") and ((low == 0) & (wide != 0)).any() and best < 1:
            # it vanished in an earlier turn, or in this one
            best, found = 1.0, Root("underflow", node, node.op, node.outputs[0], path)
            continue
        with np.errstate(all="ignore"):
            size = np.nanmax(np.abs(exact))
            rounded = float(np.nanmax(np.abs(low - exact)) / size) if size else 0.0
        if rounded > best:
            kind = _rounding(node, pairs, low, exact)
            best, found = rounded, Root(kind, node, node.op, node.outputs[0], path)
    return found


def _outer(run: Run, operand: Operand) -> Operand:
    """What a sub-program was given from outside for one of its inputs that do not change."""
    if isinstance(operand, Value) and operand.node is None:
        holder = run.outer.get(operand)
        if holder is not None and holder[1] is not None and holder[2] is None:
            return holder[1]
    return operand


def _number(pair: Pair) -> float | None:
    wide = np.asarray(pair.wide).reshape(-1)
    return float(wide[0]) if wide.size else None


def _worst(
    run: Run, sources: Sequence[Operand], path: tuple[Node, ...]
) -> tuple[Operand, Pair] | None:
    found: list[tuple[float, int, Operand, Pair]] = []
    for o in sources:
        pair = run.env.get(o) if isinstance(o, Value) else None
        if isinstance(o, Literal):
            pair = Pair(literal_array(o), literal_array(o))
        if pair is not None and not pair.same and not (isinstance(o, Value) and o.node in path):
            found.append((deviation(pair), len(found), o, pair))
    if not found:
        return None
    _, _, operand, pair = max(found, key=lambda f: f[:2])
    return operand, pair


def _at(run: Run, node: Node, index: int, pair: Pair, among: Array | None) -> Root | int:
    """The root, if this node is it, else the operand to go on with."""
    low = np.asarray(pair.low, np.float64)
    wide = np.broadcast_to(np.asarray(pair.wide, np.float64), low.shape)
    exact = np.asarray(run.exact[node][index], np.float64) if node in run.exact else low
    with np.errstate(all="ignore"):
        off = np.abs(low - wide)
        off = np.where(np.isnan(off), np.inf, off)
        if among is not None and among.any():
            off = np.where(among, off, -1.0)
        else:
            among = np.ones(off.shape, bool)
        worst = np.unravel_index(int(np.argmax(off)), off.shape) if off.size else ()
        here = np.abs(low - exact)[worst] if off.size else 0.0
        there = off[worst] if off.size else 0.0
    pairs = [run.read(run.env, node, i) for i in range(len(node.inputs))]
    moved = [i for i, p in enumerate(pairs) if not p.same and numbers(p.low).dtype.kind == "f"]
    vanished = bool((among & (low == 0) & (exact != 0) & (wide != 0)).any())
    if vanished and node.op not in ("sub",):
        return Root("underflow", node, node.op, node.outputs[index])
    if (among & ~np.isfinite(low) & np.isfinite(exact)).any():
        return Root("overflow", node, node.op, node.outputs[index])
    cancels = node.op in ("add", "sub", "add_any", "reduce_sum", "dot_general", "cumsum")
    if cancels and moved and _cancelled(node, pairs, low, wide):
        bound = _bounding(node, pairs)
        if bound is None:
            return Root("cancellation", node, node.op, node.outputs[index])
        return bound
    if not moved or (np.isfinite(here) and here >= 0.5 * there):
        return Root(_rounding(node, pairs, low, exact), node, node.op, node.outputs[index])
    if node.op in ("add", "max"):
        for i in moved:  # an eps that vanished, beside what it was to keep from zero
            if written(node.inputs[i]) is not None and not numbers(pairs[i].low).any():
                return i
    if len(moved) == 1:
        return moved[0]
    return max(moved, key=lambda i: _effect(node, index, pairs, i, wide, among))


def _effect(
    node: Node, index: int, pairs: Sequence[Pair], i: int, wide: Array, among: Array
) -> float:
    """How far the result moves to the shadow when operand i alone is the shadow's."""
    mixed = [p.wide if j == i else p.low for j, p in enumerate(pairs)]
    try:
        with np.errstate(all="ignore"):
            result = np.asarray(evaluate(node, mixed)[index], np.float64)
            left = np.where(among, np.abs(result - wide), 0.0)
            return -float(np.nanmax(np.where(np.isnan(left), np.inf, left))) if left.size else 0.0
    except NotEvaluated:
        return -np.inf


def _cancelled(node: Node, pairs: Sequence[Pair], low: Array, wide: Array) -> bool:
    """Whether operands that are right but for rounding gave a result that is not."""
    epsilon = (
        FORMATS[node.outputs[0].type.dtype].epsilon
        if node.outputs[0].type.dtype in FORMATS
        else 0.0
    )
    with np.errstate(all="ignore"):
        error = np.nanmax(np.abs(low - wide)) if low.size else 0.0
        size = np.nanmax(np.abs(wide)) if low.size else 0.0
        if not size or not error > 8 * epsilon * size:
            return False
        for p in pairs:
            x = numbers(p.low)
            if x.dtype.kind == "f" and not p.same and deviation(p) > 16 * max(epsilon, 1e-7):
                return False
    biggest = max(
        (float(np.nanmax(np.abs(numbers(p.low)))) for p in pairs if np.size(p.low)), default=0.0
    )
    return bool(biggest > 4 * size) or node.op in ("reduce_sum", "dot_general", "cumsum")


def _bounding(node: Node, pairs: Sequence[Pair]) -> int | None:
    """Of c - x where x was rounded to c itself: the operand x."""
    if node.op not in ("sub", "add", "add_any") or len(pairs) != 2:
        return None
    for i, (mine, other) in enumerate(((pairs[0], pairs[1]), (pairs[1], pairs[0]))):
        x, c = numbers(mine.low), numbers(other.low)
        made = node.inputs[i]
        op = made.node.op if isinstance(made, Value) and made.node is not None else ""
        if op in ("exp", "exp2", "square", "sqrt"):  # one is no bound of these
            continue
        if other.same and not mine.same and bool((np.abs(x) == np.abs(c)).any()):
            return i
    return None


def _how(low: Array, exact: Array, bound: Array) -> str:
    low, exact = np.asarray(low, np.float64), np.asarray(exact, np.float64)
    if ((low == 0) & (exact != 0)).any():
        return "underflow"
    if (~np.isfinite(low) & np.isfinite(exact)).any():
        return "overflow"
    if ((np.abs(low) == 1) & (np.abs(exact) != 1)).any():
        return "rounds-to-bound"
    return "wrong"


def _rounding(node: Node, pairs: Sequence[Pair], low: Array, exact: Array) -> str:
    """What rounding did at a node."""
    kind = _how(low, exact, low)
    if node.op in ("add", "sub", "add_any", "cumsum", "reduce_sum", "scatter-add"):
        if kind in ("underflow", "overflow"):
            return kind
        return "absorption"
    if node.op in ("convert_element_type", "cast") and numbers(pairs[0].low).dtype.kind in "iu":
        return "inexact"
    if node.op == "iota":
        return "inexact"
    return kind


# -- whole numbers -----------------------------------------------------------------------------


def inexact(graph: Graph, run: Run) -> Iterator[Blame]:
    """Integers that a float format cannot hold, where a result depends on them."""
    for node in _reaching(graph):
        if node not in run.exact or node.outputs[0].type.dtype not in FORMATS:
            continue
        made = node.op == "iota" or (
            node.op in ("convert_element_type", "cast")
            and node.inputs[0].type.dtype.startswith(("int", "uint"))
        )
        if not made and not (node.op in ("add", "mul", "sub") and _from_integers(node)):
            continue
        low = np.asarray(run.env[node.outputs[0]].low, np.float64)
        exact = np.asarray(run.exact[node][0], np.float64)
        if np.isfinite(low).all() and (low != exact).any():
            root = Root("inexact", node, node.op, node.outputs[0])
            yield Blame(node, "wrong", root, 0)


def _from_integers(node: Node, depth: int = 3) -> bool:
    """Whether all operands are integers that were cast, and whole constants."""
    some = False
    for operand in node.inputs:
        literal = written(operand)
        if literal is not None or isinstance(operand, Literal):
            assert literal is not None
            if isinstance(literal.value, complex) or literal.value != literal.value // 1:
                return False
            continue
        made = operand.node
        if made is not None and made.op == "convert_element_type":
            if not made.inputs[0].type.dtype.startswith(("int", "uint")):
                return False
            some = True
        elif (
            made is None
            or depth == 0
            or made.op not in ("add", "mul", "sub")
            or not _from_integers(made, depth - 1)
        ):
            return False
        else:
            some = True
    return some


def _reaching(graph: Graph) -> list[Node]:
    """The nodes, of sub-programs too, that some result depends on."""
    needed = {id(o.node) for o in graph.outputs if isinstance(o, Value) and o.node is not None}
    found = []
    for node in reversed(graph.nodes):
        if id(node) not in needed:
            continue
        found.append(node)
        needed.update(
            id(o.node) for o in node.inputs if isinstance(o, Value) and o.node is not None
        )
        for region in node.regions:
            found += _reaching(region)
    return found
