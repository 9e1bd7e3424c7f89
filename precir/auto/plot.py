"""Cost against error, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precir.errors import PrecirError

if TYPE_CHECKING:
    from precir.auto.choice import Choice, Point
    from precir.auto.errors import Error


def plot(choice: Choice, path: str | Path, measured: Sequence[tuple[Point, Error]] = ()) -> None:
    """Draw the curve and the uniform recipes, as predicted, and what was measured of any of them.

    Raises PrecirError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PrecirError(
            "a plot takes matplotlib, which is not installed", fix="pip install matplotlib"
        ) from error
    half = next(p for p in choice.uniform if p.name == "bf16-mixed").seconds
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    points = [p for p in choice.curve if p.error.total > 0]
    axes.plot(
        [p.error.total for p in points], [p.seconds / half for p in points],
        "o-", color="C0", markersize=4, label="auto, predicted",
    )  # fmt: skip
    axes.plot(
        [choice.point.error.total], [choice.point.seconds / half],
        "o", color="C0", markersize=10, fillstyle="none", label="chosen",
    )  # fmt: skip
    for p in choice.uniform:
        if p.error.total > 0:
            axes.plot([p.error.total], [p.seconds / half], "s", color="C1", markersize=6)
            axes.annotate(
                p.name, (p.error.total, p.seconds / half), (6, 5), textcoords="offset points",
                fontsize=9, color="C1",
            )  # fmt: skip
    auto = [(p, e) for p, e in measured if p.name == "auto" and e.total > 0]
    if auto:
        axes.plot(
            [e.total for _, e in auto], [p.seconds / half for p, _ in auto],
            "x", color="C0", label="auto, measured",
        )  # fmt: skip
    rest = [(p, e) for p, e in measured if p.name != "auto" and e.total > 0]
    if rest:
        axes.plot(
            [e.total for _, e in rest], [p.seconds / half for p, _ in rest],
            "+", color="C1", markersize=10, label="uniform, measured",
        )  # fmt: skip
    axes.axvline(choice.tolerance, color="0.7", linewidth=1, linestyle=":")
    axes.annotate(
        "tolerance", (choice.tolerance, 1), (3, -10), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=8, color="0.5",
    )  # fmt: skip
    axes.set_xscale("log")
    if points:
        axes.set_xlim(left=max(min(p.error.total for p in points), choice.tolerance / 1e4))
    axes.set_xlabel(
        "error of the results" if choice.point.error.exchange is None else "error added to the loss"
    )
    axes.set_ylabel("time, bf16-mixed is 1")
    axes.set_title(f"{choice.function} on {choice.card.name}", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
