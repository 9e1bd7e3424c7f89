"""Read an `InferenceReport` off a plan, a program and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from precir.inference.measure import Measured, signals_to_noise, static_scales
from precir.inference.report import (
    InferenceReport,
    LayerRow,
    OutputRow,
    RangeRow,
    WeightRow,
)
from precir.inference.storing import Plan, products
from precir.ir import Node
from precir.ops import Keeps, op_named
from precir.packed import is_scaled
from precir.program import Program
from precir.report.units import format_name


def report_of(
    plan: Plan, program: Program, found: Measured, params: Any, stored: Any
) -> InferenceReport:
    """Of the weights `params`, stored as `stored`; `program` is the one that takes these."""
    return InferenceReport(
        name=program.signature.name,
        recipe=program.recipe.name,
        batches=found.batches,
        weights=tuple(_weights(plan, params, stored)),
        products=tuple(_products(plan, program, found)),
        outputs=tuple(_outputs(program, found)),
        ranges=tuple(_ranges(program, found)),
    )


def _weights(plan: Plan, params: Any, stored: Any) -> Iterator[WeightRow]:
    before = jax.tree.leaves(params)
    after = jax.tree.leaves(stored, is_leaf=is_scaled)
    kept = [(a, b) for a, b in zip(before, after, strict=True) if is_scaled(b)]
    signals = iter(signals_to_noise([a for a, _ in kept], [b for _, b in kept]))
    for w, old, new in zip(plan.weights, before, after, strict=True):
        scaled = is_scaled(new)
        yield WeightRow(
            name=plan.names[w.number],
            shape=plan.shapes[w.number],
            format=format_name(str(new.dtype if hasattr(new, "dtype") else np.result_type(new))),
            block=new.block if scaled else None,
            scales=new.scale.size if scaled else 0,
            before=_bytes(old),
            bytes=_bytes(new),
            snr=next(signals) if scaled else None,
            reason=w.reason,
        )


def _bytes(leaf: Any) -> int:
    return sum(int(getattr(x, "nbytes", np.asarray(x).nbytes)) for x in jax.tree.leaves(leaf))


def _products(plan: Plan, program: Program, found: Measured) -> Iterator[LayerRow]:
    decided = iter(program.assignment.products)
    for k, node in enumerate(products(program.graph)):
        convolves = op_named(node.op).keeps is Keeps.CONVOLUTION
        product = None if convolves else next(decided)
        reason = f"no 8-bit kernel for {node.op}" if product is None else product.reason
        sums = found.products.get(k)
        formats = " x ".join(format_name(o.type.dtype) for o in node.inputs[:2])
        taken = plan.products[k] if k < len(plan.products) else ()
        yield LayerRow(
            scope=node.scope,
            where=_where(node),
            op="dot_general" if node.op == "scaled_dot" else node.op,
            formats=formats,
            weights=tuple(dict.fromkeys(plan.names[i] for i in taken)),
            error=None if sums is None else sums.error,
            layers=() if sums is None else sums.each,
            reason="" if product is not None and product.low else reason,
        )


def _outputs(program: Program, found: Measured) -> Iterator[OutputRow]:
    names = result_names(program)
    for i, sums in sorted(found.outputs.items()):
        cosines = found.cosines.get(i)
        mean = None if cosines is None or not cosines.count else cosines.total / cosines.count
        worst = None if mean is None or cosines is None else cosines.least
        yield OutputRow(names[i], sums.error, mean, worst)


def result_names(program: Program) -> list[str]:
    """Of each leaf of the result, as `result[0]["logits"]`."""
    tree = program.signature.result
    paths = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(tree, range(tree.num_leaves)))
    return [f"result{jax.tree_util.keystr(path)}" for path, _ in paths[0]]


def _ranges(program: Program, found: Measured) -> Iterator[RangeRow]:
    for k, (node, limit) in enumerate(static_scales(program)):
        beyond, elements = found.beyond.get(k, (0, 0))
        yield RangeRow(node.scope, _where(node), limit, beyond, elements)


def _where(node: Node) -> str:
    return str(node.source) if node.source.where is not None else ""
