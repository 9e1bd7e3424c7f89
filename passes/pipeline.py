"""The passes in order: one visible list, each leaving a graph behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from precir.ir import Graph
from precir.passes.assign import Assignment, assign_formats
from precir.passes.casts import insert_casts
from precir.passes.residuals import share_residuals
from precir.passes.simplify import simplify
from precir.recipe import Recipe
from precir.verify import verify


@dataclass(frozen=True)
class State:
    """What flows through the passes: the program, the recipe, and what is decided so far."""

    graph: Graph
    recipe: Recipe
    assignment: Assignment


@dataclass(frozen=True)
class Stage:
    """The program after one pass."""

    name: str
    graph: Graph


Pass = Callable[[State], State]

verifying = False  # whether every pass's result is verified: always in the tests


def _simplify(state: State) -> State:
    return replace(state, graph=simplify(state.graph))


def _assign(state: State) -> State:
    return replace(state, assignment=assign_formats(state.graph, state.recipe))


def _casts(state: State) -> State:
    return replace(state, graph=insert_casts(state.graph, state.assignment, state.recipe))


def _residuals(state: State) -> State:
    return replace(state, graph=share_residuals(state.graph))


PASSES: tuple[tuple[str, Pass], ...] = (
    ("simplify", _simplify),
    ("assign", _assign),
    ("casts", _casts),
    ("residuals", _residuals),
)


def run_passes(graph: Graph, recipe: Recipe) -> tuple[State, list[Stage]]:
    """Run every pass; returns the last state and the program after each pass, lowering first."""
    state = State(graph, recipe, Assignment())
    stages = [Stage("lower", graph)]
    if verifying:
        verify(graph, after="lower")
    for name, run in PASSES:
        state = run(state)
        if verifying:
            verify(state.graph, after=name)
        stages.append(Stage(name, state.graph))
    return state, stages
