"""The error that a choice of formats is expected to add, from what was measured of each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from precir.auto.places import HALF, Places, exact, is_wide, origin
from precir.auto.sense import Moved, Sensitivity
from precir.ir import Node, Value
from precir.passes.assign import Assignment

Pair = tuple[float, float]
NONE: Final[Pair] = (0.0, 0.0)


@dataclass(frozen=True)
class Error:
    """What a choice adds.

    Attributes:
      loss: the root mean square change of the loss, in its unit; 0 where there is none.
      results: the relative mean square error of the gradients, or of a model's results.
      exchange: what an error of one in the gradients costs, in the loss's unit; None of a model
        that has neither loss nor gradients.
    """

    loss: float
    results: float
    exchange: float | None

    @property
    def total(self) -> float:
        """In the unit of the loss; of a model's results, the relative root mean square error."""
        if self.exchange is None:
            return math.sqrt(self.results)
        return self.loss + self.exchange * self.results

    @property
    def slope(self) -> Pair:
        """By how much `total` grows with the variance of the loss and with `results`, at least
        as much as at an error of a millionth.
        """
        if self.exchange is None:
            return 0.0, 0.5 / max(math.sqrt(self.results), 1e-6)
        return 0.5 / max(self.loss, 1e-6), self.exchange


class Errors:
    """The expected squares of errors of each tensor in each format."""

    def __init__(self, found: Iterable[Sensitivity], exchange: float | None) -> None:
        self.exchange = exchange
        self._values: dict[Value, Pair] = {}
        self._uses: dict[Node, dict[int, tuple[Moved, ...]]] = {}
        self._reads: dict[tuple[Node, int], Pair] = {}
        for s in found:
            if s.tap.node is None:
                self._values[s.tap.value] = _pair(s.moved[0])
                continue
            self._reads[s.tap.node, s.tap.operand] = _pair(s.moved[-1])
            if len(s.moved) > 1:
                self._uses.setdefault(s.tap.node, {})[s.tap.operand] = s.moved

    def value(self, value: Value) -> Pair:
        """Of a value rounded to 16 bits."""
        return self._values.get(value, NONE)

    def read(self, node: Node, operand: int) -> Pair | None:
        """Of a value rounded to 16 bits for one reader; None where it has no other."""
        return self._reads.get((node, operand))

    def uses(self, node: Node) -> tuple[Pair, Pair]:
        """Of a product with both operands in 8 bits: under one scale each, and by blocks."""
        operands = list(self._uses.get(node, {}).values())
        return _sum(_pair(o[0]) for o in operands), _sum(_pair(o[1]) for o in operands)

    def lost(self, node: Node) -> float:
        """The largest share of the nonzero elements of an operand that 8 bits make zero."""
        return max((o[0].lost for o in self._uses.get(node, {}).values()), default=0.0)

    def error(self, pairs: Iterable[Pair]) -> Error:
        """Of roundings that are independent, so that their squares add up."""
        loss, results = _sum(pairs)
        return Error(math.sqrt(loss), results, self.exchange)

    def of(self, places: Places, made: Assignment) -> Error:
        """Of an assignment of formats."""
        return self.error(pair for _, pair in self.parts(places, made))

    def parts(self, places: Places, made: Assignment) -> Iterator[tuple[Node | Value, Pair]]:
        """What each rounding adds: of a product's 8-bit operands, by the product; of a value that
        is rounded to 16 bits, for itself or for all who read it, by the value, and where some read
        it wide, by the reader. What is chosen among rounded numbers is rounded already; among wide
        ones, as it is chosen.
        """
        low = {p.node: p for p in made.products}
        rounded: dict[Value, None] = {}
        already: set[Value] = set()
        reads: dict[Value, list[tuple[Node, int]]] = {}
        for node in (*places.ops, *places.multiplied):
            product = low.get(node)
            if product is not None and product.low:
                one, blocks = self.uses(node)
                yield node, one if product.grains[0].reach == "tensor" else blocks
            elif made.compute.get(node) == HALF:
                wide = [
                    (i, origin(o)) for i, o in enumerate(node.inputs)
                    if isinstance(o, Value) and is_wide(o) and made.dtype(origin(o)) != HALF
                ]  # fmt: skip
                if not exact(node):
                    for i, o in wide:
                        reads.setdefault(o, []).append((node, i))
                elif not wide:
                    already.update(node.outputs)
            rounded.update((v, None) for v in node.outputs if made.dtype(v) == HALF)
        for value, readers in reads.items():
            if len(readers) == places.reads[value] or any(r not in self._reads for r in readers):
                rounded[value] = None
            else:
                for node, i in readers:
                    yield node, self._reads[node, i]
        for value in rounded:
            if value in self._values and value not in already:
                yield value, self._values[value]


def _pair(moved: Moved) -> Pair:
    return moved.loss, moved.results


def _sum(pairs: Iterable[Pair]) -> Pair:
    loss = results = 0.0
    for a, b in pairs:
        loss, results = loss + a, results + b
    return loss, results
