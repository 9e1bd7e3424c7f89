"""One kernel for each update of AdamW to narrow storage (`fused_adam`, `precir.kernels`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from precir.ir import Graph, Literal, Node, Operand, Type, Value
from precir.ops.adam import ADAM, SCALARS
from precir.passes.adam_numbers import Factor
from precir.passes.fused_adam import Adam, as_stored, find_adams
from precir.passes.fused_cost import Cost, Fused, elements_of, width_of
from precir.passes.rebuild import in_order
from precir.passes.simplify import drop_dead

_SCALAR = Type((), "float32")


def update_stored(graph: Graph, times: int | None) -> tuple[Graph, list[Fused]]:
    """One graph, its sub-graphs aside, with the kernels in, and what was decided: of the node that
    stored a new weight, or a moment where that stays plain. `times` as in `Fused`.
    """
    position = {node: n for n, node in enumerate(graph.nodes)}
    builder = _Builder(position)
    decided = []
    for found in find_adams(graph, position):
        if isinstance(found, Adam):
            node = next(n for n in found.kept if n is not None)
            saved = _saved(found)
            pays = saved.seconds > 0
            if pays:
                builder.add(found)
            reason = "AdamW, on what is stored" if pays else "it takes no less"
            decided.append(Fused(ADAM, node, pays, times, saved, reason))
        else:
            decided.append(Fused(ADAM, found[0], False, times, Cost(), found[1]))
    return builder.finish(graph), decided


def _saved(adam: Adam) -> Cost:
    """XLA reads all of it once to write, once more for the largest of what is under one scale, and
    once more for those of blocks; the kernel finds these as it writes. Each of XLA's scales takes
    kernels of its own. (7B on an H100, compiled: 5.5 bytes a parameter less where moments are in
    blocks, of 5.3 that are read; none less where they are not.)
    """
    narrow = [v.type for v in adam.stored if v.type.scale is not None]
    blocks = sum(_in_blocks(t) for t in narrow)
    one = len(narrow) - blocks
    state = sum(_bytes(v.type) for v in adam.stored)
    gradient, crosses = (_bytes(as_stored(v).type) for v in (adam.gradient, adam.crosses))
    looks = 1 + bool(one)
    apart = Cost((looks + bool(blocks)) * (state + crosses), 2 * len(narrow))
    if adam.gradient is not adam.crosses:  # computed, and written for the kernel to read
        return apart - Cost(looks * (state + gradient) + crosses + gradient, looks + 1)
    return apart - Cost(looks * (state + gradient), looks)


def _in_blocks(kind: Type) -> bool:
    """Whether scales are for less than a matrix."""
    block = kind.block[-2:]
    return any(b < n for b, n in zip(block, kind.shape[-2:], strict=bool(block)))


def _bytes(kind: Type) -> int:
    return elements_of(kind.shape) * (
        1 if kind.dtype.startswith("float8") else width_of(kind.dtype)
    )


@dataclass
class _Builder:
    """The new nodes of one graph, and what they replace."""

    position: Mapping[Node, int]
    before: dict[Node, list[Node]] = field(default_factory=dict)
    now: dict[Value, Operand] = field(default_factory=dict)
    made: dict[tuple[object, ...], Operand] = field(default_factory=dict)

    def add(self, adam: Adam) -> None:
        place = max((v.node for v in adam.new if v.node is not None), key=self.position.__getitem__)
        new: list[Node] = []
        gradient = as_stored(adam.gradient)
        if not _takes(gradient.type, adam.stored):
            gradient = adam.gradient
        scalars = {name: self.product(f, place, new) for name, f in adam.factors.items()}
        if adam.scaling:
            factor = self.factor(adam, place, new)
            scalars["gradient_scale"] = self.times(scalars["gradient_scale"], factor, place, new)
        params = {
            k: float(o.value.real) if isinstance(o, Literal) else None for k, o in scalars.items()
        }
        traced = [scalars[name] for name in SCALARS if params[name] is None]
        operands = [*adam.stored, gradient, *traced]
        types = [o.type for o in adam.stored]
        node = _at(place, ADAM, operands, types, {name: params[name] for name in SCALARS})
        new.append(node)
        self.before.setdefault(place, []).extend(new)
        for kept, value, result in zip(adam.kept, adam.new, node.outputs, strict=True):
            self.now[value if kept is None else kept.outputs[0]] = result

    def product(self, factor: Factor, place: Node, new: list[Node]) -> Operand:
        """A factor as a number, or as a scalar of the program."""
        over, under, number = list[Value](), list[Value](), factor.number
        for v, power in factor.powers.items():
            source, sign = _source(v)
            number *= sign**power
            (over if power > 0 else under).extend([source] * abs(power))
        found: Operand = Literal(number, _SCALAR)
        if over and number == -1.0:
            found = Literal(1.0, _SCALAR)
            found = self.scalar("neg", (over.pop(0),), place, new)
        for v in over:
            found = self.times(found, v, place, new)
        for v in under:
            found = self.scalar("div", (found, v), place, new)
        return found

    def times(self, a: Operand, b: Operand, place: Node, new: list[Node]) -> Operand:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Literal) and one.value == 1.0:
                return other
        return self.scalar("mul", (a, b), place, new)

    def factor(self, adam: Adam, place: Node, new: list[Node]) -> Operand:
        """What the nodes that scale the gradient make of 1."""
        env: dict[Operand, Operand] = {adam.gradient: Literal(1.0, _SCALAR)}
        for node in adam.scaling:
            inputs = [env.get(o, o) for o in node.inputs]
            kind = Type((), node.outputs[0].type.dtype)
            first = inputs[0]
            if node.op == "broadcast_in_dim" or (
                node.op in ("convert_element_type", "cast") and isinstance(first, Literal)
            ):
                made = Literal(first.value, kind) if isinstance(first, Literal) else first
            elif node.op == "mul":
                made = self.times(inputs[0], inputs[1], place, new)
            else:
                made = self.scalar(node.op, tuple(inputs), place, new, node)
            env[node.outputs[0]] = made
        return env[adam.scaled]

    def scalar(
        self,
        op: str,
        inputs: tuple[Operand, ...],
        place: Node,
        new: list[Node],
        like: Node | None = None,
    ) -> Operand:
        """A node on scalars, once for all that want the same."""
        params = {} if like is None else dict(like.params)
        inputs = tuple(map(_rounded, inputs))
        kind = _SCALAR if like is None else Type((), like.outputs[0].type.dtype)
        key = op, inputs, repr(params), kind
        if key not in self.made:
            node = _at(place if like is None else like, op, inputs, [kind], params)
            new.append(node)
            self.made[key] = node.outputs[0]
        return self.made[key]

    def finish(self, graph: Graph) -> Graph:
        if not self.before:
            return graph
        nodes = [n for node in graph for n in (*self.before.get(node, ()), node)]
        ordered, outputs = in_order(nodes, self.now, graph.outputs)
        assert len(ordered) == len(nodes), "an update needs what is made of its result"
        return drop_dead(graph.with_(nodes=tuple(ordered), outputs=tuple(outputs)))


def _rounded(operand: Operand) -> Operand:
    """As a node reads it: a number that a parameter of the kernel has need not be float32's."""
    if isinstance(operand, Literal) and operand.type == _SCALAR:
        return Literal(float(np.float32(operand.value.real)), _SCALAR)
    return operand


