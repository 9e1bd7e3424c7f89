"""The compiler chooses: formats of least cost under a budget of error."""

from precir.auto.choice import Choice, Point
from precir.auto.choose import ChooseError, choose

__all__ = ["Choice", "ChooseError", "Point", "choose"]
