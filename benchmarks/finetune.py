"""A pretrained transformer fine-tuned in every precision, and read in fewer bits afterwards.

    python benchmarks/finetune.py                     all of it (about an hour on two cores)
    python benchmarks/finetune.py --only memory       a part of it

training   Test accuracy, loss, state and time of a step under every recipe, three seeds.
failure    What `precir check` says of the train step in float16, before anything is trained; then
           what becomes of it under 16-true.
memory     One step on an H100 that is not there, by XLA's own compiler.
inference  The weights trained in float32, read in fewer bits: bfloat16, and FP8 and int8 as
           `precir.quantize_model` stores them (about two minutes).

The model and the data are those of examples/finetune_minilm.py: all-MiniLM-L6-v2, 22.6 million
parameters, all of them trained. Everything but `memory` runs on this machine, where FP8 is
emulated: its numbers are exact, its times are not those of a GPU. The results go to
benchmarks/results/finetune.md, section by section: a part that was not run keeps the section it
has.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.append(str(Path(__file__).parent.parent / "examples"))

import finetune_minilm as finetune
import infer_minilm as inference
import jax
import minilm
import numpy as np
from rich.filesize import decimal

import precir

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "finetune.md"
BASE = "32-true"
TRAINED = (BASE, "bf16-mixed", "16-mixed", "bf16-true", "16-true", "fp8")
ONCE = ("fp8-block", "fp8-lm-o2", "64-true")  # with the first seed alone
SEEDS = (0, 1, 2)
WEIGHTS, POINTS, COSINE = 0.30, 1.0, 0.99  # wanted of 8 bits: at most, at most, at least
WITHIN = {"bf16-mixed": 1.0, "16-mixed": 1.0, "fp8": 2.0, "fp8-block": 2.0}  # points
CONFIG = finetune.Config(steps=60)
COLUMNS = {"recipe", "model", "", "matrix products in"}  # of text


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, numbers to the right."""
    rule = ["---" if heading in COLUMNS else "---:" for heading in headings]
    return [row(*headings), row(*rule), *(row(*cells) for cells in rows)]


@cache
def data() -> tuple[finetune.Batch, finetune.Batch]:
    return finetune.load_data(CONFIG)


@cache
def compiled() -> dict[str, precir.Compiled]:
    return finetune.compile_steps((*TRAINED, *ONCE), CONFIG)


@cache
def arguments() -> tuple[Any, Any]:
    """Those of the first step."""
    state = finetune.init_state(CONFIG, minilm.load_params())
    return state, next(finetune.batches(data()[0], CONFIG))


# --- training -------------------------------------------------------------------------------------


def training(out: Path) -> Iterator[list[str]]:
    """Every recipe, seed by seed; then some with the first seed alone."""
    encoder, runs = minilm.load_params(), []
    kept = trained(out)
    kept.parent.mkdir(parents=True, exist_ok=True)
    for names, seed in (*((TRAINED, seed) for seed in SEEDS), ((BASE, *ONCE), SEEDS[0])):
        with finetune.make_progress() as progress:
            config = replace(CONFIG, seed=seed)
            steps = {name: compiled()[name] for name in names}
            done, params = finetune.train(steps, config, encoder, data(), progress)
        if not runs:
            np.savez(kept, **flat(params[BASE]))
        known = {(run.recipe, run.seed) for run in runs}
        runs += [run for run in done if (run.recipe, run.seed) not in known]
        kept.with_suffix(".json").write_text(json.dumps([vars(run) for run in runs]))
        finetune.plot(runs, out.with_suffix(".png"))
        yield training_lines(runs)


def training_lines(runs: list[finetune.Run]) -> list[str]:
    """What the runs gave: one row for each recipe."""
    base = {run.seed: run.accuracy for run in runs if run.recipe == BASE}
    rows = []
    for name in dict.fromkeys(run.recipe for run in runs):
        mine = [run for run in runs if run.recipe == name]
        with finetune.digits(name):
            step = compiled()[name]
            report = step.report(*step.init(*arguments()))
        worse = np.mean([100 * (base[run.seed] - run.accuracy) for run in mine])
        rows.append([
            name,
            finetune.formats(report),
            *(f"{100 * run.accuracy:.2f}" for run in mine),
            *[""] * (len(base) - len(mine)),
            f"{np.mean([100 * run.accuracy for run in mine]):.2f}",
            "" if name == BASE else f"{worse:+.2f}",
            f"NaN from step {len(mine[0].losses)}" if mine[0].failed
            else f"{np.mean([run.loss for run in mine]):.4f}",
            decimal(mine[0].state_bytes),
            decimal(report.residual_bytes),
            f"{finetune.relative_time(runs, name):.2f}",
            verdict(name, worse, any(run.failed for run in mine)),
        ])  # fmt: skip
    seeds = [f"seed {seed}" for seed in base]
    head = (
        "recipe", "matrix products in", *seeds, "mean", "below float32", "train loss", "state",
        "residuals", "step", "",
    )  # fmt: skip
    return [
        f"{CONFIG.steps} steps of {CONFIG.batch} snippets of at most {CONFIG.length} tokens, "
        f"AdamW, learning rate {CONFIG.lr:g} at its peak; {len(data()[0].labels):,} snippets to "
        f"train on, {len(data()[1].labels):,} to test on. Accuracy in %, of the weights in the "
        "plain float32 model; *below float32* in points, a mean over the seeds. *State* is what "
        "lives between steps, *residuals* what is kept between the forward and the backward pass. "
        f"*Step*: median time, that of {BASE} being 1, all recipes taking each step in turn, on "
        f"a CPU ({cpu()}). float32 products are float32 there (no TF32, at any "
        "jax_default_matmul_precision), bfloat16 and float16 products are as XLA's CPU compiler "
        "makes them, FP8 operands are emulated. A run whose loss is NaN is ended.",
        "",
        *table(head, rows),
        "",
        "![Accuracy and losses](finetune.png)",
    ]


