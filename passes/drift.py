"""How far the guess of a magnitude may be off: the factors that multiplied into it.

The data of a product of n tensors is off by the product of what each was off, and a sum of many
products by one factor more, for terms may be of one sign or of any. What divides takes its errors
away again: a normalised tensor is known, whatever it was made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from precir.ir import Node
from precir.ops import Keeps, op_named

Drift = tuple[tuple[int, float], ...]
"""Powers of unknown factors, by their numbers, in order."""
KNOWN: Final[Drift] = ()
_POWERS: Final[Mapping[str, float]] = {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "cbrt": 1 / 3}


@dataclass
class Drifts:
    """Unknown factors of a program, by number, with how many each stands for."""

    weights: dict[int, float] = field(default_factory=dict)

    def new(self, weight: float = 1) -> Drift:
        number = len(self.weights)
        self.weights[number] = weight
        return ((number, 1.0),)

    def degree(self, drift: Drift) -> float:
        """How many factors the error is the product of."""
        return sum(abs(p) * self.weights[n] for n, p in drift)

    def of(self, node: Node, given: Sequence[Drift]) -> Drift:
        """That of a node's results, from those of its operands."""
        if is_product(node):
            made = _product(given, -1 if node.op == "div" else 1)
            return made if node.op in ("mul", "div") else tuple(sorted([*made, *self.new()]))
        if node.op == "integer_pow" or node.op in _POWERS:
            power = float(_POWERS.get(node.op) or node.params["y"])
            return tuple((n, p * power) for n, p in given[0]) if power else KNOWN
        different = set(given) - {KNOWN}
        if len(different) <= 1:
            return next(iter(different), KNOWN)
        return self.new(max(map(self.degree, different)))


def is_product(node: Node) -> bool:
    """Whether a node multiplies what it is given, or divides it."""
    return node.op in ("mul", "div") or op_named(node.op).keeps in (
        Keeps.PRODUCT, Keeps.CONVOLUTION,
    )  # fmt: skip


def _product(given: Sequence[Drift], power: int) -> Drift:
    """Of the first, and of the others to a power."""
    total: dict[int, float] = {}
    for i, drift in enumerate(given):
        for n, p in drift:
            total[n] = total.get(n, 0.0) + (power * p if i else p)
    return tuple(sorted((n, p) for n, p in total.items() if p))
