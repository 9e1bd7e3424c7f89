"""What a choice of formats costs on a card: a model, and a stated one.

Time is counted as a roofline: a product takes the longer of its operations over the card's rate
for its format and of its bytes over the card's bandwidth; everything else takes its bytes over the
bandwidth. float32 products run at the rate of TF32, JAX's default on these cards. What XLA fuses
is not moved: a tensor counts where it is written for a product, a loop, another phase, a result, or
to be both summed up and read again. A cast between ops that are fused costs little, and something.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from precir.auto.places import HALF, Places, is_wide, moves
from precir.ir import UPDATE, Graph, Node, Value
from precir.ops import Keeps, op_named
from precir.passes.assign import Assignment, region_operands
from precir.target.cards import Card

CAST = 0.125  # bytes moved that a conversion within a fused kernel is taken to cost, an element
_BYTES = {"float32": 4, "float64": 8, HALF: 2, "float16": 2}


@dataclass(frozen=True)
class Moves:
    """How much of one tensor goes to and from memory, in elements, products' own reads aside."""

    value: Value
    elements: int


@dataclass(frozen=True)
class Model:
    """The costs of a program's places on a card, before anything is chosen.

    Attributes:
      moves: of each tensor that is moved outside of products.
      card: whose rates they are.
    """

    places: Places
    card: Card
    moves: tuple[Moves, ...]

    def bytes_seconds(self, count: float) -> float:
        return count / self.card.bandwidth

    def product(self, node: Node, bits: str, result: int, block: bool = False) -> float:
        """Seconds of one product with operands in "tf32", "bf16" or "fp8" and a result of `result`
        bytes an element, over all the times that it runs.
        """
        flops = self.card.flops
        rate = flops.get(bits) or flops["bf16"]
        if block:  # added up in float32 every 128 of K, on the same lanes that add anything
            rate = 1 / (1 / rate + 1 / (2 * 128 * flops["f32"]))
        size = {"tf32": 4, "bf16": 2, "fp8": 1}[bits]
        work, operands = operations(node)
        moved = operands * size + _count(node.outputs[0]) * result
        times = self.places.times[node]
        return times * max(work / rate, moved / self.card.bandwidth)

    def quantising(self, value: Value, times: int, width: int, block: bool) -> float:
        """Seconds to quantise a tensor: read twice for one scale of its own, once for blocks."""
        reads = 1 if block else 2
        return self.bytes_seconds(times * _count(value) * (reads * width + 1))

    def casting(self, value: Value, times: int) -> float:
        """Seconds to copy a float32 tensor into 16 bits: written where it is made, if what makes it
        is no product, argument or loop.
        """
        made = value.node is not None and _fuses(value.node)
        return self.bytes_seconds(times * _count(value) * (2 if made else 6))

    def converting(self, value: Value, times: int) -> float:
        """Seconds to convert a tensor on its way between two ops."""
        return self.bytes_seconds(times * _count(value) * CAST)

    def seconds(self, made: Assignment) -> float:
        """Of the whole program under an assignment of formats, the update aside."""
        total = 0.0
        for node in self.places.ops:
            half = made.compute.get(node) == HALF
            for operand in node.inputs:
                if not isinstance(operand, Value) or not is_wide(operand):
                    continue
                if half != (made.dtype(operand) == HALF):
                    total += self.converting(operand, self.places.times[node])
        for move in self.moves:
            total += self.bytes_seconds(move.elements * _BYTES.get(made.dtype(move.value), 4))
        low = {p.node: p for p in made.products}
        copied: set[tuple[Value, Any]] = set()
        for node in self.places.multiplied:
            product, times = low.get(node), self.places.times[node]
            result = _BYTES.get(made.dtype(node.outputs[0]), 4)
            narrow = product is not None and product.low
            wide = made.compute.get(node, "float32") in ("float32", "traced")
            bits = "fp8" if narrow else "tf32" if wide else "bf16"
            block = narrow and product is not None and product.grains[0].reach != "tensor"
            total += self.product(node, bits, result, block)
            for i, operand in enumerate(node.inputs):
                if not isinstance(operand, Value):
                    continue
                width = _BYTES.get(made.dtype(operand), 4)
                if narrow and product is not None:
                    key: tuple[Value, Any] = (operand, (product.operands[i], product.grains[i]))
                    if key not in copied:
                        total += self.quantising(operand, times, width, block)
                elif bits == "bf16" and width == 4:
                    key = (operand, HALF)
                    if key not in copied:
                        total += self.casting(operand, times)
                else:
                    continue
                copied.add(key)
        return total


