"""The nodes of fused kernels, and what they replace (`precir.passes.kernels`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from precir.ir import Graph, Node, Operand, Type, Value
from precir.ops.fused import result_types
from precir.passes.fused_act import Activation, find_activation
from precir.passes.fused_cost import Fused, Work, elements_of, width_of
from precir.passes.fused_norm import Norm, find_norm
from precir.passes.rebuild import in_order
from precir.passes.samples import elementwise
from precir.passes.simplify import drop_dead
from precir.passes.sinks import Sink, positions, root

_SIZES: Final = (16, 32, 64, 128)  # blocks whose transposes there are kernels for
_SPREADS: Final = ("reshape", "broadcast_in_dim", "expand_dims")
Found = Norm | Activation | None


@dataclass
class Builder:
    """The new nodes of one graph, and what they replace."""

    graph: Graph
    times: int | None
    given: frozenset[Value] = frozenset()
    position: Mapping[Node, int] = field(init=False)
    before: dict[Node, list[Node]] = field(default_factory=dict)
    now: dict[Value, Operand] = field(default_factory=dict)
    swapped: dict[Node, dict[int, Value]] = field(default_factory=dict)
    gone: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.position = positions(self.graph)

    # -- one value -----------------------------------------------------------------------------

    def computed(self, sink: Sink) -> Fused | None:
        """A norm or an activation, quantised as it is computed."""
        sink = _turnable(sink)
        made = self.found(sink) if sink.nodes else None
        if made is None:
            return None
        kernel = _kernel_of(made)
        first = sink.nodes[0]
        seen = _seen(sink)
        work = self.work(sink, made, sink.measured or seen is not None)
        if work.saved.seconds <= 0:
            return Fused(kernel, first, False, self.times, work.saved, "it takes no less")
        self.fuse(sink, made, seen)
        return Fused(kernel, first, True, self.times, work.saved, _words(made, sink))

    def found(self, sink: Sink) -> Found:
        if sink.square:
            return None
        return find_norm(sink.value, self.position) or find_activation(sink.value, self.position)

    def work(self, sink: Sink, made: Found, looks: bool) -> Work:
        arguments = [] if made is None else _arguments(made)
        batched = sink.flips and any(self.of_examples(n) for n in sink.standing)
        copied_anyway = 2 * elements_of(sink.value.type.shape) * batched
        return Work(
            elements=elements_of(sink.value.type.shape),
            width=width_of(sink.value.type.dtype),
            read=sum(_bytes(v) for v in arguments),
            made=sum(_bytes(v) for v in arguments if made and self.only_within(v, made))
            + copied_anyway,
            measured=looks,
            lying=bool(sink.lying),
            apart=len(sink.standing),
            copied=bool(sink.turned),
            turned=sink.flips,
            others=sink.others,
        )

    def of_examples(self, quantize: Node) -> bool:
        """Whether a product of a batch reads it, which keeps each example's matrix by itself."""
        return any(
            user.op == "scaled_dot" and any(user.params["dimension_numbers"][1])
            for user in self.graph.users.get(quantize.outputs[0], ())
        )

    def only_within(self, value: Value, made: Norm | Activation) -> bool:
        """Whether a value is an element-wise sum or the like that nothing else reads: it would not
        be stored but for the kernel.
        """
        if value.node is None or not elementwise(value.node) or value in self.graph.outputs:
            return False
        return all(
            user in made.inside or user.op in ("convert_element_type", "cast")
            for user in self.graph.users.get(value, ())
        )

    def fuse(self, sink: Sink, made: Norm | Activation, seen: Value | None) -> None:
        first, kind = sink.value.node, Type(sink.value.type.shape, made.x.type.dtype)
        assert first is not None
        new: list[Node] = []
        arguments, extra = self.arguments(made, new)
        op, scale = _kernel_of(made), sink.scale
        stats: Node | None = None
        if sink.measured or seen is not None:
            params = {**_LOOK, **extra}
            stats = _at(first, op, arguments, result_types(op, kind, params), params)
            amax = stats.outputs[0]
            new.append(stats)
            if seen is not None:
                self.now[seen] = amax
            else:
                made_of = {"dtype": sink.dtype}
                measured = _at(first, "current_scale", [amax], [Type((), "float32")], made_of)
                new.append(measured)
                scale = measured.outputs[0]
        plain = sink.value.type.dtype if sink.others else ""
        params = {**_writing(sink, plain, given=scale is not None), **extra}
        operands = [*arguments, *([scale] if scale is not None else [])]
        node = _at(first, op, operands, result_types(op, kind, params), params)
        new.append(node)
        self.written(sink, first, list(node.outputs), new)
        if plain:
            self.now[sink.value] = node.outputs[1 + sink.flips]
        if isinstance(made, Norm):
            self.stats(made, stats or node, new)
        self.put(sink, new)

    def arguments(
        self, made: Norm | Activation, new: list[Node]
    ) -> tuple[list[Operand], dict[str, Any]]:
        """What the kernel is called with, and the parameters that say what it computes."""
        if isinstance(made, Norm):
            extra = {
                "kind": made.kind, "eps": made.eps,
                "weight": made.weight is not None, "bias": made.bias is not None,
            }  # fmt: skip
            columns = made.x.type.shape[-1:]
            rows = [self.row(v, columns, new) for v in (made.weight, made.bias) if v is not None]
            return [made.x, *rows], extra
        every = made.x, made.gradient, made.up
        extra = {"activation": made.name, "gated": made.up is not None}
        return [v for v in every if v is not None], extra

    def stats(self, norm: Norm, node: Node, new: list[Node]) -> None:
        """The kernel's mean and root in the place of the program's."""
        results = {"rstd": node.outputs[-1]}
        if norm.kind == "layer":
            results["mean"] = node.outputs[-2]
        for value, name in sorted(norm.rows.items(), key=lambda r: self.position[r[0].node]):  # type: ignore[index]
            self.now[value] = self.row(results[name], value.type.shape, new)
            for user in self.graph.users.get(value, ()):
                if user.op == "reshape" and user.outputs[0].type == results[name].type:
                    self.now[user.outputs[0]] = results[name]

    def row(self, value: Value, shape: tuple[int, ...], new: list[Node]) -> Value:
        """The same numbers in another shape: what they were spread from, or reshaped."""
        if value.type.shape == shape:
            return value
        made = value.node
        source = made.inputs[0] if made is not None and made.op in _SPREADS else None
        if isinstance(source, Value) and source.type.shape == shape:
            return source
        params = {"new_sizes": shape, "dimensions": None, "sharding": None}
        place = value.node if value.node is not None else new[0] if new else self.graph.nodes[0]
        node = _at(place, "reshape", [value], [Type(shape, value.type.dtype)], params)
        new.append(node)
        return node.outputs[0]

    def both(self, sink: Sink) -> Fused | None:
        """A matrix and its transpose from one read."""
        sink = _turnable(sink)
        if not sink.flips:
            return None
        first = sink.nodes[0]
        source = first.inputs[0]
        if any(n.inputs[0] is not source for n in sink.nodes) or stored_value(source) in self.given:
            return None
        work = replace(self.work(sink, None, sink.measured), others=False)
        if work.saved.seconds <= 0:
            return Fused("quantize_both", first, False, self.times, work.saved, "it takes no less")
        params = _writing(sink, "", given=sink.scale is not None)
        operands = [source, *([sink.scale] if sink.scale is not None else [])]
        kinds = result_types("quantize_both", source.type, params)
        node = _at(first, "quantize_both", operands, kinds, params)
        new = [node]
        self.written(sink, first, list(node.outputs), new)
        self.put(sink, new)
        return Fused(
            "quantize_both", first, True, self.times, work.saved, "and the transpose, from one read"
        )

    def written(self, sink: Sink, place: Node, results: list[Value], new: list[Node]) -> None:
        """The kernel's results in the place of those of `quantize`."""
        for node in sink.lying:
            self.now[node.outputs[0]] = results[0]
        if not sink.flips:
            return
        shape, kind = sink.value.type.shape, results[1].type
        back = Type(shape, kind.dtype, scale=(), block=())
        if sink.standing:
            back = sink.standing[0].outputs[0].type
        elif sink.block:
            back = sink.lying[0].outputs[0].type
        node = _at(place, "turned_back", [results[1]], [back], {"shape": shape})
        new.append(node)
        for standing in sink.standing:
            self.now[standing.outputs[0]] = node.outputs[0]
        for product, operand in sink.turned:
            self.swapped.setdefault(product, {})[operand] = node.outputs[0]

    def put(self, sink: Sink, new: list[Node]) -> None:
        place = min(sink.nodes, key=lambda n: self.position[n])
        self.before.setdefault(place, []).extend(new)
        self.gone.update(sink.nodes)

    # -- all of it -----------------------------------------------------------------------------

    def finish(self) -> Graph:
        if not self.before:
            return self.graph
        nodes: list[Node] = []
        for node in self.graph:
            nodes += self.before.get(node, [])
            if node in self.swapped:
                changed = self.swapped[node]
                inputs = [changed.get(i, o) for i, o in enumerate(node.inputs)]
                made = node.like(inputs=inputs)
                self.now.update(zip(node.outputs, made.outputs, strict=True))
                nodes.append(made)
            elif node not in self.gone:
                nodes.append(node)
        ordered, outputs = in_order(nodes, self.now, self.graph.outputs)
        assert len(ordered) == len(nodes), "a kernel needs what is made of its result"
        return drop_dead(self.graph.with_(nodes=tuple(ordered), outputs=tuple(outputs)))


