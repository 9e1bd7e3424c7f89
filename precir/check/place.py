"""Where a finding is, as an editor counts: lines and columns from 1, in characters."""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass

from precir.check.hazard import Hazard


@dataclass(frozen=True)
class Place:
    """The text from (line, column) up to, not including, (end_line, end_column)."""

    line: int
    column: int
    end_line: int
    end_column: int


def place_of(hazard: Hazard) -> Place:
    """The finding's place: Python counts columns from 0, in bytes of UTF-8."""
    column = _characters(hazard.file, hazard.line, hazard.column)
    end_line = max(hazard.end_line, hazard.line)
    end_column = _characters(hazard.file, end_line, hazard.end_column)
    if end_line == hazard.line and end_column <= column:
        end_column = max(len(code_at(hazard.file, hazard.line)), column + 1)
    return Place(hazard.line, column + 1, end_line, end_column + 1)


def code_at(file: str, line: int) -> str:
    """A line of the user's code, without what ends it; "" if there is none."""
    return linecache.getline(file, line).rstrip() if file and line > 0 else ""


def short(file: str) -> str:
    """A path as one would type it from here."""
    if not file:
        return "?"
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        return file
    return file if relative.startswith("..") else relative


def _characters(file: str, line: int, column: int) -> int:
    code = linecache.getline(file, line) if file else ""
    return len(code.encode()[:column].decode(errors="ignore")) if code else max(column, 0)
