"""What was taken of values inside sub-graphs, out of them: one function per op that holds some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jax import numpy as jnp
from jax.sharding import PartitionSpec

from precir.ir import Graph, Literal, Node, Operand, Rewrite, Type, Value
from precir.text.types import SHORT, numpy_dtype

Inside = tuple[tuple[Node, int], ...]
"""The nodes whose sub-graphs hold a value, outermost first, each with the sub-graph's index."""


@dataclass(frozen=True)
class Probe:
    """What is taken of each value, and how loops collect it.

    Attributes:
      take: nodes that make it, the last node's first result being what is taken; none to take the
        value itself. Given are the value to make it from, the value of the old graph, and where
        that is.
      merge: a node that merges what an iteration took into what those before it took; zeros must
        merge as nothing. None to keep what the last iteration took.
      stacked: whether a scan stacks what its iterations take, instead of merging or replacing it.
    """

    take: Callable[[Value, Value, Inside], Sequence[Node]]
    merge: Callable[[Operand, Operand], Node] | None = None
    stacked: bool = True


@dataclass(frozen=True)
class Found:
    """What was taken of a value, as the graph at hand holds it."""

    value: Value
    inside: Inside
    taken: Operand
    made: Operand | None = None
    leading: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lift:
    """The task of a lift: one node, what is taken inside of it, and the graph to go on in.

    Attributes:
      node: the node, of the given graph.
      region: gives a sub-graph of it by its index, with what is taken inside.
      rewrite: makes the new graph.
      probe: how loops collect.
      axes: mesh axes of a shard_map around it that checks what varies along them; all that is
        taken in there is made to vary along all of them, as zeros do not by themselves.
    """

    node: Node
    region: Callable[[int], tuple[Graph, list[Found]]]
    rewrite: Rewrite
    probe: Probe
    axes: tuple[str, ...] = ()

    @property
    def flags(self) -> bool:
        """Whether it must be known what was made: not of what merges as nothing."""
        return self.probe.merge is None

    def zeros(self, type_: Type, nodes: list[Node]) -> Operand:
        """Zeros of a type, made among `nodes`."""
        made: Operand | None = zero(type_)
        assert made is not None
        if type_.shape:
            nodes.append(_broadcast(made, type_.shape, (), self.node))
            made = nodes[-1].outputs[0]
        return vary(made, self.axes, self.node, nodes)


# -- out of each op --------------------------------------------------------------------------------


def _call(lift: Lift) -> list[Found]:
    """Remat and custom rules: as results."""
    node, rewrite = lift.node, lift.rewrite
    body, found = lift.region(0)
    extra = _columns(found)
    new = _rebuilt(node, rewrite, [_returning(body, extra)], [o.type for o in extra])
    return _moved(found, extra, new.outputs[len(node.outputs) :])


def _cond(lift: Lift) -> list[Found]:
    """As results, of which the other branches return zeros; and whether the branch was taken."""
    node, rewrite = lift.node, lift.rewrite
    branches, columns, found = [], [], []
    for index in range(len(node.regions)):
        branch, inner = lift.region(index)
        nodes = list(branch.nodes)
        inner = _flagged(lift, inner, nodes)
        branches.append(branch.with_(nodes=tuple(nodes)))
        columns.append(_columns(inner))
        found.append(inner)
    types = [o.type for column in columns for o in column]
    regions = []
    for index, branch in enumerate(branches):
        nodes, extra = list(branch.nodes), list[Operand]()
        for at, column in enumerate(columns):
            extra += column if at == index else [lift.zeros(o.type, nodes) for o in column]
        regions.append(_returning(branch.with_(nodes=tuple(nodes)), extra))
    new = _rebuilt(node, rewrite, regions, types)
    results, at, moved = new.outputs, len(node.outputs), list[Found]()
    for column, inner in zip(columns, found, strict=True):
        moved += _moved(inner, column, results[at : at + len(column)])
        at += len(column)
    return moved


def _shard_map(lift: Lift) -> list[Found]:
    """As results with one more axis, of the devices, in front."""
    node, rewrite = lift.node, lift.rewrite
    body, found = lift.region(0)
    columns = _columns(found)
    if not columns:
        return _call(lift)
    axes = _manual(node)
    devices = math.prod(node.params["mesh"].shape[a] for a in axes)
    nodes, extra, types = list(body.nodes), list[Operand](), []
    for o in columns:
        shape = o.type.shape
        nodes.append(_broadcast(o, (1, *shape), range(1, 1 + len(shape)), node))
        extra.append(nodes[-1].outputs[0])
        types.append(Type((devices, *shape), o.type.dtype))
    by_device: Any = PartitionSpec  # which its stubs do not describe
    specs = (*node.params["out_specs"], *[by_device(axes)] * len(extra))
    body = _returning(body.with_(nodes=tuple(nodes)), extra)
    new = _rebuilt(node, rewrite, [body], types, out_specs=specs)
    return [
        replace(f, leading=(devices, *f.leading))
        for f in _moved(found, columns, new.outputs[len(node.outputs) :])
    ]


