"""One traced signature of a function, all the way to an imported module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import jax
import jax.extend
import numpy as np

from precir.domains.fact import Fact
from precir.domains.stats import Stats
from precir.emit import Emitted, Signature, emit, load, signature_of
from precir.errors import RecipeError
from precir.ir import Graph
from precir.lower import lower_jaxpr
from precir.packed import PLAIN, Layout
from precir.passes.assign import Assignment
from precir.passes.facts import Facts, infer_facts
from precir.passes.fused_cost import Fused
from precir.passes.pipeline import Stage, run_passes
from precir.passes.update import Update
from precir.recipe import Recipe
from precir.state import ProgramState, StateFinder


@dataclass(frozen=True)
class Program:
    """What precir made of a function at one signature.

    Attributes:
      signature: names and pytrees of its arguments and result.
      stages: the program after lowering and after each pass.
      assignment: the formats chosen, and how each product runs.
      recipe: what they were chosen by.
      captured: values of an outer trace that the function closes over, passed along at each call.
      source: the user's function, for its name and place.
      jit: the decorator of its emitted main function.
      effects: its side effects, as JAX describes them.
      given: what the user said of each input's numbers, None where nothing.
      state: what is carried from step to step.
      updates: which parameter updates moved into loops, and which could not.
      fused: which values a kernel computes and quantises, and which it could have.
    """

    signature: Signature
    stages: tuple[Stage, ...]
    assignment: Assignment
    recipe: Recipe
    captured: tuple[Any, ...]
    source: Callable[..., Any]
    jit: str = "@jax.jit"
    effects: Any = frozenset()
    given: tuple[Fact | None, ...] = ()
    state: ProgramState = field(default_factory=ProgramState)
    updates: tuple[Update, ...] = ()
    fused: tuple[Fused, ...] = ()

    @cached_property
    def facts(self) -> Facts:
        """What every value of the final program holds."""
        return infer_facts(self.graph, self.given, keep_exact=False)

    @property
    def graph(self) -> Graph:
        """The program as it is emitted."""
        return self.stages[-1].graph

    @property
    def leaves(self) -> int:
        """How many inputs of the program are its arguments: captured values follow them."""
        return sum(p.tree.num_leaves for p in self.signature.parameters)

    @cached_property
    def emitted(self) -> Emitted:
        graph = self.state.inside(self.graph, self.signature)
        return emit(graph, self.state.called(self.signature), doc=self.doc(), jit=self.jit)

    @cached_property
    def module(self) -> ModuleType:
        """The emitted module, imported."""
        return load(self.emitted)

    @property
    def main(self) -> Callable[..., Any]:
        """The emitted function, not yet jitted."""
        function: Callable[..., Any] = getattr(self.module, self.signature.name)
        return getattr(function, "__wrapped__", function)

    def doc(self) -> str:
        from precir.describe import module_doc

        return module_doc(self)


def make_program(
    fn: Callable[..., Any],
    traced: Any,
    recipe: Recipe,
    static: Sequence[int],
    jit: str,
    given: Sequence[Fact | None] = (),
    observed: Mapping[str, Stats] | None = None,
    layout: Layout = PLAIN,
) -> Program:
    """Lower what `jax.jit(fn, ...).trace(...)` gave and run the passes; `given` is what is known
    of its arguments, `observed` what was measured of its values, `layout` how they stand for the
    plain ones that were traced; plain arguments stand for those of a first step, as `init` makes
    them.

    Raises `StateError` where they do not carry what the recipe needs.
    """
    if recipe.compute == "float64" and jax.numpy.result_type(float) != np.float64:
        raise RecipeError(
            f"recipe {recipe.name} computes in float64, which JAX has switched off",
            fix='jax.config.update("jax_enable_x64", True) before making any array',
        )
    name = function_name(fn)
    out_tree = jax.tree.structure(traced.out_info)
    signature = signature_of(fn, traced.in_tree, out_tree, static, name)
    closed = closed_jaxpr(traced)
    graph, captured = lower_jaxpr(closed, name=name, labels=signature.labels())
    found = StateFinder(graph, signature, recipe, layout)
    stored = found.stored()
    asked = recipe.loss_scaling or recipe.update == "fused"
    carried = found.pairs() if asked else ()
    state, stages = run_passes(graph, recipe, given, observed, stored, carried)
    return Program(
        signature, tuple(stages), state.assignment, recipe, tuple(captured), fn, jit,
        closed.effects, tuple(given), found.state(stored, state.extras), state.updates,
        state.fused,
    )  # fmt: skip


def closed_jaxpr(traced: Any) -> Any:
    """A traced program whose inputs are its arguments: values of an outer trace that it closes
    over, which JAX passes as its first arguments, are constants.
    """
    closed = traced.jaxpr
    hoisted = list(getattr(traced, "_consts", None) or ())
    if not hoisted:
        return closed
    jaxpr, count = closed.jaxpr, len(hoisted)
    return jax.extend.core.ClosedJaxpr(
        jaxpr.replace(
            constvars=[*jaxpr.constvars, *jaxpr.invars[:count]],
            invars=jaxpr.invars[count:],
            debug_info=jaxpr.debug_info.with_unknown_names(),
        ),
        [*closed.consts, *hoisted],
    )


def replay(closed: Any, out_tree: Any, arguments: Sequence[Any], captured: Sequence[Any]) -> Any:
    """Run a traced program, custom rules and all, on other captured values."""
    given = iter(captured)
    consts = [next(given) if isinstance(c, jax.core.Tracer) else c for c in closed.consts]
    return jax.tree.unflatten(out_tree, jax.core.eval_jaxpr(closed.jaxpr, consts, *arguments))


def function_name(fn: Callable[..., Any]) -> str:
    from precir.emit.names import Names, identifier

    names = Names()
    for module_level in ("constants", "EXTERNALS"):
        names.reserve(module_level)
    return names.fresh(identifier(getattr(fn, "__name__", type(fn).__name__)))
