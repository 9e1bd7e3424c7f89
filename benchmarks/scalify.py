"""Cost of carrying scales: precir and jax-scalify (arXiv 2407.17353) on one program.

    python benchmarks/scalify.py --setup build/scalify              once: its own environment
    python benchmarks/scalify.py --scalify-python build/scalify/bin/python

The program is one SGD step of an MLP from scratch, the example that jax-scalify ships, at its own
size and at a tiny one, in float32 and in float16. jax-scalify needs JAX 0.4.31, so each system is
compared with plain jax.jit of its own environment, and the two plain ones with each other for
information.

first call    Trace, lowering and XLA's compile, each in a fresh process; the systems take turns.
step          Calls one after the other, plain and the system taking turns in one process.
equations     Of the jaxpr that is compiled, those that hold others counted as well; and those that
              hold none.
HLO lines     Of the optimised program.

All are ratios of medians, the times processor times on one core, and no seconds: those of a CPU
say nothing about another. "Static" scales are known when the program is compiled: the arguments
are plain arrays. "Dynamic" ones come in with the parameters, which are float16 data with a scale
each and go out so again.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jax
import rich
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("scalify_worker.py")
PEER = ("jax==0.4.31", "jaxlib==0.4.31", "numpy<2", "jax-scalify==0.1.1")


@dataclass(frozen=True)
class Case:
    """One MLP: its sizes, its numbers, and how many calls are timed together."""

    name: str
    dtype: str
    sizes: tuple[int, ...]
    batch: int
    calls: int


CASES = tuple(
    Case(f"{name}, {dtype}", dtype, sizes, batch, calls)
    for name, sizes, batch, calls in (
        ("784-512-512-10", (784, 512, 512, 10), 128, 4),
        ("64-32-32-10", (64, 32, 32, 10), 32, 200),
    )
    for dtype in ("float32", "float16")
)


@dataclass(frozen=True)
class System:
    """One system, and what it may cost in plain first calls, steps and equations."""

    name: str
    system: str
    dtypes: tuple[str, ...] = ("float32", "float16")
    recipe: str = "float32"
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    state: str = "static"
    most: dict[str, float] = field(default_factory=dict, hash=False)
    peer: bool = False  # whether it lives in jax-scalify's environment

    @property
    def baseline(self) -> str:
        """The plain system that it is compared with."""
        return "plain, peer" if self.peer else "plain"


LIMITS = {
    "static": {"first call": 1.5, "step": 1.05, "nested": 1.5},
    "dynamic": {"first call": 2.2, "step": 1.05, "nested": 3.0},
}


def of_precir(dtype: str, recipe: str, state: str) -> System:
    """A recipe of precir; with dynamic scales its state is stored in float16."""
    stored = "float16" if state == "dynamic" else None
    return System(
        f"precir {recipe}, {state}", "precir", (dtype,), recipe, {"state": stored}, state,
        LIMITS[state],
    )  # fmt: skip


SYSTEMS = (
    System("plain", "plain"),
    System("plain, peer", "plain", peer=True),
    System("jax-scalify", "scalify", peer=True),
    System("precir float32", "precir", ("float32",), most=LIMITS["static"]),
    of_precir("float32", "scaled-32", "static"),
    of_precir("float32", "scaled-32", "dynamic"),
    of_precir("float16", "scaled-16", "static"),
    of_precir("float16", "scaled-16", "dynamic"),
)

# --- measuring ------------------------------------------------------------------------------------


def in_process(python: str, task: str, case: Case, system: System, rounds: int) -> dict[str, Any]:
    """What the worker says, in a fresh process of the system's environment."""
    given = asdict(case) | asdict(system) | {"task": task, "rounds": rounds}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [python, str(WORKER), json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"measuring {system.name} on {case.name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(pythons: dict[bool, str], rounds: int) -> dict[tuple[Case, str], dict[str, Any]]:
    """The medians of each system on each case; `pythons` is of precir (False) and of the peer."""
    pairs = [
        (case, system)
        for case in CASES
        for system in SYSTEMS
        if case.dtype in system.dtypes and system.peer in pythons
    ]
    turns = [pair for r in range(rounds) for pair in (pairs, pairs[::-1])[r % 2]]
    calls: dict[tuple[Case, str], list[dict[str, Any]]] = {}
    for case, system in track(turns, "first calls", transient=True):
        found = in_process(pythons[system.peer], "first call", case, system, rounds)
        calls.setdefault((case, system.name), []).append(found)
    results = {}
    for case, system in track(pairs, "steps", transient=True):
        found = in_process(pythons[system.peer], "steps", case, system, 5 * rounds + 1)
        runs = calls[case, system.name]
        results[case, system.name] = runs[0] | {
            "first call": median(run["first call"] for run in runs),
            "plain": median(found["plain"]),
            "step": median(found["system"]) / median(found["plain"]),
        }
    return results


# --- what is shown and written --------------------------------------------------------------------

HEADINGS = (
    "program", "system", "first call", "step", "equations", "flat", "HLO lines", "verdict",
)  # fmt: skip
MEASURES = ("first call", "step", "nested", "flat", "lines")


def make_rows(
    results: dict[tuple[Case, str], dict[str, Any]], cases: tuple[Case, ...] = CASES
) -> list[list[str]]:
    """A row for every system that is not plain, on each case."""
    rows = []
    for case in cases:
        for system in SYSTEMS:
            found, base = (results.get((case, name)) for name in (system.name, system.baseline))
            if system.system == "plain" or found is None or base is None:
                continue
            ratios = {m: found[m] / base[m] for m in MEASURES if m != "step"}
            ratios["step"] = found["step"]
            cells = [f"{ratios[m]:.2f}" for m in MEASURES]
            rows.append([case.name, system.name, *cells, verdict(system, ratios)])
    return rows


def verdict(system: System, ratios: dict[str, float]) -> str:
    """Which of the limits are kept."""
    names = {"nested": "equations"}
    limits = system.most.items()
    missed = [f"{names.get(m, m)} {most}" for m, most in limits if ratios[m] > most]
    return f"MISSED {', '.join(missed)}" if missed else "ok" if system.most else ""


def plain_rows(results: dict[tuple[Case, str], dict[str, Any]]) -> list[list[str]]:
    """Plain jit of precir's environment over plain jit of the peer's."""
    rows = []
    for case in CASES:
        ours, theirs = results[case, "plain"], results.get((case, "plain, peer"))
        if theirs is not None:
            measures = ("first call", "plain", "nested", "lines")
            rows.append([case.name, *(f"{ours[m] / theirs[m]:.2f}" for m in measures)])
    return rows


def markdown(headings: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]


def write(path: Path, results: dict[tuple[Case, str], dict[str, Any]], rounds: int) -> None:
    """Write the rows as Markdown, with where and when they were measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("precir", "jax", "jaxlib", "numpy"))
    device = f"{jax.devices()[0].device_kind} ({platform.machine()}, one core)"
    lines = [
        "# Cost of carrying scales, beside jax-scalify",
        "",
        "Made by `python benchmarks/scalify.py`, which explains it.",
        "",
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, {versions}; "
        f"the peer: {', '.join(PEER)}.",
        f"Medians of {rounds} first calls and {5 * rounds + 1} rounds of steps.",
        "",
        "Each system over plain jax.jit of its own environment. Limits with static scales: first",
        "call 1.5, step 1.05, equations 1.5; with dynamic ones 2.2, 1.05 and 3.",
        "",
        *markdown(HEADINGS, make_rows(results)),
    ]
    if plain_rows(results):
        headings = ("program", "first call", "step", "equations", "HLO lines")
        lines += ["", "Plain jax.jit of precir's environment over that of jax-scalify's.", ""]
        lines += markdown(headings, plain_rows(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def version(package: str) -> str:
    """Return the installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(source tree)"


def set_up(folder: Path) -> None:
    """Make jax-scalify's environment, with the Python that runs this (3.12 at most)."""
    if sys.version_info >= (3, 13):
        raise SystemExit("jaxlib 0.4.31 needs Python 3.12 or older: run --setup with one")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, *PEER], check=True)
    rich.print(f"now: --scalify-python {folder / 'bin' / 'python'}")


def main() -> None:
    """Measure every system on every case, and compare."""
    parser = argparse.ArgumentParser(description="Cost of scales over plain jax.jit.")
    parser.add_argument("--setup", type=Path, metavar="DIR", help="make jax-scalify's environment")
    parser.add_argument("--scalify-python", metavar="PATH", help="the Python of that environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scalify.md")
    options = parser.parse_args()
    if options.setup:
        set_up(options.setup)
        return
    pythons = {False: sys.executable}
    if options.scalify_python:
        pythons[True] = options.scalify_python
    results = measure(pythons, options.rounds)
    table = Table(*HEADINGS, title="Over plain jax.jit of the same environment")
    for row in make_rows(results):
        table.add_row(*row)
    rich.print(table)
    write(options.out, results, options.rounds)


if __name__ == "__main__":
    main()
