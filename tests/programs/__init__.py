"""Real JAX programs, small enough to compile in seconds: what precir is tested on.

`PROGRAMS` is the whole table; a file per family holds the programs.
"""

import pytest

from . import (
    calling,
    control,
    dtypes,
    equinox_,
    extremes,
    haiku_,
    linen,
    linen_state,
    nnx,
    optimizers,
    plain,
    rules,
    sharded,
    silent,
)
from .program import Program, advance, assert_bit_identical, count, run

FAMILIES = (
    linen,
    linen_state,
    nnx,
    equinox_,
    haiku_,
    plain,
    optimizers,
    rules,
    control,
    dtypes,
    calling,
    sharded,
    silent,
    extremes,
)

PROGRAMS: tuple[Program, ...] = tuple(p for family in FAMILIES for p in family.PROGRAMS)

every_program = pytest.mark.parametrize(
    "program",
    [pytest.param(p, id=p.name, marks=pytest.mark.slow if p.slow else ()) for p in PROGRAMS],
)

__all__ = [
    "PROGRAMS",
    "Program",
    "advance",
    "assert_bit_identical",
    "count",
    "every_program",
    "run",
]
