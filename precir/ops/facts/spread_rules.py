"""How spreads and totals go through ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from precir.domains.fact import Fact
from precir.domains.kinds import ZERO
from precir.domains.rounding import INFINITY
from precir.ir import Node, Operand, Value
from precir.ops.facts.spreads import (
    Spread,
    Total,
    covering,
    fitted,
    growth,
    inverse,
    is_zero,
    long,
    product,
    raised,
    regrouped,
    sum_of,
    unit,
)
from precir.ops.facts.views import view

Found = tuple[Spread | None, Total | None]
NONE: Found = (None, None)


class Known(Protocol):
    """What is known of operands."""

    def of(self, operand: Operand) -> Spread | None:
        """An operand's spread."""

    def total(self, operand: Operand) -> Total | None:
        """An operand's total."""

    def is_base(self, value: Value) -> bool:
        """Whether spreads vary with a value."""


def _fitted(s: Known, node: Node, i: int) -> Found:
    """An operand's, as the result has it."""
    o = node.inputs[i]
    shape, result = o.type.shape, node.outputs[0].type.shape
    spread = s.of(o)
    if spread is not None:
        spread = fitted(spread, shape, result)
    total = s.total(o)
    if total is not None and (len(shape) != len(result)):
        total = None
    return spread, total


def _mul(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    a, b = facts
    (sa, ta), (sb, tb) = _fitted(s, node, 0), _fitted(s, node, 1)
    if sa is None and sb is None and ta is None and tb is None:
        return NONE
    shape = node.outputs[0].type.shape
    spread = product(sa, sb) if sa is not None and sb is not None else None
    if spread is None and (sa is not None or sb is not None):
        first = sa is not None and (sb is None or len(sa.free) >= len(sb.free))
        spread = _times(sa, tb, b.magnitude, shape) if first else _times(sb, ta, a.magnitude, shape)
    return spread, _scaled_total(ta, b.magnitude, tb, a.magnitude)


def _scaled_total(ta: Total | None, mb: float, tb: Total | None, ma: float) -> Total | None:
    one = Total(ta.axes, ta.most * mb) if ta is not None else None
    other = Total(tb.axes, tb.most * ma) if tb is not None else None
    if one is None or other is None:
        return one or other
    return one if one.most <= other.most else other


def _times(
    spread: Spread | None, total: Total | None, most: float, shape: tuple[int, ...]
) -> Spread | None:
    """A spread times a value of which a magnitude and perhaps a total is known."""
    if spread is None:
        return None
    axes = long(spread.free, shape)
    summed = covering(total, axes, shape) if total is not None and total.axes <= axes else INFINITY
    return spread._replace(
        bound=spread.bound * most,
        total=min(spread.total * most, spread.bound * summed),
        exact=False,
    )


def _div(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    a, b = facts
    (sa, ta), (sb, _) = _fitted(s, node, 0), _fitted(s, node, 1)
    dtype, shape = node.outputs[0].type.dtype, node.outputs[0].type.shape
    least = 0.0 if b.flags & ZERO else max(b.lo, -b.hi, b.tiny)
    total = Total(ta.axes, ta.most / least) if ta is not None and least else None
    under = inverse(sb, dtype) if sb is not None else None
    if under is not None:
        count = math.prod(shape[i] for i in under.free)
        under = under._replace(total=under.bound * count)
        spread = product(sa, under) if sa is not None else None
        return spread or _times(under, ta, a.magnitude, shape), total
    if sa is not None and least and math.isfinite(1 / least):
        return sa.scaled(1 / least)._replace(exact=sa.exact and b.point), total
    return None, total


def _add(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    a, b = facts
    (sa, ta), (sb, tb) = _fitted(s, node, 0), _fitted(s, node, 1)
    if sa is None and sb is None and ta is None and tb is None:
        return NONE
    shape = node.outputs[0].type.shape
    if is_zero(b):
        return sa, ta
    if is_zero(a):
        return sb, tb
    spread = sum_of(sa, sb) if sa is not None and sb is not None else None
    found: Total | None = None
    for axes in {t.axes for t in (ta, tb) if t is not None}:
        count = math.prod(shape[i] for i in axes)
        one = min(covering(ta, axes, shape) if _inside(ta, axes) else INFINITY, count * a.magnitude)
        two = min(covering(tb, axes, shape) if _inside(tb, axes) else INFINITY, count * b.magnitude)
        most = (one + two) * (1 + 2 * unit(node.outputs[0].type.dtype))
        if found is None or most < found.most:
            found = Total(axes, most)
    return spread, found


def _inside(total: Total | None, axes: frozenset[int]) -> bool:
    return total is not None and total.axes <= axes


def _same(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    return _fitted(s, node, 0)


def _power(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    n = node.params["y"] if node.op == "integer_pow" else 2
    spread = s.of(node.inputs[0])
    if spread is None:
        return NONE
    found = raised(spread, n, node.outputs[0].type.dtype)
    return (
        found.scaled((MORE + 2 * unit(node.outputs[0].type.dtype)) ** abs(n))
        if found is not None
        else None
    ), None


MORE = 1 + 2.0**-18


def _root(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    spread = s.of(node.inputs[0])
    shown = view(node.inputs[0]) if isinstance(node.inputs[0], Value) else None
    if spread is None and shown is not None and s.is_base(shown.root):
        spread = Spread(shown.root, shown.dims, 0.0, 1.0, 1.0, 1.0, exact=True)
    if spread is None or not spread.exact or spread.bound != 1.0:
        return NONE
    sign = 0.5 if node.op == "sqrt" else -0.5
    found = spread._replace(outer=spread.outer * sign, bound=MORE, total=INFINITY)
    count = math.prod(node.outputs[0].type.shape[i] for i in found.free)
    return found._replace(total=MORE * count), None


def _sum(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    x = node.inputs[0]
    shape, dtype = x.type.shape, node.outputs[0].type.dtype
    spread = s.of(x)
    total = s.total(x)
    if spread is None and total is None:
        return NONE
    axes = frozenset(node.params["axes"])
    kept = [i for i in range(len(shape)) if i not in axes]
    count = math.prod(shape[i] for i in axes)
    more = growth(count, dtype)
    if spread is not None:
        if axes <= spread.free and more < INFINITY:
            bound = min(spread.bound * count, spread.total) * more
            spread = spread._replace(
                dims=tuple(spread.dims[i] for i in kept),
                bound=bound,
                total=spread.total * more,
                exact=False,
            )
        else:
            spread = None
    if total is not None:
        most = total.most * math.prod(shape[i] for i in axes - total.axes) * more
        left = frozenset(kept.index(i) for i in total.axes - axes)
        total = Total(left, most) if most < INFINITY else None
    return spread, total


def _broadcast(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    x = node.inputs[0]
    shape, result = x.type.shape, node.outputs[0].type.shape
    spread = s.of(x)
    total = s.total(x)
    if spread is None and total is None:
        return NONE
    to = [int(i) for i in node.params["broadcast_dimensions"]]
    if spread is not None:
        dims: list[int | None] = [None] * len(result)
        for i, axis in enumerate(to):
            dims[axis] = spread.dims[i]
        repeated = math.prod(result) // max(math.prod(shape), 1)
        spread = spread._replace(dims=tuple(dims), total=spread.total * repeated)
    if total is not None:
        total = Total(frozenset(to[i] for i in total.axes), total.most)
    return spread, total


def _reshape(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    x = node.inputs[0]
    shape, result = x.type.shape, node.outputs[0].type.shape
    spread = s.of(x)
    total = s.total(x)
    if spread is not None:
        kept = [i for i, n in enumerate(shape) if n != 1]
        if [shape[i] for i in kept] == [n for n in result if n != 1]:
            order = iter(kept)
            dims = tuple(None if n == 1 else spread.dims[next(order)] for n in result)
            spread = spread._replace(dims=dims)
        else:
            spread = None
    if total is not None:
        axes, times = regrouped(total.axes, shape, result)
        total = Total(axes, total.most * times) if times else None
    return spread, total


def _transpose(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    x = node.inputs[0]
    order = list(node.params["permutation"])
    spread = s.of(x)
    total = s.total(x)
    if spread is not None:
        spread = spread._replace(dims=tuple(spread.dims[i] for i in order))
    if total is not None:
        total = Total(frozenset(order.index(i) for i in total.axes), total.most)
    return spread, total


def _select(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    """Of cases one of which has a spread and all others are zero."""
    alive = [i for i in range(1, len(facts)) if not is_zero(facts[i])]
    if len(alive) != 1 or node.inputs[alive[0]].type.shape != node.outputs[0].type.shape:
        return NONE
    spread, total = _fitted(s, node, alive[0])
    return (spread._replace(exact=False) if spread is not None else None), total


def _dot(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    """A sum of products is no larger than a total times the largest of the other operand."""
    (contracted, _) = node.params["dimension_numbers"]
    most = INFINITY
    for i, axes in enumerate(contracted):
        x = node.inputs[i]
        total = s.total(x)
        if total is not None and axes:
            count = math.prod(x.type.shape[a] for a in axes)
            rest = math.prod(x.type.shape[a] for a in axes if a not in total.axes)
            more = growth(count, "float32" if unit(x.type.dtype) > 1e-4 else x.type.dtype)
            most = min(most, total.most * rest * facts[1 - i].magnitude * more)
    return (None, Total(frozenset(), most)) if most < INFINITY else NONE


def _scatter(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    """Of a few numbers added to zeros: they are all that there is along the scattered axes."""
    dims = node.params["dimension_numbers"]
    if dims.update_window_dims or not is_zero(facts[0]):
        return NONE
    axes = long(frozenset(dims.inserted_window_dims), node.outputs[0].type.shape)
    indices = node.inputs[1].type.shape
    batch = getattr(dims, "scatter_indices_batching_dims", ())
    count = math.prod(n for i, n in enumerate(indices[:-1]) if i not in batch)
    most = count * facts[2].magnitude * growth(count, node.outputs[0].type.dtype)
    return (None, Total(axes, most)) if axes and most < INFINITY else NONE


def _pad(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    """Zeros beside a value add nothing to its total."""
    padding = node.params["padding_config"]
    if not is_zero(facts[1]) or any(low < 0 or high < 0 for low, high, _ in padding):
        return NONE
    x = node.inputs[0]
    shape, result = x.type.shape, node.outputs[0].type.shape
    axes = frozenset(i for i in range(len(shape)) if shape[i] != result[i])
    total = s.total(x)
    if total is None:
        return None, Total(axes, facts[0].magnitude * math.prod(shape[i] for i in axes))
    whole = axes | total.axes
    return None, Total(whole, covering(total, whole, shape))


def _concatenate(s: Known, node: Node, facts: Sequence[Fact]) -> Found:
    axis = node.params["dimension"]
    most = 0.0
    for x, f in zip(node.inputs, facts, strict=True):
        total = s.total(x)
        mine = f.magnitude * x.type.shape[axis]
        if total is not None and total.axes <= {axis}:
            mine = min(mine, covering(total, frozenset([axis]), x.type.shape))
        most += mine
    return None, Total(frozenset([axis]), most)


STARTING = frozenset(["scatter-add", "pad", "concatenate"])
SUMS = frozenset(["reduce_sum", "dot_general"])
RULES: dict[str, Callable[[Known, Node, Sequence[Fact]], Found]] = {
    "mul": _mul,
    "div": _div,
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "neg": _same,
    "abs": _same,
    "stop_gradient": _same,
    "copy": _same,
    "convert_element_type": _same,
    "integer_pow": _power,
    "square": _power,
    "sqrt": _root,
    "rsqrt": _root,
    "reduce_sum": _sum,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "select_n": _select,
    "dot_general": _dot,
    "scatter-add": _scatter,
    "pad": _pad,
    "concatenate": _concatenate,
}
