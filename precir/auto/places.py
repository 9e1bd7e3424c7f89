"""Where there is a choice: which products of a program, and which of its other ops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from scipy.cluster.hierarchy import DisjointSet

from precir.domains.stats import Stats
from precir.ir import UPDATE, Graph, Literal, Node, Value
from precir.kernels.tap import Rounding
from precir.ops import Keeps, op_named
from precir.passes.assign import (
    Product,
    assign_formats,
    fixed_inputs,
    fixed_outputs,
    region_operands,
)
from precir.passes.facts import Facts
from precir.passes.fitting import misfit, unfit
from precir.passes.taps import Tap
from precir.recipe import recipe as find_recipe

HALF: Final = "bfloat16"
_HALF: Final[Rounding] = (HALF, ())
# Ops that are no function of one element at a time, and still only choose among numbers.
_CHOOSING: Final = frozenset(
    {"select_n", "pad", "concatenate", "stack", "dynamic_update_slice", "reduce_max", "reduce_min"}
)
# Besides these, what only chooses or changes signs.
_EXACT: Final = _CHOOSING | {"gather", "max", "min", "neg", "abs", "stop_gradient", "copy"}
_NEVER: Final = frozenset({"argmax", "argmin", "sort", "top_k", "cummax", "cummin", "rem"})
WIDE: Final = object()  # what is float32 whatever is chosen


@dataclass(frozen=True)
class Narrow:
    """How one product runs in 8 bits: with one scale a tensor, and with scales by blocks."""

    tensor: Product
    block: Product


@dataclass
class Places:
    """Where the formats of a program are to be chosen.

    Attributes:
      graph: the program.
      products: those that may run in 8 bits. All others run in 16 or 32, as convolutions do.
      multiplied: every product and convolution outside of the update.
      ops: other ops that may compute in 16 bits.
      times: how often each node runs.
      groups: values that have one format together, and `WIDE`.
      reads: how many operands each value is, once moved; results of a graph count too.
      why: why an op or product may not leave float32, or get 8 bits, by what was proved or seen.
    """

    graph: Graph
    products: dict[Node, Narrow] = field(default_factory=dict)
    multiplied: list[Node] = field(default_factory=list)
    ops: list[Node] = field(default_factory=list)
    times: dict[Node, int] = field(default_factory=dict)
    groups: DisjointSet = field(default_factory=lambda: DisjointSet([WIDE]))
    reads: Counter[Value] = field(default_factory=Counter)
    why: dict[Node, str] = field(default_factory=dict)

    def wish(self, graph: Graph) -> Sequence[Tap]:
        """The taps of one graph or sub-graph of the program (`precir.passes.taps`)."""
        taps = [Tap(v, (_HALF,)) for v in graph.inputs if is_wide(v) and v in graph.users]
        free = set(self.ops) | set(self.multiplied)
        used = {*graph.users, *graph.outputs}
        for node in graph:
            if node in self.products:
                n = self.products[node]
                for i, operand in enumerate(node.inputs):
                    assert isinstance(operand, Value)
                    kinds = [(p.operands[i], p.grains[i].block) for p in (n.tensor, n.block)]
                    taps.append(Tap(operand, (*kinds, _HALF), node, i))
            elif node in free and not exact(node):
                taps += [
                    Tap(o, (_HALF,), node, i) for i, o in enumerate(node.inputs)
                    if isinstance(o, Value) and is_wide(o) and self.reads[origin(o)] > 1
                ]  # fmt: skip
            if node in free:
                taps += [Tap(v, (_HALF,)) for v in node.outputs if is_wide(v) and v in used]
            elif not node.regions and not moves(node):
                taps += [
                    Tap(v, (_HALF,)) for v in node.outputs
                    if is_wide(v) and any(r in free for r in graph.users.get(v, ()))
                ]  # fmt: skip
        return taps


def find_places(
    graph: Graph, facts: Facts | None = None, seen: Mapping[Value, Stats] | None = None
) -> Places:
    """The places of a program: all products and all element-wise ops, save those of the update
    and those whose numbers are known not to fit.
    """
    places = Places(graph)
    narrow = [
        {p.node: p for p in assign_formats(graph, find_recipe(name, last_product=None)).products}
        for name in ("fp8", "fp8-block")
    ]
    _Finder(places, narrow, facts, seen or {}).graph(graph, 1)
    return places


class _Finder:
    def __init__(
        self,
        places: Places,
        narrow: Sequence[Mapping[Node, Product]],
        facts: Facts | None,
        seen: Mapping[Value, Stats],
    ) -> None:
        self.places, self.narrow, self.facts, self.seen = places, narrow, facts, seen
        self.groups = places.groups

    def graph(self, graph: Graph, times: int, inputs: Sequence[object] | None = None) -> None:
        """Find the places of one graph; `inputs` are what its inputs have one format with."""
        self.places.reads.update(origin(o) for o in graph.outputs if isinstance(o, Value))
        for i, value in enumerate(graph.inputs):
            self.groups.add(value)
            self.groups.merge(value, WIDE if inputs is None else inputs[i])
        for node in graph:
            if not moves(node):
                self.places.reads.update(origin(o) for o in node.inputs if isinstance(o, Value))
            self.places.times[node] = times
            for value in node.outputs:
                self.groups.add(value)
            if not self.node(node, times):
                for value in node.outputs:
                    self.groups.merge(value, WIDE)

    def node(self, node: Node, times: int) -> bool:
        """Whether what it makes has a format that something else decides."""
        if node.regions:
            return self.regions(node, times)
        keeps = op_named(node.op).keeps
        outputs = [v for v in node.outputs if is_wide(v)]
        if not outputs or node.phase == UPDATE:
            return False
        if keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION):
            if not all(o.type.dtype == "float32" for o in node.inputs):
                return False
            if not self.fits(node):
                return False
            self.places.multiplied.append(node)
            tensor, block = (n.get(node) for n in self.narrow)
            values = all(isinstance(o, Value) for o in node.inputs)
            if tensor is not None and block is not None and tensor.low and block.low and values:
                self.places.products[node] = Narrow(tensor, block)
            return True
        if moves(node):
            source = node.inputs[0]
            if isinstance(source, Value) and is_wide(source):
                for value in outputs:
                    self.groups.merge(value, source)
                return True
            return False
        if not (node.op == "gather" or _is_free(node, keeps)) or not self.fits(node):
            return False
        for value in outputs[1:]:
            self.groups.merge(value, outputs[0])
        self.places.ops.append(node)
        return True

    def fits(self, node: Node) -> bool:
        """Whether nothing that was proved or seen rules 16 bits out."""
        for value in (*node.outputs, *node.inputs):
            if not isinstance(value, Value) or not is_wide(value):
                continue
            reason = misfit(self.facts[value], HALF) if self.facts is not None else ""
            if not reason and value in self.seen:
                reason = unfit(self.seen[value], HALF)
            if reason:
                self.places.why[node] = reason
                return False
        return True

    def regions(self, node: Node, times: int) -> bool:
        operands_of = region_operands(node)
        if operands_of is None:
            for region in node.regions:
                for inner in region.walk():
                    self.places.times[inner] = times
            return False
        held = fixed_inputs(node)
        again = times * (node.params["length"] if node.op == "scan" else 1)
        for region, indices in zip(node.regions, operands_of, strict=True):
            same = [
                node.inputs[i] if not held[i] and isinstance(node.inputs[i], Value) else WIDE
                for i in indices
            ]
            self.graph(region, again, same)
        fixed = fixed_outputs(node)
        for i, value in enumerate(node.outputs):
            made = node.regions[-1].outputs[i]
            held_wide = i in fixed or not isinstance(made, Value)
            self.groups.merge(value, WIDE if held_wide else made)
        return True


def _is_free(node: Node, keeps: Keeps) -> bool:
    """An op that makes each element of one element of each operand, or chooses among elements."""
    if keeps not in (Keeps.FOLLOW, Keeps.WIDE) or node.op in _NEVER:
        return False
    if node.op in _CHOOSING:
        return True
    shape = node.outputs[0].type.shape
    return all(o.type.shape in (shape, ()) for o in node.inputs)


def moves(node: Node) -> bool:
    """Whether it makes no numbers of its own, and has its operand's format."""
    return op_named(node.op).keeps is Keeps.MOVE and node.op != "gather"


def exact(node: Node) -> bool:
    """An op that rounds nothing if its operands are numbers of its format: it chooses among them,
    or multiplies them by a power of two.
    """
    if node.op in ("mul", "div"):
        factors = node.inputs if node.op == "mul" else node.inputs[1:]
        return any(isinstance(o, Literal) and _is_power(o.value) for o in factors)
    return node.op in _EXACT


def _is_power(value: object) -> bool:
    return isinstance(value, float) and abs(math.frexp(value)[0]) == 0.5


def origin(value: Value) -> Value:
    """What a value is, before it was moved."""
    while value.node is not None and moves(value.node):
        source = value.node.inputs[0]
        if not isinstance(source, Value) or not is_wide(source):
            return value
        value = source
    return value


def is_wide(value: Value) -> bool:
    """A float32 array that is no pair of data and scale."""
    return value.type.dtype == "float32" and value.type.scale is None
