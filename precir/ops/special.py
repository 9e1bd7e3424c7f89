"""Everything bound directly: linear algebra, transforms, collectives, and ops unknown to precir."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from precir.errors import EmitError
from precir.ir import Node, Region
from precir.ops.base import Keeps, Op, call
from precir.ops.facts import folds, functions, moving, pointwise
from precir.ops.facts.context import Rule
from precir.ops.scales import laws, products
from precir.ops.scales.scaled import Law
from precir.ops.writing import DROPPED, Hole, Opaque, Template, Writer, jaxpr_source, source
from precir.primitives import import_path, primitive_named

OWN, UNSCALED = Keeps.OWN, laws.unscaled


def bind_template(node: Node, w: Writer) -> Template:
    """`primitive.bind(operands, parameter=value)`, exactly as traced."""
    primitive: Any = primitive_named(node.op)
    if primitive is None:
        raise EmitError(
            f"no JAX primitive is named {node.op!r}",
            where=str(node.source),
            fix="import the library that defines it first",
        )
    path = import_path(node.op)
    if path and vars(jax.lax).get(path[1]) is primitive:
        name = f"lax.{path[1]}"
    else:
        name = w.use(*path) if path else w.external(primitive)
    pieces: list[str | Hole] = [f"{name}.bind("]
    for i in range(len(node.inputs)):
        pieces += [", "] * (i > 0) + [Hole(i)]
    for key, value in node.params.items():
        pieces.append((", " if len(pieces) > 1 else "") + f"{key}={_parameter(node, value, w)}")
    targets = None
    if primitive.multiple_results and len(node.outputs) == 1:
        targets = "({},)"
    return Template((*pieces, ")"), targets=targets)


def _parameter(node: Node, value: object, w: Writer) -> str:
    if isinstance(value, Region):
        made = jaxpr_source(node.regions[value.index], w)
        return made if value.closed else f"{made}.jaxpr"
    if isinstance(value, np.dtype):  # a primitive takes nothing that only stands for one
        return f"{w.use('numpy')}.dtype({value.name!r})"
    try:
        return source(value, w)
    except Opaque as opaque:
        return w.external(value if opaque.value is not value else opaque.value)


def bound(name: str, fact: Rule = functions.anything, scale: Law = UNSCALED) -> Op:
    return Op(name, OWN, fact, scale, bind_template)


def unknown(name: str) -> Op:
    """The entry of a primitive precir has no rules for: its own precision, its own bind."""
    return bound(name)


OPS: tuple[Op, ...] = (
    # linear algebra: its own precision, always
    *map(
        bound,
        ["lu", "qr", "svd", "eig", "eigh", "cholesky", "triangular_solve", "tridiagonal_solve",
         "householder_product", "geqrf", "geqp3", "hessenberg", "tridiagonal", "schur",
         "lu_pivots_to_permutation", "cholesky_update", "symmetric_product"],
    ),
    Op(
        "fft", OWN, folds.fourier, UNSCALED,
        call("lax.fft", positional=("fft_type", "fft_lengths")),
    ),
    # collectives
    bound("psum", folds.psum, laws.each),
    bound("psum_invariant", folds.psum, laws.each),
    bound("pmax", moving.passed_on, laws.each),
    bound("pmin", moving.passed_on, laws.each),
    bound("pvary", moving.passed_on, laws.each),
    bound("pcast", moving.passed_on, laws.each),
    bound("ppermute", moving.or_zero, laws.each),
    bound("all_gather", moving.passed_on, laws.each),
    bound("all_gather_invariant", moving.passed_on, laws.each),
    bound("all_to_all", moving.passed_on, laws.each),
    bound("reduce_scatter", folds.reduce_scatter, laws.each),
    bound("psum_scatter", folds.reduce_scatter, laws.each),
    bound("axis_index", folds.axis_index, UNSCALED),
    Op("sharding_constraint", OWN, pointwise.same_as_operand, laws.through, call(
        "lax.with_sharding_constraint", positional=("sharding",),
        keywords={"layout": None, "context_mesh": DROPPED, "unconstrained_dims": frozenset(),
                  "resource_env": None},
    )),
    # windows
    bound("reduce_window_sum", folds.window_sum, products.window_sum),
    bound("reduce_window_max", folds.window_extremum(largest=True), laws.through),
    bound("reduce_window_min", folds.window_extremum(largest=False), laws.through),
    bound("select_and_gather_add", folds.gather_windows, laws.beside),
    bound("select_and_scatter_add", folds.scatter_windows, laws.beside),
    bound("device_put", moving.passed_on, laws.each),
    bound("reshard", moving.passed_on, laws.through),
    bound("polynomial", functions.polynomial, UNSCALED),
    bound("ragged_dot_general", folds.ragged_dot, UNSCALED),
    *map(bound, ["select_and_scatter", "approx_top_k", "debug_callback", "pure_callback",
                 "io_callback"]),
)  # fmt: skip
