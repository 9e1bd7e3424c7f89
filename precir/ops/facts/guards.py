"""What a condition says of the values that `select_n` chooses under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from precir.domains.fact import Fact, tidy
from precir.domains.kinds import NAN, NINF, PINF, SPECIAL, ZERO
from precir.domains.rounding import above, below
from precir.ir import Node, Value
from precir.ops.facts.context import Context

ELEMENTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "one_minus_square",
        "log1p",
        "sqrt",
        "rsqrt",
        "cbrt",
        "tanh",
        "logistic",
        "abs",
        "sign",
        "square",
        "integer_pow",
        "pow",
        "max",
        "min",
        "select_n",
        "convert_element_type",
        "stop_gradient",
        "copy",
        "add_any",
        "sin",
        "cos",
        "atan2",
        "erf",
        "acos",
        "asin",
        "atanh",
        "rem",
        "floor",
        "ceil",
        "clamp",
    ]
)
DEPTH = 5


def guarded(node: Node, cases: Sequence[Fact], ctx: Context) -> list[Fact]:
    """The facts of a select's cases, each under what its being chosen implies."""
    which = node.inputs[0]
    if len(cases) != 2 or not isinstance(which, Value) or which.node is None:
        return list(cases)
    result = list(cases)
    for case, holds in ((0, False), (1, True)):
        operand = node.inputs[1 + case]
        if not isinstance(operand, Value):
            continue
        known: dict[Value, Fact] = {}
        for value, fact in implied(which, holds, ctx):
            known[value] = fact
        if known:
            result[case] = ctx.again(operand, known)
    return result


def implied(
    which: Value, holds: bool, ctx: Context, depth: int = 4
) -> Iterator[tuple[Value, Fact]]:
    """Values with what is known of them where a condition holds (or does not)."""
    node = which.node
    if node is None or depth == 0:
        return
    op = node.op
    if op == "not" and isinstance(node.inputs[0], Value):
        yield from implied(node.inputs[0], not holds, ctx, depth - 1)
    elif op in ("and", "or") and (op == "and") == holds:
        for part in node.inputs:
            if isinstance(part, Value):
                yield from implied(part, holds, ctx, depth - 1)
    elif op == "is_finite" and isinstance(node.inputs[0], Value):
        value = node.inputs[0]
        f = ctx.of(value)
        yield value, tidy(f._replace(flags=f.flags & ~SPECIAL) if holds else f)
    elif op in ("lt", "le", "gt", "ge", "eq", "ne"):
        if not holds:
            if any(ctx.of(o).flags & NAN for o in node.inputs):
                return  # a comparison with NaN is false: its negation says nothing
            op = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}[op]
        left, right = node.inputs
        swapped = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
        for one, other, relation in ((left, right, op), (right, left, swapped.get(op, op))):
            if isinstance(one, Value):
                yield from _shown(one, compared(ctx.of(one), relation, ctx.of(other)), ctx)


def _shown(value: Value, fact: Fact, ctx: Context) -> Iterator[tuple[Value, Fact]]:
    """A value, and what it only shows: |x| > 0 says that x is not zero."""
    yield value, fact
    node = value.node
    if node is None or not node.inputs or not isinstance(node.inputs[0], Value):
        return
    inner = node.inputs[0]
    if node.op == "abs" and inner.type.dtype == value.type.dtype:
        f = ctx.of(inner)
        most = fact.hi
        flags = f.flags if fact.flags & ZERO else f.flags & ~ZERO
        if not fact.flags & PINF:
            flags &= ~(PINF | NINF)
        if not fact.flags & NAN:
            flags &= ~NAN
        tightened = f._replace(
            lo=max(f.lo, -most), hi=min(f.hi, most), flags=flags, tiny=max(f.tiny, fact.tiny)
        )
        yield inner, tidy(tightened)
    elif node.op == "stop_gradient":
        yield inner, fact


def compared(f: Fact, relation: str, limit: Fact) -> Fact:
    """What is known of x where `x relation limit` holds; NaN is not among it, but under ne."""
    lo, hi, flags = f.lo, f.hi, f.flags
    if relation != "ne":
        flags &= ~NAN
    if limit.lo > limit.hi or limit.flags & SPECIAL:
        if relation in ("lt", "le") and limit.lo > limit.hi and limit.flags == PINF:
            return f._replace(flags=flags & ~PINF if relation == "lt" else flags)
        return f._replace(flags=flags)
    if relation in ("lt", "le"):
        hi = min(hi, limit.hi)
        flags &= ~PINF
        if relation == "lt" and hi == limit.hi:
            hi = below(hi) if not f.whole else hi - 1
    elif relation in ("gt", "ge"):
        lo = max(lo, limit.lo)
        flags &= ~NINF
        if relation == "gt" and lo == limit.lo:
            lo = above(lo) if not f.whole else lo + 1
    elif relation == "eq":
        lo, hi, flags = max(lo, limit.lo), min(hi, limit.hi), flags & ~SPECIAL
    elif limit.lo == limit.hi == 0:
        flags &= ~ZERO
    if relation in ("lt", "gt") and limit.lo == limit.hi == 0:
        flags &= ~ZERO
        if relation == "gt":
            lo = max(lo, f.tiny)
        else:
            hi = min(hi, -f.tiny)
    return tidy(Fact(lo, hi, f.tiny, flags, f.whole, f.basis))
