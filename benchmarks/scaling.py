"""Is precir linear in the program? Its time per equation at 1,000, 10,000 and 100,000 equations.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --sizes 1000 10000 --programs random --profile

Measured is the processor time of precir's own work: lowering JAX's program to the graph, the passes
(under a recipe) and emission. The trace before it and the trace of the emitted code are JAX's. For
each part, the time per equation at each size over that at the smallest: a part that is linear in
the program shows about 1 throughout. Three kinds of program:

train    A training step of a deep MLP: matrix products, norms and residuals, forward and backward,
         then AdamW's arithmetic for every weight. What repeats becomes loops and functions.
random   A random graph of elementwise ops, products, reductions and reshapes, half of whose
         operands were made just before, half anywhere. Almost nothing repeats.
nested   As random, in pieces of 100 equations, each under a named scope, in a scan, a cond or a
         custom rule of its own.
"""

import argparse
import cProfile
import datetime
import gc
import importlib.metadata
import os
import platform
import pstats
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich
from jax import lax
from rich.progress import track
from rich.table import Table

from precir.emit import emit, signature_of
from precir.lower import lower_jaxpr
from precir.passes.pipeline import run_passes
from precir.recipe import recipe

ROOT = Path(__file__).parent.parent
PARTS = ("lower", "passes", "emit")
SIZE = 8  # every tensor is [SIZE, SIZE]

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


# --- the programs ---------------------------------------------------------------------------------


