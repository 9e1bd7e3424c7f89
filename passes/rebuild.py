"""Put nodes in an executable order again, and copy them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from precir.ir import Graph, Node, Operand, Value


def in_order(
    nodes: Sequence[Node], now: Mapping[Value, Operand], outputs: Sequence[Operand]
) -> tuple[list[Node], list[Operand]]:
    """The nodes with what is new in the place of what was, each after those it reads, as near to
    their old order as that allows.
    """
    position = {node: n for n, node in enumerate(nodes)}
    waits: dict[Node, int] = {}
    readers: dict[Node, list[Node]] = {}
    last: Node | None = None
    for node in nodes:
        read = [now.get(o, o) if isinstance(o, Value) else o for o in node.inputs]
        before = {o.node for o in read if isinstance(o, Value) and o.node in position}
        if node.effects:
            before |= {last} if last is not None else set()
            last = node
        waits[node] = len(before)
        for b in before:
            assert b is not None
            readers.setdefault(b, []).append(node)
    ready = [position[n] for n, count in waits.items() if not count]
    heapify(ready)
    new: dict[Value, Operand] = {}
    ordered: list[Node] = []

    def current(o: Operand) -> Operand:
        o = now.get(o, o) if isinstance(o, Value) else o
        return new.get(o, o) if isinstance(o, Value) else o

    while ready:
        node = nodes[heappop(ready)]
        inputs = [current(o) for o in node.inputs]
        if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
            changed = node.like(inputs=inputs)
            new.update(zip(node.outputs, changed.outputs, strict=True))
            ordered.append(changed)
        else:
            ordered.append(node)
        for reader in readers.get(node, ()):
            waits[reader] -= 1
            if not waits[reader]:
                heappush(ready, position[reader])
    return ordered, [current(o) for o in outputs]


def copy_nodes(graph: Graph, env: dict[Value, Operand]) -> list[Node]:
    """Nodes of their own that compute what those of `graph` do, sub-graphs too; `env` gives the
    inputs, and has all values in the end.
    """
    nodes = []
    for node in graph:
        inputs = [env.get(o, o) if isinstance(o, Value) else o for o in node.inputs]
        new = node.like(inputs=inputs, regions=tuple(copied(r) for r in node.regions))
        nodes.append(new)
        env.update(zip(node.outputs, new.outputs, strict=True))
    return nodes


def copied(graph: Graph) -> Graph:
    """A graph of its own that is equal to `graph`."""
    inputs = tuple(Value(v.type, hint=v.hint) for v in graph.inputs)
    env: dict[Value, Operand] = dict(zip(graph.inputs, inputs, strict=True))
    nodes = copy_nodes(graph, env)
    outputs = [env.get(o, o) if isinstance(o, Value) else o for o in graph.outputs]
    return graph.with_(inputs=inputs, nodes=tuple(nodes), outputs=tuple(outputs))
