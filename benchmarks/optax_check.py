"""What `precir check` says of optax: every loss, optimizer and schedule, in float16 and bfloat16.

    python benchmarks/optax_check.py
    python benchmarks/optax_check.py --only cosine --formats float16

The names come from the installed optax: the functions of `optax.losses` and `optax.schedules`, the
optimizers of `optax._src.alias` and `optax.contrib`. The tables below say with which arguments to
call each, and from what ranges; a name that they lack ends the run. Losses are checked forward and
as gradients with respect to every float argument; optimizers as `init`, one `update` and
`apply_updates`, the new state being a result too; schedules over the steps 0 to 20000, counted in
int32 and in the format.

Each finding of the default severities is confirmed without precir: the function itself is run on
the finding's witness, or where it has none on the fills below, compiled and then op by op, and must
show what the finding says: an infinity or NaN, an error against float32 (on the same, rounded,
arguments) that is beyond rounding, or parameters that stay where float32 moves them. A finding that
nothing confirms is false.

The other way round, each function is run on fills of its ranges, random ones and corners. What is
not finite, far off or stuck there, and no finding tells of, is missed. Far off and stuck are looked
for in ordinary fills only: a corner may well be ill-conditioned.
"""

import argparse
import datetime
import functools
import importlib.metadata
import inspect
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import rich
from rich.console import Console
from rich.progress import track
from rich.table import Table

import precir
from precir.source import own_code

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.hazards.case import DTYPES, Real, Whole, cast  # noqa: E402

FORMATS = ("float16", "bfloat16")
STEPS = 20_000

# Relative to the largest number of a result, here or in ordinary fills: what nobody takes for
# rounding. A miss must be twice as far off as what confirms a finding.
BEYOND = {"float16": 0.03, "bfloat16": 0.1}

ORDINARY, CORNERS = ("even", "magnitudes"), ("low", "high", "least", "corners")
RANDOM = 30


