"""Import an emitted module, as a module."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import itertools
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from precir.emit.module import Emitted
from precir.errors import DumpError, EmitError

_numbers = itertools.count()


def load(emitted: Emitted) -> ModuleType:
    """Write an emitted module to a folder of this process and import it from there."""
    digest = hashlib.sha256(emitted.text.encode()).hexdigest()[:12]
    path = _folder() / f"{emitted.name}_{digest}_{next(_numbers)}.py"
    _write(emitted, path)
    name = f"precir_emitted.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with jax.ensure_compile_time_eval():
        spec.loader.exec_module(module)
    if emitted.externals:
        module.EXTERNALS = emitted.externals  # type: ignore[attr-defined]
    return module


def save(emitted: Emitted, path: str | Path) -> None:
    """Write an emitted module, its constants beside it in an `.npz`.

    Raises `EmitError` if it refers to objects that have no source text, `DumpError` if the folder
    cannot be written. Either way nothing is left half written.
    """
    path = Path(path)
    if emitted.externals:
        held = ", ".join(sorted({type(e).__name__ for e in emitted.externals}))
        raise EmitError(
            f"the emitted module refers to objects with no source text ({held}): "
            "it cannot stand alone",
            fix="compile without the callback or custom pytree that holds them, "
            "or keep using the compiled function",
        )
    _write(emitted, path)


def _write(emitted: Emitted, path: Path) -> None:
    """Both files appear whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    arrays = path.with_suffix(".npz")
    held = arrays.with_name(f".{arrays.name}.tmp")
    try:
        if emitted.constants:
            with held.open("wb") as file:
                np.savez(file, **_plain(emitted.constants))
        temporary.write_text(emitted.text, encoding="utf-8")
        if emitted.constants:
            held.replace(arrays)
        temporary.replace(path)
    except OSError as error:
        for left in (temporary, held):
            if left.exists():
                left.unlink()
        raise DumpError(
            f"cannot write {path}: {error.strerror or error}",
            fix="give a folder that exists and can be written",
        ) from error


def _plain(arrays: Any) -> dict[str, Any]:
    return {k: np.asarray(v) for k, v in arrays.items()}


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="precir-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