def _manual(node: Node) -> tuple[str, ...]:
    """The mesh axes that the body sees one device of."""
    mesh = node.params["mesh"]
    axes = node.params.get("manual_axes", node.params.get("newly_manual_axes"))
    return tuple(a for a in mesh.axis_names if axes is None or a in axes)


def checked_axes(inside: Inside) -> tuple[str, ...]:
    """See `Lift.axes`: of the shard_maps around a place, the innermost one's."""
    for node, _ in reversed(inside):
        if node.op == "shard_map":
            return _manual(node) if node.params["check_vma"] else ()
    return ()


def vary(operand: Operand, axes: tuple[str, ...], at: Node, nodes: list[Node]) -> Operand:
    """The same numbers, which to JAX vary along mesh axes: chosen from twice by one that does."""
    if not axes:
        return operand
    index = Type((), "int32")
    total: Operand = Literal(0, index)
    for axis in axes:
        here = _node(at, "axis_index", [], index, {"axis_name": axis})
        summed = _node(at, "add", [total, here.outputs[0]], index, {})
        nodes += [here, summed]
        total = summed.outputs[0]
    which = _node(at, "lt", [total, Literal(0, index)], Type((), "bool"), {})
    chosen = _node(at, "select_n", [which.outputs[0], operand, operand], operand.type, {})
    nodes += [which, chosen]
    return chosen.outputs[0]


def _scan(lift: Lift) -> list[Found]:
    node, rewrite = lift.node, lift.rewrite
    body, found = lift.region(0)
    extra = _columns(found)
    if not lift.probe.stacked:
        return _scan_merging(lift, body, found, extra)
    length = node.params["length"]
    types = [replace(o.type, shape=(length, *o.type.shape), weak=False) for o in extra]
    new = _rebuilt(node, rewrite, [_returning(body, extra)], types)
    return [
        replace(f, leading=(length, *f.leading))
        for f in _moved(found, extra, new.outputs[len(node.outputs) :])
    ]


def _scan_merging(lift: Lift, body: Graph, found: list[Found], extra: list[Operand]) -> list[Found]:
    """Carried, each iteration's merged into those before it."""
    node, rewrite = lift.node, lift.rewrite
    carry = node.params["num_carry"]
    last = node.params["num_consts"] + carry
    body, old = _carried(lift.probe, node, body, found, extra)
    body = body.with_(
        inputs=(*body.inputs[:last], *old, *body.inputs[last : len(body.inputs) - len(old)]),
        outputs=_in_carry(body.outputs, carry, len(old)),
    )
    starts = [lift.zeros(o.type, rewrite.nodes) for o in old]
    inputs = [rewrite(o) for o in node.inputs]
    kept = [v.type for v in node.outputs]
    new = rewrite.add(
        node.like(
            inputs=[*inputs[:last], *starts, *inputs[last:]],
            types=[*kept[:carry], *(o.type for o in old), *kept[carry:]],
            params={**node.params, "num_carry": carry + len(old)},
            regions=(body,),
        )
    )
    after = [*new.outputs[:carry], *new.outputs[carry + len(old) :]]
    for was, now in zip(node.outputs, after, strict=True):
        rewrite.map(was, now)
    return _moved(found, extra, new.outputs[carry : carry + len(old)])


def _in_carry(outputs: Sequence[Operand], carry: int, count: int) -> tuple[Operand, ...]:
    """The results of a body, the last `count` of them moved to the end of its carry."""
    kept = len(outputs) - count
    return (*outputs[:carry], *outputs[kept:], *outputs[carry:kept])


def _while(lift: Lift) -> list[Found]:
    """Carried, merged or replaced at each iteration; the condition's taken once more at the end."""
    node, rewrite = lift.node, lift.rewrite
    body, found = lift.region(1)
    nodes = list(body.nodes)
    found = _flagged(lift, found, nodes)
    body = body.with_(nodes=tuple(nodes))
    extra = _columns(found)
    body, old = _carried(lift.probe, node, body, found, extra)
    cond = node.regions[0]
    cond = cond.with_(inputs=(*cond.inputs, *(Value(o.type, hint=o.hint) for o in old)))
    starts = [lift.zeros(o.type, rewrite.nodes) for o in old]
    new = rewrite.add(
        node.like(
            inputs=[*(rewrite(o) for o in node.inputs), *starts],
            types=[v.type for v in (*node.outputs, *old)],
            regions=(cond, body),
        )
    )
    for was, now in zip(node.outputs, new.outputs, strict=False):
        rewrite.map(was, now)
    moved = _moved(found, extra, new.outputs[len(node.outputs) :])
    return moved + _last_condition(lift, new)


def _last_condition(lift: Lift, new: Node) -> list[Found]:
    """Evaluate the condition on what the loop returned, as the loop did last."""
    node, rewrite = lift.node, lift.rewrite
    cond, found = lift.region(0)
    if not found or any(n.effects for n in cond.walk()):
        return []
    given = [*new.inputs[: node.params["cond_nconsts"]], *new.outputs]
    inlined = Rewrite(cond)
    for inner, outer in zip(cond.inputs, given, strict=False):
        inlined.map(inner, outer)
    for n in cond:
        made = n.like(inputs=[inlined(o) for o in n.inputs])
        rewrite.add(inlined.replace(n, made))
    return [
        replace(f, taken=inlined(f.taken), made=None if f.made is None else inlined(f.made))
        for f in found
    ]


