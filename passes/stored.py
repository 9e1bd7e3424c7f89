"""Use what is stored in 8 bits as it is stored: in products, in sub-programs, and after lookups.

A stored tensor is dequantised before its first reader (`precir.passes.storage`), and a product
quantises it again. Where nothing but casts and moves lies between the two, the product takes the
stored data; a lookup takes rows of it, and only those are dequantised. What nobody reads in wide
numbers any more is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value
from precir.ops.rows import row_type
from precir.ops.stored import Step, is_lookup, moved
from precir.passes.simplify import drop_dead

EIGHT: Final = ("float8_e4m3fn", "float8_e5m2", "int8")


@dataclass(frozen=True)
class Handed:
    """Operand `operand` of a node is input `input` of its sub-graph `region`; `stacked` if that
    sees one row of it at a time.
    """

    region: int
    operand: int
    input: int
    stacked: bool = False


def handed(node: Node) -> Iterator[Handed]:
    """The operands that a node hands on to sub-graphs as they are, carried values aside."""
    p, count = node.params, len(node.inputs)
    if node.op == "scan":
        consts, last = p["num_consts"], p["num_consts"] + p["num_carry"]
        yield from (Handed(0, i, i) for i in range(consts))
        yield from (Handed(0, i, i, stacked=True) for i in range(last, count))
    elif node.op == "remat":
        yield from (Handed(0, i, i) for i in range(count))
    elif node.op == "cond":
        regions = range(len(node.regions))
        yield from (Handed(r, i, i - 1) for r in regions for i in range(1, count))
    elif node.op == "while":
        first = p["cond_nconsts"]
        yield from (Handed(1, first + i, i) for i in range(p["body_nconsts"]))


def use_stored(graph: Graph) -> Graph:
    """The program that dequantises no more of its stored tensors than it must."""
    return _Walk(graph, {}).run()


class _Walk:
    """One graph; `pairs` are old values that only hold what some stored tensor of the new graph
    does.
    """

    def __init__(self, graph: Graph, given: Mapping[int, Type]) -> None:
        self.graph, self.rewrite = graph, Rewrite(graph)
        self.pairs: dict[Operand, Value] = {}
        self.inputs = list(graph.inputs)
        for i, type_ in given.items():
            old = graph.inputs[i]
            pair = self.inputs[i] = Value(type_, hint=old.hint)
            self.widen(old, pair)

    def widen(self, old: Value, pair: Value) -> None:
        """What a sub-graph was handed dequantised, it dequantises itself."""
        made = self.rewrite.add(Node("dequantize", [pair], [Type(pair.type.shape, "float32")]))
        if old.type.dtype != "float32":
            kind = Type(old.type.shape, old.type.dtype)
            made = self.rewrite.add(Node("cast", [made.outputs[0]], [kind], {"dtype": kind.dtype}))
        self.rewrite.map(old, made.outputs[0])
        self.pairs[old] = pair

    def run(self) -> Graph:
        for node in self.graph:
            self.node(node)
        new = self.rewrite.finish()
        if self.inputs != list(self.graph.inputs):
            new = new.with_(inputs=tuple(self.inputs))
        return drop_dead(new)

    def node(self, node: Node) -> None:
        pair = self.pairs.get(node.inputs[0]) if node.inputs else None
        if node.regions:
            self.regions(node)
        elif node.op == "dequantize" and isinstance(stored := self.rewrite(node.inputs[0]), Value):
            if stored.type.dtype in EIGHT or stored.type.dtype == "bfloat16":
                self.pairs[node.outputs[0]] = stored
            self.rewrite.copy(node)
        elif pair is None:
            self.rewrite.copy(node)
        elif node.op == "quantize" and pair.type.dtype == node.params["dtype"]:
            self.rewrite.map(node.outputs[0], pair)
        elif is_lookup(node):
            self.rewrite.replace(node, node.like(inputs=[pair, self.rewrite(node.inputs[1])]))
        else:
            self.move(node, pair)
            self.rewrite.copy(node)

    def move(self, node: Node, pair: Value) -> None:
        steps = moved(node, pair.type)
        if steps is None:
            return
        for step in steps:
            pair = self.step(node, pair, step)
        self.pairs[node.outputs[0]] = pair

    def step(self, node: Node, pair: Value, step: Step) -> Value:
        if step.op == "reshape":
            if pair.type == step.type:
                return pair
            made = pair.node
            if made is not None and made.op == "reshape" and made.inputs[0].type == step.type:
                assert isinstance(made.inputs[0], Value)
                return made.inputs[0]  # there and back
        operands = [pair, *(self.rewrite(o) for o in step.operands)]
        new = node.like(op=step.op, inputs=operands, types=[step.type], params=step.params)
        return self.rewrite.add(new).outputs[0]

    def regions(self, node: Node) -> None:
        inputs = [self.rewrite(o) for o in node.inputs]
        given: list[dict[int, Type]] = [{} for _ in node.regions]
        for h in handed(node):
            pair = self.pairs.get(node.inputs[h.operand])
            if pair is None or pair.type.dtype not in EIGHT:
                continue
            type_ = row_type(pair.type) if h.stacked else pair.type
            if type_ is not None:
                inputs[h.operand] = pair
                given[h.region][h.input] = _layer(type_, pair.type) if h.stacked else type_
        regions = tuple(
            _Walk(region, types).run() for region, types in zip(node.regions, given, strict=True)
        )
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        if same and regions == node.regions:
            self.rewrite.copy(node)
        else:
            self.rewrite.replace(node, node.like(inputs=inputs, regions=regions))


def _layer(row: Type, stack: Type) -> Type:
    """What a scan sees of a stack: blocks keep the name they have outside."""
    return replace(row, block=stack.block)
