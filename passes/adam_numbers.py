"""What numbers an update of AdamW has, from what it computes.

Three new tensors are functions of three stored ones and a gradient, element by element, and of
scalars, by sums, products, quotients and powers alone: what compares may do something else where no
sample is. Probes, each a gradient, a moment or a weight of one and nothing else, tell the numbers
in

    m' = r1 g + b1 m,   v' = r2 g^2 + b2 v,   w' = w - lr (m' c1 / (sqrt(v' c2) + eps) + decay w)

and how each follows the scalars, of which it has to be a product. Then all of it is compared on
samples.

The formula has one number too many, for numerator and denominator may be multiplied alike: c2 is
taken to be 1 where all scalars are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from precir.ir import Node, Value
from precir.passes.samples import Array, Samples, Unknown

_WITHIN: Final = 1e-5
_HUGE: Final = 2.0**200  # what eps is nothing beside


@dataclass(frozen=True)
class Factor:
    """A number times powers of scalars of the program."""

    number: float
    powers: Mapping[Value, int]

    def __truediv__(self, other: Factor) -> Factor:
        powers = {v: self.powers.get(v, 0) - other.powers.get(v, 0) for v in self.scalars(other)}
        return Factor(self.number / other.number, {v: p for v, p in powers.items() if p})

    def scalars(self, other: Factor) -> list[Value]:
        return list(dict.fromkeys((*self.powers, *other.powers)))

    def at(self, scalars: Mapping[Value, float]) -> float:
        return self.number * math.prod(scalars[v] ** p for v, p in self.powers.items())


# By what tensors are made of tensors. (A constant that is added is seen at the size it has.)
_SMOOTH: Final = frozenset({
    "add", "add_any", "sub", "mul", "div", "neg", "square", "sqrt", "rsqrt", "integer_pow",
    "pow", "one_minus_square", "convert_element_type", "cast", "copy", "stop_gradient",
    "broadcast_in_dim",
})  # fmt: skip


def _smooth(node: Node) -> bool:
    inside = all(_smooth(n) for region in node.regions for n in region)
    return inside and (bool(node.regions) or node.op in _SMOOTH)


class _Run:
    """The new weight and moments as functions of tensors, `leaves`, and of `scalars`."""

    def __init__(self, new: Sequence[Value], leaves: Sequence[Value]) -> None:
        """Raises `Unknown` where it depends on something else, or compares."""
        self.new, self.leaves = new, leaves
        self.size = (1,) * (leaves[0].type.rank - 1) + (-1,)
        self.scalars: list[Value] = []
        waiting, met = list(new), set(leaves)
        while waiting:
            v = waiting.pop()
            if v in met:
                continue
            met.add(v)
            if not v.type.rank:
                self.scalars.append(v)
            elif v.node is None or not _smooth(v.node):
                raise Unknown
            else:
                waiting += [o for o in v.node.inputs if isinstance(o, Value)]
        if any(v.type.dtype != "float32" for v in self.scalars):
            raise Unknown

    def __call__(self, rows: Array, scalars: Mapping[Value, float]) -> list[Array]:
        """On samples, a row for each leaf. Raises `Unknown`."""
        given = {v: row.reshape(self.size) for v, row in zip(self.leaves, rows, strict=True)}
        samples = Samples(given | {v: np.asarray(x) for v, x in scalars.items()})
        found = [samples.of(v) for v in self.new]
        return [np.broadcast_to(f, (1,) * (f.ndim - 1) + rows.shape[1:]).reshape(-1) for f in found]


# A row each of weight, first and second moment and gradient: a gradient, a first moment, a second
# moment and a weight of one, and a first moment beside a huge second one.
_PROBES: Final = np.array([
    [0, 0, 0, 1, 0],
    [0, 1, 0, 0, 1],
    [0, 0, 1, 0, _HUGE],
    [1, 0, 0, 0, 0],
], float)  # fmt: skip
_NAMES: Final = ("rest1", "b1", "rest2", "b2", "decay", "by eps", "by root")


def _probed(run: _Run, scalars: Mapping[Value, float]) -> Array:
    """`_NAMES`: of decay, what w is reduced by, lr decay; lr c1 / eps; and lr c1 / sqrt(c2)."""
    weight, first, second = run(_PROBES, scalars)
    b1, b2 = first[1], second[2]
    root = math.sqrt(b2 * _HUGE)
    return np.array([
        first[0], b1, second[0], b2, 1 - weight[3], -weight[1] / b1, -weight[4] / b1 * root
    ])  # fmt: skip


def adam_factors(new: Sequence[Value], leaves: Sequence[Value]) -> dict[str, Factor] | None:
    """The numbers of the kernel, by name; None where it is another update."""
    try:
        with np.errstate(all="ignore"):
            run = _Run(new, leaves)
            found = _products(run)
            return found if found is not None and _fits(run, found) else None
    except (Unknown, ValueError):
        return None


def _products(run: _Run) -> dict[str, Factor] | None:
    """Raises `ValueError` where a scalar's root is taken that no division by it makes up for."""
    one = dict.fromkeys(run.scalars, 1.0)
    base = _probed(run, one)
    powers: dict[Value, Array] = {}
    for v in run.scalars:
        ratio = _probed(run, one | {v: 4.0}) / np.where(base, base, 1)
        twice = np.where(base, np.log2(ratio), 0)  # of each power, 2 p
        if not np.all(np.abs(twice - np.round(twice)) < 1e-6):
            return None
        powers[v] = np.round(twice).astype(int)
    if not np.all(np.isfinite(base)) or not 0 < base[1] < 1 or not 0 < base[3] < 1:
        return None
    parts = dict(zip(_NAMES, range(len(_NAMES)), strict=True))

    def factor(number: float, twice: Mapping[Value, int]) -> Factor:
        if any(p % 2 for p in twice.values()):
            raise ValueError
        return Factor(_short(number), {v: int(p) // 2 for v, p in twice.items() if p})

    def of(name: str) -> Factor:
        return factor(base[parts[name]], {v: p[parts[name]] for v, p in powers.items()})

    by_eps, by_root = parts["by eps"], parts["by root"]
    # A step that it changes where v is small alone is one that it is added to v's root of.
    added = {v: -p[by_eps] for v, p in powers.items() if p[by_eps] and not p[by_root]}
    eps = factor(base[by_root] / base[by_eps], added)
    rest = {v: p for v, p in powers.items() if v not in added}
    rate = factor(base[by_root], {v: p[by_eps] for v, p in rest.items()})
    second = factor(1.0, {v: 2 * (p[by_eps] - p[by_root]) for v, p in rest.items()})
    first = Factor(1.0, {v: -1 for v, p in rate.powers.items() if p == -1})
    lr, decay = rate / first, of("decay")
    b1, b2, one_ = of("b1"), of("b2"), Factor(1.0, {})
    of_w = _shortened(decay / lr) if decay.number else Factor(0.0, {})
    # A decay that is not a multiple of the rate has no number where the rate is zero.
    if b1.powers or b2.powers or any(p < 0 for p in of_w.powers.values()):
        return None
    scale = of("rest1") / Factor(1 - b1.number, {})
    return {
        "lr": lr, "b1": b1, "b2": b2, "eps": eps,
        "weight_decay": of_w, "gradient_scale": _shortened(scale),
        "correction_1": one_ / first, "correction_2": one_ / second,
    }  # fmt: skip


def _shortened(factor: Factor) -> Factor:
    return Factor(_short(factor.number), factor.powers)


def _short(number: float) -> float:
    """The shortest number that float32 rounds the same way."""
    return float(str(np.float32(number)))


def _samples() -> Array:
    """Of weight, moments and gradient: as they come, and then as moments of a gradient of each size
    that float32 has, where what is added to one of them is seen. A fixed choice, for compilation is
    deterministic.
    """
    random = np.random.default_rng(21)
    apart = random.uniform(-24, 24, (4, 48))
    sizes = np.linspace(-60, 60, 96) * np.array([[1], [1], [2], [1]])
    rows: Array = 2.0 ** np.hstack([apart, sizes + random.uniform(-4, 4, sizes.shape)])
    rows *= random.choice([-1.0, 1.0], rows.shape)
    rows[2] = np.abs(rows[2])
    rows[0, ::2] = 0  # where the step alone is seen
    rows[3, ::5] = 0
    return rows


_SAMPLES: Final = _samples()


def _fits(run: _Run, factors: Mapping[str, Factor]) -> bool:
    random = np.random.default_rng(22)
    w, m, v, g = _SAMPLES
    for most in (1, 40, 40):
        given = {v: 2.0 ** random.uniform(-most, most) for v in run.scalars}
        lr, b1, b2, eps, decay, scale, c1, c2 = (f.at(given) for f in factors.values())
        first, second = [(1 - b1) * scale * g, b1 * m], [(1 - b2) * (scale * g) ** 2, b2 * v]
        m_, v_ = sum(first), sum(second)
        step = m_ / c1 / (np.sqrt(v_ / c2) + eps)
        expected = w - lr * (step + decay * w), m_, v_
        both = np.abs(first[0]) + np.abs(first[1])
        slack = (
            np.abs(w) * (1 + abs(lr * decay)) + abs(lr / c1) * both / (np.sqrt(v_ / c2) + eps),
            both,
            np.abs(v_),
        )  # fmt: skip
        for found, right, size in zip(run(_SAMPLES, given), expected, slack, strict=True):
            if not np.all(np.abs(found - right) <= _WITHIN * size):
                return False
    return True
