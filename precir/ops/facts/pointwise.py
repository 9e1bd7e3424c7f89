"""Signs, roundings, orderings, comparisons, logic, selection and changes of type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from precir.domains.fact import (
    ANYTHING,
    BOOLEAN,
    Fact,
    Integers,
    interval,
    join,
    negate,
    numbers_of,
    of_number,
    project,
    tidy,
    top,
)
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY, Grid, round_nearest
from precir.ir import Literal, Node, Value
from precir.ops.facts.algebra import is_complex, is_float, smallest_normal
from precir.ops.facts.context import Answer, Context, Rule

TRUE, FALSE = of_number(1.0), of_number(0.0)


def absolute(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    if is_complex(node.inputs[0].type.dtype):
        most = a.magnitude * 1.4142136
        flags = NAN if a.flags & NAN else 0
        return Fact(0.0, most, 0.0, flags | (PINF if a.flags & INF else 0) | PZERO, False, a.basis)
    return abs_fact(a)


def abs_fact(a: Fact) -> Fact:
    flags = a.flags & NAN | (PINF if a.flags & INF else 0) | (PZERO if a.flags & ZERO else 0)
    if a.lo > a.hi:
        return a._replace(flags=flags)
    lo = 0.0 if a.lo <= 0 <= a.hi else min(abs(a.lo), abs(a.hi))
    return tidy(Fact(lo, a.magnitude, a.tiny, flags, a.whole, a.basis))


def sign(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    if is_complex(node.inputs[0].type.dtype):
        return ANYTHING
    negative, positive = a.lo < 0 or a.flags & NINF, a.hi > 0 or a.flags & PINF
    zero = a.flags & ZERO
    lo = -1.0 if negative else 0.0 if zero else 1.0
    hi = 1.0 if positive else 0.0 if zero else -1.0
    if not negative and not positive and not zero:
        return Fact(INFINITY, -INFINITY, INFINITY, a.flags & NAN, True, a.basis)
    return Fact(lo, hi, 1.0, zero | a.flags & NAN, True, a.basis)


def rounded(function: Callable[[float], int]) -> Rule:
    """floor, ceil and round: monotone, and whole."""

    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        a = facts[0]
        if a.lo > a.hi or not is_float(node.outputs[0].type.dtype):
            return a
        used = away if node.params.get("rounding_method") == 0 else function
        lo = float(used(a.lo)) if math.isfinite(a.lo) else a.lo
        hi = float(used(a.hi)) if math.isfinite(a.hi) else a.hi
        flags = a.flags | (ZERO if lo <= 0 <= hi else 0)
        return tidy(Fact(lo, hi, 1.0, flags, True, a.basis))

    return infer


nearest: Callable[[float], int] = round


def away(x: float) -> int:
    """The nearest integer, that away from zero of two."""
    size = math.floor(abs(x))
    return int(math.copysign(size + (abs(x) - size >= 0.5), x))


def extremum(largest: bool) -> Rule:
    """Max and min: NaN wins."""

    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        a, b = facts
        if is_complex(node.outputs[0].type.dtype):
            return join(a, b)
        return max_facts(a, b) if largest else negate(max_facts(negate(a), negate(b)))

    return infer


def max_facts(a: Fact, b: Fact) -> Fact:
    basis = a.basis if a.basis > b.basis else b.basis
    flags = (a.flags | b.flags) & (NAN | PINF) | a.flags & b.flags & NINF
    flags |= (a.flags | b.flags) & ZERO
    # an operand that may be -inf or NaN does not push the other up
    low_a = a.lo if not a.flags & NINF and a.lo <= a.hi else -INFINITY
    low_b = b.lo if not b.flags & NINF and b.lo <= b.hi else -INFINITY
    lo = max(low_a, low_b, min(a.lo, b.lo))
    hi = max(a.hi, b.hi)
    if (a.lo > a.hi and not a.flags & NINF) or (b.lo > b.hi and not b.flags & NINF):
        hi = -INFINITY  # NaN and inf win
    if lo > hi or (a.lo > a.hi and b.lo > b.hi):
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True, basis)
    return tidy(Fact(lo, hi, min(a.tiny, b.tiny), flags, a.whole and b.whole, basis))


def clamp(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    low, x, high = facts
    up = max_facts(low, x)
    return negate(max_facts(negate(up), negate(high)))


def nextafter(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, b = facts
    numbers = numbers_of(node.outputs[0].type.dtype)
    if not isinstance(numbers, Grid):
        return top(node.outputs[0].type.dtype)
    flags = (a.flags | b.flags) & NAN | ZERO | (a.flags & INF)
    step = a.magnitude * numbers.epsilon + numbers.smallest
    if a.hi >= numbers.max or b.flags & INF:
        flags |= INF
    most = numbers.max
    lo, hi = min(a.lo - step, most), max(a.hi + step, -most)
    if a.flags & INF:
        lo, hi = min(lo, -most), max(hi, most)
    return Fact(lo, hi, numbers.smallest, flags, False, max(a.basis, b.basis))


# -- comparisons and logic ---------------------------------------------------------------------


def boolean(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return BOOLEAN._replace(basis=max(f.basis for f in facts))


def comparison(
    true_if: Callable[[Fact, Fact], bool], false_if: Callable[[Fact, Fact], bool]
) -> Rule:
    """A comparison, decided where no element can make it otherwise; NaN makes all but != false."""

    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        a, b = facts
        if is_complex(node.inputs[0].type.dtype):
            return BOOLEAN
        basis = max(a.basis, b.basis)
        low_a, low_b = _hull(a), _hull(b)
        if not (a.flags | b.flags) & NAN and true_if(low_a, low_b):
            return TRUE._replace(basis=basis)
        if not (a.flags | b.flags) & NAN and false_if(low_a, low_b):
            return FALSE._replace(basis=basis)
        return BOOLEAN._replace(basis=basis)

    return infer


def _hull(f: Fact) -> Fact:
    """With infinities as ends."""
    lo = -INFINITY if f.flags & NINF else INFINITY if f.lo > f.hi else f.lo
    hi = INFINITY if f.flags & PINF else -INFINITY if f.lo > f.hi else f.hi
    return f._replace(lo=lo, hi=hi)


def _apart(a: Fact, b: Fact) -> bool:
    return a.hi < b.lo or b.hi < a.lo


def _equal(a: Fact, b: Fact) -> bool:
    return a.lo == a.hi == b.lo == b.hi


less = comparison(lambda a, b: a.hi < b.lo, lambda a, b: a.lo >= b.hi)
less_equal = comparison(lambda a, b: a.hi <= b.lo, lambda a, b: a.lo > b.hi)
greater = comparison(lambda a, b: a.lo > b.hi, lambda a, b: a.hi <= b.lo)
greater_equal = comparison(lambda a, b: a.lo >= b.hi, lambda a, b: a.hi < b.lo)
equal = comparison(_equal, _apart)
unequal = comparison(_apart, _equal)


def is_finite(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    if not a.flags & SPECIAL and not is_complex(node.inputs[0].type.dtype):
        return TRUE._replace(basis=a.basis)
    return FALSE if a.lo > a.hi else BOOLEAN


def bits(kind: str) -> Rule:
    """and, or, xor of booleans and of integers that are not negative."""

    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        a, b = facts
        dtype = node.outputs[0].type.dtype
        basis = max(a.basis, b.basis)
        if dtype == "bool":
            if kind == "and":
                return Fact(min(a.lo, b.lo), min(a.hi, b.hi), 1.0, PZERO, True, basis)
            if kind == "or":
                return Fact(max(a.lo, b.lo), max(a.hi, b.hi), 1.0, PZERO, True, basis)
            return BOOLEAN._replace(basis=basis)
        if kind == "and":
            tops = [f.hi for f in facts if f.lo >= 0]
            if tops:
                return Fact(0.0, min(tops), 1.0, PZERO, True, basis)
        elif a.lo >= 0 and b.lo >= 0:
            lo = max(a.lo, b.lo) if kind == "or" else 0.0
            if kind == "or" and _disjoint(a, b):
                return Fact(a.lo + b.lo, a.hi + b.hi, 1.0, PZERO, True, basis)
            top_bit = 2.0 ** math.frexp(max(a.hi, b.hi))[1] - 1
            return Fact(lo, max(top_bit, lo), 1.0, PZERO, True, basis)
        return top(dtype)._replace(basis=basis)

    return infer


def _disjoint(a: Fact, b: Fact) -> bool:
    """Whether one is a constant that has no bit among those of the other."""
    for c, x in ((a, b), (b, a)):
        if c.lo == c.hi and c.lo > 0:
            lowest = int(c.lo) & -int(c.lo)
            if x.hi < lowest:
                return True
    return False


def invert(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, dtype = facts[0], node.outputs[0].type.dtype
    numbers = numbers_of(dtype)
    if not isinstance(numbers, Integers):
        return top(dtype)
    # ~x is max - x for unsigned and bool, -1 - x for signed integers
    base = numbers.max if numbers.min == 0 else -1.0
    return interval(base - a.hi, base - a.lo, 0, 1.0, True)._replace(basis=a.basis)


def shift_right(logical: bool) -> Rule:
    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        a, b = facts
        dtype = node.outputs[0].type.dtype
        if (a.lo < 0 and logical) or b.lo < 0:
            return top(dtype)
        least = min(b.lo, 1023.0)
        lo = a.lo if a.lo < 0 else 0.0
        return interval(lo, float(math.floor(a.hi / 2**least)) if a.hi > 0 else 0.0, 0, 1.0, True)

    return infer


def shift_left(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, b = facts
    if a.lo < 0 or b.lo < 0 or b.hi > 31:
        return top(node.outputs[0].type.dtype)
    return interval(0.0, a.hi * 2**b.hi, 0, 1.0, True)


def bit_count(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return Fact(0.0, 64.0, 1.0, PZERO, True)


# -- selection and types -----------------------------------------------------------------------


def select(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.guards import guarded

    which, *cases = facts
    if which.point and which.whole and len(cases) > which.lo >= 0:
        return cases[int(which.lo)]._replace(basis=max(which.basis, cases[int(which.lo)].basis))
    cases = guarded(node, cases, ctx)
    f = cases[0]
    for case in cases[1:]:
        f = join(f, case)
    return f


def convert(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """A cast rounds to nearest, which is monotone: its bounds are exact."""
    return cast_fact(facts[0], node.inputs[0].type.dtype, node.outputs[0].type.dtype)


def cast_fact(a: Fact, source: str, target: str) -> Fact:
    numbers, given = numbers_of(target), numbers_of(source)
    if isinstance(numbers, Integers):
        if target == "bool":
            zero = bool(a.flags & ZERO) or is_complex(source)
            nonzero = a.lo < 0 or a.hi > 0 or bool(a.flags & SPECIAL)
            return Fact(0.0 if zero else 1.0, 1.0 if nonzero else 0.0, 1.0, PZERO, True, a.basis)
        if isinstance(given, Grid):
            return _truncated(a, numbers, target)
        return a
    if is_complex(source) and not is_complex(target):
        return a
    if is_complex(target):
        return a._replace(flags=a.flags | PZERO, lo=min(a.lo, 0.0), hi=max(a.hi, 0.0))
    if isinstance(numbers, Grid) and a.lo <= a.hi:
        f = project(a, target)
        if not numbers.signed or (a.flags & SPECIAL and not numbers.nan):
            return f  # infinities and NaNs become numbers too
        sure = numbers.smallest_normal if numbers.flushes else 0.0
        lo = max(f.lo, round_nearest(a.lo, numbers)) if sure <= abs(a.lo) <= f.magnitude else f.lo
        hi = min(f.hi, round_nearest(a.hi, numbers)) if sure <= abs(a.hi) <= f.magnitude else f.hi
        return tidy(f._replace(lo=lo, hi=hi))
    return a


def _truncated(a: Fact, numbers: Integers, target: str) -> Fact:
    """Float to integer: towards zero; XLA:CPU gives 0 for NaN and saturates, others may not."""
    if a.flags & SPECIAL or a.lo > a.hi or a.lo <= numbers.min - 1 or a.hi >= numbers.max + 1:
        return top(target)._replace(basis=a.basis)
    lo, hi = float(math.trunc(a.lo)), float(math.trunc(a.hi))
    return interval(lo, hi, 0, 1.0, True)._replace(basis=a.basis)


def _shortened(node: Node, source: str, target: str) -> Value | None:
    """X of a float whose last bits were masked out: nearer to zero than x, its sign kept."""
    made = node.inputs[0].node if isinstance(node.inputs[0], Value) else None
    if made is None or made.op != "and" or (source, target) != ("uint32", "float32"):
        return None
    for bits, mask in (made.inputs, made.inputs[::-1]):
        given = bits.node if isinstance(bits, Value) else None
        if given is None or given.op != "bitcast_convert_type" or not isinstance(mask, Literal):
            continue
        inner = given.inputs[0]
        keeps = isinstance(mask.value, int) and mask.value >= 0xFF800000  # sign and exponent
        if keeps and isinstance(inner, Value) and inner.type.dtype == target:
            return inner
    return None


def bitcast(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    """Of integers that are the patterns of finite positive floats, the floats, in order."""
    a, source, target = facts[0], node.inputs[0].type.dtype, node.outputs[0].type.dtype
    if source == target:
        return a
    whole = _shortened(node, source, target)
    if whole is not None:
        f = ctx.of(whole)
        if f.finite and not f.empty:
            return Fact(min(f.lo, 0.0), max(f.hi, 0.0), 0.0, ZERO, False, f.basis)
    numbers, given = numbers_of(target), numbers_of(source)
    if isinstance(numbers, Grid) and isinstance(given, Integers) and not is_complex(target):
        width = np.dtype(f"uint{source.lstrip('uint')}")
        float_ = np.dtype(target)
        if float_.itemsize == width.itemsize and 0 <= a.lo <= a.hi:
            pattern = int(np.array(numbers.max, float_).view(width))
            if a.hi <= pattern:
                ends = np.array([int(a.lo), int(a.hi)], width).view(float_).astype(np.float64)
                return interval(float(ends[0]), float(ends[1]), 0)._replace(basis=a.basis)
    return top(target)._replace(basis=a.basis)


def reduce_precision(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    p = node.params
    if is_complex(node.outputs[0].type.dtype) or not is_float(node.outputs[0].type.dtype):
        return a
    exponent, mantissa = int(p["exponent_bits"]), int(p["mantissa_bits"])
    bias = 2 ** (exponent - 1) - 1
    if bias > 1000 or mantissa > 50:
        return a
    most = (2 - 2.0**-mantissa) * 2.0**bias
    # more exponents than the type has make no difference to it
    normal = max(2.0 ** (1 - bias), smallest_normal(node.outputs[0].type.dtype))
    grid = Grid(
        most, most + 2.0 ** (bias - mantissa - 1), mantissa + 1, -bias - mantissa, normal,
        normal * 2.0**-mantissa, 2.0**-mantissa, False, "inf", True, True, True, True,
    )  # fmt: skip
    lo, hi, flags, tiny = a.lo, a.hi, a.flags, a.tiny
    if lo > hi:
        return a
    if hi >= grid.overflow_at:
        flags |= PINF
    if lo <= -grid.overflow_at:
        flags |= NINF
    if tiny < normal:
        flags |= (PZERO if hi > 0 else 0) | (NZERO if lo < 0 else 0)
        tiny = grid.smallest
        lo, hi = (0.0 if lo > 0 and flags & ZERO else lo), (0.0 if hi < 0 and flags & ZERO else hi)
    unit = 2.0**-mantissa
    if lo:
        low = lo - max(abs(lo) * unit, normal * unit)
        lo = low if lo < 0 else max(low, 0.0)
    if hi:
        high = hi + max(abs(hi) * unit, normal * unit)
        hi = high if hi > 0 else min(high, 0.0)
    if lo > most or hi < -most:
        return Fact(INFINITY, -INFINITY, INFINITY, flags & SPECIAL, True, a.basis)
    tiny = tiny * (1 - unit) if tiny < INFINITY else tiny
    return Fact(max(lo, -most), min(hi, most), tiny, flags, a.whole, a.basis)


def complex_parts(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    f = facts[0]
    for other in facts[1:]:
        f = join(f, other)
    return f


def conjugate(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    return join(a, negate(a)) if is_complex(node.inputs[0].type.dtype) else join(a, FALSE)


def same_as_operand(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """Moves numbers, makes none."""
    return [facts[0]] * len(node.outputs)


def joined(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """Every result element is one of some operand's."""
    f = facts[0]
    for other in facts[1:]:
        f = join(f, other)
    return [f] * len(node.outputs)
