"""Decide what the facts decide: a choice that always falls one way, an extremum with one winner.

Only what is proved of any input counts, nothing that rests on given or observed ranges.
"""

from __future__ import annotations

from precir.domains.fact import PROVED, Fact, negate
from precir.domains.kinds import NAN, NINF, ZERO
from precir.ir import Graph, Node, Operand, Rewrite, Value, map_regions
from precir.passes.facts import Facts
from precir.passes.simplify import drop_dead


def fold_proved(graph: Graph, facts: Facts) -> Graph:
    """The program without what its facts decide; bits stay as they are."""

    def here(g: Graph) -> Graph:
        rewrite = Rewrite(g)
        for node in g:
            chosen = _decided(node, facts)
            if chosen is None:
                rewrite.copy(node)
            else:
                rewrite.map(node.outputs[0], rewrite(chosen))
        return drop_dead(rewrite.finish())

    folded = here(graph) if not any(n.regions for n in graph) else None
    if folded is None:
        folded = here(map_regions(graph, here))
    return graph if len(folded) == len(graph) and folded.nodes == graph.nodes else folded


def _decided(node: Node, facts: Facts) -> Operand | None:
    """The operand that a node's result is, if it is always the same one."""
    if node.op == "select_n":
        which = facts[node.inputs[0]]
        if which.point and which.basis == PROVED and 0 <= which.lo < len(node.inputs) - 1:
            return _if_same(node, node.inputs[1 + int(which.lo)])
    elif node.op in ("max", "min"):
        a, b = (facts[o] for o in node.inputs)
        if max(a.basis, b.basis) == PROVED:
            if node.op == "min":
                a, b = negate(a), negate(b)
            if _not_below(a, b):
                return _if_same(node, node.inputs[0])
            if _not_below(b, a):
                return _if_same(node, node.inputs[1])
    return None


def _not_below(a: Fact, b: Fact) -> bool:
    """Whether max(a, b) is a, whatever the signs of zeros."""
    if (a.flags | b.flags) & NAN:
        return False
    if b.empty and b.flags == NINF and not a.empty:
        return True
    if a.empty or b.empty or not (a.finite and b.finite):
        return False
    return a.lo > b.hi or (a.lo == b.hi and not (a.flags & b.flags & ZERO))


def _if_same(node: Node, operand: Operand) -> Operand | None:
    return operand if isinstance(operand, Value) and operand.type == node.outputs[0].type else None