def train(equations: int) -> Program:
    """A training step with so many layers that it has about so many equations."""
    layers = max(2, equations // 58)
    shape = jax.ShapeDtypeStruct((SIZE, SIZE), np.float32)
    params = {f"h_{i}": {"up": shape, "down": shape} for i in range(layers)}

    def block(p: Any, x: jax.Array) -> jax.Array:
        h = x * lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + 1e-6)
        return x + jnp.tanh(h @ p["up"]) @ p["down"]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for i in range(layers):
            with jax.named_scope(f"h_{i}"):
                x = block(params[f"h_{i}"], x)
        return jnp.sum(x * x)

    def update(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        return p - 1e-3 * m * lax.rsqrt(v + 1e-8), m, v

    def train_step(params: Any, m: Any, v: Any, x: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x)
        moved = jax.tree.map(update, params, m, v, grads)
        return [jax.tree.map(lambda _, t, i=i: t[i], params, moved) for i in range(3)]

    return train_step, (params, params, params, shape)


def step(rng: random.Random, values: list[jax.Array]) -> jax.Array:
    """One random equation, or two."""

    def pick() -> jax.Array:
        return values[rng.randrange(max(0, len(values) - 20) * rng.randrange(2), len(values))]

    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice((lax.add, lax.sub, lax.mul, lax.max))(pick(), pick())
    if kind < 5:
        return rng.choice((lax.tanh, lax.exp, lax.neg, lax.abs, lax.logistic))(pick())
    if kind == 5:
        return pick() * rng.random()
    if kind == 6:
        return lax.dot(pick(), pick())
    return lax.broadcast_in_dim(lax.reduce_sum(pick(), (0,)), (SIZE, SIZE), (1,))


def grow(rng: random.Random, values: list[jax.Array], equations: int) -> jax.Array:
    """Random equations on `values`, and one result that depends on the last of them."""
    values = list(values)
    for _ in range(equations):
        values.append(step(rng, values))
    total = values[-1]
    for value in values[-10:-1]:
        total = total + value
    return total


def random_(equations: int) -> Program:
    """Nothing but random equations; all of them are read."""

    def program(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        rng, values = random.Random(equations), [x, y]
        for _ in range(equations * 8 // 9):  # one kind in eight is two equations
            values.append(step(rng, values))
        return values[2:]

    return program, (jax.ShapeDtypeStruct((SIZE, SIZE), np.float32),) * 2


def nested(equations: int) -> Program:
    """Random pieces of about 100 equations, in scopes and sub-programs."""

    def program(x: jax.Array, y: jax.Array) -> jax.Array:
        rng = random.Random(equations)
        for i in range(max(3, equations // 100)):
            with jax.named_scope(f"piece_{i}"):
                x, y = y, piece(rng, i % 3, x, y)
        return y

    def piece(rng: random.Random, kind: int, x: jax.Array, y: jax.Array) -> jax.Array:
        seed = rng.random()

        def body(x: jax.Array, y: jax.Array) -> jax.Array:
            return grow(random.Random(seed), [x, y], 40 if kind == 1 else 80)

        if kind == 0:
            return lax.fori_loop(0, 3, lambda _, c: body(c, y), x)
        if kind == 1:
            return lax.cond(x[0, 0] > 0, body, lambda x, y: body(y, x), x, y)
        return jax.checkpoint(body)(x, y)

    return program, (jax.ShapeDtypeStruct((SIZE, SIZE), np.float32),) * 2


PROGRAMS = {"train": train, "random": random_, "nested": nested}


# --- the measurement ------------------------------------------------------------------------------


def count(jaxpr: Any) -> int:
    """Equations that hold no others."""
    total = 0
    for eqn in jaxpr.eqns:
        held = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))]
        inner = [count(j) for j in held if hasattr(j, "eqns")]
        total += sum(inner) if inner else 1
    return total


def measure(program: Program, name: str, profile: cProfile.Profile | None) -> dict[str, float]:
    """Seconds per equation of each part."""
    fn, args = program
    traced = jax.jit(fn).trace(*args)
    signature = signature_of(fn, traced.in_tree, jax.tree.structure(traced.out_info), (), "main")
    gc.collect()
    gc.disable()  # as `precir.compile` does
    if profile is not None:
        profile.enable()
    times = [time.process_time()]
    graph, _ = lower_jaxpr(traced.jaxpr, name="main", labels=signature.labels())
    times.append(time.process_time())
    state, _ = run_passes(graph, recipe(name))
    times.append(time.process_time())
    emit(state.graph, signature)
    times.append(time.process_time())
    if profile is not None:
        profile.disable()
    gc.enable()
    equations = count(traced.jaxpr.jaxpr)
    seconds = {part: times[i + 1] - times[i] for i, part in enumerate(PARTS)}
    seconds["all"] = times[-1] - times[0]
    return {"equations": equations} | {k: s / equations for k, s in seconds.items()}


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The least of each."""
    return {key: min(run[key] for run in runs) for key in runs[0]}


# --- what is shown and written --------------------------------------------------------------------


def make_rows(results: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """A row for every program and size."""
    rows = [["program", "equations", *PARTS, "all", "verdict"]]
    for program, sizes in results.items():
        for found in sizes:
            ratios = [found[part] / sizes[0][part] for part in (*PARTS, "all")]
            verdict = "" if found is sizes[0] else "linear" if ratios[-1] <= 1.5 else "NOT LINEAR"
            shown = [f"{ratio:.2f}" for ratio in ratios]
            rows.append([program, f"{found['equations']:,.0f}", *shown, verdict])
    return rows


def write(path: Path, rows: list[list[str]], name: str) -> None:
    """Write the rows as Markdown, with where and when they were measured."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("precir", "jax", "numpy"))
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)"
    lines = [
        "# Scaling of precir's own work",
        "",
        "Made by `python benchmarks/scaling.py`, which explains it.",
        "",
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, {versions}.",
        f"Recipe {name}. Processor time per equation, over that at the smallest size: 1 is linear.",
        "",
        *(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])),
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
    """Measure every program at every size."""
    parser = argparse.ArgumentParser(description="precir's time per equation against the size.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--recipe", default="fp8")
    parser.add_argument("--repeats", type=int, default=3, help="of which the best counts (3)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scaling.md")
    options = parser.parse_args()
    measure(PROGRAMS["random"](200), options.recipe, None)  # what is imported and cached once
    results: dict[str, list[dict[str, float]]] = {}
    turns = [(program, size) for program in options.programs for size in options.sizes]
    for program, size in track(turns, "measuring", transient=True):
        made = PROGRAMS[program](size)
        profile = cProfile.Profile() if options.profile else None
        repeats = 1 if options.profile else options.repeats
        runs = [measure(made, options.recipe, profile) for _ in range(repeats)]
        results.setdefault(program, []).append(best(runs))
        if profile is not None:
            print(program, size)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    rows = make_rows(results)
    table = Table(*rows[0], title="Processor time per equation, over that at the smallest size")
    for row in rows[1:]:
        table.add_row(*row)
    rich.print(table)
    if not options.profile:
        write(options.out, rows, options.recipe)


if __name__ == "__main__":
    main()
