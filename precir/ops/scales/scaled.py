"""A tensor as data times a power-of-two scale, and what a scale law is given.

The scale of a tensor that is known while compiling is a number; one that is not is a product of
powers of scalars that are (the scales of arguments, and those measured on the way). Products of
scales are kept as such, so that most cancel and what is left is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from precir.domains.fact import Fact
from precir.ir import Node, Operand, Type

Powers = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scale:
    """2**exponent times the product of `base ** power`: bases are numbered scalars of the program,
    known while it runs, and ordered by number; no power is zero.
    """

    exponent: int = 0
    powers: Powers = ()

    @property
    def static(self) -> bool:
        """Whether it is known while compiling."""
        return not self.powers

    @property
    def far(self) -> bool:
        """Whether the powers are too high for the product to be computed in float32, where no
        scalar of the program is far from one: what it is made of is used up first.
        """
        return abs(self.exponent) > 60 or any(abs(p) > 2 for _, p in self.powers)

    def __mul__(self, other: Scale) -> Scale:
        if not self.powers or not other.powers:
            return Scale(self.exponent + other.exponent, self.powers or other.powers)
        total = dict(self.powers)
        for base, power in other.powers:
            total[base] = total.get(base, 0) + power
        kept = tuple(sorted((b, p) for b, p in total.items() if p))
        return Scale(self.exponent + other.exponent, kept)

    def __pow__(self, n: int) -> Scale:
        if n == 0:
            return ONE
        return Scale(self.exponent * n, tuple((b, p * n) for b, p in self.powers))

    def __truediv__(self, other: Scale) -> Scale:
        return self * other**-1

    def shifted(self, bits: int) -> Scale:
        """Times 2**bits."""
        return replace(self, exponent=self.exponent + bits) if bits else self


ONE = Scale()


@dataclass(frozen=True)
class Scaled:
    """A tensor of the program: its elements are `data * scale`.

    Attributes:
      data: what stands in the program for it.
      scale: None where any scale is right: data of zeros, infinities and NaN, and what is no
        floating-point number at all.
      size: log2 of the typical magnitude of the data's elements, as far as it can be guessed.
      blind: how many products the guess has gone through since something was measured.
      raw: whether it came as it is, moved at most, and nobody knows how large it is.
      drift: the unknown factors by whose powers the size may be off (`precir.passes.drift`).
    """

    data: Operand
    scale: Scale | None
    size: float = 0.0
    blind: int = 0
    raw: bool = False
    drift: tuple[tuple[int, float], ...] = ()

    @property
    def type(self) -> Type:
        return self.data.type

    @property
    def magnitude(self) -> float:
        """log2 of the typical magnitude of the elements, bases counted as one."""
        return self.size + (self.scale.exponent if self.scale else 0)


class Builder(Protocol):
    """The rewriting that calls a law."""

    def emit(self, node: Node, inputs: Sequence[Operand], **changes: Any) -> Node:
        """`node` on other operands, in the new program; `changes` as in `Node.like`."""

    def plain(self, x: Scaled) -> Operand:
        """The value itself, data times scale, in float32 at least or the dtype it was traced in."""

    def under(self, x: Scaled, scale: Scale | None) -> Operand:
        """The data that stands for `x` under another scale."""

    def common(self, xs: Sequence[Scaled]) -> Scale | None:
        """One scale for all: that of the largest; None if any will do for each."""

    def named(self, scale: Scale) -> Scale:
        """The same scale as a scalar of its own, of which further powers can be taken."""

    def root(self, x: Scaled, n: int) -> tuple[Operand, Scale, float]:
        """Data, scale and size of `x` such that the n-th root of the scale is a power of two; and
        that root instead of the scale.
        """

    def typical(self, scale: Scale) -> float:
        """log2 of a scale, as far as it can be guessed."""

    def fact(self, index: int) -> Fact | None:
        """What is proved of the n-th operand's value."""


Law = Callable[[Node, Sequence[Scaled], Builder], Sequence[Scaled]]


def is_float(dtype: str) -> bool:
    """A dtype that scales are for: a real floating-point number."""
    return dtype in ("float64", "float32", "bfloat16", "float16") or dtype.startswith("float8")
