"""Findings as a compiler prints its diagnostics."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from precir.check.hazard import Hazard, Step
from precir.check.place import code_at, place_of, short

COLOURS: Final = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_TAB: Final = 4
_COMMENT: Final = re.compile(r"\s*#[^'\"]*$")
_LABEL: Final = 12  # columns before what a because, then or mend says


def render(hazards: Sequence[Hazard], *, color: bool = True, width: int = 120) -> str:
    """All findings as text."""
    console = Console(
        file=io.StringIO(), force_terminal=color, color_system="standard", width=width, record=True
    )
    show(hazards, console)
    return console.export_text(styles=color)


def show(hazards: Sequence[Hazard], console: Console) -> None:
    """Print all findings, a blank line after each."""
    for hazard in hazards:
        for line in _lines(hazard, console):
            console.print(line, soft_wrap=True, highlight=False)
        console.print()


def header(file: str, line: int, column: int, severity: str, kind: str, message: str) -> Text:
    """`train.py:57:12 error overflow: a sum leaves float16`."""
    return Text.assemble(
        (f"{short(file)}:{line}:{column} " if file else "(no place in the code) ", "bold"),
        (severity, COLOURS[severity]),
        f" {kind}: ",
        (message, "bold"),
    )


def marked(file: str, line: int, column: int, end_line: int, end_column: int) -> list[Text]:
    """The line of code, and carets under the columns; none where the code cannot be read."""
    code = code_at(file, line)
    if not code.strip():
        return []
    goes_on = end_line > line
    end = len(_COMMENT.sub("", code)) if goes_on else min(end_column - 1, len(code))
    start = min(column - 1, len(code))
    shown = code.expandtabs(_TAB)
    before = cell_len(code[:start].expandtabs(_TAB))
    wide = max(cell_len(code[:end].expandtabs(_TAB)) - before, 1)
    number = f"{line:>5}"
    return [
        Text.assemble((f"{number} | ", "blue"), shown),
        Text.assemble(
            (" " * len(number) + " | ", "blue"),
            " " * before,
            ("^" * wide + ("..." if goes_on else ""), "bold magenta"),
        ),
    ]


def _lines(h: Hazard, console: Console) -> Iterator[Text]:
    p = place_of(h)
    yield header(h.file, p.line, p.column, h.severity, h.kind, h.message)
    yield from marked(h.file, p.line, p.column, p.end_line, p.end_column)
    for label, steps in (("because", h.because), ("then", h.then)):
        for i, step in enumerate(steps):
            yield from _said(label if i == 0 else "", _step(step), "bold", console)
    if h.mend:
        yield from _said("mend", h.mend, "bold green", console)


def _said(label: str, words: str, style: str, console: Console) -> Iterator[Text]:
    """A labelled sentence, its further lines under the first."""
    wrapped = Text(words).wrap(console, max(console.width - _LABEL, 30))
    for i, line in enumerate(wrapped):
        line.rstrip()
        yield Text.assemble((f"   {label if i == 0 else '':<{_LABEL - 3}}", style), line)


def _step(step: Step) -> str:
    return f"{step.text} at {short(step.file)}:{step.line}" if step.line else step.text
