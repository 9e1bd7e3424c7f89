"""The seam of a kernel that XLA divides among devices: each device runs it on what it has.

XLA asks how to divide a custom call, through ``jax.experimental.custom_partitioning``: first where
its arrays may be cut (Shardy propagates by that), then, with the cuts that it found, for the
program of one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from precir.kernels.division import Cuts, Division, Kind, Rule, decide, device_axes, read_cuts
from precir.kernels.launch import lowering_for

# JAX's own are not typed.
_custom_partitioning: Any = custom_partitioning
_SPEC: Any = PartitionSpec
collectives: Any = jax.lax

Results = tuple[jax.Array, ...]


class Parts(NamedTuple):
    """How a kernel primitive is divided.

    Attributes:
      rule: from the shapes of the operands and the primitive's parameters, what may be cut.
      run: from a `Split`, the operands of one device and the parameters, its results.
    """

    rule: Callable[..., Rule]
    run: Callable[..., Results]


class Split(NamedTuple):
    """What the program of one device has to know; device axes are named for JAX's collectives.

    Attributes:
      summed, agreed: the device axes that cut the factors of the rule that are called so.
      scattered: axes of the first result of which each device keeps a part of the sum, and the
        device axes that say which.
    """

    summed: tuple[str, ...] = ()
    agreed: tuple[str, ...] = ()
    scattered: tuple[tuple[int, tuple[str, ...]], ...] = ()


def divided(
    parts: Parts, types: Sequence[Any], results: Sequence[Any], devices: int, **params: Any
) -> Any:
    """A function of operands of ``types`` that XLA divides, and that returns ``results``.

    Both are abstract arrays; ``params`` are those of the kernel primitive. What is of the context
    at this call holds for the program of one device: which GPU is compiled for, and preferences.
    """
    rule = parts.rule(*(t.shape for t in types), **params)
    operands, outs = _kinds(types), _kinds(results)
    around = copy_context()

    def partition(_: Any, given: Any, wanted: Any) -> Any:
        sizes, cuts = _read((*given, *wanted), (*operands, *outs), devices)
        division = decide(rule, operands, outs, cuts[: len(given)], cuts[len(given) :], sizes)
        mesh = AbstractMesh(sizes, tuple(_name(i) for i in range(len(sizes))))
        run = partial(parts.run, _split(rule, division), **params)
        ours = tuple(_sharding(mesh, division.cuts(n)) for n in rule.operands)
        theirs = tuple(_sharding(mesh, division.result(i, n)) for i, n in enumerate(rule.results))
        return mesh, _Local(run, around), theirs, ours

    def infer(_: Any, given: Any, __: Any) -> Any:
        sizes, cuts = _read(given, operands, devices)
        unknown = [((),) * len(o.shape) for o in outs]
        division = decide(rule, operands, outs, cuts, unknown, sizes)
        mesh = AbstractMesh(sizes, tuple(_name(i) for i in range(len(sizes))))
        return tuple(_sharding(mesh, division.result(i, n)) for i, n in enumerate(rule.results))

    text, options = sharding_rule(rule, operands, outs)
    call = _custom_partitioning(lambda *_: tuple(jnp.zeros(k.shape, k.dtype) for k in results))
    call.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=text,
        decode_shardings=False,  # XLA divides by parts of an axis too, which no spec of JAX says
        **options,
    )
    return call


def lower_divided(parts: Parts, context: Any, *operands: Any, **params: Any) -> Any:
    """The lowering of `divided`, for a rule of a kernel primitive to return."""
    module = context.module_context
    axes = module.axis_context
    types = context.avals_in, context.avals_out
    function = divided(parts, *types, axes.num_devices, **params)
    if axes.device_assignment is None:  # JAX wants devices, and looks at how many alone
        known = replace(axes, device_assignment=(jax.devices()[0],) * axes.num_devices)
        context = context.replace(module_context=module.replace(axis_context=known))
    return mlir.lower_fun(function, multiple_results=True)(context, *operands)


def can_divide(context: Any) -> bool:
    """Whether XLA can ask us: not in a program that is exported, nor within ``jax.shard_map``."""
    module = context.module_context
    return (
        hasattr(module.axis_context, "device_assignment")
        and not module.lowering_parameters.for_export
    )


def sharding_rule(
    rule: Rule, operands: Sequence[Kind], results: Sequence[Kind]
) -> tuple[str, Mapping[str, Any]]:
    """A rule as Shardy reads it, and its options: factors by letters, and beside each what of an
    axis lies within one of its pieces.
    """
    letters = {name: f"f{i}" for i, name in enumerate(rule.pieces)}
    sizes: dict[str, int] = {}
    alone: list[str] = []

    def axis(name: Any, size: int) -> str:
        if name is None or rule.pieces[name] <= 1:
            alone.append(f"w{len(alone)}")
            return alone[-1]
        if name in rule.loose:  # arrays of one size are cut alike, and no other
            return f"{letters[name]}s{size}"
        within = size // rule.pieces[name]
        if within == 1:
            return letters[name]
        inner = f"{letters[name]}i{within}"
        sizes[letters[name]], sizes[inner] = rule.pieces[name], within
        return f"({letters[name]} {inner})"

    def side(names: Sequence[Any], kinds: Sequence[Kind]) -> str:
        return ", ".join(
            " ".join(axis(n, s) for n, s in zip(each, kind.shape, strict=True))
            for each, kind in zip(names, kinds, strict=True)
        )

    text = f"{side(rule.operands, operands)} -> {side(rule.results, results)}"
    plain = set(text.replace(",", " ").replace("->", " ").split())
    options: dict[str, Any] = {n: s for n, s in sizes.items() if n not in plain}
    summed = tuple(letters[n] for n in rule.pieces if n in rule.summed and rule.pieces[n] > 1)
    return text, options | {"reduction_factors": summed, "need_replication_factors": tuple(alone)}


class _Local:
    """What one device runs: XLA's callback traces it, in another context than it was lowered in."""

    def __init__(self, run: Callable[..., Results], around: Context) -> None:
        self.run, self.around = run, around

    def __call__(self, *arrays: jax.Array) -> Results:
        return tuple(_local_p.bind(*arrays, local=self))


