"""What precir decided about a program, for people and for programs."""

from precir.report.data import FormatSum, ProductRow, Report, TensorRow

__all__ = ["FormatSum", "ProductRow", "Report", "TensorRow"]