# --- what to call, and with what ------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """How to call a loss: `call` in place of the function itself, `args` with their ranges.

    `varies` says that it is another function in another format.
    """

    args: tuple[Real | Whole, ...]
    call: Callable[..., Any] | None = None
    about: str = ""
    varies: bool = False


@dataclass(frozen=True)
class Optimizer:
    """How to make an optimizer, and what its update wants besides parameters and gradients.

    Attributes:
      make: the optimizer, given the function.
      wants: "" (gradients alone), "value" (the loss too), "function" or "objective" (the function
        minimised, a distance to a target, whose gradient is the gradient; under either name).
      varies: whether it draws noise, which differs from format to format.
      batch: whether each gradient has a leading axis of examples.
      vectors: whether it takes vectors, not matrices alone.
      about: what is not as usual.
    """

    make: Callable[[Callable[..., Any]], Any]
    wants: str = ""
    varies: bool = False
    batch: bool = False
    vectors: bool = True
    about: str = ""


@dataclass(frozen=True)
class Schedule:
    """How to make a schedule."""

    make: Callable[[Callable[..., Any]], Any]
    about: str = ""


def real(low: float, high: float, *shape: int) -> Real:
    return Real(low, high, shape)


def whole(low: int, high: int, *shape: int) -> Whole:
    return Whole(low, high, shape)


LOGITS, PROBABILITIES = real(-20, 20, 4, 5), real(0, 1, 4, 5)
LOG_PROBABILITIES = real(-20, 0, 4, 5)
PREDICTIONS = real(-10, 10, 4, 5)
CLASSES, SIGNS = whole(0, 4, 4), real(-1, 1, 4, 5)
REGRESSION = Loss((PREDICTIONS, PREDICTIONS))
DIVERGENCE = Loss((LOG_PROBABILITIES, PROBABILITIES))
CLASSIFICATION = Loss((LOGITS, PROBABILITIES))
INTEGERS = Loss((LOGITS, CLASSES))
CTC = (real(-20, 20, 2, 6, 5), real(0, 1, 2, 6), whole(1, 4, 2, 3), real(0, 1, 2, 3))


def paddings(fn: Callable[..., Any]) -> Callable[..., Any]:
    """CTC with paddings of 0 and 1 made of numbers in between, the first step never padded."""

    def call(logits: Any, logit_pads: Any, labels: Any, label_pads: Any) -> Any:
        pads = [jnp.where(jnp.cumsum(x > 0.75, axis=1) > 0, 1, 0) for x in (logit_pads, label_pads)]
        pads = [x.at[:, 0].set(0).astype(logits.dtype) for x in pads]
        return fn(logits, pads[0], labels, pads[1])

    return call


LOSSES: Mapping[str, Loss] = {
    "binary_dice_loss": CLASSIFICATION,
    "convex_kl_divergence": DIVERGENCE,
    "cosine_distance": REGRESSION,
    "cosine_similarity": REGRESSION,
    "ctc_loss": Loss(CTC, paddings(optax.losses.ctc_loss)),
    "ctc_loss_with_forward_probs": Loss(CTC, paddings(optax.losses.ctc_loss_with_forward_probs)),
    "dice_loss": CLASSIFICATION,
    "generalized_kl_divergence": DIVERGENCE,
    "hinge_loss": Loss((PREDICTIONS, SIGNS)),
    "huber_loss": REGRESSION,
    "kl_divergence": DIVERGENCE,
    "kl_divergence_with_log_targets": Loss((LOG_PROBABILITIES, LOG_PROBABILITIES)),
    "l2_loss": REGRESSION,
    "log_cosh": REGRESSION,
    "make_fenchel_young_loss": Loss(
        (LOGITS, PROBABILITIES),
        optax.losses.make_fenchel_young_loss(jax.nn.logsumexp),
        "of logsumexp",
    ),
    "multiclass_generalized_dice_loss": CLASSIFICATION,
    "multiclass_hinge_loss": INTEGERS,
    "multiclass_perceptron_loss": INTEGERS,
    "multiclass_sparsemax_loss": INTEGERS,
    "ntxent": Loss(
        (real(-1, 1, 6, 5), whole(0, 2, 6)),
        about="its epsilon is the format's: results are not compared",
        varies=True,
    ),
    "perceptron_loss": Loss((PREDICTIONS, SIGNS)),
    "poly_loss_cross_entropy": CLASSIFICATION,
    "ranking_softmax_loss": CLASSIFICATION,
    "safe_softmax_cross_entropy": CLASSIFICATION,
    "sigmoid_binary_cross_entropy": CLASSIFICATION,
    "sigmoid_focal_loss": CLASSIFICATION,
    "smooth_labels": Loss((PROBABILITIES,), lambda labels: optax.losses.smooth_labels(labels, 0.1)),
    "softmax_cross_entropy": CLASSIFICATION,
    "softmax_cross_entropy_with_integer_labels": INTEGERS,
    "sparsemax_loss": Loss((PREDICTIONS, real(0, 1, 4, 5))),
    "squared_error": REGRESSION,
    "triplet_margin_loss": Loss((PREDICTIONS, PREDICTIONS, PREDICTIONS)),
}


def rate(value: float, **kwargs: Any) -> Optimizer:
    return Optimizer(lambda f: f(value, **kwargs))


TRANSFORM = Optimizer(lambda f: f(), about="the bare transformation")

OPTIMIZERS: Mapping[str, Optimizer] = {
    **dict.fromkeys(
        [
            "adabelief",
            "adagrad",
            "adam",
            "adamax",
            "adamaxw",
            "adamw",
            "adan",
            "amsgrad",
            "lamb",
            "lion",
            "nadam",
            "nadamw",
            "novograd",
            "optimistic_adam_v2",
            "radam",
            "rmsprop",
            "yogi",
        ],
        rate(1e-3),
    ),
    **dict.fromkeys(
        ["fromage", "sgd", "sign_sgd", "signum", "sm3", "optimistic_gradient_descent"], rate(1e-2)
    ),
    "adadelta": rate(1.0),
    "adafactor": Optimizer(
        lambda f: f(1e-3, min_dim_size_to_factor=2), about="factored from 2 rows on"
    ),
    "lars": rate(0.1, weight_decay=1e-4),
    "lbfgs": Optimizer(lambda f: f(), "function", about="with its line search"),
    "noisy_sgd": Optimizer(lambda f: f(1e-2, key=jax.random.key(0)), varies=True),
    "optimistic_adam": rate(1e-3, optimism=1e-3),
    "polyak_sgd": Optimizer(lambda f: f(), "value"),
    "rprop": rate(1e-2),
    "contrib.acprop": rate(1e-3),
    "contrib.ademamix": rate(1e-3),
    "contrib.adopt": rate(1e-3),
    "contrib.cocob": rate(1.0),
    "contrib.dadapt_adamw": rate(1.0),
    "contrib.differentially_private_aggregate": Optimizer(
        lambda f: f(1.0, 0.1, key=jax.random.key(0)),
        varies=True,
        batch=True,
        about="gradients of 4 examples",
    ),
    "contrib.dog": rate(1.0),
    "contrib.dowg": rate(1.0),
    "contrib.dpsgd": Optimizer(
        lambda f: f(1e-2, 1.0, 0.1, 0), varies=True, batch=True, about="gradients of 4 examples"
    ),
    "contrib.galore": rate(1e-3, rank=2),
    "contrib.hutchinson_estimator_diag_hessian": Optimizer(
        lambda f: f(), "objective", about="the estimate is taken for the update"
    ),
    "contrib.madgrad": rate(1e-2),
    "contrib.mechanize": Optimizer(lambda f: f(optax.adam(1e-3)), about="of adam"),
    "contrib.momo": Optimizer(lambda f: f(), "value"),
    "contrib.momo_adam": Optimizer(lambda f: f(), "value"),
    "contrib.muon": rate(1e-3),
    "contrib.normalize": TRANSFORM,
    "contrib.prodigy": rate(1.0),
    "contrib.reduce_on_plateau": Optimizer(lambda f: f(), "value", about="the scale alone"),
    "contrib.sam": Optimizer(
        lambda f: f(optax.sgd(1e-2), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))),
        about="of sgd and normalised sgd",
    ),
    "contrib.scale_by_acprop": TRANSFORM,
    "contrib.scale_by_ademamix": TRANSFORM,
    "contrib.scale_by_adopt": TRANSFORM,
    "contrib.scale_by_cocob": TRANSFORM,
    "contrib.scale_by_galore": Optimizer(lambda f: f(rank=2), about="the bare transformation"),
    "contrib.scale_by_madgrad": rate(1e-2),
    "contrib.scale_by_muon": Optimizer(
        lambda f: f(weight_dimension_numbers=matrices),
        vectors=False,
        about="the bare transformation, of matrices",
    ),
    "contrib.scale_by_simplified_ademamix": TRANSFORM,
    "contrib.schedule_free": Optimizer(lambda f: f(optax.sgd(1e-2), 1e-2), about="of sgd"),
    "contrib.schedule_free_adamw": rate(2.5e-3),
    "contrib.schedule_free_eval_params": Optimizer(
        lambda f: optax.contrib.schedule_free_sgd(1e-2),
        about="called on what schedule_free_sgd makes of one update",
    ),
    "contrib.schedule_free_sgd": rate(1e-2),
    "contrib.simplified_ademamix": rate(1e-3),
    "contrib.sophia": Optimizer(lambda f: f(1e-3), "objective"),
    "contrib.split_real_and_imaginary": Optimizer(
        lambda f: f(optax.adam(1e-3)), about="of adam; no format has complex numbers"
    ),
}


def matrices(params: Any) -> Any:
    """Which axes of its parameters Muon takes for rows and columns."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(0, 1), params)