def _carried(
    probe: Probe, node: Node, body: Graph, found: Sequence[Found], extra: Sequence[Operand]
) -> tuple[Graph, list[Value]]:
    """A body that takes what was taken so far as its last inputs, and returns it last."""
    nodes = list(body.nodes)
    old = [Value(replace(o.type, weak=False), hint="seen") for o in extra]
    made = {f.taken: f.made for f in found if f.made is not None}
    after: list[Operand] = []
    for was, now in zip(old, extra, strict=True):
        if now not in made and any(f.made == now for f in found):
            steps = [_ran(was, now, node)]
        elif probe.merge is not None:
            steps = [probe.merge(was, now)]
        elif isinstance(made.get(now), Value):
            steps = _latest(made[now], was, now, node)
        else:
            steps = []  # what this iteration took
        nodes += steps
        after.append(steps[-1].outputs[0] if steps else now)
    body = body.with_(nodes=tuple(nodes), inputs=(*body.inputs, *old))
    return _returning(body, after), old


def _ran(was: Operand, now: Operand, node: Node) -> Node:
    return _node(node, "or", [was, now], was.type, {})


def _latest(made: Operand, was: Operand, now: Operand, node: Node) -> list[Node]:
    """What this iteration took where it made the value, else what was taken before."""
    nodes = []
    if made.type.shape:
        spread = _broadcast(made, now.type.shape, range(made.type.rank), node)
        nodes, made = [spread], spread.outputs[0]
    return [*nodes, _node(node, "select_n", [made, was, now], was.type, {})]


# -- pieces ----------------------------------------------------------------------------------------


def _flagged(lift: Lift, found: Sequence[Found], nodes: list[Node]) -> list[Found]:
    """All of them with flags, one for those that are certainly made."""
    flagged, flag = list[Found](), None
    for f in found:
        if lift.flags and f.made is None:
            if flag is None:
                flag = vary(Literal(True, Type((), "bool")), lift.axes, lift.node, nodes)
            f = replace(f, made=flag)
        flagged.append(f)
    return flagged


def _columns(found: Sequence[Found]) -> list[Operand]:
    """What a sub-graph has to return, each once."""
    flags = (f.made for f in found if f.made is not None)
    return list(dict.fromkeys([*(f.taken for f in found), *flags]))


def _moved(
    found: Sequence[Found], columns: Sequence[Operand], results: Sequence[Value]
) -> list[Found]:
    """The same, as the node that returns the columns has them."""
    at = dict(zip(columns, results, strict=True))
    return [
        replace(f, taken=at[f.taken], made=None if f.made is None else at[f.made]) for f in found
    ]


def _returning(graph: Graph, extra: Sequence[Operand]) -> Graph:
    return graph.with_(outputs=(*graph.outputs, *extra)) if extra else graph


def _rebuilt(
    node: Node, rewrite: Rewrite, regions: Sequence[Graph], types: Sequence[Type], **params: Any
) -> Node:
    """The node with other sub-graphs and more results."""
    if not types and tuple(regions) == node.regions:
        rewrite.copy(node)
        return node
    inputs, kept = [rewrite(o) for o in node.inputs], [v.type for v in node.outputs]
    made = node.like(
        inputs=inputs,
        types=[*kept, *types],
        regions=tuple(regions),
        params={**node.params, **params},
    )
    rewrite.add(made)
    for was, now in zip(node.outputs, made.outputs, strict=False):
        rewrite.map(was, now)
    return made


def _node(at: Node, op: str, inputs: Sequence[Operand], type_: Type, params: Any) -> Node:
    return Node(op, inputs, [type_], params, source=at.source, scope=at.scope, phase=at.phase)


def _broadcast(operand: Operand, shape: tuple[int, ...], dims: Iterable[int], at: Node) -> Node:
    params = {"broadcast_dimensions": tuple(dims), "shape": shape, "sharding": None}
    return _node(at, "broadcast_in_dim", [operand], Type(shape, operand.type.dtype), params)


def zero(type_: Type) -> Literal | None:
    """A scalar of this dtype that stands for nothing; None for what is no number."""
    dtype = numpy_dtype(SHORT.get(type_.dtype, ""))
    if dtype is None or type_.dtype == "float0":
        return None
    scalar = Type((), type_.dtype)
    if dtype == np.bool_:
        return Literal(False, scalar)
    if jnp.issubdtype(dtype, np.integer):
        return Literal(0, scalar)
    if dtype.kind == "c":
        return Literal(0j, scalar)
    return Literal(1.0 if type_.dtype == "float8_e8m0fnu" else 0.0, scalar)


LIFTS: Final[Mapping[str, Callable[[Lift], list[Found]]]] = {
    "remat": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
