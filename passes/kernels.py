"""Compute and quantise in one kernel where that pays: norms, activations and their gradients, a
matrix and its transpose.

A value that is quantised is looked at with all that reads it (`precir.passes.sinks`). Is it a norm
or an activation of something (`fused_norm`, `fused_act`), the kernel computes it; and where a
product sums over its rows, the transpose that this product reads is written in the same pass. What
the kernel does not replace reads a wide copy that it writes too. The gradients of norms, which are
not quantised as they are computed, come first (`fused_gradients`). The rules:

- the scale stays what the recipe says. Where it is measured on the value itself, or falls back to
  that, the kernel runs first without writing anything but the largest.
- a kernel computes in float32 and rounds once, where the program may have rounded to 16 bits
  between.
- a float32 value that no kernel computes, and that is only quantised, is stored in bfloat16 on the
  way where the recipe computes in that: it is rounded twice, and never stored wider than an
  activation.
- a kernel is used where the model of `fused_cost` says that it takes less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value
from precir.ops.fused import result_types
from precir.passes.epilogues import fuse_epilogues, quantise_results
from precir.passes.fused_act import Activation, find_activation
from precir.passes.fused_cost import Cost, Fused, Work, elements_of, width_of
from precir.passes.fused_gradients import fuse_gradients
from precir.passes.fused_norm import Norm, find_norm
from precir.passes.measured import measure_products
from precir.passes.narrowing import NARROW, narrow_values
from precir.passes.rebuild import in_order
from precir.passes.samples import elementwise
from precir.passes.simplify import drop_dead
from precir.passes.sinks import Sink, find_sinks, positions, root
from precir.passes.stored import handed
from precir.passes.turned_products import turn_products
from precir.passes.update_stored import update_stored

_SIZES: Final = (16, 32, 64, 128)  # blocks whose transposes there are kernels for
_SPREADS: Final = ("reshape", "broadcast_in_dim", "expand_dims")
Found = Norm | Activation | None


def fuse_kernels(
    graph: Graph, compute: str = "float32", *, alone: bool = False
) -> tuple[Graph, tuple[Fused, ...]]:
    """The program with fused kernels, at every level, and what was decided.

    `compute` is the dtype of activations. Products that are only read transposed are multiplied the
    other way round first. A program that quantises nothing computes its gradients as it did. With
    `alone`, what is an argument of the program is quantised as it lies alone.
    """
    decided: list[Fused] = []
    low = any(find_sinks(part) for part in _levels(graph))
    given = frozenset(graph.inputs if alone else ())
    return _level(graph, given, compute, low, 1, decided), tuple(decided)


def _levels(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph:
        for region in node.regions:
            yield from _levels(region)


def _level(
    graph: Graph,
    given: frozenset[Value],
    compute: str,
    low: bool,
    times: int | None,
    decided: list[Fused],
) -> Graph:
    """One graph and all below it; loops run as often as they say. `given` are arguments of the
    program, as this graph has them, that are quantised alone.
    """
    rewrite = Rewrite(graph)
    for node in graph:
        inside = times
        if node.op == "while" or times is None:
            inside = None
        elif node.op == "scan":
            inside = times * int(node.params["length"])
        theirs = _handed(node, given)
        regions = tuple(
            _level(r, g, compute, low, inside, decided)
            for r, g in zip(node.regions, theirs, strict=True)
        )
        if all(a is b for a, b in zip(regions, node.regions, strict=True)):
            rewrite.copy(node)
        else:
            inputs = [rewrite(o) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs, regions=regions))
    graph, updated = update_stored(rewrite.finish(), times)
    decided += updated
    graph, found = quantise_results(turn_products(graph), times)
    decided += found
    if low:
        graph, found = fuse_gradients(graph, times)
        decided += found
    graph = _built(graph, _Builder.computed, times, decided, given)
    if compute == NARROW:
        graph, narrowed = narrow_values(graph)
        why = "only quantised: stored in 16 bits"
        decided += [Fused("cast", n, True, times, Cost(size), why) for n, size in narrowed]
    graph = _built(graph, _Builder.both, times, decided, given)
    graph, found = fuse_epilogues(graph, times)
    decided += found
    graph, found = measure_products(graph, times)
    decided += found
    return graph


def _handed(node: Node, given: frozenset[Value]) -> list[frozenset[Value]]:
    """What of `given` each sub-graph of a node has, a layer of it where a loop goes over it."""
    found: list[set[Value]] = [set() for _ in node.regions]
    for each in handed(node) if given else ():
        if _stored(node.inputs[each.operand]) in given:
            found[each.region].add(node.regions[each.region].inputs[each.input])
    return [frozenset(f) for f in found]


def _built(
    graph: Graph,
    decide: Callable[[_Builder, Sink], Fused | None],
    times: int | None,
    decided: list[Fused],
    given: frozenset[Value],
) -> Graph:
    builder = _Builder(graph, times, given)
    for sink in find_sinks(graph):
        found = decide(builder, sink)
        if found is not None:
            decided.append(found)
    return builder.finish()


@dataclass
class _Builder:
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
        if any(n.inputs[0] is not source for n in sink.nodes) or _stored(source) in self.given:
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


def _stored(operand: Operand) -> Operand:
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
