"""Real JAX programs, small enough to compile in seconds: what precir is tested on.

`PROGRAMS` is the whole table; a file per family holds the programs.
"""

from . import equinox_, haiku_, linen, plain
from .program import Program, advance, assert_bit_identical, count, run

PROGRAMS: tuple[Program, ...] = (
    *linen.PROGRAMS,
    *equinox_.PROGRAMS,
    *haiku_.PROGRAMS,
    *plain.PROGRAMS,
)

__all__ = ["PROGRAMS", "Program", "advance", "assert_bit_identical", "count", "run"]
