"""What stands between a node and the loss: found by data flow through loops and branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from precir.ir import BACKWARD, UPDATE, Graph, Node, Value
from precir.ops import Keeps, op_named

_PRODUCT, _OUTPUT = 1, 2  # what a forward value reaches through forward nodes


@dataclass
class Tail:
    """The end of the forward program and the beginning of the backward one.

    Attributes:
      products: products whose result reaches the loss through no other product (the logits), and
        backward products whose incoming gradient comes from the loss through no other product.
      loss: other nodes of which the same holds.
    """

    products: set[Node] = field(default_factory=set)
    loss: set[Node] = field(default_factory=set)

    def note(self, node: Node, holds: bool) -> None:
        members = self.products if _contracts(node) else self.loss
        (members.add if holds else members.discard)(node)


def is_product(node: Node) -> bool:
    return op_named(node.op).keeps is Keeps.PRODUCT


def _contracts(node: Node) -> bool:
    """A product or a convolution: no part of a loss."""
    return op_named(node.op).keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION)


def find_tail(graph: Graph) -> Tail:
    """The nodes between the last products and the loss, and between the loss and the first
    backward products.
    """
    tail = Tail()
    _reaching(graph, [_OUTPUT] * len(graph.outputs), tail)
    _depending(graph, [False] * len(graph.inputs), tail)
    return tail


def _is_forward(node: Node) -> bool:
    return node.phase not in (BACKWARD, UPDATE)


def _reaching(graph: Graph, outputs: Sequence[int], tail: Tail) -> list[int]:
    """Walk back: what each output leads to in, what each input leads to out."""
    leads: dict[Value, int] = {}

    def mark(operands: Sequence[object], flags: int) -> None:
        if flags:
            for o in operands:
                if isinstance(o, Value):
                    leads[o] = leads.get(o, 0) | flags

    for output, flags in zip(graph.outputs, outputs, strict=True):
        mark([output], flags)
    for node in reversed(graph.nodes):
        reached = [leads.get(v, 0) for v in node.outputs]
        total = 0
        for flags in reached:
            total |= flags
        if node.regions and node.phase != UPDATE:
            for operand, flags in zip(node.inputs, _through(node, reached, tail), strict=True):
                mark([operand], flags)
        elif not _is_forward(node):
            continue
        elif _contracts(node):
            tail.note(node, not total & _PRODUCT)
            mark(node.inputs, _PRODUCT)
        else:
            tail.note(node, total == _OUTPUT)
            mark(node.inputs, total)
    return [leads.get(v, 0) for v in graph.inputs]


def _through(node: Node, reached: list[int], tail: Tail) -> list[int]:
    """`_reaching` for a node with sub-graphs: flags for each of its inputs."""
    if node.op in ("scan", "while"):
        body, before, carry = _loop_body(node)
        flags = list(reached)
        while True:
            inner = _reaching(body, flags, tail)
            carried = inner[len(body.inputs) - _after_carry(node, body) - carry :][:carry]
            fed = [a | b for a, b in zip(flags[:carry], carried, strict=True)]
            if fed == flags[:carry]:
                return [0] * before + inner
            flags[:carry] = fed
    if node.op == "remat" and node.phase == BACKWARD:
        # Forward nodes in here are computed again for the gradients' sake: they are what they
        # were the first time, and this graph does not say where that was.
        inner = _reaching(node.regions[0], [_PRODUCT] * len(reached), tail)
        again = {n for n in node.regions[0].walk() if _is_forward(n)}
        tail.products -= again
        tail.loss -= again
        return inner
    offset = len(node.inputs) - len(node.regions[0].inputs)
    total = [0] * len(node.inputs)
    for region in node.regions:
        if len(region.outputs) != len(reached) or len(region.inputs) + offset != len(total):
            return [_PRODUCT] * len(node.inputs)
        inner = [0] * offset + _reaching(region, reached, tail)
        total = [a | b for a, b in zip(total, inner, strict=True)]
    return total


def _loop_body(node: Node) -> tuple[Graph, int, int]:
    """A loop's body, how many operands of the node come before those of the body, and how many
    values it carries.
    """
    if node.op == "scan":
        return node.regions[0], 0, node.params["num_carry"]
    return node.regions[1], node.params["cond_nconsts"], len(node.outputs)


def _after_carry(node: Node, body: Graph) -> int:
    """How many of a loop body's inputs follow the carried ones."""
    if node.op == "while":
        return 0
    return len(body.inputs) - int(node.params["num_consts"]) - int(node.params["num_carry"])


def _depending(graph: Graph, inputs: Sequence[bool], tail: Tail) -> list[bool]:
    """Walk forward: does each input depend on a backward product, does each output?"""
    after: set[Value] = {v for v, f in zip(graph.inputs, inputs, strict=True) if f}
    for node in graph.nodes:
        flags = [isinstance(o, Value) and o in after for o in node.inputs]
        if node.regions and node.phase != UPDATE:
            made = _along(node, flags, tail)
        elif node.phase != BACKWARD:
            continue
        else:
            tail.note(node, not any(flags))
            made = [_contracts(node) or any(flags)] * len(node.outputs)
        after.update(v for v, f in zip(node.outputs, made, strict=True) if f)
    return [isinstance(o, Value) and o in after for o in graph.outputs]


def _along(node: Node, flags: list[bool], tail: Tail) -> list[bool]:
    if node.op in ("scan", "while"):
        body, before, carry = _loop_body(node)
        inner = flags[before:]
        first = len(body.inputs) - _after_carry(node, body) - carry
        while True:
            made = _depending(body, inner, tail)
            fed = [a or b for a, b in zip(inner[first : first + carry], made[:carry], strict=True)]
            if fed == inner[first : first + carry]:
                return made
            inner[first : first + carry] = fed
    offset = len(node.inputs) - len(node.regions[0].inputs)
    total = [False] * len(node.outputs)
    for region in node.regions:
        if len(region.outputs) != len(total) or len(region.inputs) + offset != len(flags):
            return [any(flags)] * len(node.outputs)
        made = _depending(region, flags[offset:], tail)
        total = [a or b for a, b in zip(total, made, strict=True)]
    return total
