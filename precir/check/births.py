"""Where infinities and NaN are born."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from precir.check.blame import DEEP, Blame, Root, deviation, has_body, ran, written
from precir.check.evaluate import NotEvaluated, evaluate
from precir.check.losses import loss
from precir.check.shadow import Pair, Run, numbers
from precir.domains.fact import numbers_of
from precir.domains.rounding import Grid
from precir.formats import FORMATS
from precir.ir import Graph, Node, Value

Array = Any
MOVES: Final = frozenset((
    "reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "concatenate",
    "pad", "copy", "stop_gradient", "select_n", "dynamic_slice", "rev", "split", "reduce_max",
    "reduce_min", "max", "min", "clamp", "optimization_barrier", "sharding_constraint", "neg",
    "abs", "dynamic_update_slice",
))  # fmt: skip
GROWS: Final = frozenset((
    "exp", "exp2", "expm1", "pow", "integer_pow", "sinh", "cosh", "mul", "square", "reduce_sum",
    "dot_general", "add", "cumsum", "reduce_prod", "cumprod",
))  # fmt: skip


def specials(graph: Graph, run: Run, outs: Sequence[Pair]) -> Iterator[Blame]:
    """Births of the infinities and NaN that reach a result."""
    for i, (operand, pair) in enumerate(zip(graph.outputs, outs, strict=True)):
        if not isinstance(operand, Value):
            continue
        if operand.type.dtype not in FORMATS:
            yield from _made_whole(run, operand, i)
            continue
        low = numbers(pair.low)
        for what, there in (("nan", np.isnan(low).any()), ("inf", np.isinf(low).any())):
            if there:
                yield from born(run, operand, what, i, set())


def _made_whole(run: Run, value: Value, output: int) -> Iterator[Blame]:
    """Casts of NaN and infinities to integers behind an integer result."""
    pending = [value]
    seen: set[int] = set()
    while pending:
        node = pending.pop().node
        if node is None or id(node) in seen or len(seen) > DEEP:
            continue
        seen.add(id(node))
        for operand in node.inputs:
            if not isinstance(operand, Value):
                continue
            if operand.type.dtype not in FORMATS:
                pending.append(operand)
            elif node.op == "convert_element_type" and node.outputs[0].type.dtype != "bool":
                for what in ("nan", "inf"):
                    if has(run.env.get(operand), what):
                        for blame in born(run, operand, what, output, set()):
                            if blame.root.kind == "invalid":
                                yield Blame(node, "index", blame.root, output)
                            else:
                                yield blame


def born(
    run: Run, value: Value, what: str, output: int, seen: set[tuple[int, str]]
) -> Iterator[Blame]:
    """Where a NaN or inf of a value was born."""
    if (id(value), what) in seen or len(seen) > DEEP:
        return
    seen.add((id(value), what))
    node = value.node
    if node is None:
        yield from _outside(run, value, what, output, seen)
        return
    if has_body(node):
        for region in ran(run, node):
            inner = region.outputs[value.index]
            if not isinstance(inner, Value):
                continue
            # what is NaN after the last turn may have been an infinity in the one that was kept
            for kept in (what, "inf"):
                if has(run.env.get(inner), kept):
                    yield from born(run, inner, kept, output, seen)
                    break
        return
    pairs = [run.read(run.env, node, i) for i in range(len(node.inputs))]
    sources = [o for o, p in zip(node.inputs, pairs, strict=True) if has(p, what)]
    if what == "nan" and not sources:
        earlier = [
            blame
            for o, p in zip(node.inputs, pairs, strict=True)
            if isinstance(o, Value) and has(p, "inf")
            for blame in born(run, o, "inf", output, seen)
        ]
        if earlier:
            yield from earlier
            return
    if sources:
        for operand, pair in zip(node.inputs, pairs, strict=True):
            if not has(pair, what):
                continue
            literal = written(operand)
            if literal is None and isinstance(operand, Value):
                yield from born(run, operand, what, output, seen)
            elif (what == "nan" or node.op not in MOVES) and not _meant(pair, what):
                yield Blame(
                    node, what, Root("overflow", None, "literal", literal, (), _wide(pair)), output
                )
        if not _makes(run, node, value.index, pairs, what):
            return
    if node.op == "constant" or node.op in MOVES or written(value) is not None:
        return
    yield Blame(node, what, cause(run, node, value.index, pairs), output)


def _wide(pair: Pair) -> float | None:
    wide = numbers(pair.wide).reshape(-1)
    return float(wide[0]) if wide.size else None


def _meant(pair: Pair, what: str) -> bool:
    """Whether the shadow holds the special value too: it was written so."""
    return has(Pair(pair.wide, pair.wide), what)


def _makes(run: Run, node: Node, index: int, pairs: Sequence[Pair], what: str) -> bool:
    """Whether an elementwise op makes a special value where none of its operands has one."""
    if node.op in MOVES or what != "inf":
        return False
    low = np.asarray(run.env[node.outputs[index]].low)
    bad = np.isinf(low)
    for p in pairs:
        x = numbers(p.low)
        if x.dtype.kind == "f":
            if x.shape not in ((), low.shape):
                return False
            bad = bad & np.isfinite(x)
    return bool(bad.any())


def _outside(
    run: Run, value: Value, what: str, output: int, seen: set[tuple[int, str]]
) -> Iterator[Blame]:
    """A value that a sub-program was given."""
    holder = run.outer.get(value)
    if holder is None:
        return
    _, operand, looped = holder
    for source in (operand, looped):
        if isinstance(source, Value) and has(run.env.get(source), what):
            yield from born(run, source, what, output, seen)


def cause(run: Run, node: Node, index: int, pairs: Sequence[Pair]) -> Root:
    """Why a node's result is infinite or NaN though its operands are not."""
    out = run.env[node.outputs[index]]
    low = numbers(out.low)
    wide = np.broadcast_to(np.asarray(out.wide, np.float64), low.shape)
    exact = np.asarray(run.exact[node][index]) if node in run.exact else low
    bad = ~np.isfinite(low)
    grid = numbers_of(node.outputs[index].type.dtype)
    most = grid.overflow_at if isinstance(grid, Grid) else np.inf
    # the shadow is sound, or too large but made of an operand that is not zero there
    sound = bad & np.isfinite(wide) & ((np.abs(wide) < most) | ~np.isfinite(exact))
    if sound.any():
        guilty = _guilty(node, index, pairs, sound)
        if guilty is not None:
            root = loss(run, node.inputs[guilty], pairs[guilty], (node,), sound)
            return Root("invalid", node, node.op, None) if root.kind == "wrong" else root
    if (bad & np.isfinite(exact)).any() or (bad & np.isfinite(wide)).any():
        return Root("overflow", node, node.op, None)
    grows = node.op in GROWS and np.isinf(low).any() and not any(has(p, "inf") for p in pairs)
    powers = node.op in ("pow", "integer_pow")
    if grows and not (powers and (numbers(pairs[0].low) == 0).any()):
        return Root("overflow", node, node.op, None)
    # an operand that is an infinity of the format alone: a mask that was meant to be finite
    for operand, pair in zip(node.inputs, pairs, strict=True):
        if lost_infinity(pair):
            return loss(run, operand, pair, (node,))
    return Root("invalid", node, node.op, None)


