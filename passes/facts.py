"""Forward inference: what every value of a program holds, from what is known of its inputs.

Each op's rule (`precir.ops.facts`) gives its results in exact arithmetic; the driver here rounds
them into their dtypes, goes through loops and branches, and keeps the facts of every value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from precir.domains.fact import (
    ANYTHING,
    PROVED,
    UNKNOWN,
    Fact,
    join,
    of_array,
    of_number,
    project,
    top,
)
from precir.domains.kinds import SPECIAL
from precir.ir import Graph, Literal, Node, Operand, Type, Value
from precir.ops import op_named
from precir.ops.facts.guards import DEPTH, ELEMENTWISE
from precir.ops.facts.partitions import Partitions, splits
from precir.ops.facts.spreading import Spreads

MODEST = 1e3  # a bound as small as this does not hang on unknown inputs any more


@dataclass(frozen=True)
class Facts:
    """What is known of each value of a graph, sub-graphs included, whatever path leads there.

    Attributes:
      of_value: by value.
      exact: of each node whose results did not fit their dtypes as they were (overflow,
        underflow), what they would hold without rounding.
    """

    of_value: Mapping[Value, Fact]
    exact: Mapping[Node, tuple[Fact, ...]]

    def __getitem__(self, operand: Operand) -> Fact:
        if isinstance(operand, Literal):
            return literal_fact(operand)
        return self.of_value.get(operand) or top(operand.type.dtype)


def infer_facts(
    graph: Graph, inputs: Sequence[Fact | None] = (), *, keep_exact: bool = True
) -> Facts:
    """Facts of every value of `graph`.

    Args:
      graph: the program.
      inputs: what is known of each of its inputs; None, or left out, is nothing.
      keep_exact: whether to keep what results would hold without rounding.

    Time is linear in the number of nodes, times a small constant for the body of each loop.
    """
    inference = Inference(keep_exact, frozenset(graph.inputs))
    given = [*inputs, *[None] * (len(graph.inputs) - len(inputs))]
    entry = [
        unknown(_held(v.type)) if f is None else project(f, _held(v.type))
        for f, v in zip(given, graph.inputs, strict=True)
    ]
    inference.run(graph, entry, recording=True)
    return Facts(inference.found, inference.exact)


def _held(type_: Type) -> str:
    """The dtype of what a value stands for: data times scale is float32."""
    return type_.dtype if type_.scale is None else "float32"


def unknown(dtype: str) -> Fact:
    """Of an input of which nothing is known: floats may be anything, integers all of theirs."""
    f = top(dtype)
    return f._replace(basis=UNKNOWN)


def literal_fact(literal: Literal) -> Fact:
    """Of a number in the program: it is an operand too, rounded into its dtype and flushed."""
    value, dtype = literal.value, literal.type.dtype
    if isinstance(value, complex):
        return project(join(of_number(value.real), of_number(value.imag)), dtype)
    number = float(value)
    return _literal_fact(number, math.copysign(1.0, number), dtype)


@cache
def _literal_fact(value: float, sign: float, dtype: str) -> Fact:
    return project(of_number(value), dtype)


@dataclass
class Inference:
    """One run over a program; what rules know as their `Context`."""

    keep_exact: bool
    arguments: frozenset[Value]
    found: dict[Value, Fact] = field(default_factory=dict)
    exact: dict[Node, tuple[Fact, ...]] = field(default_factory=dict)
    _env: dict[Value, Fact] = field(default_factory=dict)
    _recording: bool = True
    _constants: dict[int, Fact] = field(default_factory=dict)
    _memo: dict[tuple[int, tuple[Fact, ...]], list[Fact]] = field(default_factory=dict)
    _kept: list[Graph] = field(default_factory=list)
    _arrays: dict[Value, Any] = field(default_factory=dict)
    _axes: list[Mapping[Any, int]] = field(default_factory=list)

    # -- what rules call ---------------------------------------------------------------------------

    def of(self, operand: Operand) -> Fact:
        if type(operand) is Literal:
            return literal_fact(operand)
        found = self._env.get(operand)  # type: ignore[arg-type]
        return top(operand.type.dtype) if found is None else found

    def infer(self, region: Graph, inputs: Sequence[Fact]) -> list[Fact]:
        key = (id(region), tuple(inputs))
        known = self._memo.get(key)
        if known is None:
            known = self.run(region, inputs, recording=False)
            self._memo[key] = known
            self._kept.append(region)
        return list(known)

    def record(self, node: Node, region: Graph, inputs: Sequence[Fact]) -> list[Fact]:
        if not self._recording:
            return self.infer(region, inputs)
        if node.op == "shard_map":
            mesh = node.params.get("mesh")
            self._axes.append(dict(getattr(mesh, "shape", {}) or {}))
        outs = self.run(region, inputs, recording=True)
        if node.op == "shard_map":
            self._axes.pop()
        return outs

    def again(self, value: Value, known: dict[Value, Fact]) -> Fact:
        return self._again(value, known, DEPTH)

    def is_argument(self, value: Value) -> bool:
        return value in self.arguments

    def array(self, value: Value) -> Any:
        return self._arrays.get(value)

    def axis_size(self, name: object) -> int | None:
        for sizes in reversed(self._axes):
            if name in sizes:
                return int(sizes[name])
        return None

    # -- the walk ----------------------------------------------------------------------------------

    def run(self, graph: Graph, inputs: Sequence[Fact], *, recording: bool) -> list[Fact]:
        outer, before = self._env, self._recording
        env: dict[Value, Fact] = dict(zip(graph.inputs, inputs, strict=True))
        self._env, self._recording = env, recording
        keep = recording and self.keep_exact
        spreads = Spreads(self)
        cases = Partitions(self, splits(graph) if recording else frozenset())
        for value in cases.split.intersection(graph.inputs):
            cases.begin(value, env[value])
        for node in graph.nodes:
            if node.op == "constant":
                env[node.outputs[0]] = self._constant(graph, node)
                continue
            facts = [
                env[o] if type(o) is Value else literal_fact(o)  # type: ignore[arg-type]
                for o in node.inputs
            ]
            answer = op_named(node.op).fact(node, facts, self)
            results: Sequence[Fact] = (answer,) if isinstance(answer, Fact) else answer
            if len(results) == 1:
                f = spreads.after(node, facts, results[0])
                results = (cases.after(node, facts, f) if cases.split else f,)
            changed = False
            basis = max([f.basis for f in facts]) if facts else PROVED
            for out, f in zip(node.outputs, results, strict=True):
                rounded = f if out.type.scale is not None else project(f, out.type.dtype)
                if rounded.basis != basis or basis == UNKNOWN:
                    rounded = rounded._replace(basis=_basis(rounded, basis, bool(node.regions)))
                changed = changed or bool(rounded.flags & ~f.flags)
                env[out] = rounded
            if changed and keep:
                self.exact[node] = tuple(results)
        outs = [env[o] if type(o) is Value else literal_fact(o) for o in graph.outputs]  # type: ignore[arg-type]
        if recording:
            self._merge(env)
        self._env, self._recording = outer, before
        return outs

    def _merge(self, env: Mapping[Value, Fact]) -> None:
        found = self.found
        for value, fact in env.items():
            old = found.get(value)
            found[value] = fact if old is None else join(old, fact)

    def _constant(self, graph: Graph, node: Node) -> Fact:
        array = graph.constants.get(node.params.get("name"))  # type: ignore[arg-type]
        if array is None:
            return top(node.outputs[0].type.dtype)
        self._arrays[node.outputs[0]] = array
        known = self._constants.get(id(array))
        if known is None:
            try:
                known = project(of_array(array), node.outputs[0].type.dtype)
            except (TypeError, ValueError):  # keys, float0
                known = ANYTHING
            self._constants[id(array)] = known
        return known

    def _again(self, value: Value, known: dict[Value, Fact], depth: int) -> Fact:
        if value in known:
            return known[value]
        node = value.node
        if node is None or depth == 0 or node.op not in ELEMENTWISE:
            return self.of(value)
        before = [self.of(o) for o in node.inputs]
        after = [
            self._again(o, known, depth - 1) if isinstance(o, Value) else f
            for o, f in zip(node.inputs, before, strict=True)
        ]
        if after == before:
            return self.of(value)
        answer = op_named(node.op).fact(node, after, _Refined(self, known, depth))
        return project(answer if type(answer) is Fact else answer[value.index], value.type.dtype)  # type: ignore[arg-type]


class _Refined:
    """An inference where more is known of some values."""

    def __init__(self, inference: Inference, known: dict[Value, Fact], depth: int) -> None:
        self._inference, self._known, self._depth = inference, known, depth

    def of(self, operand: Operand) -> Fact:
        if isinstance(operand, Literal):
            return literal_fact(operand)
        return self._inference._again(operand, self._known, self._depth)

    def again(self, value: Value, known: dict[Value, Fact]) -> Fact:
        return self._inference._again(value, {**self._known, **known}, self._depth)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inference, name)


def _basis(f: Fact, basis: int, region: bool) -> int:
    """What a result rests on: all that its operands do, unless it is modest whatever they are."""
    if region:
        return f.basis
    if basis == UNKNOWN and not f.flags & SPECIAL and f.magnitude <= MODEST:
        return PROVED
    return basis
