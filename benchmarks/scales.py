"""Training with scales: what the scaling strategies keep of float32, over seeds.

    python benchmarks/scales.py                                       all of it
    python benchmarks/scales.py --tasks digits --only shifted --seeds 0   a part of it, smaller

Two models: an MLP on scikit-learn's digits (Adam, 480 steps) and the GPT of examples/train_gpt.py,
smaller (2 blocks, 300 steps). Each part trains the same step from the same seeds under several
recipes; parameters are scored in float32, on data held out. Nothing here uses loss scaling, save
the recipe 16-mixed itself. The verdict is on the mean over the seeds.

shifted       The loss is multiplied by 2^-18 and the optimizer (SGD with momentum, or Adam) undoes
              it: the same bits in float32, but gradients below what float16 holds. Plain float16
              must fail (the GPT fails in it unshifted as well: digits are the fair control);
              under scaled-16 the accuracy stays within one point.

state         Weights and Adam's moments live in float16 between steps (`step.init`).

scaled-fp8    Products in FP8 under propagated scales: training loss within 0.06 (the mean of the
              last 20 steps).

recipes       All other recipes of 16 and 8 bits: held-out loss within 0.02.

rescales      How many rescales by a measured factor a compiled step has in each layer: at most 2,
              as Scalify (arXiv 2407.17353) has.

magnitudes    How many of the 16-bit data tensors of a scaled-16 step (64 elements or more) have a
              root mean square within 2^-2 to 2^2, at the start of a run and at its end, with state
              in float32; "seen" with the statistics of a pilot of 50 float32 steps (`stats=`).
              Scalify has 0.89 of an MLP with gradients rescaled. The picture shows every tensor,
              beside those of the same step without scales.

The results go to benchmarks/results/scales.md, section by section: a part that was not run keeps
the section it has.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import math
import platform
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich
from rich.progress import track
from rich.table import Table
from scales_tasks import TASKS, Task

import precir
from precir.observe import instrument
from precir.passes.observe import named_values

ROOT = Path(__file__).parent.parent

# --- the parts that train -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """A recipe, and how far what a part looks at may be from float32's."""

    name: str
    recipe: Any
    within: float | None = None  # None: nothing is asked
    must_fail: bool = False  # a control: it must be further away than `within`

    def verdict(self, difference: float) -> str:
        """Say whether the mean difference is what it should be; worse is positive."""
        if self.within is None:
            return ""
        inside = difference <= self.within  # False for NaN
        if self.must_fail:
            return "does not fail: the part is not hard" if inside else "fails, as it must"
        return f"within {self.within}" if inside else f"MISSED {self.within}"


@dataclasses.dataclass(frozen=True)
class Part:
    """What is trained, and which of a run's scores counts."""

    measure: str
    entries: tuple[Entry, ...]
    shifted: bool = False


FLOAT32 = Entry("float32", "float32")


PARTS = {
    "shifted": Part(
        "accuracy",
        (
            FLOAT32,
            Entry("16-true", "16-true", 0.01, must_fail=True),
            Entry("scaled-16", "scaled-16", 0.01),
            Entry("16-mixed", "16-mixed", 0.01),
        ),
        shifted=True,
    ),
    "state": Part(
        "held-out loss",
        (
            FLOAT32,
            Entry("scaled-16, float32 state", ("scaled-16", {"state": None}), 0.02),
            Entry("scaled-16, float16 state", ("scaled-16", {"state": "float16"}), 0.02),
        ),
    ),
    "scaled-fp8": Part(
        "training loss",
        (FLOAT32, Entry("fp8", "fp8", 0.06), Entry("scaled-fp8", "scaled-fp8", 0.06)),
    ),
    "recipes": Part(
        "held-out loss",
        (
            FLOAT32,
            *(
                Entry(name, name, 0.02)
                for name in (
                    "bf16-mixed", "16-mixed", "fp8", "fp8-delayed", "fp8-row", "fp8-block", "mxfp8",
                )
            ),
        ),
    ),
}  # fmt: skip
ALL = (*PARTS, "rescales", "magnitudes")


def make_recipe(given: Any) -> precir.Recipe:
    """The recipe of an entry: a name, or a name and changes."""
    name, changes = given if isinstance(given, tuple) else (given, {})
    return precir.recipe(name).replace(**changes)


