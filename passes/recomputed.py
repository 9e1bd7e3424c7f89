"""Scales of what a backward pass computes again, from the forward pass.

Under `jax.checkpoint` the backward pass computes a layer again, and quantises again what products
read there; with a scale of its own, a tensor is first read once more for its largest element. But
the forward pass has seen the same tensor. So its scale is handed on: a float32 scalar, stacked with
the others of a loop over layers.

What is the same is told by numbering values (Cocke and Schwartz, Programming Languages and Their
Compilers, 1970): two have one number if one op makes them of values that have. In loops a number
stands for the value at one index: a slice of a stack has that of any other loop's slice of it, and
a slice of what a loop has stacked has that of the value in its body.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value, map_regions

_EIGHT: Final = ("float8_e4m3fn", "float8_e5m2")
_LEAST: Final = 1 << 16  # elements whose largest is worth handing on
_SCALAR: Final = Type((), "float32")


def hand_scales_on(graph: Graph) -> Graph:
    """Apply to every level of the program."""
    if not any(map(_measured, graph.walk())):
        return graph
    return _level(map_regions(graph, _level))


def _level(graph: Graph) -> Graph:
    if not any(n.op in ("remat", "scan") for n in graph):
        return graph
    found = _Found(graph)
    return found.rewritten() if found.wanted else graph


def _measured(node: Node) -> bool:
    """Whether a node looks at all of a large tensor for its one scale."""
    p = node.params
    return (
        node.op == "quantize"
        and p["dtype"] in _EIGHT
        and p.get("scaling", "current") == "current"
        and not p.get("block", ())
        and p.get("scale_format", "float32") == "float32"
        and not p.get("fused")
        and math.prod(node.inputs[0].type.shape) >= _LEAST
    )


@dataclass
class _Numbers:
    """Numbers of values."""

    known: dict[Hashable, int] = field(default_factory=dict)
    made: dict[Graph, tuple[int, ...]] = field(default_factory=dict)

    def of(self, *key: Hashable) -> int:
        return self.known.setdefault(key, len(self.known))

    def operand(self, found: Mapping[Value, int], operand: Operand) -> int:
        return found[operand] if isinstance(operand, Value) else self.of("literal", operand)

    def graph(self, graph: Graph, inputs: Sequence[int]) -> dict[Value, int]:
        """Of all values of a graph, sub-graphs aside, from those of its inputs."""
        found = dict(zip(graph.inputs, inputs, strict=True))
        for node in graph:
            key = self._key(graph, node, found)
            for value in node.outputs:
                found[value] = self.of(key, value.index)
        return found

    def _key(self, graph: Graph, node: Node, found: Mapping[Value, int]) -> Hashable:
        if node.effects:
            return object()
        if node.op == "constant":
            return node.op, id(graph.constants[node.params["name"]])
        inputs = tuple(self.operand(found, o) for o in node.inputs)
        regions = tuple(self._region(r) for r in node.regions)
        types = tuple(v.type for v in node.outputs)
        key = node.op, inputs, regions, types, tuple(node.params.items())
        try:
            hash(key)
        except TypeError:  # a parameter that cannot be hashed; loops may share their bodies
            return node, inputs
        return key

    def _region(self, graph: Graph) -> tuple[int, ...]:
        """What a sub-graph makes of its inputs."""
        if graph not in self.made:
            found = self.graph(graph, [self.of("input", i) for i in range(len(graph.inputs))])
            self.made[graph] = tuple(self.operand(found, o) for o in graph.outputs)
        return self.made[graph]


class _Found:
    """One level: what is quantised in it and in its loops, and what comes later wants of that.

    Attributes:
      here: what is quantised at this level, by number.
      looped: by how long a loop is, what is quantised in its body: the loop, and the value there.
      wanted: for a node, its new sub-graph, and the numbers whose scales that takes last.
      asked: for a loop, the values in its body whose scales others take, by number.
    """

    def __init__(self, graph: Graph) -> None:
        self.level, self.number = graph, _Numbers()
        arguments = [self.number.of("argument", i) for i in range(len(graph.inputs))]
        self.numbers = self.number.graph(graph, arguments)
        self.bodies: dict[Node, dict[Value, int]] = {}
        self.here: dict[int, Value] = {}
        self.looped: dict[int, dict[int, tuple[Node, Value]]] = {}
        self.wanted: dict[Node, tuple[Graph, list[int]]] = {}
        self.asked: dict[Node, dict[int, Value]] = {}
        for node in graph:
            if node.op == "scan":
                self._scan(node)
            elif node.op == "remat":
                inputs = [self.number.operand(self.numbers, o) for o in node.inputs]
                self._wants(node, inputs, self.here)
            elif _measured(node):
                self.here.setdefault(self.numbers[node.outputs[0]], node.outputs[0])

    def _wants(self, node: Node, inputs: Sequence[int], known: Collection[int]) -> bool:
        region, wants = _receiving(node.regions[0], self.number, inputs, known)
        if wants:
            self.wanted[node] = region, wants
        return bool(wants)

    def _scan(self, scan: Node) -> None:
        inputs = [self._inside(scan, i) for i in range(len(scan.inputs))]
        known = self.looped.setdefault(scan.params["length"], {})
        if self._wants(scan, inputs, known):
            for n in self.wanted[scan][1]:
                source, value = known[n]
                self.asked.setdefault(source, {})[n] = value
            return
        body = scan.regions[0]
        self.bodies[scan] = found = self.number.graph(body, inputs)
        for node in body:
            if _measured(node):
                known.setdefault(found[node.outputs[0]], (scan, node.outputs[0]))

    def _inside(self, scan: Node, i: int) -> int:
        """The number of an input of a loop's body."""
        p, operand = scan.params, scan.inputs[i]
        outer = self.number.operand(self.numbers, operand)
        if i < p["num_consts"]:
            return outer
        if i < p["num_consts"] + p["num_carry"]:
            return self.number.of("carried", scan, i)
        made = operand.node if isinstance(operand, Value) else None
        if made is not None and made in self.bodies and isinstance(operand, Value):
            stacked = operand.index >= made.params["num_carry"]
            if stacked and made.params["length"] == p["length"]:
                return self.number.operand(
                    self.bodies[made], made.regions[0].outputs[operand.index]
                )
        return self.number.of("slice", outer, p["length"])

    # -- the new program -----------------------------------------------------------------------

    def rewritten(self) -> Graph:
        rewrite = Rewrite(self.level)
        single: dict[int, Operand] = {}
        stacked: dict[tuple[Node, int], Operand] = {}
        for node in self.level:
            made = node
            if node in self.wanted:
                region, wants = self.wanted[node]
                if node.op == "scan":
                    known = self.looped[node.params["length"]]
                    more = [stacked[known[n][0], n] for n in wants]
                else:
                    for n in wants:
                        if n not in single:
                            scale = rewrite.add(_scale(rewrite(self.here[n]), node))
                            single[n] = scale.outputs[0]
                    more = [single[n] for n in wants]
                made = _with(node, [*(rewrite(o) for o in node.inputs), *more], region)
            elif node in self.asked:
                values, length = self.asked[node].values(), node.params["length"]
                body = _giving(node.regions[0], values, node)
                types = [Type((length,), "float32")] * len(values)
                made = node.like(
                    inputs=[rewrite(o) for o in node.inputs],
                    types=[*(v.type for v in node.outputs), *types],
                    regions=(body,),
                )
                new = made.outputs[len(node.outputs) :]
                keys = ((node, n) for n in self.asked[node])
                stacked.update(zip(keys, new, strict=True))
            if made is node:
                rewrite.copy(node)
                continue
            rewrite.add(made)
            for was, now in zip(node.outputs, made.outputs, strict=False):
                rewrite.map(was, now)
        return rewrite.finish()


