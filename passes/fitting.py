"""Whether what is known of a tensor, or was seen of it, rules a format out."""

from __future__ import annotations

from precir.domains.fact import UNKNOWN, Basis, Fact
from precir.domains.stats import Stats
from precir.formats import format_of

MOST_LOST = 0.5  # of the nonzero elements seen, below what a format holds


def misfit(fact: Fact, format: str) -> str:
    """Why a tensor cannot be kept in a format; empty if nothing rules it out.

    A range is an enclosure: that it reaches past a format's limits does not say that the numbers
    do. What counts is what holds of every nonzero element (all beyond the largest number, all
    below the smallest), and whole numbers too large to be exact, as positions and counts.
    """
    if fact.basis == UNKNOWN or fact.empty:
        return ""
    f = format_of(format)
    rests = "proved" if fact.basis == Basis.PROVED else "proved from the given ranges"
    if fact.lo > f.max or fact.hi < -f.max:
        return f"in [{fact.lo:.4g}, {fact.hi:.4g}] ({rests}), past the {f.max:.4g} of {format}"
    if 0 < fact.magnitude <= f.smallest_subnormal / 2 and not fact.lo == fact.hi == 0:
        return f"at most {fact.magnitude:.4g} ({rests}), which is 0 in {format}"
    exact = 2.0 ** (f.mantissa_bits + 1)
    if fact.whole and exact < fact.magnitude < 2.0**24 and fact.finite:
        most = f"{fact.magnitude:,.0f}"
        return f"whole numbers up to {most} ({rests}), not exact in {format} past {exact:,.0f}"
    return ""


def unfit(stats: Stats, format: str) -> str:
    """Why what was observed of a tensor keeps it out of a format; empty if nothing does."""
    f = format_of(format)
    if stats.amax > f.max:
        return f"seen up to {stats.amax:.4g}, past the {f.max:.4g} of {format}"
    if stats.bins:
        lost = stats.underflow(f)
        if lost > MOST_LOST:
            return f"{lost:.0%} of what was seen of it is 0 in {format}"
    return ""
