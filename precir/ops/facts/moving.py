"""Ops that move numbers: slices, gathers, scatters, padding; and those that make indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from precir.domains.fact import (
    ANYTHING,
    Fact,
    join,
    negate,
    of_number,
    project,
    top,
)
from precir.domains.kinds import NAN, PZERO, SPECIAL, ZERO
from precir.domains.rounding import INFINITY
from precir.ir import Node
from precir.ops.facts.algebra import add_facts, is_complex, is_float, mul_facts, smallest
from precir.ops.facts.context import Answer, Context
from precir.ops.facts.folds import ZERO_FACT, product_facts, sum_facts
from precir.ops.facts.pointwise import max_facts


def iota(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    size = node.params["shape"][node.params["dimension"]]
    return Fact(0.0, float(max(size - 1, 0)), 1.0, PZERO, True)


def pad(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, value = facts
    if all(lo <= 0 and hi <= 0 and inner == 0 for lo, hi, inner in node.params["padding_config"]):
        return a
    return join(a, value)


def dynamic_update_slice(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return join(facts[0], facts[1])


def top_k(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a = node.inputs[0].type
    axis = node.params.get("axis", node.params.get("reduction_dimension", -1))
    size = a.shape[axis] if a.rank else 1
    index = Fact(0.0, float(max(size - 1, 0)), 1.0, PZERO, True)
    return [facts[0], index][: len(node.outputs)]


def sort(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return list(facts)


# -- gather and scatter ------------------------------------------------------------------------


def _inside(node: Node, indices: Fact) -> bool:
    """Whether no index of a gather is out of bounds."""
    dims, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    shape = node.inputs[0].type.shape
    room = [shape[d] - sizes[d] for d in dims.start_index_map]
    return not room or (indices.lo >= 0 and indices.hi <= min(room))


def gather(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, indices = facts[0], facts[1]
    if "FILL" not in str(node.params["mode"]).upper() or _inside(node, indices):
        return a
    fill = node.params.get("fill_value")
    dtype = node.outputs[0].type.dtype
    if fill is not None:
        return join(a, of_number(float(fill))) if not is_complex(dtype) else ANYTHING
    if is_float(dtype) or is_complex(dtype):
        return a._replace(flags=a.flags | NAN)
    return top(dtype)


def collisions(node: Node) -> int:
    """How many updates may reach one element of a scatter."""
    if node.params.get("unique_indices"):
        return 1
    indices = node.inputs[1].type.shape
    dims: Any = node.params["dimension_numbers"]
    batch = getattr(dims, "scatter_indices_batching_dims", ())
    return math.prod(n for i, n in enumerate(indices[:-1]) if i not in batch)


def scatter(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    if node.regions:
        return top(node.outputs[0].type.dtype)._replace(basis=max(f.basis for f in facts))
    return join(facts[0], facts[2])


def scatter_add(node: Node, facts: Sequence[Fact], ctx: Context) -> Answer:
    f = _added(node, facts[0], facts[2])
    for body in node.regions:
        if [v.type.dtype for v in body.inputs] == [node.outputs[0].type.dtype] * 2:
            ctx.record(node, body, [project(f, body.inputs[0].type.dtype), facts[2]])
    return f


def scatter_sub(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    return _added(node, facts[0], negate(facts[2]))


def _added(node: Node, a: Fact, update: Fact) -> Fact:
    dtype = node.outputs[0].type.dtype
    if is_complex(dtype) and (a.flags | update.flags) & SPECIAL:
        return ANYTHING
    count = collisions(node)
    if (update.point and update.lo == 0) or count == 0:
        return a._replace(flags=a.flags | PZERO) if a.flags & ZERO else a
    more = sum_facts(join(update, ZERO_FACT), max(count, 1), dtype)
    f = join(a, add_facts(a, more, smallest(dtype)))
    growth = 2.0**-8 if max(count, 1) > 1 or not dtype.startswith("float32") else 2.0**-20
    if f.whole:
        return f
    return f._replace(
        lo=f.lo - abs(f.lo) * growth if f.lo < 0 else f.lo * (1 - growth),
        hi=f.hi + abs(f.hi) * growth,
    )


def scatter_mul(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, update = facts[0], facts[2]
    dtype = node.outputs[0].type.dtype
    count = max(collisions(node), 1)
    if is_complex(dtype):
        return ANYTHING
    if (a.flags | update.flags) & SPECIAL:
        return ANYTHING._replace(basis=max(a.basis, update.basis))
    most = product_facts(join(update, of_number(1.0)), count, dtype)
    return join(a, mul_facts(a, most))


def scatter_min(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, update = facts[0], facts[2]
    return (
        ANYTHING
        if is_complex(node.outputs[0].type.dtype)
        else join(a, negate(max_facts(negate(a), negate(update))))
    )


def scatter_max(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    a, update = facts[0], facts[2]
    return ANYTHING if is_complex(node.outputs[0].type.dtype) else join(a, max_facts(a, update))


def or_zero(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """ppermute: devices that nobody sends to receive zeros."""
    return [join(f, ZERO_FACT) for f in facts]


def passed_on(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    """One result for each operand, its numbers moved at most."""
    return list(facts[: len(node.outputs)])


def random_gamma(node: Node, facts: Sequence[Fact], _: Context) -> Answer:
    if node.params.get("log_space"):
        return ANYTHING
    return Fact(0.0, INFINITY, 0.0, PZERO | NAN | SPECIAL, False)
