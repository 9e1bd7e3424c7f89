"""Hand a value of the program into its loops, branches and other sub-programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from jax.sharding import PartitionSpec

from precir.ir import Graph, Node, Operand, Rewrite, Value
from precir.passes.expose import is_open

Use = Callable[[Graph, Value], Graph]
Wanted = Callable[[Node], bool]


def feed(graph: Graph, value: Value, wanted: Wanted, use: Use) -> Graph:
    """The program in which every sub-graph with a wanted node in it has `value` at hand.

    Args:
      graph: the program, or a sub-graph that has `value` already.
      value: a value that does not depend on the graph: an input to be.
      wanted: asked of every node.
      use: makes of a graph, and of the value as it is called in there, the graph that uses it;
        inner graphs first.

    Loops take it as a constant, branches and shard_maps (which replicate it) as one more operand.
    What `reachable` does not reach is left as it is: conditions of loops, and sub-graphs that
    nothing can be taken out of (`is_open`).
    """
    rewrite = Rewrite(graph)
    for node in graph:
        chosen = [i for i in reachable(node) if _holds(node.regions[i], wanted)]
        if not chosen:
            rewrite.copy(node)
            continue
        at, params = FEEDS[node.op](node)
        regions = list(node.regions)
        for i in reachable(node):
            inner = Value(value.type, hint=value.hint)
            region = feed(regions[i], inner, wanted, use) if i in chosen else regions[i]
            place = at if node.op != "while" else at - node.params["cond_nconsts"]
            if node.op == "cond":
                place = at - 1
            inputs = (*region.inputs[:place], inner, *region.inputs[place:])
            regions[i] = region.with_(inputs=inputs)
        operands: list[Operand] = [rewrite(o) for o in node.inputs]
        operands.insert(at, value)
        params = {**node.params, **params}
        rewrite.replace(node, node.like(inputs=operands, regions=tuple(regions), params=params))
    return use(rewrite.finish(), value)


def reachable(node: Node) -> list[int]:
    """Which sub-graphs of a node a value can be handed into, and out of."""
    if node.op not in FEEDS or not is_open(node):
        return []
    return [1] if node.op == "while" else list(range(len(node.regions)))


def within(graph: Graph) -> list[Node]:
    """Every node of the graph and of the sub-graphs that can be reached, in program order."""
    found = []
    for node in graph:
        found.append(node)
        for i in reachable(node):
            found += within(node.regions[i])
    return found


def _holds(graph: Graph, wanted: Wanted) -> bool:
    return any(map(wanted, within(graph)))


# -- into each op: before which operand, and the parameters that change ----------------------------


def _scan(node: Node) -> tuple[int, dict[str, Any]]:
    count = node.params["num_consts"]
    return count, {"num_consts": count + 1}


def _while(node: Node) -> tuple[int, dict[str, Any]]:
    count = node.params["body_nconsts"]
    return node.params["cond_nconsts"] + count, {"body_nconsts": count + 1}


def _last(node: Node) -> tuple[int, dict[str, Any]]:
    return len(node.inputs), {}


def _remat(node: Node) -> tuple[int, dict[str, Any]]:
    prevent = node.params["prevent_cse"]
    held = prevent if isinstance(prevent, bool) else (*prevent, False)
    return len(node.inputs), {"prevent_cse": held}


def _shard_map(node: Node) -> tuple[int, dict[str, Any]]:
    replicated: Any = PartitionSpec  # which its stubs do not describe
    return len(node.inputs), {"in_specs": (*node.params["in_specs"], replicated())}


FEEDS: Final[dict[str, Callable[[Node], tuple[int, dict[str, Any]]]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _last,
    "remat": _remat,
    "custom_jvp_call": _last,
    "custom_vjp_call": _last,
    "shard_map": _shard_map,
}
