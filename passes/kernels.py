"""Compute and quantise in one kernel where that pays: norms, activations and their gradients, a
matrix and its transpose.

A value that is quantised is looked at with all that reads it (`precir.passes.sinks`). Is it a norm
or an activation of something (`fused_norm`, `fused_act`), the kernel computes it; and where a
product sums over its rows, the transpose that this product reads is written in the same pass. What
the kernel does not replace reads a wide copy that it writes too. The gradients of norms, which are
not quantised as they are computed, come first (`fused_gradients`). The rules:

- the scale stays what the recipe says. Where it is measured on the value itself, or falls back to
  that, the kernel runs first without writing anything but the largest.
- a kernel computes in float32 and rounds once, where the program may have rounded to 16 bits
  between.
- a float32 value that no kernel computes, and that is only quantised, is stored in bfloat16 on the
  way where the recipe computes in that: it is rounded twice, and never stored wider than an
  activation.
- a kernel is used where the model of `fused_cost` says that it takes less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from precir.ir import Graph, Node, Rewrite, Value
from precir.passes.epilogues import fuse_epilogues, quantise_results
from precir.passes.fused_build import Builder, stored_value
from precir.passes.fused_cost import Cost, Fused
from precir.passes.fused_gradients import fuse_gradients
from precir.passes.measured import measure_products
from precir.passes.narrowing import NARROW, narrow_values
from precir.passes.sinks import Sink, find_sinks
from precir.passes.stored import handed
from precir.passes.turned_products import turn_products
from precir.passes.update_stored import update_stored


def fuse_kernels(
    graph: Graph, compute: str = "float32", *, alone: bool = False
) -> tuple[Graph, tuple[Fused, ...]]:
    """The program with fused kernels, at every level, and what was decided.

    `compute` is the dtype of activations. Products that are only read transposed are multiplied the
    other way round first. A program that quantises nothing computes its gradients as it did. With
    `alone`, what is an argument of the program is quantised as it lies alone.
    """
    decided: list[Fused] = []
    low = any(find_sinks(part) for part in _levels(graph))
    given = frozenset(graph.inputs if alone else ())
    return _level(graph, given, compute, low, 1, decided), tuple(decided)


def _levels(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph:
        for region in node.regions:
            yield from _levels(region)


def _level(
    graph: Graph,
    given: frozenset[Value],
    compute: str,
    low: bool,
    times: int | None,
    decided: list[Fused],
) -> Graph:
    """One graph and all below it; loops run as often as they say. `given` are arguments of the
    program, as this graph has them, that are quantised alone.
    """
    rewrite = Rewrite(graph)
    for node in graph:
        inside = times
        if node.op == "while" or times is None:
            inside = None
        elif node.op == "scan":
            inside = times * int(node.params["length"])
        theirs = _handed(node, given)
        regions = tuple(
            _level(r, g, compute, low, inside, decided)
            for r, g in zip(node.regions, theirs, strict=True)
        )
        if all(a is b for a, b in zip(regions, node.regions, strict=True)):
            rewrite.copy(node)
        else:
            inputs = [rewrite(o) for o in node.inputs]
            rewrite.replace(node, node.like(inputs=inputs, regions=regions))
    graph, updated = update_stored(rewrite.finish(), times)
    decided += updated
    graph, found = quantise_results(turn_products(graph), times)
    decided += found
    if low:
        graph, found = fuse_gradients(graph, times)
        decided += found
    graph = _built(graph, Builder.computed, times, decided, given)
    if compute == NARROW:
        graph, narrowed = narrow_values(graph)
        why = "only quantised: stored in 16 bits"
        decided += [Fused("cast", n, True, times, Cost(size), why) for n, size in narrowed]
    graph = _built(graph, Builder.both, times, decided, given)
    graph, found = fuse_epilogues(graph, times)
    decided += found
    graph, found = measure_products(graph, times)
    decided += found
    return graph


def _handed(node: Node, given: frozenset[Value]) -> list[frozenset[Value]]:
    """What of `given` each sub-graph of a node has, a layer of it where a loop goes over it."""
    found: list[set[Value]] = [set() for _ in node.regions]
    for each in handed(node) if given else ():
        if stored_value(node.inputs[each.operand]) in given:
            found[each.region].add(node.regions[each.region].inputs[each.input])
    return [frozenset(f) for f in found]


def _built(
    graph: Graph,
    decide: Callable[[Builder, Sink], Fused | None],
    times: int | None,
    decided: list[Fused],
    given: frozenset[Value],
) -> Graph:
    builder = Builder(graph, times, given)
    for sink in find_sinks(graph):
        found = decide(builder, sink)
        if found is not None:
            decided.append(found)
    return builder.finish()