def stored_value(operand: Operand) -> Operand:
    """What a value was before it was rounded, and dequantised."""
    value = root(operand) if isinstance(operand, Value) else operand
    made = value.node if isinstance(value, Value) else None
    return made.inputs[0] if made is not None and made.op == "dequantize" else value


def _turnable(sink: Sink) -> Sink:
    """Without the transpose where no kernel writes it."""
    size = sink.block[-1] if sink.block else 0
    if not sink.block or size in _SIZES:
        return sink
    others = sink.others or bool(sink.standing)
    return replace(sink, standing=[], turned=[], others=others)


def _seen(sink: Sink) -> Value | None:
    """The largest of the value itself, where a given scale falls back to it."""
    made = sink.scale.node if isinstance(sink.scale, Value) else None
    for o in made.inputs if made is not None else ():
        if isinstance(o, Value) and o.node is not None and o.node.op == "finite_amax":
            (source,) = o.node.inputs
            if isinstance(source, Value) and root(source) is sink.value:
                return o
    return None


_LOOK: Final[dict[str, Any]] = {
    "dtype": "", "block": (), "scale_format": "float32",
    "given": False, "turned": False, "plain": "", "amax": True,
}  # fmt: skip


def _writing(sink: Sink, plain: str, *, given: bool) -> dict[str, Any]:
    return {
        "dtype": sink.dtype, "block": sink.block, "scale_format": sink.scale_format,
        "given": given, "turned": sink.flips, "plain": plain, "amax": False,
    }  # fmt: skip


def _at(place: Node, op: str, inputs: Any, kinds: list[Type], params: dict[str, Any]) -> Node:
    """A node of ours where `place` is."""
    made = place.like(op=op, inputs=inputs, types=kinds, params=params, regions=())
    made.effects = False
    return made


def _arguments(made: Norm | Activation) -> list[Value]:
    return [made.x] if isinstance(made, Norm) else list(made.arguments)


def _kernel_of(made: Norm | Activation) -> str:
    if isinstance(made, Norm):
        return "norm_quantize"
    return "act_gradients" if made.gradient is not None else "act_quantize"


def _bytes(value: Value) -> int:
    return elements_of(value.type.shape) * width_of(value.type.dtype)


def _words(made: Norm | Activation, sink: Sink) -> str:
    if isinstance(made, Norm):
        what = {"layer": "LayerNorm", "rms": "RMSNorm"}[made.kind]
    elif made.gradient is not None:
        what = f"the gradient of {made.name}"
    else:
        what = made.name
    what += ", gated" * (isinstance(made, Activation) and made.up is not None)
    more = [*(["the transpose"] if sink.flips else []), *(["a wide copy"] if sink.others else [])]
    return what + (f", with {' and '.join(more)}" if more else "")
