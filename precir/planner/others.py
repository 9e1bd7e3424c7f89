"""Laws of single questions: quantisation after training, W4A4, and how long to train quantised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from precir.planner.box import Box


@dataclass(frozen=True)
class AfterTraining:
    """Ouyang et al.: delta = k D^beta / (N^alpha P^gamma), GPTQ of Pythia models."""

    k: float
    alpha: float
    beta: float
    gamma: float
    box: Box
    source: str

    def delta(self, params: float, tokens: float, bits: float) -> float:
        """What quantising the weights to `bits` adds to the loss."""
        return float(self.k * tokens**self.beta / (params**self.alpha * bits**self.gamma))

    def tokens_for(self, delta: float, params: float, bits: float) -> float:
        """The tokens after which it adds so much."""
        grown = delta * params**self.alpha * bits**self.gamma / self.k
        return float(grown ** (1 / self.beta))


OUYANG = AfterTraining(
    k=0.017, alpha=0.2261, beta=0.5251, gamma=5.4967,
    box=Box(params=(160e6, 12e9), tokens=(1e9, 300e9), bits=(2, 4), numbers="GPTQ, weights"),
    source="arXiv 2411.17691",
)  # fmt: skip


@dataclass(frozen=True)
class FourBits:
    """Chen et al.: the error of INT4 training, k D^gD (log2 G)^gG / N^gN, G elements to a scale.

    `schemes`: (k, gN, gD, gG) by what is in 4 bits.
    """

    schemes: Mapping[str, tuple[float, float, float, float]] = field(hash=False)
    box: Box
    source: str

    def delta(self, params: float, tokens: float, group: float, scheme: str = "W4A4") -> float:
        """What the scheme adds to the loss."""
        k, g_n, g_d, g_g = self.schemes[scheme]
        return float(k * tokens**g_d * math.log2(group) ** g_g / params**g_n)


CHEN = FourBits(
    schemes={
        "W4A4": (0.1582, 0.2186, 0.0745, 0.7779),
        "W4A16": (0.2522, 0.3589, 0.1610, 0.3533),
        "W16A4": (0.1004, 0.1816, 0.0331, 0.9812),
    },
    box=Box(
        params=(74e6, 594e6), tokens=(10e9, 100e9), bits=(4, 4),
        numbers="INT4, largest magnitude; validated at 973M and 200B",
    ),
    source="arXiv 2505.14302",
)  # fmt: skip


@dataclass(frozen=True)
class QuantisedShare:
    """Dremov et al.: the part of a run to train quantised, f = exp(ln S - a / ln S) / S."""

    a: float
    box: Box
    source: str

    def share(self, params: float, tokens: float, bits: float) -> float:
        """The best part of `tokens` in all, for weights of `bits`; 0 to 1.

        S is tokens for each byte of weights; below e there is no optimum inside, and all is
        quantised.
        """
        log = math.log(tokens / (params * bits / 8))
        return math.exp(-self.a / log) if log > 0 else 1.0


DREMOV = QuantisedShare(
    a=6.7297,
    box=Box(
        params=(86e6, 2.2e9), tokens=(2.3e9, 1.4e12), bits=(1, 6), numbers="integers, weights only"
    ),
    source="arXiv 2509.22935",
)
