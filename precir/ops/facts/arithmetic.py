"""Sums, products, quotients and powers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precir.domains.fact import (
    ANYTHING,
    Fact,
    Integers,
    interval,
    negate,
    numbers_of,
    tidy,
    top,
)
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY
from precir.ir import Literal, Node, Operand, Value
from precir.ops.facts.algebra import (
    add_facts,
    complex_product,
    div_facts,
    epsilon,
    is_complex,
    is_float,
    mul_facts,
    power_facts,
    smallest,
    square_facts,
)
from precir.ops.facts.context import Answer, Context
from precir.ops.facts.margins import slack, widen


def same(node: Node) -> bool:
    """Whether both operands are one value."""
    return node.inputs[0] is node.inputs[1]


SHOWING = frozenset(
    ["broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "neg", "rev", "slice"]
)

# -- sums --------------------------------------------------------------------------------------


def add(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.relations import factored
    from precir.ops.facts.rewrites import either

    a, b = facts
    f = add_facts(a, b, smallest(node.outputs[0].type.dtype))
    return factored(node, either(node, contracted(node, f, facts), ctx)[0], facts, ctx.of)


def contracted(node: Node, f: Fact, facts: Sequence[Fact]) -> Fact:
    """A sum where XLA may leave a product in it unrounded: what underflows keeps its sign."""
    if f.lo <= f.hi and f.flags & ZERO == PZERO and f.lo <= 0 and not f.whole:
        for operand, fact in zip(node.inputs, facts, strict=True):
            if fact.flags & ZERO and is_product(operand):
                return f._replace(flags=f.flags | ZERO)
    return f


def is_product(operand: Operand, depth: int = 8) -> bool:
    """Whether an operand shows products."""
    node = operand.node if isinstance(operand, Value) else None
    if node is None or depth == 0:
        return False
    if node.op in SHOWING:
        return is_product(node.inputs[0], depth - 1)
    return node.op in ("mul", "square", "integer_pow", "div")


def sub(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.relations import difference
    from precir.ops.facts.rewrites import either

    a, b = facts
    dtype = node.outputs[0].type.dtype
    f = contracted(node, add_facts(a, negate(b), smallest(dtype)), facts)
    f = either(node, f, ctx)[0]
    return difference(node, f, a, b, ctx)


def neg(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    f = negate(facts[0])
    if isinstance(numbers_of(node.outputs[0].type.dtype), Integers) and f.flags & ZERO:
        return f._replace(flags=f.flags & ~ZERO | PZERO)
    return f


# -- products ----------------------------------------------------------------------------------


def mul(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.normalised import product
    from precir.ops.facts.rewrites import either

    a, b = facts
    dtype = node.outputs[0].type.dtype
    if is_complex(dtype):
        return complex_product(a, b)
    f = square_facts(a) if same(node) else mul_facts(a, b)
    return product(node, either(node, f, ctx)[0], a, b, ctx)


def square(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    return complex_product(a, a) if is_complex(node.outputs[0].type.dtype) else square_facts(a)


def one_minus_square(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    if is_complex(node.outputs[0].type.dtype):
        return ANYTHING
    lo, hi = (
        1 - max(a.lo * a.lo, a.hi * a.hi),
        1.0 if a.lo <= 0 <= a.hi else 1 - min(a.lo**2, a.hi**2),
    )
    lo, hi = widen(lo, hi, slack(node.outputs[0].type.dtype))
    flags = a.flags & NAN | (NINF if a.flags & INF else 0)
    f = interval(min(lo, hi), hi, flags)
    return f._replace(basis=a.basis, whole=a.whole)


# -- quotients ---------------------------------------------------------------------------------


def div(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.relations import quotient
    from precir.ops.facts.rewrites import either

    a, b = facts
    dtype = node.outputs[0].type.dtype
    if is_float(dtype):
        f, more = either(node, div_facts(a, b), ctx)
        f = quotient(node, f._replace(flags=f.flags & ~more), a, b, ctx)
        return f._replace(flags=f.flags | more)
    if is_complex(dtype):
        return ANYTHING._replace(basis=max(a.basis, b.basis))
    numbers = numbers_of(dtype)
    if (
        b.flags & ZERO
        or not isinstance(numbers, Integers)
        or (b.lo <= -1 <= b.hi and a.lo <= numbers.min)
    ):
        return top(dtype)._replace(basis=max(a.basis, b.basis))
    f = div_facts(a, b)
    lo, hi = float(math.trunc(f.lo)), float(math.trunc(f.hi))
    if a.magnitude >= b.tiny and abs(a.magnitude) >= 2**53:
        return top(dtype)
    lo, hi = min(lo, 0.0) if b.magnitude > max(a.lo, 1) else lo, hi
    return interval(min(lo, hi), hi, 0, 1.0, True)._replace(basis=f.basis)


def rem(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, b = facts
    dtype = node.outputs[0].type.dtype
    basis = max(a.basis, b.basis)
    if is_float(dtype):
        flags = (a.flags | b.flags) & NAN | ZERO
        if a.flags & INF or b.flags & ZERO:
            flags |= NAN
        most = min(a.magnitude, INFINITY if b.flags & INF else b.magnitude)
        lo = -most if a.lo < 0 else 0.0
        hi = most if a.hi > 0 else 0.0
        return tidy(Fact(lo, hi, 0.0, flags, a.whole and b.whole, basis))
    if is_complex(dtype):
        return ANYTHING
    most = a.magnitude if b.flags & ZERO else min(a.magnitude, max(b.magnitude - 1, 0.0))
    if b.flags & ZERO or (numbers_of(dtype) and b.lo <= -1 <= b.hi and a.lo < -(2.0**7) + 0.5):
        return top(dtype)._replace(basis=basis)
    return interval(-most if a.lo < 0 else 0.0, most if a.hi > 0 else 0.0, 0, 1.0, True)._replace(
        basis=basis
    )


# -- powers ------------------------------------------------------------------------------------


def integer_pow(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    dtype, n = node.outputs[0].type.dtype, node.params["y"]
    if is_complex(dtype):
        return ANYTHING
    if not is_float(dtype) and n < 0:
        return top(dtype)
    return power_facts(facts[0], n, 2.0**-52 if dtype == "float64" else epsilon(dtype))


def power(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    """pow(x, y): pow(nan, 0) = 1 = pow(1, nan), and a negative base under a fraction is NaN."""
    from precir.ops.facts.rewrites import either

    return either(node, power_of(node, facts), ctx)[0]


def power_of(node: Node, facts: Sequence[Fact]) -> Fact:
    a, b = facts
    dtype = node.outputs[0].type.dtype
    if not is_float(dtype):
        if is_complex(dtype):
            return ANYTHING
        exponent = node.inputs[1]
        if isinstance(exponent, Literal) and b.lo >= 0:
            return power_facts(a, int(b.lo), 0.0)
        return top(dtype)
    basis = max(a.basis, b.basis)
    if b.point and b.whole and abs(b.lo) < 1024:
        return power_facts(a, int(b.lo), 2.0**-12 if dtype != "float64" else 2.0**-40)
    if a.lo < 0 or (a.flags | b.flags) & SPECIAL:
        return ANYTHING._replace(basis=basis)
    # x in [0, inf): x**y is monotone in each argument on either side of 1 and 0
    flags = 0
    if a.flags & ZERO:
        if b.lo < 0:
            flags |= INF if a.flags & NZERO else PINF  # of odd integers the sign is kept
        if b.hi > 0:
            flags |= ZERO if a.flags & NZERO else PZERO
    small = max(a.tiny, a.lo, 0.0)
    ends = [_real_power(x, y) for x in (small, a.hi) for y in (b.lo, b.hi) if 0 < x <= a.hi]
    if not ends:  # powers of zero: 1, or nothing but what the flags say
        ends = [1.0] if b.flags & ZERO else [0.0]
    lo, hi = min(ends), max(ends)
    if a.flags & ZERO and b.flags & ZERO:
        lo, hi = min(lo, 1.0), max(hi, 1.0)
    exponents = [abs(math.log(e)) if 0 < e < INFINITY else 88.0 for e in (lo, hi)]
    error = (2.0**-16 if dtype != "float64" else 2.0**-44) * (1 + max(exponents))
    low, high = widen(lo, hi, min(error, 0.5))
    if hi <= 1.0:
        high = min(high, 1.0)
    tiny = max(low, 0.0)
    if flags & ZERO:
        low = 0.0
    if not tiny:
        if hi:  # a power underflowed here, in float64
            tiny, flags = 5e-324, flags | PZERO
        else:
            tiny = INFINITY
    return tidy(Fact(max(low, 0.0), high, tiny, flags, False, basis))


def _real_power(x: float, y: float) -> float:
    try:
        return math.pow(x, y)
    except (OverflowError, ValueError):
        return INFINITY
