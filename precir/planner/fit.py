"""Constants of a law from runs: `precir.fit_law`; efficiencies by inverting a law run by run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import least_squares, minimize_scalar

from precir.planner.box import Box
from precir.planner.errors import FitError
from precir.planner.kumar import Part
from precir.planner.quartet import Quartet

Vector = np.ndarray[Any, np.dtype[np.float64]]

_STARTS: Final = (  # alpha, beta, share of the lowest loss that is E, gamma
    (0.3, 0.3, 0.6, 1.0),
    (0.5, 0.5, 0.4, 0.4),
    (0.4, 0.6, 0.7, 0.7),
    (0.6, 0.4, 0.1, 0.25),
)
_SURE: Final = 0.35  # of an exponent: a standard error beyond this share says nothing
_FLAT: Final = 1.6  # largest over smallest D / N, below which N and D cannot be told apart
_FEW: Final = 0.05  # of the runs, that lie off one D / N: too few to tell N from D
_MOST: Final = 0.7  # of the runs, on one D / N: worth a word where a fit fails


@dataclass(frozen=True)
class Run:
    """One training run: weights, tokens, final loss, and the formats it ran in ("" for wide)."""

    params: float
    tokens: float
    loss: float
    forward: str = ""
    backward: str = ""


@dataclass(frozen=True)
class Fit:
    """A law that runs determine.

    Attributes:
      law: its constants; efficiencies of the runs' formats in `law.forward` and `law.backward`.
      rmse: root mean square of predicted minus measured loss.
      count: how many runs.
      errors: the standard error of alpha, beta, E and gamma, where they were fitted.
    """

    law: Quartet
    rmse: float
    count: int
    errors: Mapping[str, float]


def fit_law(runs: Iterable[Run], *, gamma: float | None = None, base: Quartet | None = None) -> Fit:
    """Fit L = (A (N eff_N)^-alpha + B (D eff_D)^-beta)^gamma + E by least squares.

    Every forward format among the runs gets an eff_N and every backward one an eff_D; wide ones
    have 1. `gamma=1` is Chinchilla's form; None fits it. With `base` only efficiencies are fitted.

    Raises:
      FitError: too few runs, or runs that do not determine the constants: of one D / N, with
        exponents that are not told from others, or an E that runs away to 0. What was found is in
        the message, and is not returned.
    """
    given = list(runs)
    forward = sorted({r.forward for r in given} - {""})
    backward = sorted({r.backward for r in given} - {""})
    problem = _Problem(given, forward, backward, gamma, base)
    if len(given) < problem.size + 2:
        raise FitError(
            f"{len(given)} runs for {problem.size} constants",
            fix=f"at least {problem.size + 2} runs, of several sizes and lengths",
        )
    if base is None:
        _refuse_one_ratio(given)
    best = min((problem.solve(start) for start in problem.starts()), key=lambda s: float(s.cost))
    law, rmse = problem.law(best.x), math.sqrt(2 * float(best.cost) / len(given))
    errors = problem.errors(best)
    if base is None:
        _refuse_degenerate(given, law, errors, rmse)
    return Fit(law, rmse, len(given), errors)


class _Problem:
    """Constants as a vector: ln A, alpha, ln B, beta, E, [gamma], ln eff_N ..., ln eff_D ..."""

    def __init__(
        self,
        runs: Sequence[Run],
        forward: Sequence[str],
        backward: Sequence[str],
        gamma: float | None,
        base: Quartet | None,
    ) -> None:
        self.forward, self.backward, self.gamma, self.base = forward, backward, gamma, base
        self.n = np.array([r.params for r in runs])
        self.d = np.array([r.tokens for r in runs])
        self.measured = np.array([r.loss for r in runs])
        self.which_n = np.array([_index(forward, r.forward) for r in runs])
        self.which_d = np.array([_index(backward, r.backward) for r in runs])
        free = 0 if base else 5 + (gamma is None)
        self.head, self.size = free, free + len(forward) + len(backward)

    def constants(self, x: Vector) -> tuple[float, float, float, float, float, float]:
        """In order: ln A, alpha, ln B, beta, E, gamma."""
        if self.base:
            b = self.base
            return math.log(b.A), b.alpha, math.log(b.B), b.beta, b.E, b.gamma
        gamma = float(x[5]) if self.gamma is None else self.gamma
        return float(x[0]), float(x[1]), float(x[2]), float(x[3]), float(x[4]), gamma

    def predicted(self, x: Vector) -> Vector:
        """The loss of every run."""
        log_a, alpha, log_b, beta, e, gamma = self.constants(x)
        eff = np.append(x[self.head :], 0.0)  # the last is that of wide formats
        log_n = np.log(self.n) + eff[self.which_n]
        shift = np.where(self.which_d < 0, -1, self.which_d + len(self.forward))
        log_d = np.log(self.d) + eff[shift]
        terms = np.exp(log_a - alpha * log_n) + np.exp(log_b - beta * log_d)
        found: Vector = terms**gamma + e
        return found

    def solve(self, start: Vector) -> Any:
        """From one start, to the nearest least sum of squares."""
        low, high = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        if not self.base:
            low[1] = low[3] = 0.01
            low[4], high[4] = 0.0, float(self.measured.min())
            high[1] = high[3] = 3.0
            if self.gamma is None:
                low[5], high[5] = 0.02, 3.0
        return least_squares(
            lambda x: self.predicted(x) - self.measured,
            start, bounds=(low, high), x_scale="jac", max_nfev=4000, xtol=1e-12, ftol=1e-12,
        )  # fmt: skip

    def starts(self) -> Iterable[Vector]:
        """Where to look from: ln A and ln B share what E leaves of the loss."""
        rest = np.full(len(self.forward) + len(self.backward), -0.3)
        if self.base:
            yield rest
            return
        n, d = float(np.median(np.log(self.n))), float(np.median(np.log(self.d)))
        for alpha, beta, share, power in _STARTS:
            gamma = power if self.gamma is None else self.gamma
            e = share * float(self.measured.min())
            half = math.log((float(np.median(self.measured)) - e) ** (1 / gamma) / 2)
            head = [half + alpha * n, alpha, half + beta * d, beta, e]
            yield np.array([*head, *([gamma] if self.gamma is None else []), *rest])

    def law(self, x: Vector) -> Quartet:
        """The constants as a law, its box that of the runs."""
        log_a, alpha, log_b, beta, e, gamma = self.constants(x)
        eff = np.exp(x[self.head :])
        ratio = self.d / self.n
        return Quartet(
            math.exp(log_a), alpha, math.exp(log_b), beta, e, gamma,
            dict(zip(self.forward, map(float, eff), strict=False)),
            dict(zip(self.backward, map(float, eff[len(self.forward) :]), strict=True)),
            Box((float(self.n.min()), float(self.n.max())),
                (float(self.d.min()), float(self.d.max())),
                (float(ratio.min()), float(ratio.max()))),
            f"fitted to {len(self.n)} runs",
        )  # fmt: skip

    def errors(self, solved: Any) -> dict[str, float]:
        """Standard errors from the curvature at the solution; infinite where there is none."""
        if self.base:
            return {}
        jacobian = solved.jac
        left = max(1, len(self.n) - self.size)
        variance = 2 * float(solved.cost) / left
        values, vectors = np.linalg.eigh(jacobian.T @ jacobian)
        safe = np.where(values > values.max() * 1e-15, values, np.nan)
        spread = np.sqrt(np.nansum(vectors**2 * (variance / safe), axis=1))
        names = {"alpha": 1, "beta": 3, "E": 4} | ({"gamma": 5} if self.gamma is None else {})
        return {name: float(spread[i]) for name, i in names.items()}


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name else -1


_OTHERS: Final = "add runs with other D / N, or fit efficiencies alone on a known base="


def _same_ratio(runs: Sequence[Run]) -> tuple[float, str]:
    """The part of the runs near the median D / N, and the same in words."""
    ratios = np.array([r.tokens / r.params for r in runs])
    middle = float(np.median(ratios))
    same = float(np.mean((ratios <= middle * _FLAT) & (ratios >= middle / _FLAT)))
    return same, f"{100 * same:.0f}% of the runs have the same D / N, about {middle:.0f}"


def _refuse_one_ratio(runs: Sequence[Run]) -> None:
    same, said = _same_ratio(runs)
    if same > 1 - _FEW:
        raise FitError(f"the runs do not determine the law: {said}", fix=_OTHERS)


def _refuse_degenerate(
    runs: Sequence[Run], law: Quartet, errors: Mapping[str, float], rmse: float
) -> None:
    why = []
    for name in ("alpha", "beta"):
        value = getattr(law, name)
        if errors[name] > _SURE * value:
            why.append(f"{name} {value:.3g} has a standard error of {errors[name]:.2g}")
    lowest = min(r.loss for r in runs)
    if lowest * 0.05 > law.E:
        why.append(f"E ran away to {law.E:.2g}")
    if not why:
        return
    same, said = _same_ratio(runs)
    if same > _MOST:
        why.append(said)
    found = f"alpha {law.alpha:.3g}, beta {law.beta:.3g}, E {law.E:.3g}, rmse {rmse:.2g}"
    raise FitError(f"the runs do not determine the law: {'; '.join(why)} ({found})", fix=_OTHERS)


# --- efficiencies ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Efficiency:
    """eff_N of the runs of one format: mean, least and most."""

    mean: float
    low: float
    high: float
    count: int


def efficiencies(runs: Iterable[Run], base: Quartet) -> dict[str, Efficiency]:
    """eff_N of each forward format, the law inverted run by run. Backward formats must be wide."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run.backward:
            raise FitError(f"a run with backward format {run.backward!r} has two unknowns")
        eff = base.measured_eff_n(run.loss, run.params, run.tokens)
        found.setdefault(run.forward, []).append(eff)
    return {
        name: Efficiency(float(np.mean(v)), min(v), max(v), len(v))
        for name, v in sorted(found.items())
    }


