"""How arguments lie on the devices of a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from precir.errors import TargetError
from precir.target.cards import Card
from precir.target.topology import compile_only

_SPEC: Final[Any] = PartitionSpec  # JAX's own are not typed
_STRUCT: Final[Any] = jax.ShapeDtypeStruct
AXIS: Final = "data"  # of a mesh that nothing was said of
_EXAMPLE: Final = (
    "say how each argument lies, as in memory(state, batch, devices=8, "
    "shardings=(P(), P('data'))) with P = jax.sharding.PartitionSpec, or give "
    "jax.ShapeDtypeStructs with a NamedSharding"
)


@dataclass(frozen=True)
class Place:
    """A mesh of a card's devices, and the mesh of the user's that it stands for."""

    mesh: Mesh

    def moved(self, sharding: Any) -> Any:
        """A sharding of the user's on these devices. Specs and None mean the same everywhere."""
        spec = sharding.spec if isinstance(sharding, NamedSharding) else sharding
        if not isinstance(spec, PartitionSpec):
            return None
        try:
            return NamedSharding(self.mesh, spec)
        except ValueError as error:
            axes = ", ".join(f"{k}={v}" for k, v in self.mesh.shape.items())
            what = f"{spec} names an axis that the mesh ({axes}) has not"
            raise TargetError(what, fix="give mesh={'axis': size, ...}") from error

    def moved_all(self, shardings: Any) -> Any:
        """A tree of them, as `jax.jit` takes it for `in_shardings`."""
        leaf = (PartitionSpec, jax.sharding.Sharding)
        return jax.tree.map(self.moved, shardings, is_leaf=lambda x: isinstance(x, leaf))


def find_place(
    card: Card, args: Any, devices: int | None, mesh: Mapping[str, int] | None, shardings: Any
) -> Place:
    """The devices to compile for: from `mesh`, else from the arguments' own shardings, else
    `devices` of them in one axis called "data".

    Raises:
      TargetError: numbers that contradict each other; several devices, and nothing says how the
        arguments lie on them.
    """
    own = _own_mesh((args, shardings))
    if mesh is None and own is not None:
        sizes, types = dict(own.shape), own.axis_types
    else:
        sizes, types = dict(mesh or {AXIS: devices or 1}), None
    count = math.prod(sizes.values())
    if devices is not None and devices != count:
        axes = ", ".join(f"{k}={v}" for k, v in sizes.items())
        raise TargetError(f"devices={devices}, but the mesh ({axes}) has {count}", fix="leave it")
    if count < 1:
        raise TargetError(f"there is nothing to compile for on {count} devices", fix="devices=1")
    if count > 1 and own is None and shardings is None:
        raise TargetError(f"nothing says how the arguments lie on {count} devices", fix=_EXAMPLE)
    found = np.array(compile_only(card, count)).reshape(tuple(sizes.values()))
    return Place(Mesh(found, tuple(sizes), axis_types=types))


def _own_mesh(tree: Any) -> Any:
    """The mesh of the first sharding in a tree of arrays, structs and shardings."""
    leaf = (PartitionSpec, jax.sharding.Sharding)
    for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, leaf)):
        found = x if isinstance(x, NamedSharding) else getattr(x, "sharding", None)
        if isinstance(found, NamedSharding) and found.mesh.size > 1:
            return found.mesh
    return None


def placed(args: Sequence[Any], shardings: Any, place: Place) -> tuple[Any, ...]:
    """The arguments as shapes on those devices: arrays become `jax.ShapeDtypeStruct`s, all else
    stays what it is.

    `shardings`: one entry for each argument, a `PartitionSpec`, a sharding, None, or a tree of
    them whose structure the argument's begins with. Without one an array lies as its own sharding
    says, else wholly on every device.

    Raises:
      TargetError: they do not fit the arguments.
    """
    given: Sequence[Any] = [None] * len(args) if shardings is None else _each(shardings, args)
    return tuple(_tree(a, s, place) for a, s in zip(args, given, strict=True))


def _each(shardings: Any, args: Sequence[Any]) -> Sequence[Any]:
    if isinstance(shardings, PartitionSpec) or not isinstance(shardings, (tuple, list)):
        shardings = (shardings,) * len(args)
    given: Sequence[Any] = shardings
    if len(given) != len(args):
        raise TargetError(
            f"there are {len(given)} shardings for {len(args)} arguments",
            fix="give one entry for each, None for one that lies wholly on every device",
        )
    return given


def _tree(arg: Any, shardings: Any, place: Place) -> Any:
    leaf = (PartitionSpec, jax.sharding.Sharding)
    try:
        spread = jax.tree.broadcast(
            shardings, arg, is_leaf=lambda x: x is None or isinstance(x, leaf)
        )
    except ValueError as error:
        line = str(error).splitlines()[0]
        raise TargetError(f"shardings do not fit the arguments: {line}", fix=_EXAMPLE) from error
    specs = jax.tree.leaves(spread, is_leaf=lambda x: x is None or isinstance(x, leaf))
    values, structure = jax.tree.flatten(arg)
    made = [_leaf(x, s, place) for x, s in zip(values, specs, strict=True)]
    return jax.tree.unflatten(structure, made)


def _leaf(x: Any, sharding: Any, place: Place) -> Any:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        return x
    own = place.moved(sharding) or place.moved(getattr(x, "sharding", None))
    where = own or NamedSharding(place.mesh, _SPEC())
    weak = bool(getattr(x, "weak_type", False))
    return _STRUCT(x.shape, x.dtype, sharding=where, weak_type=weak)


def split_largest(tree: Any, axis: str, count: int) -> Any:
    """A partition spec for each array: its largest axis that `count` divides lies along `axis`.
    Arrays that none divides are whole everywhere. Fully sharded data parallelism, in a word.
    """

    def spec(x: Any) -> Any:
        fitting = [i for i, n in enumerate(x.shape) if n and n % count == 0]
        if not fitting:
            return _SPEC()
        best = max(fitting, key=lambda i: (x.shape[i], -i))
        return _SPEC(*(axis if i == best else None for i in range(len(x.shape))))

    return jax.tree.map(spec, tree)
