"""Return values from the middle of a program, out of loops, branches and all other sub-programs.

The part of every instrumentation that is the same: what is taken of a value (the value itself, or
statistics of it) and how loops collect it is a `Probe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from precir.ir import Graph, Node, Operand, Rewrite, Type, Value
from precir.passes.taking import LIFTS, Found, Inside, Lift, Probe, checked_axes, vary, zero

__all__ = ["RAW", "Choose", "Exposed", "Inside", "Probe", "expose", "is_open"]

Choose = Callable[[Value, Inside], bool]

RAW: Final = Probe(take=lambda *_: ())
"""The value itself: stacked by scans, of the last iteration of a while."""


@dataclass(frozen=True)
class Exposed:
    """A value that an exposing graph returns.

    Attributes:
      value: the value, of the graph that was given or of a sub-graph of it.
      inside: where it is.
      output: which result of the new graph holds what was taken of it.
      made: which result of the new graph tells, as a boolean, whether it was ever made; None where
        that is certain. Of a value in a branch not taken, or a loop that never ran, zeros are held.
      leading: the sizes of the axes that scans (iterations, in the order they ran through `xs`) and
        shard_maps (devices) put in front, outermost first. The booleans of `made` have the first
        of these axes: as many as stood around the branch.
    """

    value: Value
    inside: Inside
    output: int
    made: int | None
    leading: tuple[int, ...]


def expose(graph: Graph, chosen: Choose, probe: Probe = RAW) -> tuple[Graph, tuple[Exposed, ...]]:
    """A graph that also returns something of each chosen value.

    The results of the given graph come first and are computed as they were. `chosen` is asked of
    the inputs and of every node's results, also in the sub-graphs of loops, branches, remat, custom
    rules and shard_map. Values that no array of numbers holds (quantised pairs, PRNG keys, tokens)
    are not asked about. In a while, values of the condition are those of its last evaluation, after
    the loop. Not looked into are the while of a batch whose examples stop one by one, and
    conditions with side effects.
    """
    exposer = _Exposer(chosen, probe)
    new, found = exposer.graph(graph, ())
    outputs: list[Operand] = list(new.outputs)
    exposed = []
    flags: dict[Operand, int] = {}
    for f in found:
        if f.made is not None and f.made not in flags:
            flags[f.made] = len(outputs)
            outputs.append(f.made)
        made = None if f.made is None else flags[f.made]
        exposed.append(Exposed(f.value, f.inside, len(outputs), made, f.leading))
        outputs.append(f.taken)
    return new.with_(outputs=tuple(outputs)), tuple(exposed)


class _Exposer:
    def __init__(self, chosen: Choose, probe: Probe) -> None:
        self.chosen = chosen
        self.probe = probe

    def graph(self, graph: Graph, inside: Inside) -> tuple[Graph, list[Found]]:
        """The graph with what is taken computed in it, not yet returned."""
        rewrite = Rewrite(graph)
        found: list[Found] = []
        for value in graph.inputs:
            self.take(value, value, inside, rewrite, found)
        for node in graph:
            found += self.node(node, inside, rewrite)
            for value in node.outputs:
                self.take(value, rewrite(value), inside, rewrite, found)
        return rewrite.finish(), found

    def node(self, node: Node, inside: Inside, rewrite: Rewrite) -> list[Found]:
        """Copy a node, and what is taken in its sub-graphs out of it."""
        if not is_open(node):
            rewrite.copy(node)
            return []

        def region(index: int) -> tuple[Graph, list[Found]]:
            return self.graph(node.regions[index], (*inside, (node, index)))

        axes = checked_axes(inside)
        return LIFTS[node.op](Lift(node, region, rewrite, self.probe, axes))

    def take(
        self, old: Value, new: Operand, inside: Inside, rewrite: Rewrite, found: list[Found]
    ) -> None:
        if not isinstance(new, Value) or not _held(old.type) or not self.chosen(old, inside):
            return
        for node in self.probe.take(new, old, inside):
            rewrite.add(node)
            new = node.outputs[0]
        if inside and inside[-1][0].op != "shard_map":
            new = vary(new, checked_axes(inside), inside[-1][0], rewrite.nodes)
        found.append(Found(old, inside, new))


def _held(type_: Type) -> bool:
    """Whether it is an array of numbers."""
    return type_.scale is None and zero(type_) is not None


def is_open(node: Node) -> bool:
    """Whether values inside of a node's sub-graphs can be exposed."""
    batched = node.op == "while" and bool(node.regions[0].outputs[0].type.shape)
    return node.op in LIFTS and not batched
