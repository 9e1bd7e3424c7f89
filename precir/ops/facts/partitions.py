"""Facts by cases: the range of a value in parts, and what holds of others in each.

The gradient of x * tanh(x) has a factor that grows with x and one that vanishes with it; intervals
multiply the largest of both. Where an activation saturates, the value that it is of is split into
parts, and what is made of it element by element is known for each: their join is often much less
than the fact of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from precir.domains.fact import Fact, join, meet, negate, project, tidy
from precir.domains.kinds import SPECIAL
from precir.formats import FORMATS
from precir.ir import Graph, Literal, Node, Operand, Value
from precir.ops import op_named
from precir.ops.facts.algebra import add_facts, div_facts, mul_facts, smallest, square_facts
from precir.ops.facts.arithmetic import contracted, same
from precir.ops.facts.context import Context
from precir.ops.facts.relations import factored
from precir.ops.facts.rewrites import either
from precir.ops.facts.views import constant

SATURATING = frozenset(["tanh", "logistic", "erf", "erfc"])
UNARY = frozenset([
    "neg", "exp", "exp2", "expm1", "log1p", "tanh", "logistic", "erf", "erfc", "abs", "sign",
    "square", "one_minus_square", "integer_pow", "max", "min", "convert_element_type",
    "stop_gradient", "copy",
    "clamp", "floor", "ceil", "sin", "cos",
])  # fmt: skip
"""Ops whose rules say of each element what holds of it, whatever the others are."""
FOLLOWED = UNARY | {"add", "add_any", "sub", "mul", "div", "select_n"}
EDGES = (*(i / 8 for i in range(1, 21)), 3.0, 4.0, 6.0, 12.0, 24.0)
BACK = 24  # nodes looked through from an activation to what it is of
MOST = 48  # values known by cases for one split


class Cases(NamedTuple):
    """What holds of a value where each part of the split one is."""

    of: Value
    facts: tuple[Fact, ...]


def splits(graph: Graph) -> frozenset[Value]:
    """The values that activations saturate in."""
    found = set()
    for node in graph.nodes:
        if node.op in SATURATING and node.outputs[0].type.dtype in FORMATS:
            source = _source(node)
            if source is not None:
                found.add(source)
    return frozenset(found)


def _source(node: Node) -> Value | None:
    """The one value of the same shape that all elements come from."""
    shape = node.outputs[0].type.shape
    pending: list[Operand] = list(node.inputs)
    found: set[Value] = set()
    seen: set[Value] = set()
    for _ in range(BACK):
        if not pending:
            break
        value = pending.pop()
        if not isinstance(value, Value) or value in seen or constant(value) is not None:
            continue
        seen.add(value)
        if value.type.shape != shape:
            return None
        made = value.node
        single = made is not None and made.op in FOLLOWED and _one_varies(made, shape)
        if single:
            assert made is not None
            pending += made.inputs
        else:
            found.add(value)
    return found.pop() if len(found) == 1 and not pending else None


def _one_varies(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether all operands but one are constants, or the same, or made of one another."""
    varying = {o for o in node.inputs if isinstance(o, Value) and constant(o) is None}
    if node.op in ("add", "mul") and len(varying) == 2:
        a, b = varying
        return _of_other(a, b) or _of_other(b, a)
    return len(varying) <= 1


def _of_other(a: Value, b: Value, depth: int = 4) -> bool:
    """Whether `a` is made of `b` alone, element by element: of x + c * x**3 the latter of x."""
    for _ in range(depth):
        node = a.node
        if node is None or node.op not in FOLLOWED:
            return False
        varying = {o for o in node.inputs if isinstance(o, Value) and constant(o) is None}
        if varying == {b}:
            return True
        if len(varying) != 1:
            return False
        a = varying.pop()
    return False


def parts(f: Fact) -> tuple[Fact, ...] | None:
    """A fact split at the edges; None where there is nothing to split."""
    if f.flags & SPECIAL or f.lo > f.hi or f.whole:
        return None
    edges = [x for x in (*(-e for e in reversed(EDGES)), 0.0, *EDGES) if f.lo < x < f.hi]
    if not edges:
        return None
    ends = [f.lo, *edges, f.hi]
    return tuple(tidy(f._replace(lo=lo, hi=hi)) for lo, hi in pairwise(ends))


