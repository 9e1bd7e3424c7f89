"""Which updates can move into the backward loop that makes their gradients, and why others cannot.

A backward scan returns the gradients of its layers stacked. What an update does with them row by
row can be done inside the loop, where one layer's gradient exists at a time; a number made of all
of them (a norm, a test for overflow) can be summed up there. An update that such a number feeds
takes a second loop (`Plan.passes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from precir.ir import UPDATE, Graph, Node, Operand, Type, Value
from precir.ops.rows import ROW, Fold, Rows, by_rows, fold_of, row_type, why_whole
from precir.text.types import SHORT, numpy_dtype


@dataclass(frozen=True)
class Result:
    """A stack that the fused update makes, and the one that it overwrites row by row (None where
    nothing may be overwritten: then it is stacked anew).
    """

    value: Value
    over: Value | None
    level: int


@dataclass(frozen=True)
class Refusal:
    """Gradients that stay stacked: `blocker` reads them otherwise than row by row."""

    gradients: tuple[Value, ...]
    blocker: Node | None
    reason: str
    updates: bool  # whether an update reads them at all


@dataclass(frozen=True)
class Plan:
    """What moves into one backward scan.

    Attributes:
      scan: the scan.
      rows: nodes done row by row, in program order.
      folds: reductions over rows, and the pass that sums them up (0 or 1).
      gradients: the scan's stacked results that are no more.
      results: the stacks that the update makes.
      read: stacks from outside that the rows are taken of.
      made: every stack that the loop makes by rows.
      copies: overwritten stacks that something else may read later, so that they are copied.
      passes: how often the backward loop runs.
      refusals: what stays as it is.
    """

    scan: Node
    rows: Mapping[Node, Rows]
    folds: Mapping[Node, tuple[Fold, int]]
    gradients: tuple[Value, ...]
    results: tuple[Result, ...]
    read: tuple[Value, ...]
    made: AbstractSet[Value]
    copies: tuple[tuple[Value, Node], ...]
    passes: int
    refusals: tuple[Refusal, ...]


def plan_update(
    graph: Graph, scan: Node, paired: Mapping[Operand, Value], spare: AbstractSet[Value]
) -> Plan:
    """What can move into `scan`, a backward scan among the nodes of `graph`.

    `paired` gives for a result the input that it replaces in the next step (or iteration), `spare`
    the inputs that may be overwritten.
    """
    excluded: dict[Value, Refusal] = {}
    while True:
        look = _Look(graph, scan, set(excluded))
        pairs = _pairs(look, paired, spare)
        refused = [r for r in (_refused(part, look, pairs) for part in look.parts()) if r]
        if not refused:
            _join_readers(look, pairs)
            plan = _plan(look, pairs, tuple(dict.fromkeys(excluded.values())))
            if plan.passes == 1 or not _seen(scan):
                return plan
            reason = "would be seen twice: this needs two passes"
            refused = [Refusal(plan.gradients, _seen(scan), reason, True)]
        for r in refused:
            excluded.update(dict.fromkeys(r.gradients, r))


def _seen(scan: Node) -> Node | None:
    """What a loop does that is seen outside: a print, a callback."""
    return next((n for n in scan.regions[0].walk() if n.effects and not n.regions), None)


def bytes_of(type_: Type) -> int:
    """Bytes of the data of a value."""
    dtype = numpy_dtype(SHORT.get(type_.dtype, ""))
    return math.prod(type_.shape) * (dtype.itemsize if dtype is not None else 4)


class _Look:
    """One walk over what depends on the scan.

    Attributes:
      level: of each stack that can be made by rows, the pass that makes it (0 or 1).
      ready: of each other value that depends on the scan, after how many passes it is known.
      rows, folds: the nodes that can move into the loop; of a fold, the pass that sums it up.
      escapes: stacks that something reads whole, and what (None: the graph returns it).
      outside: stacks from outside that rows are taken of.
      late: nodes that would need a third pass.
      read: stacks from outside, or made of them by rows, that folds sum up.
    """

    def __init__(self, graph: Graph, scan: Node, excluded: AbstractSet[Value]) -> None:
        self.graph, self.scan = graph, scan
        self.level: dict[Value, int] = {}
        self.ready: dict[Value, int] = {}
        self.rows: dict[Node, Rows] = {}
        self.folds: dict[Node, tuple[Fold, int]] = {}
        self.escapes: dict[Value, Node | None] = {}
        self.outside: dict[Value, None] = {}
        self.late: set[Node] = set()
        self.read: set[Value] = set()
        carry = scan.params["num_carry"]
        self.scanned = set(scan.inputs[scan.params["num_consts"] + carry :])
        for i, v in enumerate(scan.outputs):
            if i >= carry and row_type(v.type) is not None and v not in excluded:
                self.level[v] = 0
            else:
                self.ready[v] = 1
        for node in graph.nodes[graph.nodes.index(scan) + 1 :]:
            self._node(node)
        for o in graph.outputs:
            if isinstance(o, Value) and o in self.level:
                self.escapes.setdefault(o, None)

    def _node(self, node: Node) -> None:
        values = [o for o in node.inputs if isinstance(o, Value)]
        stacks = [o for o in values if o in self.level]
        known = max((self.ready[o] for o in values if o in self.ready), default=0)
        if not stacks:
            if known:
                self.ready.update(dict.fromkeys(node.outputs, known))
            return
        before = max(self.level[o] for o in stacks)
        rows, fold = by_rows(node), fold_of(node)
        fits = rows is not None and self.fits(node, rows)
        if rows is not None and fits and max(before, known) < 2:
            self._by_rows(node, rows, max(before, known))
            return
        if fold is not None and (len(node.inputs) == 1 or node.outputs[0].type.dtype == "bool"):
            self.folds[node] = fold, before
        else:
            self.late.update([node] if fits else [])
            for o in stacks:
                self.escapes.setdefault(o, node)
        self.ready.update(dict.fromkeys(node.outputs, max(before + 1, known)))

    def _by_rows(self, node: Node, rows: Rows, level: int) -> None:
        self.rows[node] = rows
        self.level[node.outputs[0]] = level
        for o, takes in zip(node.inputs, rows.takes, strict=True):
            if takes == ROW and isinstance(o, Value) and o not in self.level:
                self.take(o)

    def fits(self, node: Node, rows: Rows) -> bool:
        """Whether operands taken by rows are stacks, and others are not."""
        length = self.scan.params["length"]
        for o, takes in zip(node.inputs, rows.takes, strict=True):
            if takes == ROW and (o.type.shape[:1] != (length,) or not self._has_rows(o)):
                return False
            if takes != ROW and o in self.level:
                return False
        return True

    def _has_rows(self, operand: Operand) -> bool:
        """Whether rows can be taken: of stacks made by rows, of those known before the loop, and
        of numbers spread over all layers.
        """
        if row_type(operand.type) is None:
            return False
        if not isinstance(operand, Value) or operand not in self.ready:
            return True
        rows = by_rows(operand.node) if operand.node is not None else None
        if operand.node is None or rows is None:
            return False
        taken = zip(operand.node.inputs, rows.takes, strict=True)
        return all(self._has_rows(o) for o, takes in taken if takes == ROW)

    def take(self, value: Value) -> None:
        """Take rows of a stack from outside. It is made by rows itself where it can be, so that
        what is computed of state alone is no stack either.
        """
        node = value.node
        if node is not None and node in self.rows:
            return
        rows = by_rows(node) if node is not None and value not in self.scanned else None
        if node is None or rows is None:
            self.outside[value] = None
            return
        self.rows[node] = rows
        for o, takes in zip(node.inputs, rows.takes, strict=True):
            if takes == ROW and isinstance(o, Value):
                self.take(o)

    def parts(self) -> list[list[Value]]:
        """The stacks, by what is made of the same gradients."""
        network: dict[Value, list[Value]] = {v: [] for v in self.level}
        for value in self.level:
            if value.node is not None and value.node is not self.scan:
                for o in value.node.inputs:
                    if isinstance(o, Value) and o in self.level:
                        network[value].append(o)
                        network[o].append(value)
        found: list[list[Value]] = []
        seen: set[Value] = set()
        for value in self.level:
            part, waiting = [], [value]
            while waiting:
                v = waiting.pop()
                if v not in seen:
                    seen.add(v)
                    part.append(v)
                    waiting += network[v]
            found += [part] if part else []
        return found


def _pairs(
    look: _Look, paired: Mapping[Operand, Value], spare: AbstractSet[Value]
) -> dict[Value, Value]:
    """What each stack that is needed whole overwrites: what it replaces in the next step, else a
    stack of its type that is read by rows anyway.
    """
    pairs: dict[Value, Value] = {}
    returned = set(look.graph.outputs)
    promised = {v for r, v in paired.items() if r in look.escapes}
    for value in look.escapes:
        over = paired.get(value)
        if over is not None and _same(value, over) and over not in pairs.values():
            pairs[value] = over
    for value in look.escapes:
        if value in pairs or value.node is look.scan:
            continue
        for over in look.outside:
            free = over in spare and over not in returned and over not in promised
            if free and _same(value, over) and over not in pairs.values():
                pairs[value] = over
                break
    return pairs


def _same(a: Value, b: Value) -> bool:
    return (a.type.shape, a.type.dtype, a.type.scale) == (b.type.shape, b.type.dtype, b.type.scale)


def _refused(part: list[Value], look: _Look, pairs: Mapping[Value, Value]) -> Refusal | None:
    """Why the stacks of a part stay as they are: None if they need not."""
    gradients = tuple(v for v in part if v.node is look.scan)
    anew = [v for v in part if v in look.escapes and v not in pairs]
    users = [u for v in part for u in look.graph.users.get(v, ())]
    updates = any(u.phase == UPDATE for u in users)
    if not updates and not any(v in look.escapes for v in part):
        return Refusal(gradients, None, "no update reads them", updates)
    for v in anew:
        if look.escapes[v] in look.late:
            reason = "needs a sum over all layers of what itself needs such a sum: three passes"
            return Refusal(gradients, look.escapes[v], reason, updates)
    if not anew or sum(bytes_of(v.type) for v in anew) < sum(bytes_of(v.type) for v in gradients):
        return None
    blocker = look.escapes[anew[0]]
    reason = "is returned whole, and replaces no argument that could be overwritten"
    if blocker is not None:
        reason = why_whole(blocker)
    return Refusal(gradients, blocker or anew[0].node, reason, updates)


def _plan(look: _Look, pairs: Mapping[Value, Value], refusals: tuple[Refusal, ...]) -> Plan:
    results = tuple(Result(v, pairs.get(v), look.level[v]) for v in look.escapes)
    return Plan(
        look.scan,
        look.rows,
        look.folds,
        tuple(v for v in look.scan.outputs if v in look.level),
        results,
        tuple(look.outside),
        frozenset({*look.level, *look.read}),
        tuple(_copies(look, pairs)),
        1 + max([0, *(r.level for r in results), *(at for _, at in look.folds.values())]),
        refusals,
    )


def _copies(look: _Look, pairs: Mapping[Value, Value]) -> Iterator[tuple[Value, Node]]:
    """Overwritten stacks with readers that need not come before the loop."""
    before = _before(look)
    for over in pairs.values():
        for user in look.graph.users.get(over, ()):
            if user not in before and user not in look.rows and user not in look.folds:
                yield over, user
                break


def _before(look: _Look) -> set[Node]:
    """What comes before the loop, since the loop depends on it."""
    before = look.graph.ancestors(look.scan) | {look.scan}
    for node, rows in look.rows.items():
        for o, takes in zip(node.inputs, rows.takes, strict=True):
            if takes != ROW and isinstance(o, Value) and o.node not in before and o.node:
                before |= look.graph.ancestors(o.node) | {o.node}
    return before


def _join_readers(look: _Look, pairs: Mapping[Value, Value]) -> None:
    """Sum up in the loop what is summed up of a stack that it overwrites (the norm of a weight):
    a reader that need not come first would cost a copy of the stack.
    """
    before = _before(look)
    for over in pairs.values():
        for user in look.graph.users.get(over, ()):
            if user in before or user in look.rows or user in look.folds:
                continue
            folds = _folds_after(user, look, before)
            for node, fold in folds or ():
                look.folds[node] = fold, 0
                operand = node.inputs[0]
                assert isinstance(operand, Value)
                look.read.add(operand)
                look.take(operand)


def _folds_after(
    node: Node, look: _Look, before: AbstractSet[Node]
) -> list[tuple[Node, Fold]] | None:
    """The reductions that are all that a reader of a stack comes to; None if it is more."""
    rows, fold = by_rows(node), fold_of(node)
    later = any(o in look.level or o in look.ready for o in node.inputs)
    if node in before or later:
        return None
    if rows is None or not look.fits(node, rows):
        return [(node, fold)] if fold is not None and len(node.inputs) == 1 else None
    users = look.graph.users.get(node.outputs[0], ())
    found = [_folds_after(u, look, before) for u in users]
    if not users or None in found or node.outputs[0] in look.graph.outputs:
        return None
    return [pair for pairs in found if pairs for pair in pairs]
