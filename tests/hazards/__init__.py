"""Small programs on which a floating-point linter is judged: what it must find, and must not."""

from . import losses
from .case import Case

__all__ = ["HAZARDS", "SAFE", "Case"]

AREAS = (losses,)

HAZARDS: tuple[Case, ...] = tuple(case for area in AREAS for case in area.HAZARDS)

SAFE: tuple[Case, ...] = tuple(case for area in AREAS for case in area.SAFE)
