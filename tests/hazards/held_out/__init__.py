"""Programs of the same two kinds that no rule of the linter was written from: how it generalises.

When the linter is wrong about one of these, mend the class, and never the case.
"""

from tests.hazards.case import Case

from . import (
    geometry,
    moments,
    motion,
    normalizers,
    numerics,
    objectives,
    positions,
    tokens,
    train_steps,
    updates,
)

__all__ = ["HAZARDS", "SAFE"]

AREAS = (
    train_steps,
    objectives,
    positions,
    normalizers,
    updates,
    moments,
    motion,
    geometry,
    numerics,
    tokens,
)

HAZARDS: tuple[Case, ...] = tuple(case for area in AREAS for case in area.HAZARDS)

SAFE: tuple[Case, ...] = tuple(case for area in AREAS for case in area.SAFE)
