"""Where an input lives in the arguments, and how runs of inputs are spelled.

`state.params["h_3"]["kernel"]` is root `state` and keys `.params`, `["h_3"]`, `["kernel"]`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from precir.ir import Value


class Key(NamedTuple):
    """One step into a pytree: `kind` is "item" (`x[value]`), "attribute" (`x.value`) or "method"
    (`x.value()`).
    """

    kind: str
    value: Any

    def __str__(self) -> str:
        if self.kind == "item":
            return f"[{quote(self.value)}]"
        return f".{self.value}()" if self.kind == "method" else f".{self.value}"


class Path(NamedTuple):
    """The way to a leaf: a parameter's name and the steps from there."""

    root: str
    keys: tuple[Key, ...] = ()

    def __str__(self) -> str:
        return self.root + "".join(map(str, self.keys))


def quote(value: Any) -> str:
    """A literal as a formatter would leave it: double quotes."""
    if isinstance(value, str) and '"' not in value and "\\" not in value and value.isprintable():
        return f'"{value}"'
    return repr(value)


@dataclass(frozen=True)
class Family:
    """Paths alike but for a number in one key: `numbers[c]` is the c-th path's."""

    root: str
    keys: tuple[Key, ...]
    at: int
    before: str
    after: str
    numbers: tuple[int, ...]

    def stem(self, index: str) -> str:
        """The path up to and with the numbered key, the number spelled `index`."""
        key = self.keys[self.at]
        head = str(Path(self.root, self.keys[: self.at]))
        if isinstance(key.value, int):
            return f"{head}[{index}]"
        return f'{head}[f"{self.before}{{{index}}}{self.after}"]'

    @property
    def rest(self) -> tuple[Key, ...]:
        return self.keys[self.at + 1 :]

    @property
    def group(self) -> tuple[object, ...]:
        """What families share when one subtree holds them all."""
        return (self.root, self.keys[: self.at], self.before, self.after, self.numbers)


_NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$")


def family(paths: Sequence[Path]) -> Family | None:
    """The family that `paths` form, if they differ in the number in one key only."""
    first = paths[0]
    if any(p.root != first.root or len(p.keys) != len(first.keys) for p in paths):
        return None
    differing = [
        i for i in range(len(first.keys)) if any(p.keys[i] != first.keys[i] for p in paths)
    ]
    if len(differing) != 1:
        return None
    at = differing[0]
    if any(p.keys[at].kind != "item" for p in paths):
        return None
    values = [p.keys[at].value for p in paths]
    if all(type(v) is int for v in values):
        return Family(first.root, first.keys, at, "", "", tuple(values))
    if not all(isinstance(v, str) for v in values):
        return None
    matches = [_NUMBERED.match(v) for v in values]
    if not all(matches):
        return None
    parts = [m.groups() for m in matches if m]
    befores, numbers, afters = zip(*parts, strict=True)
    if len(set(befores)) > 1 or len(set(afters)) > 1 or "{" in befores[0] + afters[0]:
        return None
    if any(str(int(n)) != n for n in numbers):
        return None
    return Family(first.root, first.keys, at, befores[0], afters[0], tuple(map(int, numbers)))


class Leaves:
    """The inputs of a program in flattening order, with the subtrees they fill."""

    def __init__(self) -> None:
        self.paths: dict[Value, Path] = {}
        self._subtrees: dict[Path, tuple[int, int]] = {}
        self._order: list[Value] = []
        self._index: dict[Value, int] = {}

    def add(self, value: Value, path: Path, *, complete: bool = True) -> None:
        """Register the next input; `complete` if every leaf of its root is registered."""
        self.paths[value] = path
        if not complete:
            return
        self._index[value] = len(self._order)
        for depth in range(len(path.keys) + 1):
            prefix = Path(path.root, path.keys[:depth])
            first, count = self._subtrees.get(prefix, (len(self._order), 0))
            self._subtrees[prefix] = (first, count + 1)
        self._order.append(value)

    def subtree(self, values: Sequence[object], start: int) -> tuple[Path, int] | None:
        """The largest subtree whose leaves, in order, are values[start:start + n], n >= 2."""
        value = values[start]
        if not isinstance(value, Value) or value not in self._index:
            return None
        path = self.paths[value]
        for depth in range(len(path.keys) + 1):
            prefix = Path(path.root, path.keys[:depth])
            first, count = self._subtrees[prefix]
            if first != self._index[value] or count < 2 or start + count > len(values):
                continue
            leaves = self._order[first : first + count]
            if any(v.type.scale is not None for v in leaves):
                continue  # data and scale are one value here, and two leaves to JAX
            if all(a is b for a, b in zip(leaves, values[start : start + count], strict=True)):
                return prefix, count
        return None


def argument_paths(tree: Any, root: str) -> list[Path] | None:
    """The path of each leaf of an argument, or None where leaves cannot be reached by name
    (custom nodes without named children).
    """
    leaves, treedef = jax.tree.flatten(tree)
    numbered = jax.tree.unflatten(treedef, range(len(leaves)))
    found = []
    with_paths, _ = jax.tree_util.tree_flatten_with_path(numbered)
    for keys, number in with_paths:
        steps = [_key(k) for k in keys]
        if any(s is None for s in steps):
            return None
        given = Path(root, tuple(s for s in steps if s is not None))
        path = next((p for p in _spellings(given) if _reach(numbered, p) == number), None)
        if path is None:
            return None
        found.append(path)
    return found


def _spellings(path: Path) -> list[Path]:
    """A path as JAX names it, and as flax.nnx wants the value of a variable read."""
    if not path.keys or path.keys[-1] != Key("attribute", "value"):
        return [path]
    return [path, path._replace(keys=(*path.keys[:-1], Key("method", "get_value")))]


def _key(key: Any) -> Key | None:
    if isinstance(key, DictKey) and isinstance(key.key, (str, int)):
        return Key("item", key.key)
    if isinstance(key, SequenceKey):
        return Key("item", key.idx)
    if isinstance(key, GetAttrKey) and key.name.isidentifier():
        return Key("attribute", key.name)
    return None


def _reach(tree: Any, path: Path) -> Any:
    """What stands at a path, None if that cannot be read without an error or a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for key in path.keys:
                tree = _step(tree, key)
    except (TypeError, KeyError, IndexError, AttributeError, Warning):
        return None
    return tree


def _step(tree: Any, key: Key) -> Any:
    if key.kind == "item":
        return tree[key.value]
    found = getattr(tree, key.value)
    return found() if key.kind == "method" else found