@dataclasses.dataclass(frozen=True)
class Run:
    """The scores of one training run."""

    training_loss: float
    held_out_loss: float
    accuracy: float

    def __getitem__(self, measure: str) -> float:
        return float(getattr(self, measure.replace("-", "_").replace(" ", "_")))


def train(task: Task, step: Any, shifted: bool, seed: int, steps: int) -> Run:
    """Call `step` once on every batch, from a fresh state."""
    batches = task.batches(seed, steps)
    state, _ = step.init(task.start(shifted, seed), batches[0])
    losses = []
    for batch in batches:
        state, loss = step(state, batch)
        losses.append(loss)
    scores = task.evaluate(step.unpack(state).params)
    return Run(float(np.mean(losses[-20:])), scores.loss, scores.accuracy)


@functools.cache
def runs_of(
    task: Task, recipe: precir.Recipe, shifted: bool, seeds: tuple[int, ...], steps: int
) -> list[Run]:
    """The runs under a recipe, one for each seed."""
    step = precir.compile(task.make_step(shifted), recipe=recipe)
    shown = track(seeds, f"{task.name}, {recipe.name}", transient=True)
    return [train(task, step, shifted, seed, steps) for seed in shown]


def measure(task: Task, part: Part, seeds: list[int]) -> dict[str, list[Run]]:
    """The runs of every entry of a part, one for each seed."""
    return {
        entry.name: runs_of(task, make_recipe(entry.recipe), part.shifted, tuple(seeds), task.steps)
        for entry in part.entries
    }


MEASURES = ("training loss", "held-out loss", "accuracy")


def difference(measure: str, runs: list[Run], base: list[Run]) -> float:
    """How much worse the mean over the seeds is."""
    by_seed = [run[measure] - plain[measure] for run, plain in zip(runs, base, strict=True)]
    return float(np.mean(by_seed)) * (-1 if measure == "accuracy" else 1)


def training_rows(
    task: str, part: Part, runs: dict[str, list[Run]], seeds: list[int]
) -> list[list[str]]:
    """A row for every entry that was run."""
    rows = []
    for entry in part.entries:
        found = runs[entry.name]
        worse = difference(part.measure, found, runs[FLOAT32.name])
        means = [float(np.mean([run[m] for run in found])) for m in MEASURES]
        rows.append(
            [
                task, entry.name, *(f"{run[part.measure]:.4f}" for run in found),
                *(f"{mean:.4f}" for mean in means),
                "" if entry is FLOAT32 else f"{worse:+.4f}", entry.verdict(worse),
            ]
        )  # fmt: skip
    heading = ["model", "recipe", *(f"seed {seed}" for seed in seeds), *MEASURES, "worse by", ""]
    return [heading, *rows]


# --- rescales by layer ----------------------------------------------------------------------------


