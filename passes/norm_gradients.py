"""Where a program computes the gradients of a LayerNorm or an RMSNorm: one `norm_gradients`.

A derivative leaves a sum: the gradient of the norm's input, in as many terms as that was used, and
what goes by the norm in a residual connection. So where the roots of the rows' variances are, the
sums that depend on them are looked at, and those of their terms that do are evaluated
(`precir.passes.samples`) as a function of the norm's input, of a weight and of one more tensor,
ever further up the program, until that is the gradient of the normalised rows. So are the sums over
rows, which may be the gradients of the weight and the bias.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from precir.ir import Graph, Node, Operand, Value
from precir.passes.fused_norm import (
    are_of_rows,
    close,
    keeps_nothing_out,
    normalised,
    samples_of,
)
from precir.passes.norm_rows import Rows, find_rows, place
from precir.passes.samples import Samples, Unknown, computable
from precir.passes.smooth import FLOATS, compared, is_smooth

Array = np.ndarray[Any, Any]

_STEPS: Final = 80  # nodes that a gradient is made of at most
_NEAR: Final = 400  # values that are looked at, downstream of one
_MOST: Final = 60  # sums over rows that are looked at
_SUMS: Final = ("add", "add_any")
_CASTS: Final = ("convert_element_type", "cast")
_MOVES: Final = (
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "reduce_sum"),
    *_CASTS,
)
# Samples of the gradient: so large, and one element so many times as much.
_SIZES: Final = (
    *((1.0, 1.0), (1e9, 1e3), (1e-9, 1.0), (1.0, 1.0), (1e-30, 1.0), (1e30, 1e3)),
    *((1.0, 1.0), (1.0, 1.0)),  # of rows that are all alike
)


@dataclass(frozen=True)
class Gradients:
    """What a norm's gradients are in a program.

    `of_x` is the sum of the gradient of `rows.x` and the terms `beside`; `of_weight` and `of_bias`
    are None where the program has none. `gradient` is that of the normalised rows.
    """

    rows: Rows
    gradient: Value
    weight: Value | None
    of_x: Value
    beside: tuple[Value, ...]
    of_weight: Value | None
    of_bias: Value | None


def find_gradients(graph: Graph) -> Iterator[Gradients]:
    """Those of each norm, in the order of the norms; no sum is of two."""
    position = {node: n for n, node in enumerate(graph.nodes)}
    taken: set[Value] = set()
    for rows in find_rows(graph, position):
        after = downstream(graph, rows.numbers)
        for value in _sums(graph, rows.x.type.shape, after, position):
            if value in taken:
                continue
            found = _gradients(graph, rows, value, after, position)
            if found is not None:
                taken.add(value)
                yield found
                break


# --- the gradients --------------------------------------------------------------------------------


def _sums(
    graph: Graph, shape: tuple[int, ...], after: set[Value], position: Mapping[Node, int]
) -> list[Value]:
    """Sums of this shape among those values, which are not part of another such."""
    found = [
        v
        for v in after
        if v.node is not None
        and v.node.op in _SUMS
        and v.type.shape == shape
        and v.type.dtype in FLOATS
        and not _within_a_sum(graph, v)
    ]
    return sorted(found, key=lambda v: place(v, position))


def _within_a_sum(graph: Graph, value: Value) -> bool:
    user = only_user(graph, value)
    if user is not None and user.op in _CASTS and is_smooth(user):
        return _within_a_sum(graph, user.outputs[0])
    return user is not None and user.op in _SUMS


def only_user(graph: Graph, value: Value) -> Node | None:
    users = graph.users.get(value, ())
    return users[0] if len(users) == 1 and value not in graph.outputs else None


def _terms(graph: Graph, value: Value) -> Iterator[Operand]:
    """What is added up to a value: sums that something else reads stay whole."""
    node = value.node
    assert node is not None
    for o in node.inputs:
        part = _part(graph, o)
        if part is None:
            yield o
        else:
            yield from _terms(graph, part)


def _part(graph: Graph, operand: Operand) -> Value | None:
    """A sum that nothing else reads, before it was cast."""
    while isinstance(operand, Value) and operand.node is not None:
        if only_user(graph, operand) is None:
            return None
        if operand.node.op in _SUMS:
            return operand
        if operand.node.op not in _CASTS or not is_smooth(operand.node):
            return None
        operand = operand.node.inputs[0]
    return None


def _gradients(
    graph: Graph, rows: Rows, value: Value, after: set[Value], position: Mapping[Node, int]
) -> Gradients | None:
    every = [t for t in _terms(graph, value) if isinstance(t, Value)]
    if len(every) < len(list(_terms(graph, value))):
        return None  # a number is added
    terms = [t for t in every if t in after]
    beside = tuple(t for t in every if t not in after)
    found = None
    for gradient in _candidates(terms, rows.x, position):
        columns = _columns(terms, rows.x, gradient)
        if columns is None or len(columns) > 1:
            continue
        weight = columns[0] if columns else None
        better = found is None or (found[1] is None and weight is not None)
        if better and _fits(rows, terms, gradient, weight):
            found = gradient, weight
    if found is None:
        return None
    gradient, weight = found
    of_weight, of_bias = _sums_over_rows(graph, rows, gradient, weight, position)
    return Gradients(rows, gradient, weight, value, beside, of_weight, of_bias)


def _candidates(terms: list[Value], x: Value, position: Mapping[Node, int]) -> Iterator[Value]:
    """Tensors like x that the terms are made of, the last made first, and inputs in the end."""
    leaves = dict.fromkeys(terms)  # in the order in which they are met

    def fits(v: Value) -> bool:
        return v.type.shape == x.type.shape and v.type.dtype in FLOATS and v not in terms

    for _ in range(_STEPS):
        leaves.pop(x, None)
        if not leaves:
            return
        leaf = max(leaves, key=lambda v: place(v, position))
        if leaf.node is None:
            yield from filter(fits, leaves)
            return
        if fits(leaf):
            yield leaf
        if not computable(leaf.node):
            return
        del leaves[leaf]
        leaves.update(dict.fromkeys(o for o in leaf.node.inputs if isinstance(o, Value)))


def _columns(terms: Iterable[Value], x: Value, gradient: Value) -> list[Value] | None:
    """The rows of weights that terms are made of beside x and the gradient; None where there is
    something else.
    """
    waiting, seen, found = list(terms), {x, gradient}, list[Value]()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if _is_row_of_columns(value, x.type.shape):
            if value.type.dtype not in FLOATS:
                return None
            if value.node is None or not _moves(value.node):
                found.append(value)
            else:  # in several forms it is one
                waiting.append(value.node.inputs[0])  # type: ignore[arg-type]
        elif value.node is None or not computable(value.node) or len(seen) > 4 * _STEPS:
            return None
        else:
            waiting += [o for o in value.node.inputs if isinstance(o, Value)]
    return found


def _is_row_of_columns(value: Value, shape: tuple[int, ...]) -> bool:
    """Whether it is as long as the last axis, and made of nothing that is as large as all."""
    if math.prod(value.type.shape) != shape[-1] or value.type.shape[-1:] != shape[-1:]:
        return False
    waiting, seen = [value], set[Value]()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.type.shape == shape or len(seen) > _STEPS:
            return False
        if value.node is not None and computable(value.node):
            waiting += [o for o in value.node.inputs if isinstance(o, Value)]
    return True


def _fits(rows: Rows, terms: list[Value], gradient: Value, weight: Value | None) -> bool:
    if not _smooth(rows, terms, gradient, weight):
        return False
    every = list(_samples(rows, gradient, weight))
    for given in every:
        samples = Samples(given)
        try:
            found: Any = sum(samples.of(t) for t in terms)
        except (Unknown, ValueError):  # of a square a term may lie the other way
            return False
        exact, _, _ = _exact(rows, given, gradient, weight)
        if not (found.shape == exact.shape and close(found, exact)):
            return False
    return keeps_nothing_out(terms, every[0], gradient)


def _smooth(rows: Rows, values: list[Value], gradient: Value, weight: Value | None) -> bool:
    """Whether nothing is compared but numbers of a row with zero, where samples are."""
    leaves = (rows.x, gradient, *([] if weight is None else [weight]))
    asked = compared(values, leaves)
    return asked is not None and are_of_rows(asked, rows.x) and (rows.asked or not asked)


def _samples(rows: Rows, gradient: Value, weight: Value | None) -> Iterator[dict[Value, Array]]:
    """Rows as those of a norm, with gradients of many sizes: some far larger than what a program
    would cap, and some far smaller. A fixed choice.
    """
    random = np.random.default_rng(22)
    columns = () if weight is None else (weight,)
    every = samples_of(rows.x, columns, alike=rows.asked)
    for given, (size, off) in zip(every, _SIZES, strict=False):
        g: Array = size * np.asarray(random.standard_normal(given[rows.x].shape))
        g[..., -1] *= off
        yield {**given, gradient: g}


def _exact(
    rows: Rows, given: Mapping[Value, Array], gradient: Value, weight: Value | None
) -> tuple[Array, Array, Array]:
    """The gradients of x, weight and bias, as `precir.kernels.norm_gradients` defines them."""
    g = given[gradient]
    unit, _, rstd = normalised(given[rows.x], rows.kind, rows.eps)
    ahead = tuple(range(g.ndim - 1))
    of_weight, of_bias = (g * unit).sum(ahead), g.sum(ahead)
    if weight is not None:
        g = g * given[weight].reshape(-1)
    rest = g - unit * (g * unit).mean(-1, keepdims=True)
    if rows.kind == "layer":
        rest = rest - g.mean(-1, keepdims=True)
    return rest * rstd, of_weight, of_bias


def _sums_over_rows(
    graph: Graph,
    rows: Rows,
    gradient: Value,
    weight: Value | None,
    position: Mapping[Node, int],
) -> tuple[Value | None, Value | None]:
    """The gradients of the weight and of the bias, where the program has them."""
    columns = rows.x.type.shape[-1:]
    after = [
        v
        for v in downstream(graph, (gradient,))
        if v.type.shape[-1:] == columns and (v.type.shape,) != (rows.x.type.shape,)
        if math.prod(v.type.shape) == columns[0] and v.type.dtype in FLOATS
    ]
    found: list[Value | None] = [None, None]
    every = [(given, Samples(given)) for given in _samples(rows, gradient, weight)]
    exact = [_exact(rows, given, gradient, weight)[1:] for given, _ in every]
    for value in sorted(after, key=lambda v: place(v, position))[:_MOST]:
        if not _smooth(rows, [value], gradient, weight):
            continue
        try:
            sums = [samples.of(value) for _, samples in every]
        except Unknown:
            continue
        for i in range(2):
            wanted = [e[i] for e in exact]
            alike = all(
                s.size == e.size and s.shape[-1:] == e.shape and close(s.reshape(e.shape), e)
                for s, e in zip(sums, wanted, strict=True)
            )
            if alike and found[i] is None:
                found[i] = _last_form(graph, value)
        if None not in found:
            break
    return found[0], found[1]


def _last_form(graph: Graph, value: Value) -> Value:
    """What it is turned to, as long as that is all that is read."""
    user = only_user(graph, value)
    if user is None or not computable(user) or not _moves(user):
        return value
    return _last_form(graph, user.outputs[0])


def _moves(node: Node) -> bool:
    """Whether it has the numbers of what it reads, in another shape or format."""
    if node.op not in _MOVES or not is_smooth(node) or not isinstance(node.inputs[0], Value):
        return False
    return math.prod(node.outputs[0].type.shape) == math.prod(node.inputs[0].type.shape)


# --- along the graph ------------------------------------------------------------------------------


def downstream(graph: Graph, values: Iterable[Value]) -> set[Value]:
    """Those values and what is made of them, the nearest first, as far as it can be evaluated and
    is not far away: gradients of one layer go on into all others.
    """
    waiting = deque(values)
    found = set(waiting)
    while waiting and len(found) < _NEAR:
        for user in graph.users.get(waiting.popleft(), ()):
            if computable(user) and user.outputs[0] not in found:
                found.add(user.outputs[0])
                waiting.append(user.outputs[0])
    return found
