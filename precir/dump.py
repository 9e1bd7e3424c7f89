"""A compiled program as a folder: a text per pass, the report, the emitted module, an index.

A dump appears whole or not at all, and its index knows every file, so that a damaged one is told
from a sound one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax

from precir.emit.load import save as save_module
from precir.errors import DumpError, EmitError, TextError
from precir.passes.pipeline import Stage
from precir.report import Report
from precir.text import load_graph, save_graph
from precir.version import __version__

if TYPE_CHECKING:
    from precir.program import Program

FORMAT: Final = 1
INDEX: Final = "index.json"
_KIND: Final = "precir dump"
_IGNORED: Final = {"__pycache__"}  # what importing the module leaves


@dataclass(frozen=True)
class Dump:
    """A dump, read back.

    Attributes:
      folder: where it lies.
      index: versions, the recipe's fields, the function's name and the files.
      stages: the program after lowering and after each pass.
      report: the report.
      module: text of the emitted module, None if it cannot stand alone.
    """

    folder: Path
    index: dict[str, Any]
    stages: tuple[Stage, ...]
    report: Report
    module: str | None

    def file(self, stage: str) -> Path:
        """The text of a stage."""
        files: dict[str, str] = {s["name"]: s["file"] for s in self.index["stages"]}
        return self.folder / files[stage]


def dump(program: Program, folder: str | os.PathLike[str]) -> None:
    """Write one text file per pass, the report and the emitted module to `folder`.

    A dump that is there already is replaced. Raises `DumpError` if the folder holds anything else
    or cannot be written; nothing is left half written.
    """
    check_folder(folder)
    target = Path(os.path.abspath(folder))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _whole(target, lambda made: _write(program, made))
    except OSError as error:
        raise _unwritable(folder, error.strerror or f"{error}") from error


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises `DumpError` if it is plain already that no dump can be written to `folder`."""
    target = Path(os.path.abspath(folder))
    try:
        _check_replaceable(target)
    except OSError as error:
        raise _unwritable(folder, error.strerror or f"{error}") from error
    above = next(p for p in target.parents if os.path.lexists(p))
    if not above.is_dir():
        raise _unwritable(folder, f"{above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"no permission to write in {above}")


def _unwritable(folder: str | os.PathLike[str], why: str) -> DumpError:
    fix = "give a folder that can be written"
    return DumpError(f"cannot write the dump: {why}", where=str(folder), fix=fix)


# -- writing ---------------------------------------------------------------------------------------


def _check_replaceable(target: Path) -> None:
    """Raises `DumpError` unless `target` is free, empty, or a dump and nothing but a dump."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise DumpError("this is no folder", where=str(target), fix="give another one")
    held = {path.name for path in target.iterdir()} - _IGNORED
    if held and target.samefile(Path.cwd()):
        raise DumpError("a dump cannot replace the folder you are in", where=str(target))
    if not held:
        return
    try:
        others = held - set(_read_index(target)["files"]) - {INDEX}
    except DumpError:
        others = held
    if others:
        names = ", ".join(sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        raise DumpError(
            f"the folder holds what is no part of a dump ({names}) and is left as it is",
            where=str(target),
            fix="give another folder, or delete this one",
        )


def _whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `target`, then put it in the place of `target`."""
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    old = made.with_suffix(".old")
    made.mkdir()
    try:
        write(made)
        if target.exists():
            target.rename(old)
        try:
            made.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _write(program: Program, folder: Path) -> None:
    stages = []
    for n, stage in enumerate(program.stages):
        file = f"{n:02}_{stage.name}.ir"
        save_graph(stage.graph, folder / file)
        stages.append({"name": stage.name, "file": file})
    report = Report.of(program)
    _write_text(folder / "report.txt", str(report))
    _write_text(folder / "report.json", _json(report.to_json()))
    module = _write_module(program, folder)
    index = _index(program, stages, module)
    index["files"] = {p.name: _digest(p.read_bytes()) for p in sorted(folder.iterdir())}
    _write_text(folder / INDEX, _json(index))


def _index(program: Program, stages: list[dict[str, str]], module: str | None) -> dict[str, Any]:
    return {
        "kind": _KIND,
        "format": FORMAT,
        "precir": __version__,
        "jax": jax.__version__,
        "function": program.signature.name,
        "recipe": asdict(program.recipe),
        "stages": stages,
        "module": module,
    }


def _write_module(program: Program, folder: Path) -> str | None:
    """The module's file name; None if it cannot stand alone, which a text then says."""
    name = f"{program.signature.name}.py"
    try:
        save_module(program.emitted, folder / name)
    except EmitError as error:
        _write_text(folder / f"{name}.txt", f"There is no {name} in this dump: {error}\n")
        return None
    return name


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}


