"""How a kernel's work is divided among devices: which axes of its arrays may be cut where, and
which cuts move the fewest bytes.

A factor is what several axes have in common: the rows of a product's left operand and those of its
result. A device axis cuts one factor at most, and with it every axis that the factor is on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Axes = tuple[int, ...]
"""Device axes by number, the outermost first."""
Cuts = tuple[Axes, ...]
"""The device axes that cut each axis of an array."""
Names = tuple[Hashable | None, ...]
"""The factor of each axis of an array; None for an axis that is never cut."""


@dataclass(frozen=True)
class Rule:
    """What of a kernel may be divided.

    Attributes:
      operands, results: the factors of their axes.
      pieces: how many equal pieces each factor has that must stay whole, such as blocks under one
        scale.
      summed: factors along which the first result is a sum, of which devices that cut them have
        a part each.
      agreed: those along which they agree on a few numbers, such as a largest magnitude.
      scatters: whether a device may keep no more than its part of the sum.
      loose: factors that results follow operands in however they are cut, where the kernel itself
        is cut by pieces.
    """

    operands: tuple[Names, ...]
    results: tuple[Names, ...]
    pieces: Mapping[Hashable, int]
    summed: tuple[Hashable, ...] = ()
    agreed: tuple[Hashable, ...] = ()
    scatters: bool = False
    loose: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Kind:
    """Shape and size of an element of an array that is divided."""

    shape: tuple[int, ...]
    itemsize: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Division:
    """The device axes that cut each factor; and, of those of summed factors, which cut what axis of
    the first result once it is summed.
    """

    factors: Mapping[Hashable, Axes]
    scattered: tuple[tuple[int, Axes], ...] = ()

    def cuts(self, names: Names) -> Cuts:
        """Those of an operand, or of a result before it is scattered."""
        return tuple(self.factors.get(n, ()) if n is not None else () for n in names)

    def result(self, number: int, names: Names) -> Cuts:
        """Those of a result."""
        more = dict(self.scattered) if number == 0 else {}
        return tuple(a + more.get(i, ()) for i, a in enumerate(self.cuts(names)))

    def across(self, names: Sequence[Hashable]) -> Axes:
        """The device axes that cut any of these factors."""
        return tuple(axis for name in names for axis in self.factors.get(name, ()))


def decide(
    rule: Rule,
    operands: Sequence[Kind],
    results: Sequence[Kind],
    given: Sequence[Cuts],
    wanted: Sequence[Cuts],
    sizes: Sequence[int],
) -> Division:
    """The division that moves the fewest bytes, chosen for one device axis after the other.

    ``given`` says how the operands lie, ``wanted`` how the results are to lie, ``sizes`` how long
    each device axis is.
    """
    arrays = [
        *zip(rule.operands, operands, given, itertools.repeat(False)),
        *zip(rule.results, results, wanted, itertools.repeat(True)),
    ]
    factors: dict[Hashable, Axes] = {}
    for axis in _in_order([cuts for _, _, cuts, _ in arrays]):
        natural = {
            name: None
            for names, _, cuts, _ in arrays
            for name, axes in zip(names, cuts, strict=True)
            if axis in axes and name is not None
        }
        # What cannot stay as it is cut is cut otherwise rather than collected.
        for candidates in (natural, rule.pieces):
            costs = {
                name: sum(
                    _moved(axis, sizes, name in rule.summed, name, *array) for array in arrays
                )
                for name in candidates
                if _divides(rule, factors, name, axis, sizes)
            }
            if costs:
                break
        if costs:
            best = min(costs, key=lambda name: costs[name])
            factors[best] = (*factors.get(best, ()), axis)
    scattered = _scattered(rule, factors, results, wanted, sizes) if rule.scatters else ()
    return Division(factors, scattered)


def _in_order(cuts: Sequence[Cuts]) -> list[int]:
    """The device axes that cut something, the outer ones of an axis before the inner ones."""
    return list(dict.fromkeys(axis for each in cuts for axes in each for axis in axes))


def _divides(
    rule: Rule, factors: Mapping[Hashable, Axes], name: Hashable, axis: int, sizes: Sequence[int]
) -> bool:
    parts = math.prod(sizes[a] for a in (*factors.get(name, ()), axis))
    return rule.pieces[name] % parts == 0


def _moved(
    axis: int,
    sizes: Sequence[int],
    summed: bool,
    name: Hashable,
    names: Names,
    kind: Kind,
    cuts: Cuts,
    result: bool,
) -> float:
    """The bytes that a device gets of an array, where `axis` cuts the factor `name`."""
    now = next((n for n, axes in zip(names, cuts, strict=True) if axis in axes), None)
    lies = any(axis in axes for axes in cuts)
    others = math.prod(sizes[a] for axes in cuts for a in axes if a != axis)
    whole = kind.bytes / others
    cut = name in names
    if result and summed and not cut:
        return whole if lies else 2 * whole  # scattered, or to all
    if lies and cut:
        return 0 if now == name else whole / sizes[axis]
    return whole if lies != result and (lies or cut) else 0  # else a device takes its part


def _scattered(
    rule: Rule,
    factors: Mapping[Hashable, Axes],
    results: Sequence[Kind],
    wanted: Sequence[Cuts],
    sizes: Sequence[int],
) -> tuple[tuple[int, Axes], ...]:
    free = {axis for name in rule.summed for axis in factors.get(name, ())}
    found = []
    for i, (name, axes) in enumerate(zip(rule.results[0], wanted[0], strict=True)):
        chosen = factors.get(name, ())
        more = axes[len(chosen) :]
        parts = math.prod(sizes[a] for a in axes)
        fits = axes[: len(chosen)] == chosen and results[0].shape[i] % parts == 0
        if more and fits and free.issuperset(more):
            found.append((i, more))
            free -= set(more)
    return tuple(found)


# --- how XLA says where an array lies -------------------------------------------------------------


def device_axes(count: int) -> Iterator[tuple[int, ...]]:
    """The sizes that the axes of so many devices may have, as fine as they go."""
    yield from dict.fromkeys(itertools.permutations(_primes(count)))


def _primes(n: int) -> list[int]:
    for p in range(2, n + 1):
        if n % p == 0:
            return [p, *_primes(n // p)]
    return []


def read_cuts(tiles: np.ndarray[Any, Any], rank: int, sizes: Sequence[int]) -> Cuts | None:
    """The device axes that cut an array: ``tiles`` [parts of each axis..., rest] holds the number
    of the device that has each part, along the rest of those that have the same. None where axes of
    these ``sizes`` do not say it.
    """
    place = np.empty((tiles.size, tiles.ndim), np.int64)
    place[tiles.reshape(-1)] = np.stack(np.unravel_index(np.arange(tiles.size), tiles.shape), -1)
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    found: list[list[tuple[int, int]]] = [[] for _ in range(rank)]
    for axis, stride in enumerate(strides):
        step = (place[stride] - place[0])[:rank]
        moved = np.flatnonzero(step)
        if len(moved) > 1 or (step < 0).any():
            return None
        if len(moved):
            found[moved[0]].append((-int(step[moved[0]]), axis))
    cuts = tuple(tuple(axis for _, axis in sorted(each)) for each in found)
    return cuts if np.array_equal(_places(cuts, sizes), place[:, :rank]) else None


def _places(cuts: Cuts, sizes: Sequence[int]) -> np.ndarray[Any, Any]:
    """Which part of each axis every device has."""
    digits = np.stack(np.unravel_index(np.arange(math.prod(sizes)), tuple(sizes)), -1)
    places = np.zeros((len(digits), len(cuts)), np.int64)
    for i, axes in enumerate(cuts):
        for axis in axes:
            places[:, i] = places[:, i] * sizes[axis] + digits[:, axis]
    return places
