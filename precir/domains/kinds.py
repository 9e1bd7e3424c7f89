"""Which kinds of numbers may occur in a tensor: a set of flags, as LLVM's KnownFPClass has it."""

from __future__ import annotations

import enum
from typing import Final


class Kinds(enum.IntFlag):
    """The kinds of floating-point numbers that may occur. Union is join, intersection is meet.

    What must hold is a subset test: all elements are zero if ``kinds in Kinds.ZERO``; NaN never
    occurs if ``not kinds & Kinds.NAN``. A NaN has no sign here: JAX cannot tell.
    """

    NONE = 0
    NEG_ZERO = 1
    POS_ZERO = 2
    NEG_INF = 4
    POS_INF = 8
    NAN = 16
    NEG_SUBNORMAL = 32
    POS_SUBNORMAL = 64
    NEG_NORMAL = 128
    POS_NORMAL = 256

    ZERO = NEG_ZERO | POS_ZERO
    INF = NEG_INF | POS_INF
    SPECIAL = INF | NAN
    SUBNORMAL = NEG_SUBNORMAL | POS_SUBNORMAL
    NORMAL = NEG_NORMAL | POS_NORMAL
    NEGATIVE = NEG_ZERO | NEG_INF | NEG_SUBNORMAL | NEG_NORMAL
    POSITIVE = POS_ZERO | POS_INF | POS_SUBNORMAL | POS_NORMAL
    FINITE = ZERO | SUBNORMAL | NORMAL
    ANY = FINITE | SPECIAL

    def __neg__(self) -> Kinds:
        """The kinds of the negated numbers."""
        swapped = (self & Kinds.NEGATIVE) << 1 & Kinds.POSITIVE
        swapped |= (self & Kinds.POSITIVE) >> 1 & Kinds.NEGATIVE
        return Kinds(swapped | self & Kinds.NAN)

    def __str__(self) -> str:
        return " ".join(_named(self)) or "nothing"


def _named(kinds: Kinds) -> list[str]:
    found = ["nan"] if kinds & Kinds.NAN else []
    for name in ("inf", "normal", "subnormal", "zero"):
        pair = Kinds[name.upper()]
        have = kinds & pair
        if have == pair:
            found.append(f"±{name}")
        elif have:
            found.append(f"{'+' if have & Kinds.POSITIVE else '-'}{name}")
    return found


# The flags that rules work with, as plain integers: an IntFlag's operators are ten times slower.
NZERO: Final = int(Kinds.NEG_ZERO)
PZERO: Final = int(Kinds.POS_ZERO)
ZERO: Final = NZERO | PZERO
NINF: Final = int(Kinds.NEG_INF)
PINF: Final = int(Kinds.POS_INF)
INF: Final = NINF | PINF
NAN: Final = int(Kinds.NAN)
SPECIAL: Final = INF | NAN


def negated(flags: int) -> int:
    """The zero, inf and NaN flags of the negated numbers."""
    return (flags & (NZERO | NINF)) << 1 | (flags & (PZERO | PINF)) >> 1 | flags & NAN
