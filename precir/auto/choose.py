"""Choose the format of every product and op of a program: least cost under a budget of error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Final

import jax

from precir.auto.choice import Choice, Point
from precir.auto.cost import model_of
from precir.auto.cut import BF16, F32, FP8, FP8_BLOCK, Cut
from precir.auto.errors import Error, Errors
from precir.auto.measure import measured_errors
from precir.auto.noise import noise
from precir.auto.places import Places, find_places
from precir.auto.sense import gradients_of, looked_at, sensitivities
from precir.errors import PrecirError
from precir.ir import UPDATE, Graph, Node, Value
from precir.observe import threaded
from precir.passes.assign import Assignment, assign_formats
from precir.passes.facts import infer_facts
from precir.program import Program
from precir.recipe import Chosen, Recipe
from precir.recipe import recipe as find_recipe
from precir.state import find_state
from precir.target.cards import Card
from precir.target.cards import card as find_card

TOLERANCE: Final = 0.01  # in the loss's unit, as nats
TOKENS: Final = 2e9
UNIFORM: Final = ("float32", "bf16-mixed", "fp8", "fp8-block")
BASE: Final = "bf16-mixed"  # for what is not chosen
_STEPS: Final = 16  # of the price of error, over twelve orders of magnitude
_ROUNDS: Final = 2  # to find the slope of the error at the solution itself
_HALVINGS: Final = 10
_LEAST: Final = 0.002  # of the time: what is worth a point of the curve


class ChooseError(PrecirError, ValueError):
    """A program of which nothing can be chosen, or nothing measured."""


def exchange(tokens: float) -> float:
    """What losing one step in every step costs: dL/d(log D) of the loss after D tokens.

    An independent error of the gradients with a relative square of e makes steps worth at least
    1 / (1 + e) of what they were (McCandlish et al., arXiv 1812.06162, section 2.2, at any noise
    scale); the law is B / D^beta of Hoffmann et al., arXiv 2203.15556, eq. 10, with B = 410.7 and
    beta = 0.28.
    """
    return 0.28 * 410.7 / math.pow(tokens, 0.28)


def choose(
    fn: Callable[..., Any],
    batches: Iterable[tuple[Any, ...]],
    *,
    tolerance: float = TOLERANCE,
    target: str | Card = "h100",
    loss: Callable[[Any], Any] | None = None,
    tokens: float = TOKENS,
) -> Choice:
    """Choose formats for a function by what its tensors hold: see `precir.compile`, recipe "auto".

        choice = precir.choose(train_step, [(state, batch), ...], tolerance=0.005)
        print(choice)  # cost against error: the curve, the uniform recipes, every product and why
        step = precir.compile(train_step, recipe=choice.recipe)

    A few batches will do, of one shape; state should be that of training under way, since what a
    fresh model is sensitive to is not what a trained one is. A generator is sent the results of
    each batch, as in `precir.observe`.

    Gradients that are rounding noise in float32 already, as of a bias that a softmax forgets, count
    for nothing (`precir.auto.noise`).

    Args:
      fn: a train step or a model function, or what `precir.compile` made of one.
      batches: tuples of positional arguments.
      tolerance: the largest error to accept, as predicted. Of a train step, in the unit of its
        loss: the root mean square change of the loss, plus `exchange(tokens)` times the relative
        mean square error of the gradients. Of a function without a loss, the relative root mean
        square error of its results.
      target: a card, by name or as a `precir.target.Card`, whose time is to be saved.
      loss: gives of the function's result the loss; without it, the one float32 scalar among the
        results that is no state.
      tokens: to train on, in all: what an error in the gradients costs depends on it.

    Raises:
      ChooseError (a ValueError): no batches, batches of several shapes, no product to choose for,
        no loss that can be told, a loop that cannot be differentiated, or a tolerance below 0.
    """
    from precir.compile import Compiled, compile

    if not tolerance >= 0:
        raise ChooseError(f"a tolerance is an error to accept, not {tolerance}", fix="0.01, say")
    card = find_card(target)
    compiled = fn.with_recipe("float32") if isinstance(fn, Compiled) else compile(fn)
    program: Program | None = None
    given = []
    for args, answer in threaded(batches):
        found = compiled.program(*args)
        if program is not None and found is not program:
            raise ChooseError(
                "the batches have several shapes", fix="give batches of the shapes trained with"
            )
        program = found
        given.append((compiled._dynamic(args, {})[0], program.captured))
        if answer is not None:
            answer(compiled(*args))
    if program is None:
        raise ChooseError("there were no batches to measure", fix="give one or a few")
    facts = infer_facts(program.graph, program.given)
    places = find_places(program.graph, facts)
    if not places.multiplied:
        raise ChooseError(
            f"{program.signature.name} has no matrix product in float32 outside of its update",
            fix='there is nothing to gain: compile it under "float32"',
        )
    at = _loss(program, loss)
    gradients = bool(gradients_of(program.graph))
    without = noise(program, looked_at(program.graph, at), given)
    try:
        measured = sensitivities(program, places.wish, at, given, without=without)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ChooseError(
            f"{program.signature.name} cannot be differentiated, by which its tensors are "
            f"measured: {str(error).splitlines()[0]}",
            fix="a while_loop whose length is known when it is traced, as a scan or fori_loop",
        ) from error
    per_loss = exchange(tokens) if gradients or at is not None else None
    errors = Errors(measured, per_loss)
    chooser = Chooser(compiled, program, errors, card, places, at, without)
    return chooser.choice(tolerance)


def _loss(program: Program, pick: Callable[[Any], Any] | None) -> int | None:
    """Which result is the loss."""
    graph, count = program.graph, program.signature.result.num_leaves
    if pick is not None:
        found = pick(jax.tree.unflatten(program.signature.result, range(count)))
        if not isinstance(found, int) or graph.outputs[found].type.shape != ():
            raise ChooseError("loss= gives no scalar of the function's result")
        return found
    carried = {b for c in find_state(graph, program.signature) for _, b in c.pairs}
    scalars = [
        i for i, o in enumerate(graph.outputs)
        if i not in carried and isinstance(o, Value) and o.type.shape == ()
        and o.type.dtype == "float32" and not (o.node is not None and o.node.phase == UPDATE)
    ]  # fmt: skip
    if len(scalars) > 1:
        raise ChooseError(
            f"{program.signature.name} returns {len(scalars)} float32 scalars, and one is the loss",
            fix="say which: loss=lambda result: result[1]",
        )
    return scalars[0] if scalars else None


class Chooser:
    """The choice for one program on one card: what is measured, and the problem, made once."""

    def __init__(
        self,
        compiled: Any,
        program: Program,
        errors: Errors,
        card: Card,
        places: Places,
        loss: int | None,
        without: frozenset[int] = frozenset(),
    ) -> None:
        self.compiled, self.program, self.errors, self.card = compiled, program, errors, card
        self.places, self.loss, self.without = places, loss, without
        self.graph: Graph = program.graph
        self.model = model_of(places, card)
        self.base = find_recipe(BASE)
        self._facts = infer_facts(self.graph, program.given)
        self.cut = Cut(places, self.model, errors, self.uniform(BASE).formats)

    # -- points --------------------------------------------------------------------------------

    @cached_property
    def names(self) -> dict[Node, str]:
        """Of all that a recipe can name: not what is made of constants alone."""
        from precir.auto.wording import names_of

        return names_of(self)

    def assignment(self, formats: Mapping[Node, str]) -> Assignment:
        chosen = {n: Chosen("", f) for n, f in formats.items() if n in self.names}
        return assign_formats(self.graph, self.base, self._facts, None, chosen)

    def point(self, formats: Mapping[Node, str]) -> Point:
        made = self.assignment(formats)
        return Point("auto", self.model.seconds(made), self.errors.of(self.places, made), formats)

    def uniform(self, name: str) -> Point:
        made = assign_formats(self.graph, find_recipe(name), self._facts)
        low = {p.node: p for p in made.products}
        formats = {}
        for node in (*self.places.ops, *self.places.multiplied):
            product = low.get(node)
            narrow = made.compute.get(node) == BF16
            formats[node] = BF16 if narrow else F32
            if product is not None and product.low:
                tensor = product.grains[0].reach == "tensor"
                formats[node] = FP8 if tensor else FP8_BLOCK
        return Point(name, self.model.seconds(made), self.errors.of(self.places, made), formats)

    def solved(self, price: float) -> Point:
        """The best where an error of one costs `price` seconds."""
        slope = Error(0.001, 1e-4, self.errors.exchange).slope
        for _ in range(_ROUNDS):
            found = self.point(self.cut.solve((price * slope[0], price * slope[1])))
            slope = found.error.slope
        return found

    @cached_property
    def uniforms(self) -> tuple[Point, ...]:
        return tuple(self.uniform(name) for name in UNIFORM)

    @cached_property
    def _again(self) -> tuple[Point, ...]:
        """The uniform recipes, as choices."""
        return tuple(self.point(p.formats) for p in self.uniforms)

    @cached_property
    def curve(self) -> tuple[Point, ...]:
        """From the dearest and most exact to the cheapest, each cheaper than all before it."""
        wide = self.uniforms[0]
        low = max(self.uniforms[2].error.total, 1e-12)
        middle = wide.seconds / low
        found = [self.solved(middle * 10 ** (6 - 12 * i / (_STEPS - 1))) for i in range(_STEPS)]
        return front([*self._again, *found])

    # -- the choice ----------------------------------------------------------------------------

    def choice(self, tolerance: float) -> Choice:
        best = self.within(tolerance)
        points = [p for p in self.curve if p is not best]
        points = sorted([*points, best], key=lambda p: p.error.total)
        return Choice(
            self.program.signature.name,
            self.card,
            tolerance,
            best,
            tuple(points),
            self.uniforms,
            self,
        )

    def within(self, tolerance: float) -> Point:
        """The cheapest that was found with an error of at most `tolerance`."""
        fits = [p for p in self.curve if p.error.total <= tolerance]
        over = [p for p in self.curve if p.error.total > tolerance]
        best = fits[-1]
        fits += [p for p in self._again if p.error.total <= tolerance]
        if not over:
            return min(fits, key=lambda p: p.seconds)
        first = over[0]
        span = [
            n for n in (*self.places.multiplied, *self.places.ops)
            if best.formats[n] != first.formats[n]
        ]  # fmt: skip
        span.sort(key=lambda n: self._adds(n, first.formats[n]))
        most, least = len(span), 0
        for _ in range(_HALVINGS):
            if most - least <= 1:
                break
            middle = (most + least) // 2
            moved = {n: first.formats[n] for n in span[:middle]}
            found = self.point({**best.formats, **moved})
            if found.error.total <= tolerance:
                least = middle
                if found.seconds < best.seconds:
                    fits.append(found)
            else:
                most = middle
        return min(fits, key=lambda p: p.seconds)

    def _adds(self, node: Node, format: str) -> float:
        """The error that a format of one node adds by itself."""
        if format in (FP8, FP8_BLOCK):
            pair = self.errors.uses(node)[format == FP8_BLOCK]
        elif format == BF16:
            pair = self.errors.value(node.outputs[0])
        else:
            pair = (0.0, 0.0)
        return self.errors.error([pair]).total

    # -- against what is so ----------------------------------------------------------------------

    def measure(self, recipes: Iterable[Recipe], batches: Iterable[tuple[Any, ...]]) -> list[Error]:
        given = [tuple(b) for b in batches]
        if not given:
            raise ChooseError("there were no batches to measure on", fix="give one or a few")
        programs = (self.compiled.with_recipe(r).program(*given[0]) for r in recipes)
        dynamic = [(self.compiled._dynamic(b, {})[0], self.program.captured) for b in given]
        return measured_errors(
            self.program, programs, self.loss, dynamic, self.errors.exchange, self.without
        )

    # -- as a recipe ---------------------------------------------------------------------------

    def recipe(self, point: Point) -> Recipe:
        from precir.auto.wording import entries

        return self.base.replace(name="auto", chosen=entries(self, point))


def front(points: Iterable[Point]) -> tuple[Point, ...]:
    """Those than which none is cheaper with no more error, the most exact first."""
    kept: list[Point] = []
    for p in sorted(points, key=lambda p: (p.error.total, p.seconds)):
        if not kept or p.seconds < kept[-1].seconds * (1 - _LEAST):
            kept.append(p)
    return tuple(kept)
