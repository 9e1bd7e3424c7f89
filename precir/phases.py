"""Forward, backward, update: what JAX's name stack leaves unsaid, found by data flow."""

from __future__ import annotations

from collections.abc import Sequence

from precir.ir import BACKWARD, FORWARD, UPDATE, Graph, Node, Value


def complete_phases(graph: Graph, default: str = FORWARD) -> None:
    """Give every node of a graph under construction its phase.

    JAX names what it differentiates (`jvp(...)`, `transpose(jvp(...))`). A node it does not name
    belongs to the update if it depends on a gradient, or feeds only such nodes; else it is part
    of the forward program. Where nothing is differentiated all is `default`.
    """
    named = {node for node in graph.nodes if node.phase}
    if any(_is_backward(n) for n in graph.nodes):
        _settle(graph.nodes, _after_gradient(graph.nodes), default)
    for node in graph.nodes:
        node.phase = node.phase or default
        for region in node.regions:
            # A loop that differentiates holds forward nodes too; any other is all of its phase.
            own = node in named or not _has_backward(region)
            complete_phases(region, node.phase if own else default)


def _is_backward(node: Node) -> bool:
    return node.phase == BACKWARD or (not node.phase and any(map(_has_backward, node.regions)))


def _has_backward(graph: Graph) -> bool:
    return any(n.phase == BACKWARD or any(map(_has_backward, n.regions)) for n in graph.nodes)


def _after_gradient(nodes: Sequence[Node]) -> set[Node]:
    """Unnamed nodes that depend on a gradient."""
    gradients: set[Value] = set()
    after: set[Node] = set()
    for node in nodes:
        depends = any(o in gradients for o in node.inputs if type(o) is Value)
        if _is_backward(node):
            gradients.update(node.outputs)
        elif depends and not node.phase:
            after.add(node)
            gradients.update(node.outputs)
    return after


def _settle(nodes: Sequence[Node], after: set[Node], default: str) -> None:
    feeds_model: set[Value] = set()
    for node in reversed(nodes):
        if node in after:
            node.phase = UPDATE
            continue
        if not node.phase and _is_backward(node):
            node.phase = BACKWARD  # a loop around a whole gradient computation
        named = bool(node.phase)
        if named or any(v in feeds_model for v in node.outputs):
            node.phase = node.phase or default
            feeds_model.update(o for o in node.inputs if type(o) is Value)
        else:
            node.phase = UPDATE