def adam_at(inject: Callable[..., Any]) -> Any:
    return inject(optax.adam)(learning_rate=optax.schedules.cosine_decay_schedule(1e-3, STEPS))


SCHEDULES: Mapping[str, Schedule] = {
    "constant_schedule": Schedule(lambda f: f(1e-3)),
    "cosine_decay_schedule": Schedule(lambda f: f(1e-3, STEPS)),
    "cosine_onecycle_schedule": Schedule(lambda f: f(STEPS, 1e-2)),
    "exponential_decay": Schedule(lambda f: f(1e-3, 1000, 0.9)),
    "join_schedules": Schedule(
        lambda f: f(
            [optax.linear_schedule(0.0, 1e-3, 1000), optax.cosine_decay_schedule(1e-3, 19_000)],
            [1000],
        )
    ),
    "linear_onecycle_schedule": Schedule(lambda f: f(STEPS, 1e-2)),
    "linear_schedule": Schedule(lambda f: f(1e-3, 1e-5, STEPS)),
    "piecewise_constant_schedule": Schedule(lambda f: f(1e-3, {5000: 0.1, 15_000: 0.1})),
    "piecewise_interpolate_schedule": Schedule(
        lambda f: f("cosine", 1e-3, {5000: 0.1, 15_000: 0.1})
    ),
    "polynomial_schedule": Schedule(lambda f: f(1e-3, 1e-5, 2, STEPS)),
    "sgdr_schedule": Schedule(
        lambda f: f(
            [
                {"init_value": 0.0, "peak_value": p, "warmup_steps": 500, "decay_steps": 10_000}
                for p in (1e-3, 5e-4)
            ]
        )
    ),
    "warmup_constant_schedule": Schedule(lambda f: f(0.0, 1e-3, 1000)),
    "warmup_cosine_decay_schedule": Schedule(lambda f: f(0.0, 1e-3, 1000, STEPS)),
    "warmup_exponential_decay_schedule": Schedule(lambda f: f(0.0, 1e-3, 1000, 1000, 0.9)),
    "inject_hyperparams": Schedule(
        adam_at, "no schedule itself: checked as adam's update with one"
    ),
    "inject_stateful_hyperparams": Schedule(
        adam_at, "no schedule itself: checked as adam's update with one"
    ),
}


