"""State that travels with the user's own: precir's arrays beside an argument that comes back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from precir.errors import PrecirError
from precir.scaled import ScaledArray


class StateError(PrecirError, ValueError):
    """State between steps that is missing, or does not fit the program."""


@partial(jax.tree_util.register_dataclass, data_fields=["tree", "state"], meta_fields=[])
@dataclass(frozen=True)
class Packed:
    """An argument of a step, and what precir carries from step to step beside it.

    A pytree with the children ``tree`` (the user's own argument, its weights and moments perhaps
    in narrow storage as `ScaledArray`s) and ``state`` (precir's arrays by name, as the amax
    history of delayed scaling). Made by ``step.init``, taken apart by ``step.unpack``.
    """

    tree: Any
    state: dict[str, Any]


def is_scaled(x: Any) -> bool:
    """Whether ``x`` is a `ScaledArray`: what to flatten a tree with, to have them as leaves."""
    return isinstance(x, ScaledArray)


def unpacked(value: Any) -> Any:
    """The user's own: without precir's state, and float32 arrays in the place of `ScaledArray`s."""
    if isinstance(value, Packed):
        value = value.tree
    if not any(map(is_scaled, jax.tree.leaves(value, is_leaf=is_scaled))):
        return value
    return jax.tree.map(lambda x: x.unscale() if is_scaled(x) else x, value, is_leaf=is_scaled)


Scaled = tuple[int, str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How arguments stand for plain ones. Hashable, since programs are kept by it.

    Attributes:
      scaled: for each leaf of the plain arguments that is a `ScaledArray`, by its number, the
        dtype of the data, the shape of the scale and its block.
      packed: which argument is a `Packed` (positional ones first, then keywords by name).
      state: names, shapes and dtypes of its state.
    """

    scaled: tuple[Scaled, ...] = ()
    packed: int | None = None
    state: tuple[tuple[str, tuple[int, ...], str], ...] = ()


PLAIN = Layout()


def stripped(arguments: list[Any]) -> tuple[list[Any], Layout]:
    """The arguments as the user's function takes them, abstract where they were `ScaledArray`s.

    Raises `StateError` if two of them are `Packed`.
    """
    abstract: Any = jax.ShapeDtypeStruct
    plain: list[Any] = []
    scaled: list[Scaled] = []
    packed: int | None = None
    state: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    at = 0
    for number, argument in enumerate(arguments):
        if isinstance(argument, Packed):
            if packed is not None:
                raise StateError(
                    f"arguments {packed} and {number} both carry precir's state",
                    fix="pass what one step.init, or the step itself, returned",
                )
            packed = number
            state = tuple((n, tuple(x.shape), str(x.dtype)) for n, x in argument.state.items())
            argument = argument.tree
        leaves, tree = jax.tree.flatten(argument, is_leaf=is_scaled)
        found = [i for i, x in enumerate(leaves) if is_scaled(x)]
        for i in found:
            x = leaves[i]
            scaled.append((at + i, x.data.dtype.name, tuple(x.scale.shape), tuple(x.block)))
            leaves[i] = abstract(x.data.shape, "float32")
        plain.append(jax.tree.unflatten(tree, leaves) if found else argument)
        at += len(leaves)
    if packed is None and not scaled:
        return plain, PLAIN
    return plain, Layout(tuple(scaled), packed, tuple(sorted(state)))
