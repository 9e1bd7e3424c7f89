"""What a tensor was seen to hold: extremes, moments, special values, and how many at each exponent.

Observed facts: they choose formats and scales, and prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import reduce
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from jax.typing import DTypeLike

from precir.formats import F32, Format, format_of

_BIAS: Final = 127
_LOWEST: Final = -126  # the exponent under which float32 is subnormal
_SUBNORMAL: Final = -127  # the bin of float32's subnormals

_HEAD: Final = 10  # of the vector that `precir.kernels.observe` makes: see there


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of all elements seen of one tensor, over batches and iterations.

    Attributes:
      format: the tensor's own format.
      count: how many elements; all that follows is in elements, or in the tensor's own unit.
      amax: largest finite magnitude; 0 if there was none.
      smallest: smallest nonzero finite magnitude; inf if there was none.
      total, squares: sums of the elements and of their squares, in float32 arithmetic within a
        batch. Of the finite elements where NumPy computed them; a device's are NaN or infinite
        where an element was or where they left float32's range.
      zeros: how many were zero, of either sign.
      subnormal: how many were nonzero and below the smallest normal number of the format.
      plus_inf, minus_inf, nan: how many were that.
      bins: how many finite nonzero elements have floor(log2(magnitude)) equal to each key, from
        -126 to 127; those under 2^-126 all count as -127. None if that was not measured.

    Where amax alone was measured (`partial`), nothing is counted, the rest is NaN and amax is inf
    or NaN where an element was.
    """

    format: Format
    count: int = 0
    amax: float = 0.0
    smallest: float = math.inf
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    subnormal: int = 0
    plus_inf: int = 0
    minus_inf: int = 0
    nan: int = 0
    bins: Mapping[int, int] | None = field(default_factory=dict)
    partial: bool = False

    def __eq__(self, other: object) -> bool:
        """Field by field, NaN being equal to NaN."""
        return isinstance(other, Stats) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash((self.format.name, self.count, self.zeros))

    def _told(self) -> tuple[str, ...]:
        bins = None if self.bins is None else sorted(self.bins.items())
        rest = [getattr(self, f.name) for f in fields(self) if f.name != "bins"]
        return (*map(repr, rest), repr(bins))

    # -- made of -------------------------------------------------------------------------------

    @classmethod
    def of(cls, x: Any, format: DTypeLike | Format | None = None) -> Stats:
        """Statistics of a NumPy or JAX array, computed here in float64; `format` is its dtype's
        unless given.
        """
        host = np.asarray(x)
        own = format_of(host.dtype if format is None else format)
        with np.errstate(all="ignore"):
            wide = host.astype(np.float64).ravel()
        magnitude = np.abs(wide)
        finite = magnitude < np.inf
        some = magnitude[finite & (magnitude > 0)]
        exponents = np.maximum(np.frexp(some)[1] - 1, _SUBNORMAL)
        keys, counts = np.unique(exponents, return_counts=True)
        bins = dict(zip(keys.tolist(), counts.tolist(), strict=True))
        return cls(
            format=own,
            count=wide.size,
            amax=float(some.max(initial=0.0)),
            smallest=float(some.min(initial=math.inf)),
            total=float(wide[finite].sum()),
            squares=float(np.square(some).sum()),
            zeros=int((magnitude == 0).sum()),
            subnormal=int((some < own.smallest_normal).sum()),
            plus_inf=int((wide == np.inf).sum()),
            minus_inf=int((wide == -np.inf).sum()),
            nan=int(np.isnan(wide).sum()),
            bins=MappingProxyType(bins),
        )

    @classmethod
    def of_vector(cls, vector: Any, format: DTypeLike | Format) -> Stats:
        """From what `precir.kernels.observe` gives: int32[10], and 256 more with a histogram.

        Raises ValueError for any other shape or dtype.
        """
        held = np.ascontiguousarray(vector)
        if held.shape not in ((_HEAD,), (_HEAD + 256,)) or held.dtype != np.int32:
            raise ValueError(f"int32[10] or int32[266] expected, not {held.dtype}{[*held.shape]}")
        amax, smallest, total, squares = map(one_nan, held[:4].view(np.float32).tolist())
        count, zeros, subnormal, plus, minus, nan = held[4:_HEAD].tolist()
        bins = None
        if len(held) > _HEAD:
            counts = held[_HEAD:].tolist()
            counts[0] -= zeros
            bins = MappingProxyType({e - _BIAS: n for e, n in enumerate(counts[:-1]) if n})
        return cls(
            format_of(format), count, amax, smallest or math.inf, total, squares,
            zeros, subnormal, plus, minus, nan, bins,
        )  # fmt: skip

    @classmethod
    def of_amax(cls, amax: float, format: DTypeLike | Format) -> Stats:
        """Where nothing but the largest magnitude is known."""
        unknown = math.nan
        return cls(format_of(format), 0, amax, unknown, unknown, unknown, bins=None, partial=True)

    # -- merged --------------------------------------------------------------------------------

    def merge(self, other: Stats) -> Stats:
        """Of all elements of both. Commutative; associative but for the rounding of the sums.

        Raises ValueError for statistics of tensors of different formats.
        """
        if self.format != other.format:
            raise ValueError(f"statistics of {self.format.name} and of {other.format.name}")
        if self.partial or other.partial:
            amax = one_nan(float(np.maximum(self.amax, other.amax)))  # NaN stays
            return Stats.of_amax(amax, self.format)
        return Stats(
            format=self.format,
            count=self.count + other.count,
            amax=max(self.amax, other.amax),
            smallest=min(self.smallest, other.smallest),
            total=self.total + other.total,
            squares=self.squares + other.squares,
            zeros=self.zeros + other.zeros,
            subnormal=self.subnormal + other.subnormal,
            plus_inf=self.plus_inf + other.plus_inf,
            minus_inf=self.minus_inf + other.minus_inf,
            nan=self.nan + other.nan,
            bins=_merged(self.bins, other.bins),
        )

    __or__ = merge

    # -- asked ---------------------------------------------------------------------------------

    @property
    def finite(self) -> int:
        """How many elements were finite."""
        return self.count - self.plus_inf - self.minus_inf - self.nan

    @property
    def mean(self) -> float:
        """Of the elements; NaN if there were none or if the sum is not known."""
        known = self.finite and math.isfinite(self.total)
        return self.total / self.finite if known else math.nan

    @property
    def rms(self) -> float:
        """Root of the mean square of the finite elements; NaN if there were none or if their
        squares left float32's range.
        """
        lost = math.isinf(self.squares) or (self.amax > 0 and not self.squares)
        return math.sqrt(self.squares / self.finite) if self.finite and not lost else math.nan

    def fraction(self, count: int) -> float:
        """A count as a share of all elements, 0 if there were none."""
        return count / self.count if self.count else 0.0

    def underflow(self, format: DTypeLike | Format, scale: int = 0) -> float:
        """The share of elements that are nonzero and become zero in `format`, once multiplied by
        2^scale.

        To nearest, zero takes half of the smallest subnormal and less: a power of two, so the bins
        decide but for elements of exactly that magnitude, which are counted as kept. float32 and
        bfloat16 count by their smallest normal number, which is where XLA:CPU flushes.
        """
        into = format_of(format)
        if into.flushes_subnormals:
            return self.flushed(into, scale)
        least = _exponent(into.smallest_subnormal) - 1
        return self._below(least - scale)

    def flushed(self, format: DTypeLike | Format, scale: int = 0) -> float:
        """The share that are nonzero and below the smallest normal number of `format`, once
        multiplied by 2^scale: what hardware without subnormals reads as zero.
        """
        return self._below(_exponent(format_of(format).smallest_normal) - scale)

    def overflow(self, format: DTypeLike | Format, scale: int = 0) -> float:
        """The share that are finite and beyond the largest number of `format`, once multiplied by
        2^scale: at most. In the bin of that number itself it cannot be told which are, so all count
        unless amax shows that none is.
        """
        largest = format_of(format).max
        if math.ldexp(self.amax, scale) <= largest:
            return 0.0
        first = math.frexp(largest)[1] - 1 - scale
        if self.bins is None:
            return math.nan
        return self.fraction(sum(n for e, n in self.bins.items() if e >= first))

    def _below(self, exponent: int) -> float:
        """The share that are nonzero and below 2^exponent; float32's subnormals all are, or none.
        NaN where there is no histogram.
        """
        if self.bins is None:
            return math.nan
        return self.fraction(sum(n for e, n in self.bins.items() if e < exponent))


def _merged(a: Mapping[int, int] | None, b: Mapping[int, int] | None) -> Mapping[int, int] | None:
    if a is None or b is None:
        return None
    return MappingProxyType({k: a.get(k, 0) + b.get(k, 0) for k in sorted({*a, *b})})


def one_nan(x: float) -> float:
    """The same number; any NaN as the one that Python's tuples find equal to itself."""
    return math.nan if math.isnan(x) else x


def _exponent(power_of_two: float) -> int:
    return math.frexp(power_of_two)[1] - 1


def merge_all(stats: Any) -> Stats:
    """Of all elements of all; of nothing at all, float32 statistics of no element."""
    found = list(stats)
    return reduce(Stats.merge, found) if found else Stats(F32)
