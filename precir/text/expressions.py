"""Reading values: the inverse of `precir.text.values`.

A parser of its own rather than Python's: `ast` fails on odd texts in more ways than SyntaxError
(memory, recursion, warnings), and has no words for types and externals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from precir.text.kinds import BUILDERS, ENUMS_BY_NAME, SINGLETONS, Unavailable
from precir.text.tokens import Tokens
from precir.text.types import LONG, numpy_dtype
from precir.text.values import DEEPEST, External

_NUMBER: Final = re.compile(r"-?(?:0x|\d|inf\b)")
_EXTERNAL: Final = re.compile(r"<external (\d+): (.*)>")
_DEEPEST: Final = 4 * DEEPEST
_CONSTANTS: Final[dict[str, Any]] = {
    "None": None,
    "True": True,
    "False": False,
    "inf": float("inf"),
    "nan": float("nan"),
    **SINGLETONS,
}


def number(token: str) -> int | float | None:
    """The number a token spells, None if it is no number."""
    try:
        if not _NUMBER.match(token):
            return None
        if "x" in token:
            return int(token, 16)
        return float(token) if token.strip("-0123456789") else int(token)
    except ValueError:  # more digits than Python reads
        return None


class Expressions:
    """Reads values from tokens."""

    def __init__(self, tokens: Tokens, externals: Mapping[int, Any]) -> None:
        self.tokens = tokens
        self.externals = externals

    def value(self, depth: int = 0) -> Any:
        tokens = self.tokens
        if depth > _DEEPEST:
            tokens.fail("a value that is nested less deeply")
        token = tokens.current
        if token == "(":
            return self._tuple(depth + 1)
        if token == "[":
            tokens.next()
            return self._items("]", depth + 1)
        if token == "{":
            return self._dict(depth + 1)
        if token.startswith(("'", '"', "b'", 'b"')) and len(token) > 1:
            return self.string()
        found = number(token)
        if found is not None:
            tokens.next()
            return found
        if token.startswith("<external "):
            return self._external()
        return self._named(depth + 1)

    def string(self) -> Any:
        token = self.tokens.current
        try:
            value = ast.literal_eval(token)
        except (ValueError, SyntaxError):
            self.tokens.fail("a string")
        self.tokens.next()
        return value

    def _items(self, closing: str, depth: int) -> list[Any]:
        items = []
        while not self.tokens.skip(closing):
            items.append(self.value(depth))
            if not self.tokens.skip(","):
                self.tokens.expect(closing, f"`,` or `{closing}`")
                break
        return items

    def _tuple(self, depth: int) -> tuple[Any, ...]:
        self.tokens.next()
        return tuple(self._items(")", depth))

    def _dict(self, depth: int) -> dict[Any, Any]:
        tokens = self.tokens
        tokens.next()
        made = {}
        while not tokens.skip("}"):
            at = tokens.at
            key = self.value(depth)
            tokens.expect(":")
            value = self.value(depth)
            try:
                made[key] = value
            except TypeError:
                tokens.fail("a key that can be hashed", at)
            if not tokens.skip(","):
                tokens.expect("}", "`,` or `}`")
                break
        return made

    def _set(self, name: str, depth: int) -> Any:
        at = self.tokens.at
        self.tokens.expect("{")
        items = self._items("}", depth)
        self.tokens.expect(")")
        try:
            return frozenset(items) if name == "frozenset" else set(items)
        except TypeError:
            self.tokens.fail("elements that can be hashed", at)

    def _external(self) -> Any:
        found = _EXTERNAL.fullmatch(self.tokens.current)
        if found is None:
            self.tokens.fail("`<external number: description>`")
        self.tokens.next()
        index = int(found[1])
        return self.externals[index] if index in self.externals else External(found[2], index)

    def _named(self, depth: int) -> Any:
        """A word: a constant, a dtype, a member of an enum, or a call."""
        tokens, at = self.tokens, self.tokens.at
        name = tokens.next()
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if tokens.skip("("):
            if name in ("frozenset", "set"):
                return self._set(name, depth)
            return self._call(name, at, depth)
        if name in LONG:
            dtype = numpy_dtype(name)
            return External(name) if dtype is None else dtype
        cls, _, member = name.rpartition(".")
        if cls in ENUMS_BY_NAME:
            members = ENUMS_BY_NAME[cls].__members__
            if member not in members:
                tokens.fail(f"a member of {cls}", at)
            return members[member]
        tokens.fail("a value", at)

    def _call(self, name: str, at: int, depth: int) -> Any:
        tokens = self.tokens
        arguments, keywords = [], {}
        while not tokens.skip(")"):
            if tokens.following == "=" and tokens.current.isidentifier():
                key = tokens.next()
                tokens.next()
                keywords[key] = self.value(depth)
            else:
                arguments.append(self.value(depth))
            if not tokens.skip(","):
                tokens.expect(")", "`,` or `)`")
                break
        return self._build(name, arguments, keywords, at)

    def _build(self, name: str, arguments: list[Any], keywords: dict[str, Any], at: int) -> Any:
        if name in LONG:
            return self._scalar(name, arguments, keywords, at)
        if name not in BUILDERS:
            self.tokens.fail("a value of a known kind", at)
        try:
            return BUILDERS[name](*arguments, **keywords)
        except Unavailable:
            return External(self.tokens.since(at))
        except Exception:  # what a constructor raises for arguments that make no sense
            if any(type(v) is External for v in _flat([*arguments, *keywords.values()])):
                return External(self.tokens.since(at))
            self.tokens.fail(f"arguments that make a {name}", at)

    def _scalar(self, name: str, arguments: list[Any], keywords: dict[str, Any], at: int) -> Any:
        dtype = numpy_dtype(name)
        if dtype is None:
            return External(self.tokens.since(at))
        try:
            (value,) = arguments
            if keywords or not isinstance(value, (bool, int, float, complex)):
                raise TypeError
            with np.errstate(all="ignore"):
                return dtype.type(value)
        except (TypeError, ValueError, OverflowError):
            self.tokens.fail(f"one number of {name}", at)


def _flat(values: Any) -> list[Any]:
    flat = []
    for value in values:
        flat += _flat(value) if isinstance(value, (tuple, list)) else [value]
    return flat
