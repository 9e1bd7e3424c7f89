"""Compile cost: the first call of `precir.compile` over the first call of `jax.jit`.

    python benchmarks/compile_time.py
    python benchmarks/compile_time.py --rounds 1 --layers 4 --scan --recipes float32

The program is one training step of a GPT (flax, biases everywhere, AdamW from optax), its layers
unrolled or in one scan. Every measurement is a fresh process that imports both JAX and precir and
starts JAX's backend with a trivial jit before any clock runs; plain and precir take turns, and the
numbers are medians over the rounds.

A first call is taken apart into its steps, which `jax.stages` offers one by one: trace, lower to
StableHLO, XLA's compile, run. precir adds two between trace and lower: its own work (lower to its
graph, the passes, emission, import of the module) and the trace of the emitted code, with which
what JAX does besides running the two functions is counted.

Two clocks: the processor time of the whole process, XLA's threads included, and the time on the
wall. Verdicts go by processor time, which other programs on the machine change least. Results are
ratios, no seconds: those of a CPU say nothing about another.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.progress import track
from rich.table import Table

import precir

ROOT = Path(__file__).parent.parent
RECIPES = ("float32", "fp8", "bf16-mixed")
PHASES = ("trace", "precir", "retrace", "lower", "XLA", "run")
MOST = {"float32": 1.10, "fp8": 2.0}  # what a first call may cost, in plain first calls
SLACK = 0.5  # seconds that fp8 may add to 1.3 times plain's trace and lower


@dataclass(frozen=True)
class Case:
    """One program: how many layers, and whether they are one scan."""

    layers: int
    scan: bool = False

    def __str__(self) -> str:
        return f"scan of {self.layers}" if self.scan else f"{self.layers} layers"


# --- the program ----------------------------------------------------------------------------------

WIDTH, HEADS, CONTEXT, BATCH = 128, 4, 64, 4


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to what comes in."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        batch, length, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(nn.LayerNorm(name="ln_1")(x))
        split = qkv.reshape(batch, length, 3, HEADS, width // HEADS)
        q, k, v = split.transpose(2, 0, 3, 1, 4)
        causal = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(causal, q @ k.swapaxes(2, 3) * (width // HEADS) ** -0.5, -jnp.inf)
        mixed = (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + nn.Dense(width, name="proj")(mixed)
        h = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="ln_2")(x)))
        return x + nn.Dense(width, name="down")(h), None


class GPT(nn.Module):
    """From bytes, [batch, length], to the logits of each next byte, [batch, length, 256]."""

    case: Case

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(256, WIDTH, name="wte")(tokens)
        x = x + nn.Embed(CONTEXT, WIDTH, name="wpe")(jnp.arange(tokens.shape[1]))
        if self.case.scan:
            options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(Block, length=self.case.layers, **options)(name="h")(x, None)
        else:
            for i in range(self.case.layers):
                x, _ = Block(name=f"h_{i}")(x, None)
        return nn.Dense(256, name="lm_head")(nn.LayerNorm(name="ln_f")(x))


class State(NamedTuple):
    """All that one step hands to the next."""

    params: Any
    opt_state: Any


def make_step(case: Case) -> tuple[Callable[..., Any], tuple[State, jax.Array]]:
    """The train step of a case, and arguments for it.

    They are zeros, since nothing here depends on values, and made without compiling anything.
    """
    model, optimizer = GPT(case), optax.adamw(1e-3)

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def train_step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, tokens)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    def init() -> State:
        params = model.init(jax.random.key(0), jnp.zeros((1, CONTEXT), jnp.int32))["params"]
        return State(params, optimizer.init(params))

    state = jax.tree.map(lambda s: jnp.asarray(np.zeros(s.shape, s.dtype)), jax.eval_shape(init))
    return train_step, (state, jnp.asarray(np.zeros((BATCH, CONTEXT + 1), np.int32)))


# --- one measurement, in a process of its own -----------------------------------------------------


class Timer:
    """Seconds of each phase: of processor time, and on the wall."""

    def __init__(self) -> None:
        self.phases: dict[str, Any] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = np.array([time.process_time(), time.perf_counter()])
        yield
        passed = np.array([time.process_time(), time.perf_counter()]) - start
        self.phases[phase] = self.phases.get(phase, 0.0) + passed

    def timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The function, its time counted."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(phase):
                return function(*args, **kwargs)

        return timed

    def watch_precir(self) -> None:
        """Count the time of precir's own work from here on."""
        for module, name in (("compile", "make_program"), ("program", "emit"), ("program", "load")):
            owner = sys.modules[f"precir.{module}"]
            setattr(owner, name, self.timed(getattr(owner, name), "precir"))


def measure(case: Case, recipe: str | None) -> dict[str, Any]:
    """A first call phase by phase, under a recipe or (None) plain."""
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.float32(1)))
    step, args = make_step(case)
    timer = Timer()
    if recipe is None:
        compiled = jax.jit(step)
        with timer("trace"):
            traced = compiled.trace(*args)
    else:
        compiled = precir.compile(timer.timed(step, "trace"), recipe=recipe)
        timer.watch_precir()
        with timer("all"):
            traced = compiled.trace(*args)
        parts = timer.phases
        parts["retrace"] = parts.pop("all") - parts["trace"] - parts["precir"]
    with timer("lower"):
        lowered = traced.lower()
    with timer("XLA"):
        executable = lowered.compile()
    with timer("run"):
        jax.block_until_ready(executable(*args))
    phases = {phase: times.tolist() for phase, times in timer.phases.items()}
    return {"phases": phases, "equations": count(traced.jaxpr.jaxpr)}