def _types(*types: Any, local: _Local) -> list[Any]:
    made = local.around.copy().run(jax.make_jaxpr(local.run), *types)
    return list(made.out_avals)


def _lowered(context: Any, *operands: Any, local: _Local) -> Any:
    def lower() -> Any:
        with lowering_for(tuple(context.module_context.platforms)):
            return mlir.lower_fun(local.run, multiple_results=True)(context, *operands)

    return local.around.copy().run(lower)


_local_p: Any = Primitive("precir_local")
_local_p.multiple_results = True
_local_p.def_abstract_eval(_types)
mlir.register_lowering(_local_p, _lowered)


def _kinds(types: Sequence[Any]) -> tuple[Kind, ...]:
    return tuple(Kind(tuple(t.shape), np.dtype(t.dtype).itemsize) for t in types)


def _name(axis: int) -> str:
    return f"part{axis}"


def _split(rule: Rule, division: Division) -> Split:
    summed, agreed = (
        tuple(map(_name, division.across(names))) for names in (rule.summed, rule.agreed)
    )
    scattered = ((i, tuple(map(_name, axes))) for i, axes in division.scattered)
    return Split(summed, agreed, tuple(scattered))


def _sharding(mesh: Any, cuts: Cuts) -> NamedSharding:
    return NamedSharding(mesh, _SPEC(*(tuple(map(_name, axes)) for axes in cuts)))


def _read(
    arrays: Sequence[Any], kinds: Sequence[Kind], devices: int
) -> tuple[tuple[int, ...], list[Cuts]]:
    """The sizes of the device axes, and which of them cut each array. What no axes say counts as
    whole: XLA then collects it.
    """
    given = [a.sharding._to_xla_hlo_sharding(len(a.shape)) for a in arrays]
    best: tuple[int, tuple[int, ...], list[Cuts]] | None = None
    for sizes in device_axes(devices):
        cuts = [_cuts(s, len(k.shape), sizes) for s, k in zip(given, kinds, strict=True)]
        unread = sum(c is None for c in cuts)
        if best is None or unread < best[0]:
            whole = [c or ((),) * len(k.shape) for c, k in zip(cuts, kinds, strict=True)]
            best = unread, sizes, whole
        if not unread:
            break
    assert best is not None
    return best[1], best[2]


def _cuts(sharding: Any, rank: int, sizes: tuple[int, ...]) -> Cuts | None:
    if sharding.is_replicated() or not sharding.is_tiled():
        return ((),) * rank
    tiles = np.array(sharding.tile_assignment_devices()).reshape(
        sharding.tile_assignment_dimensions()
    )
    return read_cuts(tiles, rank, sizes) if tiles.size == math.prod(sizes) else None
