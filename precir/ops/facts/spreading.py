"""How spreads go through ops, and what they make of the facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from precir.domains.fact import Fact, numbers_of
from precir.domains.kinds import SPECIAL
from precir.domains.rounding import INFINITY, Grid
from precir.formats import FORMATS
from precir.ir import Literal, Node, Operand, Value
from precir.ops.facts.context import Context
from precir.ops.facts.gradients import softmax_operands
from precir.ops.facts.normalised import divided
from precir.ops.facts.norms import norm_of, shares
from precir.ops.facts.spread_rules import RULES, STARTING, SUMS
from precir.ops.facts.spreads import (
    Base,
    Spread,
    Total,
    finite,
    infimum,
    is_zero,
    long,
    supremum,
    together,
    unit,
    within,
)
from precir.ops.facts.views import View, alike, constant, view

DEEP = 4  # operations made before a base was known that are looked through


@dataclass
class Spreads:
    """Those of the values of one graph."""

    ctx: Context
    _spread: dict[Value, Spread] = field(default_factory=dict)
    _total: dict[Value, Total] = field(default_factory=dict)
    _base: dict[Value, Base] = field(default_factory=dict)
    _difference: dict[View, list[tuple[View, Spread]]] = field(default_factory=dict)

    def after(self, node: Node, facts: Sequence[Fact], f: Fact) -> Fact:
        """What is known of a node's result, a spread taken into account; its own is kept."""
        op = node.op
        if op in ("sqrt", "rsqrt"):
            self._begin(node, facts[0])
        elif op == "reduce_sum":
            self._begin_shares(node, facts[0], f)
        rule = RULES.get(op)
        if rule is None or not (self._base or self._total or op in STARTING):
            return f
        out = node.outputs[0]
        if out.type.dtype not in FORMATS or not finite(*facts) or out in self._base:
            return f
        spread, total = rule(self, node, facts)
        if spread is None and total is None:
            return f
        if op == "mul" and spread is not None and spread.inner == spread.outer == 0:
            softmax = softmax_operands(node, self)
            if softmax is not None and finite(g := self.ctx.of(softmax[0])):
                most = softmax[1] * g.magnitude
                spread = spread._replace(bound=min(spread.bound, most))
        if op in ("add", "add_any", "sub") and spread is not None:
            a, b = (self.of(o) for o in node.inputs)
            if a is not None and b is not None and a.dims == b.dims == spread.dims:
                f = within(f, together(a, b, self._base[spread.base]))
        return self._keep(out, spread, total, f, op in SUMS)

    def _keep(
        self, out: Value, spread: Spread | None, total: Total | None, f: Fact, sums: bool
    ) -> Fact:
        dtype, shape = out.type.dtype, out.type.shape
        numbers = numbers_of(dtype)
        assert isinstance(numbers, Grid)
        if spread is not None:
            base = self._base[spread.base]
            spread = spread.scaled(1 + 2 * unit(dtype))
            least = infimum(spread, base)
            if spread.bound * least < numbers.smallest_normal:  # it may round away from zero
                bound = max(spread.bound, numbers.smallest_normal / least if least else INFINITY)
                count = math.prod(shape[i] for i in spread.free)
                total_ = max(spread.total, bound * count)
                spread = spread._replace(bound=bound, total=total_, exact=False)
            most = supremum(spread, base)
            if math.isfinite(spread.bound) and math.isfinite(most):
                self._spread[out] = spread
                f = within(f, spread.bound * most)
                axes = long(spread.free, shape)
                if axes and spread.total * most < INFINITY:
                    mine = Total(axes, spread.total * most)
                    if total is None or (total.axes <= axes and mine.most <= total.most):
                        total = mine
        if total is not None:
            f = within(f, total.most)
            count = math.prod(shape[i] for i in total.axes)
            if total.axes and total.most < 0.99 * count * f.magnitude and total.most > 1e-25:
                self._total[out] = total
        if sums and f.magnitude < numbers.max * 0.95 and f.flags & SPECIAL:  # nor any part of it
            f = f._replace(flags=f.flags & ~SPECIAL)
        return f

    # -- bases -------------------------------------------------------------------------------------

    def _begin(self, node: Node, f: Fact) -> None:
        under = node.inputs[0]
        if not isinstance(under, Value) or f.flags & SPECIAL or not f.lo > 0 or f.hi == INFINITY:
            return
        if under.type.dtype not in FORMATS:
            return
        shown = view(under)
        root = shown.root
        if root in self._base:
            return
        norm = norm_of(under, f, self.ctx)
        if norm is None:
            return
        self._base[root] = Base(f.lo, f.hi, norm.eps)
        own = tuple(i if n != 1 else None for i, n in enumerate(root.type.shape))
        self._spread[root] = Spread(root, own, 0.0, 1.0, 1.0, 1.0, exact=True)
        self._spread[norm.value] = norm.spread
        made = norm.value.node
        if made is not None and made.op == "sub":
            x, y = _shown(made)
            self._difference.setdefault(x, []).append((y, norm.spread))
        source = view(norm.value)
        if source.root is not norm.value and None not in source.dims:
            dims = [norm.spread.dims[source.dims.index(i)] for i in range(len(source.dims))]
            self._spread[source.root] = norm.spread._replace(dims=tuple(dims))

    def _begin_shares(self, node: Node, a: Fact, f: Fact) -> None:
        if not finite(a, f) or node.outputs[0].type.dtype not in FORMATS or f.hi == INFINITY:
            return
        found = shares(node, a, f, self.ctx)
        if found is not None:
            s, x = node.outputs[0], node.inputs[0]
            assert isinstance(x, Value)
            self._base[s] = Base(f.lo, f.hi, 0.0)
            self._spread[s], terms = found
            if x not in self._spread:
                self._spread[x] = terms

    def total(self, operand: Operand) -> Total | None:
        return None if isinstance(operand, Literal) else self._total.get(operand)

    def is_base(self, value: Value) -> bool:
        return value in self._base

    def of(self, operand: Operand, depth: int = DEEP) -> Spread | None:
        """An operand's spread: of what was made before its base was known, found now."""
        if isinstance(operand, Literal):
            return None
        found = self._spread.get(operand)
        if found is not None or not self._base or depth == 0:
            return found
        node = operand.node
        if node is None:
            return None
        if node.op == "sub":
            x, y = node.inputs
            if isinstance(x, Value) and x.type == operand.type and is_zero(self.ctx.of(y)):
                return self.of(x, depth - 1)
            found = self._differing(node, self.ctx) if self._difference else None
            if found is not None and len(found.dims) == operand.type.rank:
                self._spread[operand] = found
                return found
            return None
        factor = _constant_factor(node)
        if factor is None:
            return None
        x, times = factor
        inner = self.of(x, depth - 1)
        if inner is None or x.type.shape != operand.type.shape:
            return None
        found = inner.scaled(times * (1 + 2 * unit(operand.type.dtype)))
        self._spread[operand] = found
        return found

    def _differing(self, node: Node, ctx: Context) -> Spread | None:
        """That of a difference of the same values."""
        x, y = _shown(node)
        for other, spread in self._difference.get(x, ()):
            if y.dims == other.dims and alike(y.root, other.root):
                return spread
            size = _same_mean(node.inputs[1], other, ctx)
            if size is not None:  # divided before it was broadcast, or after: rounded differently
                least = self._base[spread.base].lo ** (spread.inner + spread.outer)
                off = size * 4 * unit(node.outputs[0].type.dtype) / least
                count = math.prod(node.outputs[0].type.shape[i] for i in spread.free)
                return spread._replace(
                    inner=0.0,
                    outer=spread.inner + spread.outer,
                    bound=spread.bound + off,
                    total=spread.total + off * count,
                )
        return None


def _same_mean(mean: Operand, other: View, ctx: Context) -> float | None:
    """The magnitude of a mean that is another's, the division beside the broadcast or not."""
    one = divided(mean, ctx) if isinstance(mean, Value) else None
    two = divided(other.root, ctx)
    if one is None or two is None or one[1] != two[1]:
        return None
    a, b = view(one[0]), view(two[0])
    shown = tuple(None if d is None else b.dims[d] for d in other.dims)
    return ctx.of(mean).magnitude if a.dims == shown and alike(a.root, b.root) else None


def _shown(node: Node) -> tuple[View, View]:
    x, y = (view(o) if isinstance(o, Value) else View(node.outputs[0], ()) for o in node.inputs)
    return x, y


def _constant_factor(node: Node) -> tuple[Value, float] | None:
    """X and |c| of x * c and of -x."""
    x = node.inputs[0] if node.inputs else None
    if node.op == "neg" and isinstance(x, Value):
        return x, 1.0
    if node.op == "mul":
        for one, other in (node.inputs, node.inputs[::-1]):
            if isinstance(one, Value) and isinstance(other, Literal):
                c = constant(other)
                return (one, abs(c)) if c is not None else None
    return None
