"""The linter: what goes wrong in a function's numbers, where, and the way out."""

from precir.check.arguments import RangesError
from precir.check.entry import check
from precir.check.hazard import Hazard

__all__ = ["Hazard", "RangesError", "check"]
