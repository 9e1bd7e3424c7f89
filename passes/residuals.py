"""Hand 8-bit operands from a forward loop to its backward loop as they are.

A scan stacks what its gradient will need. Where the gradient only quantises it again, the stack
holds the quantised operand instead: a quarter of the bytes, and one quantisation less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precir.ir import Graph, Literal, Node, Rewrite, Type, Value, map_regions


@dataclass(frozen=True)
class _Handed:
    """Stacked output `made` of scan `forward` is read as input `read` of scan `backward`."""

    forward: Node
    made: int
    backward: Node
    read: int
    quantize: Node  # how the backward body quantises it


def share_residuals(graph: Graph) -> Graph:
    """Apply to every level of the program."""
    return _share(map_regions(graph, _share))


def _share(graph: Graph) -> Graph:
    handed = _find(graph)
    if not handed:
        return graph
    rewrite = Rewrite(graph)
    for node in graph:
        makes = {h.made: h for h in handed if h.forward is node}
        reads = {h.read: h for h in handed if h.backward is node}
        if not makes and not reads:
            rewrite.copy(node)
            continue
        body, types = node.regions[0], [v.type for v in node.outputs]
        if reads:
            body = _receive(body, reads)
        if makes:
            body = _hand_on(body, makes)
            for i in makes:
                element = body.outputs[i].type
                length = node.params["length"]
                assert element.scale is not None
                shape, scale = (length, *element.shape), (length, *element.scale)
                types[i] = Type(shape, element.dtype, scale=scale, block=element.block)
        inputs = [rewrite(o) for o in node.inputs]
        rewrite.replace(node, node.like(inputs=inputs, types=types, regions=(body,)))
    return rewrite.finish()


def _find(graph: Graph) -> list[_Handed]:
    outputs = set(graph.outputs)
    found = []
    for node in graph:
        if node.op != "scan":
            continue
        first = node.params["num_consts"] + node.params["num_carry"]
        for i in range(first, len(node.inputs)):
            value = node.inputs[i]
            if not isinstance(value, Value) or value.node is None or value in outputs:
                continue
            made = value.node
            stacked = made.op == "scan" and value.index >= made.params["num_carry"]
            alone = graph.users[value] == (node,) and node.inputs.count(value) == 1
            if not stacked or not alone or value.type.scale is not None:
                continue
            quantize = _only_quantized(node.regions[0], node.regions[0].inputs[i])
            if quantize is not None and isinstance(made.regions[0].outputs[value.index], Value):
                found.append(_Handed(made, value.index, node, i, quantize))
    return found


def _only_quantized(body: Graph, value: Value) -> Node | None:
    """The quantisation that is all a body does with one of its inputs."""
    users = body.users.get(value, ())
    if value in body.outputs or not users or any(u.op != "quantize" for u in users):
        return None
    return users[0] if all(alike(u, users[0]) for u in users) else None


def alike(a: Node, b: Node) -> bool:
    """Two quantisations that give the same of the same, in whatever sub-program they stand: a
    scale that is given them is a number.
    """
    numbers = all(isinstance(o, Literal) for o in (*a.inputs[1:], *b.inputs[1:]))
    return numbers and a.params == b.params and a.inputs[1:] == b.inputs[1:]


def _hand_on(body: Graph, makes: Mapping[int, _Handed]) -> Graph:
    """Return quantised values in the place of the wide ones, made here already or at the end."""
    nodes, outputs = list(body.nodes), list(body.outputs)
    for i, handed in makes.items():
        value = outputs[i]
        assert isinstance(value, Value)
        known = [
            n for n in body.users.get(value, ())
            if n.op == "quantize" and n.inputs[0] is value and alike(n, handed.quantize)
        ]  # fmt: skip
        if not known:
            known = [handed.quantize.like(inputs=[value, *handed.quantize.inputs[1:]])]
            nodes.append(known[0])
        outputs[i] = known[0].outputs[0]
    return body.with_(nodes=tuple(nodes), outputs=tuple(outputs))


def _receive(body: Graph, reads: Mapping[int, _Handed]) -> Graph:
    """Take quantised inputs, and drop the quantisations."""
    inputs = list(body.inputs)
    rewrite = Rewrite(body)
    quantized = {}
    for i in reads:
        users = body.users[inputs[i]]
        new = Value(users[0].outputs[0].type, hint=inputs[i].hint)
        quantized.update(dict.fromkeys(users, new))
        inputs[i] = new
    for node in body:
        if node in quantized:
            rewrite.map(node.outputs[0], quantized[node])
        else:
            rewrite.copy(node)
    return rewrite.finish().with_(inputs=tuple(inputs))