@dataclass(frozen=True)
class BitsFit:
    """eff(P) = (1 - exp(-P / gamma + offset))^parts: the curve, its sum of squares, and its P*."""

    part: Part
    parts: int
    squares: float
    best_bits: float

    def factor(self, bits: float) -> float:
        """eff(P)."""
        return self.part.factor(bits) ** self.parts


def fit_bits(points: Mapping[float, float], parts: int = 2) -> BitsFit:
    """Kumar's form through efficiencies by bits; `parts` kinds of tensor share its constants.

    Raises:
      FitError: fewer than three points.
    """
    if len(points) < 3:
        raise FitError(f"{len(points)} points for two constants", fix="efficiencies at 3 bits each")
    bits, eff = np.array(sorted(points)), np.array([points[p] for p in sorted(points)])

    def off(x: Vector) -> Vector:
        found: Vector = (1 - np.exp(-bits / x[0] + x[1])) ** parts - eff
        return found

    solved = least_squares(off, [2.0, 0.5], xtol=1e-14, ftol=1e-14)
    part = Part(float(solved.x[0]), float(solved.x[1]))
    low = max(part.least, 0) + 1e-3
    best = minimize_scalar(
        lambda p: -(part.factor(p) ** parts) / p, bounds=(low, 32), method="bounded",
        options={"xatol": 1e-8},
    )  # fmt: skip
    return BitsFit(part, parts, 2 * float(solved.cost), float(best.x))
