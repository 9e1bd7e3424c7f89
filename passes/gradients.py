"""Keep the gradients of weights in 8 bits between the product that makes them and the update."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from precir.ir import BACKWARD, UPDATE, Graph, Node, Operand, Rewrite, Type, Value


def narrow_gradients(graph: Graph, shapes: Container[tuple[int, ...]], dtype: str) -> Graph:
    """The program in which the update reads gradients of these shapes from 8 bits, each under a
    scale of its own; those that a scan stacks for it, layer by layer, so that the stack is in 8
    bits. Whoever else reads a gradient, or is returned it, gets all of its digits.

    A gradient that is summed over micro-batches keeps its digits until it is whole.
    """
    found = {
        v for node in graph if node.phase == BACKWARD for v in node.outputs
        if v.type.shape in shapes and v.type.dtype == "float32" and v.type.rank >= 2
        and any(n.phase == UPDATE for n in graph.users.get(v, ()))
    }  # fmt: skip
    if not found:
        return graph
    returned = set(graph.outputs)
    rewrite = Rewrite(graph)
    wide: dict[Operand, Operand] = {}
    for node in graph:
        here = [v for v in node.outputs if v in found]
        if node.phase == UPDATE and any(o in wide for o in node.inputs):
            inputs = [wide.get(o, rewrite(o)) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs))
            continue
        stacks = [v for v in here if v not in returned and _is_stacked(graph, node, v)]
        if stacks:
            rewrite.replace(node, _stacked(rewrite, node, stacks, dtype))
        else:
            rewrite.copy(node)
        for v in here:
            narrow = rewrite(v)
            if v not in stacks:
                kind, params = Type(v.type.shape, dtype, scale=()), _current(dtype)
                narrow = _after(rewrite, node, "quantize", narrow, kind, params)
            wide[v] = _after(rewrite, node, "dequantize", narrow, replace(v.type, weak=False), {})
    return rewrite.finish()


def _current(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "scaling": "current"}


def _after(
    rewrite: Rewrite, node: Node, op: str, operand: Operand, kind: Type, params: dict[str, Any]
) -> Operand:
    """A value made of a result of `node`, and said to come from where that comes from."""
    made = node.like(op=op, inputs=[operand], types=[kind], params=params, regions=())
    made.effects = False
    return rewrite.add(made).outputs[0]


def _is_stacked(graph: Graph, node: Node, value: Value) -> bool:
    """Whether a scan stacks a value that nothing but the update reads."""
    if node.op != "scan" or node.outputs.index(value) < node.params["num_carry"]:
        return False
    return all(n.phase == UPDATE for n in graph.users.get(value, ()))


def _stacked(rewrite: Rewrite, node: Node, stacks: list[Value], dtype: str) -> Node:
    """The scan whose results `stacks` are quantised where its body makes them."""
    (body,) = node.regions
    outputs, types, added = list(body.outputs), [v.type for v in node.outputs], []
    for v in stacks:
        at = node.outputs.index(v)
        inner = outputs[at]
        kind = Type(v.type.shape[1:], dtype, scale=())
        made = Node(
            "quantize", [inner], [kind], _current(dtype),
            source=node.source, scope=node.scope, phase=BACKWARD,
        )  # fmt: skip
        added.append(made)
        outputs[at] = made.outputs[0]
        types[at] = Type(v.type.shape, dtype, scale=(node.params["length"],))
    region = body.with_(nodes=(*body.nodes, *added), outputs=tuple(outputs))
    inputs = [rewrite(o) for o in node.inputs]
    return node.like(inputs=inputs, types=types, regions=(region,))
