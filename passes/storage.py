"""Read and write what lives between steps in narrow storage: data and scale as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from precir.ir import FORWARD, UPDATE, Graph, Literal, Node, Operand, Rewrite, Type, Value
from precir.verify.contracts import is_float


@dataclass(frozen=True)
class Stored:
    """Which inputs and results of a program are `ScaledArray`s.

    Attributes:
      inputs: by the number of an input, its type in storage.
      outputs: by the number of a result, the dtype of its data; one scale for the whole tensor.
    """

    inputs: Mapping[int, Type] = field(default_factory=dict)
    outputs: Mapping[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


def insert_storage(graph: Graph, stored: Stored) -> Graph:
    """The program on stored inputs: each is dequantised to float32 once, before its first reader,
    and results that are stored are quantised last, each by its own largest element.
    """
    if not stored:
        return graph
    rewrite = Rewrite(graph)
    inputs = list(graph.inputs)
    waiting: dict[Operand, Value] = {}
    for i, type_ in stored.inputs.items():
        old = inputs[i]
        waiting[old] = inputs[i] = Value(type_, hint=old.hint)

    def widen(old: Operand, reader: Node | None) -> None:
        if old not in waiting:
            return
        assert isinstance(old, Value)
        new, types = waiting.pop(old), [Type(old.type.shape, "float32")]
        wide = Node("dequantize", [new], types, phase=FORWARD)
        if reader is not None:
            wide = reader.like(op="dequantize", inputs=[new], types=types, params={}, regions=())
            wide.effects = False
        rewrite.map(old, rewrite.add(wide).outputs[0])

    for node in graph:
        for o in node.inputs:
            widen(o, node)
        rewrite.copy(node)
    for o in graph.outputs:
        widen(o, None)
    outputs = [rewrite(o) for o in graph.outputs]
    made: dict[tuple[Operand, str], Operand] = {}
    for i, dtype in stored.outputs.items():
        value = outputs[i]
        if isinstance(value, Literal) or not is_float(value.type.dtype):
            continue
        if (value, dtype) not in made:
            made[value, dtype] = _quantized(rewrite, value, dtype)
        outputs[i] = made[value, dtype]
    return rewrite.finish(outputs=outputs).with_(inputs=tuple(inputs))


def _quantized(rewrite: Rewrite, value: Value, dtype: str) -> Operand:
    made = value.node
    kind = Type(value.type.shape, dtype, scale=())
    if made is not None and made.op == "dequantize" and made.inputs[0].type == kind:
        return made.inputs[0]  # as it came
    params = {"dtype": dtype, "scaling": "current"}
    node = Node("quantize", [value], [kind], params, phase=UPDATE)
    if made is not None:
        node = made.like(op="quantize", inputs=[value], types=[kind], params=params, regions=())
        node.effects = False
    return rewrite.add(node).outputs[0]
