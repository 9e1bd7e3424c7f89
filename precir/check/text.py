"""Findings as a compiler prints its diagnostics."""

from __future__ import annotations

import linecache
import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from precir.check.hazard import Hazard, Step

COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def render(hazards: Sequence[Hazard], *, color: bool = True, width: int = 120) -> str:
    """All findings as text."""
    console = Console(
        file=open(os.devnull, "w", encoding="utf-8"),
        force_terminal=color,
        width=width,
        record=True,
    )
    show(hazards, console)
    return console.export_text(styles=color)


def show(hazards: Sequence[Hazard], console: Console) -> None:
    """Print all findings."""
    for hazard in hazards:
        for line in _lines(hazard):
            console.print(line, soft_wrap=True, highlight=False)
        console.print()


def _lines(h: Hazard) -> list[Text]:
    lines = [
        Text.assemble(
            (f"{short(h.file)}:{h.line}:{h.column + 1} ", "bold"),
            (h.severity, COLOURS[h.severity]),
            f" {h.kind}: ",
            (h.message, "bold"),
        )
    ]
    code = linecache.getline(h.file, h.line).rstrip("\n")
    if code.strip():
        margin = f"{h.line:>6} | "
        lines.append(Text.assemble((margin, "blue"), code))
        end = h.end_column if h.end_line == h.line and h.end_column > h.column else len(code)
        marks = " " * (len(margin) - 2) + "| " + " " * h.column + "^" * max(end - h.column, 1)
        lines.append(Text(marks, "blue"))
    for label, steps in (("because", h.because), ("then", h.then)):
        for i, step in enumerate(steps):
            lines.append(Text.assemble((f"   {label if i == 0 else '':<8} ", "bold"), _step(step)))
    lines.append(Text.assemble(("   mend     ", "bold green"), h.mend))
    return lines


def _step(step: Step) -> str:
    return f"{step.text} at {short(step.file)}:{step.line}" if step.line else step.text


def short(file: str) -> str:
    """A path as one would type it from here."""
    relative = os.path.relpath(file) if file else "?"
    return file if relative.startswith("..") else relative
