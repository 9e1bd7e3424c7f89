"""`# precir: ignore` on the user's line, with kinds or without.

The comment holds for what is found on its own line; on the first or last line of a statement, or
alone on the line above one, for the whole statement.
"""

from __future__ import annotations

import io
import linecache
import re
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

from precir.check.hazard import KINDS, Hazard

_COMMENT: Final = re.compile(r"#\s*precir:\s*ignore(?![\w-])\s*(?:\[([^\]]*)\]?)?")
_LAYOUT: Final = (
    *(tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER),
)
_seen: ContextVar[list[Hazard] | None] = ContextVar("_seen", default=None)


@dataclass(frozen=True)
class Ignore:
    """One comment, at a line and column from 1, and the lines for which it holds.

    `kinds` is None where it names none and holds for all.
    """

    line: int
    column: int
    kinds: tuple[str, ...] | None
    first: int
    last: int

    def holds_for(self, hazard: Hazard) -> bool:
        end = max(hazard.line, hazard.end_line)
        inside = hazard.line <= self.last and self.first <= end
        return inside and (self.kinds is None or hazard.kind in self.kinds)


@dataclass(frozen=True)
class Misspelt:
    """A comment that names no kind there is: what is wrong, and where."""

    file: str
    line: int
    column: int
    message: str


def suppressed(hazard: Hazard) -> bool:
    """Whether a comment in the user's code says to ignore the finding."""
    found = any(ignore.holds_for(hazard) for ignore in ignores(hazard.file))
    seen = _seen.get()
    if found and seen is not None:
        seen.append(hazard)
    return found


@contextmanager
def counted() -> Iterator[list[Hazard]]:
    """Collects the findings that are suppressed meanwhile."""
    seen: list[Hazard] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def ignores(file: str) -> Sequence[Ignore]:
    """Every such comment of a file."""
    return _read("".join(linecache.getlines(file))) if file else ()


def misspelt(file: str) -> list[Misspelt]:
    """The comments of a file that name a kind there is not."""
    wrong = []
    for ignore in ignores(file):
        for kind in () if ignore.kinds is None else ignore.kinds or ("",):
            if kind not in KINDS:
                close = get_close_matches(kind, KINDS, n=1)
                way = f"did you mean {close[0]}?" if close else f"one of {', '.join(KINDS)}"
                said = f"there is no kind {kind!r}: {way}" if kind else f"names no kind: {way}"
                wrong.append(Misspelt(file, ignore.line, ignore.column, said))
    return wrong


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[Ignore, ...]:
    if "precir:" not in text:
        return ()
    found: list[Ignore] = []
    waiting: list[Ignore] = []  # of the statement that is being read
    start = 0
    for token in _tokens(text):
        row = token.start[0]
        if token.type == tokenize.COMMENT:
            ignore = _ignore(token)
            if ignore is not None:
                waiting.append(ignore)
        elif token.type == tokenize.NEWLINE:
            found += (_spread(ignore, start or row, row) for ignore in waiting)
            waiting, start = [], 0
        elif token.type not in _LAYOUT and not start:
            start = row
            waiting = [i for i in waiting if i.line == row - 1]
    return tuple(found + waiting)


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """As many as there are before what is no Python."""
    try:
        yield from tokenize.generate_tokens(io.StringIO(text).readline)
    except (tokenize.TokenError, SyntaxError):
        return


def _ignore(token: tokenize.TokenInfo) -> Ignore | None:
    comment = _COMMENT.search(token.string)
    if comment is None:
        return None
    row, column = token.start
    kinds = comment[1]
    named = None if kinds is None else tuple(k.strip() for k in kinds.split(",") if k.strip())
    below = 0 if token.line[:column].strip() else 1
    return Ignore(row, column + comment.start() + 1, named, row, row + below)


def _spread(ignore: Ignore, start: int, end: int) -> Ignore:
    if ignore.line in (start, end) or ignore.line < start:
        return replace(ignore, first=start, last=end)
    return ignore
