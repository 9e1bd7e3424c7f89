"""How a parameter is written: Python-like expressions over a closed list of kinds.

A text can only name what is listed here, so that reading one runs no code of its choosing. All
else, as Python functions, is written `<external 3: function f>` and handed over by the reader.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np

from precir.equality import same_value
from precir.text.kinds import ENUMS, KINDS, RECORDS, SINGLETON_NAMES, Kind
from precir.text.types import SCALARS, SHORT

DEEPEST: Final = 60  # nesting of expressions, in text and out of it
_WIDEST: Final = 64  # elements of an array that stands in an expression


@dataclass(frozen=True)
class External:
    """What stands in a text and cannot be had here.

    An object that was not handed over (`number` is its number in the text), or a value that needs
    another machine, as a mesh of eight devices.
    """

    text: str
    number: int | None = None


class Speller:
    """Writes values. `externals` holds by number the objects that it could only refer to."""

    def __init__(self) -> None:
        self.externals: dict[int, Any] = {}
        self._next = 0
        self._numbers: dict[int | External, int] = {}
        self._known: dict[int, tuple[Any, str]] = {}

    def __call__(self, value: Any, depth: int = 0) -> str:
        simple = _SIMPLE.get(type(value))
        if simple is not None:
            return simple(value)
        if depth > DEEPEST:
            return self.external(value)
        if type(value) is tuple:
            items = [self(v, depth + 1) for v in value]
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        return self._other(value, depth + 1)

    def _other(self, value: Any, depth: int) -> str:
        kind = type(value)
        if kind is list:
            return f"[{', '.join([self(v, depth) for v in value])}]"
        if kind is dict:
            items = [f"{self(k, depth)}: {self(v, depth)}" for k, v in value.items()]
            return "{" + ", ".join(items) + "}"
        if kind is frozenset or kind is set:
            return f"{kind.__name__}({{{', '.join(sorted(self(v, depth) for v in value))}}})"
        if isinstance(value, np.dtype) and value.name in SHORT:
            return SHORT[value.name]
        if kind in SCALARS:
            return _scalar(value)
        if isinstance(value, enum.Enum):
            return self._enum(value)
        if kind in RECORDS:
            name, fields = RECORDS[kind]
            inner = ", ".join([f"{f}={self(getattr(value, f), depth)}" for f in fields])
            return f"{name}({inner})"
        if kind is External:
            return value.text if value.number is None else self.external(value)
        if isinstance(value, np.ndarray):
            return self._array(value, depth)
        return self._special(value, depth)

    def _enum(self, value: enum.Enum) -> str:
        name = ENUMS.get(type(value))
        named = name is not None and value.name in type(value).__members__
        return f"{name}.{value.name}" if named else self.external(value)

    def _array(self, value: np.ndarray[Any, Any], depth: int) -> str:
        short = SHORT.get(value.dtype.name)
        if type(value) is not np.ndarray or value.size > _WIDEST or short in (None, "float0"):
            return self.external(value)
        if not same_value(value, np.array(value.tolist(), value.dtype).reshape(value.shape)):
            return self.external(value)
        return f"array({short}, {self(value.shape, depth)}, {self(value.tolist(), depth)})"

    def _special(self, value: Any, depth: int) -> str:
        """A singleton, or what is taken apart and built again, if that gives an equal value."""
        found = self._known.get(id(value))
        if found is not None:
            return found[1]
        name = SINGLETON_NAMES.get(id(value))
        if name is not None:
            return name
        text = self._taken_apart(value, KINDS.get(type(value)), depth)
        if text is None:
            return self.external(value)
        self._known[id(value)] = value, text
        return text

    def _taken_apart(self, value: Any, kind: Kind | None, depth: int) -> str | None:
        if kind is None:
            return None
        for arguments, keywords in _candidates(kind, value):
            parts = [self(a, depth) for a in arguments]
            parts += [f"{k}={self(v, depth)}" for k, v in keywords.items()]
            return f"{kind.name}({', '.join(parts)})"
        return None

    def external(self, value: Any) -> str:
        """Refer to an object by number."""
        key = value if type(value) is External else id(value)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._free(value)
            self.externals[number] = value
        return f"<external {number}: {describe(value)}>"

    def _free(self, value: Any) -> int:
        """A number that no other object has: that of an `External`, if it can be kept."""
        kept = value.number if type(value) is External else None
        if kept is not None and kept not in self.externals:
            return kept
        while self._next in self.externals:
            self._next += 1
        return self._next


def _candidates(kind: Kind, value: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The ways to take `value` apart from which it can be built again."""
    try:
        for arguments, keywords in kind.apart(value):
            if same_value(kind.build(*arguments, **keywords), value):
                yield arguments, keywords
    except Exception:  # a kind of another JAX: then it is referred to, for printing never fails
        return


def describe(value: Any) -> str:
    """A few words on an object, the same in every run: no addresses."""
    if isinstance(value, External):
        return value.text
    kind = type(value).__name__
    try:
        if isinstance(value, (jax.tree_util.PyTreeDef, jax.Device)):
            name = str(value)
        else:
            name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))
    except Exception:  # an object whose attributes fail
        name = ""
    name = name.replace("<locals>.", "").translate(_UNQUOTED)
    text = f"{kind.translate(_UNQUOTED)} {name if name.isprintable() else ''}".strip()
    return text if len(text) <= 60 else text[:57] + "..."


_UNQUOTED: Final = str.maketrans("<>", "()")


def spell_float(value: float) -> str:
    return repr(value) if math.isfinite(value) else "nan" if value != value else _infinity(value)


def _infinity(value: float) -> str:
    return "inf" if value > 0 else "-inf"


def _integer(value: int) -> str:
    return repr(value) if value.bit_length() < 4096 else hex(value)  # Python reads no longer ones


def _complex(value: complex) -> str:
    return f"complex({spell_float(value.real)}, {spell_float(value.imag)})"


def _scalar(value: Any) -> str:
    short, python = SCALARS[type(value)], value.item()
    if not isinstance(python, (bool, int, float, complex)):
        python = int(value) if short[0] in "iu" else float(value)
    inner = _SIMPLE[type(python)](python)
    if short == "f32" and math.isfinite(python):
        inner = str(value)
    return f"{short}({inner})"


_SIMPLE: Final[dict[type, Callable[[Any], str]]] = {
    **dict.fromkeys((bool, str, bytes, type(None)), repr),
    int: _integer,
    float: spell_float,
    complex: _complex,
}
