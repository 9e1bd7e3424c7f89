"""A text cut into tokens, and the errors that tell where in the text they are."""

from __future__ import annotations

import re
from typing import Final, NoReturn

from precir.errors import TextError
from precir.text.types import WORD

_ESCAPE: Final = r"\\(?:[\\'\"nrtabfv]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
_TOKEN: Final = re.compile(
    rf"""(?:\s++|\#[^\n]*+)*+(
    %[\w.\-\#]+
    | b?'(?:[^'\\\n]|{_ESCAPE})*+' | b?"(?:[^"\\\n]|{_ESCAPE})*+"
    | {WORD}(?:\[[\d,]*\])?~?(?:\*scale\[[\d,]*\](?:/\[[\d,]*\])?)?
    | @[\w.\-+~:]*
    | -?(?:0x[0-9a-f]+|[\d]+(?:\.[\d]*)?(?:e[+-]?[\d]+)?|inf\b)
    | <external\ [\d]{{1,9}}:\ [^<>\n]*>
    | <[\w.]+>
    | . | \Z)""",
    re.VERBOSE,
)
END: Final = ""


class Tokens:
    """A cursor over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._all: list[str] = _TOKEN.findall(text)
        if not self._all or self._all[-1] != END:
            self._all.append(END)
        self.at = 0

    @property
    def current(self) -> str:
        return self._all[self.at]

    @property
    def following(self) -> str:
        """The token after the current one."""
        return self._all[min(self.at + 1, len(self._all) - 1)]

    def next(self) -> str:
        """Take the current token. The end can be taken again and again."""
        token = self._all[self.at]
        if token != END:
            self.at += 1
        return token

    def skip(self, token: str) -> bool:
        """Take `token` if it is the current one."""
        if self._all[self.at] != token:
            return False
        self.at += 1
        return True

    def expect(self, token: str, what: str | None = None) -> None:
        if not self.skip(token):
            self.fail(what or f"`{token}`")

    def since(self, start: int) -> str:
        """The text from token `start` up to the current one."""
        return self._text[self._offset(start) : self._offset(self.at - 1, end=True)]

    def fail(self, expected: str, at: int | None = None) -> NoReturn:
        """Raise a TextError about the current token, or that at `at`."""
        at = self.at if at is None else at
        found = self._all[at]
        shown = "the end of the text" if found == END else f"`{found[:40]}`"
        offset = self._offset(at)
        number = self._text.count("\n", 0, offset) + 1
        line = self._text.split("\n")[number - 1].strip()
        raise TextError(
            f"line {number}: expected {expected}, found {shown}",
            where=f"line {number}: {line if len(line) <= 120 else line[:117] + '...'}",
        )

    def _offset(self, index: int, *, end: bool = False) -> int:
        for i, match in enumerate(_TOKEN.finditer(self._text)):
            if i == index:
                return match.end(1) if end else match.start(1)
        return len(self._text)