# --- what optax has -------------------------------------------------------------------------------


def functions(module: Any) -> dict[str, Callable[..., Any]]:
    """The public functions of a module."""
    names = [n for n in dir(module) if not n.startswith("_")]
    return {n: getattr(module, n) for n in names if inspect.isfunction(getattr(module, n))}


def optimizers() -> dict[str, Callable[..., Any]]:
    """The optimizers of optax and of optax.contrib, with those that are others with options."""
    found = functions(sys.modules["optax._src.alias"])
    for name in dir(optax):
        value = getattr(optax, name)
        if isinstance(value, functools.partial) and value.func in found.values():
            found[name] = value
    return found | {f"contrib.{n}": f for n, f in functions(optax.contrib).items()}


@dataclass(frozen=True)
class Program:
    """A function to check, and the ranges of its arguments.

    Attributes:
      name, part: optax's name, and what of it this is ("forward", "gradient", "update", ...).
      fn, args: the function, and per argument a pytree of `Real` and `Whole`.
      state: whether its first result is its first argument, moved.
      varies: whether its results differ between formats by intent, and are not to be compared.
    """

    name: str
    part: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    state: bool = False
    varies: bool = False


class NotCovered(SystemExit):
    """Names of optax that the tables lack."""


def programs() -> Iterator[Program]:
    """Everything to check.

    Raises:
      NotCovered: optax has a name of which the tables know nothing.
    """
    kinds: tuple[tuple[str, dict[str, Any], Mapping[str, Any], Any], ...] = (
        ("loss", functions(optax.losses), LOSSES, loss_programs),
        ("optimizer", optimizers(), OPTIMIZERS, optimizer_programs),
        ("schedule", functions(optax.schedules), SCHEDULES, schedule_programs),
    )
    unknown = [f"{kind} {n}" for kind, found, table, _ in kinds for n in found if n not in table]
    if unknown:
        raise NotCovered(f"optax has {', '.join(unknown)}: say in {__file__} how to call them")
    for _, found, table, make in kinds:
        for name, fn in found.items():
            yield from make(name, fn, table[name])


