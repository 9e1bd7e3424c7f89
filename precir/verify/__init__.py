"""What every graph must satisfy.

Passes take a valid graph and return a valid graph; `verify` runs between them.
"""

from __future__ import annotations

from collections.abc import Iterator

from precir.errors import VerifyError
from precir.ir import Graph, Node
from precir.text import node_text
from precir.verify.invariants import INVARIANTS, constants_are_there
from precir.verify.results import results_are_as_jax_says

__all__ = ["INVARIANTS", "verify"]


def verify(graph: Graph, *, deep: bool = False, after: str | None = None) -> None:
    """Raise a VerifyError at the first invariant that `graph` or a sub-graph of it breaks.

    Args:
      graph: what a pass made.
      deep: also ask JAX for the types of each node's results (milliseconds per kind of node).
      after: the pass that made it, named in the error.
    """
    for part in _parts(graph):
        for invariant in INVARIANTS:
            for node, what in invariant(part):
                raise _error(part, node, what, after)
    for whole in (constants_are_there, results_are_as_jax_says) if deep else (constants_are_there,):
        for node, what in whole(graph):
            raise _error(graph, node, what, after)


def _parts(graph: Graph) -> Iterator[Graph]:
    """The graph and all below it."""
    yield graph
    for node in graph.nodes:
        for region in node.regions:
            yield from _parts(region)


def _error(graph: Graph, node: Node | None, what: str, after: str | None) -> VerifyError:
    """Where: the node as text and the user's line."""
    blame = f" made by {after}" if after else ""
    place = [str(node.source)] if node and node.source.where else []
    where = ", ".join([*place, node_text(graph, node) if node else f"graph {graph.name}"])
    return VerifyError(f"broken graph{blame}: {what}", where=where)
