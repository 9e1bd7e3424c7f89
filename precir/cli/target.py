"""FILE:FUNCTION: find the function, and arguments to trace it with."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from precir.cli.trouble import UsageError, in_user_code


@dataclass(frozen=True)
class Target:
    """A function in a file.

    `make_args` is the file's `FUNCTION_args`, if it has one; `ranges` its `FUNCTION_ranges`;
    `make_batches` its `FUNCTION_batches`, which gives the last argument for each step.
    """

    name: str
    place: str
    function: Callable[..., Any]
    make_args: Callable[[], Any] | None
    ranges: Any = None
    make_batches: Callable[[], Any] | None = None


def find_target(text: str) -> Target:
    """The function that `FILE:FUNCTION` names; runs the file, but not as a script."""
    file, colon, name = text.rpartition(":")
    if not colon or not file or not name:
        raise UsageError(
            f"{text!r} is not FILE:FUNCTION", fix="name both, as in train.py:train_step"
        )
    path = Path(file)
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(what, where=file, fix="give the Python file, then : and the function")
    module = _load(path)
    function = _attribute(module, name, file)
    if not callable(function):
        raise UsageError(f"{name} is no function but {type(function).__name__}", where=file)
    makers = (getattr(module, f"{name}_{what}", None) for what in ("args", "batches"))
    make_args, make_batches = (make if callable(make) else None for make in makers)
    ranges = getattr(module, f"{name}_ranges", None)
    return Target(name, file, function, make_args, ranges, make_batches)


def _load(path: Path) -> ModuleType:
    """Import a file, under its dotted name if it is in a package."""
    path = path.resolve()
    root, name = path.parent, path.stem
    while (root / "__init__.py").exists():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        return importlib.import_module(name) if "." in name else _execute(path, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: the file may end itself
        fix = "guard what runs as a script with: if __name__ == '__main__':"
        hint = fix if isinstance(error, SystemExit) else None
        raise in_user_code(error, f"{path.name} cannot be imported", hint) from error


def _execute(path: Path, name: str) -> ModuleType:
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"precir_target_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError("this is no Python file", where=str(path), fix="give a file ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _attribute(module: ModuleType, name: str, file: str) -> Any:
    """`train_step`, or `Model.apply`."""
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"there is no {name} in it", where=file, fix=_suggestion(found, part))
        found = getattr(found, part)
    return found


def _suggestion(holder: Any, name: str) -> str:
    known = [n for n, v in vars(holder).items() if callable(v) and not n.startswith("_")]
    own = [n for n in known if getattr(vars(holder)[n], "__module__", None) == holder.__name__]
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"it has {', '.join(own[:8])}" if own else "name a function of the file"


def default_arguments(target: Target) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `FUNCTION_args()` in the file returns: args, or (args, kwargs)."""
    if target.make_args is None:
        raise UsageError(
            f"nothing says what {target.name} is called with",
            where=target.place,
            fix=f"give --args 'f32[8,128] i32[8]', or define {target.name}_args() in the file, "
            "which returns the arguments as a tuple",
        )
    try:
        given = target.make_args()
    except Exception as error:
        raise in_user_code(error, f"{target.name}_args() failed") from error
    if not isinstance(given, tuple):
        raise UsageError(
            f"{target.name}_args() returns {type(given).__name__}, not a tuple of arguments",
            where=target.place,
            fix="for one argument, return (argument,)",
        )
    if _has_keywords(target.function, given):
        return tuple(given[0]), dict(given[1])
    return given, {}


def _has_keywords(function: Callable[..., Any], given: tuple[Any, ...]) -> bool:
    """Whether this is (args, kwargs): as it looks, and as the function can take it."""
    if len(given) != 2 or not isinstance(given[0], tuple) or not isinstance(given[1], dict):
        return False
    try:
        inspect.signature(function).bind(*given[0], **given[1])
    except (TypeError, ValueError):
        return False
    return True