def _receiving(
    graph: Graph, number: _Numbers, inputs: Sequence[int], known: Collection[int]
) -> tuple[Graph, list[int]]:
    """A sub-graph in which what has a known number is quantised under a scale that is given: what
    it takes last, one for each of the numbers returned.
    """
    found = number.graph(graph, inputs)
    rewrite = Rewrite(graph)
    scales: dict[int, Value] = {}

    def scale(n: int) -> Value:
        return scales.setdefault(n, Value(_SCALAR, hint="scale"))

    for node in graph:
        if node.op == "remat":
            theirs = [number.operand(found, o) for o in node.inputs]
            region, wants = _receiving(node.regions[0], number, theirs, known)
            if wants:
                operands = [*(rewrite(o) for o in node.inputs), *map(scale, wants)]
                rewrite.replace(node, _with(node, operands, region))
                continue
        elif _measured(node) and found[node.outputs[0]] in known:
            x, n = rewrite(node.inputs[0]), found[node.outputs[0]]
            params = {**node.params, "scaling": "given"}
            rewrite.replace(node, node.like(inputs=[x, scale(n)], params=params))
            continue
        rewrite.copy(node)
    done = rewrite.finish()
    return done.with_(inputs=(*graph.inputs, *scales.values())), list(scales)


def _giving(body: Graph, values: Collection[Value], scan: Node) -> Graph:
    """A body that also returns the scales of these values."""
    made = [_scale(v, scan) for v in values]
    outputs = (*body.outputs, *(n.outputs[0] for n in made))
    return body.with_(nodes=(*body.nodes, *made), outputs=outputs)


def _scale(value: Operand, at: Node) -> Node:
    return Node("scale_of", [value], [_SCALAR], source=at.source, scope=at.scope, phase=at.phase)


def _with(node: Node, inputs: Sequence[Operand], region: Graph) -> Node:
    """The node with more operands, which come last, and its new sub-graph."""
    params: dict[str, Any] = dict(node.params)
    held = params.get("prevent_cse")
    if isinstance(held, tuple):  # said of each operand
        params["prevent_cse"] = (*held, *[False] * (len(inputs) - len(node.inputs)))
    return node.like(inputs=inputs, regions=(region,), params=params)
