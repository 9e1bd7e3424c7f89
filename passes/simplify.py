"""Inline what is only a call, fold whole numbers, drop what nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from precir.ir import Graph, Literal, Node, Operand, Rewrite, Value, map_regions

_CALLS = ("custom_jvp_call", "custom_vjp_call")


def simplify(graph: Graph) -> Graph:
    """Inline custom-rule calls (JAX has applied their rules wherever the program is
    differentiated), fold scalar arithmetic on whole numbers, compute the same thing once within
    a module, and drop nodes without side effects that no output depends on.
    """

    def here(g: Graph) -> Graph:
        return drop_dead(share_common(fold_integers(inline_calls(g))))

    return here(map_regions(graph, here))


def inline_calls(graph: Graph) -> Graph:
    """Replace each call of a custom rule by its body."""
    if not any(_is_call(n) for n in graph.nodes):
        return graph
    rewrite = Rewrite(graph)
    for node in graph:
        if _is_call(node):
            outputs = _splice(rewrite, node.regions[0], [rewrite(o) for o in node.inputs])
            for old, new in zip(node.outputs, outputs, strict=True):
                rewrite.map(old, new)
        else:
            rewrite.copy(node)
    return rewrite.finish()


def _is_call(node: Node) -> bool:
    plain_remat = node.op == "remat" and not node.params["differentiated"]
    return node.op in _CALLS or plain_remat


def _splice(rewrite: Rewrite, body: Graph, arguments: list[Operand]) -> list[Operand]:
    env: dict[Value, Operand] = dict(zip(body.inputs, arguments, strict=True))

    def read(o: Operand) -> Operand:
        return env.get(o, o) if isinstance(o, Value) else o

    for node in body:
        inputs = [read(o) for o in node.inputs]
        if _is_call(node):
            made: list[Operand] = _splice(rewrite, node.regions[0], inputs)
        else:
            made = list(rewrite.add(node.like(inputs=inputs)).outputs)
        env.update(zip(node.outputs, made, strict=True))
    return [read(o) for o in body.outputs]


def drop_dead(graph: Graph) -> Graph:
    """Drop nodes that neither an output nor a side effect depends on."""
    live: set[Value] = {o for o in graph.outputs if isinstance(o, Value)}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.effects or any(v in live for v in node.outputs):
            kept.append(node)
            live.update(o for o in node.inputs if isinstance(o, Value))
    if len(kept) == len(graph.nodes):
        return graph
    return graph.with_(nodes=tuple(reversed(kept)))


# Exact in every format, so that folding changes no bit. Floats are left to XLA.
_FOLDS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "select_n": lambda pick, *cases: cases[int(pick)],
    "convert_element_type": lambda x: x,
}  # fmt: skip
_WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def fold_integers(graph: Graph) -> Graph:
    """Evaluate scalar nodes whose operands are all whole-number literals."""
    rewrite = Rewrite(graph)
    for node in graph:
        folded = _folded(node, [rewrite(o) for o in node.inputs]) if node.op in _FOLDS else None
        if folded is None:
            rewrite.copy(node)
        else:
            rewrite.map(node.outputs[0], folded)
    return rewrite.finish()


def _folded(node: Node, operands: list[Operand]) -> Literal | None:
    kind = node.outputs[0].type
    literals = [o for o in operands if isinstance(o, Literal)]
    whole = all(o.type.dtype in _WHOLE for o in literals) and kind.dtype in _WHOLE
    if len(literals) != len(operands) or not whole or kind.shape:
        return None
    with np.errstate(over="ignore"):
        value = _FOLDS[node.op](*(np.asarray(o.value, o.type.dtype)[()] for o in literals))
        return Literal(np.asarray(value).astype(kind.dtype).item(), kind)


def share_common(graph: Graph) -> Graph:
    """Merge equal nodes of one scope that read the same values.

    Within a scope only: a value shared between layers would make the first layer unlike the rest,
    and the compiler behind us merges it anyway.
    """
    rewrite = Rewrite(graph)
    seen: dict[Any, Node] = {}
    for node in graph:
        if not node.scope or node.regions or node.effects or not node.inputs:
            rewrite.copy(node)
            continue
        inputs = tuple(rewrite(o) for o in node.inputs)
        try:
            key = (node.op, node.scope, node.phase, inputs, *node.params.items())
            known = seen.get(key)
        except TypeError:  # a parameter that cannot be hashed
            rewrite.copy(node)
            continue
        if known is None or not any(isinstance(o, Value) for o in inputs):
            seen[key] = rewrite.copy(node)
        else:
            for old, new in zip(node.outputs, known.outputs, strict=True):
                rewrite.map(old, new)
    return rewrite.finish()
