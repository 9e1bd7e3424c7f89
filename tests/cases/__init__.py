"""Cases beside JAX's own harnesses, for what those lack."""

from tests.cases import arrays, control, numbers, trees
from tests.cases.case import Case

__all__ = ["CASES", "Case"]

CASES: tuple[Case, ...] = (*control.CASES, *arrays.CASES, *numbers.CASES, *trees.CASES)