def verdict(recipe: str, worse: float, failed: bool) -> str:
    """What was wanted of a recipe, and whether it is so."""
    if recipe == "16-true":
        return "fails, as it must" if failed else "MISSED: did not fail"
    if recipe not in WITHIN:
        return ""
    wanted = f"{WITHIN[recipe]:g} point{'s' * (WITHIN[recipe] != 1)}"
    return f"within {wanted}" if worse <= WITHIN[recipe] else f"MISSED {wanted}"


def cpu() -> str:
    """The processor's name, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def trained(out: Path) -> Path:
    """Where the weights that float32 gave lie, for the part `inference`: not a result."""
    return ROOT / "out" / "minilm" / f"{out.stem}.npz"


def flat(params: Any) -> dict[str, np.ndarray]:
    """Arrays by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name = jax.tree_util.keystr
    return {name(at, simple=True, separator="/"): np.asarray(leaf) for at, leaf in leaves}


# --- failure --------------------------------------------------------------------------------------


def failure(out: Path) -> Iterator[list[str]]:
    """The linter's findings, then what a few steps under 16-true do."""
    state, batch = arguments()
    hazards = precir.check(finetune.train_step, state, batch, format="float16")
    step = precir.compile(finetune.train_step, recipe="16-true")
    losses = []
    for batch in list(finetune.batches(data()[0], CONFIG))[:3]:
        state, loss = step(state, batch)
        losses.append(float(loss))
    broken = sum(not np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    arrays = len(jax.tree.leaves(state.params))
    yield [
        "`precir check examples/finetune_minilm.py:train_step --format float16`, which trains "
        "nothing, says:",
        "",
        "```",
        *"\n\n".join(str(hazard).rstrip() for hazard in hazards).split("\n"),
        "```",
        "",
        f"Under `16-true` the losses of the first three steps are then "
        f"{', '.join(f'{loss:.4f}' for loss in losses)}, and {broken} of {arrays} arrays of "
        "parameters hold NaN.",
    ]


# --- memory ---------------------------------------------------------------------------------------

# Fabric's strings, those with the state in 16 bits too (as Fabric keeps it), and recipes in 8 bits.
IN_MEMORY: dict[str, precir.Recipe] = {
    **{name: precir.recipe(name) for name in finetune.FABRIC},
    "bf16-true, state bfloat16": precir.recipe("bf16-true", state="bfloat16"),
    "16-true, state float16": precir.recipe("16-true", state="float16"),
    **{name: precir.recipe(name) for name in ("fp8", "fp8-block", "fp8-lm-o2")},
}
HALF = "bf16-true, state bfloat16"


def memory(out: Path) -> Iterator[list[str]]:
    """A step where activations count: 64 snippets of 128 tokens."""
    config = finetune.Config(length=128, batch=64)
    state = jax.eval_shape(
        lambda: finetune.init_state(config, minilm.init_params(config.encoder, 0))
    )
    shape = (config.batch, config.length)
    batch = finetune.Batch(
        jax.ShapeDtypeStruct(shape, np.int32),
        jax.ShapeDtypeStruct(shape, bool),
        jax.ShapeDtypeStruct(shape[:1], np.int32),
    )
    found: dict[str, precir.target.Memory] = {}
    for name, recipe in IN_MEMORY.items():
        step = precir.compile(finetune.make_train_step(config), recipe=recipe, donate_argnums=(0,))
        with finetune.digits(recipe):
            packed = jax.eval_shape(step.init, state, batch)
            found[name] = step.memory(*packed, target="h100")
        print(name, memory_cells(found[name], found[BASE]), flush=True)
    head = ("recipe", "arguments", "temporaries", "peak", "of float32's", "FP8 products")
    share = found[HALF].peak / found[BASE].peak
    yield [
        f"One step of {config.batch} snippets of {config.length} tokens, state donated, as XLA's "
        "compiler for an H100 plans it; nothing runs. *Arguments* are the state and the batch. "
        "float32 products there take TF32 at JAX's default precision.",
        "",
        *table(head, [[name, *memory_cells(it, found[BASE])] for name, it in found.items()]),
        "",
        "Fabric's claim for `*-true` is half the memory (the article it comes from measured 0.53 "
        "of float32's). Fabric stores weights and Adam's moments in 16 bits there. precir leaves "
        f'what it is given as it is, unless told: `precir.recipe("bf16-true", state="bfloat16")` '
        f"takes half of the state and {share:.2f} of the peak.",
    ]


def memory_cells(it: precir.target.Memory, base: precir.target.Memory) -> list[str]:
    """One row of the table, its name aside."""
    sizes = [f"{size / 1e6:,.0f} MB" for size in (it.argument, it.temporary, it.peak)]
    products = f"{it.low} of {sum(p.count for p in it.products)}" if it.low else "none"
    return [*sizes, f"{it.peak / base.peak:.2f}", products]


# --- inference ------------------------------------------------------------------------------------


def infer(out: Path) -> Iterator[list[str]]:
    """All test snippets, by the weights that float32 training gave (seed 0) and as downloaded."""
    file = trained(out)
    if not file.exists():
        raise SystemExit("the part inference reads what the part training wrote: run it first")
    shape = finetune.init_state(CONFIG, minilm.init_params(CONFIG.encoder, 0)).params
    with np.load(file, allow_pickle=False) as arrays:
        named = list(flat(shape))
        weights = [jax.numpy.asarray(arrays[name]) for name in named]
    params = jax.tree.unflatten(jax.tree.structure(shape), weights)
    seen, asked = data()
    found = inference.infer(inference.make_models(params, CONFIG, seen), asked)
    rows = [
        [*cells, wanted(found, name, asked)]
        for name, cells in zip(found, inference.make_rows(found, asked), strict=True)
    ]
    untrained = {**params, "encoder": minilm.load_params()}
    plain = inference.infer(inference.make_models(untrained, CONFIG, seen), asked)
    yield [
        "The weights that float32 training gave (seed 0), answering all test snippets. *Time*: "
        f"median over batches of 128, float32 being 1, all models taking each batch in turn, on a "
        f"CPU ({cpu()}; float32 products in float32, no TF32). FP8 is emulated there: its numbers "
        "are exact, its time says nothing of a GPU. *Weights*: all of them, scales included. "
        "*Right*: by the classifier that was trained with the encoder. *Cosine*: of each embedding "
        f"with that of float32. fp8-inference is calibrated on {inference.SEEN} snippets "
        f"of those to train on; int8-inference needs none, and multiplies in bfloat16, to which it "
        f"dequantises each weight for its product. Wanted of 8 bits: at most {WEIGHTS:.2f} of "
        f"float32's bytes, at most {POINTS:g} point fewer right, a mean cosine of at least "
        f"{COSINE}.",
        "",
        *table((*inference.HEADINGS, ""), rows),
        "",
        "The embeddings of the weights as they are downloaded, before any fine-tuning:",
        "",
        *table(
            ("model", *inference.HEADINGS[-2:]),
            [[row[0], *row[-2:]] for row in inference.make_rows(plain, asked)],
        ),
    ]


def wanted(found: dict[str, inference.Inference], name: str, asked: finetune.Batch) -> str:
    """What a model in 8 bits misses of what was wanted of it."""
    if not name.startswith(tuple(inference.STORED)):
        return ""
    first, it = found["float32"], found[name]
    worse = 100 * (finetune.right(first.logits, asked) - finetune.right(it.logits, asked))
    misses = {
        "bytes": it.weight_bytes > WEIGHTS * first.weight_bytes,
        "accuracy": worse > POINTS,
        "cosine": it.cosines(first).mean() < COSINE,
    }
    missed = [what for what, so in misses.items() if so]
    return f"MISSED: {', '.join(missed)}" if missed else "all within"


# --- the file -------------------------------------------------------------------------------------

PARTS: dict[str, tuple[str, Callable[[Path], Iterator[list[str]]]]] = {
    "training": ("Training", training),
    "failure": ("What breaks in float16, before and after", failure),
    "memory": ("Memory on an H100", memory),
    "inference": ("Inference", infer),
}


def write(path: Path, title: str, lines: Sequence[str]) -> None:
    """Put one section into the file, in the order of PARTS; the others stay."""
    sections = dict(
        part.split("\n", 1)
        for part in re.split(r"^## ", path.read_text() if path.exists() else "", flags=re.M)[1:]
    )
    packages = ("jax", "jaxlib", "optax", "numpy", "safetensors", "tokenizers")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    made = f"{datetime.date.today()}, {platform.machine()}; Python {platform.python_version()}, "
    sections[title] = "\n".join(["", f"{made}{versions}.", "", *lines, "", ""])
    text = "# A pretrained transformer in every precision\n\n"
    text += "Made by `python benchmarks/finetune.py`, which explains it.\n\n"
    text += "".join(
        f"## {name}\n{sections[name].rstrip()}\n\n"
        for name, _ in PARTS.values()
        if name in sections
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n")


def main() -> None:
    """Make the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    for part in options.only:
        title, section = PARTS[part]
        for lines in section(options.out):
            write(options.out, title, lines)  # after each row or seed: all of it takes long


if __name__ == "__main__":
    main()
