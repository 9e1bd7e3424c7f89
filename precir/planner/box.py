"""Where a law was fitted, and what is said where it is asked beyond that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_WORDS: Final = {"params": "N", "tokens": "D", "ratio": "D/N", "bits": "bits"}


@dataclass(frozen=True)
class Box:
    """The ranges of the runs behind a law.

    Attributes:
      params, tokens, ratio, bits: lowest and highest, tokens / params for `ratio`.
      numbers: what kind of quantisation was run, as "integers, forward only".
    """

    params: tuple[float, float] | None = None
    tokens: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    bits: tuple[float, float] | None = None
    numbers: str = ""

    def outside(
        self,
        params: float | None = None,
        tokens: float | None = None,
        bits: float | None = None,
    ) -> tuple[str, ...]:
        """What of a question lies beyond the runs: `("N 8B > 1.7B",)`; nothing if all is within.

        The ratio is asked about where both are given and each is within its own range.
        """
        said = [
            _beyond(name, value, getattr(self, name))
            for name, value in (("params", params), ("tokens", tokens), ("bits", bits))
            if value is not None
        ]
        found = [s for s in said if s]
        if params and tokens and not found:
            found = [s for s in [_beyond("ratio", tokens / params, self.ratio)] if s]
        return tuple(found)


def _beyond(name: str, value: float, limits: tuple[float, float] | None) -> str:
    if limits is None:
        return ""
    lo, hi = limits
    if value > hi * (1 + 1e-9):
        return f"{_WORDS[name]} {count(value)} > {count(hi)}"
    if value < lo * (1 - 1e-9):
        return f"{_WORDS[name]} {count(value)} < {count(lo)}"
    return ""


def count(value: float) -> str:
    """`8B`, `1.5T`, `220M`: a number of weights or tokens in three digits."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * (1 - 1e-9):
            scaled = value / size
            return f"{scaled:,.0f}{unit}" if scaled >= 1000 else f"{scaled:.3g}{unit}"
    return f"{value:.3g}"
