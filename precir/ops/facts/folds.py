"""Folds of an axis: sums, extrema, products, cumulative ops, windows; and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from precir.domains.fact import (
    ANYTHING,
    Fact,
    Integers,
    interval,
    join,
    numbers_of,
    of_number,
    project,
    tidy,
    top,
)
from precir.domains.kinds import INF, NAN, NINF, NZERO, PINF, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY, Grid, grid_of
from precir.ir import Node
from precir.ops.facts.algebra import is_complex, mul_facts, smallest, square_facts
from precir.ops.facts.arithmetic import same
from precir.ops.facts.context import Answer, Context, Rule
from precir.ops.facts.margins import outwards
from precir.ops.facts.masks import keeps_some

ZERO_FACT = of_number(0.0)


def sum_facts(f: Fact, count: float, dtype: str, wide: bool = False) -> Fact:
    """Of a sum of `count` such numbers, in any order, rounded in `dtype` (in float32 if wide).

    Rounding errors of n terms grow a sum by at most (1 + u)**n, and by no more than twice: a term
    is absorbed once the sum's unit in the last place is twice as large as it.
    """
    if count == 0:
        return ZERO_FACT
    if count == 1 or (f.lo > f.hi and not f.flags & ZERO):
        extra = NAN if count > 1 and f.flags & PINF and f.flags & NINF else 0
        return f._replace(flags=f.flags | extra)
    flags = f.flags & SPECIAL
    if flags & PINF and flags & NINF:
        flags |= NAN
    lo, hi = min(f.lo * count, f.lo), max(f.hi * count, f.hi)
    if f.lo > 0:
        lo = f.lo * count
    if f.hi < 0:
        hi = f.hi * count
    if flags & SPECIAL:  # the finite terms of some other sum
        lo, hi = min(lo, f.lo), max(hi, f.hi)
    grid = numbers_of(dtype)
    tiny = smallest(dtype)
    if isinstance(grid, Grid):
        used = grid_of("float32") if wide and grid.max < 1e38 else grid
        tiny = min(tiny, used.smallest)
        growth = min(math.expm1(min(count * used.epsilon, 1.0)), 1.0)
        if not f.whole or max(-lo, hi) * used.epsilon >= 1:
            lo, hi = (
                lo * (1 - growth if lo > 0 else 1 + growth),
                hi * (1 + growth if hi > 0 else 1 - growth),
            )
        if hi >= used.overflow_at and lo <= -used.overflow_at:
            flags |= NAN  # one part overflows upwards, another downwards
    else:
        lo, hi = outwards(lo, hi) if max(-lo, hi) >= 2**53 else (lo, hi)
    one_sign = f.lo >= 0 or f.hi <= 0
    if one_sign:
        tiny = f.tiny
        if not f.flags & ZERO:
            return tidy(Fact(lo, hi, tiny, flags, f.whole, f.basis))
    flags |= PZERO | (f.flags & NZERO)
    return Fact(min(lo, 0.0), max(hi, 0.0), tiny, flags, f.whole, f.basis)


def folded(node: Node) -> int:
    """How many elements go into one of the result."""
    shape = node.inputs[0].type.shape
    return math.prod(shape[a] for a in node.params["axes"])


def reduce_sum(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.relations import total

    f = sum_facts(facts[0], folded(node), node.outputs[0].type.dtype)
    return total(node, f, ctx)


def reduce_extremum(largest: bool) -> Rule:
    def infer(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
        a = facts[0]
        if is_complex(node.outputs[0].type.dtype):
            return ANYTHING
        if folded(node) == 0:
            return empty_extremum(node.outputs[0].type.dtype, largest)
        # an infinity of the losing sign survives only where all are it
        if largest and a.flags & NINF and keeps_some(node, ctx):
            return a._replace(flags=a.flags & ~NINF)
        return a

    return infer


def empty_extremum(dtype: str, largest: bool) -> Fact:
    """The identity of max or min."""
    numbers = numbers_of(dtype)
    if isinstance(numbers, Integers):
        return of_number(numbers.min if largest else numbers.max)
    if numbers is None or numbers.overflow != "inf":
        return top(dtype)
    return of_number(-INFINITY if largest else INFINITY)


def reduce_prod(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return product_facts(facts[0], folded(node), node.outputs[0].type.dtype)


def product_facts(a: Fact, count: int, dtype: str) -> Fact:
    if is_complex(dtype):
        return ANYTHING
    if count == 0:
        return of_number(1.0)
    if count == 1:
        return a
    if a.flags & SPECIAL:
        return ANYTHING._replace(basis=a.basis)
    most = _raise(a.magnitude, count)
    nonnegative = a.lo >= 0 and not a.flags & NZERO
    least = _raise(max(a.lo, 0.0), count) if a.lo > 0 else 0.0
    flags = PZERO if nonnegative else ZERO
    if not a.flags & ZERO and a.lo > 0:
        flags = 0
    if most > 1:
        most = max(most, a.magnitude)
        if math.isinf(most) or most > 1e30:
            flags |= NAN if a.flags & ZERO else 0  # a part overflows, and meets a zero
    grid = numbers_of(dtype)
    growth = 1 + min(count * (grid.epsilon if isinstance(grid, Grid) else 0.0), 1.0)
    tiny = _raise(min(a.tiny, 1.0), count) / growth
    high = most * growth if a.magnitude > 1 else min(most, 1.0)
    low = least / growth if nonnegative else -high
    if low > 0:
        return Fact(low, high, low, flags, a.whole, a.basis)
    return Fact(
        min(low, 0.0), high, tiny, flags | (PZERO if nonnegative else ZERO), a.whole, a.basis
    )


def _raise(x: float, n: int) -> float:
    try:
        return x**n
    except OverflowError:
        return INFINITY


def argument(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    size = folded(node)
    return Fact(0.0, float(max(size - 1, 0)), 1.0, PZERO, True)


def axis_length(node: Node) -> int:
    return int(node.inputs[0].type.shape[node.params["axis"]])


def cumsum(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    return join(a, sum_facts(a, axis_length(node), node.outputs[0].type.dtype))


def cumprod(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    return join(a, product_facts(a, axis_length(node), node.outputs[0].type.dtype))


def cumlogsumexp(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    if is_complex(node.outputs[0].type.dtype) or a.lo > a.hi:
        return ANYTHING._replace(basis=a.basis)
    more = math.log(max(axis_length(node), 1)) + 0.02 + a.magnitude * 0.01
    return interval(a.lo - 0.02 - a.magnitude * 0.01, a.hi + more, a.flags & SPECIAL)._replace(
        basis=a.basis
    )


# -- windows -----------------------------------------------------------------------------------


def window(node: Node) -> int:
    return math.prod(node.params["window_dimensions"])


def window_sum(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = join(facts[0], ZERO_FACT)
    return sum_facts(a, window(node), node.outputs[0].type.dtype)


def window_extremum(largest: bool) -> Rule:
    def infer(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
        p = node.params
        sizes = zip(p["window_dimensions"], p["padding"], strict=True)
        holes = any(d != 1 for d in (*p.get("base_dilation", ()), *p.get("window_dilation", ())))
        if not holes and all(max(padding) < size for size, padding in sizes):
            return facts[0]  # every window meets an element
        return join(facts[0], empty_extremum(node.outputs[0].type.dtype, largest))

    return infer


def scatter_windows(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """select_and_scatter_add: sums of source elements whose windows chose one place."""
    a = join(facts[0], ZERO_FACT)
    return sum_facts(a, window(node), node.outputs[0].type.dtype)


def gather_windows(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """select_and_gather_add: an element of the first operand, or 0 for padding."""
    return join(facts[0], ZERO_FACT)


# -- products ----------------------------------------------------------------------------------


def _terms(a: Fact, b: Fact, node: Node) -> Fact:
    return square_facts(a) if same(node) and node.inputs[0].type.rank == 1 else mul_facts(a, b)


def contraction(a: Fact, b: Fact, count: int, dtype: str, terms: Fact | None = None) -> Fact:
    """Of sums of `count` products, accumulated in float32 or wider, or exactly for integers."""
    if is_complex(dtype):
        return ANYTHING._replace(basis=max(a.basis, b.basis))
    terms = mul_facts(a, b) if terms is None else terms
    f = sum_facts(terms, count, dtype, wide=True)
    # the products underflow on their own where the accumulator is no wider
    if f.tiny < smallest(dtype) and not f.flags & ZERO and f.lo >= 0:
        f = f._replace(lo=0.0, flags=f.flags | PZERO)
    return f


def dot_general(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    from precir.ops.facts.relations import mixture

    a, b = facts
    ((axes, _), _) = node.params["dimension_numbers"]
    shape = node.inputs[0].type.shape
    count = math.prod(shape[i] for i in axes)
    dtype = node.outputs[0].type.dtype
    terms = None
    if same(node) and node.inputs[0].type.rank == 1 and axes:
        terms = square_facts(a)
    return mixture(node, contraction(a, b, count, dtype, terms), a, b, ctx)


def scaled_dot(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    """The float32 product, times 2^shift before it is rounded."""
    shift = node.params.get("shift", 0)
    if not shift:
        f = dot_general(node, facts, ctx)
        assert isinstance(f, Fact)
        return f
    ((axes, _), _) = node.params["dimension_numbers"]
    count = math.prod(node.inputs[0].type.shape[i] for i in axes)
    f = contraction(facts[0], facts[1], count, "float32")
    return mul_facts(project(f, "float32"), of_number(2.0**shift))


def quantize(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """The value of data times scale: rounded to the format's precision, never past amax's power.

    Under a scale that is not the tensor's own all of it may be subnormal, where rounding doubles.
    """
    a = facts[0]
    lo, hi = a.lo, a.hi
    if lo <= hi:
        most = 1.13 if node.params.get("scaling", "current") == "current" else 2.0
        lo, hi = (lo * most if lo < 0 else 0.0), (hi * most if hi > 0 else 0.0)
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    flags = a.flags | ZERO
    if flags & INF:
        flags |= NAN
        lo, hi = -INFINITY, INFINITY
    return Fact(lo, hi, 0.0, flags, False, a.basis)


def dequantize(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """The value that data times scale stands for."""
    return facts[0]


def ragged_dot(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    a, b = facts[0], facts[1]
    count = max(node.inputs[0].type.shape, default=1)
    return join(ZERO_FACT, contraction(a, b, count, node.outputs[0].type.dtype))


def convolution(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, b = facts
    numbers = node.params["dimension_numbers"]
    kernel = node.inputs[1].type.shape
    spec: Any = numbers.rhs_spec
    count = math.prod(kernel[d] for d in spec[1:])
    count = max(count, 1)
    f = contraction(a, b, count, node.outputs[0].type.dtype)
    return join(f, ZERO_FACT)  # windows in the padding


def fourier(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = facts[0]
    if a.flags & SPECIAL or a.lo > a.hi:
        return ANYTHING._replace(basis=a.basis)
    most = a.magnitude * math.prod(node.params["fft_lengths"]) * 2.0
    grid = numbers_of(node.outputs[0].type.dtype)
    if isinstance(grid, Grid) and most > grid.max:
        return ANYTHING._replace(basis=a.basis)
    return Fact(-most, most, 0.0, ZERO, False, a.basis)


def psum(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    sizes = [ctx.axis_size(axis) for axis in _axes(node)]
    if any(s is None for s in sizes):
        return [ANYTHING if f.lo != f.hi or f.lo else f for f in facts]
    count = math.prod(s for s in sizes if s is not None)
    return [sum_facts(f, count, v.type.dtype) for f, v in zip(facts, node.outputs, strict=True)]


def reduce_scatter(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    size = node.params.get("axis_size")
    return sum_facts(facts[0], size, node.outputs[0].type.dtype) if size else ANYTHING


def axis_index(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    size = ctx.axis_size(node.params.get("axis_name"))
    if size is None:
        return top(node.outputs[0].type.dtype)
    return Fact(0.0, float(size - 1), 1.0, PZERO, True)


def _axes(node: Node) -> tuple[Any, ...]:
    axes = node.params.get("axes", ())
    return tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)
