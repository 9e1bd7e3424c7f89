"""The passes in order: one visible list, each leaving a graph behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from precir.domains.fact import Fact
from precir.domains.stats import Stats
from precir.errors import RecipeError
from precir.ir import Graph, Value
from precir.kernels.loss_scale import FIRST_LOSS_SCALE
from precir.passes.assign import Assignment, assign_formats
from precir.passes.casts import insert_casts
from precir.passes.chosen import find_chosen
from precir.passes.delayed import HISTORY, delay_scales
from precir.passes.facts import Facts, infer_facts
from precir.passes.fused_cost import Fused
from precir.passes.gradients import narrow_gradients
from precir.passes.kernels import fuse_kernels
from precir.passes.layers import read_layers
from precir.passes.loss_scale import SCALE, STEPS, scale_loss
from precir.passes.narrow_residuals import narrow_residuals
from precir.passes.observe import named_values
from precir.passes.proved import fold_proved
from precir.passes.recomputed import hand_scales_on
from precir.passes.residuals import share_residuals
from precir.passes.scales import BAND, WIDE_BAND, Options, propagate_scales
from precir.passes.simplify import drop_dead, simplify
from precir.passes.static import add_static_scales
from precir.passes.storage import Stored, insert_storage
from precir.passes.stored import EIGHT, use_stored
from precir.passes.update import Update, fuse_updates
from precir.recipe import KEEP, Recipe
from precir.verify import verify


@dataclass(frozen=True)
class Extra:
    """An array that a pass carries from step to step: one more input of the program, after all
    others, and one more result. `initial` is what the first step is given, `about` says what it
    is, in a few words.
    """

    name: str
    initial: np.ndarray[Any, Any] | np.generic
    about: str = ""


@dataclass(frozen=True)
class State:
    """What flows through the passes: the program, the recipe, and what is decided so far.

    `given` is what the user said of the inputs, `observed` what was measured of values, by name;
    `facts` and `seen` are what follows for the graph as it stands until a pass changes formats,
    None where the recipe changes nothing. `stored` says which inputs and results are
    `ScaledArray`s, `carried` which result replaces which input in the next step, `extras` what
    passes carry from step to step, `updates` which parameter updates moved into loops,
    `fused` which values a kernel computes and quantises, or could have.
    """

    graph: Graph
    recipe: Recipe
    assignment: Assignment
    given: tuple[Fact | None, ...] = ()
    observed: Mapping[str, Stats] | None = None
    facts: Facts | None = None
    seen: Mapping[Value, Stats] | None = None
    stored: Stored = field(default_factory=Stored)
    carried: tuple[tuple[int, int], ...] = ()
    extras: tuple[Extra, ...] = ()
    updates: tuple[Update, ...] = ()
    fused: tuple[Fused, ...] = ()

    def carrying(self, graph: Graph, *extras: Extra) -> State:
        """With a graph that takes `extras` as its last inputs and returns them as its last
        results, in this order.
        """
        return replace(self, graph=graph, extras=(*self.extras, *extras))


@dataclass(frozen=True)
class Stage:
    """The program after one pass."""

    name: str
    graph: Graph


Pass = Callable[[State], State]

verifying = False  # whether every pass's result is verified: always in the tests


def _simplify(state: State) -> State:
    return replace(state, graph=simplify(state.graph))


def _storage(state: State) -> State:
    graph = insert_storage(state.graph, state.stored)
    if state.recipe.weight_gradient is not None:
        stored = {kind.shape for kind in state.stored.inputs.values()}
        graph = narrow_gradients(graph, stored, state.recipe.weight_gradient)
    return replace(state, graph=graph)


def _facts(state: State) -> State:
    """What every value holds; and what that decides is decided."""
    if state.recipe.mode == KEEP:
        return state
    if state.observed is not None:  # of this graph as it is: nothing is folded
        named = named_values(state.graph, "full")
        seen = {v: state.observed[name] for name, v in named.items() if name in state.observed}
        if state.observed and not seen:
            raise RecipeError(
                "these statistics name no tensor of this program",
                where=state.graph.name,
                fix='observe the same function under recipe "float32": precir.observe(fn, batches)',
            )
        return replace(state, facts=infer_facts(state.graph, state.given), seen=seen)
    facts = infer_facts(state.graph, state.given)
    if state.recipe.chosen:  # by names of this graph
        return replace(state, facts=facts)
    folded = fold_proved(state.graph, facts)
    if folded is not state.graph:
        facts = infer_facts(folded, state.given)
    return replace(state, graph=folded, facts=facts)


def _scales(state: State) -> State:
    """From here on, tensors are data under scales, of which what is known is not said again."""
    if state.recipe.loss_scaling:
        graph = drop_dead(scale_loss(state.graph, state.carried, state.facts))
        begun = Extra(SCALE, np.float32(FIRST_LOSS_SCALE)), Extra(STEPS, np.int32(0))
        return replace(state, facts=None, seen=None).carrying(graph, *begun)
    if state.recipe.scaling != "propagated":
        return state
    recipe = state.recipe
    roomy = recipe.compute in ("bfloat16", "float32") and recipe.forward is None
    wide = recipe.mode == KEEP or roomy  # nothing is in a format of few exponents
    options = Options(band=WIDE_BAND if wide else BAND, measure=not wide, seen=state.seen)
    graph = drop_dead(propagate_scales(state.graph, options, state.facts))
    return replace(state, graph=graph, facts=None, seen=None)


def _assign(state: State) -> State:
    chosen = find_chosen(state.graph, state.recipe.chosen)
    made = assign_formats(state.graph, state.recipe, state.facts, state.seen, chosen)
    if state.recipe.scaling == "static":
        name = state.recipe.name
        made.products = add_static_scales(state.graph, made.products, state.seen, state.facts, name)
    return replace(state, assignment=made)


def _casts(state: State) -> State:
    graph = insert_casts(state.graph, state.assignment, state.recipe)
    if state.recipe.scaling == "propagated":
        graph = drop_dead(graph)  # what is read in the format it was stored in alone
    return replace(state, graph=graph)


def _stored(state: State) -> State:
    """Where scales propagate, what is stored has entered as data under its scale already."""
    eight = any(kind.dtype in EIGHT for kind in state.stored.inputs.values())
    if not eight or state.recipe.scaling == "propagated":
        return state
    return replace(state, graph=use_stored(state.graph))


def _residuals(state: State) -> State:
    graph, recipe = share_residuals(state.graph), state.recipe
    if recipe.residuals is None:
        return replace(state, graph=graph)
    keep_last = recipe.last_product is not None
    graph, kept = narrow_residuals(graph, recipe.residuals, keep_last)
    assignment = replace(state.assignment, kept={**state.assignment.kept, **kept})
    return replace(state, graph=graph, assignment=assignment)


def _delayed(state: State) -> State:
    if state.recipe.scaling != "delayed":
        return state
    graph, points = delay_scales(state.graph, state.recipe.history)
    if not points:
        return replace(state, graph=graph)
    empty = np.zeros((points, state.recipe.history), np.float32)
    about = f"the largest elements seen, newest first: delayed scaling, {len(empty[0])} steps"
    return state.carrying(graph, Extra(HISTORY, empty, about))


def _update(state: State) -> State:
    """Last: what a gradient is in is decided, and the loops are as they will be emitted."""
    if state.recipe.update == "plain":
        return state
    graph, updates = fuse_updates(state.graph, state.carried)
    return replace(state, graph=graph, updates=updates)


def _kernels(state: State) -> State:
    if state.recipe.kernels == "plain":
        return state
    graph, fused = fuse_kernels(state.graph, state.recipe.compute, alone=state.recipe.sharded)
    return replace(state, graph=graph, fused=fused)


def _recomputed(state: State) -> State:
    """After all that changes what loops compute, and before kernels give values other names."""
    return replace(state, graph=hand_scales_on(state.graph))


def _layers(state: State) -> State:
    return replace(state, graph=read_layers(state.graph))


PASSES: tuple[tuple[str, Pass], ...] = (
    ("simplify", _simplify),
    ("storage", _storage),
    ("facts", _facts),
    ("scales", _scales),
    ("assign", _assign),
    ("casts", _casts),
    ("stored", _stored),
    ("residuals", _residuals),
    ("delayed", _delayed),
    ("update", _update),
    ("recomputed", _recomputed),
    ("kernels", _kernels),
    ("layers", _layers),
)


def run_passes(
    graph: Graph,
    recipe: Recipe,
    given: Sequence[Fact | None] = (),
    observed: Mapping[str, Stats] | None = None,
    stored: Stored | None = None,
    carried: Sequence[tuple[int, int]] = (),
) -> tuple[State, list[Stage]]:
    """Run every pass; returns the last state and the program after each pass, lowering first.

    `given` is what is known of the graph's inputs, None where nothing is; `observed` what was
    measured of its values, by the names that `precir.observe` gives them; `stored` which inputs
    and results are `ScaledArray`s, `carried` which result replaces which input in the next step.
    """
    state = State(
        graph,
        recipe,
        Assignment(),
        tuple(given),
        observed,
        stored=stored or Stored(),
        carried=tuple(carried),
    )
    stages = [Stage("lower", graph)]
    if verifying:
        verify(graph, after="lower")
    for name, run in PASSES:
        state = run(state)
        if verifying:
            verify(state.graph, after=name)
        stages.append(Stage(name, state.graph))
    return state, stages
