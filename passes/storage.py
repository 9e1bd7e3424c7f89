"""Read and write what lives between steps in narrow storage: data and scale as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from precir.ir import FORWARD, UPDATE, Graph, Literal, Node, Operand, Rewrite, Type, Value
from precir.passes.classes import classify_state
from precir.recipe import Recipe, Store
from precir.scaled import scale_shape
from precir.verify.contracts import is_float


@dataclass(frozen=True)
class Stored:
    """Which inputs and results of a program are `ScaledArray`s, by their numbers, and of what
    type.
    """

    inputs: Mapping[int, Type] = field(default_factory=dict)
    outputs: Mapping[int, Type] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


def in_one(graph: Graph, pairs: Sequence[tuple[int, int]], recipe: Recipe) -> dict[int, Type]:
    """The types of the state that lives in the format `recipe.state`: float32 weights and moments
    of more than one element. Scalars (counts, learning rates) stay as they are.
    """
    assert recipe.state is not None
    kinds = {i: graph.inputs[i].type for i, _ in pairs}
    return {
        i: Type(kind.shape, recipe.state, scale=())
        for i, kind in kinds.items()
        if kind.dtype == "float32" and kind.rank and any(n > 1 for n in kind.shape)
    }


def by_class(graph: Graph, pairs: Sequence[tuple[int, int]], recipe: Recipe) -> dict[int, Type]:
    """The types of the state whose class the recipe gives a format: float32 matrices, and stacks of
    them. Vectors (norms, biases), which are few, stay as they are.
    """
    stacks = {graph.inputs[i].type.shape for i, _ in pairs if _is_stack(graph, graph.inputs[i])}
    found: dict[int, Type] = {}
    for i, what in classify_state(graph, pairs).items():
        kind, store = graph.inputs[i].type, recipe.by_class.get(what)
        stack = kind.shape in stacks
        if store is not None and kind.dtype == "float32" and kind.rank - stack >= 2:
            found[i] = stored_type(kind, store, stack)
    return found


def stored_type(kind: Type, store: Store, stack: bool) -> Type:
    """A tensor's type in storage; a stack of layers has a scale for each at least."""
    block: tuple[int, ...] = (1, *kind.shape[1:]) if stack else ()
    if store.block:
        block = (1,) * (kind.rank - 1) + (store.block,)
    return Type(kind.shape, store.format, scale=scale_shape(kind.shape, block), block=block)


def _is_stack(graph: Graph, value: Value) -> bool:
    """Whether a scan goes over the leading axis."""
    return any(
        node.op == "scan" and value in node.inputs[scanned(node) :]
        for node in graph.users.get(value, ())
    )


def scanned(node: Node) -> int:
    """The number of a scan's first operand that it goes over."""
    return int(node.params["num_consts"] + node.params["num_carry"])


def insert_storage(graph: Graph, stored: Stored) -> Graph:
    """The program on stored inputs: each is dequantised to float32 once, before its first reader,
    a stack of layers by each layer of a scan for itself; and results that are stored are quantised
    last, each by its own largest elements.
    """
    if not stored:
        return graph
    walk = _Walk(graph, stored)
    for node in graph:
        walk.node(node)
    return walk.finish(stored)


class _Walk:
    def __init__(self, graph: Graph, stored: Stored) -> None:
        self.graph = graph
        self.rewrite = Rewrite(graph)
        self.inputs = list(graph.inputs)
        self.narrow: dict[Operand, Value] = {}
        for i, type_ in stored.inputs.items():
            old = self.inputs[i]
            self.narrow[old] = self.inputs[i] = Value(type_, hint=old.hint)
        self.waiting = set(self.narrow)

    def node(self, node: Node) -> None:
        inside = self.by_layer(node) if node.op == "scan" else {}
        for i, o in enumerate(node.inputs):
            if i not in inside:
                self.widen(o, node)
        if not inside:
            self.rewrite.copy(node)
            return
        inputs = [inside.get(i, self.rewrite(o)) for i, o in enumerate(node.inputs)]
        layers = {i: _layer(v.type) for i, v in inside.items()}
        region = insert_storage(node.regions[0], Stored(layers))
        self.rewrite.replace(node, node.like(inputs=inputs, regions=(region,)))

    def by_layer(self, node: Node) -> dict[int, Value]:
        """Operands that a scan goes over and that have a scale for each layer."""
        found = {i: self.narrow.get(o) for i, o in enumerate(node.inputs) if i >= scanned(node)}
        return {i: v for i, v in found.items() if v is not None and v.type.block[:1] == (1,)}

    def widen(self, old: Operand, reader: Node | None) -> None:
        if old not in self.waiting:
            return
        assert isinstance(old, Value)
        self.waiting.remove(old)
        new, types = self.narrow[old], [Type(old.type.shape, "float32")]
        wide = Node("dequantize", [new], types, phase=FORWARD)
        if reader is not None:
            wide = reader.like(op="dequantize", inputs=[new], types=types, params={}, regions=())
            wide.effects = False
        self.rewrite.map(old, self.rewrite.add(wide).outputs[0])

    def finish(self, stored: Stored) -> Graph:
        for o in self.graph.outputs:
            self.widen(o, None)
        outputs = [self.rewrite(o) for o in self.graph.outputs]
        made: dict[tuple[Operand, Type], Operand] = {}
        for i, kind in stored.outputs.items():
            value = outputs[i]
            if isinstance(value, Literal) or not is_float(value.type.dtype):
                continue
            if (value, kind) not in made:
                made[value, kind] = _quantized(self.rewrite, value, kind)
            outputs[i] = made[value, kind]
        return self.rewrite.finish(outputs=outputs).with_(inputs=tuple(self.inputs))


def _layer(stack: Type) -> Type:
    """One layer of a stack."""
    assert stack.scale is not None
    return Type(stack.shape[1:], stack.dtype, False, stack.scale[1:], stack.block)


def _quantized(rewrite: Rewrite, value: Value, kind: Type) -> Operand:
    made = value.node
    if made is not None and made.op == "dequantize" and made.inputs[0].type == kind:
        return made.inputs[0]  # as it came
    params: dict[str, object] = {"dtype": kind.dtype, "scaling": "current", "fused": True}
    if kind.block:
        params["block"] = kind.block
    node = Node("quantize", [value], [kind], params, phase=UPDATE)
    if made is not None:
        node = made.like(op="quantize", inputs=[value], types=[kind], params=params, regions=())
        node.effects = False
    return rewrite.add(node).outputs[0]
