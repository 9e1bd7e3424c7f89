"""JAX primitives by name: those lowered so far, else found in JAX's own modules."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from jax.extend.core import Primitive

_SEEN: dict[str, Any] = {}


def remember(primitive: Any) -> None:
    """Keep the object behind a name, so that a node of that op can be bound again."""
    _SEEN[primitive.name] = primitive


def primitive_named(name: str) -> Any | None:
    """The primitive of that name, or None if neither lowered before nor found in JAX."""
    found = _SEEN.get(name)
    return found if found is not None else _in_jax().get(name)


@cache
def import_path(name: str) -> tuple[str, str] | None:
    """(module, attribute) under which a primitive can be imported, or None."""
    primitive = primitive_named(name)
    if primitive is None:
        return None
    for module, attribute in _attributes():
        if getattr(sys.modules[module], attribute, None) is primitive:
            return module, attribute
    return None


def _attributes() -> list[tuple[str, str]]:
    found = []
    for module_name, module in sorted(sys.modules.items()):
        if module_name == "__main__":
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, Primitive):
                found.append((module_name, attribute))
    # The module that defines it: JAX's own before re-exports, the shortest before the rest.
    return sorted(found, key=lambda f: (not f[0].startswith("jax._src"), len(f[0]), f))


@cache
def _in_jax() -> dict[str, Any]:
    return {
        getattr(sys.modules[m], a).name: getattr(sys.modules[m], a)
        for m, a in reversed(_attributes())
        if m.startswith("jax")
    }
