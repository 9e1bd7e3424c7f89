"""What a fused kernel saves: bytes through memory, and launches, on the device at hand.

The model: XLA writes a wide value once, for every kernel that is to read it; `quantize` reads it,
twice where one scale for all is measured first; a product that sums over the rows of what lies, or
of what is in blocks along them, makes a transposed copy of it. A fused kernel reads what the value
is made of, once more where its scale is measured before; and writes what is asked for. A kernel
takes its launch, and its bytes at the device's bandwidth (`precir.kernels.choice`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from precir.ir import Node
from precir.kernels import choice
from precir.kernels.norm_quantize import gradient_parts

_WIDE: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """Bytes moved and kernels launched."""

    bytes: int = 0
    launches: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.launches + other.launches)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.bytes - other.bytes, self.launches - other.launches)

    @property
    def seconds(self) -> float:
        """On the GPU of this machine, or on an H100."""
        device, way = choice.device(), choice.table()["ways"]["triton"]
        return self.bytes / float(device["bytes"]) + self.launches * float(way["launch"])


@dataclass(frozen=True)
class Fused:
    """One value that a kernel computes and quantises, or could have.

    Attributes:
      kernel: its name.
      node: the quantisation that it took the place of.
      used: whether it did.
      times: how often it runs in one call, None if that depends on the data.
      saved: by the model, each time; negative where nothing is.
      reason: what it computes of what, or why it is not used.
    """

    kernel: str
    node: Node
    used: bool
    times: int | None
    saved: Cost
    reason: str


@dataclass(frozen=True)
class Work:
    """One value that is quantised, as the model sees it.

    Attributes:
      elements: of the value.
      width: bytes of each, where it is stored wide.
      read: bytes of what it is made of, 0 for nothing but itself.
      made: bytes of those of its arguments that would not be stored but for the kernel, and of the
        copies that its transpose does not spare.
      measured: whether its one scale is taken from itself.
      lying: whether it is quantised as it lies, which the fused kernel does in any case.
      apart: quantised copies of the other axes, each of which reads it again.
      copied: whether a product copies what lies to its transpose.
      turned: whether the fused kernel writes the transpose.
      others: whether something else reads the wide value.
    """

    elements: int
    width: int
    read: int
    made: int
    measured: bool
    lying: bool
    apart: int
    copied: bool
    turned: bool
    others: bool

    @property
    def separate(self) -> Cost:
        """As it is without the fused kernel."""
        wide = self.elements * self.width
        looks = 2 if self.measured else 1
        bytes_ = self.read + (wide if self.read else 0)  # made of its arguments, and written
        bytes_ += self.lying * (looks * wide + self.elements)
        bytes_ += self.apart * (wide + 3 * self.elements) + 2 * self.elements * self.copied
        launches = bool(self.read) + self.lying * looks + 2 * self.apart + self.copied
        return Cost(bytes_, launches)

    @property
    def together(self) -> Cost:
        """As it is with it."""
        wide = self.elements * self.width
        source = self.read or wide
        looks = 2 if self.measured else 1
        left = 0 if self.turned else self.apart
        bytes_ = looks * source + self.made + self.elements * (1 + self.turned)
        bytes_ += wide if self.read and (self.others or left) else 0
        bytes_ += left * (wide + 3 * self.elements)
        bytes_ += 2 * self.elements * (self.copied and not self.turned)
        return Cost(bytes_, looks + 2 * left + (self.copied and not self.turned))

    @property
    def saved(self) -> Cost:
        return self.separate - self.together


def width_of(dtype: str) -> int:
    """Bytes of an element of a wide format."""
    return _WIDE.get(dtype, 4)


def elements_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def gradients_saved(
    shape: tuple[int, ...], read: int, beside: list[int], made: int, written: int, sums: bool
) -> Cost:
    """What the kernel of a norm's gradients saves, of [..., columns].

    XLA reads what they are made of, ``read`` bytes of it, for the sums along the rows, for those
    over them if there are such ``sums``, and to write ``written`` bytes, with tensors of ``beside``
    bytes added. The kernel reads all once, of several of the latter their sum; ``made`` bytes would
    not be stored but for it. It writes its sums over rows in parts.
    """
    rows, columns = math.prod(shape[:-1]), shape[-1]
    separate = Cost((2 + sums) * read + sum(beside) + written, 2 + sums)
    several = len(beside) > 1
    parts = 16 * columns * gradient_parts(rows, columns)  # two sums, written and read
    together = read + made + sum(beside) + 2 * written * several + written + parts
    return separate - Cost(together, 1 + sums + several)
