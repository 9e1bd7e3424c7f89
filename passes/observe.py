"""Measure the floating-point values of a program while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

from precir.ir import BACKWARD, UPDATE, Graph, Node, Operand, Type, Value
from precir.passes.expose import Exposed, Inside, Probe, expose, is_open
from precir.verify.contracts import OBSERVED, is_float

Detail = Literal["full", "moments", "amax"]
DETAILS: Final[tuple[Detail, ...]] = ("full", "moments", "amax")

SMALL: Final = 1024  # elements up to which a value is returned as it is: many at once are cheaper

# What these return holds the numbers of their first operand, each as often as any other.
_MOVES: Final = frozenset(
    {
        *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "copy"),
        *("stop_gradient", "optimization_barrier", "sharding_constraint", "pvary"),
    }
)
_SIGNS: Final = frozenset({"neg", "abs"})  # moves as far as magnitudes go


@dataclass(frozen=True)
class Observed:
    """One measured value of a program.

    Attributes:
      name: where it is made, the same for every trace of the same program: its phase if that is
        not forward, scope, op, the user's file and line, and a number if that is not unique.
      exposed: which result of the observing graph tells of it.
      raw: whether that is the value itself, not its statistics.
    """

    name: str
    exposed: Exposed
    raw: bool


def observe_values(
    graph: Graph, detail: Detail, *, per_iteration: bool = False
) -> tuple[Graph, tuple[Observed, ...]]:
    """The graph with a measurement of each floating-point value as one more result.

    Measured are arguments, and what any node makes and somebody reads, also in sub-programs, unless
    it only moves or repeats the numbers of one value (a reshape, a broadcast; for "amax" also a
    negation), depends on no argument, or is handed on by a sub-program that was measured. Scans and
    whiles merge what their iterations measure; with `per_iteration`, scans stack it. The values of
    sub-programs that `expose` does not look into are not measured, nor are 8-bit data with a scale.
    """
    moves = _MOVES | _SIGNS if detail == "amax" else _MOVES
    chosen = set(_measurable(graph, moves, top=True))

    def take(new: Value, old: Value, inside: Inside) -> Sequence[Node]:
        return () if _raw(old, inside) else (_measurement(new, detail),)

    def merge(a: Operand, b: Operand) -> Node:
        op = "max" if detail == "amax" else "merge_stats"
        return Node(op, [a, b], [a.type])

    probe = Probe(take, merge, stacked=per_iteration)
    new, exposed = expose(graph, lambda value, _: value in chosen, probe)
    names = _names(exposed)
    return new, tuple(
        Observed(name, e, _raw(e.value, e.inside)) for name, e in zip(names, exposed, strict=True)
    )


def named_values(graph: Graph, detail: Detail) -> dict[str, Value]:
    """The values that `observe_values` measures, by the names that it gives them."""
    return {o.name: o.exposed.value for o in observe_values(graph, detail)[1]}


def _raw(value: Value, inside: Inside) -> bool:
    return not inside and prod(value.type.shape) <= SMALL


def _measurement(value: Value, detail: Detail) -> Node:
    where = value.node
    if detail == "amax":
        op, kind, params = "amax", Type((), "float32"), {}
    else:
        histogram = detail == "full"
        op, kind = "observe", Type((OBSERVED + 256 * histogram,), "int32")
        params = {"histogram": histogram}
    if where is None:
        return Node(op, [value], [kind], params)
    return Node(
        op, [value], [kind], params, source=where.source, scope=where.scope, phase=where.phase
    )


def _measurable(graph: Graph, moves: frozenset[str], *, top: bool) -> Iterator[Value]:
    outputs = set(graph.outputs)
    varying = set(graph.inputs)  # what arguments have a part in
    for value in graph.inputs if top else ():
        if _float(value) and (value in graph.users or value in outputs):
            yield value
    for node in graph:
        if not node.effects and not any(o in varying for o in node.inputs):
            continue
        varying.update(node.outputs)
        if is_open(node):
            for region in node.regions:
                yield from _measurable(region, moves, top=False)
        elif node.op not in moves or not isinstance(node.inputs[0], Value):
            for value in node.outputs:
                if _float(value) and (value in graph.users or value in outputs):
                    yield value


def _float(value: Value) -> bool:
    return value.type.scale is None and is_float(value.type.dtype) and prod(value.type.shape) > 0


# -- names -----------------------------------------------------------------------------------------


def _names(exposed: Sequence[Exposed]) -> list[str]:
    names = [_name(e) for e in exposed]
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return numbered


def _name(exposed: Exposed) -> str:
    node = exposed.value.node
    if node is None:
        return f"argument {exposed.value.hint}"
    phase = f"{node.phase} " if node.phase in (BACKWARD, UPDATE) else ""
    place = f"{node.scope}/{node.op}" if node.scope else node.op
    line = f" {node.source}" if node.source.where else ""
    return f"{phase}{place}{line}"
