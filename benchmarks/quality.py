"""Quality of training: how far from float32 does a model end up under each recipe?

    python benchmarks/quality.py                                     all of it
    python benchmarks/quality.py --only outlier --seeds 0 --steps 200    a part of it, smaller

The model, the text and the train step are those of examples/train_gpt.py at its default size. Each
part trains the same step with the same seeds under several recipes and compares the held-out loss,
always computed in float32. Two runs that differ in nothing but rounding drift apart, so a single
seed is read with care; the verdict is on the mean over the seeds.

default          The train step as it is.

outlier          A weight with one output channel 2^14 (above 1e4) times too large, undone by the
                 next op: x @ w becomes (x @ (w * gain)) / gain in every block's mlp/up, where gain
                 is [2^14, 1, 1, ...]. The parameter is still w, and a product with a power of two
                 is exact, so in float32 the loss, the gradients and the whole run are the same as
                 without. In FP8, one scale for the whole of w * gain that keeps the large channel
                 finite pushes all the others down to where E4M3 has two or three bits left.

small-gradient   The loss multiplied by 2^-18 and the gradients by 2^18: again the same in float32,
                 but on the way back all gradients are below what E5M2 holds. The control is fp8
                 with every scale fixed at 1, which must fail here: it shows that the part is hard.

The results go to benchmarks/results/quality.md, section by section: a part that was not run keeps
the section it has.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich
from rich.table import Table

import precir

ROOT = Path(__file__).parent.parent


def load_example() -> ModuleType:
    """Import examples/train_gpt.py, which is not part of a package, by its path."""
    spec = importlib.util.spec_from_file_location("train_gpt", ROOT / "examples" / "train_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_gpt"] = module
    spec.loader.exec_module(module)
    return module


gpt = load_example()


# --- the hard train steps -------------------------------------------------------------------------

GAIN = 2.0**14
SHIFT = 2.0**-18


def channel_gain(channels: int) -> jax.Array:
    """Return GAIN for the first output channel, 1 for the others."""
    return jnp.ones(channels).at[0].set(GAIN)


def amplify(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    """Multiply the first output channel of every mlp/up."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf * channel_gain(leaf.shape[-1]) if name.endswith("mlp/up/kernel") else leaf


def undo(layer: Callable[..., jax.Array], args: Any, kwargs: Any, context: Any) -> jax.Array:
    """Divide the first channel of what mlp/up returns, in place of what the layer returns."""
    y = layer(*args, **kwargs)
    return y / channel_gain(y.shape[-1]) if context.module.name == "up" else y


def make_outlier_step(config: Any) -> Callable[..., Any]:
    """The example's train step, with an outlier channel in the first weight of every MLP."""

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        with nn.intercept_methods(undo):
            amplified = jax.tree_util.tree_map_with_path(amplify, params)
            return gpt.loss_fn(amplified, tokens, config)

    def train_step(state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, tokens)
        return gpt.apply_gradients(state, grads, config), loss

    return train_step


def make_small_gradient_step(config: Any) -> Callable[..., Any]:
    """The example's train step, with all gradients 2^-18 times as large on their way back."""

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        return gpt.loss_fn(params, tokens, config) * SHIFT

    def train_step(state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, tokens)
        grads = jax.tree.map(lambda grad: grad / SHIFT, grads)
        return gpt.apply_gradients(state, grads, config), loss / SHIFT

    return train_step


# --- the parts ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """A recipe and how far its held-out loss may be from float32's."""

    name: str
    recipe: Any
    within: float | None = None  # None: float32 itself
    must_fail: bool = False  # a control: it must be further away than `within`

    def verdict(self, difference: float) -> str:
        """Say whether the mean difference is what it should be."""
        if self.within is None:
            return ""
        inside = abs(difference) <= self.within  # False for NaN
        if self.must_fail:
            return "does not fail: the part is not hard" if inside else "fails, as it must"
        return f"within {self.within}" if inside else f"MISSED {self.within}"