def model_of(places: Places, card: Card) -> Model:
    return Model(places, card, tuple(_moves(places.graph, places, top=True)))


def operations(node: Node) -> tuple[float, int]:
    """The floating-point operations of a product or convolution, and its operands' elements."""
    operands = sum(math.prod(o.type.shape) for o in node.inputs)
    made = _count(node.outputs[0])
    if node.op == "dot_general":
        contracted = node.params["dimension_numbers"][0][0]
        each = math.prod(node.inputs[0].type.shape[i] for i in contracted)
    else:
        spec = node.params["dimension_numbers"].rhs_spec
        shape = node.inputs[1].type.shape
        each = math.prod(shape) // max(1, shape[spec[0]])
    return 2.0 * made * each, operands


def _moves(graph: Graph, places: Places, *, top: bool) -> Iterator[Moves]:
    outputs = {o for o in graph.outputs if isinstance(o, Value)}
    for value in graph.inputs:
        if is_wide(value) and value in graph.users:
            yield from _moved(value, graph, places, outputs, given=True, top=top)
    for node in graph:
        if node.regions:
            if region_operands(node) is not None:
                for region in node.regions:
                    yield from _moves(region, places, top=False)
            continue
        if node.phase == UPDATE or moves(node):
            continue
        for value in node.outputs:
            if is_wide(value):
                yield from _moved(value, graph, places, outputs, given=False, top=top)


def _moved(
    value: Value, graph: Graph, places: Places, outputs: set[Value], *, given: bool, top: bool
) -> Iterator[Moves]:
    reads, summed, fused, apart, kept = 0, 0, 0, 0, given
    phase = value.node.phase if value.node is not None else ""
    for reader, moved in _readers(value, graph):
        if moved in outputs:
            kept = True
        if reader is None:
            continue
        keeps = op_named(reader.op).keeps
        if keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION) or reader.regions:
            kept = True  # their own reads are counted where they are
        elif reader.phase == UPDATE:
            kept = True
        elif given or reader.phase == phase:
            if _reduces(reader):
                summed += 1
            elif _fuses(reader):
                fused += 1
            else:
                reads += 1
        else:
            apart += 1
    if value in outputs:
        kept = True
    made = value.node is not None and not given
    by_product = made and op_named(value.node.op).keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION)  # type: ignore[union-attr]
    whole = kept or by_product or reads > 0 or apart > 0 or (summed > 0 and fused > 0)
    if not whole:
        return
    count = reads + (fused > 0) + (summed > 0) + (apart > 0) + (made and not by_product)
    node = value.node
    times = places.times.get(node, 1) if node is not None else _times_of(graph, places)
    if count:
        yield Moves(value, times * _count(value) * count)


def _readers(value: Value, graph: Graph) -> Iterator[tuple[Node | None, Value]]:
    """Who reads a value, through what only moves it, and as which value."""
    waiting = [value]
    while waiting:
        now = waiting.pop()
        yield None, now
        for reader in graph.users.get(now, ()):
            if moves(reader):
                waiting.extend(reader.outputs[:1])
            else:
                yield reader, now


def _times_of(graph: Graph, places: Places) -> int:
    return places.times.get(graph.nodes[0], 1) if graph.nodes else 1


def _fuses(node: Node) -> bool:
    return op_named(node.op).keeps in (Keeps.FOLLOW, Keeps.WIDE)


def _reduces(node: Node) -> bool:
    return node.op.startswith(("reduce_", "arg"))


def _count(value: Value) -> int:
    return math.prod(value.type.shape)
