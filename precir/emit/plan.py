"""Roll repeated stretches of a graph into loops over one body.

Two nodes are alike if they would be written the same. A stretch of nodes that repeats and whose
data flow is the same in each copy becomes a `Loop`: a body graph, ports (what goes in at each
copy) and results (what comes out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from precir.emit.repeat import Run, find_runs
from precir.ir import Graph, Node, Operand, Value


@dataclass(frozen=True)
class Port:
    """One input of a loop's body: `values[c]` in copy c. Carried if copies after the first take
    result `carried` of the copy before.
    """

    values: tuple[Operand, ...]
    carried: int | None = None

    @cached_property
    def invariant(self) -> bool:
        return self.carried is None and all(v is self.values[0] for v in self.values)


@dataclass(frozen=True)
class Result:
    """One output of a loop's body: `values[c]` in copy c. `collected` if copies other than the
    last are read outside the loop; `carried` if the next copy reads it.
    """

    values: tuple[Value, ...]
    collected: bool
    carried: bool
    last: bool


@dataclass(frozen=True)
class Loop:
    """`count` copies of `body`, whose inputs are `ports` and whose outputs are `results`."""

    body: Graph
    ports: tuple[Port, ...]
    results: tuple[Result, ...]

    @property
    def count(self) -> int:
        return len(self.ports[0].values) if self.ports else len(self.results[0].values)


Item = Node | Loop


def plan(graph: Graph, key_of: Callable[[Node], int]) -> list[Item]:
    """The graph's nodes in order, repeats rolled into loops."""
    nodes = graph.nodes
    if len(nodes) < 6:
        return list(nodes)
    position = {node: i for i, node in enumerate(nodes)}
    readers = _readers(graph, position)
    items: list[Item] = []
    done = 0
    keys = [key_of(n) for n in nodes]
    for run in find_runs(keys, lambda r: _best_offset(nodes, r, readers)):
        found = _loop(graph, run, position, readers)
        if found is None:
            continue
        start, stop, loop = found
        items.extend(nodes[done:start])
        items.append(loop)
        done = stop
    items.extend(nodes[done:])
    return items