# -- reading ---------------------------------------------------------------------------------------


def read_dump(folder: str | os.PathLike[str]) -> Dump:
    """A dump, every file of it checked.

    Raises `DumpError` or `TextError`, which name the file, and the line of a text, if it is no
    dump, or one that is damaged or incomplete.
    """
    folder = Path(folder)
    index = _read_index(folder)
    stages = tuple(Stage(s["name"], _read_graph(folder, index, s["file"])) for s in index["stages"])
    report = Report.from_json(_read_json(folder, index, "report.json"), f"{folder / 'report.json'}")
    name = index["module"]
    for file in index["files"]:
        _read(folder, index, file)
    module = None if name is None else _read(folder, index, name).decode()
    return Dump(folder, index, stages, report, module)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        missing = "there is no such folder" if not folder.exists() else f"this has no {INDEX}"
        raise DumpError(f"{missing}: it is no dump", where=str(folder), fix=_FIX) from None
    except OSError as error:
        raise DumpError(f"cannot read: {error.strerror}", where=str(path), fix=_FIX) from error
    except ValueError as error:
        raise _damaged(path, f"{error}") from error
    if not isinstance(index, dict) or index.get("kind") != _KIND:
        raise DumpError("this is the index of something else", where=str(path), fix=_FIX)
    if index.get("format") != FORMAT:
        found = f"format {index.get('format')!r}"
        raise DumpError(f"{found} is of another version of precir", where=str(path), fix=_FIX)
    if not _is_index(index):
        raise _damaged(path, "fields are missing or changed")
    return index


def _is_index(index: dict[str, Any]) -> bool:
    """Whether the fields that reading needs are there; no file lies outside the folder."""
    words = all(isinstance(index.get(k), str) for k in ("precir", "jax", "function"))
    files, stages, module = index.get("files"), index.get("stages"), index.get("module")
    if not (words and isinstance(files, dict) and isinstance(stages, list) and stages):
        return False
    if not isinstance(index.get("recipe"), dict) or not isinstance(module, str | None):
        return False
    texts = [s.get("file") if isinstance(s, dict) and "name" in s else None for s in stages]
    named = [*texts, "report.txt", "report.json", *([module] if module else [])]
    return all(isinstance(f, str) and Path(f).name == f for f in [*files, *named]) and all(
        f in files for f in named
    )


def _read(folder: Path, index: dict[str, Any], file: str) -> bytes:
    """A file's bytes, as they were written."""
    path, expected = folder / file, index["files"][file]
    try:
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "a file of the dump is missing" if missing else f"cannot read: {error.strerror}"
        raise DumpError(what, where=str(path), fix=_FIX) from error
    if _digest(data) != expected:
        size = expected.get("bytes") if isinstance(expected, dict) else None
        changed = f"{len(data)} bytes of {size}" if size != len(data) else "other content"
        raise _damaged(path, f"{changed} since it was written")
    return data


def _read_graph(folder: Path, index: dict[str, Any], file: str) -> Any:
    """First as a text, whose errors name a line, then byte by byte."""
    beside = Path(file).with_suffix(".npz").name
    if (folder / file).is_file():
        if beside in index["files"]:
            _read(folder, index, beside)
        try:
            graph = load_graph(folder / file)
        except TextError as error:
            raise TextError(error.what, where=error.where, fix=error.fix or _FIX) from error
        _read(folder, index, file)
        return graph
    return _read(folder, index, file)


def _read_json(folder: Path, index: dict[str, Any], file: str) -> Any:
    data = _read(folder, index, file)
    try:
        return json.loads(data)
    except ValueError as error:
        raise _damaged(folder / file, f"{error}") from error


def _damaged(path: Path, how: str) -> DumpError:
    return DumpError(f"a damaged dump: {how}", where=str(path), fix=_FIX)


_FIX: Final = "write the dump again"
