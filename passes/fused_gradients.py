"""The gradients of norms by one kernel, `norm_gradients`, where that pays.

It reads the norm's input as it is stored, where the program may have saved, for its backward pass,
what the forward pass made of it: that is then made no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final

from precir.ir import Graph, Literal, Node, Operand, Type, Value
from precir.kernels.norm_quantize import ROWS
from precir.ops import norm_gradients
from precir.passes.fused_cost import Cost, Fused, gradients_saved, width_of
from precir.passes.norm_gradients import Gradients, find_gradients, only_user
from precir.passes.rebuild import in_order
from precir.passes.samples import computable, elementwise
from precir.passes.simplify import drop_dead


def fuse_gradients(graph: Graph, times: int | None) -> tuple[Graph, list[Fused]]:
    """One level of a program that runs so many `times`, and what was decided."""
    used, decided = list[Gradients](), list[Fused]()
    for found in find_gradients(graph):
        place = found.of_x.node
        assert place is not None
        saved = _saved(graph, found)
        reason, pays = _words(found), False
        if found.rows.x.type.shape[-1] > ROWS:
            reason = f"rows are longer than {ROWS}"
        elif saved.seconds <= 0:
            reason = "it takes no less"
        else:
            pays = True
            used.append(found)
        decided.append(Fused("norm_gradients", place, pays, times, saved, reason))
    made = _with(graph, used)
    if made is not None:
        return made, decided
    used, every, made = [], used, graph
    for found in every:  # those before it have an order together
        more = _with(graph, [*used, found])
        if more is not None:
            used, made = [*used, found], more
            continue
        (n,) = (n for n, d in enumerate(decided) if d.node is found.of_x.node)
        decided[n] = replace(decided[n], used=False, reason="it needs what is made of its result")
    return made, decided


def _with(graph: Graph, every: list[Gradients]) -> Graph | None:
    """A graph with those kernels; None where that has no order: what one of them adds to the
    gradient of x may be made of the gradient of a weight.
    """
    builder = _Builder(graph)
    for found in every:
        assert found.of_x.node is not None
        builder.fuse(found, found.of_x.node)
    return builder.finish()


@dataclass
class _Builder:
    """The new nodes of one graph, and what they replace."""

    graph: Graph
    before: dict[Node, list[Node]] = field(default_factory=dict)
    now: dict[Value, Operand] = field(default_factory=dict)

    def fuse(self, found: Gradients, place: Node) -> None:
        rows, x = found.rows, found.rows.x
        new = self.before.setdefault(place, [])
        each, columns = x.type.shape[:-1], x.type.shape[-1:]
        rstd = self.shaped(rows.rstd, each, new, place)
        if rows.inverse:
            one = Literal(1.0, Type((), "float32"))
            rstd = self.made(new, place, "div", [one, rstd], rstd.type, {})
        wide = _written(self.graph, found)
        named: dict[str, Value | None] = {
            "x": x,
            "gradient": _stored(found.gradient),
            "mean": self.shaped(rows.mean, each, new, place) if rows.mean is not None else None,
            "rstd": rstd,
            "weight": self.shaped(found.weight, columns, new, place) if found.weight else None,
            "add": self.added(found, new, place),
        }
        params = {
            "kind": rows.kind, "weight": found.weight is not None, "add": bool(found.beside),
            "dtype": wide.type.dtype, "of_weight": found.of_weight is not None,
            "of_bias": found.of_bias is not None,
        }  # fmt: skip
        kinds = norm_gradients.result_types(x.type, params)
        operands = [named[name] for name in norm_gradients.operands(params)]
        node = _node(place, "norm_gradients", operands, kinds, params)
        new.append(node)
        sums = [v for v in (found.of_weight, found.of_bias) if v is not None]
        self.now[wide] = node.outputs[0]
        for value, result in zip(sums, node.outputs[1:], strict=True):
            turned = self.shaped(result, value.type.shape, new, place)
            if value.type.dtype != "float32":
                params = {"dtype": value.type.dtype}
                turned = self.made(new, place, "cast", [turned], value.type, params)
            self.now[value] = turned

    def made(
        self, new: list[Node], place: Node, op: str, inputs: Any, kind: Type, params: dict[str, Any]
    ) -> Value:
        new.append(_node(place, op, inputs, [kind], params))
        return new[-1].outputs[0]

    def shaped(self, value: Value, shape: tuple[int, ...], new: list[Node], place: Node) -> Value:
        """The same numbers in another shape: what they were made of, or reshaped."""
        source: Any = value
        while isinstance(source, Value) and math.prod(source.type.shape) == math.prod(shape):
            if source.type.shape == shape:
                value = source
            if source.node is None or source.node.op not in _SPREADS:
                break
            source = source.node.inputs[0]
        if value.type.shape == shape:
            return value
        kind = Type(shape, value.type.dtype)
        params = {"new_sizes": shape, "dimensions": None, "sharding": None}
        return self.made(new, place, "reshape", [value], kind, params)

    def added(self, found: Gradients, new: list[Node], place: Node) -> Value | None:
        """The sum of what goes by the norm."""
        if len(found.beside) < 2:
            return found.beside[0] if found.beside else None
        kind = found.of_x.type

        def cast(value: Value) -> Value:
            if value.type.dtype == kind.dtype:
                return value
            return self.made(new, place, "cast", [value], kind, {"dtype": kind.dtype})

        def add(a: Value, b: Value) -> Value:
            return self.made(new, place, "add_any", [a, b], kind, {})

        return reduce(add, [cast(v) for v in found.beside])

    def finish(self) -> Graph | None:
        """None if the nodes have no order."""
        if not self.before:
            return self.graph
        nodes = [n for node in self.graph for n in (*self.before.get(node, ()), node)]
        ordered, outputs = in_order(nodes, self.now, self.graph.outputs)
        if len(ordered) < len(nodes):
            return None
        return drop_dead(self.graph.with_(nodes=tuple(ordered), outputs=tuple(outputs)))


_CASTS: Final = ("convert_element_type", "cast")
_SPREADS: Final = ("broadcast_in_dim", "reshape", "expand_dims", "squeeze")


def _node(place: Node, op: str, inputs: Any, kinds: list[Type], params: dict[str, Any]) -> Node:
    made = place.like(op=op, inputs=inputs, types=kinds, params=params, regions=())
    made.effects = False
    return made


def _written(graph: Graph, found: Gradients) -> Value:
    """The gradient of x, or what it is cast to at once."""
    value = found.of_x
    user = only_user(graph, value)
    if user is not None and user.op in _CASTS and width_of(user.outputs[0].type.dtype) == 2:
        return user.outputs[0]
    return value


def _stored(value: Value) -> Value:
    """What a value was made of by widening it."""
    node = value.node
    source = node.inputs[0] if node is not None and node.op in _CASTS else None
    narrow = isinstance(source, Value) and source.type.dtype in ("bfloat16", "float16")
    return source if narrow else value  # type: ignore[return-value]


def _saved(graph: Graph, found: Gradients) -> Cost:
    x, gradient = found.rows.x, found.gradient
    read = _bytes(x) + _bytes(gradient)
    sums = found.of_weight is not None or found.of_bias is not None
    made = _bytes(gradient) * _only_evaluated(graph, gradient)
    beside = [_bytes(v) for v in found.beside]
    written = _bytes(_written(graph, found))
    return gradients_saved(x.type.shape, read, beside, made, written, sums)


def _only_evaluated(graph: Graph, value: Value) -> bool:
    """Whether it is an element-wise sum or the like that only such nodes read: XLA then computes it
    where it is read.
    """
    users = graph.users.get(value, ())
    within = value.node is not None and elementwise(value.node) and value.node.op not in _CASTS
    return within and value not in graph.outputs and all(map(computable, users))


def _bytes(value: Value) -> int:
    return math.prod(value.type.shape) * width_of(value.type.dtype)


def _words(found: Gradients) -> str:
    what = {"layer": "LayerNorm", "rms": "RMSNorm"}[found.rows.kind]
    named = [
        "input",
        *(["weight"] if found.of_weight is not None else []),
        *(["bias"] if found.of_bias is not None else []),
    ]
    added = ", with what goes by it" if found.beside else ""
    return f"the gradients of {what}: {', '.join(named)}{added}"
