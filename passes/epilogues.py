"""What follows a product of quantised tensors, in the kernel of the product: a bias, an activation,
and rounding to 8 bits under a scale that is given.

The kernel does that in float32 and rounds once. Where any of what lies between is read by something
else, a product is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from precir.ir import Graph, Node, Operand, Rewrite, Value
from precir.ops.products import free_shape, result_types
from precir.passes.epilogue_cost import activated, narrow, wide
from precir.passes.fused_act import find_activation, is_constant
from precir.passes.fused_cost import Cost, Fused, width_of
from precir.passes.samples import elementwise
from precir.passes.simplify import drop_dead
from precir.passes.sinks import Sink, find_sinks, positions
from precir.passes.smooth import FLOATS, uncast
from precir.passes.spread_rows import Row, find_row

_CASTS: Final = ("convert_element_type", "cast")
_EPILOGUE: Final = ("bias", "activation", "narrow", "amax")
_STEPS: Final = 40  # nodes that an activation is made of at most
_NAMES: Final = {"float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2"}


@dataclass(frozen=True)
class Chain:
    """What becomes of a product, and of nothing else: `value`, after a bias and an activation."""

    product: Node
    value: Value
    row: Row | None = None
    activation: str | None = None

    @property
    def words(self) -> str:
        return " and ".join(filter(None, ["a bias" if self.row else "", self.activation]))


def quantise_results(graph: Graph, times: int | None) -> tuple[Graph, list[Fused]]:
    """One level of a program that runs so many `times`, and what was decided of products that are
    only quantised, after a bias or an activation or as they are.

    Under a scale that is there before, the kernel of the product quantises too. Where it is
    measured on an activation, that is left to the product, so that it is computed once.
    """
    builder, decided = _Builder(graph), list[Fused]()
    sinks = {s.value: s for s in find_sinks(graph) if not s.block and not s.others}
    for chains in _every(graph) if sinks else ():
        for chain in chains:
            sink = sinks.get(chain.value)
            if sink is None:
                continue
            looks = sink.measured or _measured(graph, sink.value)
            if not looks and not sink.flips and sink.scale_format == "float32":
                saved, less = narrow(chain.product, chain.value, sink.dtype)
                decided.append(_decided(chain, saved, less, times, _NAMES[sink.dtype]))
                if less > 0:
                    builder.quantize(chain, sink)
            elif looks and chain.activation and _is_no_wider(chain):
                bias = chain.row is not None
                saved, less = activated(chain.product, chain.value, bias=bias)
                decided.append(_decided(chain, saved, less, times))
                if less > 0:
                    builder.compute(chain)
    return builder.finish(), decided


def _is_no_wider(chain: Chain) -> bool:
    return width_of(chain.value.type.dtype) <= width_of(chain.product.outputs[0].type.dtype)


def fuse_epilogues(graph: Graph, times: int | None) -> tuple[Graph, list[Fused]]:
    """One level of a program that runs so many `times`, its products with what follows them; and
    what was decided. Kernels that read what becomes of a product are in place.
    """
    builder, decided = _Builder(graph), list[Fused]()
    quantised = {s.value for s in find_sinks(graph)}
    for chains in _every(graph):
        known = [
            (chain, *wide(graph, chain.product, chain.value))
            for chain in chains
            if chain.words and not (chain.activation and chain.value in quantised)
        ]
        if not known:
            continue
        # The longest of those that save as much.
        chain, saved, less = max(reversed(known), key=lambda each: each[2])
        decided.append(_decided(chain, saved, less, times))
        if less > 0:
            builder.compute(chain)
    return builder.finish(), decided


def _decided(chain: Chain, saved: Cost, less: float, times: int | None, to: str = "") -> Fused:
    """Of a product and what it writes."""
    used = less > 0
    words = f"with {chain.words}" if chain.words else ""
    words = ", ".join(filter(None, [words, f"quantised to {to}" if to else ""]))
    return Fused(
        "scaled_dot", chain.product, used, times, saved, words if used else "it takes no less"
    )


def _measured(graph: Graph, value: Value) -> bool:
    """Whether anything looks for the largest of it, or of a cast of it."""
    users = graph.users.get(value, ())
    return any(
        u.op == "finite_amax" or (u.op in _CASTS and _measured(graph, u.outputs[0])) for u in users
    )


# --- what follows a product -----------------------------------------------------------------------


def _every(graph: Graph) -> Iterator[list[Chain]]:
    """Of each product of 8-bit operands, what becomes of it, the shortest chain first."""
    position = positions(graph)
    for node in graph:
        if node.op == "scaled_dot" and _is_plain(node):
            yield list(_chains(graph, node, position))


def _is_plain(product: Node) -> bool:
    """Whether it is one that a kernel may take more of: of 8 bits, with no epilogue, not empty."""
    eight = all(o.type.dtype in _NAMES for o in product.inputs)
    given = any(product.params.get(k) for k in _EPILOGUE)
    sizes = [n for o in (*product.inputs, *product.outputs) for n in o.type.shape]
    return eight and not given and all(sizes) and bool(free_shape(product))


def _chains(graph: Graph, product: Node, position: Mapping[Node, int]) -> Iterator[Chain]:
    known = [Chain(product, v) for v in _converted(graph, product.outputs[0])]
    found = _with_row(graph, known[-1].value, free_shape(product))
    if found is not None:
        total, row = found
        known += [Chain(product, v, row) for v in _converted(graph, total)]
    last = known[-1]
    yield from known
    for end, name in _activated(graph, last.value, position):
        yield Chain(product, end, last.row, name)


def _converted(graph: Graph, value: Value) -> Iterator[Value]:
    """A value, and what it is made by casts alone that nothing else reads."""
    yield value
    reader = _only_reader(graph, value)
    while reader is not None and reader.op in _CASTS and reader.outputs[0].type.dtype in FLOATS:
        value = reader.outputs[0]
        yield value
        reader = _only_reader(graph, value)


def _only_reader(graph: Graph, value: Value) -> Node | None:
    """What alone reads a value, in the same phase."""
    users = graph.users.get(value, ())
    if len(users) != 1 or any(o is value for o in graph.outputs):
        return None
    made = value.node
    return users[0] if made is not None and users[0].phase == made.phase else None


def _with_row(graph: Graph, value: Value, free: tuple[int, ...]) -> tuple[Value, Row] | None:
    """The sum of a value with a row that is spread over all of it."""
    reader = _only_reader(graph, value)
    if reader is None or reader.op != "add":
        return None
    (total,) = reader.outputs
    others = [o for o in reader.inputs if o is not value]
    alike = total.type.shape == value.type.shape and total.type.dtype in FLOATS
    if not alike or len(others) != 1 or not isinstance(others[0], Value):
        return None
    row = find_row(others[0], value.type.shape, free)
    return (total, row) if row is not None else None


def _activated(
    graph: Graph, value: Value, position: Mapping[Node, int]
) -> Iterator[tuple[Value, str]]:
    """What is an activation of a value and all that becomes of it."""
    for end in _ends(graph, value, position):
        found = find_activation(end, position)
        if found is None or found.up is not None or found.gradient is not None:
            continue
        if uncast(found.x) is uncast(value) and end.type.dtype in FLOATS:
            yield end, found.name


def _ends(graph: Graph, value: Value, position: Mapping[Node, int]) -> Iterator[Value]:
    """Values made of one value and constants, element by element, that all its readers lead to."""
    made, done, open_ = {value}, set[Node](), [value]
    for _ in range(_STEPS):
        users = {u for v in open_ for u in graph.users.get(v, ()) if u not in done}
        node = min(users, key=lambda u: position[u], default=None)
        if node is None or not _of_alone(node, made) or node.phase != _phase(value):
            return
        done.add(node)
        (end,) = node.outputs
        made.add(end)
        open_ = [v for v in (*open_, end) if _is_open(graph, v, done)]
        if open_ == [end]:
            yield end


def _of_alone(node: Node, made: Iterable[Value]) -> bool:
    """Whether a node makes of those values, and constants, another of their shape."""
    values = [o for o in node.inputs if isinstance(o, Value)]
    if not elementwise(node) or any(o not in made and not is_constant(o) for o in values):
        return False
    return all(node.outputs[0].type.shape == o.type.shape for o in values if o in made)


def _is_open(graph: Graph, value: Value, done: set[Node]) -> bool:
    result = any(o is value for o in graph.outputs)
    return result or any(u not in done for u in graph.users.get(value, ()))


def _phase(value: Value) -> str:
    return value.node.phase if value.node is not None else ""


# --- in its place ---------------------------------------------------------------------------------


@dataclass
class _Builder:
    """Which nodes are products with an epilogue now: `takes` has what the node at a place makes,
    `gone` what no longer is.
    """

    graph: Graph
    takes: dict[Node, tuple[Chain, dict[str, Any], Operand | None]] = field(default_factory=dict)
    results: dict[Node, list[Value]] = field(default_factory=dict)

    def compute(self, chain: Chain) -> None:
        place = chain.value.node
        assert place is not None
        self.takes[place] = chain, {"dtype": chain.value.type.dtype}, None
        self.results[place] = [chain.value]

    def quantize(self, chain: Chain, sink: Sink) -> None:
        place = min(sink.lying, key=self.graph.nodes.index)
        self.takes[place] = chain, {"dtype": sink.dtype, "narrow": True}, sink.scale
        self.results[place] = [n.outputs[0] for n in sink.lying]

    def finish(self) -> Graph:
        if not self.takes:
            return self.graph
        rewrite = Rewrite(self.graph)
        replaced = {v.node for values in self.results.values() for v in values}
        for node in self.graph:
            if node in self.takes:
                made = self.product(rewrite, *self.takes[node])
                for value in self.results[node]:
                    rewrite.map(value, made.outputs[0])
            elif node not in replaced:
                rewrite.copy(node)
        return drop_dead(rewrite.finish())

    def product(
        self, rewrite: Rewrite, chain: Chain, params: dict[str, Any], scale: Operand | None
    ) -> Node:
        """The product with its epilogue, where what that reads is there."""
        inputs = [rewrite(o) for o in chain.product.inputs]
        asked = {**chain.product.params, **params}
        if chain.row is not None:
            row = rewrite(chain.row.source)
            for node in chain.row.nodes(row, chain.product):
                row = rewrite.add(node).outputs[0]
            inputs.append(row)
            asked["bias"] = True
        if chain.activation:
            asked["activation"] = chain.activation
        if scale is not None:
            inputs.append(rewrite(scale))
        kinds = result_types(chain.value.type.shape, asked)
        return rewrite.add(chain.product.like(inputs=inputs, types=kinds, params=asked))
