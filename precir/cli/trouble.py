"""What a command says when something is wrong: what, where in the user's code, the way out."""

from __future__ import annotations

import linecache
import traceback

from precir.errors import PrecirError
from precir.source import is_library


class UsageError(PrecirError):
    """A command was given what it cannot use."""


def in_user_code(error: BaseException, what: str, fix: str | None = None) -> UsageError:
    """The error for an exception that the user's own code raised, with their line."""
    return UsageError(f"{what}: {one_line(error)}", where=_place(error), fix=fix)


def one_line(error: BaseException) -> str:
    """`TypeError: dot_general requires ...`, the first line of it."""
    text = next((line for line in str(error).splitlines() if line.strip()), "").strip()
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _place(error: BaseException) -> str | None:
    """`train.py:12 in loss` and the line itself."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _with_line(error.filename, error.lineno, "")
    frame = user_frame(error)
    return None if frame is None else _with_line(frame.filename, frame.lineno or 0, frame.name)


def user_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the user's own."""
    found = traceback.extract_tb(error.__traceback__)
    frames = [f for f in found if not is_library(f.filename)]
    return frames[-1] if frames else None


def _with_line(file: str, number: int, function: str) -> str:
    line = linecache.getline(file, number).strip()
    place = f"{file}:{number}" + (f" in {function}" if function not in ("", "<module>") else "")
    return f"{place}\n           {line}" if line else place
