"""Errors that say what went wrong, where in the user's code, and the way out."""

from __future__ import annotations


class PrecirError(Exception):
    """Base of every error precir raises on purpose.

    Args:
      what: one sentence on what went wrong.
      where: the place it concerns (a user line, a file, an IR line), if known.
      fix: the way out, if there is one.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where  {where}")
        if fix:
            lines.append(f"  fix    {fix}")
        super().__init__("\n".join(lines))


class LoweringError(PrecirError):
    """The JAX function cannot become a Graph."""


class TextError(PrecirError, ValueError):
    """An IR text cannot be parsed: corrupted, truncated, or from another version."""


class VerifyError(PrecirError):
    """A Graph breaks an invariant of the IR: a bug in the pass that made it."""


class EmitError(PrecirError):
    """A Graph cannot be written as source that stands alone."""


class RecipeError(PrecirError, ValueError):
    """An unknown or contradictory recipe."""


class DumpError(PrecirError):
    """A dump or a module cannot be written or read."""


class DerivativeError(PrecirError, TypeError):
    """A derivative that a compiled function does not have."""


class TargetError(PrecirError):
    """A target is unknown, cannot be compiled for here, or is given what does not fit it."""
