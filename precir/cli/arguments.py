"""Arguments written as text: `f32[8,128] i32[8] key`, `steps=10`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any, Final

import jax

from precir.cli.trouble import UsageError
from precir.text.types import LONG, numpy_dtype

_SPEC: Final = re.compile(r"(?:(\w+)=)?(\w+)(?:\[([\d\s,]*)\])?(?=[\s,]|$)")
_BETWEEN: Final = re.compile(r"[\s,]*")
_EXAMPLE: Final = "write shapes as in --args 'f32[8,128] i32[8] f32[] key'"
_WIDE: Final = ("f64", "i64", "u64", "c128")


def parse_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Abstract arguments, positional and by name. Raises `UsageError` that shows the bad part."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    at = _skip(text, 0)
    while at < len(text):
        found = _SPEC.match(text, at)
        if found is None:
            raise UsageError(f"cannot read {text[at:]!r} in --args {text!r}", fix=_EXAMPLE)
        name, dtype, shape = found.groups()
        struct: Any = jax.ShapeDtypeStruct
        value = struct(_shape(shape or ""), _dtype(dtype))
        if name in named:
            raise UsageError(f"--args names {name!r} twice")
        if name:
            named[name] = value
        elif named:
            raise UsageError(f"in --args {text!r}, {found[0]!r} stands after a named argument")
        else:
            positional.append(value)
        at = _skip(text, found.end())
    if not positional and not named:
        raise UsageError("--args is empty", fix=_EXAMPLE)
    return positional, named


def parse_static(settings: Iterable[str]) -> dict[str, Any]:
    """`name=value` pairs; values are Python literals, else strings."""
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(
                f"--static {setting!r} is not name=value", fix="write it as in --static layers=12"
            )
        found[name.strip()] = _literal(value)
    return found


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return value


def _skip(text: str, at: int) -> int:
    between = _BETWEEN.match(text, at)
    return between.end() if between else at


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _dtype(name: str) -> Any:
    if name == "key":
        return jax.eval_shape(jax.random.key, 0).dtype
    dtype = numpy_dtype(name) if name != "float0" else None
    if dtype is None:
        known = ", ".join(["key", *(n for n in LONG if n != "float0")])
        raise UsageError(f"there is no type {name!r}", fix=f"one of {known}")
    if name in _WIDE and not _has_64_bits():
        raise UsageError(
            f"JAX makes no {name} unless 64-bit numbers are on",
            fix="set JAX_ENABLE_X64=1 in the environment",
        )
    return dtype


def _has_64_bits() -> bool:
    config: Any = jax.config
    return bool(config.jax_enable_x64)
