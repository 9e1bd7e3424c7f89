"""Run a program and see what its tensors held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from precir.emit import emit, load
from precir.ir import Graph
from precir.passes.expose import RAW, Choose, Exposed, Probe, expose
from precir.program import Program


@dataclass(frozen=True)
class Instrumented:
    """A program that also returns what a probe takes of its values.

    Attributes:
      graph: the program with more results.
      exposed: what they are, in order.
      call: takes the dynamic arguments of the program; gives its result, and the list of its
        results as a graph: what `Exposed.output` and `Exposed.made` count in.
    """

    graph: Graph
    exposed: tuple[Exposed, ...]
    call: Callable[..., tuple[Any, list[jax.Array]]]


def instrument(
    program: Program, chosen: Choose, probe: Probe = RAW, *, graph: Graph | None = None
) -> Instrumented:
    """Emit and load `program`, or another graph of it, with more results."""
    given = program.graph if graph is None else graph
    exposing, exposed = expose(given, chosen, probe)
    count = len(exposing.outputs) - len(given.outputs)
    tree = _with_more(program.signature.result, count)
    signature = replace(program.signature, result=tree)
    emitted = emit(exposing, signature, jit="@jax.jit", doc="Observed by precir.")
    main: Callable[..., Any] = getattr(load(emitted), signature.name)

    def call(*args: Any, **kwargs: Any) -> tuple[Any, list[jax.Array]]:
        out, more = main(*args, **kwargs)
        return out, [*jax.tree.leaves(out), *more]

    return Instrumented(exposing, exposed, call)


def _with_more(result: Any, count: int) -> Any:
    """The structure of `(result, [count leaves])`."""
    outer = jax.tree.unflatten(result, range(result.num_leaves))
    return jax.tree.structure((outer, list(range(count))))
