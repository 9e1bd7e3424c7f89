"""Which way each product of 8-bit operands takes on a GPU, and why."""

from __future__ import annotations

import math

from precir.ir import Node
from precir.kernels import choice
from precir.passes.assign import Product
from precir.passes.grains import Grain


def way_of(product: Product) -> str:
    """`bf16: bf16 4.6 us, triton 5.2 us (by the model, NVIDIA H100)`; empty for what is in no 8
    bits, and for what multiplies nothing.

    The times are of the GPU of this machine, or of an H100 where it has none that is known.
    """
    if not product.low or product.node.op != "dot_general":
        return ""
    shapes = _shapes(product.node)
    if not all(shapes):
        return ""
    grains = _reach(product.node, 0, product.grains[0]), _reach(product.node, 1, product.grains[1])
    return choice.explain(shapes, product.operands, grains, product.result)


def _shapes(node: Node) -> tuple[int, int, int, int]:
    """Batch, M, N and K of a product."""
    ((a_sum, _), (a_batch, b_batch)) = node.params["dimension_numbers"]
    a, b = node.inputs[0].type.shape, node.inputs[1].type.shape
    batch, k = math.prod(a[i] for i in a_batch), math.prod(a[i] for i in a_sum)
    m = math.prod(a) // max(1, batch * k)
    n = math.prod(b) // max(1, math.prod(b[i] for i in b_batch) * k)
    return batch, m, n, k


def _reach(node: Node, side: int, grain: Grain) -> choice.Grain:
    """An operand's scales, as the table of ways knows them."""
    if grain.reach in ("tensor", "row"):
        return choice.Grain(rows=int(grain.reach == "row"))
    summed = node.params["dimension_numbers"][0][side]
    block = (1,) * (node.inputs[side].type.rank - len(grain.block)) + grain.block
    along = max(block[i] for i in summed)
    across = [b for i, b in enumerate(block) if i not in summed]
    return choice.Grain(rows=max(across, default=1), k=along)
