"""Delayed scaling: scales from the largest elements of the steps before, kept as state.

Each quantisation point has a row of `amax_history` (newest first). Its scale comes from the row's
largest, or, while the row is empty, from the tensor itself; what it sees in this step is taken out
of whatever loop or branch it is in by its maximum, over iterations, micro-batches and devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value, map_regions
from precir.passes.expose import Probe, expose
from precir.passes.feeding import feed, reachable, within

HISTORY = "amax_history"
_SCALAR = Type((), "float32")


def delay_scales(graph: Graph, steps: int) -> tuple[Graph, int]:
    """The program that takes the history (float32[points, steps]) as its last input and returns
    the next as its last result, and the number of points: 0 if there are none, and no history.

    Points whose amax cannot be taken out (in the condition of a loop, or a loop of a batch) are
    scaled by their own tensors instead.
    """
    graph = _without_closed(graph)
    count = sum(map(_is_delayed, within(graph)))
    if not count:
        return graph, 0
    history = Value(Type((count, steps), "float32"), hint=HISTORY)
    largest = Node("recent_amax", [history], [Type((count,), "float32")])
    seen = largest.outputs[0]
    seen.hint = "seen"  # what sub-programs call it
    points = _Points()
    fed = feed(graph, seen, _is_delayed, points.scale)
    fed = fed.with_(inputs=(*fed.inputs, history), nodes=(largest, *fed.nodes))
    return _recorded(fed, points.amaxes, history), count


def _is_delayed(node: Node) -> bool:
    return node.op == "quantize" and node.params.get("scaling") == "delayed"


@dataclass
class _Points:
    """`amaxes[row]` is what the point of that row sees."""

    amaxes: list[Value] = field(default_factory=list)

    def scale(self, graph: Graph, seen: Value) -> Graph:
        """Scale the points of one graph, sub-graphs left out, by their rows of `seen`."""
        points = [n for n in graph if _is_delayed(n)]
        if not points:
            return graph
        rewrite = Rewrite(graph)
        rows: dict[Node, Node] = {}
        for node in points:  # first of all, so that layers stay alike
            index = len(self.amaxes) + len(rows)
            rows[node] = rewrite.add(Node("element", [seen], [_SCALAR], {"index": index}))
        amaxes: dict[Operand, Value] = {}
        for node in graph:
            if node not in rows:
                rewrite.copy(node)
                continue
            x, params = rewrite(node.inputs[0]), {"dtype": node.params["dtype"]}
            if x not in amaxes:
                made = node.like(op="finite_amax", inputs=[x], types=[_SCALAR], params={})
                amaxes[x] = rewrite.add(made).outputs[0]
            self.amaxes.append(amaxes[x])
            operands = [rows[node].outputs[0], amaxes[x]]
            scale = node.like(op="delayed_scale", inputs=operands, types=[_SCALAR], params=params)
            rewrite.add(scale)
            given = {**node.params, "scaling": "given"}
            rewrite.replace(node, node.like(inputs=[x, scale.outputs[0]], params=given))
        return rewrite.finish()


def _without_closed(graph: Graph) -> Graph:
    """The graph, its points that cannot be reached scaled by their own tensors."""
    rewrite = Rewrite(graph)
    for node in graph:
        open_ = reachable(node)
        regions = tuple(
            _without_closed(r) if i in open_ else _current(map_regions(r, _current))
            for i, r in enumerate(node.regions)
        )
        if all(a is b for a, b in zip(regions, node.regions, strict=True)):
            rewrite.copy(node)
        else:
            inputs = [rewrite(o) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs, regions=regions))
    return rewrite.finish()


def _current(graph: Graph) -> Graph:
    rewrite = Rewrite(graph)
    for node in graph:
        if _is_delayed(node):
            inputs = [rewrite(o) for o in node.inputs]
            params = {**node.params, "scaling": "current"}
            rewrite.replace(node, node.like(inputs=inputs, params=params))
        else:
            rewrite.copy(node)
    return rewrite.finish()


def _recorded(graph: Graph, amaxes: list[Value], history: Value) -> Graph:
    """The graph that also returns the history with what was seen in this step."""

    def merge(a: Operand, b: Operand) -> Node:
        return Node("max", [a, b], [_SCALAR])

    points = set(amaxes)
    probe = Probe(lambda *_: (), merge, stacked=False)
    new, exposed = expose(graph, lambda value, _: value in points, probe)
    nodes = list(new.nodes)
    taken: dict[Value, Operand] = {}
    for e in exposed:
        found = new.outputs[e.output]
        if e.leading:  # one for each device
            nodes.append(Node("finite_amax", [found], [_SCALAR]))
            found = nodes[-1].outputs[0]
        taken[e.value] = found
    record = Node("record_amax", [history, *(taken[a] for a in amaxes)], [history.type])
    outputs = (*new.outputs[: len(graph.outputs)], record.outputs[0])
    return new.with_(nodes=(*nodes, record), outputs=outputs)
