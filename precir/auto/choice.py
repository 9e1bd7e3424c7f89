"""What was chosen, as a user sees it: a curve of cost against error, a recipe, and reasons."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from precir.auto.errors import Error
from precir.ir import Node
from precir.recipe import Recipe
from precir.target.cards import Card

if TYPE_CHECKING:
    from precir.auto.choose import Chooser

_ORDER = ("fp8", "fp8-block", "bfloat16", "float32")


@dataclass(frozen=True)
class Point:
    """Formats for a whole program.

    Attributes:
      name: "auto", or that of a uniform recipe.
      seconds: of one call on the card, by the model (`precir.auto.cost`), the update aside.
      error: predicted.
      formats: of each product and op that there was a choice for.
    """

    name: str
    seconds: float
    error: Error
    formats: Mapping[Node, str] = field(repr=False)

    def products(self, choice: Choice) -> Counter[str]:
        """How many products and convolutions have each format."""
        return Counter(self.formats[n] for n in choice._chooser.places.multiplied)


@dataclass(frozen=True)
class Choice:
    """Formats for every product and op of a function, chosen for a card.

    `str(choice)` and `rich.print(choice)` show it as tables.

    Attributes:
      function: its name.
      card: whose time is saved.
      tolerance: the error that was accepted.
      point: what was chosen.
      curve: the best found for other tolerances, the most exact first.
      uniform: the uniform recipes, by the same model.
    """

    function: str
    card: Card
    tolerance: float
    point: Point
    curve: tuple[Point, ...]
    uniform: tuple[Point, ...]
    _chooser: Chooser = field(repr=False, compare=False)

    @cached_property
    def recipe(self) -> Recipe:
        """What was chosen, as a recipe: `precir.compile(fn, recipe=choice.recipe)`; `.save` it."""
        return self._chooser.recipe(self.point)

    def recipe_of(self, point: Point) -> Recipe:
        """Another point of the curve as a recipe."""
        return self._chooser.recipe(point)

    def within(self, tolerance: float) -> Choice:
        """For another tolerance, without measuring again."""
        return self._chooser.choice(tolerance)

    def measure(self, recipes: Iterable[Recipe], batches: Iterable[tuple[Any, ...]]) -> list[Error]:
        """The error that recipes really add on batches, of the shapes that were chosen for: each
        is compiled and run beside the program in float32. State that a recipe stores in fewer bits
        is given as it is.
        """
        return self._chooser.measure(recipes, batches)

    def reasons(self) -> dict[str, str]:
        """Why each product has the format that it has, by name."""
        from precir.auto.wording import reasons_of

        names, why = self._chooser.names, reasons_of(self._chooser, self.point)
        return {names[n]: why[n] for n in self._chooser.places.multiplied if n in names}

    def plot(self, path: str | Path) -> None:
        """Draw the curve and the uniform recipes into an image file. Needs matplotlib."""
        from precir.auto.plot import plot

        plot(self, path)

    # -- as text -------------------------------------------------------------------------------

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        del console, options
        yield Text(self._answer(), "bold")
        yield Text(self._what())
        yield Text()
        yield self._points()
        yield Text()
        yield self._products()

    def __str__(self) -> str:
        to = io.StringIO()
        Console(file=to, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in to.getvalue().splitlines()) + "\n"

    def _answer(self) -> str:
        half = next(p for p in self.uniform if p.name == "bf16-mixed")
        time = self.point.seconds / half.seconds
        return (
            f"{self.function} for {self.card.name}: {time:.3f} times bf16-mixed's time, predicted "
            f"error {self.point.error.total:.2g} of {self.tolerance:g}"
        )

    def _what(self) -> str:
        if self.point.error.exchange is None:
            return "error: relative root mean square of the results; time: by a model of the card"
        return (
            "error: root mean square change of the loss, and "
            f"{self.point.error.exchange:.2g} times the relative mean square error of the "
            f"gradients{self._but_for()}; time: by a model of the card, the update aside"
        )

    def _but_for(self) -> str:
        from precir.auto.wording import noise_of

        count = len(self._chooser.without)
        if not count:
            return ""
        names = ", ".join(noise_of(self._chooser))
        return f", but for {count} that are noise in float32 already ({names})"

    def _points(self) -> Table:
        half = next(p for p in self.uniform if p.name == "bf16-mixed")
        table = Table(title="Cost against error", title_justify="left", title_style="bold")
        for heading in ("", "time", "error", "loss", "gradients", *_ORDER):
            table.add_column(heading, justify="right" if heading else "left")
        if self.point.error.exchange is None:
            table.columns[4].header = "results"
        rows = sorted([*self.curve, *self.uniform], key=lambda p: -p.seconds)
        for p in rows:
            counts = p.products(self)
            chosen = p is self.point or (p.name == "auto" and p == self.point)
            name = "auto, chosen" if chosen else p.name
            cells = [
                name, f"{p.seconds / half.seconds:.3f}", f"{p.error.total:.1e}",
                f"{p.error.loss:.1e}", f"{p.error.results:.1e}",
                *(str(counts[f]) for f in _ORDER),
            ]  # fmt: skip
            table.add_row(*cells, style="bold" if chosen else None)
        return table

    def _products(self) -> Table:
        from precir.auto.wording import entries

        table = Table(title="Products", title_justify="left", title_style="bold")
        for heading in ("op", "format", "why"):
            table.add_column(heading, overflow="fold")
        multiplies = ("/dot_general ", "/conv_general_dilated ")
        others = Counter[str]()
        for entry in entries(self._chooser, self.point):
            if any(op in f"/{entry.at}".replace("/backward ", "/") for op in multiplies):
                table.add_row(Text(entry.at), entry.format, entry.why)
            else:
                others[entry.format] += 1
        if others:
            counts = ", ".join(f"{n} in {f}" for f, n in others.items())
            table.caption = f"and of other ops unlike their class, {counts}: see .recipe.chosen"
            table.caption_justify = "left"
        return table
