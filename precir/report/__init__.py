"""What precir decided about a program, for people and for programs."""

from precir.report.data import FormatSum, ProductRow, Report, TensorRow
from precir.report.gather import recipe_in_words

__all__ = ["FormatSum", "ProductRow", "Report", "TensorRow", "recipe_in_words"]
