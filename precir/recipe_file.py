"""Recipes as files that a person can edit: JSON, an exception a line."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Final

from precir.errors import RecipeError

SUFFIX: Final = ".json"


def save_recipe(recipe: Any, path: str | Path) -> None:
    """Write a recipe; `precir.recipe(path)` reads it. All at once, or nothing."""
    kept = {f.name: getattr(recipe, f.name) for f in fields(recipe) if _told(recipe, f)}
    lines = [f" {json.dumps(name)}: {_written(value)}" for name, value in kept.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    path = Path(path)
    if path.suffix != SUFFIX:
        raise RecipeError(f"a recipe is written to a {SUFFIX} file, not {path.name!r}")
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    waiting.write_text(text)
    waiting.replace(path)


def load_recipe(path: str | Path, kinds: dict[str, type], whole: type) -> Any:
    """What `save_recipe` wrote: a `whole`, whose fields named in `kinds` hold values of a type.

    Raises `RecipeError` for a file that is not there, is no JSON, or says what no recipe has.
    """
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RecipeError(f"the recipe {path} cannot be read: {reason}") from error
    except ValueError as error:
        raise RecipeError(f"the recipe {path} is no JSON: {error}") from error
    known = {f.name for f in fields(whole)}
    if not isinstance(found, dict) or set(found) - known:
        what = sorted(set(found) - known) if isinstance(found, dict) else type(found).__name__
        raise RecipeError(f"{path} says {what}", fix=f"a recipe has {', '.join(sorted(known))}")
    try:
        return whole(**{name: _read(name, value, kinds) for name, value in found.items()})
    except TypeError as error:
        raise RecipeError(f"{path} is no recipe: {error}") from error


def _told(recipe: Any, field: Any) -> bool:
    return field.default is MISSING or getattr(recipe, field.name) != field.default


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        each = ",\n".join(f"  {json.dumps(asdict(v))}" for v in value)
        return f"[\n{each}\n ]"
    return json.dumps(asdict(value) if hasattr(value, "__dataclass_fields__") else value)


def _read(name: str, value: Any, kinds: dict[str, type]) -> Any:
    kind = kinds.get(name)
    if kind is None or value is None:
        return value
    return tuple(kind(**v) for v in value) if isinstance(value, list) else kind(**value)
