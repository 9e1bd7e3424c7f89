"""What can be known of a tensor's numbers: value types with their own arithmetic."""

from precir.domains.fact import Basis, Fact
from precir.domains.kinds import Kinds
from precir.domains.range import Range, RangeError
from precir.domains.stats import Stats

__all__ = ["Basis", "Fact", "Kinds", "Range", "RangeError", "Stats"]
