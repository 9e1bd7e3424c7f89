"""Scaling Laws for Floating-Point Quantization Training (Sun et al., arXiv 2501.02423).

    L = n N^-alpha + d D^-beta + eps + (D^beta / N^alpha) log2(B) / (gamma (E+1/2)^delta (M+1/2)^nu)

for numbers of E exponent and M mantissa bits (and a sign) with one scale for each B elements. Only
the weights, forward and backward, and the activations in the weights' gradient were quantised: not
the activations forward and not the incoming gradient, which costs more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq

from precir.planner.box import Box

COST = 6 / 16  # FLOPs = COST * N * P * D


@dataclass(frozen=True)
class FloatLaw:
    """The law as numbers, with the paper's own names; `block` elements share a scale."""

    n: float
    alpha: float
    d: float
    beta: float
    eps: float
    gamma: float
    delta: float
    nu: float
    box: Box
    source: str

    def penalty(
        self, params: float, tokens: float, exponent: float, mantissa: float, block: float = 128
    ) -> float:
        """What a format adds to the loss."""
        size = tokens**self.beta / params**self.alpha
        return float(size * self.strength(exponent, mantissa, block))

    def strength(self, exponent: float, mantissa: float, block: float = 128) -> float:
        """log2(B) / (gamma (E+1/2)^delta (M+1/2)^nu)."""
        held = (exponent + 0.5) ** self.delta * (mantissa + 0.5) ** self.nu
        return float(math.log2(block) / (self.gamma * held))

    def loss(
        self, params: float, tokens: float, exponent: float, mantissa: float, block: float = 128
    ) -> float:
        """The whole of it."""
        plain = self.n * params**-self.alpha + self.d * tokens**-self.beta + self.eps
        return float(plain + self.penalty(params, tokens, exponent, mantissa, block))

    def best_layout(self, bits: int) -> tuple[int, int]:
        """The best exponent and mantissa bits of a format with a sign, as (4, 3) for 8."""
        pairs = [(e, bits - 1 - e) for e in range(bits)]
        return min(pairs, key=lambda p: self.strength(*p))

    def critical_tokens(
        self, params: float, exponent: float, mantissa: float, block: float = 128
    ) -> float:
        """Past so many tokens more of them raise the loss."""
        rises = self.strength(exponent, mantissa, block) / params**self.alpha
        return float((self.d / rises) ** (1 / (2 * self.beta)))

    def best_bits_for_tokens(self, tokens: float, block: float = 128) -> float:
        """The best P for so many tokens, N and P sharing a budget; the layout is the best one."""
        power = self.delta + self.nu
        strength = tokens**self.beta * self._unit_strength(block)
        return float(((power - self.alpha) * strength / (self.alpha * self.n)) ** (1 / power))

    def best_bits(self, compute: float, block: float = 128) -> float:
        """The best P where N, D and P share FLOPs = 6/16 N P D. Grows with the budget."""

        def surplus(log_tokens: float) -> float:
            """How fast the loss rises with ln D, N and P the best for that D; times N^alpha."""
            tokens = math.exp(log_tokens)
            bits = self.best_bits_for_tokens(tokens, block)
            params = compute / (COST * bits * tokens)
            added = tokens**self.beta * self._unit_strength(block) * bits ** -(self.delta + self.nu)
            held = self.alpha * (self.n + added) + self.beta * added
            return float(held - self.beta * self.d * tokens**-self.beta * params**self.alpha)

        top = math.log(compute / COST) - 1
        return self.best_bits_for_tokens(math.exp(brentq(surplus, 10, top)), block)

    def _unit_strength(self, block: float) -> float:
        """The strength of one bit, layouts being as good as they can."""
        power = self.delta + self.nu  # E + 1/2 and M + 1/2 share P as delta and nu
        held = (self.delta / power) ** self.delta * (self.nu / power) ** self.nu
        return float(math.log2(block) / (self.gamma * held))

    def crossover(
        self,
        params: float,
        speedup: float = 2.0,
        few: tuple[float, float] = (4, 3),
        many: tuple[float, float] = (8, 7),
    ) -> float:
        """D / N past which the wider format wins at equal time and equal N; D is its tokens."""

        def gap(log_tokens: float) -> float:
            tokens = math.exp(log_tokens)
            return self.loss(params, speedup * tokens, *few) - self.loss(params, tokens, *many)

        return math.exp(brentq(gap, math.log(params), math.log(params) + 20)) / params


SUN = FloatLaw(
    n=69.2343,
    alpha=0.2368,
    d=68973.0621,
    beta=0.5162,
    eps=1.9061,
    gamma=11334.5197,
    delta=3.1926,
    nu=2.9543,
    box=Box(
        params=(41e6, 70e9), tokens=(10e9, 100e9), bits=(3, 16),
        numbers="activations forward and incoming gradients not quantised; 70B was one run",
    ),
    source="arXiv 2501.02423, table 2",
)  # fmt: skip