def _guilty(node: Node, index: int, pairs: Sequence[Pair], bad: Array) -> int | None:
    """The operand whose own value, in place of the rounded one, mends the most."""
    best, found = 0, None
    for i, pair in enumerate(pairs):
        if pair.same:
            continue
        mixed = [p.wide if j == i else p.low for j, p in enumerate(pairs)]
        try:
            with np.errstate(all="ignore"):
                result = np.asarray(evaluate(node, mixed)[index])
        except NotEvaluated:
            continue
        mended = int((bad & np.isfinite(result)).sum())
        if mended > best:
            best, found = mended, i
    if found is None:
        off = [(deviation(p), i) for i, p in enumerate(pairs) if not p.same]
        return max(off)[1] if off else None
    return found


def has(pair: Pair | None, what: str) -> bool:
    if pair is None:
        return False
    low = numbers(pair.low)
    if low.dtype.kind != "f":
        return False
    return bool(np.isnan(low).any() if what == "nan" else np.isinf(low).any())


def lost_infinity(pair: Pair | None) -> bool:
    """Whether there is an inf that the shadow does not have."""
    if pair is None:
        return False
    low = numbers(pair.low)
    if low.dtype.kind != "f":
        return False
    bad = np.isinf(low)
    if not bad.any():
        return False
    wide = np.broadcast_to(np.asarray(pair.wide, np.float64), low.shape)
    return bool((bad & np.isfinite(wide)).any())
