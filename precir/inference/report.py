"""What quantising a model for inference saved, and what it cost, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class WeightRow:
    """One array of the weights.

    Attributes:
      name: as `params["up"]["kernel"]`.
      shape: its shape.
      format: that of its data, as "E4M3", or its own where it stays as it is.
      block: over what one scale reaches, as `ScaledArray.block`; () for one scale, None without.
      scales: how many scales it has.
      before, bytes: bytes as given, and as stored with its scales.
      snr: power of the weight over that of what storing changed of it, in dB; infinite where
        nothing did, None where it is not stored.
      reason: what reads it; of one that stays wide, why.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    block: tuple[int, ...] | None
    scales: int
    before: int
    bytes: int
    snr: float | None
    reason: str


@dataclass(frozen=True)
class LayerRow:
    """One product of the program, and what its result differs by from the unquantised one's.

    Attributes:
      scope, where: the module it is in, and the user's line.
      op: JAX's name of it.
      formats: of its operands, as "E4M3 x E4M3".
      weights: names of the weights that it takes.
      error: root mean square of the difference over that of the unquantised result, on all
        batches; that of all layers before it is in it. None if it never ran, or was not seen.
      layers: the same for each iteration of the loops that it is in.
      reason: why it is not in 8 bits, "" if it is.
    """

    scope: str
    where: str
    op: str
    formats: str
    weights: tuple[str, ...]
    error: float | None
    layers: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class OutputRow:
    """One floating-point result: the same error, and the cosine between rows (its last axis) of
    the two results, on average and at worst; None of scalars.
    """

    name: str
    error: float | None
    cosine: float | None
    worst: float | None


@dataclass(frozen=True)
class RangeRow:
    """One activation that has a static scale.

    Attributes:
      scope, where: of the product that it is quantised for.
      limit: the largest magnitude that its scale holds.
      beyond: how many elements of the batches were larger, and saturated.
      elements: how many there were.
    """

    scope: str
    where: str
    limit: float
    beyond: int
    elements: int


@dataclass(frozen=True)
class InferenceReport:
    """Bytes and accuracy of a quantised model.

    Prints as tables with `rich.print`; `str` gives the same as plain text, `data` as plain data.

    Attributes:
      name, recipe: of the model, and of what it was quantised by.
      batches: on how many batches errors were measured.
      weights: one row for each array of the weights.
      products: one row for each product of the program.
      outputs: one row for each floating-point result.
      ranges: one row for each activation under a static scale.
    """

    name: str
    recipe: str
    batches: int
    weights: tuple[WeightRow, ...]
    products: tuple[LayerRow, ...]
    outputs: tuple[OutputRow, ...]
    ranges: tuple[RangeRow, ...]

    @property
    def before(self) -> int:
        """Bytes of all weights as given."""
        return sum(w.before for w in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of all weights as stored, scales and all."""
        return sum(w.bytes for w in self.weights)

    @property
    def ratio(self) -> float:
        """The one over the other."""
        return self.bytes / self.before if self.before else 1.0

    @property
    def beyond(self) -> int:
        """How many elements of activations were past their calibrated range, and saturated."""
        return sum(r.beyond for r in self.ranges)

    @property
    def data(self) -> dict[str, Any]:
        """As dicts, tuples, strings and numbers."""
        sums = {"before": self.before, "bytes": self.bytes, "ratio": self.ratio}
        return asdict(self) | sums | {"beyond": self.beyond}

    def __str__(self) -> str:
        from precir.inference.table import plain

        return plain(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from precir.inference.table import screen

        yield from screen(self)
