"""Bounds that vary with a number of the program: what is divided by a norm and by a sum.

The gradient of x * rsqrt(var + eps) multiplies what grows with the variance by what shrinks with
it; intervals forget that both are of one variance. A `Spread` of a value says that no element of
it is larger in magnitude than `bound` times a power of the `base`, a positive value of the
program: a variance, or the sum of a softmax. It also bounds sums of magnitudes, which is what a
reduction or a product with a matrix needs: n numbers of mean square one add up to n at most,
though each may be as large as the square root of n.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from precir.domains.fact import Fact, numbers_of, tidy
from precir.domains.kinds import SPECIAL
from precir.domains.rounding import INFINITY, Grid
from precir.ir import Value
from precir.ops.facts.views import Dims

MARGIN = 1.001
"""For the rounding of the few operations that a power of a base went through."""

CELLS = 96


class Base(NamedTuple):
    """A positive value, what it lies in, and what was added to it to keep it positive."""

    lo: float
    hi: float
    eps: float


class Spread(NamedTuple):
    """|v| <= bound * (base - eps)**inner * base**outer, element by element.

    Attributes:
      base: the value that it varies with.
      dims: the axis of the base that each axis runs along, None where it does not vary.
      inner, outer: the exponents.
      bound: what no element passes.
      total: what the sum of magnitudes over all axes where the base does not vary does not pass.
      exact: whether it is the power of the base itself times `bound`, but for rounding.
    """

    base: Value
    dims: Dims
    inner: float
    outer: float
    bound: float
    total: float
    exact: bool = False

    def scaled(self, factor: float) -> Spread:
        return self._replace(bound=self.bound * factor, total=self.total * factor)

    @property
    def free(self) -> frozenset[int]:
        """The axes along which the base does not vary."""
        return frozenset(i for i, d in enumerate(self.dims) if d is None)


class Total(NamedTuple):
    """The sum of magnitudes over `axes` does not pass `most`."""

    axes: frozenset[int]
    most: float


def unit(dtype: str) -> float:
    """Relative rounding error of one operation."""
    numbers = numbers_of(dtype)
    return numbers.epsilon if isinstance(numbers, Grid) else 0.0


def growth(count: int, dtype: str) -> float:
    """What rounding may add to a sum of magnitudes, as a factor; inf if it is not known."""
    error = (count + 4) * unit(dtype)
    return math.exp(error) if error <= 1 else INFINITY


def supremum(spread: Spread, base: Base) -> float:
    """The largest that (base - eps)**inner * base**outer is."""
    lo, hi, eps = base
    inner, outer = spread.inner, spread.outer
    if not inner:
        return _power(lo if outer < 0 else hi, outer) * MARGIN
    lo, hi = max(lo, eps * 1.0001), max(hi, eps * 1.0001)
    points = [lo, hi]
    if inner + outer < 0:  # rises to there, falls from there
        points.append(min(max(eps * outer / (inner + outer), lo), hi))
    return max(_power(x * 1.000001 - eps, inner) * _power(x, outer) for x in points) * MARGIN


def together(a: Spread, b: Spread, base: Base) -> float:
    """The largest that the sum of two spreads of one degree is: they are not largest at once."""
    degree = a.inner + a.outer
    if base.eps <= 0 or degree >= 0 or a.inner == b.inner:
        return INFINITY
    # of (base - eps) / base, between 0 and 1, in cells
    first, last = max(1 - base.eps / base.lo, 0.0), max(1 - base.eps / base.hi, 0.0)
    width = (last - first) / CELLS
    most = 0.0
    for i in range(CELLS):
        low, high = first + i * width, first + (i + 1) * width + 1e-5
        size = a.bound * high**a.inner + b.bound * high**b.inner
        most = max(most, size * _power(base.eps / (1 - low), degree))
    return most * MARGIN


def infimum(spread: Spread, base: Base) -> float:
    """The smallest that base**outer is."""
    return _power(base.hi if spread.outer < 0 else base.lo, spread.outer)


def _power(x: float, y: float) -> float:
    try:
        return float(x**y) if x > 0 else 0.0 if y >= 0 else INFINITY
    except OverflowError:
        return INFINITY


# -- shapes ------------------------------------------------------------------------------------


def fitted(spread: Spread, shape: tuple[int, ...], result: tuple[int, ...]) -> Spread | None:
    """The same of a value broadcast beside another: an axis of one element is repeated."""
    if shape == result:
        return spread
    if len(shape) != len(result):
        return None
    repeated = math.prod(m for n, m in zip(shape, result, strict=True) if n == 1)
    return spread._replace(total=spread.total * repeated)


def covering(total: Total | None, axes: frozenset[int], shape: tuple[int, ...]) -> float:
    """A bound of the sum of magnitudes over `axes` of a value of that shape; inf if not known."""
    if total is None:
        return INFINITY
    if total.axes == axes:
        return total.most
    return total.most * math.prod(shape[i] for i in axes - total.axes)


def long(axes: frozenset[int], shape: tuple[int, ...]) -> frozenset[int]:
    """Those of the axes with more than one element."""
    return frozenset(i for i in axes if shape[i] != 1)


def regrouped(
    axes: frozenset[int], shape: tuple[int, ...], result: tuple[int, ...]
) -> tuple[frozenset[int], int]:
    """The axes after a reshape, and how often a total is repeated along those that they are mixed
    with; 0 if the shapes cannot be matched.
    """
    found: set[int] = set()
    times = 1
    i = j = 0
    while i < len(shape) or j < len(result):
        first, start = i, j
        left = right = 1
        while left != right or left == 1:
            if left <= right and i < len(shape):
                left *= shape[i]
                i += 1
            elif j < len(result):
                right *= result[j]
                j += 1
            else:
                break
        if left != right:
            return frozenset(), 0
        mine = {a for a in range(first, i) if shape[a] != 1}
        if mine & axes:
            times *= math.prod(shape[a] for a in mine - axes)
            found |= {a for a in range(start, j) if result[a] != 1}
    return frozenset(found), times


# -- algebra -----------------------------------------------------------------------------------


def product(a: Spread, b: Spread) -> Spread | None:
    """Of the product of two values of one shape."""
    if a.base is not b.base or a.dims != b.dims:
        return None
    return Spread(
        a.base,
        a.dims,
        a.inner + b.inner,
        a.outer + b.outer,
        a.bound * b.bound,
        min(a.total * b.bound, a.bound * b.total),
        a.exact and b.exact,
    )


def inverse(a: Spread, dtype: str) -> Spread | None:
    """Of the reciprocal."""
    if not a.exact or a.inner or a.bound <= 0:
        return None
    slack = MARGIN if unit(dtype) < 1e-4 else 1.1
    return Spread(a.base, a.dims, 0.0, -a.outer, slack / a.bound, INFINITY, exact=True)


def sum_of(a: Spread, b: Spread) -> Spread | None:
    """Of the sum of two values of one shape."""
    if a.base is not b.base or a.dims != b.dims:
        return None
    degree = a.inner + a.outer
    if abs(degree - b.inner - b.outer) > 1e-9:
        return None
    inner = min(a.inner, b.inner)  # base - eps is less than base
    return Spread(a.base, a.dims, inner, degree - inner, a.bound + b.bound, a.total + b.total)


def raised(a: Spread, n: int, dtype: str) -> Spread | None:
    """Of an integer power."""
    if n <= 0:
        inner = inverse(a, dtype)
        return raised(inner, -n, dtype) if inner is not None and n else None
    try:
        bound = a.bound**n
        total = a.total * a.bound ** (n - 1)
    except OverflowError:
        return None
    return Spread(a.base, a.dims, a.inner * n, a.outer * n, bound, total, a.exact)


def within(f: Fact, most: float) -> Fact:
    """A fact whose finite elements do not pass a magnitude."""
    if most >= f.magnitude or f.lo > f.hi or not most > 1e-25:
        return f
    return tidy(f._replace(lo=max(f.lo, -most), hi=min(f.hi, most)))


def finite(*facts: Fact) -> bool:
    return not any(f.flags & SPECIAL for f in facts)


def is_zero(f: Fact) -> bool:
    return f.lo == 0 == f.hi and not f.flags & SPECIAL
