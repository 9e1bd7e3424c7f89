"""Write the backward loop anew, with the update of each layer in it.

The loop carries the stacks that it overwrites and, read ahead, the row that its next iteration
needs. So every read of a stack comes after the last write to it by data flow, and the compiler
needs no copy: an iteration computes the gradients at its rows, then the new rows, puts them in
their place, and reads the rows of the layer before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from precir.ir import UPDATE, Graph, Literal, Node, Operand, Type, Value
from precir.ops.rows import ONLY, ROW, Fold, row_type
from precir.passes.rebuild import copy_nodes, in_order
from precir.passes.simplify import drop_dead
from precir.passes.update_plan import Plan, Result

_INDEX = Type((), "int32")


def fuse(graph: Graph, plan: Plan) -> tuple[Graph, tuple[Node, ...]]:
    """The program with the update in the loop, and the scans that stand for the old one."""
    place = {node: n for n, node in enumerate(graph.nodes)}
    now: dict[Value, Operand] = {}
    made: list[tuple[int, Node]] = []
    loops = []
    for stage in range(plan.passes):
        loop = _Loop(graph, plan, stage, place)
        made.append((place[plan.scan], loop.node))
        made += [(place[of], node) for of, node in loop.after]
        now |= loop.now
        loops.append(loop.node)
    gone = {plan.scan, *plan.folds, *(r.value.node for r in plan.results)}
    nodes = [(n, node) for n, node in enumerate(graph.nodes) if node not in gone]
    nodes = sorted([*nodes, *made], key=lambda pair: pair[0])
    ordered, outputs = in_order([node for _, node in nodes], now, graph.outputs)
    kept = drop_dead(graph.with_(nodes=tuple(ordered), outputs=tuple(outputs)))
    return kept, tuple(n for n in kept.nodes if n in _named(loops, ordered))


def _named(loops: Sequence[Node], nodes: Sequence[Node]) -> set[Node]:
    bodies = {id(n.regions[0]) for n in loops}
    return {n for n in nodes if n.regions and id(n.regions[0]) in bodies}


class _Loop:
    """One of the loops that stand for a backward scan.

    Attributes:
      node: the scan.
      after: nodes that follow it, each with the node of the program that it stands for.
      now: by value of the program, what holds it now.
    """

    def __init__(self, graph: Graph, plan: Plan, stage: int, place: Mapping[Node, int]) -> None:
        self.plan, self.place = plan, place
        self.scan = plan.scan
        self.last = stage == plan.passes - 1
        self.results = plan.results if self.last else ()
        self.over = [r for r in self.results if r.over is not None]
        self.anew = [r for r in self.results if r.over is None]
        self.folds = {n: f for n, (f, at) in plan.folds.items() if at == stage}
        self.first = stage == 0
        self.rows = self._needed()
        self.before: list[Node] = []
        self.after: list[tuple[Node, Node]] = []
        self.now: dict[Value, Operand] = {}
        self.nodes: list[Node] = []
        self.env: dict[Value, Operand] = {}  # values of the scan's body and rows of the program's
        self.node = self._write(graph)

    def _needed(self) -> list[Node]:
        """The nodes that make the rows of what this loop makes."""
        rows = self.plan.rows
        wanted: list[Operand] = [r.value for r in self.results]
        wanted += [o for n in self.folds for o in n.inputs]
        found: set[Node] = set()
        while wanted:
            o = wanted.pop()
            node = o.node if isinstance(o, Value) else None
            if node is not None and node in rows and node not in found:
                found.add(node)
                taken = zip(node.inputs, rows[node].takes, strict=True)
                wanted += [i for i, takes in taken if takes == ROW]
        return sorted(found, key=lambda n: self.place[n])

    # -- the parts -----------------------------------------------------------------------------

    def _write(self, graph: Graph) -> Node:
        p, body = self.scan.params, self.scan.regions[0]
        consts, carry, length = p["num_consts"], p["num_carry"], p["length"]
        given = self.scan.inputs
        names = _names([r.over for r in self.over if r.over is not None])
        over = {r.over for r in self.over}

        stay = [v.hint for v in body.inputs]
        inputs: dict[str, list[Value]] = {"consts": [], "carry": [], "xs": []}
        outside: dict[str, list[Operand]] = {"consts": [], "carry": [], "xs": []}

        def take(group: str, operand: Operand, type_: Type, hint: str) -> Value:
            value = Value(type_, hint=hint)
            inputs[group].append(value)
            outside[group].append(operand)
            return value

        for i in range(consts + carry):
            group = "consts" if i < consts else "carry"
            self.env[body.inputs[i]] = take(group, given[i], body.inputs[i].type, stay[i])
        at = take("carry", Literal(length - 1 if p["reverse"] else 0, _INDEX), _INDEX, "at")
        stacks: dict[Value, Value] = {}
        for r in self.over:
            assert r.over is not None
            name = names[r.over]
            stacks[r.value] = take("carry", r.over, r.over.type, f"{name}_stack")
            row = take("carry", self._first_row(r), _row(r.over.type), name)
            self.env[r.over] = row
        sums = {n: take("carry", *self._nothing(n, f), "so_far") for n, f in self.folds.items()}
        for i in range(consts + carry, len(given)):
            operand, inner = given[i], body.inputs[i]
            if isinstance(operand, Value) and operand in over:
                self.env[inner] = self.env[operand]
                continue
            self.env[inner] = take("xs", operand, inner.type, stay[i])
            if isinstance(operand, Value):
                self.env.setdefault(operand, self.env[inner])
        for value in self._read():
            if value not in self.env:
                self.env[value] = take("xs", value, _row(value.type), _word(value.hint, "x"))
        for value in self._whole():
            self.env[value] = take("consts", value, value.type, _word(value.hint, "value"))

        self.nodes += copy_nodes(body, self.env)
        made = [self._in(o) for o in body.outputs]
        for v, o in zip(self.scan.outputs[carry:], made[carry:], strict=True):
            self.env[v] = o
        for node in self.rows:
            self._row(node)
        carried = [*made[:carry], self._add("sub" if p["reverse"] else "add", [at, _one()], _INDEX)]
        next_at = carried[-1]
        for r in self.over:
            stack = self._put(r, stacks[r.value], self._in(r.value), at)
            carried += [stack, self._get(r, stack, next_at)]
        carried += [self._folded(n, f, sums[n]) for n, f in self.folds.items()]
        kept = [v for v in self.scan.outputs[carry:] if v not in self.plan.gradients]
        kept = kept if self.first else []
        ys = [*(self._in(v) for v in kept), *(self._in(r.value) for r in self.anew)]

        region = Graph(
            "backward_and_update" if self.results else "backward",
            tuple(v for group in inputs.values() for v in group),
            tuple(self.nodes),
            (*carried, *ys),
        )
        types = [o.type for o in carried]
        types += [v.type for v in kept] + [r.value.type for r in self.anew]
        counts = {"num_consts": len(inputs["consts"]), "num_carry": len(inputs["carry"])}
        loop = self.scan.like(
            inputs=[o for group in outside.values() for o in group],
            types=types,
            params={**p, **counts},
            regions=(drop_dead(region),),
        )
        self._results(loop, carry, kept)
        return loop

    def _results(self, loop: Node, carry: int, kept: Sequence[Value]) -> None:
        """What stands for the old results."""
        made = iter(loop.outputs)
        for v in self.scan.outputs[:carry]:
            o = next(made)
            if self.first:
                self.now[v] = o
        next(made)  # the index
        for r in self.over:
            self.now[r.value] = next(made)
            next(made)  # the row read ahead
        for n in self.folds:
            self.now[n.outputs[0]] = self._with_rest(n, next(made))
        for v in kept:
            self.now[v] = next(made)
        for r in self.anew:
            self.now[r.value] = next(made)

    def _with_rest(self, node: Node, total: Value) -> Operand:
        """A test of several values: together with those that are no stacks of this loop."""
        rest = [o for o in node.inputs if not self._is_row(o)]
        if not rest:
            return total
        tested = node.like(inputs=rest)
        both = node.like(op="and", inputs=[tested.outputs[0], total], params={})
        self.after += [(node, tested), (node, both)]
        return both.outputs[0]

    def _is_row(self, operand: Operand) -> bool:
        return isinstance(operand, Value) and operand in self.plan.made

    def _read(self) -> Iterator[Value]:
        """Stacks from outside of which rows are taken."""
        for node in self.rows:
            for o, takes in zip(node.inputs, self.plan.rows[node].takes, strict=True):
                if takes == ROW and isinstance(o, Value) and o in self.plan.read:
                    yield o

    def _whole(self) -> Iterator[Value]:
        """Values from outside that every row takes whole."""
        seen: set[Value] = set()
        for node in self.rows:
            for o, takes in zip(node.inputs, self.plan.rows[node].takes, strict=True):
                if takes != ROW and isinstance(o, Value) and o not in seen:
                    seen.add(o)
                    yield o

    # -- the body ------------------------------------------------------------------------------

    def _in(self, operand: Operand) -> Operand:
        return self.env.get(operand, operand) if isinstance(operand, Value) else operand

    def _add(self, op: str, inputs: Sequence[Operand], type_: Type, **params: Any) -> Value:
        node = Node(op, inputs, [type_], params, phase=UPDATE)
        self.nodes.append(node)
        return node.outputs[0]

    def _row(self, node: Node) -> None:
        rows = self.plan.rows[node]
        inputs = [self._in(o) for o in node.inputs]
        for i, takes in enumerate(rows.takes):
            if takes == ONLY:
                kind = _row(inputs[i].type)
                only = node.like(
                    op="squeeze", inputs=[inputs[i]], types=[kind], params={"dimensions": (0,)}
                )
                self.nodes.append(only)
                inputs[i] = only.outputs[0]
        new = node.like(
            inputs=inputs,
            types=[_row(node.outputs[0].type)],
            params=rows.params,
        )
        self.nodes.append(new)
        self.env[node.outputs[0]] = new.outputs[0]

    def _like(self, result: Result, op: str, inputs: Sequence[Operand], type_: Type) -> Node:
        """A node that comes from where the result comes from."""
        origin = result.value.node
        assert origin is not None
        return Node(op, inputs, [type_], source=origin.source, scope=origin.scope, phase=UPDATE)

    def _put(self, result: Result, stack: Value, row: Operand, at: Operand) -> Value:
        self.nodes.append(self._like(result, "put_row", [stack, row, at], stack.type))
        return self.nodes[-1].outputs[0]

    def _get(self, result: Result, stack: Value, at: Operand) -> Value:
        self.nodes.append(self._like(result, "row", [stack, at], _row(stack.type)))
        return self.nodes[-1].outputs[0]

    def _folded(self, node: Node, fold: Fold, so_far: Value) -> Value:
        rows = [self._in(o) for o in node.inputs if self._is_row(o)]
        part: Operand = rows[0]
        kind = node.outputs[0].type
        if fold.params is not None:
            made = node.like(inputs=rows, params=fold.params)
            self.nodes.append(made)
            part = made.outputs[0]
        total = node.like(op=fold.combine, inputs=[so_far, part], types=[kind], params={})
        self.nodes.append(total)
        return total.outputs[0]

    # -- before the loop -----------------------------------------------------------------------

    def _first_row(self, result: Result) -> Value:
        stack, p = result.over, self.scan.params
        assert stack is not None
        at = Literal(p["length"] - 1 if p["reverse"] else 0, _INDEX)
        first = self._like(result, "row", [stack, at], _row(stack.type))
        self.after.append((self.scan, first))
        return first.outputs[0]

    def _nothing(self, node: Node, fold: Fold) -> tuple[Operand, Type]:
        """What a sum begins with."""
        kind = node.outputs[0].type
        if not kind.shape:
            return fold.initial, kind
        params = {"shape": kind.shape, "broadcast_dimensions": (), "sharding": None}
        made = node.like(op="broadcast_in_dim", inputs=[fold.initial], params=params)
        self.after.append((self.scan, made))
        return made.outputs[0], kind


def _row(type_: Type) -> Type:
    found = row_type(type_)
    assert found is not None
    return found


def _one() -> Literal:
    return Literal(1, _INDEX)


def _word(hint: str, default: str) -> str:
    words = re.findall(r"[A-Za-z_]\w*", hint)
    return words[-1] if words else default


def _names(stacks: Sequence[Value]) -> dict[Value, str]:
    """A name for the rows of each stack: the last word of its path, and where several have the
    same, a word before it that tells them apart.
    """
    words = {v: re.findall(r"[A-Za-z_]\w*", v.hint) or ["row"] for v in stacks}
    names = {}
    for v in stacks:
        alike = [words[o] for o in stacks if words[o][-1] == words[v][-1]]
        own = [w for w in words[v] if not all(w in other for other in alike)]
        names[v] = "_".join([*own[-1:], words[v][-1]])
    return names
