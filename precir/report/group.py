"""Rows that differ only by the numbers in their scopes, as repeated layers do, as one."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Grouped(Generic[Row]):
    """`count` rows alike: the first of them, and their scopes as one, as `GPT/h_*/mlp`."""

    row: Row
    scope: str
    count: int


def group(
    rows: Iterable[Row], scope: Callable[[Row], str], rest: Callable[[Row], Hashable]
) -> list[Grouped[Row]]:
    """One entry for rows alike in `rest` and, but for numbers, in scope; in order of the first."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault((_NUMBER.sub("*", scope(row)), rest(row)), []).append(row)
    return [
        Grouped(alike[0], common_scope([scope(r) for r in alike]), len(alike))
        for alike in found.values()
    ]


def common_scope(scopes: Sequence[str]) -> str:
    """Scopes that differ only by numbers, with `*` for those numbers that do differ."""
    if not scopes:
        return ""
    columns = zip(*(_NUMBER.findall(s) for s in scopes), strict=True)
    same = iter([values[0] if len(set(values)) == 1 else "*" for values in columns])
    return _NUMBER.sub(lambda _: next(same), scopes[0])