FLOAT32 = Entry("float32", "float32")
BF16 = Entry("bf16-mixed", "bf16-mixed", within=0.01)
FP8 = Entry("fp8", "fp8", within=0.02)
UNIT = Entry(
    "fp8, all scales 1", precir.recipe("fp8").replace(scaling="unit"), within=0.1, must_fail=True
)

PARTS = {
    "default": (gpt.make_train_step, (FLOAT32, BF16, FP8)),
    "outlier": (make_outlier_step, (FLOAT32, BF16, FP8, UNIT)),
    "small-gradient": (make_small_gradient_step, (FLOAT32, BF16, FP8, UNIT)),
}


def measure(part: str, steps: int, seeds: list[int]) -> dict[str, list[float]]:
    """Return the held-out loss of every entry of a part, one for each seed."""
    make_step, entries = PARTS[part]
    text = gpt.read_text()
    losses: dict[str, list[float]] = {}
    with gpt.make_progress() as progress:
        for entry in entries:
            # The seed is in the weights and in the batches, not in the step: one serves all seeds.
            step = precir.compile(
                make_step(gpt.Config(steps=steps)), recipe=entry.recipe, donate_argnums=(0,)
            )
            for seed in seeds:
                config = gpt.Config(steps=steps, seed=seed)
                name, batches = f"{entry.name}, seed {seed}", gpt.make_batches(text, config)
                _, run = gpt.train(name, step, config, batches, progress)
                losses.setdefault(entry.name, []).append(run.held_out_loss)
    return losses


# --- what is shown and written --------------------------------------------------------------------


def make_rows(part: str, losses: dict[str, list[float]], seeds: list[int]) -> list[list[str]]:
    """Return the heading, and a row for every entry."""
    base = np.array(losses[FLOAT32.name])
    rows = [["recipe", *(f"seed {seed}" for seed in seeds), "mean", "minus float32", "verdict"]]
    for entry in PARTS[part][1]:
        values = np.array(losses[entry.name])
        difference = float(np.mean(values - base))
        cells = [f"{value:.4f}" for value in (*values, values.mean())]
        shown = "" if entry.within is None else f"{difference:+.4f}"
        rows.append([entry.name, *cells, shown, entry.verdict(difference)])
    return rows


def show(rows: list[list[str]]) -> None:
    """Print the rows as a table."""
    table = Table(*rows[0], title="Held-out loss, nats per byte")
    for row in rows[1:]:
        table.add_row(*row)
    rich.print(table)


def write(path: Path, part: str, rows: list[list[str]], steps: int) -> None:
    """Put a part's section into the results, in place of the one that was there."""
    text = path.read_text() if path.exists() else ""
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    packages = ("precir", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = [f"{package} {version(package)}" for package in packages]
    device = f"{jax.devices()[0].device_kind} ({platform.machine()})"
    size = ", ".join(f"{key} {value}" for key, value in vars(gpt.Config(steps=steps)).items())
    lines = [
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, "
        f"{', '.join(versions)}.",
        f"Size: {size.removesuffix(', seed 0')}. Held-out loss in nats per byte.",
        "",
        *(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])),
    ]
    sections[part] = "\n".join(lines)
    head = "# Quality of training\n\nMade by `python benchmarks/quality.py`, which explains it.\n"
    body = (f"\n## {name}\n\n{sections[name].strip()}\n" for name in PARTS if name in sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "".join(body))


def version(package: str) -> str:
    """Return the installed version; a source tree on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(source tree)"


def main() -> None:
    """Run the parts asked for, one after the other."""
    parser = argparse.ArgumentParser(description="Held-out loss of each recipe against float32.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--steps", type=int, default=gpt.Config().steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality.md")
    options = parser.parse_args()
    for part in options.only:
        rich.print(f"[bold]{part}")
        losses = measure(part, options.steps, options.seeds)
        rows = make_rows(part, losses, options.seeds)
        show(rows)
        write(options.out, part, rows, options.steps)


if __name__ == "__main__":
    main()
