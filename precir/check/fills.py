"""Inputs to try: corners of the ranges, and numbers as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np

from precir.check.shadow import Pair, rounded
from precir.formats import FORMATS

Array = Any


@dataclass(frozen=True)
class Leaf:
    """One array argument.

    Attributes:
      path: its place in the arguments, as "args[0]['w']".
      shape, dtype: in the format checked.
      lo, hi: its range; None if nothing is known.
      value: the example given, or None if only its shape was.
      fixed: whether only the example counts (integers, booleans and keys without a range).
      original: its dtype as given.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    lo: float | None
    hi: float | None
    value: Any
    fixed: bool
    original: str

    @property
    def known(self) -> bool:
        return self.lo is not None

    @property
    def floating(self) -> bool:
        return self.dtype in FORMATS


Pattern = Callable[[np.random.Generator, tuple[int, ...], float, float], Array]


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return rng.uniform(size=shape) * (hi - lo) + lo


def _low(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return np.full(shape, lo)


def _high(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return np.full(shape, hi)


def _zero(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return np.full(shape, min(max(0.0, lo), hi))


def _equal(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return np.full(shape, rng.uniform() * (hi - lo) + lo)


def _near_high(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return hi - rng.uniform(size=shape) * 0.06 * (hi - lo)


def _ends(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    return np.where(rng.uniform(size=shape) < 0.5, lo, hi)


def _one_high(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    x = np.full(shape, lo)
    if x.size:
        x.reshape(-1)[rng.integers(x.size)] = hi
    return x


def _some_zero(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    zero = min(max(0.0, lo), hi)
    return np.where(rng.uniform(size=shape) < 0.5, zero, _uniform(rng, shape, lo, hi))


def _magnitudes(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    """Every order of magnitude alike, from 2**-16 of the range's largest up, within it."""
    most = max(abs(lo), abs(hi))
    least = max(lo, -hi, most * 2.0**-16, 1e-30)
    sizes = np.exp2(rng.uniform(np.log2(least), np.log2(max(most, least)), size=shape))
    signs = (
        np.where(rng.uniform(size=shape) < 0.5, -1.0, 1.0)
        if lo < 0 < hi
        else 1.0
        if hi > 0
        else -1.0
    )
    return np.clip(sizes * signs, lo, hi)


def _small(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    """Near the number of the range that is nearest to zero."""
    zero = min(max(0.0, lo), hi)
    return np.clip(zero + (_uniform(rng, shape, lo, hi) - zero) * 1e-3, lo, hi)


def _ramp(rng: np.random.Generator, shape: tuple[int, ...], lo: float, hi: float) -> Array:
    size = int(np.prod(shape))
    return np.linspace(lo, hi, max(size, 1))[:size].reshape(shape)


TYPICAL: Final[tuple[Pattern, ...]] = (_uniform, _near_high, _magnitudes)
CORNERS: Final[tuple[Pattern, ...]] = (
    _low, _high, _zero, _equal, _ends, _one_high, _some_zero, _small, _ramp,
)  # fmt: skip


# Of ranges that are only the span of one example, whose ends all elements rarely meet at once.
TYPICAL_OF_EXAMPLE: Final[tuple[Pattern, ...]] = (_uniform, _magnitudes)
CORNERS_OF_EXAMPLE: Final[tuple[Pattern, ...]] = (_zero, _some_zero, _small)


@dataclass(frozen=True)
class Fill:
    """One input: a pair for each leaf, and whether it is of an ordinary kind."""

    pairs: tuple[Pair, ...]
    typical: bool
    name: str


def fills(leaves: Sequence[Leaf], seed: int = 0, mixed: int = 24) -> Iterator[Fill]:
    """The example, ordinary inputs, corners, mixtures; forever different ones at the end."""
    rng = np.random.default_rng(seed)
    typical, corners = TYPICAL, CORNERS
    if any(x.value is not None for x in leaves if x.floating):
        typical, corners = TYPICAL_OF_EXAMPLE, CORNERS_OF_EXAMPLE
        yield Fill(tuple(_example(x, rng) for x in leaves), True, "example")
    free = [x for x in leaves if not x.fixed]
    if not free:
        yield Fill(tuple(_fixed(x, rng) for x in leaves), True, "constant")
        return
    for pattern in (*typical, *typical):
        yield _filled(leaves, [pattern] * len(leaves), rng, True)
    for pattern in corners:
        yield _filled(leaves, [pattern] * len(leaves), rng, False)
    both = (*typical, *corners)
    if len(free) > 1:
        for _ in range(mixed):
            chosen = [both[rng.integers(len(both))] for _ in leaves]
            yield _filled(leaves, chosen, rng, all(c in typical for c in chosen))
        for pattern in (_uniform, _magnitudes):
            yield _alike(leaves, pattern, rng)
    for _ in range(6):
        chosen = [typical[rng.integers(len(typical))] for _ in leaves]
        yield _filled(leaves, chosen, rng, True)


def _filled(
    leaves: Sequence[Leaf], patterns: Sequence[Pattern], rng: np.random.Generator, typical: bool
) -> Fill:
    names = "+".join(sorted({p.__name__.strip("_") for p in patterns}))
    pairs = [
        _fixed(x, rng) if x.fixed else _pair(x, _values(x, p, rng))
        for x, p in zip(leaves, patterns, strict=True)
    ]
    return Fill(tuple(pairs), typical, names)


def _alike(leaves: Sequence[Leaf], pattern: Pattern, rng: np.random.Generator) -> Fill:
    """Leaves of one shape and range get the same numbers."""
    made: dict[Any, Array] = {}
    pairs = []
    for x in leaves:
        if x.fixed:
            pairs.append(_fixed(x, rng))
            continue
        key = (x.shape, x.lo, x.hi)
        if key not in made:
            made[key] = _values(x, pattern, rng)
        pairs.append(_pair(x, made[key]))
    return Fill(tuple(pairs), False, "alike")


def _values(leaf: Leaf, pattern: Pattern, rng: np.random.Generator) -> Array:
    if leaf.lo is None or leaf.hi is None:
        if leaf.floating:
            return rng.standard_normal(leaf.shape)
        return rng.integers(0, 2, size=leaf.shape)
    most = 3e38
    if leaf.floating:
        lo, hi = max(leaf.lo, -most), min(leaf.hi, most)
        return pattern(rng, leaf.shape, lo, hi)
    lo, hi = max(leaf.lo, -(2.0**31)), min(leaf.hi, 2.0**31 - 1)
    return np.round(pattern(rng, leaf.shape, lo, hi)).clip(lo, hi)


def _pair(leaf: Leaf, x: Array) -> Pair:
    """Numbers that the format holds, where it holds numbers like them."""
    if not leaf.floating:
        low = np.asarray(x).astype(leaf.dtype)
        return Pair(low, low)
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        low = rounded(x, leaf.dtype)
        format_ = FORMATS[leaf.dtype]
        fits = np.isfinite(low) & ((low != 0) | (x == 0))
        if leaf.lo is not None and leaf.hi is not None:
            # rounding must not leave the range
            fits &= (low >= leaf.lo) & (low <= leaf.hi)
        whole = np.all(x == np.floor(x)) and np.abs(x).max(initial=0) > 2.0 / format_.epsilon
    if fits.all() and not whole:
        return Pair(low, low)
    return Pair(low, np.where(fits, low, x) if not whole else x)


def _example(leaf: Leaf, rng: np.random.Generator) -> Pair:
    if leaf.value is None or not leaf.floating:
        return _fixed(leaf, rng)
    return _pair(leaf, np.asarray(leaf.value).astype(np.float64))


def _fixed(leaf: Leaf, rng: np.random.Generator) -> Pair:
    if leaf.dtype.startswith("key"):
        value = leaf.value
        if value is None:
            seeds = np.arange(int(np.prod(leaf.shape)))
            value = (
                jax.vmap(jax.random.key)(seeds).reshape(leaf.shape)
                if leaf.shape
                else jax.random.key(0)
            )
        return Pair(value, value)
    if leaf.value is not None:
        value = np.asarray(leaf.value)
        return _pair(leaf, value) if leaf.floating else Pair(value, value)
    return _pair(leaf, _values(leaf, _uniform, rng))
