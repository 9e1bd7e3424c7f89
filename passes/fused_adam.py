"""Find AdamW: weights and moments of narrow storage that one kernel can update.

An update is recognised by what it computes, as norms are: three new tensors are made of three
stored ones and a gradient, element by element, and of scalars (`precir.passes.adam_numbers`). What
lies between the gradient that crosses memory and the g of the formula, as clipping does, has to be
a multiplication: its factor is what it makes of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

from precir.ir import Graph, Literal, Node, Operand, Value
from precir.kernels.adam_stored import GRADIENTS, NARROW
from precir.passes.adam_numbers import Factor, adam_factors
from precir.passes.samples import elementwise

_MOST: Final = 200  # nodes of one update


@dataclass(frozen=True)
class Adam:
    """An update that is one of AdamW.

    Attributes:
      stored: weight, first and second moment as they are stored.
      kept: the nodes that store the new ones; None for a weight that is stored as it is computed.
      new: the new ones as computed.
      crosses: the gradient in memory, or that dequantised.
      gradient: what the kernel reads: that, or what is computed of it for the kernel.
      scaling: the nodes that multiply it by a number, in their order.
      scaled: what they make of it, the gradient itself if they are none.
      factors: of each scalar of the kernel but what `scaling` gives, by name.
    """

    stored: tuple[Value, ...]
    kept: tuple[Node | None, ...]
    new: tuple[Value, ...]
    crosses: Value
    gradient: Value
    scaling: tuple[Node, ...]
    scaled: Value
    factors: Mapping[str, Factor]


@dataclass(frozen=True)
class Cone:
    """What a value is made of: tensors of its shape, scalars, and the nodes between."""

    tensors: frozenset[Value]
    scalars: frozenset[Value]
    inside: frozenset[Node]


def find_adams(graph: Graph, position: Mapping[Node, int]) -> Iterator[Adam | tuple[Node, str]]:
    """Every update of AdamW to narrow storage; and of what may be one but is not, the node that
    stores the new weight, and why.
    """
    kept: dict[Value, list[Node]] = {}
    for node in graph:
        if node.op == "quantize" and node.params.get("fused") and isinstance(node.inputs[0], Value):
            kept.setdefault(node.inputs[0], []).append(node)
    if not kept:
        return
    for o in dict.fromkeys(graph.outputs):
        if isinstance(o, Value) and o.node is not None and o.type.dtype == "float32":
            kept.setdefault(o, [])
    for value, nodes in list(kept.items()):
        cone = cone_of(value)
        if cone is None:
            continue
        made = {v for node in cone.inside for v in node.outputs}
        moments = [v for v in kept if v in made and v is not value]
        if len(moments) != 2:
            continue
        found = _adam(graph, position, kept, value, cone, moments)
        if isinstance(found, Adam):
            yield found
        elif nodes:
            yield nodes[0], found


def cone_of(value: Value) -> Cone | None:
    """None where something else than elements in the same place makes it, or too much."""
    shape = value.type.shape
    tensors, scalars, inside = set[Value](), set[Value](), set[Node]()
    waiting, met = [value], {value}
    while waiting:
        v = waiting.pop()
        node = v.node
        if v.type.rank == 0 and shape:
            scalars.add(v)
        elif v.type.shape != shape:
            return None
        elif node is None or not _opens(node):
            tensors.add(v)
        else:
            inside.add(node)
            new = [o for o in node.inputs if isinstance(o, Value) and o not in met]
            met.update(new)
            waiting += new
        if len(inside) > _MOST:
            return None
    return Cone(frozenset(tensors), frozenset(scalars), frozenset(inside))


def _opens(node: Node) -> bool:
    """Narrower than float32 is what crosses memory; and a loop's body is not looked into."""
    spread = node.op == "broadcast_in_dim" and node.inputs[0].type.rank
    return elementwise(node) and not spread and not node.outputs[0].type.dtype.endswith("float16")