def loss_programs(name: str, fn: Callable[..., Any], spec: Loss) -> Iterator[Program]:
    call = spec.call or fn
    floats = tuple(i for i, a in enumerate(spec.args) if isinstance(a, Real))

    def total(*args: Any) -> Any:
        return sum(x.sum() for x in jax.tree.leaves(call(*args)))

    gradient = jax.grad(total, argnums=floats)
    yield Program(name, "forward", call, spec.args, varies=spec.varies)
    yield Program(name, "gradient", gradient, spec.args, varies=spec.varies)


PARAMS = {"b": real(-1, 1, 3), "w": real(-1, 1, 4, 3)}
EXAMPLES = {"b": real(-1, 1, 4, 3), "w": real(-1, 1, 4, 4, 3)}


def optimizer_programs(name: str, fn: Callable[..., Any], spec: Optimizer) -> Iterator[Program]:
    with warnings.catch_warnings(action="ignore"):  # seeds instead of keys
        optimizer = optax.with_extra_args_support(spec.make(fn))

    def moved(params: Any, grads: Any, **extra: Any) -> tuple[Any, list[Any]]:
        updates, state = optimizer.update(grads, optimizer.init(params), params, **extra)
        new = optax.apply_updates(params, updates)
        if name.endswith("eval_params"):
            new = fn(state, new)
        numbers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        return new, numbers

    def with_value(params: Any, grads: Any, value: Any) -> Any:
        return moved(params, grads, value=value)

    def with_function(params: Any, target: Any) -> Any:
        def distance(p: Any) -> Any:
            squares = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), p, target)
            return 0.5 * sum(jax.tree.leaves(squares))

        value, grads = jax.value_and_grad(distance)(params)
        if spec.wants == "objective":
            return moved(params, grads, obj_fn=distance)
        return moved(params, grads, value=value, grad=grads, value_fn=distance)

    names = [k for k in PARAMS if spec.vectors or len(PARAMS[k].shape) > 1]
    params = {k: PARAMS[k] for k in names}
    grads = {k: EXAMPLES[k] for k in names} if spec.batch else params
    made: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "": (moved, (params, grads)),
        "value": (with_value, (params, grads, real(0, 10))),
        "function": (with_function, (params, params)),
        "objective": (with_function, (params, params)),
    }
    update, args = made[spec.wants]
    yield Program(name, "update", update, args, state=True, varies=spec.varies)


def schedule_programs(name: str, fn: Callable[..., Any], spec: Schedule) -> Iterator[Program]:
    if name.startswith("inject"):
        yield from optimizer_programs(name, fn, Optimizer(spec.make))
        return
    schedule = spec.make(fn)
    yield Program(name, "int32 step", schedule, (whole(0, STEPS),))
    yield Program(name, "float step", schedule, (real(0, STEPS),))


# --- running them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A run in the format beside one in float32."""

    way: str
    given: Any
    args: list[np.ndarray]
    low: list[np.ndarray]
    wide: list[np.ndarray]

    @property
    def ordinary(self) -> bool:
        return self.way in ORDINARY

    @property
    def broken(self) -> bool:
        """Whether there is an infinity or a NaN."""
        return any(not np.isfinite(x).all() for x in self.low)

    def off(self, tolerance: float, usual: Sequence[float]) -> bool:
        """Whether a result is wrong, relative to what is usual for it."""
        return any(
            distance(low, wide) > tolerance * max(largest(wide), size)
            for low, wide, size in zip(self.low, self.wide, usual, strict=True)
        )

    @property
    def vanished(self) -> bool:
        pairs = zip(self.low, self.wide, strict=True)
        return any(bool(wide.any()) and not low.any() for low, wide in pairs)

    @property
    def still(self) -> list[tuple[int, int]]:
        """Of each array of parameters, how many stay as they are, of those that float32 moves."""
        found = []
        for old, low, wide in zip(self.args, self.low, self.wide, strict=False):
            moves = np.abs(wide - old) > 1e-9 * np.abs(old)
            found.append((int((moves & (low == old)).sum()), int(moves.sum())))
        return found

    @property
    def stuck(self) -> bool:
        """Whether most of an array of parameters stays as it is."""
        return any(moves and still >= 0.5 * moves for still, moves in self.still)


