"""Graphs on disk: a text, and an `.npz` beside it for the constants too large to read."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from precir.errors import TextError
from precir.ir import Graph, Type
from precir.text.constants import decoded, encoded
from precir.text.parser import parse_stored
from precir.text.printer import Printer


def save_graph(graph: Graph, path: str | os.PathLike[str], *, places: bool = True) -> None:
    """Write `graph` to `path`, and its large constants to `path` with the suffix `.npz`.

    Each file appears whole or not at all, the text last. Objects without a text (Python
    functions) are not kept: in the graph that is loaded an `External` stands in their place.
    """
    path, printer = Path(path), Printer(places)
    text = printer.program(graph)
    beside = {name: encoded(graph.constants[name]) for name in printer.beside}
    if beside:
        _write(path.with_suffix(".npz"), lambda file: _archive(file, beside))
    _write(path, lambda file: file.write(text.encode()))
    if not beside:
        path.with_suffix(".npz").unlink(missing_ok=True)  # of a graph that lay here before


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """The graph that `save_graph` wrote to `path`. Raises TextError if the files are damaged."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise TextError("this is no text", where=str(path)) from error
    arrays = _arrays(path.with_suffix(".npz"))

    def stored(name: str, type_: Type, key: str | None) -> Any:
        raw = arrays.get(name)
        if raw is None and type_.dtype == "float0":
            raw = np.zeros(type_.shape, [("float0", "V")])
        if raw is None:
            return None
        try:
            return decoded(raw, type_, key)
        except ValueError:
            return raw  # not what the text says, which the parser then tells

    try:
        return parse_stored(text, stored)
    except TextError as error:
        raise TextError(error.what, where=f"{path}, {error.where}") from None


def _archive(file: Any, arrays: Mapping[str, np.ndarray[Any, Any] | None]) -> None:
    """An `.npz`, the same bytes for the same arrays, under whatever names."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            if array is not None:
                with archive.open(f"{quote(name)}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {unquote(name): archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TextError("the constants cannot be read", where=str(path)) from error


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file beside its place, then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
