"""Ops that hold sub-programs: fixpoints of loops, joins of branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from precir.domains.fact import NOTHING, Fact, Integers, join, meet, numbers_of, project, top
from precir.domains.kinds import NINF, PINF, SPECIAL, ZERO
from precir.domains.rounding import INFINITY, Grid
from precir.ir import Graph, Literal, Node, Value
from precir.ops.facts.algebra import add_facts, smallest
from precir.ops.facts.context import Answer, Context
from precir.ops.facts.folds import sum_facts

PLAIN = 3  # iterations before bounds are widened
MOST = 24  # before what still moves is given up
TURNS = 3000  # nodes, all turns of a loop together, that are gone through one by one


def call(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    """remat, jit, custom rules, shard_map: their body."""
    return ctx.record(node, node.regions[0], facts)


def cond(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    index, *operands = facts
    last = len(node.regions) - 1
    answers = []
    for i, branch in enumerate(node.regions):
        clamped_low = i == 0 and index.lo <= 0
        clamped_high = i == last and index.hi >= last
        if index.lo <= i <= index.hi or clamped_low or clamped_high:
            answers.append(ctx.record(node, branch, operands))
    if not answers:
        answers = [ctx.record(node, branch, operands) for branch in node.regions]
    return [_all(outs) for outs in zip(*answers, strict=True)]


def _all(facts: Sequence[Fact]) -> Fact:
    f = facts[0]
    for other in facts[1:]:
        f = join(f, other)
    return f


def scan(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    p = node.params
    n_consts, n_carry, length = p["num_consts"], p["num_carry"], p["length"]
    body = node.regions[0]
    consts, first = list(facts[:n_consts]), list(facts[n_consts : n_consts + n_carry])
    xs = list(facts[n_consts + n_carry :])
    if length == 0:
        return [
            *first,
            *(NOTHING for _ in node.outputs[n_carry:]),
        ]

    def step(carry: list[Fact]) -> list[Fact]:
        return ctx.infer(body, [*consts, *carry, *xs])[:n_carry]

    if length * len(body) <= TURNS:
        return _turn_by_turn(node, [*consts, *first, *xs], step, ctx)
    counted = counters(body, n_consts, n_carry)
    carry = fixpoint(first, body.outputs[:n_carry], step, counted, length, body, ctx, consts, xs)
    outs = ctx.record(node, body, [*consts, *carry, *xs])
    last = [
        meet(o, c) if i in counted else o
        for i, (o, c) in enumerate(zip(outs[:n_carry], carry, strict=True))
    ]
    return [*last, *outs[n_carry:]]


def _turn_by_turn(
    node: Node, inputs: list[Fact], step: Callable[[list[Fact]], list[Fact]], ctx: Context
) -> list[Fact]:
    """A short loop needs no fixpoint: what its carry holds before each turn is known."""
    p = node.params
    n_consts, n_carry = p["num_consts"], p["num_carry"]
    carry = inputs[n_consts : n_consts + n_carry]
    ever = list(carry)
    for turn in range(p["length"]):
        if turn:
            ever = [join(a, b) for a, b in zip(ever, carry, strict=True)]
        after = step(carry)
        if after == carry:
            break
        carry = after
    outs = ctx.record(
        node, node.regions[0], [*inputs[:n_consts], *ever, *inputs[n_consts + n_carry :]]
    )
    return [*carry, *outs[n_carry:]]


def while_(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    n_cond, n_body = node.params["cond_nconsts"], node.params["body_nconsts"]
    cond, body = node.regions
    of_cond, consts = list(facts[:n_cond]), list(facts[n_cond : n_cond + n_body])
    first = list(facts[n_cond + n_body :])
    limits = bounded_by(cond, n_cond, len(first))

    def inside(carry: list[Fact]) -> list[Fact]:
        """The carry where the condition holds."""
        refined = list(carry)
        for i, (kind, operand) in limits.items():
            limit = (
                ctx.of(operand)
                if isinstance(operand, Literal)
                else _limit(operand, cond, of_cond, carry)
            )
            if limit is not None and not refined[i].flags & SPECIAL:
                top_ = limit.hi - (1.0 if kind == "lt" and refined[i].whole else 0.0)
                if refined[i].lo <= top_:
                    refined[i] = refined[i]._replace(hi=min(refined[i].hi, top_))
        return refined

    def step(carry: list[Fact]) -> list[Fact]:
        return ctx.infer(body, [*consts, *inside(carry)])

    length = trip_count(limits, first, body, n_body, ctx)
    counted = counters(body, n_body, len(first)) if length is not None else {}
    for i in limits:
        counted.pop(i, None)
    carry = fixpoint(first, body.outputs, step, counted, length or 0, body, ctx, consts, [])
    ctx.record(node, cond, [*of_cond, *carry])
    ctx.record(node, body, [*consts, *inside(carry)])
    return carry


def _limit(
    operand: Value, cond: Graph, of_cond: Sequence[Fact], carry: Sequence[Fact]
) -> Fact | None:
    if operand in cond.inputs:
        i = cond.inputs.index(operand)
        return of_cond[i] if i < len(of_cond) else carry[i - len(of_cond)]
    return None


def bounded_by(cond: Graph, n_consts: int, n_carry: int) -> dict[int, tuple[str, Literal | Value]]:
    """Carried values i of which the condition says i < limit (or <=), with the limit."""
    result = cond.outputs[0]
    if not isinstance(result, Value) or result.node is None:
        return {}
    found: dict[int, tuple[str, Literal | Value]] = {}
    pending = [result.node]
    while pending:
        node = pending.pop()
        if node.op == "and":
            pending += [o.node for o in node.inputs if isinstance(o, Value) and o.node is not None]
        elif node.op in ("lt", "le", "gt", "ge"):
            left, right = node.inputs
            if node.op in ("gt", "ge"):
                left, right = right, left
            kind = "lt" if node.op in ("lt", "gt") else "le"
            if isinstance(left, Value) and left in cond.inputs:
                i = cond.inputs.index(left) - n_consts
                if 0 <= i < n_carry:
                    found[i] = (kind, right)
    return found


def trip_count(
    limits: dict[int, tuple[str, Literal | Value]],
    first: Sequence[Fact],
    body: Graph,
    n_body: int,
    ctx: Context,
) -> int | None:
    """How often the body runs at most, where a counter that grows by one has a known limit."""
    steps = counters(body, n_body, len(first))
    for i, (kind, operand) in limits.items():
        if i in steps and isinstance(operand, Literal) and isinstance(steps[i], Literal):
            start, limit, step = first[i], ctx.of(operand), ctx.of(steps[i])
            if step.lo > 0 and start.lo <= start.hi:
                return max(0, math.ceil((limit.hi - start.lo) / step.lo) + (kind == "le"))
    return None


def counters(body: Graph, n_consts: int, n_carry: int) -> dict[int, Value | Literal]:
    """Carried values that the body only adds something to, with what it adds."""
    found: dict[int, Value | Literal] = {}
    for i, (given, result) in enumerate(
        zip(body.inputs[n_consts : n_consts + n_carry], body.outputs, strict=False)
    ):
        if (
            not isinstance(result, Value)
            or result.node is None
            or result.node.op not in ("add", "add_any")
        ):
            continue
        left, right = result.node.inputs
        other = right if left is given else left if right is given else None
        if other is not None and not _depends(other, given):
            found[i] = other
    return found


def _depends(operand: Value | Literal, on: Value) -> bool:
    """Whether a value of the same graph is made from another (looked at no further than 200)."""
    pending, seen = [operand], 0
    while pending:
        value = pending.pop()
        if value is on:
            return True
        if isinstance(value, Value) and value.node is not None:
            pending += value.node.inputs
            seen += 1
            if seen > 200:
                return True
    return False


def fixpoint(
    first: list[Fact],
    results: Sequence[object],
    step: object,
    counted: dict[int, Value | Literal],
    length: int,
    body: Graph,
    ctx: Context,
    consts: list[Fact],
    xs: list[Fact],
) -> list[Fact]:
    """Facts that hold of the carry before every iteration, and after the last."""
    assert callable(step)
    dtypes = [v.type.dtype for v in body.inputs[len(consts) : len(consts) + len(first)]]
    carry = list(first)
    free = set(range(len(carry)))
    for turn in range(MOST):
        outs = step(carry)
        stable = True
        for i in free:
            if i in counted and turn >= PLAIN:
                grown = _counted(
                    first[i], counted[i], length, dtypes[i], body, ctx, [*consts, *carry, *xs]
                )
            else:
                grown = join(carry[i], outs[i])
                if turn >= PLAIN and grown != carry[i]:
                    grown = widened(carry[i], grown, dtypes[i], turn - PLAIN)
            if grown != carry[i] and not _within(grown, carry[i]):
                stable = False
                carry[i] = grown
        if stable and turn > 0:
            return carry
    return [top(d)._replace(basis=c.basis) for d, c in zip(dtypes, carry, strict=True)]


def _within(a: Fact, b: Fact) -> bool:
    return (
        b.lo <= a.lo
        and a.hi <= b.hi
        and b.tiny <= a.tiny
        and not a.flags & ~b.flags
        and (a.whole or not b.whole)
        and a.basis <= b.basis
    )


def _counted(
    first: Fact,
    added: Value | Literal,
    length: int,
    dtype: str,
    body: Graph,
    ctx: Context,
    inputs: list[Fact],
) -> Fact:
    """A carry that grows by `added` in each of `length` iterations."""
    if isinstance(added, Literal):
        more = ctx.of(added)
    else:
        partial = body.with_(outputs=(added,))
        more = ctx.infer(partial, inputs)[0]
    total = sum_facts(join(more, Fact(0.0, 0.0, INFINITY, ZERO, True)), max(length, 1), dtype)
    f = join(first, add_facts(first, total, smallest(dtype)))
    return project(f, dtype)


def widened(old: Fact, new: Fact, dtype: str, turn: int) -> Fact:
    """Bounds that still move jump to a threshold: 0, ±1, powers of two, then the format's."""
    numbers = numbers_of(dtype)
    lo, hi, tiny = new.lo, new.hi, new.tiny
    most = numbers.max if numbers is not None else INFINITY
    least = numbers.min if isinstance(numbers, Integers) else -most
    jump = 2.0 ** (4 * turn)
    if new.hi > old.hi or old.lo > old.hi:
        hi = min(_next_threshold(hi * jump if hi > 0 else hi), most)
    if new.lo < old.lo or old.lo > old.hi:
        lo = max(-_next_threshold(-lo * jump if lo < 0 else -lo), least)
    if turn > 14:
        lo, hi = (least if new.lo < old.lo else lo), (most if new.hi > old.hi else hi)
    if new.tiny < old.tiny:
        tiny = numbers.smallest if isinstance(numbers, Grid) else 1.0
    flags = new.flags
    if turn > 14 and isinstance(numbers, Grid) and numbers.overflow == "inf":
        flags |= (PINF if hi >= most else 0) | (NINF if lo <= least else 0)
    return new._replace(
        lo=lo, hi=hi, tiny=tiny, flags=flags | (ZERO if lo <= 0 <= hi and flags & ZERO else 0)
    )


def _next_threshold(x: float) -> float:
    """The least of 0, ±1, ±2**k not below x."""
    if x == 0 or math.isinf(x):
        return x
    if x < 0:
        return -(2.0 ** math.floor(math.log2(-x))) if x < -1e-30 else 0.0
    return 2.0 ** math.ceil(math.log2(x))