def count(jaxpr: Any) -> tuple[int, int]:
    """Equations, those that hold others counted as well; and those that hold none."""
    nested = flat = 0
    for eqn in jaxpr.eqns:
        held = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))]
        inner = [count(j) for j in held if hasattr(j, "eqns")]
        nested += 1 + sum(n for n, _ in inner)
        flat += sum(f for _, f in inner) if inner else 1
    return nested, flat


def in_process(case: Case, recipe: str | None) -> dict[str, Any]:
    """`measure`, in a fresh process."""
    arguments = json.dumps({"case": asdict(case), "recipe": recipe})
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--measure", arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"measuring {case} under {recipe or 'jax.jit'} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- what is shown and written --------------------------------------------------------------------


class Cost:
    """Medians over the rounds, by one clock (0: processor time, 1: wall)."""

    def __init__(self, rounds: list[dict[str, Any]], clock: int) -> None:
        times = [{k: v[clock] for k, v in r["phases"].items()} for r in rounds]
        self.phases = {p: median(t.get(p, 0.0) for t in times) for p in PHASES}
        self.total = median(sum(t.values()) for t in times)
        self.front = median(sum(t.values()) - t["XLA"] - t["run"] for t in times)

    def share(self, *phases: str) -> str:
        return f"{sum(self.phases[p] for p in phases) / self.total:.0%}"


HEADINGS = (
    "program", "recipe", "first call", "by the wall", "XLA alone", "the rest", "allowed",
    *(f"of it {p}" if p == PHASES[0] else p for p in PHASES), "verdict",
)  # fmt: skip


def make_row(case: Case, recipe: str, plain: list[Any], precir_: list[Any]) -> list[str]:
    """Ratios to plain, and the shares of precir's first call."""
    base, cost = Cost(plain, 0), Cost(precir_, 0)
    ratio = cost.total / base.total
    wall = Cost(precir_, 1).total / Cost(plain, 1).total
    xla = cost.phases["XLA"] / base.phases["XLA"]
    most, allowed = MOST.get(recipe), ""
    met = most is None or ratio <= most
    if recipe == "fp8":
        limit = 1.3 + SLACK / base.front
        allowed = f"{limit:.2f}"
        met = met and cost.front / base.front <= limit
    verdict = "" if most is None else f"{'ok' if met else 'MISSED'}, {most:.2f}"
    return [
        str(case), recipe, f"{ratio:.3f}", f"{wall:.3f}", f"{xla:.2f}",
        f"{cost.front / base.front:.2f}", allowed, *(cost.share(p) for p in PHASES), verdict,
    ]  # fmt: skip


def write(
    path: Path, rows: list[list[str]], sizes: dict[str, tuple[int, int]], rounds: int
) -> None:
    """Write the rows as Markdown, with where and when they were measured."""
    packages = ("precir", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)"
    programs = "; ".join(f"{case}: {n:,} nested, {f:,} flat" for case, (n, f) in sizes.items())
    lines = [
        "# Compile cost",
        "",
        "Made by `python benchmarks/compile_time.py`, which explains it.",
        "",
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, {versions}.",
        f"Medians of {rounds} rounds. Equations: {programs}.",
        "",
        "First call, by the wall (both of all phases), XLA alone and the rest (all but XLA and the",
        "run) are precir's over plain's; allowed is what the rest may be. Then the shares of",
        "precir's first call.",
        "",
        *(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def version(package: str) -> str:
    """Return the installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(source tree)"


def main() -> None:
    """Measure every program under every recipe, and compare."""
    parser = argparse.ArgumentParser(description="First call of precir over that of jax.jit.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 12])
    parser.add_argument("--scan", type=int, nargs="*", default=[12])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "compile_time.md"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        given = json.loads(options.measure)
        print(json.dumps(measure(Case(**given["case"]), given["recipe"])))
        return
    cases = [*(Case(n) for n in options.layers), *(Case(n, scan=True) for n in options.scan)]
    runs: dict[tuple[Case, str | None], list[Any]] = {}
    turns = [(case, recipe) for case in cases for recipe in (None, *options.recipes)]
    plan = [turn for r in range(options.rounds) for turn in (turns, turns[::-1])[r % 2]]
    for turn in track(plan, "measuring", transient=True):
        runs.setdefault(turn, []).append(in_process(*turn))
    rows = [
        make_row(case, recipe, runs[case, None], runs[case, recipe])
        for case in cases
        for recipe in options.recipes
    ]
    table = Table(*HEADINGS, title="precir over plain, and shares of precir's first call")
    for row in rows:
        table.add_row(*row)
    rich.print(table)
    sizes = {str(case): runs[case, None][0]["equations"] for case in cases}
    write(options.out, rows, sizes, options.rounds)


if __name__ == "__main__":
    main()
