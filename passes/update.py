"""Move parameter updates into the backward loops that make their gradients (LOMO).

LOMO (arXiv 2306.09782) updates a parameter as soon as its gradient exists, so that one layer's
gradients are alive at a time. For layers written out one by one, the compiler behind us orders the
program so by itself; for layers in a `scan` it cannot, since all gradients are the loop's stacked
results. This pass makes the update a part of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from precir.ir import BACKWARD, UPDATE, Graph, Node, Operand, Rewrite, Value
from precir.passes.update_apart import gradients_of, sum_apart
from precir.passes.update_build import fuse
from precir.passes.update_plan import Plan, Refusal, plan_update
from precir.text.types import spell_type


@dataclass(frozen=True)
class Update:
    """What became of the updates that read the gradients of one backward loop.

    Attributes:
      scan: the loop as it was.
      stacks: paths of the parameters and moments updated in place.
      gradients: number and bytes of the stacks of gradients that are no more.
      passes: how often the backward loop runs.
      blocker: of updates left alone, the node that stands in the way.
      reason: why they are left alone; of fused ones, what is still to say.
    """

    scan: Node | None
    stacks: tuple[str, ...]
    gradients: tuple[Value, ...]
    passes: int
    blocker: Node | None = None
    reason: str = ""


def fuse_updates(
    graph: Graph, carried: Sequence[tuple[int, int]] = ()
) -> tuple[Graph, tuple[Update, ...]]:
    """The program with every update that can be in the loop that makes its gradients.

    `carried` pairs the numbers of inputs and of the results that replace them.
    """
    paired = {graph.outputs[new]: graph.inputs[old] for old, new in carried}
    found: list[Update] = []
    return _level(graph, paired, set(graph.inputs), found), tuple(found)


def _level(
    graph: Graph,
    paired: Mapping[Operand, Value],
    spare: set[Value],
    found: list[Update],
    within: bool = False,
) -> Graph:
    """One level, the last loop first, then its sub-graphs: what has moved into a loop may move on
    into a loop inside it. `within` says that the level is the body of a loop that an update has
    moved into.
    """
    done: set[Node] = set()
    fused: set[int] = set()
    while True:
        scan = next((n for n in reversed(graph.nodes) if _is_open(n) and n not in done), None)
        if scan is None:
            break
        done.add(scan)
        plan = plan_update(graph, scan, paired, spare)
        found += _updates(plan, graph)
        if _pays(plan):
            numbers = {o: i for i, o in enumerate(graph.outputs)}
            at = {numbers[r]: v for r, v in paired.items()}
            graph, loops = fuse(graph, plan)
            paired = {graph.outputs[i]: v for i, v in at.items()}
            done.update(loops)
            fused.update(id(loop.regions[0]) for loop in loops)
    if not fused and not within:
        apart = _apart(graph, found, said=bool(done))
        if apart is not graph:
            return apart
    rewrite = Rewrite(graph)
    for node in graph:
        regions = tuple(_inside(node, i, found, id(r) in fused) for i, r in enumerate(node.regions))
        if regions == node.regions:
            rewrite.copy(node)
        else:
            rewrite.replace(
                node, node.like(inputs=[rewrite(o) for o in node.inputs], regions=regions)
            )
    return rewrite.finish()


def _apart(graph: Graph, found: list[Update], *, said: bool) -> Graph:
    """A level whose layers are in no loop."""
    gradients = gradients_of(graph)
    if not gradients:
        return graph
    apart = sum_apart(graph, gradients)
    if apart is None and said:
        return graph
    if apart is None:
        reason = "no loop makes these: the compiler updates each as soon as its gradient is there"
        found.append(Update(None, (), gradients, 0, None, reason))
        return graph
    reason = "no loop makes these: what they are all summed up for has a backward pass of its own"
    found.append(Update(None, (), gradients, 2, None, reason))
    return apart


def _is_open(node: Node) -> bool:
    return node.op == "scan" and node.phase == BACKWARD


def _inside(node: Node, index: int, found: list[Update], within: bool) -> Graph:
    """A sub-graph; of a loop, what is carried may be overwritten, and only that."""
    region = node.regions[index]
    if node.op != "scan":
        return _level(region, {}, set(region.inputs), found)
    first, count = node.params["num_consts"], node.params["num_carry"]
    carry = region.inputs[first : first + count]
    paired = dict(zip(region.outputs[:count], carry, strict=True))
    return _level(region, paired, set(carry), found, within)


def _updates(plan: Plan, graph: Graph) -> list[Update]:
    made = []
    if _pays(plan):
        stacks = tuple(_path(r.over) for r in plan.results if r.over is not None)
        blocker, reason = None, ""
        for over, reader in plan.copies[:1]:
            blocker, reason = reader, f"also reads {over.hint}, which may cost a copy of it"
        made.append(Update(plan.scan, stacks, plan.gradients, plan.passes, blocker, reason))
    refused: dict[tuple[str, str], list[Refusal]] = {}
    for r in plan.refusals:
        if r.updates:
            where = f"{r.blocker.op} {r.blocker.source}" if r.blocker is not None else ""
            refused.setdefault((where, r.reason), []).append(r)
    for (_, reason), alike in refused.items():
        gradients = tuple(v for r in alike for v in r.gradients)
        made.append(Update(plan.scan, (), gradients, 0, alike[0].blocker, reason))
    sums = tuple(_summed(plan.scan, graph))
    if sums:
        reason = "these are sums over the iterations of the loop, known after the last one"
        made.append(Update(plan.scan, (), sums, 0, None, reason))
    return made


def _pays(plan: Plan) -> bool:
    return bool(plan.gradients) and any(r.over is not None for r in plan.results)


def _summed(scan: Node, graph: Graph) -> Iterator[Value]:
    """Gradients that a loop carries: of a weight that all layers share, or of micro-batches."""
    for v in scan.outputs[: scan.params["num_carry"]]:
        if v.type.rank and any(u.phase == UPDATE for u in graph.users.get(v, ())):
            yield v


def _path(value: Value) -> str:
    """The user's path of a state, or its type where it is carried by a loop around."""
    carried = value.hint.startswith("arg")
    return f"carried {spell_type(value.type)}" if carried else value.hint
