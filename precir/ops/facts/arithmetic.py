"""Sums, products, quotients and powers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precir.domains.fact import (
    ANYTHING,
    Fact,
    Integers,
    interval,
    join,
    negate,
    numbers_of,
    tidy,
    top,
)
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO, negated
from precir.domains.rounding import INFINITY, Grid
from precir.ir import Literal, Node, Operand, Value
from precir.ops.facts.context import Answer, Context
from precir.ops.facts.margins import slack, widen


def smallest(dtype: str) -> float:
    """The least positive number of a dtype; 1 for integers."""
    numbers = numbers_of(dtype)
    return numbers.smallest if isinstance(numbers, Grid) else 1.0


def epsilon(dtype: str) -> float:
    """Distance from 1 to the next number of a dtype; 0 for integers."""
    numbers = numbers_of(dtype)
    return numbers.epsilon if isinstance(numbers, Grid) else 0.0


def smallest_normal(dtype: str) -> float:
    """The least positive number of a dtype that is not subnormal; 1 for integers."""
    numbers = numbers_of(dtype)
    return numbers.smallest_normal if isinstance(numbers, Grid) else 1.0


def is_float(dtype: str) -> bool:
    return isinstance(numbers_of(dtype), Grid) and not dtype.startswith("complex")


def is_complex(dtype: str) -> bool:
    return dtype.startswith("complex")


def same(node: Node) -> bool:
    """Whether both operands are one value."""
    return node.inputs[0] is node.inputs[1]


SHOWING = frozenset(
    ["broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "neg", "rev", "slice"]
)

# -- sums --------------------------------------------------------------------------------------


def add_facts(a: Fact, b: Fact, least: float) -> Fact:
    """Of a + b; `least` is the smallest nonzero sum that the dtype holds."""
    fa, fb = a.flags, b.flags
    flags = (fa | fb) & SPECIAL
    if (fa & PINF and fb & NINF) or (fa & NINF and fb & PINF):
        flags |= NAN
    basis = a.basis if a.basis > b.basis else b.basis
    if a.lo > a.hi or b.lo > b.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True, basis)
    lo, hi = a.lo + b.lo, a.hi + b.hi
    whole = a.whole and b.whole
    if lo > 0 or hi < 0:
        tiny = max(lo, -hi)
    else:
        flags |= PZERO | fa & fb & NZERO
        if a.lo == a.hi == 0:
            tiny = b.tiny
        elif b.lo == b.hi == 0:
            tiny = a.tiny
        elif (a.lo >= 0 and b.lo >= 0) or (a.hi <= 0 and b.hi <= 0):
            # one sign: no sum is smaller than its smallest term
            tiny = a.tiny if a.tiny < b.tiny else b.tiny
            if not (fa & ZERO and fb & ZERO):
                lo, hi = (tiny, hi) if a.lo >= 0 else (lo, -tiny)
                flags &= ~ZERO
        else:
            tiny = 1.0 if whole else least
    return Fact(lo, hi, tiny, flags, whole, basis)


def add(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.rewrites import either

    a, b = facts
    f = add_facts(a, b, smallest(node.outputs[0].type.dtype))
    return either(node, contracted(node, f, facts), ctx)[0]


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


def _signs(f: Fact) -> tuple[bool, bool]:
    """Whether elements beside zero and NaN may be negative, and positive."""
    return f.lo < 0 or bool(f.flags & NINF), f.hi > 0 or bool(f.flags & PINF)


def _corner(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def mul_facts(a: Fact, b: Fact) -> Fact:
    fa, fb = a.flags, b.flags
    flags = (fa | fb) & NAN
    if (fa | fb) & INF:
        if (fa & INF and fb & ZERO) or (fb & INF and fa & ZERO):
            flags |= NAN
        (an, ap), (bn, bp) = _signs(a), _signs(b)
        an_inf, ap_inf, bn_inf, bp_inf = fa & NINF, fa & PINF, fb & NINF, fb & PINF
        if (ap_inf and bp) or (bp_inf and ap) or (an_inf and bn) or (bn_inf and an):
            flags |= PINF
        if (ap_inf and bn) or (bp_inf and an) or (an_inf and bp) or (bn_inf and ap):
            flags |= NINF
    basis = a.basis if a.basis > b.basis else b.basis
    if a.lo > a.hi or b.lo > b.hi:
        return Fact(INFINITY, -INFINITY, INFINITY, flags, True, basis)
    al, ah, bl, bh = a.lo, a.hi, b.lo, b.hi
    if al >= 0 and bl >= 0:
        lo, hi = _corner(al, bl), _corner(ah, bh)
    else:
        corners = (_corner(al, bl), _corner(al, bh), _corner(ah, bl), _corner(ah, bh))
        lo, hi = min(corners), max(corners)
    if (fa | fb) & ZERO:
        positive = (al >= 0 and bl >= 0 and not (fa | fb) & (NZERO | NINF)) or (
            ah <= 0 and bh <= 0 and not (fa | fb) & (PZERO | PINF)
        )
        flags |= PZERO if positive else ZERO
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    if a.tiny == INFINITY or b.tiny == INFINITY:
        tiny = INFINITY
        lo = hi = 0.0
    else:
        tiny = a.tiny * b.tiny
    return Fact(lo, hi, tiny, flags, a.whole and b.whole, basis)


def square_facts(a: Fact) -> Fact:
    flags = a.flags & NAN | (PINF if a.flags & INF else 0) | (PZERO if a.flags & ZERO else 0)
    if a.lo > a.hi:
        return a._replace(flags=flags)
    lo = 0.0 if a.lo <= 0 <= a.hi else min(a.lo * a.lo, a.hi * a.hi)
    hi = max(a.lo * a.lo, a.hi * a.hi)
    tiny = a.tiny if a.tiny == INFINITY else a.tiny * a.tiny
    if not flags & ZERO:
        lo = max(lo, min(tiny, hi))
    return Fact(lo, hi, tiny, flags, a.whole, a.basis)


def _complex_product(a: Fact, b: Fact) -> Fact:
    one = mul_facts(a, b)
    both = join(add_facts(one, one, 0.0), add_facts(one, negate(one), 0.0))
    if (a.flags | b.flags) & SPECIAL or math.isinf(both.magnitude):
        return ANYTHING._replace(basis=both.basis)
    lo, hi = widen(both.lo, both.hi, 2.0**-20)
    return Fact(lo, hi, 0.0, both.flags | ZERO, False, both.basis)


def mul(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.relations import product
    from precir.ops.facts.rewrites import either

    a, b = facts
    dtype = node.outputs[0].type.dtype
    if is_complex(dtype):
        return _complex_product(a, b)
    f = square_facts(a) if same(node) else mul_facts(a, b)
    return product(node, either(node, f, ctx)[0], a, b, ctx)


def square(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    return _complex_product(a, a) if is_complex(node.outputs[0].type.dtype) else square_facts(a)


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


def reciprocal_parts(b: Fact) -> tuple[float, float]:
    """The largest and the smallest magnitude of a nonzero finite element."""
    most = b.magnitude
    least = max(b.tiny, b.lo, -b.hi) if most else INFINITY
    return most, least


def div_facts(a: Fact, b: Fact) -> Fact:
    """Of a / b in floating point, where a nonzero number over a zero is an infinity."""
    fa, fb = a.flags, b.flags
    flags = (fa | fb) & NAN
    (an, ap), (bn, bp) = _signs(a), _signs(b)
    if (fa & ZERO and fb & ZERO) or (fa & INF and fb & INF):
        flags |= NAN
    nonzero = an or ap
    if fb & ZERO and nonzero:
        if (ap and fb & PZERO) or (an and fb & NZERO):
            flags |= PINF
        if (ap and fb & NZERO) or (an and fb & PZERO):
            flags |= NINF
    if fa & INF and b.lo <= b.hi:
        if (fa & PINF and (b.hi > 0 or fb & PZERO)) or (fa & NINF and (b.lo < 0 or fb & NZERO)):
            flags |= PINF
        if (fa & PINF and (b.lo < 0 or fb & NZERO)) or (fa & NINF and (b.hi > 0 or fb & PZERO)):
            flags |= NINF
    zero_over = (fa & ZERO or fb & INF) and a.lo <= a.hi
    basis = a.basis if a.basis > b.basis else b.basis
    most, least = reciprocal_parts(b)
    lo, hi, tiny = INFINITY, -INFINITY, INFINITY
    if a.lo <= a.hi and most and nonzero:
        ends: list[float] = []
        if b.hi > 0:
            small, large = max(least, b.lo), b.hi
            ends += [_over(a.lo, small), _over(a.lo, large), _over(a.hi, small), _over(a.hi, large)]
        if b.lo < 0:
            small, large = max(least, -b.hi), -b.lo
            ends += [
                -_over(a.lo, small), -_over(a.lo, large), -_over(a.hi, small), -_over(a.hi, large),
            ]  # fmt: skip
        lo, hi = min(ends), max(ends)
        tiny = _over(a.tiny, most)
    if zero_over:
        positive = a.lo >= 0 and not fa & NZERO and not bn and not fb & NZERO
        flags |= PZERO if positive else ZERO
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    return tidy(Fact(lo, hi, tiny, flags, False, basis))


def _over(x: float, y: float) -> float:
    if x == 0 or y == INFINITY:
        return 0.0
    if y == 0:
        return math.copysign(INFINITY, x)
    return x / y


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
        return Fact(lo, hi, 0.0, flags, a.whole and b.whole, basis)
    if is_complex(dtype):
        return ANYTHING
    most = a.magnitude if b.flags & ZERO else min(a.magnitude, max(b.magnitude - 1, 0.0))
    if b.flags & ZERO or (numbers_of(dtype) and b.lo <= -1 <= b.hi and a.lo < -(2.0**7) + 0.5):
        return top(dtype)._replace(basis=basis)
    return interval(-most if a.lo < 0 else 0.0, most if a.hi > 0 else 0.0, 0, 1.0, True)._replace(
        basis=basis
    )


# -- powers ------------------------------------------------------------------------------------


def power_facts(a: Fact, n: int, relative: float) -> Fact:
    """Of a**n for an integer n."""
    if n == 0:
        return Fact(1.0, 1.0, 1.0, 0, True, a.basis)
    if n < 0:
        return div_facts(Fact(1.0, 1.0, 1.0, 0, True), power_facts(a, -n, relative))
    flags = a.flags & NAN | (a.flags & PINF)
    even = n % 2 == 0
    if a.flags & NINF:
        flags |= PINF if even else NINF
    flags |= (PZERO if a.flags & ZERO else 0) if even else a.flags & ZERO
    if a.lo > a.hi:
        return a._replace(flags=flags)
    low, high = _power(a.lo, n), _power(a.hi, n)
    if even:
        lo, hi = (0.0 if a.lo <= 0 <= a.hi else min(low, high)), max(low, high)
    else:
        lo, hi = low, high
    tiny = _power(a.tiny, n)
    lo, hi = widen(lo, hi, relative * n) if n > 2 else (lo, hi)
    return tidy(Fact(lo, hi, tiny * (1 - relative * n), flags, a.whole, a.basis))


def _power(x: float, n: int) -> float:
    try:
        return x**n
    except OverflowError:
        return INFINITY if x > 0 or n % 2 == 0 else -INFINITY


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
    if a.lo < 0 or a.flags & (NINF | NZERO | SPECIAL) or b.flags & SPECIAL:
        if a.lo < 0 or (a.flags | b.flags) & SPECIAL:
            return ANYTHING._replace(basis=basis)
    # x in [0, inf): x**y is monotone in each argument on either side of 1 and 0
    flags = 0
    if a.flags & ZERO:
        if b.lo < 0:
            flags |= PINF
        if b.hi > 0:
            flags |= PZERO
    small = max(a.tiny, a.lo, 0.0)
    ends = [_real_power(x, y) for x in (small, a.hi) for y in (b.lo, b.hi) if x > 0]
    if not ends:
        ends = [0.0, 1.0] if b.flags & ZERO else [0.0]
    lo, hi = min(ends), max(ends)
    if a.flags & ZERO and b.flags & ZERO:
        lo, hi = min(lo, 1.0), max(hi, 1.0)
    error = (2.0**-16 if dtype != "float64" else 2.0**-44) * (
        1 + abs(math.log(hi)) if 0 < hi < INFINITY else 88
    )
    low, high = widen(lo, hi, min(error, 0.5))
    if hi <= 1.0:
        high = min(high, 1.0)
    tiny = max(low, 0.0)
    if flags & PZERO:
        low = 0.0
    return Fact(max(low, 0.0), high, tiny, flags, False, basis)


def _real_power(x: float, y: float) -> float:
    try:
        return math.pow(x, y)
    except (OverflowError, ValueError):
        return INFINITY


_ = negated
