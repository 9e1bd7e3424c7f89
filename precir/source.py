"""Where in the user's code a node comes from, found only when somebody asks."""

from __future__ import annotations

import os
import site
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any

from jax._src import source_info_util

_LIBRARIES = tuple(
    {
        os.path.realpath(p) + os.sep
        for p in (
            *site.getsitepackages(),
            site.getusersitepackages(),
            sysconfig.get_path("purelib"),
            sysconfig.get_path("platlib"),
            sysconfig.get_path("stdlib"),
        )
    }
    | {os.path.dirname(os.path.realpath(__file__)) + os.sep}
)


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file: 1-based lines, 0-based columns, as Python reports them."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    function: str

    def __str__(self) -> str:
        return f"{self.short}:{self.line}"

    @property
    def short(self) -> str:
        return os.path.basename(self.file)


class Source:
    """A lazy `Where`: keeps JAX's traceback, resolves it on first use."""

    __slots__ = ("_traceback", "_where")

    def __init__(self, traceback: Any = None, where: Where | None = None) -> None:
        self._traceback = traceback
        self._where = where

    @property
    def where(self) -> Where | None:
        """The innermost line of the user's own code, or of a library if there is none."""
        if self._where is None and self._traceback is not None:
            self._where = _user_frame(self._traceback)
            self._traceback = None
        return self._where

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.where == other.where

    def __hash__(self) -> int:
        return hash(self.where)

    def __str__(self) -> str:
        return str(self.where) if self.where else "unknown place"


NOWHERE = Source()


@cache
def is_library(code_file: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to precir: not to the user."""
    path = os.path.realpath(code_file)
    if path.startswith(tuple(_own)):
        return False
    return path.startswith(_LIBRARIES) or code_file.startswith("<frozen")


_own: list[str] = []


@contextmanager
def own_code(package: ModuleType) -> Iterator[None]:
    """Within it, an installed package's files count as the user's own: to look into a library."""
    _own.extend(os.path.realpath(p) + os.sep for p in package.__path__)
    is_library.cache_clear()
    try:
        yield
    finally:
        del _own[-len(package.__path__) :]
        is_library.cache_clear()


@contextmanager
def own_lines() -> Iterator[None]:
    """In here, what is traced comes from where it stands: inside of a custom rule JAX else says
    that all of it comes from where the rule was called.
    """
    held: Any = source_info_util._source_info_context
    before = held.context
    held.context = source_info_util.SourceInfo(None, before.name_stack)
    try:
        yield
    finally:
        held.context = before


@cache
def is_jax(code_file: str) -> bool:
    """Whether a file belongs to JAX itself (or, as JAX counts, to Python)."""
    return not source_info_util.is_user_filename(code_file)


def _user_frame(traceback: Any) -> Where | None:
    codes, lasti = traceback.raw_frames()
    fallback: int | None = None
    for i, code in enumerate(codes):
        if is_jax(code.co_filename):
            continue
        if not is_library(code.co_filename):
            return _where(code, lasti[i])
        fallback = i if fallback is None else fallback
    return None if fallback is None else _where(codes[fallback], lasti[fallback])


@cache
def _where(code: CodeType, lasti: int) -> Where:
    frame = source_info_util.raw_frame_to_frame(code, lasti)
    return Where(
        frame.file_name,
        frame.start_line,
        frame.start_column,
        frame.end_line,
        frame.end_column,
        frame.function_name,
    )