def _source(value: Value) -> tuple[Value, float]:
    """The scalar that a scalar is, but for its sign."""
    node = value.node
    if node is None or value.type.rank:
        return value, 1.0
    sign, source = 1.0, node.inputs[0] if node.inputs else None
    if node.op == "neg":
        sign = -1.0
    elif node.op == "mul":
        ones = [o for o in node.inputs if isinstance(o, Literal) and abs(o.value) == 1.0]
        others = [o for o in node.inputs if o not in ones]
        if not ones or len(others) != 1:
            return value, 1.0
        sign, source = float(ones[0].value.real), others[0]
    elif node.op not in ("copy", "convert_element_type"):
        return value, 1.0
    if not isinstance(source, Value) or (source.type.dtype, source.type.rank) != ("float32", 0):
        return value, 1.0
    further, more = _source(source)
    return further, sign * more


def _takes(gradient: Type, stored: tuple[Value, ...]) -> bool:
    """Whether the kernel reads a gradient as it is stored."""
    return (
        gradient.scale is None
        or not gradient.block
        or gradient.block in {v.type.block for v in stored}
    )


def _at(
    place: Node, op: str, inputs: Sequence[Operand], kinds: list[Type], params: dict[str, object]
) -> Node:
    made = place.like(op=op, inputs=inputs, types=kinds, params=params, regions=())
    made.effects = False
    return made
