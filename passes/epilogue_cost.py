"""What a product's epilogue saves: bytes through memory, and launches (see `fused_cost`).

The model: a product by Triton is a kernel of its own. What follows it is part of the kernel that
reads it where XLA computes that; what kernels of ours read, or what is a result, takes a kernel
more, which reads the product and writes what is made of it. By XLA's own ways what follows is part
of the pass that multiplies by the scales, and left there. `precir.kernels.choice` says which way a
product goes, and what it takes.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jax import numpy as jnp

from precir.ir import Graph, Node, Value
from precir.kernels import choice
from precir.ops import Keeps, op_named
from precir.passes.fused_cost import Cost, elements_of, width_of
from precir.passes.samples import elementwise
from precir.scaled import full_block

_FUSED: Final = (Keeps.WIDE, Keeps.FOLLOW, Keeps.MOVE)
_VIEWS: Final = ("reshape", "expand_dims", "squeeze")
_CASTS: Final = ("convert_element_type", "cast")


Saved = tuple[Cost, float]
"""Bytes and launches, and how much less time it takes: nothing where that is not known to be so."""


def wide(graph: Graph, product: Node, value: Value) -> Saved:
    """Where the kernel of a product computes `value`, which is made of it."""
    n, before, after = _sizes(product, value)
    follows = Cost((before + after) * n, 1), Cost((before - after) * n)
    apart = follows[0] if stored(graph, value) else follows[1]
    fewer = Cost((before - after) * n)  # the product itself writes
    return _compared(product, value.type.dtype, apart, fewer)


def narrow(product: Node, value: Value, dtype: str) -> Saved:
    """Where it quantises that value too, which nothing reads wide."""
    n, before, after = _sizes(product, value)
    apart = Cost((before + after) * n, 1) if value is not product.outputs[0] else Cost()
    return _compared(product, dtype, apart + Cost((after + 1) * n, 1), Cost((before - 1) * n))


def activated(product: Node, value: Value, *, bias: bool) -> Saved:
    """Where it computes an activation and measures it, which a kernel of our own computes twice: to
    measure it, and to quantise it.
    """
    n, before, after = _sizes(product, value)
    apart = Cost(2 * before * n, 1) if bias else Cost()
    quantize = Cost(2 * before * n, 2) - Cost(after * n, 1)
    return _compared(product, value.type.dtype, apart + quantize, Cost((before - after) * n))


def measured(product: Node, looks: int) -> Saved:
    """Where it takes the largest of what it writes, which is looked at so often besides. The
    largest of those of its tiles takes a launch.
    """
    n, before, _ = _sizes(product, product.outputs[0])
    look = Cost(looks * before * n, looks - 1)
    return _compared(product, product.outputs[0].type.dtype, look, Cost())


def _compared(product: Node, out: str, apart: Cost, fewer: Cost) -> Saved:
    """`apart` is what other kernels take, `fewer` what the product itself writes less."""
    before = seconds(product, product.outputs[0].type.dtype, epilogue=False)
    after = seconds(product, out, epilogue=True)
    if any(choice.fastest(ways) != "triton" for ways in (before, after)):
        return Cost(), 0.0
    return apart + fewer, before["triton"] + apart.seconds - after["triton"]


def _sizes(product: Node, value: Value) -> tuple[int, int, int]:
    """Elements, and bytes of each before and after."""
    before, after = product.outputs[0].type.dtype, value.type.dtype
    return elements_of(value.type.shape), width_of(before), width_of(after)


def stored(graph: Graph, value: Value) -> bool:
    """Whether a value goes through memory to one of its readers in any case, or is a result."""
    if any(o is value for o in graph.outputs):
        return True
    return any(_stored_for(graph, user) for user in graph.users.get(value, ()))


def _stored_for(graph: Graph, reader: Node) -> bool:
    if reader.op in _VIEWS:
        return stored(graph, reader.outputs[0])
    if reader.op in _CASTS or elementwise(reader):
        return False
    return bool(reader.regions) or op_named(reader.op).keeps not in _FUSED


def seconds(product: Node, out: str, *, epilogue: bool) -> dict[choice.Way, float]:
    """What a product of two 8-bit operands takes, each way."""
    dtypes = product.inputs[0].type.dtype, product.inputs[1].type.dtype
    grains = _grain(product, 0), _grain(product, 1)
    dtype = np.dtype(getattr(jnp, out))
    return choice.seconds(sizes(product), dtypes, grains, dtype, epilogue=epilogue)


def sizes(product: Node) -> tuple[int, int, int, int]:
    """Batch, M, N and K."""
    ((summed, _), (batches, _)) = product.params["dimension_numbers"]
    a, b = product.inputs[0].type.shape, product.inputs[1].type.shape
    batch, k = math.prod(a[i] for i in batches), math.prod(a[i] for i in summed)
    m, n = math.prod(a) // max(1, batch * k), math.prod(b) // max(1, batch * k)
    return batch, m, n, k


def _grain(product: Node, side: int) -> choice.Grain:
    """What the scales of an operand reach over."""
    kind = product.inputs[side].type
    along, batch = (axes[side] for axes in product.params["dimension_numbers"])
    counts = (*(kind.scale or ()), *[1] * kind.rank)[: kind.rank]
    block = full_block(kind.block, kind.rank) if kind.block else (1,) * kind.rank
    reach = {i: b for i, (b, c) in enumerate(zip(block, counts, strict=True)) if c > 1}
    rows = [b for i, b in reach.items() if i not in (*along, *batch)]
    return choice.Grain(max(rows, default=0), max((reach.get(i, 0) for i in along), default=0))
