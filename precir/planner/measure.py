"""A recipe's N_eff / N for the user's own small model, from short runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from precir.compile import Compiled, compile
from precir.planner.errors import PlanError
from precir.planner.kumar import KUMAR, Kumar
from precir.planner.reading import read
from precir.recipe import Recipe


@dataclass(frozen=True)
class Measured:
    """What short runs say of one recipe.

    Attributes:
      recipe, base: their names.
      params: weights of the model.
      gap: loss under the recipe minus that under the base, over the last quarter of the steps.
      error: standard error of the gap, over four pieces of that quarter.
      factor: N_eff / N that costs such a gap by the law (equation 30); 1 where there is no gap.
      seen: whether the gap is larger than twice its error.
    """

    recipe: str
    base: str
    params: int
    gap: float
    error: float
    factor: float

    @property
    def seen(self) -> bool:
        """Whether there is a difference."""
        return abs(self.gap) > 2 * self.error

    def __str__(self) -> str:
        line = (
            f"{self.recipe}: N_eff/N {self.factor:.3f}, loss {self.gap:+.4f} +- {self.error:.4f} "
            f"over {self.base}"
        )
        return line if self.seen else f"{line} (within the noise of these runs: train longer)"


def measure(
    fn: Callable[..., Any],
    args: Sequence[Any],
    batches: Iterable[Any],
    recipe: str | Recipe = "fp8",
    *,
    base: str | Recipe = "float32",
    law: Kumar = KUMAR,
) -> Measured:
    """Train twice on the same batches from the same start, and invert the law for what differs.

    `fn(*state, batch)` returns the new state, in the order given, and a loss last; `args` are the
    state at the start. The law's A and alpha turn a gap into effective weights, so that the result
    is as good as they are for this model and data.

    Raises:
      PlanError: fewer than 16 batches, losses that are not finite, or a step of another form.
    """
    given = list(batches)
    if len(given) < 16:
        raise PlanError(f"{len(given)} batches are too few to see a difference", fix="16 or more")
    runs = []
    for name in (base, recipe):
        step = compile(fn, recipe=name)
        runs.append((step, np.array(_train(step, args, given))))
    (wide, wide_losses), (low, low_losses) = runs
    for step, losses in runs:
        if not np.isfinite(losses).all():
            raise PlanError(f"the loss under {step.recipe.name} is not finite")
    last = (low_losses - wide_losses)[-(len(given) // 4) :]
    pieces = [float(np.mean(p)) for p in np.array_split(last, 4)]
    gap, error = float(np.mean(last)), float(np.std(pieces, ddof=1)) / math.sqrt(len(pieces))
    params = read(wide.program(*args, given[0])).params
    factor = law.measured_factor(gap, params, 0.0) if gap > 0 else 1.0
    return Measured(low.recipe.name, wide.recipe.name, params, gap, error, factor)


def _train(step: Compiled, args: Sequence[Any], batches: Sequence[Any]) -> list[float]:
    """The loss of every step."""
    begun = step.init(*args, batches[0])
    state, losses = begun[:-1], []
    for batch in batches:
        made = step(*state, batch)
        if not isinstance(made, tuple) or len(made) != len(state) + 1 or np.shape(made[-1]) != ():
            raise PlanError(
                "the step does not return its state and a loss",
                fix="step(*state, batch) -> (*state, loss)",
            )
        *state, loss = made
        losses.append(float(jax.device_get(loss)))
    return losses
