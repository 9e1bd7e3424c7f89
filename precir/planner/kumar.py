"""Scaling Laws for Precision (Kumar et al., arXiv 2411.04330): low precision as fewer weights.

Bits P take of N weights all but N_eff = N f_w(P_w) f_a(P_a) f_kv(P_kv), with

    f(P) = 1 - exp(-P / gamma + n),        L = A N_eff^-alpha + B D^-beta + E.

The paper's main text leaves the offsets n out; its fit (appendix K, table 2) has them, and only
with them does the law give what the paper says: an optimum of 7 bits, activations that diverge at
3. "i" of that table are the activations. The printed equations 6, 7 and 28 contradict each other;
what stands here is derived anew: where N and D are free and cost is as N D P, the best P has
d ln F / d ln P = 1, the largest F(P) / P, whatever the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.optimize import brentq, minimize_scalar

from precir.planner.box import Box
from precir.planner.errors import PlanError


@dataclass(frozen=True)
class Part:
    """How a kind of tensor answers to bits: f(P) = 1 - exp(-P / gamma + offset)."""

    gamma: float
    offset: float

    def factor(self, bits: float) -> float:
        """f(P): the part of the weights that is left; not above 0 where training diverges."""
        return 1 - math.exp(-bits / self.gamma + self.offset)

    @property
    def least(self) -> float:
        """The bits at which nothing is left."""
        return self.gamma * self.offset


@dataclass(frozen=True)
class Optimum:
    """The best division of a budget: bits, weights, tokens, and the loss they give."""

    bits: float
    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Kumar:
    """The law as numbers; `loss`, `factor` and what follows from them.

    Attributes:
      A, alpha, B, beta, E: of the loss without quantisation.
      weights, activations, cache: of each kind of tensor (the cache is that of keys and values).
      C_T, gamma_D, gamma_N, gamma_post, b: of quantisation after training.
      C_w: how training in few bits helps quantisation after it (equations 8 and 9). Not
        published; None means unknown.
      box, source: where it was fitted, and where it is from.
    """

    A: float
    alpha: float
    B: float
    beta: float
    E: float
    weights: Part
    activations: Part
    cache: Part
    C_T: float
    gamma_D: float
    gamma_N: float
    gamma_post: float
    b: float
    C_w: float | None
    box: Box
    source: str

    # -- training in few bits --------------------------------------------------------------------

    def factor(
        self, bits: float, activations: float | None = None, cache: float | None = None
    ) -> float:
        """F = N_eff / N for weights in `bits`; the others in as many unless given.

        Raises:
          PlanError: so few bits that the law leaves nothing (and the paper's runs diverged).
        """
        parts = (
            ("weights", self.weights, bits),
            ("activations", self.activations, bits if activations is None else activations),
            ("keys and values", self.cache, bits if cache is None else cache),
        )
        product = 1.0
        for name, part, given in parts:
            found = part.factor(given)
            if found <= 0:
                raise PlanError(
                    f"{name} in {given:g} bits: the law leaves no effective weights at or below "
                    f"{part.least:.2f} bits, where its runs diverged",
                    fix=f"more than {part.least:.2f} bits",
                )
            product *= found
        return product

    def loss(self, params: float, tokens: float, factor: float = 1.0) -> float:
        """L(N, D) with N_eff = factor * N."""
        return float(self.E + self.of_params(params * factor) + self.B * tokens**-self.beta)

    def of_params(self, effective: float) -> float:
        """A N_eff^-alpha."""
        return float(self.A * effective**-self.alpha)

    def penalty(self, params: float, factor: float) -> float:
        """What a factor adds to the loss of `params` weights."""
        return self.of_params(params * factor) - self.of_params(params)

    def measured_factor(self, loss: float, params: float, wide_loss: float) -> float:
        """F from two runs that differ in precision alone (equation 30)."""
        left = (loss - wide_loss) / self.A + params**-self.alpha
        return float(left ** (-1 / self.alpha) / params)

    # -- free N and D ----------------------------------------------------------------------------

    def best_bits(self) -> float:
        """P*: the largest F(P) / P, where cost is as N D P. The same at every budget."""
        low = self.least + 1e-6
        return _largest(lambda p: self.factor(p) / p, low, 32)

    @property
    def least(self) -> float:
        """The bits at or below which `factor` refuses, all parts in as many."""
        return max(self.weights.least, self.activations.least, self.cache.least)

    def effective_compute(self, bits: float) -> float:
        """The part of a budget that these bits make use of: F(P) / P over that at the best."""
        best = self.best_bits()
        return self.factor(bits) / bits / (self.factor(best) / best)

    def plateau(self, slack: float = 0.04) -> tuple[float, float]:
        """The bits, lowest and highest, that waste no more of the budget than `slack`."""
        best = self.best_bits()

        def short(p: float) -> float:
            return self.effective_compute(p) - (1 - slack)

        return float(brentq(short, self.least + 1e-6, best)), float(brentq(short, best, 32))

    def break_even(self, few: float, many: float) -> float:
        """How much faster `few` bits have to be than `many`, N and D free: F(many) / F(few)."""
        return self.factor(many) / self.factor(few)

    def divide(self, compute: float, bits: float) -> Optimum:
        """The best N and D for FLOPs = 6 N D P / 16 in these bits."""
        return self.divide_by(compute * 16 / bits, self.factor(bits), bits)

    def divide_by(self, flops: float, factor: float, bits: float = 16) -> Optimum:
        """The best N and D with 6 N D = flops: alpha A N_eff^-alpha = beta B D^-beta there."""
        product = flops / 6
        ratio = self.alpha * self.A * factor**-self.alpha / (self.beta * self.B)
        params = (ratio * product**self.beta) ** (1 / (self.alpha + self.beta))
        tokens = product / params
        return Optimum(bits, params, tokens, self.loss(params, tokens, factor))

    def best(self, compute: float) -> Optimum:
        """The best bits, N and D for a budget, by search (that it is `best_bits` is a theorem)."""
        low = self.least + 1e-6
        bits = _largest(lambda p: -self.divide(compute, p).loss, low, 32)
        return self.divide(compute, bits)

    # -- fixed N ---------------------------------------------------------------------------------

    def best_bits_at(self, params: float, tokens_at_16: float) -> float:
        """The best P for so many weights, where fewer bits buy more tokens at the same cost.

        D = 16 / P of those that 16 bits would afford. More than `best_bits` where a model is
        trained long.
        """

        def loss(p: float) -> float:
            return self.loss(params, tokens_at_16 * 16 / p, self.factor(p))

        return _largest(lambda p: -loss(p), self.least + 1e-6, 64)

    def crossover(self, few: float, many: float, speedup: float) -> float:
        """D / N past which `many` bits win at equal time and equal N, though `few` see `speedup`
        times the tokens. D is that of `many`. The same for every N, alpha being beta.
        """
        gained = self.B * (1 - speedup**-self.beta)
        lost = self.A * (self.factor(few) ** -self.alpha - self.factor(many) ** -self.alpha)
        return float((gained / lost) ** (1 / self.beta))

    # -- quantisation after training ---------------------------------------------------------------

    def after_training(
        self, params: float, tokens: float, bits: float, trained: float | None = None
    ) -> float:
        """delta: what quantising the weights to `bits` adds to the loss of a trained model.

        `trained`: the bits of the weights in training, 16 if not given.

        Raises:
          PlanError: trained in fewer than 16 bits, and `C_w` is unknown.
        """
        delta = self._after(params, tokens, bits)
        if trained is None or trained >= 16:
            return delta
        if self.C_w is None:
            raise PlanError(
                "how training in few bits helps quantisation after it has a constant C_w that the "
                "paper does not publish",
                fix="dataclasses.replace(law, C_w=...); the paper illustrates with 1",
            )
        kept = self.weights.factor(trained) ** -self.gamma_N
        return float(delta * kept * (1 - math.exp(-self.C_w * max(0.0, trained - bits))))

    def _after(self, params: float, tokens: float, bits: float) -> float:
        size = tokens**self.gamma_D / params**self.gamma_N
        return float(self.C_T * size * math.exp(-bits / self.gamma_post + self.b))

    def critical_tokens(self, params: float, bits: float) -> float:
        """Past so many tokens the loss after quantisation rises with training (equation 13)."""
        rises = self.gamma_D * self.C_T * math.exp(-bits / self.gamma_post + self.b)
        falls = self.beta * self.B * params**self.gamma_N
        return float((falls / rises) ** (1 / (self.gamma_D + self.beta)))


def _largest(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f, of one maximum, is largest."""
    found = minimize_scalar(
        lambda x: -f(math.exp(x)),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(math.exp(found.x))


KUMAR = Kumar(
    A=4.299e3,
    alpha=0.4965,
    B=1.806e4,
    beta=0.4965,
    E=2.7648,
    weights=Part(2.6745, 0.3037),
    activations=Part(2.2102, 1.4072),
    cache=Part(0.9578, 2.4185),
    C_T=0.0598,
    gamma_D=0.5068,
    gamma_N=0.3439,
    gamma_post=0.5907,
    b=1.1277,
    C_w=None,
    box=Box(
        params=(30e6, 1.7e9), tokens=(1.5e9, 26e9), ratio=(5, 1000), bits=(3, 16),
        numbers="integers, per-tensor activations, forward only",
    ),
    source="arXiv 2411.04330, appendix K, table 2",
)  # fmt: skip

# Appendix N: weights only, 140 runs, the other constants as above.
KUMAR_FLOAT_WEIGHTS = Part(2.8111, 0.1240)
