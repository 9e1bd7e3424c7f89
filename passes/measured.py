"""The largest of what a product makes, from the kernel of the product.

A scale that is measured on a tensor takes a look at all of it before it is quantised. The kernel
that computes it has all of it in its registers, before it is rounded. Under a scale that is a power
of two, what is not beyond its range before it is rounded to 16 bits is not beyond it after.
"""

from __future__ import annotations

from typing import Any, Final

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value
from precir.ops.products import result_types
from precir.passes.epilogue_cost import measured
from precir.passes.fused_cost import Fused

_SAME: Final = ("convert_element_type", "cast", "reshape", "transpose", "squeeze", "expand_dims")
_WIDE: Final = ("float32", "bfloat16", "float16")
_EIGHT: Final = ("float8_e4m3fn", "float8_e5m2")
_SCALAR: Final = Type((), "float32")


def measure_products(graph: Graph, times: int | None) -> tuple[Graph, list[Fused]]:
    """One level of a program that runs so many `times`, its products measured in their kernel where
    a scale is taken from that; and what was decided.
    """
    looks: dict[Node, list[Node]] = {}
    for node in graph:
        product = _product(node.inputs[0]) if _looks(node) else None
        if product is not None:
            looks.setdefault(product, []).append(node)
    decided, used = list[Fused](), set[Node]()
    for product, readers in looks.items():
        looked = {r.inputs[0] for r in readers}
        saved, less = measured(product, len(looked))
        if less > 0:
            used.add(product)
        words = "measured for a scale" if less > 0 else "it takes no less"
        decided.append(Fused("scaled_dot", product, less > 0, times, saved, words))
    if not used:
        return graph, decided
    return _with(graph, used), decided


def _looks(node: Node) -> bool:
    """Whether a node takes the largest of all its operand: for itself, or to quantise it."""
    p = node.params
    if node.op == "finite_amax":
        return True
    if node.op == "quantize":
        alone = not p.get("block") and not p.get("fused") and p["dtype"] in _EIGHT
        return alone and p.get("scaling", "current") == "current" and "scale_format" not in p
    return node.op == "quantize_both" and not p["given"] and not p["block"]


def _product(operand: Operand) -> Node | None:
    """The product that a value is, cast or moved at most."""
    while isinstance(operand, Value) and operand.node is not None:
        node = operand.node
        if node.op == "scaled_dot":
            plain = operand.index == 0 and not any(node.params.get(k) for k in ("narrow", "amax"))
            eight = all(o.type.dtype in _EIGHT for o in node.inputs[:2])
            return node if plain and eight and all(operand.type.shape) else None
        if node.op not in _SAME or operand.type.dtype not in _WIDE:
            return None
        operand = node.inputs[0]
    return None


def _with(graph: Graph, used: set[Node]) -> Graph:
    rewrite = Rewrite(graph)
    amax: dict[Node, Value] = {}
    for node in graph:
        if node in used:
            params = {**node.params, "amax": True}
            kinds = result_types(node.outputs[0].type.shape, params)
            inputs = [rewrite(o) for o in node.inputs]
            made = rewrite.add(node.like(inputs=inputs, types=kinds, params=params))
            rewrite.map(node.outputs[0], made.outputs[0])
            amax[node] = made.outputs[1]
            continue
        product = _product(node.inputs[0]) if _looks(node) else None
        if product is None or product not in used:
            rewrite.copy(node)
        elif node.op == "finite_amax":
            rewrite.map(node.outputs[0], amax[product])
        else:
            _given(rewrite, node, amax[product])
    return rewrite.finish()


def _given(rewrite: Rewrite, node: Node, amax: Value) -> None:
    """The quantisation under the scale of what was measured."""
    p = {"dtype": node.params["dtype"]}
    scale = node.like(op="current_scale", inputs=[amax], types=[_SCALAR], params=p)
    inputs = [rewrite(node.inputs[0]), rewrite.add(scale).outputs[0]]
    how: dict[str, Any] = {"scaling": "given"} if node.op == "quantize" else {"given": True}
    rewrite.replace(node, node.like(inputs=inputs, params={**node.params, **how}))
