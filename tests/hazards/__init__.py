"""Small programs on which a floating-point linter is judged: what it must find, and must not."""

from . import (
    attention,
    gradients,
    indices,
    losses,
    norms,
    optimizers,
    physics,
    probability,
    schedules,
    statistics,
)
from .case import Case

__all__ = ["HAZARDS", "SAFE", "Case"]

AREAS = (
    optimizers,
    schedules,
    norms,
    attention,
    losses,
    statistics,
    probability,
    physics,
    gradients,
    indices,
)

HAZARDS: tuple[Case, ...] = tuple(case for area in AREAS for case in area.HAZARDS)

SAFE: tuple[Case, ...] = tuple(case for area in AREAS for case in area.SAFE)
