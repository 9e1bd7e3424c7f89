"""Asking JAX itself for the types of results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from precir.ir import Graph, Node, Type
from precir.primitives import primitive_named
from precir.text.types import SHORT, numpy_dtype
from precir.verify.contracts import show
from precir.verify.fused import EVERY_CONTRACT as CONTRACTS
from precir.verify.invariants import Broken


def results_are_as_jax_says(graph: Graph) -> Broken:
    """Each node's results have the shapes and dtypes that the primitive gives for its operands.

    Nodes that cannot be bound alone are passed over: those with sub-graphs or effects, those of
    precir's own ops, and all inside of a shard_map, whose axes have no meaning outside of it.
    """
    known: dict[Any, list[str] | str | None] = {}
    for node in _bindable(graph):
        said = _said(node, known)
        if isinstance(said, str):
            yield node, f"JAX refuses it: {said}"
        found = [show(Type(v.type.shape, v.type.dtype)) for v in node.outputs]
        if isinstance(said, list) and said != found:
            yield node, f"JAX gives results {', '.join(said)}"


def _bindable(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if node.op == "shard_map":
            continue
        for region in node.regions:
            yield from _bindable(region)
        if not node.regions and not node.effects and node.op not in CONTRACTS:
            yield node


def _said(node: Node, known: dict[Any, list[str] | str | None]) -> list[str] | str | None:
    try:
        key = node.op, tuple(o.type for o in node.inputs), *sorted(node.params.items())
        if key not in known:
            known[key] = _ask(node)
        return known[key]
    except TypeError:  # a parameter that cannot be hashed or sorted
        return _ask(node)


def _ask(node: Node) -> list[str] | str | None:
    """What JAX says of the results, or why it refuses; None where it cannot be asked."""
    primitive = primitive_named(node.op)
    operands = [_struct(o.type) for o in node.inputs]
    if primitive is None or None in operands or None in [_struct(v.type) for v in node.outputs]:
        return None
    try:
        results = jax.eval_shape(lambda *a: primitive.bind(*a, **node.params), *operands)
    except (TypeError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    except Exception:  # it needs what is around it: a mesh, an axis
        return None
    results = results if isinstance(results, (list, tuple)) else [results]
    return [show(Type(tuple(r.shape), r.dtype.name)) for r in results]


def _struct(type_: Type) -> Any:
    dtype = numpy_dtype(SHORT.get(type_.dtype, ""))
    if dtype is None or type_.scale is not None or type_.dtype == "float0":
        return None
    config: Any = jax.config
    if not config.jax_enable_x64 and dtype.itemsize // (1 + (dtype.kind == "c")) == 8:
        return None
    struct: Any = jax.ShapeDtypeStruct
    return struct(type_.shape, dtype, weak_type=type_.weak)
