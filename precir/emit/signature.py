"""How a program is called: its parameters' names and pytrees, and the pytree it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from precir.emit.names import Names
from precir.emit.paths import Leaves, Path, argument_paths
from precir.ir import Graph, Value


@dataclass(frozen=True)
class Parameter:
    """One parameter of the emitted main function and the pytree it takes."""

    name: str
    tree: Any
    keyword: bool = False


@dataclass(frozen=True)
class Signature:
    """What the main function looks like from outside.

    Attributes:
      name: its name.
      parameters: in the order in which their leaves are the graph's inputs.
      result: the pytree definition of what it returns.
    """

    name: str
    parameters: tuple[Parameter, ...]
    result: Any

    def labels(self) -> list[str]:
        """A name for each input leaf, as a person would write it."""
        labels: list[str] = []
        for p in self.parameters:
            paths = argument_paths(_numbered(p.tree), p.name)
            count = p.tree.num_leaves
            labels += (
                map(str, paths) if paths is not None else [f"{p.name}<{i}>" for i in range(count)]
            )
        return labels


def signature_of(
    fn: Callable[..., Any], in_tree: Any, out_tree: Any, static: Sequence[int], name: str
) -> Signature:
    """The signature of `fn` called with arguments of `in_tree` (an (args, kwargs) tree whose
    static arguments are already out).
    """
    args, kwargs = in_tree.children()
    names = Names()
    positional = _positional_names(fn, len(args.children()), set(static))
    made = [
        Parameter(names.fresh(n), tree) for n, tree in zip(positional, args.children(), strict=True)
    ]
    keys = kwargs.node_data()[1] if kwargs.node_data() else []
    made += [
        Parameter(names.reserve(k), tree, keyword=True)
        for k, tree in zip(keys, kwargs.children(), strict=True)
    ]
    return Signature(name, tuple(made), out_tree)


def _positional_names(fn: Callable[..., Any], count: int, static: set[int]) -> list[str]:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names: list[str] = []
    position = 0
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            if position not in static and position - len(parameters) not in static:
                names.append(p.name)
            position += 1
        elif p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}_{i}" for i in range(count - len(names))]
    names += [f"arg_{i}" for i in range(len(names), count)]
    return names[:count]


def _numbered(tree: Any) -> Any:
    return jax.tree.unflatten(tree, range(tree.num_leaves))


def bind_inputs(
    graph: Graph, signature: Signature, names: Names, is_leaf: Callable[[], str]
) -> tuple[Leaves, list[str]]:
    """Paths for the graph's inputs, and the lines that unpack what has no path. `is_leaf` gives
    the source of a function that tells `ScaledArray`s, which are one input each.
    """
    leaves = Leaves()
    lines: list[str] = []
    at = 0
    for p in signature.parameters:
        names.reserve(p.name)
        paths = argument_paths(_numbered(p.tree), p.name)
        values = graph.inputs[at : at + p.tree.num_leaves]
        at += p.tree.num_leaves
        if paths is None:
            root = names.fresh(f"{p.name}_leaves")
            whole = (
                f", is_leaf={is_leaf()}" if any(v.type.scale is not None for v in values) else ""
            )
            lines.append(f"{root} = jax.tree.leaves({p.name}{whole})")
            from precir.emit.paths import Key

            paths = [Path(root, (Key("item", i),)) for i in range(len(values))]
            for value, path in zip(values, paths, strict=True):
                leaves.add(value, path, complete=False)
            continue
        for value, path in zip(values, paths, strict=True):
            leaves.add(value, path)
    for n, value in enumerate(graph.inputs[at:]):
        leaves.add(value, Path(names.reserve(f"captured_{n}")), complete=False)
    return leaves, lines


class Structures:
    """Which part of the arguments has a given pytree structure."""

    def __init__(self, signature: Signature, inputs: Sequence[Value]) -> None:
        # By size, since not every pytree definition can be hashed or even compared.
        self._by_size: dict[tuple[int, int], list[tuple[Any, str, tuple[Value, ...]]]] = {}
        at = 0
        for p in signature.parameters:
            count = p.tree.num_leaves
            self._add(p.tree, p.name, tuple(inputs[at : at + count]), deep=True)
            at += count

    def _add(self, tree: Any, text: str, values: tuple[Value, ...], *, deep: bool) -> None:
        if tree.num_nodes == 1 and tree.num_leaves == 1:
            return
        size = (tree.num_nodes, tree.num_leaves)
        self._by_size.setdefault(size, []).append((tree, text, values))
        numbered = _numbered(tree)
        for path, child, start in _children(tree, numbered, text):
            self._add(child, path, values[start : start + child.num_leaves], deep=deep)

    def matching(self, tree: Any) -> list[tuple[str, tuple[Value, ...]]]:
        alike = self._by_size.get((tree.num_nodes, tree.num_leaves), [])
        return [(text, values) for other, text, values in alike if same_structure(other, tree)]


def same_structure(tree: Any, other: Any) -> bool:
    """Whether two pytree definitions are equal; False if that cannot be told."""
    try:
        return bool(tree == other)
    except Exception:  # keys that do not compare: arrays, say
        return False


def _children(tree: Any, example: Any, text: str) -> list[tuple[str, Any, int]]:
    """(source, structure, first leaf) of each child that can be reached by name."""
    found = []
    start = 0
    keyed, _ = jax.tree_util.tree_flatten_with_path(example, is_leaf=lambda x: x is not example)
    children = tree.children()
    if len(keyed) != len(children):
        return []
    from precir.emit.paths import _key, _reach

    for (keys, _), child in zip(keyed, children, strict=True):
        steps = [_key(k) for k in keys]
        if len(steps) == 1 and steps[0] is not None:
            path = Path(text, (steps[0],))
            reached = _reach(example, Path("", (steps[0],)))
            if reached is not None and jax.tree.structure(reached) == child:
                found.append((str(path), child, start))
        start += child.num_leaves
    return found
