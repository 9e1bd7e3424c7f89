"""Store in 16 bits what is only quantised to 8.

A float32 value goes to a kernel of `quantize` through memory, where XLA alone would have rounded it
on the way. In a program whose activations are bfloat16 it is one more of them.
"""

from __future__ import annotations

import math

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value
from precir.passes.grains import moves_or_casts
from precir.passes.sinks import find_sinks

NARROW = "bfloat16"


def narrow_values(graph: Graph) -> tuple[Graph, list[tuple[Node, int]]]:
    """One level of the program, with casts to bfloat16 before what is quantised of float32 and read
    by nothing else; with a quantisation of each such value, and the bytes that are saved.

    What the program is given keeps its digits: weights.
    """
    chosen: dict[Value, int] = {}
    found = []
    for sink in find_sinks(graph):
        value, nodes = sink.value, sink.nodes
        alone = not sink.others and all(n.inputs[0] is value for n in nodes)
        if alone and value.type.dtype == "float32" and not _given(value):
            looks = 2 if sink.measured else 1
            chosen[value] = 2 * math.prod(value.type.shape) * (1 + looks * len(nodes))
            found.append((nodes[0], chosen[value]))
    if not chosen:
        return graph, []
    rewrite = Rewrite(graph)
    narrow: dict[Value, Operand] = {}
    for node in graph:
        source = node.inputs[0] if node.op in ("quantize", "finite_amax") else None
        if not isinstance(source, Value) or source not in chosen:
            rewrite.copy(node)
            continue
        if source not in narrow:
            kind, params = Type(source.type.shape, NARROW), {"dtype": NARROW}
            cast = node.like(op="cast", inputs=[rewrite(source)], types=[kind], params=params)
            narrow[source] = rewrite.add(cast).outputs[0]
        inputs = [narrow[source], *(rewrite(o) for o in node.inputs[1:])]
        rewrite.replace(node, node.like(inputs=inputs))
    return rewrite.finish(), found


def _given(value: Value) -> bool:
    """Whether a value is of the program's inputs, moved at most."""
    while value.node is not None and moves_or_casts(value.node):
        source = value.node.inputs[0]
        if not isinstance(source, Value):
            return False
        value = source
    return value.node is None