def largest(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(finite.max(initial=0.0))


def distance(low: np.ndarray, wide: np.ndarray) -> float:
    both = np.isfinite(low) & np.isfinite(wide)
    return float(np.abs(low - wide)[both].max(initial=0.0))


class Runner:
    """Runs a program in a format and in float32, and keeps what fills of its ranges give."""

    def __init__(self, program: Program, format: str) -> None:
        self.program, self.format = program, format
        self._jitted = jax.jit(program.fn)
        rng = np.random.default_rng(0)
        ways = [(ORDINARY, RANDOM - RANDOM // 3), ((*ORDINARY, *CORNERS), RANDOM // 3)]
        self.outcomes = [
            self.run(self._filled([choice[i % len(choice)]], rng))
            for choice, n in ways
            for i in range(n)
        ]
        for _ in range(RANDOM // 3):  # each argument in its own way
            self.outcomes.append(self.run(self._filled([*ORDINARY, *CORNERS], rng)))
        for way in CORNERS:
            self.outcomes.append(self.run(self._filled([way], rng)))
        even = [o for o in self.outcomes if o.way == "even"]
        self.usual = [
            float(np.median([largest(o.wide[i]) for o in even])) for i in range(len(even[0].wide))
        ]

    def _filled(self, ways: Sequence[str], rng: np.random.Generator) -> tuple[str, Any]:
        def one(spec: Real | Whole) -> np.ndarray:
            return spec.fill(ways[int(rng.integers(len(ways)))], rng)

        return ways[0] if len(ways) == 1 else "mixed", jax.tree.map(one, self.program.args)

    def run(self, filled: tuple[str, Any], exact: bool = False, compiled: bool = True) -> Outcome:
        """Run on arguments; `exact` keeps them unrounded for float32."""
        way, args = filled
        fn = self._jitted if compiled else self.program.fn
        rounded = cast(jax.tree.map(np.asarray, args), DTYPES[self.format])
        wide = cast(args if exact else jax.tree.map(as_wide, rounded), np.float32)
        with jax.disable_jit(not compiled), np.errstate(all="ignore"):
            low_out = jax.tree.leaves(fn(*rounded))
        with np.errstate(all="ignore"):
            wide_out = jax.tree.leaves(self._jitted(*wide))
        return Outcome(
            way,
            rounded,
            numbers(jax.tree.leaves(rounded[0])) if self.program.state else [],
            numbers(low_out),
            numbers(wide_out),
        )

    def shows(self, o: Outcome, h: precir.Hazard) -> bool:
        """Whether a run shows what a finding says."""
        with np.errstate(all="ignore"):
            if (h.symptom == "stuck" and o.stuck) or (h.symptom == "zero" and o.vanished):
                return True
            off = not self.program.varies and o.off(BEYOND[self.format], self.usual)
            return o.broken or off

    def confirmation(self, h: precir.Hazard) -> str:
        """How a finding was confirmed; "" if it was not."""
        if h.witness is None:
            return "fill" if any(self.shows(o, h) for o in self.outcomes) else ""
        args, _ = h.witness
        exact = h.root == "input"
        for compiled, name in ((True, "witness"), (False, "witness, op by op")):
            try:
                outcome = self.run(("witness", args), exact, compiled)
            except Exception as error:  # some code runs only where it is compiled
                rich.print(f"{self.program.name}: {name}: {type(error).__name__}")
                continue
            if self.shows(outcome, h):
                return name
        return ""

    def shortfall(self, h: precir.Hazard) -> str:
        """Of a finding that nothing confirms: how far off the results are, at most."""
        if self.program.varies:
            return "no"
        outcomes = self.outcomes if h.witness is None else [self.run(("witness", h.witness[0]))]
        off = max(
            distance(low, wide) / max(largest(wide), 1e-30)
            for o in outcomes
            for low, wide in zip(o.low, o.wide, strict=True)
        )
        return f"no, {off:.1%} off"

    def missed(self, findings: Sequence[precir.Hazard]) -> dict[str, str]:
        """What fills show and no finding tells of: the symptom, and the fill."""
        told = {h.symptom for h in findings}
        found: dict[str, str] = {}
        with np.errstate(all="ignore"):
            for o in self.outcomes:
                if o.broken and not told & {"nan", "inf"}:
                    wide = any(not np.isfinite(x).all() for x in o.wide)
                    found.setdefault("not finite, in float32 too" if wide else "not finite", o.way)
                if o.ordinary and not told and not self.program.varies and self._far(o):
                    found.setdefault("wrong", o.way)
        if not told & {"stuck", "wrong", "zero"} and not self.program.varies and self._still():
            found["stuck"] = "even"
        return found

    def _still(self) -> bool:
        """Whether most of an array of parameters stays as it is, over all even fills."""
        counts = np.array([o.still for o in self.outcomes if o.way == "even"]).reshape(-1, 2)
        arrays = len(self.outcomes[0].still)
        sums = counts.reshape(-1, max(arrays, 1), 2).sum(0)
        return any(moves and still >= 0.6 * moves for still, moves in sums)

    def _far(self, o: Outcome) -> bool:
        """Whether a result is far off, by more than arguments rounded otherwise would make it."""
        if not o.off(2 * BEYOND[self.format], self.usual):
            return False
        rng = np.random.default_rng(0)
        unit = float(jnp.finfo(DTYPES[self.format]).eps)

        def nudged(x: np.ndarray) -> np.ndarray:
            whole = not jnp.issubdtype(x.dtype, jnp.floating)
            return x if whole else as_wide(x) * (1 + 2 * unit * rng.uniform(-1, 1, x.shape))

        others = [np.zeros_like(x) for x in o.wide]
        for _ in range(10):
            args = cast(jax.tree.map(nudged, o.given), np.float32)
            moved = numbers(jax.tree.leaves(self._jitted(*args)))
            others = [
                np.maximum(x, distance(a, b)) for x, a, b in zip(others, moved, o.wide, strict=True)
            ]
        least = [float(x.max(initial=0)) / BEYOND[self.format] for x in others]
        return o.off(
            2 * BEYOND[self.format], [max(*p) for p in zip(least, self.usual, strict=True)]
        )


def as_wide(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x)


def numbers(arrays: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(x).astype(np.float64) for x in arrays]


# --- what comes out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One finding."""

    program: Program
    hazard: precir.Hazard
    confirmed: bool
    how: str

    @property
    def place(self) -> str:
        """The file and line, from the package down."""
        _, package, below = self.hazard.file.rpartition("/optax/")
        return (
            f"{package[1:] + below if package else Path(self.hazard.file).name}:{self.hazard.line}"
        )

    @property
    def cells(self) -> tuple[str, ...]:
        h = self.hazard
        names = (self.program.name, self.program.part, h.format, h.severity, h.kind, h.symptom)
        return (*names, self.place, h.primitive, h.root, self.how)


HEADINGS = (
    "name", "part", "format", "severity", "kind", "symptom", "place", "primitive", "root",
    "confirmed",
)  # fmt: skip


@dataclass
class Report:
    """All of it.

    Attributes:
      names: the names checked.
      rows: the findings.
      missed: (name, part, format, symptom, fill) of what no finding tells of.
      refused: (name, part, format, why) of what cannot be called in a format.
      failed: the same of what can, where precir.check raises.
    """

    names: set[str] = field(default_factory=set)
    checks: int = 0
    rows: list[Row] = field(default_factory=list)
    missed: list[tuple[str, ...]] = field(default_factory=list)
    refused: list[tuple[str, ...]] = field(default_factory=list)
    failed: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, program: Program, format: str) -> None:
        """Check one program in one format."""
        self.names.add(program.name)
        self.checks += 1
        try:
            runner = Runner(program, format)
        except (TypeError, NotImplementedError, ValueError) as error:
            why = str(error).splitlines()[0][:120]
            self.refused.append((program.name, program.part, format, why))
            return
        try:
            findings = ask(program, format)
        except Exception as error:  # the rest is still worth having
            why = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            self.failed.append((program.name, program.part, format, why))
            return
        for h in findings:
            how = runner.confirmation(h)
            self.rows.append(Row(program, h, bool(how), how or runner.shortfall(h)))
        for symptom, way in runner.missed(findings).items():
            self.missed.append((program.name, program.part, format, symptom, way))

    @property
    def false(self) -> list[Row]:
        return [r for r in self.rows if not r.confirmed]

    @property
    def totals(self) -> dict[str, int]:
        return {
            "names": len(self.names),
            "checks": self.checks,
            "findings": len(self.rows),
            "names with findings": len({r.program.name for r in self.rows}),
            "confirmed": len(self.rows) - len(self.false),
            "false": len(self.false),
            "missed": len(self.missed),
            "cannot be called": len(self.refused),
            "check raised": len(self.failed),
        }


def ask(program: Program, format: str) -> list[precir.Hazard]:
    """Check a program, lines of optax counting as the user's own."""
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, "int32" if isinstance(s, Whole) else "float32"),
        program.args,
    )
    ranges = jax.tree.map(lambda s: precir.Range(s.low, s.high), program.args)
    with own_code(optax):
        return precir.check(program.fn, *shapes, format=format, ranges=ranges)


def is_noisy(spec: Loss | Optimizer | Schedule) -> bool:
    return isinstance(spec, Optimizer) and spec.varies


def abouts() -> Iterator[tuple[str, str]]:
    """Names that are called in a way of their own, and which."""
    for table in (LOSSES, OPTIMIZERS, SCHEDULES):
        for name, spec in table.items():
            wants = getattr(spec, "wants", "")
            said = [
                *(["with the loss's value"] if wants == "value" else []),
                *(["with the function it minimises"] if wants in ("function", "objective") else []),
                *(["noise: results are not compared"] if is_noisy(spec) else []),
                *([spec.about] if spec.about else []),
            ]
            if said:
                yield name, "; ".join(said)


def show(report: Report) -> None:
    table = Table(*HEADINGS)
    for row in report.rows:
        table.add_row(*row.cells, style=None if row.confirmed else "red")
    Console(width=max(Console().width, 200)).print(table)
    for name, rows in (
        ("missed", report.missed),
        ("cannot be called", report.refused),
        ("check raised", report.failed),
    ):
        for cells in rows:
            rich.print(f"{name}: {', '.join(cells)}".replace("[", r"\["))
    rich.print(report.totals)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    escaped = [[str(c).replace("|", "\\|") for c in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *escaped]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def write(path: Path, report: Report) -> None:
    packages = ("jax", "jaxlib", "numpy", "optax")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    silent = sorted(report.names - {r.program.name for r in report.rows})
    lines = [
        "# precir check on optax",
        "",
        "Made by `python benchmarks/optax_check.py`, which explains it.",
        "",
        f"{datetime.date.today()}, cpu, Python {platform.python_version()}, {versions}.",
        "",
        *markdown(("measure", "value"), [(k, str(v)) for k, v in report.totals.items()]),
        "## Findings",
        "",
        *markdown(HEADINGS, [r.cells for r in report.rows]),
        "## Missed",
        "",
        *markdown(("name", "part", "format", "symptom", "fill"), report.missed),
        "## Cannot be called in the format",
        "",
        *markdown(("name", "part", "format", "why"), report.refused),
        "## Where the check itself raised",
        "",
        *markdown(("name", "part", "format", "why"), report.failed),
        "## Nothing found",
        "",
        ", ".join(silent) + ".",
        "",
        "## Called in a way of their own",
        "",
        *markdown(("name", "how"), [a for a in abouts() if a[0] in report.names]),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="names that hold this")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--output", type=Path, help="where the Markdown goes")
    options = parser.parse_args()
    report = Report()
    warnings.simplefilter("ignore", DeprecationWarning)  # they are shipped all the same
    chosen = [p for p in programs() if options.only in p.name]
    for program in track(chosen, "checking", console=Console(stderr=True)):
        for format in options.formats:
            report.add(program, format)
    show(report)
    whole_run = not options.only and len(options.formats) == len(FORMATS)
    output = options.output
    if output is None and whole_run:
        output = ROOT / "benchmarks" / "results" / "optax_check.md"
    if output is not None:
        write(output, report)


if __name__ == "__main__":
    main()
