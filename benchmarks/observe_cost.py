"""Observation cost: a train step that measures every tensor over the same step that does not.

    python benchmarks/observe_cost.py
    python benchmarks/observe_cost.py --rounds 5 --details amax

The step is that of examples/train_gpt.py at its default size. Both run compiled, on the same
arguments, with results left on the device; what the measuring step has seen is merged into what it
saw before, as `precir.observe` does. Plain and every detail take turns, so that whatever else runs
on the machine slows all alike; numbers are ratios of medians. A second plain step says how much two
equal programs differ here.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import rich
from rich.progress import track
from rich.table import Table

import precir
from precir.observe import Runner

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import train_gpt  # noqa: E402

DETAILS = ("amax", "moments", "full")
MOST = {"amax": 1.1, "full": 1.5}  # what a step may cost, in plain steps


def make_steps(details: list[str]) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """Each step, to be called and waited for; and how many tensors each measures."""
    arguments = list(train_gpt.train_step_args())
    program = precir.compile(train_gpt.train_step).program(*arguments)
    plain, again = jax.jit(program.main), jax.jit(lambda *args: program.main(*args))
    steps = {"plain": lambda: plain(*arguments), "plain again": lambda: again(*arguments)}
    counts = {}
    for detail in details:
        runner = Runner(program, detail)
        counts[detail] = len(runner.observed)

        def step(runner: Runner = runner) -> Any:
            return runner.run(arguments, ()), runner.seen

        steps[detail] = step
    return steps, counts


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round, after two that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for r in track(range(rounds + 2), "measuring", transient=True):
        for name in list(steps)[:: 1 if r % 2 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(steps[name]())
            if r > 1:
                times[name].append(time.perf_counter() - start)
    return times


def make_rows(times: dict[str, list[float]], counts: dict[str, int]) -> list[list[str]]:
    """Ratios to plain: of medians, and of the fastest."""
    rows = []
    for name in list(times)[1:]:
        ratio = median(times[name]) / median(times["plain"])
        fastest = min(times[name]) / min(times["plain"])
        most = MOST.get(name)
        verdict = "" if most is None else f"{'ok' if ratio <= most else 'MISSED'}, {most:.1f}"
        tensors = str(counts.get(name, ""))
        rows.append([name, tensors, f"{ratio:.2f}", f"{fastest:.2f}", verdict])
    return rows


HEADINGS = ("step", "tensors", "over plain", "fastest over fastest", "allowed")


def write(path: Path, rows: list[list[str]], rounds: int) -> None:
    """Write the rows as Markdown, with where and when they were measured."""
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)"
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    lines = [
        "# Cost of an observation",
        "",
        "Made by `python benchmarks/observe_cost.py`, which explains it.",
        "",
        f"{datetime.date.today()}, {device}, {versions}, medians of {rounds} rounds.",
        "",
        *(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure every detail, and compare."""
    parser = argparse.ArgumentParser(description="A step that measures over one that does not.")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--details", nargs="+", choices=DETAILS, default=list(DETAILS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/observe_cost.md")
    options = parser.parse_args()
    steps, counts = make_steps(options.details)
    rows = make_rows(measure(steps, options.rounds), counts)
    table = Table(*HEADINGS, title="A train step that measures every tensor, over the plain one")
    for row in rows:
        table.add_row(*row)
    rich.print(table)
    write(options.out, rows, options.rounds)


if __name__ == "__main__":
    main()
