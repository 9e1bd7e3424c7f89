"""Let kernels that quantise a layer's weights read them out of the stack that a loop goes over.

A scan over layers hands each step a slice of every stack. XLA computes with a slice as it reads it,
but a kernel's operand has to be whole in memory: before each kernel it copies the layer, in the
stack's wide format, twice the bytes that the kernel then reads. So a stack of which a step does
nothing but quantise its slice goes into the loop whole, with the number of the layer, and
`precir.kernels.Layer` is what the kernel gets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np

from precir.ir import Graph, Node, Rewrite, Type, Value, map_regions
from precir.kernels.quantize_cuda import knows
from precir.passes.feeding import FEEDS

_READERS: Final = ("quantize", "quantize_both", "finite_amax")
_WIDE: Final = ("float16", "bfloat16", "float32")
_LEAST: Final = 1 << 16  # elements of a layer that are worth a kernel's looking up where it lies
_T = TypeVar("_T")
_INDEX: Final = Type((), "int32")


def read_layers(graph: Graph) -> Graph:
    """The program with such stacks whole in its loops, at every level."""
    return map_regions(_level(graph), _level)


def _level(graph: Graph) -> Graph:
    rewrite = Rewrite(graph)
    for node in graph:
        chosen = _chosen(node) if node.op == "scan" else []
        if chosen:
            _whole(node, chosen, rewrite)
        else:
            rewrite.copy(node)
    return rewrite.finish()


def _chosen(scan: Node) -> list[int]:
    """The operands of a scan that are stacks of what is only quantised."""
    body = scan.regions[0]
    first = scan.params["num_consts"] + scan.params["num_carry"]
    if scan.params["length"] < 2:
        return []
    return [i for i in range(first, len(body.inputs)) if _large(body.inputs[i]) and _only(body, i)]


def _large(layer: Value) -> bool:
    kind = layer.type
    return kind.scale is None and kind.dtype in _WIDE and math.prod(kind.shape) >= _LEAST


def _only(graph: Graph, i: int) -> bool:
    """Whether input `i` is read by nothing but what quantises it, here or in a remat's body."""
    value = graph.inputs[i]
    users = graph.users.get(value, ())
    return bool(users) and value not in graph.outputs and all(_reads(u, value) for u in users)


def _reads(node: Node, value: Value) -> bool:
    places = [i for i, o in enumerate(node.inputs) if o is value]
    if node.op == "remat":
        return all(_only(node.regions[0], i) for i in places)
    if node.op == "quantize" and not knows(value.type.shape, node.params.get("block", ())):
        return False  # XLA's code, which reads slices as they are
    return node.op in _READERS and places == [0] and not node.params.get("fused")


def _whole(scan: Node, chosen: Sequence[int], rewrite: Rewrite) -> None:
    """The scan with these stacks as constants, and the numbers of the layers as the last thing that
    it goes over.
    """
    consts, length = scan.params["num_consts"], scan.params["length"]
    params = {"dtype": np.dtype("int32"), "shape": (length,), "dimension": 0, "sharding": None}
    numbers = Node(
        "iota", [], [Type((length,), "int32")], params,
        source=scan.source, scope=scan.scope, phase=scan.phase,
    )  # fmt: skip
    rewrite.add(numbers)
    body = _taking(scan.regions[0], {i: _stack(scan, i) for i in chosen})
    body = body.with_(inputs=_moved(body.inputs, chosen, consts))
    made = scan.like(
        inputs=[*_moved([rewrite(o) for o in scan.inputs], chosen, consts), numbers.outputs[0]],
        regions=(body,),
        params={**scan.params, "num_consts": consts + len(chosen)},
    )
    rewrite.replace(scan, made)


def _moved(operands: Sequence[_T], chosen: Sequence[int], to: int) -> tuple[_T, ...]:
    """With those chosen in front of `to`."""
    rest = [o for i, o in enumerate(operands) if i not in chosen]
    return (*rest[:to], *(operands[i] for i in chosen), *rest[to:])


def _stack(scan: Node, i: int) -> Value:
    """What the body calls a stack: as the program does, where it is an argument."""
    operand = scan.inputs[i]
    hint = operand.hint if isinstance(operand, Value) else ""
    words = [] if hint.startswith("arg") else re.findall(r"[A-Za-z_]\w*", hint)
    return Value(operand.type, hint=words[-1] if words else scan.regions[0].inputs[i].hint)


def _taking(graph: Graph, stacks: Mapping[int, Value]) -> Graph:
    """A graph that takes stacks in the place of these inputs, and last the number of the layer."""
    index = Value(_INDEX, hint="layer")
    inputs = list(graph.inputs)
    whole: dict[Value, Value] = {}
    for i, stack in stacks.items():
        inputs[i] = Value(stack.type, hint=stack.hint)
        whole[graph.inputs[i]] = inputs[i]
    rewrite = Rewrite(graph)
    for node in graph:
        places = {
            i: whole[o] for i, o in enumerate(node.inputs) if isinstance(o, Value) and o in whole
        }
        if not places:
            rewrite.copy(node)
            continue
        operands = [rewrite(o) for o in node.inputs]
        if node.op == "remat":
            operands = [places.get(i, o) for i, o in enumerate(operands)]
            _, more = FEEDS["remat"](node)
            made = node.like(
                inputs=[*operands, index],
                regions=(_taking(node.regions[0], places),),
                params={**node.params, **more},
            )
        else:
            layer = node.like(
                op="layer", inputs=[places[0], index], types=[node.inputs[0].type], params={}
            )
            rewrite.add(layer)
            made = node.like(inputs=[layer.outputs[0], *operands[1:]])
        rewrite.replace(node, made)
    done = rewrite.finish()
    return done.with_(inputs=(*inputs, index))
