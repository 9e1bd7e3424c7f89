"""Keep the gradients of weights in 8 bits between the product that makes them and the update."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from precir.ir import BACKWARD, UPDATE, Graph, Node, Operand, Rewrite, Type, Value


def narrow_gradients(graph: Graph, shapes: Container[tuple[int, ...]], dtype: str) -> Graph:
    """The program in which the update reads gradients of these shapes from 8 bits, each under a
    scale of its own; those that a scan stacks, layer by layer, so that the stack is in 8 bits.

    A gradient that is summed over micro-batches keeps its digits until it is whole.
    """
    found = {
        v for node in graph if node.phase == BACKWARD for v in node.outputs
        if v.type.shape in shapes and v.type.dtype == "float32" and v.type.rank >= 2
        and any(n.phase == UPDATE for n in graph.users.get(v, ()))
    }  # fmt: skip
    if not found:
        return graph
    rewrite = Rewrite(graph)
    wide: dict[Operand, Operand] = {}
    for node in graph:
        here = [v for v in node.outputs if v in found]
        if node.phase == UPDATE and any(o in wide for o in node.inputs):
            inputs = [wide.get(o, rewrite(o)) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs))
            continue
        if node.op == "scan" and all(_is_stacked(node, v) for v in here) and here:
            rewrite.replace(node, _stacked(rewrite, node, here, dtype))
            new: dict[Value, Operand] = {v: rewrite(v) for v in here}
            for v in here:  # whoever reads the stack in the backward program reads it widened too
                rewrite.map(v, _dequantized(rewrite, node, v, new[v]))
                wide[v] = rewrite(v)
            continue
        rewrite.copy(node)
        for v in here:
            kind = Type(v.type.shape, dtype, scale=())
            params = {"dtype": dtype, "scaling": "current"}
            made = node.like(
                op="quantize", inputs=[rewrite(v)], types=[kind], params=params, regions=()
            )
            made.effects = False
            wide[v] = _dequantized(rewrite, node, v, rewrite.add(made).outputs[0])
    outputs = [wide.get(o, rewrite(o)) for o in graph.outputs]
    return rewrite.finish(outputs=outputs)


def _dequantized(rewrite: Rewrite, node: Node, value: Value, narrow: Operand) -> Operand:
    types = [replace(value.type, weak=False)]
    made = node.like(op="dequantize", inputs=[narrow], types=types, params={}, regions=())
    made.effects = False
    return rewrite.add(made).outputs[0]


def _is_stacked(node: Node, value: Value) -> bool:
    return bool(node.outputs.index(value) >= node.params["num_carry"])


def _stacked(rewrite: Rewrite, node: Node, stacks: list[Value], dtype: str) -> Node:
    """The scan whose results `stacks` are quantised where its body makes them."""
    (body,) = node.regions
    outputs, types, added = list(body.outputs), [v.type for v in node.outputs], []
    for v in stacks:
        at = node.outputs.index(v)
        inner = outputs[at]
        kind = Type(v.type.shape[1:], dtype, scale=())
        made = Node(
            "quantize", [inner], [kind], {"dtype": dtype, "scaling": "current"},
            source=node.source, scope=node.scope, phase=BACKWARD,
        )  # fmt: skip
        added.append(made)
        outputs[at] = made.outputs[0]
        types[at] = Type(v.type.shape, dtype, scale=(node.params["length"],))
    region = body.with_(nodes=(*body.nodes, *added), outputs=tuple(outputs))
    inputs = [rewrite(o) for o in node.inputs]
    return node.like(inputs=inputs, types=types, regions=(region,))