@dataclass
class Partitions:
    """What is known by cases of the values of one graph."""

    ctx: Context
    split: frozenset[Value]
    _cases: dict[Value, Cases] = field(default_factory=dict)
    _count: dict[Value, int] = field(default_factory=dict)

    def after(self, node: Node, facts: Sequence[Fact], f: Fact) -> Fact:
        """What is known of a node's result, by cases; they are kept."""
        out = node.outputs[0]
        if node.op in FOLLOWED:
            of = self._split_of(node)
            if of is not None and not any(x.flags & SPECIAL for x in facts):
                f = self._by_cases(node, facts, f, of)
        if out in self.split and out not in self._cases:
            self.begin(out, project(f, out.type.dtype))
        return f

    def begin(self, value: Value, f: Fact) -> None:
        found = parts(f)
        if found is not None:
            self._cases[value] = Cases(value, found)

    def _split_of(self, node: Node) -> Value | None:
        shape = node.outputs[0].type.shape
        for o in node.inputs:
            cases = self._cases.get(o) if type(o) is Value else None
            if cases is not None and cases.of.type.shape == shape:
                return cases.of if self._count.get(cases.of, 0) < MOST else None
        return None

    def _by_cases(self, node: Node, facts: Sequence[Fact], f: Fact, of: Value) -> Fact:
        out = node.outputs[0]
        dtype = out.type.dtype
        if dtype not in FORMATS:
            return f
        self._count[of] = self._count.get(of, 0) + 1
        known = [self._facts_of(o, of) for o in node.inputs]
        found: list[Fact] = []
        whole = f
        basis = max(x.basis for x in facts)
        for i in range(len(self._cases[of].facts)):
            given = [
                fact if cases is None else cases[i]
                for cases, fact in zip(known, facts, strict=True)
            ]
            exact = _infer(node, given, _Case(self, of, i))
            whole = exact if i == 0 else join(whole, exact)
            one = project(exact, dtype)
            found.append(one if one.basis == basis else one._replace(basis=basis))
        self._cases[out] = Cases(of, tuple(found))
        return meet(f, whole)

    def _facts_of(self, operand: Operand, of: Value) -> tuple[Fact, ...] | None:
        cases = self._cases.get(operand) if isinstance(operand, Value) else None
        return cases.facts if cases is not None and cases.of is of else None

    def of(self, operand: Operand, of: Value, i: int) -> Fact:
        facts = self._facts_of(operand, of)
        return self.ctx.of(operand) if facts is None else facts[i]


class _Case:
    """An inference where one case holds."""

    def __init__(self, partitions: Partitions, of: Value, i: int) -> None:
        self._partitions, self._of, self._i = partitions, of, i

    def of(self, operand: Operand) -> Fact:
        if isinstance(operand, Literal):
            return self._partitions.ctx.of(operand)
        return self._partitions.of(operand, self._of, self._i)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._partitions.ctx, name)


def _infer(node: Node, facts: Sequence[Fact], ctx: Any) -> Fact:
    """By the op's own rule, but for relations between elements: those of other cases count too."""
    op, dtype = node.op, node.outputs[0].type.dtype
    if op in ("add", "add_any", "sub"):
        a, b = facts
        f = add_facts(a, negate(b) if op == "sub" else b, smallest(dtype))
        f = either(node, contracted(node, f, facts), ctx)[0]
        return factored(node, f, facts, ctx.of) if op != "sub" else f
    if op == "mul":
        f = square_facts(facts[0]) if same(node) else mul_facts(*facts)
        return either(node, f, ctx)[0]
    if op == "div":
        f, more = either(node, div_facts(*facts), ctx)
        return f._replace(flags=f.flags | more)
    if op == "select_n":
        f = facts[1]
        for case in facts[2:]:
            f = join(f, case)
        return f
    answer = op_named(op).fact(node, facts, ctx)
    return answer if isinstance(answer, Fact) else answer[0]
