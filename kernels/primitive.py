"""The seam of a kernel: one JAX primitive, one lowering per platform."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, partial
from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from precir.errors import DerivativeError
from precir.kernels.divided import Parts, can_divide, lower_divided
from precir.kernels.launch import fp8_gpu, lowering_for

_parts: dict[Any, Parts | None] = {}

Results = tuple[jax.Array, ...]
Dims = tuple[int | None, ...]


def kernel_primitive(
    name: str,
    reference: Callable[..., Results],
    *,
    platforms: Mapping[str, Callable[..., Results]],
    batch: Callable[..., tuple[Results, Dims]],
    parts: Parts | None = None,
) -> Any:
    """A primitive with several results, lowered as ``reference`` or as its ``platforms`` entry.

    These are plain JAX functions of the primitive's operands (arrays) and its parameters
    (keywords, hashable), and all return arrays of the same shapes and dtypes; the keys are JAX's
    platform names, "cpu" or "cuda". ``batch`` is the batching rule: from operands, their batch
    dimensions and the parameters to the results and their batch dimensions. ``parts`` says how the
    work is divided where XLA divides the program for such a platform among devices; without it,
    the reference is divided. A derivative raises ``DerivativeError``.
    """
    primitive: Any = Primitive(name)
    primitive.multiple_results = True

    # What the reference returns is what the primitive returns: sharding and varying axes follow
    # from JAX's own rules. Tracing it costs some 400 us, so each signature is traced once.
    @lru_cache(maxsize=4096)
    def result_types(_: Hashable, types: tuple[Any, ...], params: tuple[Any, ...]) -> list[Any]:
        return list(jax.make_jaxpr(partial(reference, **dict(params)))(*types).out_avals)

    def abstract(*types: Any, **params: Any) -> list[Any]:
        return result_types(jax.sharding.get_abstract_mesh(), types, tuple(params.items()))

    @lru_cache(maxsize=4096)
    def compiled(params: tuple[Any, ...]) -> Callable[..., Results]:
        return jax.jit(partial(primitive.bind, **dict(params)))

    def evaluate(*operands: jax.Array, **params: Any) -> Results:
        return compiled(tuple(params.items()))(*operands)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise DerivativeError(
            f"{name} has no derivative: a gradient of 8-bit data would itself be rounded to 8 bits",
            fix="differentiate the wide function, or give the quantised one a jax.custom_vjp",
        )

    _parts[primitive] = parts
    primitive.def_abstract_eval(abstract)
    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, mlir.lower_fun(reference, multiple_results=True))
    for platform, function in platforms.items():
        mlir.register_lowering(primitive, _rule(function, parts), platform=platform)
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = refuse
    return primitive


def parts_of(primitive: Any) -> Parts | None:
    """How a kernel primitive is divided; None where it is not."""
    return _parts[primitive]


def _rule(function: Callable[..., Results], parts: Parts | None) -> Callable[..., Any]:
    lower = mlir.lower_fun(function, multiple_results=True)

    def rule(context: Any, *operands: Any, **params: Any) -> Any:
        module = context.module_context
        platforms = tuple(module.platforms)
        if _partitioned(module.axis_context):
            with lowering_for(platforms):
                if parts is not None and fp8_gpu() and can_divide(context):
                    return lower_divided(parts, context, *operands, **params)
            platforms = ()  # of a kernel, each device would get and compute all
        with lowering_for(platforms):
            return lower(context, *operands, **params)

    return rule


def _partitioned(axes: Any) -> bool:
    """Whether XLA divides what is lowered among devices, as outside of ``jax.shard_map``."""
    if hasattr(axes, "manual_axes"):
        return any(n > 1 for name, n in axes.mesh.shape.items() if name not in axes.manual_axes)
    return (getattr(axes, "num_devices", None) or 1) > 1
