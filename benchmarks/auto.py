"""`precir.choose` on a small GPT: its curve against the uniform recipes, predicted and measured.

    python benchmarks/auto.py                      # about ten minutes on two cores
    python benchmarks/auto.py --only curve time

- curve: cost against error for the GPT of examples/train_gpt.py after 200 steps, on a card whose
  rates are an H100's over 64, so that a model this small is as much bound by its products as a
  large one is on the H100; errors measured on batches that were not chosen by.
- random: random assignments, and the ratio of predicted to measured error.
- time: how long choosing takes for a GPT of 12 layers, what is measured being known.

Writes benchmarks/results/auto.md and auto.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

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

PARTS = ("curve", "random", "time")
H100 = card("h100")
SMALL = dataclasses.replace(
    H100, name="an H100 with a 64th of its rates", flops={k: v / 64 for k, v in H100.flops.items()}
)


def trained(config: train_gpt.Config, steps: int) -> tuple[Any, Any, Any]:
    """The step, a state under way and the batches."""
    step = train_gpt.make_train_step(config)
    train, _ = train_gpt.make_batches(train_gpt.read_text(), config)
    state, run = train_gpt.init_state(config), jax.jit(step)
    for tokens in train[:steps]:
        state, _ = run(state, tokens)
    return step, state, train[steps:]


def curve(choice: precir.Choice, batches: Any) -> list[str]:
    points = [*[p for p in choice.curve if p.error.total > 0], *choice.uniform[1:]]
    recipes = [choice.recipe_of(p) if p.name == "auto" else precir.recipe(p.name) for p in points]
    errors = choice.measure(recipes, batches)
    found = list(zip(points, errors, strict=True))
    plot(choice, RESULTS / "auto.png", found)
    half = next(p for p in choice.uniform if p.name == "bf16-mixed").seconds
    lines = [
        "| | time, bf16-mixed is 1 | error predicted | error measured | loss | gradients |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for p, e in sorted(found, key=lambda x: -x[0].seconds):
        cells = (p.name, f"{p.seconds / half:.3f}", *(
            f"{x:.1e}" for x in (p.error.total, e.total, e.loss, e.results)
        ))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    auto = [(p, e) for p, e in found if p.name == "auto"]
    lines.append("")
    for p, e in found:
        if p.name in UNIFORM:
            under = [a for a, b in auto if b.total <= e.total and a.seconds <= p.seconds]
            best = min((a.seconds for a in under), default=math.inf)
            said = f"{best / p.seconds:.3f} of its time" if under else "nothing"
            lines.append(f"- With no more measured error than {p.name}: {said}.")
    return [*lines, "", "![Cost against error](auto.png)", ""]


def at_random(choice: precir.Choice, batches: Any, count: int) -> list[str]:
    chooser: Chooser = choice._chooser
    draw, points = random.Random(0), []
    for i in range(count):
        share = (0.1, 0.3, 0.6, 0.9)[i % 4]
        formats = {}
        for node in (*chooser.places.multiplied, *chooser.places.ops):
            kinds = [BF16, FP8, FP8_BLOCK] if node in chooser.places.products else [BF16]
            formats[node] = draw.choice(kinds) if draw.random() < share else F32
        points.append(chooser.point(formats))
    errors = choice.measure([choice.recipe_of(p) for p in points], batches)
    ratios = sorted(p.error.total / e.total for p, e in zip(points, errors, strict=True))
    within = sum(1 / 3 <= r <= 3 for r in ratios)
    return [
        f"{count} random assignments: predicted over measured error {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}, median {ratios[count // 2]:.2f}; {within} within a factor of 3.",
        "",
    ]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--count", type=int, default=30, help="random assignments (30)")
    options = parser.parse_args()
    lines = [
        "# The compiler chooses", "", "Made by `python benchmarks/auto.py`, which explains it: "
        f"jax {jax.__version__}, CPU.", "",
    ]  # fmt: skip
    if {"curve", "random"} & set(options.only):
        config = train_gpt.Config(layers=2, width=64, steps=400)
        step, state, batches = trained(config, 200)
        given = [(state, b) for b in batches[:4]]
        choice = precir.choose(step, given, tolerance=0.002, target=SMALL)
        others = [(state, b) for b in batches[4:12]]
        if "curve" in options.only:
            lines += curve(choice, others)
        if "random" in options.only:
            lines += at_random(choice, others, options.count)
    if "time" in options.only:
        lines += ["Choosing, once the tensors are measured:", "", choosing(4), choosing(12), ""]
    (RESULTS / "auto.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
