"""How large parameters and stored data typically are, guessed before anything is measured."""

from __future__ import annotations

import math
from typing import Final

from precir.ir import UPDATE, Graph, Value
from precir.ops import Keeps, op_named

_BELOW_LIMIT: Final = 2.7  # log2 of the usual ratio of the largest to the typical element


def parameter_sizes(graph: Graph) -> dict[Value, float]:
    """log2 of the magnitude that initialisers give to parameters: arrays of the arguments that the
    update changes. The products that read one sum over its fan-in, and keep the magnitude of what
    it multiplies (LeCun et al., Efficient BackProp, 1998; He and Xavier differ by a factor of two).
    """
    found: dict[Value, float] = {}
    for value in graph.inputs:
        readers = graph.users.get(value, ())
        if value.type.dtype == "float32" and any(n.phase == UPDATE for n in readers):
            fan_in = _fan_in(graph, value)
            if fan_in:
                found[value] = -0.5 * math.log2(fan_in)
    return found


def _fan_in(graph: Graph, value: Value) -> int:
    """How many products are summed where a value, moved or not, is first multiplied; 0 if never."""
    waiting = [(graph, value)]
    while waiting:
        graph, value = waiting.pop(0)
        for node in graph.users.get(value, ()):
            keeps = op_named(node.op).keeps
            if node.phase == UPDATE:
                continue
            if node.op == "dot_general":
                side = node.inputs.index(value)
                axes = node.params["dimension_numbers"][0][side]
                return int(math.prod(value.type.shape[a] for a in axes))
            if node.op == "conv_general_dilated":
                out = value.type.shape[node.params["dimension_numbers"].rhs_spec[0]]
                return int(math.prod(value.type.shape) // max(out, 1))
            if node.op == "gather":
                return value.type.shape[-1]
            if keeps is Keeps.MOVE:
                waiting.append((graph, node.outputs[0]))
            elif node.op in ("remat", "scan"):
                index = node.inputs.index(value)
                waiting.append((node.regions[0], node.regions[0].inputs[index]))
    return 0


def size_of_stored(dtype: str) -> float:
    """The typical magnitude of data whose largest element is near the format's limit; one for
    float32 data, which nothing brings there.
    """
    limit = {"float16": 16.0, "bfloat16": 0.0, "float8_e4m3fn": 8.8, "float8_e5m2": 15.8}
    return limit[dtype] - 0.5 - _BELOW_LIMIT if dtype in limit else 0.0
