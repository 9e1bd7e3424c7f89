"""What recipes really add: the emitted programs beside the plain one, on the same batches."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from precir.auto.errors import Error
from precir.auto.sense import looked_at
from precir.observe import emitted_with
from precir.program import Program


class Measured:
    """A program whose loss and gradients (or results) are looked at."""

    def __init__(self, program: Program, loss: int | None, without: Container[int] = ()) -> None:
        graph = program.graph
        found = [v for i, v in enumerate(looked_at(graph, loss)) if i not in without]
        main = emitted_with(program, graph.with_(outputs=(*graph.outputs, *found)))

        @jax.jit
        def run(args: Sequence[Any], captured: Sequence[Any]) -> Any:
            out, more = main(*args, **{f"captured_{i}": v for i, v in enumerate(captured)})
            return np.float32(0) if loss is None else jax.tree.leaves(out)[loss], more

        self._run: Any = run  # the update is not read, so it is not compiled either

    def __call__(self, args: Sequence[Any], captured: Sequence[Any]) -> tuple[float, list[Any]]:
        loss, more = jax.device_get(self._run(args, captured))
        return float(loss), [np.asarray(x, np.float64) for x in more]


def measured_errors(
    plain: Program,
    others: Iterable[Program],
    loss: int | None,
    batches: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    exchange: float | None,
    without: Container[int] = (),
) -> list[Error]:
    """The error of each of `others` against `plain`, as `Error` has it, over all batches: of the
    loss the root mean square change, of gradients the relative mean square error, those
    in the places `without` aside.
    """
    run = Measured(plain, loss, without)
    right = [run(*batch) for batch in batches]
    found = []
    for program in others:
        other = Measured(program, loss, without)
        changes, errors = [], []
        for batch, (loss_then, results_then) in zip(batches, right, strict=True):
            loss_now, results = other(*batch)
            changes.append((loss_now - loss_then) ** 2)
            errors.append(_relative(results_then, results))
        found.append(Error(math.sqrt(np.mean(changes)), float(np.mean(errors)), exchange))
    return found


def _relative(right: Sequence[Any], found: Sequence[Any]) -> float:
    """The mean over all elements of the square of the error over the mean square of its array."""
    total = count = 0.0
    for a, b in zip(right, found, strict=True):
        size = float(np.mean(a * a))
        count += a.size
        if size:
            total += a.size * float(np.mean((a - b) ** 2)) / size
    return total / max(count, 1)
