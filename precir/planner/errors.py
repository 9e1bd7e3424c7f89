"""What a planner refuses."""

from __future__ import annotations

from precir.errors import PrecirError


class PlanError(PrecirError, ValueError):
    """A question that no law answers, or one that contradicts itself."""


class FitError(PrecirError, ValueError):
    """Runs that do not determine a law's constants."""