def _readers(graph: Graph, position: Mapping[Node, int]) -> dict[Value, list[int]]:
    """Positions that read each value; the graph's end counts as one more position."""
    readers: dict[Value, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for operand in node.inputs:
            if type(operand) is Value:
                readers.setdefault(operand, []).append(i)
    for operand in graph.outputs:
        if type(operand) is Value:
            readers.setdefault(operand, []).append(len(graph.nodes))
    return readers


def _loop(
    graph: Graph,
    run: Run,
    position: Mapping[Node, int],
    readers: Mapping[Value, list[int]],
) -> tuple[int, int, Loop] | None:
    nodes, period = graph.nodes, run.period
    start = run.start
    count = (run.stop - start) // period
    signatures = [
        _signature(nodes[start + c * period : start + (c + 1) * period], start, period, c, position)
        for c in range(count)
    ]
    first, copies = _uniform(signatures)
    if copies < 2 or (copies - 1) * period < 4:
        return None
    start += first * period
    return start, start + copies * period, _build(nodes, start, period, copies, position, readers)


def _best_offset(nodes: Sequence[Node], run: Run, readers: Mapping[Value, list[int]]) -> int:
    """Where copies should begin: where fewest values cross from one to the next, at the
    outermost change of scope.
    """
    if run.slack == 0:
        return 0
    width = run.slack + 1
    crossing = [0] * (width + 1)
    first = run.start + run.period
    for i in range(run.start, first + run.slack):
        for value in nodes[i].outputs:
            reads = [r for r in readers.get(value, ()) if r < i + run.period + 1]
            if not reads:
                continue
            low, high = max(i + 1, first), min(max(reads), first + run.slack)
            if low <= high:
                crossing[low - first] += 1
                crossing[high - first + 1] -= 1
    best, best_score, live = 0, (float("inf"), 0), 0
    for offset in range(width):
        live += crossing[offset]
        at = first + offset
        score = (
            live,
            _shared_depth(nodes[at - 1].scope, nodes[at].scope if at < len(nodes) else ""),
        )
        if score < best_score:
            best, best_score = offset, score
    return best


def _shared_depth(a: str, b: str) -> int:
    depth = 0
    for x, y in zip(a.split("/"), b.split("/"), strict=False):
        if x != y:
            break
        depth += 1
    return depth


Slot = tuple[int, int, int]  # (how many copies back, position in the copy, output)


def _signature(
    copy: Sequence[Node], start: int, period: int, index: int, position: Mapping[Node, int]
) -> list[Slot | None]:
    """For each operand of a copy: where in this or an earlier copy it was made, None if outside."""
    slots: list[Slot | None] = []
    for node in copy:
        for operand in node.inputs:
            if type(operand) is not Value or operand.node is None:
                slots.append(None)
                continue
            at = position[operand.node] - start
            back = index - at // period
            slots.append(None if at < 0 else (back, at % period, operand.index))
    return slots


def _uniform(signatures: Sequence[list[Slot | None]]) -> tuple[int, int]:
    """The longest stretch of copies with one data flow: (first copy, how many)."""
    best = (0, 1)
    first = 0
    while first < len(signatures) - 1:
        count = 1
        pattern = signatures[first + 1]
        while first + count < len(signatures) and _fits(signatures[first + count], pattern, count):
            count += 1
        if count > 1 and not _starts(signatures[first], pattern):
            count = 1
        if count > best[1]:
            best = (first, count)
        first += max(1, count - 1)
    return best


def _fits(slots: list[Slot | None], pattern: list[Slot | None], index: int) -> bool:
    """Whether copy `index` of a loop has the pattern: nothing from two or more copies back."""
    for slot, expected in zip(slots, pattern, strict=True):
        inside = slot if slot is not None and slot[0] <= index else None
        wanted = expected if expected is not None and expected[0] <= 1 else None
        if inside != wanted:
            return False
    return True


def _starts(slots: list[Slot | None], pattern: list[Slot | None]) -> bool:
    """Whether a copy can be the first: what is made within it is made within it everywhere."""
    for slot, expected in zip(slots, pattern, strict=True):
        own = slot is not None and slot[0] == 0
        expected_own = expected is not None and expected[0] == 0
        if own != expected_own or (own and slot != expected):
            return False
    return True


def _build(
    nodes: Sequence[Node],
    start: int,
    period: int,
    count: int,
    position: Mapping[Node, int],
    readers: Mapping[Value, list[int]],
) -> Loop:
    copies = [nodes[start + c * period : start + (c + 1) * period] for c in range(count)]
    inside = {v: None for node in copies[0] for v in node.outputs}
    inputs: dict[tuple[object, ...], Value] = {}
    ports: list[tuple[tuple[Operand, ...], tuple[int, int] | None]] = []
    renamed: dict[Value, Value] = {}
    body: list[Node] = []
    for j in range(period):
        operands: list[Operand] = []
        for s, operand in enumerate(copies[0][j].inputs):
            if type(operand) is not Value:
                operands.append(operand)
            elif operand in inside:
                operands.append(renamed[operand])
            else:
                values = tuple(copy[j].inputs[s] for copy in copies)
                source = _carried_from(values[1], start, period, position)
                key = (source, values[0]) if source else values
                if key not in inputs:
                    inputs[key] = Value(operand.type, hint=operand.hint)
                    ports.append((values, source))
                operands.append(inputs[key])
        node = copies[0][j].like(inputs=operands)
        body.append(node)
        renamed.update(zip(copies[0][j].outputs, node.outputs, strict=True))
    return _close(copies, body, list(inputs.values()), ports, renamed, start, period, readers)


def _carried_from(
    value: Operand, start: int, period: int, position: Mapping[Node, int]
) -> tuple[int, int] | None:
    """(position, output) in the first copy that the second copy reads `value` from."""
    if type(value) is not Value or value.node is None:
        return None
    at = position[value.node] - start
    return (at, value.index) if 0 <= at < period else None


def _close(
    copies: Sequence[Sequence[Node]],
    body: list[Node],
    inputs: list[Value],
    ports: list[tuple[tuple[Operand, ...], tuple[int, int] | None]],
    renamed: Mapping[Value, Value],
    start: int,
    period: int,
    readers: Mapping[Value, list[int]],
) -> Loop:
    count, end = len(copies), start + len(copies) * period
    carried = {source for _, source in ports if source}
    results: list[Result] = []
    outputs: list[Value] = []
    result_of: dict[tuple[int, int], int] = {}
    for j in range(period):
        for k, first in enumerate(copies[0][j].outputs):
            values = tuple(copy[j].outputs[k] for copy in copies)
            outside = [any(not start <= r < end for r in readers.get(v, ())) for v in values]
            is_carried = (j, k) in carried
            if not any(outside) and not is_carried:
                continue
            result_of[(j, k)] = len(results)
            results.append(Result(values, any(outside[:-1]), is_carried, outside[-1]))
            outputs.append(renamed[first])
    made = tuple(Port(values, result_of[source] if source else None) for values, source in ports)
    scope = body[0].scope
    graph = Graph(scope, tuple(inputs), tuple(body), tuple(outputs))
    assert count >= 2
    return Loop(graph, made, tuple(results))
