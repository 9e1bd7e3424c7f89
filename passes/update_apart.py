"""Sum up what a global norm needs in a backward pass of its own, where layers are in no loop.

The compiler updates each parameter as soon as its gradient is there, unless a number made of all
gradients feeds the updates: then all of them wait. A first backward pass that returns only that
number lets the second be ordered as if there were none. It stands in a branch that is always
taken, for the compiler would otherwise see that both passes compute the same and keep the
gradients of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from precir.ir import BACKWARD, FORWARD, UPDATE, Graph, Literal, Node, Operand, Type, Value
from precir.ops import Keeps, op_named
from precir.passes.rebuild import copy_nodes, in_order
from precir.passes.simplify import drop_dead
from precir.passes.update_plan import bytes_of

_BOOL = Type((), "bool")
_ZERO: Final = {"bool": False, "int32": 0}
_ENOUGH: Final = 3  # layers, at least: with fewer, gradients that wait cost less than a second pass


def gradients_of(graph: Graph) -> tuple[Value, ...]:
    """Arrays that the backward program makes outside of loops and the update reads."""
    found: dict[Value, None] = {}
    for node in graph:
        if node.phase == UPDATE and node.op != "scan":
            for o in node.inputs:
                made = o.node if isinstance(o, Value) else None
                backward = made is not None and made.phase == BACKWARD and made.op != "scan"
                if backward and o.type.rank and isinstance(o, Value):
                    found[o] = None
    return tuple(found)


def sum_apart(graph: Graph, gradients: tuple[Value, ...]) -> Graph | None:
    """The program with two backward passes; None if no global number feeds its updates, or the
    gradients are too few for a second pass to pay.
    """
    folds = _global(graph, gradients)
    sizes = [bytes_of(v.type) for v in gradients]
    if not folds or sum(sizes) < _ENOUGH * max(sizes):
        return None
    wanted = set(folds)
    for fold in folds:
        wanted |= {n for n in graph.ancestors(fold) if n.phase in (BACKWARD, UPDATE)}
    if any(n.effects for n in wanted):
        return None
    again = set(_again(graph, wanted))
    moved = [n for n in graph if n in wanted or n in again]
    inside = {v for n in moved for v in n.outputs}
    outside = [
        o for n in moved for o in n.inputs if isinstance(o, Value) and o not in inside
    ]  # fmt: skip
    outside = list(dict.fromkeys(outside))
    branch = _branch(graph, moved, outside, folds)
    kept = [v for v in outside if v.node is not None]
    held = [*kept, *branch[-1].outputs]
    barrier = folds[-1].like(
        op="optimization_barrier", inputs=held, types=[v.type for v in held], params={}
    )
    return _second(graph, folds, [n for n in moved if n in again], kept, [*branch, barrier])


def _branch(graph: Graph, moved: list[Node], outside: list[Value], folds: list[Node]) -> list[Node]:
    """The first pass: nodes that compute the results of `folds`, in a branch always taken."""
    types = [f.outputs[0].type for f in folds]
    inputs = [Value(v.type, hint=v.hint) for v in outside]
    env: dict[Value, Operand] = dict(zip(outside, inputs, strict=True))
    nodes = copy_nodes(graph.with_(nodes=tuple(moved)), env)
    made = [env[f.outputs[0]] for f in folds]
    passed = Graph("norm_pass", tuple(inputs), tuple(nodes), tuple(made))
    other = tuple(Value(v.type, hint=v.hint) for v in outside)
    zeros = [Literal(_ZERO.get(t.dtype, 0.0), t) for t in types]
    skipped = Graph("no_pass", other, (), tuple(zeros))
    like = folds[-1].like
    hidden = like(
        op="optimization_barrier", inputs=[Literal(True, _BOOL)], types=[_BOOL], params={}
    )
    params = {"new_dtype": np.dtype("int32"), "weak_type": False, "sharding": None}
    index = like(
        op="convert_element_type", inputs=hidden.outputs, types=[Type((), "int32")], params=params
    )
    branch = like(
        op="cond", inputs=[*index.outputs, *outside], types=types, params={},
        regions=(skipped, passed),
    )  # fmt: skip
    return [hidden, index, branch]


def _second(
    graph: Graph, folds: list[Node], again: list[Node], kept: list[Value], first: list[Node]
) -> Graph:
    """The program after the first pass: its backward nodes read what was kept, and what is computed
    of that again, behind a barrier, so that nothing else of the forward program outlives it.
    """
    results = iter(first[-1].outputs)
    env: dict[Value, Operand] = {v: next(results) for v in kept}
    env |= {f.outputs[0]: next(results) for f in folds}
    nodes = [*first, *copy_nodes(graph.with_(nodes=tuple(again)), env)]
    for node in graph:
        if node in folds:
            continue
        if node.phase in (BACKWARD, UPDATE):
            inputs = [env.get(o, o) if isinstance(o, Value) else o for o in node.inputs]
            new = node.like(inputs=inputs)
            env.update(zip(node.outputs, new.outputs, strict=True))
            node = new
        nodes.append(node)
    outputs = [env.get(o, o) if isinstance(o, Value) else o for o in graph.outputs]
    ordered, outputs = in_order(nodes, {}, outputs)
    return drop_dead(graph.with_(nodes=tuple(ordered), outputs=tuple(outputs)))


def _again(graph: Graph, wanted: set[Node]) -> Iterator[Node]:
    """Forward nodes that the branch computes again, so that it is given little more than what the
    second pass keeps anyway: all but products and what products read.
    """
    waiting = [o for n in wanted for o in n.inputs]
    seen: set[Node] = set()
    while waiting:
        o = waiting.pop()
        node = o.node if isinstance(o, Value) else None
        if not isinstance(o, Value) or node is None or node in wanted or node in seen:
            continue
        if not _is_cheap(node) or any(
            not _is_cheap(user) and user.phase == FORWARD for user in graph.users[o]
        ):
            continue
        seen.add(node)
        waiting += node.inputs
        yield node


def _is_cheap(node: Node) -> bool:
    product = op_named(node.op).keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION)
    return not (product or node.regions or node.effects)


def _global(graph: Graph, gradients: tuple[Value, ...]) -> list[Node]:
    """The reductions to numbers, in program order, that updates of other gradients wait for."""
    direct: dict[Value, set[Value]] = {g: {g} for g in gradients}
    through: dict[Value, set[Node]] = {}
    of: dict[Node, set[Value]] = {}
    waited: set[Node] = set()
    for node in graph:
        if node.phase != UPDATE or node.regions:
            continue
        read = [o for o in node.inputs if isinstance(o, Value)]
        grads = set().union(*(direct.get(o, set()) for o in read))
        folds = set().union(*(through.get(o, set()) for o in read))
        if any(of[f] - grads for f in folds) and grads:
            waited |= folds
        for v in node.outputs:
            if grads and not v.type.shape:
                of[node] = grads
                through[v] = folds | {node}
            else:
                direct[v], through[v] = grads, folds
    return [n for n in graph if n in waited]
