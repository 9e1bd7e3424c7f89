"""What the linter finds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

KINDS: Final = (
    "overflow", "underflow", "invalid", "rounds-to-bound", "cancellation", "absorption", "inexact",
)  # fmt: skip
SEVERITIES: Final = ("error", "warning", "note")


@dataclass(frozen=True)
class Step:
    """One fact on the way from a cause to its symptom: where, and what holds there."""

    text: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class Hazard:
    """One way in which a program goes wrong in a format.

    Attributes:
      kind: one of `KINDS`.
      primitive: the JAX primitive whose operands are sound and whose result is not.
      root: the first cause: a primitive, "literal" (a constant that rounds to zero, to infinity or
        onto a bound) or "input" (an argument beyond what the format holds).
      symptom: "nan", "inf", "zero", "wrong", "stuck" or "index".
      severity: "error" (it was run, and happened: see `witness`), "warning" (the facts cannot
        exclude it) or "note" (born and killed, or hangs on something unknown).
      file, line, column, end_column: the user's code at `primitive`; lines from 1, columns from 0.
      message: what happens, in one line.
      mend: the way out.
      format: the format it was checked in.
      because, then: facts that lead to it, and what follows from it.
      witness: arguments inside the given ranges with which it happened, as the function takes
        them, in float32; None without severity "error".
    """

    kind: str
    primitive: str
    root: str
    symptom: str
    severity: str
    file: str
    line: int
    message: str
    mend: str
    format: str
    column: int = 0
    end_line: int = 0
    end_column: int = 0
    because: tuple[Step, ...] = ()
    then: tuple[Step, ...] = ()
    witness: Any = field(default=None, repr=False, compare=False)

    def with_severity(self, severity: str) -> Hazard:
        return replace(self, severity=severity)

    def __str__(self) -> str:
        from precir.check.text import render

        return render([self], color=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the witness as nested lists where it is small."""
        from precir.check.report import plain

        return plain(self)
