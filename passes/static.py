"""Scales from calibration: each operand's, from the largest element that `precir.observe` saw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from precir.domains.stats import Stats
from precir.errors import RecipeError
from precir.formats import power_of_two
from precir.ir import Graph, Literal, Node, Operand, Value
from precir.ops import Keeps, op_named
from precir.passes.assign import Product, region_operands
from precir.passes.facts import Facts
from precir.passes.grains import Grain

MARGIN: Final = 2.0
"""How far past what was seen a tensor may grow before it saturates: one binade. What it costs is
one binade at the small end, of the 15 that E4M3 has and the 30 of E5M2; most batches stay within
a binade of those a program was calibrated on, and one that does not only saturates.
"""

_CASTS: Final = frozenset({"convert_element_type", "cast", "neg", "abs", "reduce_precision"})


def add_static_scales(
    graph: Graph,
    products: list[Product],
    seen: Mapping[Value, Stats] | None,
    facts: Facts | None,
    recipe: str,
) -> list[Product]:
    """The products with a scale for each 8-bit operand: `MARGIN` times the smallest power of two
    under which what was seen of it does not overflow; 1 if nothing but zeros was. What is read
    from storage has scales already, and none is given to it here.

    Raises `RecipeError` for the first operand of which nothing was seen.
    """
    found = _Seen(graph, seen or {}, facts)
    scaled = []
    for product in products:
        if product.low:
            a, b = (
                _grain(found, product, i, seen is not None, recipe)
                for i in range(len(product.operands))
            )
            product = replace(product, grains=(a, b))
        scaled.append(product)
    return scaled


def _grain(found: _Seen, product: Product, i: int, observed: bool, recipe: str) -> Grain:
    node, format = product.node, product.operands[i]
    operand = node.inputs[i]
    if found.is_stored(operand):
        return product.grains[i]
    amax = found.amax(operand)
    if amax is None:
        what = f" of operand {i + 1} of {node.op}" if observed else ""
        raise RecipeError(
            f"{recipe} needs statistics{what}: "
            "precir.compile(..., stats=precir.observe(fn, batches))",
            where=str(node.source) if node.source.where is not None else node.scope,
            fix='observe the same function with batches like those to come, or use "fp8", '
            "which needs none",
        )
    scale = power_of_two(amax, format)
    return Grain(scale=min(scale * MARGIN, 2.0**126) if amax > 0 else scale)


class _Seen:
    """The largest magnitude seen of any value, through what only moves it."""

    def __init__(self, graph: Graph, seen: Mapping[Value, Stats], facts: Facts | None) -> None:
        self.seen, self.facts = seen, facts
        self.sources: dict[Value, list[Operand]] = {}
        for node in graph.walk():
            self._trace(node)

    def amax(self, operand: Operand) -> float | None:
        """None where it was not seen; 0 of nothing."""
        waiting, visited, amax = [operand], set[Operand](), 0.0
        while waiting:
            value = waiting.pop()
            if value in visited:
                continue
            visited.add(value)
            known = self._known(value)
            if known is not None:
                amax = max(amax, known)
            elif isinstance(value, Value) and value in self.sources:
                waiting.extend(self.sources[value])
            else:
                return None
        return amax

    def is_stored(self, operand: Operand) -> bool:
        """Whether it is read from storage, and only moved or cast."""
        waiting, visited = [operand], set[Operand]()
        while waiting:
            value = waiting.pop()
            if value in visited or (isinstance(value, Value) and _widened(value)):
                continue
            visited.add(value)
            if not isinstance(value, Value) or value not in self.sources:
                return False
            waiting.extend(self.sources[value])
        return True

    def _known(self, operand: Operand) -> float | None:
        if isinstance(operand, Literal):
            return None if isinstance(operand.value, complex) else abs(float(operand.value))
        if operand in self.seen:
            return self.seen[operand].amax
        if 0 in operand.type.shape:
            return 0.0
        if operand.node is not None and operand.node.op == "constant" and self.facts is not None:
            magnitude = self.facts[operand].magnitude
            return magnitude if math.isfinite(magnitude) else None
        return None

    def _trace(self, node: Node) -> None:
        for value, source in _sources(node):
            self.sources.setdefault(value, []).append(source)


def _widened(value: Value) -> bool:
    return value.node is not None and value.node.op == "dequantize"


def _sources(node: Node) -> Iterator[tuple[Value, Operand]]:
    """What values hold the numbers of: (value, where they come from)."""
    if node.regions:
        taken = region_operands(node)
        if taken is None:
            return
        for region, indices in zip(node.regions, taken, strict=True):
            operands = [node.inputs[i] for i in indices]
            yield from zip(region.inputs, operands, strict=True)
        bodies = node.regions[1:] if node.op == "while" else node.regions
        for body in bodies:
            yield from zip(node.outputs, body.outputs, strict=True)
        if node.op in ("scan", "while"):
            yield from _carried(node, bodies[0])
    elif node.op in _CASTS or op_named(node.op).keeps is Keeps.MOVE:
        for value in node.outputs:
            for source in node.inputs:  # indices move nothing
                if node.op in _CASTS or source.type.dtype == value.type.dtype:
                    yield value, source


def _carried(node: Node, body: Graph) -> Iterator[tuple[Value, Operand]]:
    if node.op == "scan":
        first, count = node.params["num_consts"], node.params["num_carry"]
    else:
        first, count = node.params["body_nconsts"], len(node.outputs)
        condition = node.params["cond_nconsts"]
        yield from zip(node.regions[0].inputs[condition:], body.outputs, strict=True)
    yield from zip(body.inputs[first : first + count], body.outputs[:count], strict=True)
    # A loop that runs no time hands on what it was given.
    yield from zip(node.outputs[:count], node.inputs[-count:] if node.op == "while" else
                   node.inputs[first : first + count], strict=True)  # fmt: skip