def _adam(
    graph: Graph,
    position: Mapping[Node, int],
    kept: Mapping[Value, list[Node]],
    weight: Value,
    cone: Cone,
    moments: Sequence[Value],
) -> Adam | str:
    for first, second in permutations(moments):
        parts = [cone_of(first), cone_of(second)]
        if None in parts:
            continue
        one, two = (p for p in parts if p is not None)
        shared = one.tensors & two.tensors
        own = [one.tensors - shared, two.tensors - shared, cone.tensors - one.tensors - two.tensors]
        if len(shared) != 1 or any(len(s) != 1 for s in own):
            continue
        (gradient,), (old_first,), (old_second,), (old_weight,) = shared, *own
        both = _between(gradient, one, position) & _between(gradient, two, position)
        scaled = max(both, key=lambda v: -1 if v.node is None else position[v.node])
        scaling = cone_of(scaled)
        if scaling is None:
            continue
        new, old = (weight, first, second), (old_weight, old_first, old_second)
        factors = adam_factors(new, (*old, scaled))
        if factors is None:
            continue
        read, steps = gradient, _multiplies(gradient, scaling, position)
        if steps is None or gradient.type.dtype not in GRADIENTS:
            steps, read = (), scaled
        nodes = tuple(next(iter(kept[v]), None) for v in new)
        stored = tuple(map(as_stored, old))
        inside = cone.inside - scaling.inside
        wrong = _misplaced(graph, position, nodes, kept, new, stored, inside)
        return wrong or Adam(stored, nodes, new, gradient, read, steps, scaled, factors)
    return "it is not AdamW's, or its numbers are not products of scalars"


def as_stored(value: Value) -> Value:
    """Data and scale, where a value is what they stand for."""
    node = value.node
    if node is not None and node.op == "dequantize" and value.type.dtype == "float32":
        (stored,) = node.inputs
        assert isinstance(stored, Value)
        return stored
    return value


def _between(gradient: Value, cone: Cone, position: Mapping[Node, int]) -> set[Value]:
    """What of a cone is made of the gradient."""
    found = {gradient}
    for node in sorted(cone.inside, key=lambda n: position[n]):
        if any(o in found for o in node.inputs):
            found.update(node.outputs)
    return found


def _misplaced(
    graph: Graph,
    position: Mapping[Node, int],
    nodes: Sequence[Node | None],
    kept: Mapping[Value, list[Node]],
    new: Sequence[Value],
    stored: Sequence[Value],
    inside: frozenset[Node],
) -> str:
    """Why the kernel cannot take the place of what was recognised; "" where it can."""
    for node, value, old in zip(nodes, new, stored, strict=True):
        if len(kept[value]) > 1 or (node.outputs[0].type if node else value.type) != old.type:
            return "it is not stored as it came"
        if old.type.scale is not None and old.type.dtype not in NARROW:
            return f"the kernel stores no {old.type.dtype}"
    if all(old.type.scale is None for old in stored):
        return "nothing of it is narrow"
    known = {*nodes, *inside}
    results = {v for v, node in zip(new, nodes, strict=True) if node is None}
    for node in sorted(inside, key=lambda n: position[n]):
        v = node.outputs[0]
        # What reads a new moment may make what the kernel reads, as a rate; of a weight it cannot.
        if not any(_tensor(o) for o in node.inputs) or (v in results and v is new[0]):
            continue
        if v in graph.outputs and v not in results:
            return "what it computes is a result as well"
        if any(user not in known for user in graph.users.get(v, ())):
            return "what it computes is read elsewhere"
    shape = stored[0].type.shape
    scales = [math.prod(s.type.scale) for s in stored if s.type.scale is not None]
    if not 2 <= len(shape) <= 3 or (len(shape) == 3 and min(scales) < shape[0]):
        return "one scale is for axes that devices may cut apart"
    return ""


def _tensor(operand: Operand) -> bool:
    """Whether it is more than a scalar that is spread."""
    if isinstance(operand, Literal) or not operand.type.rank:
        return False
    node = operand.node
    return node is None or not elementwise(node) or any(_tensor(o) for o in node.inputs)


# --- what scales the gradient ---------------------------------------------------------------------


def _multiplies(
    gradient: Value, cone: Cone, position: Mapping[Node, int]
) -> tuple[Node, ...] | None:
    """The nodes from the gradient to what they multiply it to, by numbers that are not made of it;
    None where they do something else, if only to an infinity: a zero in its place is no multiple.
    """
    if any(node.regions for node in cone.inside):
        return None
    nodes = tuple(sorted(cone.inside, key=lambda n: position[n]))
    made = {gradient}
    for node in nodes:
        of_it = [o in made for o in node.inputs]
        if not any(of_it):
            continue
        if not {
            "mul": of_it.count(True) == 1,
            "div": of_it == [True, False],
            "select_n": of_it == [False, True, True],
        }.get(node.op, node.op in _AS_IT_IS):
            return None
        made.update(node.outputs)
    return nodes


_AS_IT_IS: Final = ("neg", "copy", "convert_element_type", "cast", "broadcast_in_dim")
