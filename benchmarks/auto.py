"""`precir.choose` on two models: its curve against the uniform recipes, predicted and measured.

    python benchmarks/auto.py                      # half an hour on two cores, and 4.5 GB
    python benchmarks/auto.py --only curve time

- curve: cost against error for the GPT of examples/train_gpt.py after 200 steps, on a card whose
  rates are an H100's over 64, so that a model this small is as much bound by its products as a
  large one is on the H100; errors measured on batches that were not chosen by.
- minilm: the same for the train step of examples/finetune_minilm.py after 20 steps: a pretrained
  transformer of 22.6 million parameters, on snippets of reviews (both downloaded once).
- random: random assignments for the GPT, from two seeds, and the ratio of predicted to measured
  error.
- random_minilm: the same for MiniLM, from the first seed.
- time: how long choosing takes for a GPT of 12 layers, what is measured being known.

Writes benchmarks/results/auto.md, section by section (a part that was not run keeps the section it
has), and a picture for each model.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax

import precir
from precir.auto.choose import UNIFORM, Chooser
from precir.auto.cut import BF16, F32, FP8, FP8_BLOCK
from precir.auto.errors import Errors
from precir.auto.places import find_places
from precir.auto.plot import plot
from precir.auto.sense import Moved, Sensitivity
from precir.passes.taps import tap_values
from precir.target.cards import card

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT / "examples"))
import train_gpt  # noqa: E402

H100 = card("h100")
SMALL = dataclasses.replace(
    H100, name="an H100 with a 64th of its rates", flops={k: v / 64 for k, v in H100.flops.items()}
)


class Chosen(NamedTuple):
    """What was chosen for a train step, and batches that it was not chosen by."""

    choice: precir.Choice
    others: list[tuple[Any, ...]]


def chosen(step: Any, state: Any, batches: Sequence[Any], seen: int, tolerance: float) -> Chosen:
    """By the first batches, `seen` of them; `state` is one under way."""
    given = [(state, batch) for batch in batches]
    return Chosen(
        precir.choose(step, given[:seen], tolerance=tolerance, target=SMALL), given[seen:]
    )


@cache
def gpt() -> Chosen:
    config = train_gpt.Config(layers=2, width=64, steps=400)
    step = train_gpt.make_train_step(config)
    train, _ = train_gpt.make_batches(train_gpt.read_text(), config)
    state = under_way(step, train_gpt.init_state(config), train[:200])
    return chosen(step, state, train[200:212], 4, 0.002)


@cache
def minilm() -> Chosen:
    import finetune_minilm as finetune  # which reads files by packages that are an extra
    from minilm import load_params

    config, train = finetune.Config(), 20
    data, _ = finetune.load_data(config)
    batches = list(islice(finetune.batches(data, config), train + 6))
    step = finetune.make_train_step(config)
    state = under_way(step, finetune.init_state(config, load_params()), batches[:train])
    return chosen(step, state, batches[train:], 2, 0.01)


def under_way(step: Any, state: Any, batches: Sequence[Any]) -> Any:
    """The state after these batches, in float32."""
    run = jax.jit(step)
    for batch in batches:
        state, _ = run(state, batch)
    return state


# --- the curve ------------------------------------------------------------------------------------


def curve(found: Chosen, picture: Path) -> list[str]:
    """Every point of the curve and the uniform recipes, measured: as a table and a picture."""
    choice = found.choice
    points = [*[p for p in choice.curve if p.error.total > 0], *choice.uniform[1:]]
    recipes = [choice.recipe_of(p) if p.name == "auto" else precir.recipe(p.name) for p in points]
    errors = choice.measure(recipes, found.others)
    measured = list(zip(points, errors, strict=True))
    plot(choice, picture, measured)
    half = next(p for p in choice.uniform if p.name == "bf16-mixed").seconds
    lines = [
        "| | time, bf16-mixed is 1 | error predicted | error measured | loss | gradients |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for p, e in sorted(measured, key=lambda x: -x[0].seconds):
        cells = (p.name, f"{p.seconds / half:.3f}", *(
            f"{x:.1e}" for x in (p.error.total, e.total, e.loss, e.results)
        ))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    auto = [(p, e) for p, e in measured if p.name == "auto"]
    lines.append("")
    for p, e in measured:
        if p.name in UNIFORM:
            under = [a for a, b in auto if b.total <= e.total and a.seconds <= p.seconds]
            best = min((a.seconds for a in under), default=math.inf)
            said = f"{best / p.seconds:.3f} of its time" if under else "nothing"
            lines.append(f"- With no more measured error than {p.name}: {said}.")
    return [*lines, "", f"![Cost against error]({picture.name})"]


def of_gpt(options: argparse.Namespace) -> list[str]:
    return curve(gpt(), RESULTS / "auto.png")


def of_minilm(options: argparse.Namespace) -> list[str]:
    return curve(minilm(), RESULTS / "auto_minilm.png")


# --- random assignments ---------------------------------------------------------------------------


def at_random(options: argparse.Namespace) -> list[str]:
    return [said for seed in options.seeds for said in ratios(gpt(), options.count, seed)]


def at_random_minilm(options: argparse.Namespace) -> list[str]:
    return [*ratios(minilm(), options.count, options.seeds[0])]


def ratios(found: Chosen, count: int, seed: int) -> Iterator[str]:
    """Predicted over measured error, of each of so many assignments."""
    chooser: Chooser = found.choice._chooser
    draw, points = random.Random(seed), []
    for i in range(count):
        share = (0.1, 0.3, 0.6, 0.9)[i % 4]
        formats = {}
        for node in (*chooser.places.multiplied, *chooser.places.ops):
            kinds = [BF16, FP8, FP8_BLOCK] if node in chooser.places.products else [BF16]
            formats[node] = draw.choice(kinds) if draw.random() < share else F32
        points.append(chooser.point(formats))
    errors = found.choice.measure([found.choice.recipe_of(p) for p in points], found.others)
    each = sorted(p.error.total / e.total for p, e in zip(points, errors, strict=True))
    within = sum(1 / 3 <= r <= 3 for r in each)
    yield (
        f"- {count} random assignments (seed {seed}): predicted over measured error {each[0]:.2f} "
        f"to {each[-1]:.2f}, median {each[count // 2]:.2f}; {within} within a factor of 3."
    )


# --- the time to choose ---------------------------------------------------------------------------


def times(options: argparse.Namespace) -> list[str]:
    return [choosing(4), choosing(12)]


def choosing(layers: int) -> str:
    """With made-up sensitivities: what they are does not change how long choosing takes."""
    step = train_gpt.make_train_step(train_gpt.Config(layers=layers))
    state = jax.eval_shape(lambda: train_gpt.init_state(train_gpt.Config(layers=layers)))
    tokens = jax.ShapeDtypeStruct((8, 65), "int32")
    compiled = precir.compile(step)
    program = compiled.program(state, tokens)
    start = time.perf_counter()
    places = find_places(program.graph)
    draw = random.Random(0)
    taps = tap_values(program.graph, places.wish)[1]
    made = [
        Sensitivity(t, tuple(Moved(*[10 ** draw.uniform(-12, -6)] * 2, 0.0) for _ in t.roundings))
        for t in taps
    ]
    chooser = Chooser(
        compiled, program, Errors(made, 0.29), H100, places, len(program.graph.outputs) - 1
    )
    chooser.recipe(chooser.choice(0.01).point)
    spent = time.perf_counter() - start
    return f"- {layers} layers, {len(program.graph):,} equations: {spent:.1f} s"


# --- the file -------------------------------------------------------------------------------------

PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], list[str]]]] = {
    "curve": ("A GPT", of_gpt),
    "minilm": ("MiniLM, fine-tuned", of_minilm),
    "random": ("Random assignments", at_random),
    "random_minilm": ("Random assignments, MiniLM", at_random_minilm),
    "time": ("Choosing, once the tensors are measured", times),
}


def write(path: Path, title: str, lines: Sequence[str]) -> None:
    """Put one section into the file, in the order of PARTS; the others stay."""
    text = path.read_text() if path.exists() else ""
    sections = dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.M)[1:])
    sections[title] = "\n".join(["", *lines, ""])
    head = "# The compiler chooses\n\nMade by `python benchmarks/auto.py`, which explains it: "
    text = f"{head}jax {jax.__version__}, CPU.\n\n"
    text += "".join(
        f"## {name}\n{sections[name].rstrip()}\n\n" for name, _ in PARTS.values()
        if name in sections
    )  # fmt: skip
    path.write_text(text.rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--count", type=int, default=30, help="random assignments a seed (30)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of them (0 1)")
    options = parser.parse_args()
    for part in options.only:
        title, section = PARTS[part]
        lines = section(options)
        write(RESULTS / "auto.md", title, lines)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
