"""Inline what is only a call, drop what nobody reads."""

from __future__ import annotations

from precir.ir import Graph, Node, Operand, Rewrite, Value, map_regions

_CALLS = ("custom_jvp_call", "custom_vjp_call")


def simplify(graph: Graph) -> Graph:
    """Inline custom-rule calls (JAX has applied their rules wherever the program is
    differentiated) and drop nodes without side effects that no output depends on."""
    return drop_dead(inline_calls(map_regions(graph, lambda g: drop_dead(inline_calls(g)))))


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
