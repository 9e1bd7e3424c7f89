"""`precir memory`: what a function in a file takes of GPUs that are not there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import jax
from rich.console import Console

from precir.cli.arguments import parse_arguments, parse_static
from precir.cli.compiling import add_function, compiled_target, guarded
from precir.cli.ranges import names_of
from precir.cli.target import default_arguments, find_target
from precir.cli.trouble import UsageError
from precir.recipe import recipe as find_recipe
from precir.target import CARDS, card, split_largest

_STRUCT: Final[Any] = jax.ShapeDtypeStruct  # JAX's own are not typed
_SPEC: Final[Any] = jax.sharding.PartitionSpec
_SHARD: Final = (
    "write it as in --shard batch=data, --shard 'params/*=-,model' or --shard 'state=any:data'"
)


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "memory",
        parents=[common],
        help="what a function takes of a GPU that is not there: bytes, kernels, collectives",
        description="Compile a function of a Python file with XLA's own compiler for a GPU, on "
        "any machine, and print the bytes that each device needs, its products by kernel and its "
        "collectives. Nothing runs. What a recipe carries from step to step is included.",
    )
    add_function(parser)
    parser.add_argument("--on", metavar="CARD", default="h100", help=", ".join(CARDS))
    parser.add_argument(
        "--mesh", metavar="AXES", help="several devices, as --mesh 8 or --mesh data=4,model=2"
    )
    parser.add_argument(
        "--shard",
        metavar="ARRAY=AXES",
        action="append",
        default=[],
        help="how arrays lie on the mesh: an axis for each dimension, - for none, as batch=data or "
        "'params/*=-,model'; any:data splits the largest dimension that can be",
    )
    parser.add_argument(
        "--donate",
        metavar="ARGUMENTS",
        default="",
        help="arguments whose memory results may take, by name or number, as state or 0,1",
    )
    parser.add_argument("--output", choices=("text", "json"), default="text", help="(text)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    recipe = None if options.recipe is None else find_recipe(options.recipe)
    card(options.on)  # known, before the work
    mesh = parse_mesh(options.mesh)
    static = parse_static(options.static)
    given = None if options.args is None else parse_arguments(options.args)
    target = find_target(options.target)
    args, kwargs = default_arguments(target) if given is None else given
    names = names_of(target.function, len(args))
    if mesh and not options.shard and not _sharded(args, kwargs):
        raise UsageError("nothing says how the arguments lie on the mesh", fix=_SHARD)
    function = compiled_target(target, recipe, static)
    donated = _donated(options.donate, names)
    if donated:
        function = function.with_options(donate_argnums=donated)
    args, kwargs = jax.tree.map(_abstract, (args, kwargs))
    with guarded(target, function):
        if function.program(*args, **kwargs, **static).state:
            args, kwargs = _begun(function, args, kwargs, static)
    shardings = spread_specs(options.shard, names, args, mesh) if options.shard else None
    with guarded(target, function):
        found = function.memory(
            *args, **kwargs, **static, target=options.on, mesh=mesh or None, shardings=shardings
        )
    if options.output == "json":
        sys.stdout.write(json.dumps(found.data, indent=1) + "\n")
    else:
        console.print(found)
    return 0


def parse_mesh(text: str | None) -> dict[str, int]:
    """`8` is one axis called data; `data=4,model=2` names them. Raises `UsageError`."""
    if text is None:
        return {}
    axes = [text] if "=" in text else [f"data={text}"]
    found: dict[str, int] = {}
    for axis in ",".join(axes).split(","):
        name, _, size = axis.strip().partition("=")
        if not name.isidentifier() or not size.isdecimal() or not int(size) or name in found:
            raise UsageError(
                f"--mesh {text!r} is no mesh", fix="write it as --mesh 8 or --mesh data=4,model=2"
            )
        found[name] = int(size)
    return found


def spread_specs(
    settings: Iterable[str], names: Sequence[str], args: Sequence[Any], mesh: dict[str, int]
) -> tuple[Any, ...]:
    """A partition spec for every array; the last --shard that fits an array decides.

    Raises:
      UsageError: one that cannot be read, names an axis that the mesh has not, or fits no array.
    """
    given = [_setting(text, mesh) for text in settings]
    used: set[str] = set()
    known: list[str] = []

    def spec(name: str, path: Any, x: Any) -> Any:
        below = jax.tree_util.keystr(path, simple=True, separator="/")
        full = f"{name}/{below}" if below else name
        known.append(full)
        found = _SPEC()
        for text, pattern, axes in given:
            if fnmatchcase(full, pattern) or fnmatchcase(full, f"{pattern}/*"):
                used.add(text)
                found = _spec(axes, x, mesh)
        return found

    made = tuple(
        jax.tree_util.tree_map_with_path(lambda path, x, name=name: spec(name, path, x), arg)
        for name, arg in zip(names, args, strict=True)
    )
    for text, _, _ in given:
        if text not in used:
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise UsageError(f"--shard {text!r} fits no array", fix=f"there are {shown}")
    return made


def _setting(text: str, mesh: dict[str, int]) -> tuple[str, str, list[str]]:
    pattern, equals, axes = text.rpartition("=")
    if not equals or not pattern.strip() or not axes.strip():
        raise UsageError(f"--shard {text!r} is not ARRAY=AXES", fix=_SHARD)
    listed = [axis.strip() for axis in axes.split(",")]
    for axis in listed:
        if axis.removeprefix("any:") not in (*mesh, "-"):
            known = ", ".join(mesh) or "none: give --mesh"
            raise UsageError(f"--shard {text!r}: the mesh has no axis {axis!r}", fix=known)
    return text, pattern.strip().strip("/"), listed


def _spec(axes: list[str], x: Any, mesh: dict[str, int]) -> Any:
    if axes[0].startswith("any:"):
        name = axes[0].removeprefix("any:")
        return split_largest(x, name, mesh[name])
    kept = axes[: len(getattr(x, "shape", ()))]
    return _SPEC(*(None if axis == "-" else axis for axis in kept))


def _abstract(x: Any) -> Any:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        return x
    return _STRUCT(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _sharded(args: Any, kwargs: Any) -> bool:
    own = (getattr(x, "sharding", None) for x in jax.tree.leaves((args, kwargs)))
    return any(isinstance(s, jax.sharding.NamedSharding) for s in own)


def _begun(
    function: Any, args: Any, kwargs: Any, static: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as the first step takes them, the recipe's own state among them."""

    def begin(args: Any, kwargs: Any) -> Any:
        found = function.init(*args, **kwargs, **static)
        alone = len(args) + len(kwargs) + len(static) == 1
        return ((found,) if alone else found)[: len(args) + len(kwargs)]

    whole = jax.eval_shape(begin, args, kwargs)
    return tuple(whole[: len(args)]), dict(zip(kwargs, whole[len(args) :], strict=True))


def _donated(text: str, names: Sequence[str]) -> tuple[int, ...]:
    found = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        if each in names:
            found.append(names.index(each))
        elif each.isdecimal() and int(each) < len(names):
            found.append(int(each))
        else:
            raise UsageError(f"--donate: there is no argument {each!r}", fix=", ".join(names))
    return tuple(found)
