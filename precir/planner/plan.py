"""`precir.plan`: which precision a training run deserves, by the scaling laws, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from precir.errors import RecipeError
from precir.planner.box import Box
from precir.planner.errors import PlanError
from precir.planner.kumar import Optimum
from precir.planner.laws import LAWS, Laws
from precir.planner.quartet import Pair
from precir.planner.reading import StepFacts, read
from precir.program import Program
from precir.recipe import recipe as find_recipe
from precir.target.cards import Card
from precir.target.cards import card as find_card

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_AFTER: Final = (3, 4, 5, 6, 8)  # bits of weights that are quantised after training
_BITS: Final = (4, 5, 6, 7, 8, 12, 16)
_LAYOUTS: Final = {"bf16": (8, 7), "E4M3": (4, 3), "E5M2": (5, 2), "E2M1": (2, 1)}


@dataclass(frozen=True)
class Numbers:
    """What a recipe's products multiply, as the laws see it: bits, the card's rate, the layout."""

    bits: float
    rate: str
    layout: str | None


RECIPES: Final[Mapping[str, Numbers]] = {
    "float32": Numbers(32, "tf32", None),
    "bf16-mixed": Numbers(16, "bf16", "bf16"),
    "fp8": Numbers(8, "fp8", "E4M3"),
}
"""Those that every plan compares."""
BASE: Final = "bf16-mixed"
_FORMATS: Final[Mapping[str, Numbers]] = {
    "float32": Numbers(32, "tf32", None),
    "bfloat16": Numbers(16, "bf16", "bf16"),
    "float16": Numbers(16, "bf16", "f16"),
    "float8_e4m3fn": Numbers(8, "fp8", "E4M3"),
    "float8_e5m2": Numbers(8, "fp8", "E5M2"),
}


@dataclass(frozen=True)
class Choice:
    """One recipe for the run.

    Attributes:
      recipe: its name.
      speed: over bf16-mixed.
      factor: N_eff / N, of Kumar's law or as measured.
      params, tokens: what is trained in the time that bf16-mixed takes; as asked where speed is 1.
      loss: then.
      loss_as_asked: with the weights and tokens asked about, and so in less time; None where only
        the budget was given.
      penalty: what precision costs of it.
      notes: where this leaves what the law was fitted to.
    """

    recipe: str
    speed: float
    factor: float
    params: float
    tokens: float
    loss: float
    loss_as_asked: float | None
    penalty: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class After:
    """Quantising the weights after training: delta by two laws, and the first one's critical D."""

    bits: int
    kumar: float
    ouyang: float
    critical_tokens: float
    risky: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A floating-point format under Sun's law."""

    name: str
    penalty: float
    critical_tokens: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The laws' answers about one run. Prints as tables with `rich.print`; `str`, `data`.

    Attributes:
      params, tokens: as asked, or the best for `compute` at 16 bits where only that was.
      compute: FLOPs of training at 16 bits, 6 N D.
      card: the target.
      free: whether N and D were the planner's to choose.
      choices: recipes, best first at equal time.
      best_bits, plateau: where cost is as N D P: the optimum, and what is within 4% of it.
      optimum: bits, N and D for `compute` there.
      best_bits_here: for these weights, fewer bits buying more tokens.
      effective: by bits, N_eff / N and the part of the budget that is made use of.
      break_evens: (few, many) bits, and the speedup that few need, N and D free.
      crossover: D / N past which 16 bits beat fp8 at equal time and equal N, at the card's
        speedup; None without one.
      layouts: floating-point formats.
      float_best_bits: Sun's best bits for `compute`; they grow with it.
      float_crossover: Sun's D / N, as `crossover`.
      pairs: FP4 and FP8, forward and backward, at fixed budgets of inference and training.
      after: quantisation after training.
      four_bits: what W4A4 training adds (groups of 128), None beyond sense.
      quantised_share: the part of the tokens to train quantised, for 4-bit weights.
      notes: by the law's name, where the question leaves its runs.
      laws: the laws themselves.
      step: what was read off a compiled step, if one was asked about.
    """

    params: float
    tokens: float
    compute: float
    card: str
    free: bool
    choices: tuple[Choice, ...]
    best_bits: float
    plateau: tuple[float, float]
    optimum: Optimum
    best_bits_here: float
    effective: Mapping[float, tuple[float, float]]
    break_evens: Mapping[tuple[int, int], float]
    crossover: float | None
    layouts: tuple[Layout, ...]
    float_best_bits: float
    float_crossover: float | None
    pairs: tuple[Pair, ...]
    after: tuple[After, ...]
    four_bits: float
    quantised_share: float
    notes: Mapping[str, tuple[str, ...]]
    laws: Laws = field(repr=False)
    step: StepFacts | None = None

    @property
    def best(self) -> Choice:
        """The recipe with the lowest predicted loss at equal time."""
        return self.choices[0]

    @property
    def data(self) -> dict[str, Any]:
        """As dicts, lists, strings and numbers; without the laws themselves."""
        found = asdict(self)
        del found["laws"]
        found["break_evens"] = [
            {"few": few, "many": many, "speedup": s} for (few, many), s in self.break_evens.items()
        ]
        return found | {"best": self.best.recipe}

    def __str__(self) -> str:
        from precir.planner.table import plain

        return plain(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from precir.planner.table import screen

        yield from screen(self)


def plan(
    *,
    params: float | None = None,
    tokens: float | None = None,
    compute: float | None = None,
    target: str | Card = "h100",
    speedups: Mapping[str, float] | None = None,
    factors: Mapping[str, float] | None = None,
    tolerance: float = 0.01,
    laws: Laws = LAWS,
) -> Plan:
    """What the scaling laws of precision say about a training run.

    Args:
      params, tokens, compute: weights (not those of embeddings), tokens, FLOPs of training at 16
        bits (6 N D). Any two of them, or `compute` alone, which leaves N and D to the planner.
      target: the card whose peak rates give each recipe's speed.
      speedups: measured ones over bf16-mixed, by recipe, in the place of the card's nominal ones.
      factors: measured N_eff / N by recipe (see `Kumar.measured_factor`), in the place of the
        law's. Recipes that are named in one of the two are compared too.
      tolerance: the loss that quantisation after training may cost before it is called risky.
      laws: with other constants, `dataclasses.replace(LAWS, ...)`.

    Raises:
      PlanError: too little or too much is given, or what no law answers.
      TargetError: an unknown target.
    """
    card = find_card(target)
    free = params is None and tokens is None
    n, d = _sizes(params, tokens, compute, laws)
    flops = 6 * n * d if compute is None else compute
    numbers = _numbers("speedups", speedups or {}) | _numbers("factors", factors or {})
    speeds = _speeds(card, numbers, speedups or {})
    eff = {r: laws.kumar.factor(n.bits) for r, n in numbers.items()} | dict(factors or {})
    choices = [_choice(r, numbers[r], n, d, flops, free, speeds[r], eff[r], laws) for r in speeds]
    kumar, sun = laws.kumar, laws.sun
    fast = speeds.get("fp8", 1.0)
    return Plan(
        params=n,
        tokens=d,
        compute=flops,
        card=card.name,
        free=free,
        choices=tuple(sorted(choices, key=lambda c: c.loss)),
        best_bits=kumar.best_bits(),
        plateau=kumar.plateau(),
        optimum=kumar.best(flops),
        best_bits_here=kumar.best_bits_at(n, d),
        effective={p: (kumar.factor(p), kumar.effective_compute(p)) for p in (*_BITS, 32)},
        break_evens={pair: kumar.break_even(*pair) for pair in ((8, 16), (6, 16), (4, 16), (4, 8))},
        crossover=kumar.crossover(8, 16, fast) if fast > 1 else None,
        layouts=tuple(_layout(name, n, d, laws) for name in _LAYOUTS),
        float_best_bits=sun.best_bits(flops),
        float_crossover=sun.crossover(n, fast) if fast > 1 else None,
        pairs=laws.quartet.pairs(n, d),
        after=tuple(_after(p, n, d, tolerance, laws) for p in _AFTER),
        four_bits=laws.chen.delta(n, d, 128),
        quantised_share=laws.dremov.share(n, d, 4),
        notes=_notes(n, d, laws),
        laws=laws,
    )


def plan_step(
    program: Program,
    *,
    tokens: float | None = None,
    steps: float | None = None,
    target: str | Card = "h100",
    speedups: Mapping[str, float] | None = None,
    **options: Any,
) -> Plan:
    """The same for a compiled step: N, the tokens of one call and the formats come from its graph.

    The recipe's speed over bf16-mixed is that of its products, so many of which are in 8 bits, at
    the card's rates; `speedups` has precedence.

    Raises:
      PlanError: neither `tokens` nor `steps`, both, or a step that cannot be read.
    """
    if (tokens is None) == (steps is None):
        raise PlanError("give tokens, or steps, and not both", fix="tokens=20e9, or steps=100_000")
    card, facts = find_card(target), read(program)
    total = tokens if tokens is not None else facts.tokens * (steps or 0)
    own: dict[str, float] = {}
    if facts.low_share and "fp8" in card.flops and numbers_of(facts.recipe):
        eight = card.flops["bf16"] / card.flops["fp8"]
        own[facts.recipe] = 1 / (1 - facts.low_share + facts.low_share * eight)
    found = plan(
        params=facts.params, tokens=total, target=card, speedups={**own, **(speedups or {})},
        **options,
    )  # fmt: skip
    return replace(found, step=facts)


def _sizes(
    params: float | None, tokens: float | None, compute: float | None, laws: Laws
) -> tuple[float, float]:
    """N and D, from what was given."""
    for name, value in (("params", params), ("tokens", tokens), ("compute", compute)):
        if value is not None and not value > 0:
            raise PlanError(f"{name}={value:g} is not positive")
    if params is not None and tokens is not None:
        if compute is not None and abs(compute / (6 * params * tokens) - 1) > 0.01:
            raise PlanError(
                f"compute={compute:.3g} is not 6 x params x tokens = {6 * params * tokens:.3g}",
                fix="give two of the three",
            )
        return params, tokens
    if compute is None:
        missing = "tokens" if params is not None else "params"
        if params is None and tokens is None:
            raise PlanError("nothing is given", fix="params and tokens, or compute")
        raise PlanError(f"{missing} or compute is missing", fix=f"give {missing}=, or compute=")
    if params is not None:
        return params, compute / (6 * params)
    if tokens is not None:
        return compute / (6 * tokens), tokens
    best = laws.kumar.divide(compute, 16)
    return best.params, best.tokens


def numbers_of(name: str) -> Numbers | None:
    """What the products of a recipe multiply; None if there is none of that name, or no law of its
    format.
    """
    try:
        known = find_recipe(name)
    except RecipeError:
        return None
    return _FORMATS.get(known.forward or known.compute)


def _numbers(argument: str, measured: Mapping[str, float]) -> dict[str, Numbers]:
    """What the recipes multiply that every plan compares, and those that something is known of."""
    found = dict(RECIPES)
    for name, value in measured.items():
        if not value > 0:
            raise PlanError(f"{argument}: {name}={value}", fix="above 0")
        known = numbers_of(name)
        if known is None:
            raise PlanError(f"{argument}: {name} is no recipe with a law", fix="a name, as fp8-row")
        found[name] = known
    return found


def _speeds(
    card: Card, numbers: Mapping[str, Numbers], measured: Mapping[str, float]
) -> dict[str, float]:
    base = card.flops[RECIPES[BASE].rate]
    found = {r: card.flops[n.rate] / base for r, n in numbers.items() if n.rate in card.flops}
    return found | dict(measured) | {BASE: 1.0}


def _choice(
    recipe: str,
    numbers: Numbers,
    n: float,
    d: float,
    flops: float,
    free: bool,
    speed: float,
    factor: float,
    laws: Laws,
) -> Choice:
    law = laws.kumar
    if free:
        best = law.divide_by(flops * speed, factor)
        params, tokens, loss = best.params, best.tokens, best.loss
        asked = penalty = None
    else:
        params, tokens = n, d * speed
        loss = law.loss(params, tokens, factor)
        asked, penalty = law.loss(n, d, factor), law.penalty(n, factor)
    notes = law.box.outside(params, tokens)
    if numbers.layout and numbers.bits < 16:
        notes = (*notes, "floating point and a quantised backward, where it knows integers forward")
    return Choice(recipe, speed, factor, params, tokens, loss, asked, penalty, notes)


def _layout(name: str, n: float, d: float, laws: Laws) -> Layout:
    exponent, mantissa = _LAYOUTS[name]
    law = laws.sun
    return Layout(
        name,
        law.penalty(n, d, exponent, mantissa),
        law.critical_tokens(n, exponent, mantissa),
        law.box.outside(n, d),
    )


def _after(bits: int, n: float, d: float, tolerance: float, laws: Laws) -> After:
    delta = laws.kumar.after_training(n, d, bits)
    critical = laws.kumar.critical_tokens(n, bits)
    other = laws.ouyang.delta(n, d, bits)
    risky = d > critical or max(delta, other) > tolerance
    notes = (
        *_said("Kumar", laws.kumar.box, n, d, None),
        *_said("Ouyang", laws.ouyang.box, n, d, bits),
    )
    return After(bits, delta, other, critical, risky, notes)


def _said(name: str, box: Box, params: float, tokens: float, bits: float | None) -> tuple[str, ...]:
    found = box.outside(params, tokens, bits)
    return (f"{name}: {', '.join(found)}",) if found else ()


def _notes(n: float, d: float, laws: Laws) -> dict[str, tuple[str, ...]]:
    return {
        "kumar": laws.kumar.box.outside(n, d),
        "sun": laws.sun.box.outside(n, d),
        "ouyang": laws.ouyang.box.outside(n, d),
        "chen": laws.chen.box.outside(n, d),
        "dremov": laws.dremov.box.outside(n, d),
        "quartet": laws.quartet.box.outside(n, d),
    }
