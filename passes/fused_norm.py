"""LayerNorm and RMSNorm that are quantised: one `norm_quantize`.

What an operand of a product is made of is evaluated (`precir.passes.samples`) on a few rows, as a
function of one tensor from before and of rows of weights, ever further up the program, until it is
a norm of the tensor, however that is spelled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Final

import numpy as np

from precir.ir import Literal, Node, Value
from precir.passes.samples import Samples, Unknown, computable
from precir.passes.smooth import FLOATS, compared

Array = np.ndarray[Any, Any]

_STEPS: Final = 60  # nodes that a norm is made of at most
_WITHIN: Final = 1e-6  # of the largest: what a norm's constants lose in float32
_LARGEST_EPS: Final = 0.1
# Samples: deviation and mean, of one element so many times as much; of weights and biases.
_SIZES: Final = (
    *((3e-3, 1e-3, 1, 1), (1, 0.5, 1e4, 1), (1e9, 1e9, 1, 1e6)),
    *((1e-9, 1e-10, 1, 1), (1e-20, 1e-21, 1, 1), (1, -2, 1, 1)),
)
# Where one number a row may be compared with zero: rows of zeros, and of one number each.
_ALIKE: Final = ((0, 0, 1, 1), (0, 0.5, 1, 1))
_CASTS: Final = ("convert_element_type", "cast")
_SPREADS: Final = ("broadcast_in_dim", "reshape", "expand_dims", "squeeze", *_CASTS)


@dataclass(frozen=True)
class Norm:
    """What a value is: the norm of the rows of x, times a weight, plus a bias.

    `weight` and `bias` are of the program, in any shape that holds one row; `rows` says of values
    of one number a row which they are, "mean" or "rstd", but of those that make a weight; `inside`
    are the nodes between x and the value.
    """

    kind: str
    x: Value
    weight: Value | None
    bias: Value | None
    eps: float
    rows: Mapping[Value, str]
    inside: frozenset[Node]


def find_norm(value: Value, position: Mapping[Node, int]) -> Norm | None:
    """The furthest up that fits, for a LayerNorm is an RMSNorm of what is centred; or None."""
    shape = value.type.shape
    if len(shape) < 2 or shape[-1] < 2 or math.prod(shape[:-1]) < 2:
        return None
    norm = None
    for x, columns, inside in _cuts(value, position):
        if any(n.op == "reduce_sum" for n in inside):
            norm = _recognised(value, x, columns, inside) or norm
    if norm is None:
        return None
    rows = {norm.weight, norm.bias} - {None}
    needed = _made_of(rows, min(position[n] for n in norm.inside), position)  # type: ignore[arg-type]
    return replace(norm, rows={v: name for v, name in norm.rows.items() if v not in needed})


def _made_of(values: Iterable[Value], first: int, position: Mapping[Node, int]) -> set[Value]:
    """Those values and what they are made of, back to the node at `first`."""
    waiting, met = list(values), set[Value]()
    while waiting:
        value = waiting.pop()
        if value not in met and value.node is not None and position.get(value.node, -1) >= first:
            met.add(value)
            waiting += [o for o in value.node.inputs if isinstance(o, Value)]
    return met


def _cuts(
    value: Value, position: Mapping[Node, int]
) -> Iterator[tuple[Value, tuple[Value, ...], frozenset[Node]]]:
    """Tensors that make `value`, together with rows of numbers and the nodes in between."""
    shape = value.type.shape
    leaves: set[Value] = {value}
    columns: dict[Value, None] = {}  # in the order in which they are met
    inside: set[Node] = set()
    for _ in range(_STEPS):
        leaf = _next(leaves, shape, position)
        if leaf is None or leaf.node is None or not computable(leaf.node):
            return
        inside.add(leaf.node)
        leaves.remove(leaf)
        for o in leaf.node.inputs:
            if not isinstance(o, Value) or o in columns or o in leaves:
                continue
            if _is_row_of_columns(o, shape):
                columns[o] = None
            elif math.prod(o.type.shape) > 1:
                leaves.add(o)
        if len(leaves) == 1:
            (x,) = leaves
            if x.type.shape == shape:
                yield x, tuple(sorted(columns, key=lambda v: v.hint)), frozenset(inside)


def _next(leaves: set[Value], shape: tuple[int, ...], position: Mapping[Node, int]) -> Value | None:
    """What only spreads something smaller comes first, then what was made last."""

    def order(v: Value) -> tuple[bool, int]:
        node = v.node
        if node is None:
            return False, -1
        source = node.inputs[0] if node.inputs else None
        spreads = node.op in _SPREADS and (
            not isinstance(source, Value) or math.prod(source.type.shape) < math.prod(shape)
        )
        return spreads and v.type.shape == shape, position.get(node, -1)

    return max(leaves, key=order) if leaves else None


def _is_row_of_columns(value: Value, shape: tuple[int, ...]) -> bool:
    return value.type.shape == shape[-1:] or (
        value.type.shape == (1,) * (len(shape) - 1) + shape[-1:]
    )


def _recognised(
    value: Value, x: Value, columns: tuple[Value, ...], inside: frozenset[Node]
) -> Norm | None:
    floats = all(v.type.dtype in FLOATS for v in (x, *columns))
    if len(columns) > 2 or not floats:
        return None
    asked = compared([value], (x, *columns))
    if asked is None or not are_of_rows(asked, x):
        return None
    given, *others = samples_of(x, columns, alike=bool(asked))
    samples = Samples(given)
    try:
        found = samples.of(value)
        further = [(o, Samples(o).of(value)) for o in others]
    except Unknown:
        return None
    for kind in ("layer", "rms"):
        for eps in small_numbers(inside, least=1e-30 if asked else 0.0):
            for weight, bias in _roles(columns):
                every = [(given, found), *further]
                alike = all(close(y, _whole(g, x, kind, eps, weight, bias)) for g, y in every)
                if alike and keeps_nothing_out([value], given, x):
                    _, mean, rstd = normalised(given[x], kind, eps)
                    rows = dict(_rows(samples, inside, kind, mean, rstd))
                    return Norm(kind, _unrounded(x), weight, bias, eps, rows, inside)
    return None


def _whole(
    given: Mapping[Value, Array],
    x: Value,
    kind: str,
    eps: float,
    weight: Value | None,
    bias: Value | None,
) -> Array:
    """The norm of the samples, with its weight and bias."""
    y, _, _ = normalised(given[x], kind, eps)
    whole = y if weight is None else y * _wide(given[weight], y)
    return whole if bias is None else whole + _wide(given[bias], y)


def _wide(row: Array, like: Array) -> Array:
    return row.reshape((1,) * (like.ndim - 1) + (-1,))


def _roles(columns: tuple[Value, ...]) -> Iterator[tuple[Value | None, Value | None]]:
    if not columns:
        yield None, None
    elif len(columns) == 1:
        yield columns[0], None
        yield None, columns[0]
    else:
        yield from ((a, b) for a, b in permutations(columns))


def normalised(x: Array, kind: str, eps: float) -> tuple[Array, Array, Array]:
    mean = x.mean(-1, keepdims=True) if kind == "layer" else np.zeros((*x.shape[:-1], 1))
    apart = x - mean
    rstd = 1 / np.sqrt((apart * apart).mean(-1, keepdims=True) + eps)
    return apart * rstd, mean, rstd


def are_of_rows(values: Iterable[Value], x: Value) -> bool:
    """Whether each is one number a row of x, and made of nothing else."""
    size = math.prod(x.type.shape[:-1])
    return all(math.prod(v.type.shape) == size and compared([v], (x,)) is not None for v in values)


def small_numbers(inside: Iterable[Node], least: float = 0.0) -> list[float]:
    """What may be the number that is added to the variance."""
    found = {
        float(o.value)
        for node in inside
        for o in node.inputs
        if isinstance(o, Literal) and isinstance(o.value, float)
    }
    return [v for v in (*sorted(v for v in found if 0 < v < _LARGEST_EPS), 0.0) if v >= least]


def samples_of(
    x: Value, columns: tuple[Value, ...], *, alike: bool = False
) -> list[dict[Value, Array]]:
    """Rows whose variance is about as small as an epsilon, so that it shows; to tell a norm from
    one of what is capped, or that is, rows with one element far off, and far larger ones; far
    smaller ones, for an epsilon in another place; and, if asked for, rows whose elements are all
    `alike`. A fixed choice.
    """
    random = np.random.default_rng(21)
    shape = x.type.shape
    sizes = (*(min(n, 2) for n in shape[:-1]), shape[-1])
    every = []
    for scale, centre, off, of_rows in (*_SIZES, *(_ALIKE if alike else ())):
        rows = random.standard_normal(sizes)
        rows[..., 0] *= off
        given = {x: scale * rows + centre}
        for v in columns:
            given[v] = of_rows * (1 + random.standard_normal(v.type.shape))
        every.append(given)
    return every


def _rows(
    samples: Samples, inside: frozenset[Node], kind: str, mean: Array, rstd: Array
) -> Iterator[tuple[Value, str]]:
    """The values inside that are the mean or the root of each row, and nothing wider."""
    for node in inside:
        (value,) = node.outputs
        array = samples.known.get(value)
        if array is None or value.type.dtype != "float32" or array.size != mean.size:
            continue
        for name, wanted in (("mean", mean), ("rstd", rstd)):
            if name == "mean" and kind == "rms":
                continue
            if close(array.reshape(mean.shape), wanted):
                yield value, name


def _unrounded(x: Value) -> Value:
    """What x was made of by widening it."""
    while x.node is not None and x.node.op in _CASTS:
        (source,) = x.node.inputs
        narrow = isinstance(source, Value) and source.type.dtype in ("bfloat16", "float16")
        if not narrow or x.type.dtype != "float32":
            return x
        assert isinstance(source, Value)
        x = source
    return x


def keeps_nothing_out(values: Sequence[Value], given: Mapping[Value, Array], x: Value) -> bool:
    """Whether a NaN in x makes its row of the sum of values one: of finite samples alone, a program
    that replaces it looks like one that does not.
    """
    first = (0,) * (given[x].ndim - 1)
    odd = given[x].copy()
    odd[first][0] = np.nan
    samples = Samples({**given, x: odd})
    found: Any = sum(samples.of(v) for v in values)
    return bool(np.isnan(found[first] if found.ndim == odd.ndim else found.reshape(-1)[0]).all())


def close(found: Array, function: Array) -> bool:
    if found.shape != function.shape:
        return False
    most = np.max(np.abs(function))
    return bool(np.max(np.abs(found - function)) <= _WITHIN * most)
