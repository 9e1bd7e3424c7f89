"""The choice for each product and op as an entry of a recipe: its name, its format, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from precir.auto.cut import BF16, F32, FP8, FP8_BLOCK
from precir.auto.places import origin
from precir.auto.sense import looked_at
from precir.ir import Node
from precir.passes.chosen import place_of
from precir.passes.observe import named_values
from precir.recipe import Chosen

if TYPE_CHECKING:
    from precir.auto.choice import Point
    from precir.auto.choose import Chooser

_LOST: Final = 0.01  # the share of an operand that is worth a word


def entries(chooser: Chooser, point: Point) -> tuple[Chosen, ...]:
    """An entry for each product, convolution and op that would have another format without one, in
    program order; layers that are alike in all share one.
    """
    names = chooser.names
    reasons = reasons_of(chooser, point)
    needed = _needed(chooser, point)
    groups: dict[str, dict[str, Node]] = defaultdict(dict)
    for node, name in names.items():
        groups[place_of(name)][name] = node
    made = []
    for pattern, members in groups.items():
        formats = {point.formats[n] for n in members.values()}
        if len(formats) == 1 and len(members) > 1:
            if not needed.isdisjoint(members.values()):
                made.append(Chosen(pattern, formats.pop(), _joint(members, reasons)))
            continue
        for name, node in members.items():
            if node in needed or len(formats) > 1:
                made.append(Chosen(name, point.formats[node], reasons.get(node, "")))
    return tuple(made)


def names_of(chooser: Chooser) -> dict[Node, str]:
    """The name of each node that has one, in program order."""
    values = {v: name for name, v in named_values(chooser.graph, "full").items()}
    found = {}
    wanted = set(chooser.places.ops) | set(chooser.places.multiplied)
    for node in chooser.graph.walk():
        name = next((values[v] for v in node.outputs if v in values), None)
        if node in wanted and name is not None:
            found[node] = name
    return found


def noise_of(chooser: Chooser) -> list[str]:
    """Where the gradients are that are noise, layers that are alike as one."""
    values = {v: name for name, v in named_values(chooser.graph, "full").items()}
    found = looked_at(chooser.graph, chooser.loss)
    names = []
    for value in (found[i] for i in sorted(chooser.without)):
        names.append(values.get(value) or values.get(origin(value)) or "one without a name")
    return list(dict.fromkeys(place_of(name) for name in names))


def reasons_of(chooser: Chooser, point: Point) -> dict[Node, str]:
    """Why each product has its format: what fewer bits would save, and what they would add."""
    model, errors, places = chooser.model, chooser.errors, chooser.places
    whole = chooser.uniforms[1].seconds
    found = dict(places.why)
    for node in places.multiplied:
        format, why = point.formats[node], ""
        wide, half = model.product(node, "tf32", 4), model.product(node, "bf16", 2)
        if node in places.products:
            one, blocks = errors.uses(node)
            tensor = format != FP8_BLOCK
            adds = errors.error([one if tensor else blocks]).total
            low = model.product(node, "fp8", 2, block=not tensor)
            saved = (half - low) / whole
            if format in (FP8, FP8_BLOCK):
                why = f"{saved:.1%} of the time saved, adds {adds:.1e}"
            else:
                lost = errors.lost(node)
                zero = f", and lose {lost:.0%} of an operand" if lost > _LOST else ""
                why = f"8 bits would save {saved:.1%} and add {adds:.1e}{zero}"
        if format == F32:
            adds = errors.error([errors.value(node.outputs[0])]).total
            why = f"16 bits would save {(wide - half) / whole:.1%} and add {adds:.1e}"
        elif format == BF16 and not why:
            why = f"{(wide - half) / whole:.1%} of the time saved"
        found[node] = why
    for node in places.ops:
        adds = errors.error([errors.value(v) for v in node.outputs]).total
        verb = "adds" if point.formats[node] == BF16 else "16 bits would add"
        found.setdefault(node, f"{verb} {adds:.1e}")
    return found


def _needed(chooser: Chooser, point: Point) -> set[Node]:
    """The nodes that the base recipe does not give their format by itself: what an op's class
    gives it depends on the formats around it, so all that still differs is added until nothing
    does.
    """
    needed = set(chooser.places.multiplied)
    others = set(chooser.places.ops) & set(chooser.names)
    while True:
        made = chooser.assignment({n: point.formats[n] for n in needed})
        more = {
            n for n in others - needed
            if (made.compute.get(n) == BF16) != (point.formats[n] == BF16)
        }  # fmt: skip
        if not more:
            return needed
        needed |= more


def _joint(members: Mapping[str, Node], reasons: Mapping[Node, str]) -> str:
    """One reason for all, with the first one's figures."""
    found = [reasons[n] for n in members.values() if n in reasons]
    if not found:
        return ""
    return found[0] if len(set(found)) == 1 else f"{found[0]} (the first of {len(members)})"
