"""How far computed functions may be from the exact ones, and bounds that account for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from precir.domains.fact import Fact, interval
from precir.domains.kinds import SPECIAL
from precir.domains.rounding import INFINITY, above, below

# XLA's elementary functions are within a few units in the last place of float32 (float64 for
# float64); half of that again is allowed. Narrower formats are computed in float32.
_SLACK: Final = {"float64": 2.0**-49, "complex128": 2.0**-49}
_SLACK_32: Final = 2.0**-20


def slack(dtype: str) -> float:
    """Relative error allowed to an elementary function computed for that dtype."""
    return _SLACK.get(dtype, _SLACK_32)


def widen(lo: float, hi: float, relative: float) -> tuple[float, float]:
    """Both ends moved outwards by a relative error, infinities left alone."""
    low = lo if lo in (INFINITY, -INFINITY) else lo - abs(lo) * relative
    return low, (hi if hi in (INFINITY, -INFINITY) else hi + abs(hi) * relative)


def outwards(lo: float, hi: float) -> tuple[float, float]:
    """Both ends moved outwards by a unit of float64, zeros and infinities left alone."""
    return (below(lo) if lo and lo - lo == 0 else lo), (above(hi) if hi and hi - hi == 0 else hi)


def evaluate(function: Callable[[float], float], x: float) -> float:
    """`function(x)`, inf where Python says that it overflows."""
    try:
        return function(x)
    except OverflowError:
        return INFINITY


def bounded(lo: float, hi: float, a: Fact, flags: int = 0) -> Fact:
    """An interval with the operand's NaN and the given flags."""
    f = interval(lo, hi, flags)
    return f._replace(basis=a.basis)


def special(a: Fact) -> int:
    return a.flags & SPECIAL


def log_of_2() -> float:
    return math.log(2.0)
