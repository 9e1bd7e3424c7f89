"""Tap the tensors of a program: what rounding each of them would do is then a derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value
from precir.kernels.tap import TAPPED, Rounding
from precir.passes.feeding import FEEDS, reachable


@dataclass(frozen=True)
class Tap:
    """A place where a tensor is tapped: what `operand` of `node` reads, or what `node` makes.

    Attributes:
      value: the tensor, of the graph that was given.
      node: who reads it, and as which operand; None and -1 for all who read it.
      roundings: what is asked of it.
    """

    value: Value
    roundings: tuple[Rounding, ...]
    node: Node | None = None
    operand: int = -1


Wish = Callable[[Graph], Sequence[Tap]]


def tap_values(graph: Graph, wish: Wish) -> tuple[Graph, tuple[Tap, ...]]:
    """The program that takes one more input, float32[taps, n], whose cotangent has a row for each
    of the taps that are returned; its results are the same.

    `wish` is asked of the graph and of each of its sub-graphs that a value can be handed into
    (not the condition of a while, nor a sub-graph of a primitive of no known form).
    """
    plan = _plan(graph, wish)
    width = max((TAPPED * len(t.roundings) for t in plan.all), default=1)
    rows = Value(Type((len(plan.all), width), "float32"), hint="taps")
    if not plan.all:
        return graph.with_(inputs=(*graph.inputs, rows)), ()
    return _tapped(graph, plan, rows, len(graph.inputs)), tuple(plan.all)


@dataclass(frozen=True)
class _Plan:
    own: Sequence[Tap]
    inner: dict[tuple[Node, int], _Plan]

    @property
    def all(self) -> list[Tap]:
        return [*self.own, *(t for plan in self.inner.values() for t in plan.all)]


def _plan(graph: Graph, wish: Wish) -> _Plan:
    inner = {}
    for node in graph:
        for i in reachable(node):
            plan = _plan(node.regions[i], wish)
            if plan.all:
                inner[node, i] = plan
    return _Plan(wish(graph), inner)


def _tapped(graph: Graph, plan: _Plan, rows: Value, at: int) -> Graph:
    """The graph with `rows` as input number `at`, and everything of the plan tapped."""
    width = rows.type.shape[1]
    holders = list(dict.fromkeys(node for node, _ in plan.inner))
    counts = [sum(len(p.all) for (n, _), p in plan.inner.items() if n is node) for node in holders]
    sizes = (*[1] * len(plan.own), *counts)
    split = Node(
        "split", [rows], [Type((n, width), "float32") for n in sizes], {"sizes": sizes, "axis": 0}
    )
    row = dict(zip(plan.own, split.outputs, strict=False))
    block = dict(zip(holders, split.outputs[len(plan.own) :], strict=True))
    of_value: dict[Value, list[Tap]] = {}
    of_reader: dict[tuple[Node, int], Tap] = {}
    for t in plan.own:
        if t.node is None:
            of_value.setdefault(t.value, []).append(t)
        else:
            of_reader[t.node, t.operand] = t
    rewrite = Rewrite(graph)
    rewrite.add(split)

    def put(tap: Tap, source: Value) -> Value:
        params = {"roundings": tap.roundings}
        made = Node("tap", [source, row[tap]], [source.type], params)
        if tap.value.node is not None:
            where = tap.value.node
            made = where.like(
                op="tap", inputs=[source, row[tap]], types=[source.type], params=params, regions=()
            )
            made.effects = False
        return rewrite.add(made).outputs[0]

    def put_all(value: Value) -> None:
        for t in of_value.get(value, ()):
            now = rewrite(value)
            assert isinstance(now, Value)
            rewrite.map(value, put(t, now))

    for value in graph.inputs:
        put_all(value)
    for node in graph:
        operands = [rewrite(o) for o in node.inputs]
        for i in range(len(operands)):
            if (node, i) in of_reader:
                source = operands[i]
                assert isinstance(source, Value)
                operands[i] = put(of_reader[node, i], source)
        changed = any(a is not b for a, b in zip(operands, node.inputs, strict=True))
        if node in block:
            rewrite.replace(node, _holder(node, plan, operands, block[node]))
        elif changed:
            rewrite.replace(node, node.like(inputs=operands))
        else:
            rewrite.copy(node)
        for value in node.outputs:
            put_all(value)
    inputs = (*graph.inputs[:at], rows, *graph.inputs[at:])
    return rewrite.finish().with_(inputs=inputs)


def _holder(node: Node, plan: _Plan, operands: Sequence[Operand], rows: Value) -> Node:
    """A node with sub-graphs, its rows handed into those that are tapped."""
    where, params = FEEDS[node.op](node)
    place = where
    if node.op == "while":
        place = where - node.params["cond_nconsts"]
    elif node.op == "cond":
        place = where - 1
    regions, begin = list(node.regions), 0
    for i in reachable(node):
        inner = plan.inner.get((node, i))
        region = node.regions[i]
        value = Value(rows.type, hint="taps")
        if inner is None:
            inputs = (*region.inputs[:place], value, *region.inputs[place:])
            regions[i] = region.with_(inputs=inputs)
            continue
        count = len(inner.all)
        width = rows.type.shape[1]
        own = Value(Type((count, width), "float32"), hint="taps")
        made = _tapped(region, inner, own, place)
        if count != rows.type.shape[0]:  # a branch of several: its part of the rows
            part = Node(
                "slice", [value], [own.type],
                {"start_indices": (begin, 0), "limit_indices": (begin + count, width),
                 "strides": None},
            )  # fmt: skip
            made = _substituted(made, own, part)
            inputs = (*region.inputs[:place], value, *region.inputs[place:])
            made = made.with_(inputs=inputs)
        regions[i] = made
        begin += count
    new = list(operands)
    new.insert(where, rows)
    return node.like(inputs=new, regions=tuple(regions), params={**node.params, **params})


def _substituted(graph: Graph, value: Value, by: Node) -> Graph:
    """The graph in which what `by` makes stands for one of its inputs."""
    rewrite = Rewrite(graph)
    rewrite.add(by)
    rewrite.map(value, by.outputs[0])
    for node in graph:
        rewrite.copy(node)
    return rewrite.finish()
