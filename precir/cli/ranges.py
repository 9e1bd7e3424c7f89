"""Ranges of arguments written as text: `x=-1:1`, `params/*/bias=0:1`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import jax
import numpy as np

from precir.cli.trouble import UsageError
from precir.domains import Range
from precir.errors import PrecirError
from precir.formats import FORMATS

_EXAMPLE: Final = "write it as in --range x=-1:1, --range 0=-1:1 or --range 'params/*/bias=0:1'"
_WILD: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Given:
    """One --range: which arrays, and where their numbers lie."""

    text: str
    pattern: str
    range: Range

    def fits(self, names: Iterable[str], floating: bool) -> bool:
        if not floating and _WILD.search(self.pattern):
            return False  # params/* means the weights, not the step counter among them
        return any(
            fnmatchcase(n, self.pattern) or fnmatchcase(n, f"{self.pattern}/*") for n in names
        )


def parse_ranges(settings: Iterable[str]) -> list[Given]:
    """`ARRAY=LO:HI` each. Raises `UsageError` that shows the bad one."""
    return [_parse(text) for text in settings]


def _parse(text: str) -> Given:
    pattern, equals, bounds = text.rpartition("=")
    lo, colon, hi = bounds.partition(":")
    if not equals or not colon or not pattern.strip():
        raise UsageError(f"--range {text!r} is not ARRAY=LO:HI", fix=_EXAMPLE)
    try:
        found = Range(float(lo), float(hi))
    except PrecirError as error:
        raise UsageError(f"--range {text!r}: {error.what}", fix="LO is at most HI") from error
    except ValueError as error:
        raise UsageError(
            f"--range {text!r}: {bounds!r} are no two numbers", fix=_EXAMPLE
        ) from error
    return Given(text, pattern.strip().strip("/"), found)


def spread(
    given: Sequence[Given], names: Sequence[str], args: Sequence[Any]
) -> tuple[Callable[[str], Range | None], ...]:
    """What `precir.check` takes as `ranges`: a rule for each argument.

    An array that several fit has the last one's range; one that none fits is as in the example,
    or unknown where there is only a shape.

    Raises:
      UsageError: a range that fits no array.
    """
    used: set[str] = set()
    known: list[str] = []
    rules = []
    for i, arg in enumerate(args):
        entries: dict[str, Range | None] = {}
        for path, x in jax.tree_util.tree_flatten_with_path(arg)[0]:
            below = jax.tree_util.keystr(path, simple=True, separator="/")
            both = [f"{name}/{below}" if below else name for name in (names[i], str(i))]
            known.append(both[0])
            fitting = [g for g in given if g.fits(both, _floating(x))]
            used.update(g.text for g in fitting)
            entries[jax.tree_util.keystr(path)] = fitting[-1].range if fitting else _seen(x)
        rules.append(_rule(entries))
    for g in given:
        if g.text not in used:
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise UsageError(f"--range {g.text!r} fits no array", fix=f"there are {shown}")
    return tuple(rules)


def all_positional(
    function: Callable[..., Any], count: int, names: Sequence[str]
) -> Callable[..., Any]:
    """The function with `count` arguments by position, and then those names' by position too."""

    def called(*args: Any) -> Any:
        return function(*args[:count], **dict(zip(names, args[count:], strict=True)))

    called.__name__ = getattr(function, "__name__", "main")
    return called


def names_of(function: Callable[..., Any], count: int) -> list[str]:
    """The parameter of each positional argument; its number where it has no name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds]
    return [names[i] if i < len(names) else str(i) for i in range(count)]


def _rule(entries: Mapping[str, Range | None]) -> Callable[[str], Range | None]:
    return lambda path: entries[path]


def _seen(x: Any) -> Range | None:
    """Where the finite numbers of a float array of the example lie."""
    if isinstance(x, jax.ShapeDtypeStruct) or not _floating(x):
        return None
    numbers = np.asarray(x).astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    return Range(finite.min(), finite.max()) if finite.size else None


def _floating(x: Any) -> bool:
    return isinstance(x, float) or str(getattr(x, "dtype", "")) in FORMATS
