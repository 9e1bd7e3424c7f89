"""Find what repeats: runs of equal keys side by side (layers, parameters of an optimizer)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.int64]
_WINDOWS = (1, 2, 4, 8, 16, 32, 64)
_MOST_PERIODS = 48
_LEAST_SAVED = 4  # nodes that a repeat must save to be worth a loop


@dataclass(frozen=True, slots=True)
class Run:
    """Positions `start` to `stop` repeat with `period`: keys[i] == keys[i + period] throughout.

    Copies may begin at `start` or up to `slack` later without losing one.
    """

    start: int
    stop: int
    period: int

    @property
    def copies(self) -> int:
        return (self.stop - self.start) // self.period

    @property
    def slack(self) -> int:
        return (self.stop - self.start) % self.period

    @property
    def saved(self) -> int:
        return (self.copies - 1) * self.period


def find_runs(keys: Sequence[int], align: Callable[[Run], int]) -> list[Run]:
    """Disjoint tandem repeats of a sequence, those that save most first chosen, in order.

    `align` says how much of its slack a run should skip, so that copies begin where they should.

    Candidate periods are the commonest distances from a window of keys to its next occurrence;
    each costs one vectorised comparison, so that the whole is linear in the sequence.
    """
    array = np.asarray(keys, dtype=np.int64)
    runs = [r for p in _periods(array) for r in _runs_of(array, p) if _worthwhile(r)]
    runs.sort(key=lambda r: (-r.saved, r.period, r.start))
    chosen: list[Run] = []
    taken = np.zeros(len(array), dtype=bool)
    for run in runs:
        for rest in _free_parts(run, taken):
            if not _worthwhile(rest):
                continue
            start = rest.start + align(rest)
            aligned = Run(start, start + rest.copies * rest.period, rest.period)
            chosen.append(aligned)
            taken[aligned.start : aligned.stop] = True
    return sorted(chosen, key=lambda r: r.start)


def _worthwhile(run: Run) -> bool:
    return run.copies >= 2 and run.saved >= _LEAST_SAVED and (run.period > 2 or run.copies > 2)


def _free_parts(run: Run, taken: npt.NDArray[np.bool_]) -> list[Run]:
    window = taken[run.start : run.stop]
    if not window.any():
        return [run]
    edges = np.flatnonzero(np.diff(np.concatenate(([True], window, [True]))))
    starts, stops = edges[::2], edges[1::2]
    return [
        Run(run.start + int(a), run.start + int(b), run.period)
        for a, b in zip(starts, stops, strict=True)
    ]


def _periods(keys: Keys) -> list[int]:
    """Candidate periods: the commonest distances to the next equal window, per window size."""
    n = len(keys)
    found: dict[int, int] = {}
    rolled = keys.astype(np.uint64)
    size = 1
    for window in _WINDOWS:
        while size < window and n > 2 * window:
            rolled = rolled[:-size] * np.uint64(0x9E3779B97F4A7C15) + rolled[size:]
            rolled ^= rolled >> np.uint64(29)
            size *= 2
        if size != window or len(rolled) < 2:
            break
        order = np.argsort(rolled, kind="stable")
        same = rolled[order[:-1]] == rolled[order[1:]]
        distances = (order[1:] - order[:-1])[same]
        values, counts = np.unique(distances, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if count >= min(value, 4):
                found[value] = max(found.get(value, 0), count)
    ranked = sorted(found, key=lambda p: (-found[p], p))
    return ranked[:_MOST_PERIODS]


def _runs_of(keys: Keys, period: int) -> list[Run]:
    if period <= 0 or 2 * period > len(keys):
        return []
    equal = keys[:-period] == keys[period:]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], equal, [False]))))
    return [
        Run(int(a), int(b) + period, period)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
        if b - a >= period
    ]
