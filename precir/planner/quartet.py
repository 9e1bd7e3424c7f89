"""Quartet and QuEST (arXiv 2505.14669, 2502.05003): efficiencies of forward and backward formats.

    L = (A (N eff_N)^-alpha + B (D eff_D)^-beta)^gamma + E

eff_N depends on the forward format alone and eff_D on the backward one. The constants are those of
the authors' public notebook (5b9d74c), fitted to runs that are public too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from precir.planner.box import Box


@dataclass(frozen=True)
class Pair:
    """A forward and a backward format under fixed budgets, and what they give.

    `params` and `tokens` are what the budgets afford; `speedup` that of training over the base.
    """

    forward: str
    backward: str
    params: float
    tokens: float
    speedup: float
    loss: float


@dataclass(frozen=True)
class Quartet:
    """The law as numbers, and efficiencies by scheme."""

    A: float
    alpha: float
    B: float
    beta: float
    E: float
    gamma: float
    forward: Mapping[str, float] = field(hash=False)
    backward: Mapping[str, float] = field(hash=False)
    box: Box
    source: str

    def loss(self, params: float, tokens: float, eff_n: float = 1.0, eff_d: float = 1.0) -> float:
        """L(N, D) with N eff_N effective weights and D eff_D effective tokens."""
        left = self.A * (params * eff_n) ** -self.alpha + self.B * (tokens * eff_d) ** -self.beta
        return float(left**self.gamma + self.E)

    def measured_eff_n(self, loss: float, params: float, tokens: float) -> float:
        """eff_N of one run, its backward format being wide; NaN for a loss that no N gives."""
        left = (loss - self.E) ** (1 / self.gamma) - self.B * tokens**-self.beta
        return float((left / self.A) ** (-1 / self.alpha) / params) if left > 0 else float("nan")

    def pairs(
        self,
        params: float,
        tokens: float,
        speed_forward: float = 2.0,
        speed_backward: float = 2.0,
    ) -> tuple[Pair, ...]:
        """FP4 or FP8, forward and backward, at the budgets of an all-FP8 model: best first.

        The budget of inference fixes N and that of training N D: a forward pass that is
        `speed_forward` times as fast affords as many times the weights. FP8 itself counts as free
        of loss.
        """
        made = []
        for forward in ("FP8", "FP4"):
            for backward in ("FP8", "FP4"):
                fast = speed_forward if forward == "FP4" else 1.0
                back = speed_backward if backward == "FP4" else 1.0
                training = training_speedup(fast, back)
                n, d = params * fast, tokens * training / fast
                eff_n = self.forward["FP4"] if forward == "FP4" else 1.0
                eff_d = self.backward["FP4"] if backward == "FP4" else 1.0
                made.append(Pair(forward, backward, n, d, training, self.loss(n, d, eff_n, eff_d)))
        return tuple(sorted(made, key=lambda p: p.loss))


def training_speedup(forward: float, backward: float) -> float:
    """Of a step of which a third is forward: 1 / ((1/3) / s_fwd + (2/3) / s_bwd)."""
    return 1 / (1 / 3 / forward + 2 / 3 / backward)


QUARTET = Quartet(
    A=1.2744e5,
    alpha=0.57852,
    B=4.6583e5,
    beta=0.53888,
    E=1.34085,
    gamma=0.27642,
    forward={"FP4": 0.6452, "FP4 stochastic": 0.433, "FP4 nearest": 0.606, "FP4 Eden": 0.639},
    backward={"FP4": 0.8935, "FP4 nearest": 0.819, "FP4 Eden": 0.890, "FP4 QuEST": 0.181},
    box=Box(
        params=(30e6, 822e6), tokens=(0.75e9, 160e9), ratio=(24, 1575), bits=(4, 16),
        numbers="MXFP4",
    ),
    source="arXiv 2505.14669, public notebook 5b9d74c",
)  # fmt: skip

# N_eff / N of QuEST by bits of weights and activations: Hadamard transform and trust estimator.
# Inverted from the 104 public runs with the base above (see `fit.efficiencies`).
QUEST_BITS: Mapping[int, float] = {1: 0.047, 2: 0.185, 3: 0.444, 4: 0.706, 8: 1.008, 16: 1.017}