def layer_of(scope: str) -> str:
    """The layer that a scope is in: h_0, layer_1, ...; what is in none is by its first name."""
    names = [name for name in scope.split("/") if name and name != "GPT"]
    numbered = [name for name in names if re.fullmatch(r"\D+_\d+", name)]
    return (numbered or names or ["no scope"])[0]


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph, those of its sub-programs too."""
    for node in graph:
        yield node
        for region in node.regions:
            yield from all_nodes(region)


def count_rescales(step: Any, args: tuple[Any, ...]) -> Counter[str]:
    """How many rescales a step has in each layer whose factor comes from a measured magnitude."""
    program = step.program(*args)
    return Counter(
        layer_of(node.scope) for node in all_nodes(program.graph) if node.op in MEASURING
    )


MEASURING = ("rms_scale",)  # ops that measure what a rescale then divides by


def rescale_rows(tasks: list[str]) -> list[list[str]]:
    """A row for every layer."""
    rows = [["model", "recipe", "layer", "rescales by a measured factor", ""]]
    for name in tasks:
        task = TASKS[name]
        for recipe in ("scaled-16", "scaled-fp8"):
            step = precir.compile(task.make_step(False), recipe=recipe)
            args = step.init(task.start(False, 0), task.batches(0, 1)[0])
            counts = count_rescales(step, args)
            for layer, n in sorted(counts.items()):
                rows.append([name, recipe, layer, str(n), "at most 2" if n <= 2 else "MISSED 2"])
            rows.append([name, recipe, "all", str(counts.total()), ""])
    return rows


# --- magnitudes -----------------------------------------------------------------------------------

GOOD, ELEMENTS, SEEN = 2.0, 64, 10  # |log2 rms|; of a tensor; batches observed
PILOT = 50  # float32 steps of which statistics are taken


@dataclasses.dataclass(frozen=True)
class Point:
    """One tensor: where it is, and the logarithm to base 2 of its root mean square."""

    layer: str
    phase: str
    log2_rms: float

    @property
    def good(self) -> bool:
        return abs(self.log2_rms) <= GOOD


def kept(value: Any, recipe: str) -> bool:
    """Whether a value is one of the tensors: of 16 bits under scales, without them of any format.

    Another copy of the numbers of a 16-bit value is not one.
    """
    large = math.prod(value.type.shape) >= ELEMENTS
    copies = value.node is not None and value.node.op in ("cast", "stop_gradient")
    if copies and value.node.inputs[0].type.dtype == value.type.dtype:
        return False
    return large and (recipe == "float32" or value.type.dtype == "float16")


def pilot(task: Task) -> Any:
    """Statistics of some of the first PILOT steps in float32."""
    step = precir.compile(task.make_step(False))
    state, seen = task.start(False, 0), []
    for i, batch in enumerate(task.batches(0, PILOT)):
        if i % 10 == 9:
            seen.append((state, batch))
        state, _ = step(state, batch)
    return precir.observe(task.make_step(False), seen, detail="moments")


def observe_points(task: Task, recipe: str, times: tuple[int, ...]) -> dict[int, list[Point]]:
    """The tensors of a step in program order, over some batches after each number of steps.

    State is in float32 between steps: what is stored in float16 fills it up to its largest element
    and says nothing about propagation. A tensor of zeros has no magnitude and is left out.
    """
    name, _, seen = recipe.partition(", ")
    stats = pilot(task) if seen else None
    chosen_recipe = make_recipe((name, {"state": None}))
    step = precir.compile(task.make_step(False), recipe=chosen_recipe, stats=stats)
    batches, state = task.batches(0, max(times) + SEEN), task.start(False, 0)
    program = step.program(state, batches[0])
    chosen = {v for v in named_values(program.graph, "moments").values() if kept(v, recipe)}
    tool = instrument(program, lambda value, _: value in chosen)
    watched, squares, found = jax.jit(tool.call), np.zeros(len(tool.exposed)), {}
    for done, batch in enumerate(batches):
        if not any(time <= done < time + SEEN for time in times):
            state, _ = step(state, batch)
            continue
        (state, _), results = watched(state, batch)
        for i, exposed in enumerate(tool.exposed):
            squares[i] += np.mean(np.asarray(results[exposed.output], np.float64) ** 2) / SEEN
        if done + 1 - SEEN in times:
            pairs = zip(tool.exposed, squares, strict=True)
            points = [point_of(e.value, square) for e, square in pairs if 0 < square < math.inf]
            found[done + 1 - SEEN], squares = points, np.zeros_like(squares)
    return found


def point_of(value: Any, square: float) -> Point:
    """The point of a value with this mean square."""
    node = value.node
    phase = "argument" if node is None else node.phase or "forward"
    layer = layer_of(node.scope) if node is not None and node.scope else phase
    return Point(layer, phase, math.log2(square) / 2)


def magnitude_rows(found: dict[tuple[str, str, int], list[Point]]) -> list[list[str]]:
    """Shares by layer, and over all."""
    rows = [["model", "recipe", "after", "layer", "tensors", "good", "lowest", "highest", ""]]
    for (task, recipe, done), points in found.items():
        layers = dict.fromkeys(point.layer for point in points)
        for layer in (*layers, "all"):
            held = [p for p in points if layer in ("all", p.layer)]
            if not held:
                continue
            share = np.mean([p.good for p in held])
            logs = [p.log2_rms for p in held]
            judged = layer == "all" and recipe != "float32"
            verdict = ("above 0.9" if share > 0.9 else "MISSED 0.9") if judged else ""
            rows.append(
                [
                    task, recipe, str(done), layer, str(len(held)), f"{share:.3f}",
                    f"{min(logs):.1f}", f"{max(logs):.1f}", verdict,
                ]
            )  # fmt: skip
    return rows


COLOURS = {
    "forward": "#0072b2",
    "backward": "#d55e00",
    "update": "#009e73",
    "argument": "#777777",
}


def plot(found: dict[tuple[str, str, int], list[Point]], path: Path) -> None:
    """Every tensor's magnitude by layer: a row of axes for each model and time."""
    from matplotlib.figure import Figure  # a figure of its own needs no display

    rows = list(dict.fromkeys((task, done) for task, _, done in found))
    recipes = list(dict.fromkeys(recipe for _, recipe, _ in found))
    size = (6 * len(recipes), 3.2 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(recipes), sharey="row", squeeze=False)
    for axes_row, (task, done) in zip(grid, rows, strict=True):
        for axes, recipe in zip(axes_row, recipes, strict=True):
            draw(axes, found.get((task, recipe, done), []))
            axes.set_title(f"{task}, {recipe}, after {done} steps", loc="left")
        axes_row[0].set_ylabel("log2 of root mean square")
    shown = dict(zip(*reversed(grid[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), frameon=False, loc="outside upper right", ncols=4)
    figure.savefig(path, dpi=110)


def draw(axes: Any, points: list[Point]) -> None:
    """The points of one program, those of a layer beside each other."""
    layers = list(dict.fromkeys(p.layer for p in points))  # as they come in the program
    axes.axhspan(-GOOD, GOOD, color="#000000", alpha=0.07, lw=0)
    for phase, colour in COLOURS.items():
        held = [(layers.index(p.layer), p.log2_rms) for p in points if p.phase == phase]
        if held:
            x, y = np.array(held).T
            order = np.argsort(x, kind="stable")
            counts = np.unique(x, return_counts=True)[1]
            inside = np.concatenate([np.linspace(-0.35, 0.35, int(n)) for n in counts])
            axes.plot(x[order] + inside, y[order], ".", color=colour, ms=4, alpha=0.7, label=phase)
    axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
    axes.grid(axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def observe_all(tasks: list[str]) -> dict[tuple[str, str, int], list[Point]]:
    """The points of every model under every recipe, early and late."""
    found = {}
    for name in tasks:
        task = TASKS[name]
        for recipe in ("float32", "scaled-16", "scaled-16, seen"):
            by_time = observe_points(task, recipe, (0, task.steps - SEEN))
            found.update({(name, recipe, done): points for done, points in by_time.items()})
    return found


# --- what is shown and written --------------------------------------------------------------------


def show(title: str, rows: list[list[str]]) -> None:
    """Print the rows as a table."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    rich.print(table)


def write(path: Path, part: str, rows: list[list[str]], note: str) -> None:
    """Put a part's section into the results, in place of the one that was there."""
    text = path.read_text() if path.exists() else ""
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    packages = ("precir", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
    versions = [f"{package} {version(package)}" for package in packages]
    device = f"{jax.devices()[0].device_kind} ({platform.machine()})"
    lines = [
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, "
        f"{', '.join(versions)}.",
        note,
        "",
        *(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])),
    ]
    sections[part] = "\n".join(lines)
    head = "# Training with scales\n\nMade by `python benchmarks/scales.py`, which explains it.\n"
    body = (f"\n## {name}\n\n{sections[name].strip()}\n" for name in ALL if name in sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "".join(body))


def version(package: str) -> str:
    """Return the installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(source tree)"


def run_part(part: str, tasks: list[str], seeds: list[int], out: Path) -> None:
    """Run, show and write one part."""
    if part == "rescales":
        rows, note = rescale_rows(tasks), "One compiled train step."
    elif part == "magnitudes":
        found = observe_all(tasks)
        rows = magnitude_rows(found)
        plot(found, out.with_suffix(".png"))
        note = f"Over {SEEN} batches each. Every tensor: ![magnitudes]({out.stem}.png)"
    else:
        rows = []
        for name in tasks:
            runs = measure(TASKS[name], PARTS[part], seeds)
            rows[len(rows) :] = training_rows(name, PARTS[part], runs, seeds)[bool(rows) :]
        note = f"Seeds: {PARTS[part].measure}. Losses in nats; worse by: than float32."
    show(part, rows)
    write(out, part, rows, note)


def main() -> None:
    """Run the parts asked for, one after the other."""
    parser = argparse.ArgumentParser(description="What the scaling strategies keep of float32.")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), metavar="PART")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scales.md")
    options = parser.parse_args()
    for part in options.only:
        run_part(part, options.tasks, options.seeds, options.out)


if __name__ == "__main__":
    main()
