"""The roots of the variances of rows: where a program may have a LayerNorm or an RMSNorm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from precir.ir import Graph, Node, Value
from precir.passes.fused_norm import (
    are_of_rows,
    close,
    keeps_nothing_out,
    normalised,
    samples_of,
    small_numbers,
)
from precir.passes.samples import Samples, Unknown, computable
from precir.passes.smooth import FLOATS, compared

Array = np.ndarray[Any, Any]

_STEPS: Final = 80  # nodes that a root is made of at most
_ROOTS: Final = ("rsqrt", "sqrt", "pow")


@dataclass(frozen=True)
class Rows:
    """The statistics of the rows of `x` under a norm.

    `rstd` is their 1 / sqrt(variance + eps), or its inverse where `inverse` says so; `mean` is
    None for RMSNorm. Both are float32, of one number a row. `inside` are the nodes in between, and
    `asked` says whether something there is compared with zero.
    """

    kind: str
    x: Value
    eps: float
    mean: Value | None
    rstd: Value
    inverse: bool
    inside: tuple[Node, ...]
    asked: bool

    @property
    def numbers(self) -> Iterator[Value]:
        """What is made of a row as a whole: every gradient depends on it, and little else does."""
        size = math.prod(self.x.type.shape[:-1])
        every = (node.outputs[0] for node in self.inside)
        return (v for v in every if math.prod(v.type.shape) == size)


def find_rows(graph: Graph, position: Mapping[Node, int]) -> list[Rows]:
    """The statistics of each tensor of which a program takes them, by where they are made."""
    found: dict[tuple[Value, str], Rows] = {}
    for node in graph:
        if node.op in _ROOTS and node.outputs[0].type.dtype == "float32":
            rows = _rows(node.outputs[0], position)
            if rows is not None:
                found.setdefault((rows.x, rows.kind), rows)
    return list(found.values())


def _rows(root: Value, position: Mapping[Node, int]) -> Rows | None:
    """What `root` is the root of, as far up the program as that holds."""
    found = None
    size = math.prod(root.type.shape)
    leaves, inside = {root}, dict[Node, None]()
    for _ in range(_STEPS):
        leaf = max(leaves, key=lambda v: place(v, position))
        if leaf.node is None or not computable(leaf.node):
            break
        leaves.remove(leaf)
        inside[leaf.node] = None
        leaves |= {o for o in leaf.node.inputs if isinstance(o, Value)}
        if not leaves:
            break
        if len(leaves) == 1:
            (x,) = leaves
            shape = x.type.shape
            fits = len(shape) > 1 and shape[-1] > 1 and math.prod(shape[:-1]) == size > 1
            if fits and x.type.dtype in FLOATS:
                found = _statistics(root, x, tuple(inside)) or found
    return found


def _statistics(root: Value, x: Value, inside: tuple[Node, ...]) -> Rows | None:
    asked = compared([root], (x,))
    if asked is None or not are_of_rows(asked, x):
        return None
    every = []
    for given in samples_of(x, (), alike=bool(asked)):
        samples = Samples(given)
        try:
            every.append((given[x], samples.of(root).reshape(*given[x].shape[:-1], 1), samples))
        except (Unknown, ValueError):
            return None
    for kind in ("layer", "rms"):
        for eps in small_numbers(inside, least=1e-30 if asked else 0.0):
            exact = [normalised(g, kind, eps)[1:] for g, _, _ in every]
            for inverse in (False, True):
                roots = [1 / r if inverse else r for _, r in exact]
                if not all(close(y, r) for (_, y, _), r in zip(every, roots, strict=True)):
                    continue
                means = [(s, m) for (_, _, s), (m, _) in zip(every, exact, strict=True)]
                mean = _mean(inside, means) if kind == "layer" else None
                open_ = keeps_nothing_out([root], samples_of(x, ())[0], x)
                if open_ and (kind == "rms" or mean is not None):
                    return Rows(kind, x, eps, mean, root, inverse, inside, bool(asked))
    return None


def _mean(inside: Iterable[Node], every: list[tuple[Samples, Array]]) -> Value | None:
    for node in inside:
        value = node.outputs[0]
        known = [(s.known.get(value), m) for s, m in every]
        if value.type.dtype == "float32" and all(
            a is not None and a.size == m.size and close(a.reshape(m.shape), m) for a, m in known
        ):
            return value
    return None


def place(value: Value, position: Mapping[Node, int]) -> int:
    """Where in a program a value is made."""
    return -1 if value.node is None else position.get(value.node, -1)
