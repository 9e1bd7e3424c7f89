"""What train steps take of H100s that are not there: bytes, FP8 products, collectives.

    python benchmarks/memory.py                      # about twenty minutes on two cores
    python benchmarks/memory.py --models example --recipes bf16-mixed fp8 --largest 5

XLA's own compiler for the card runs on any machine (see `precir.memory`); nothing is executed and
nothing timed. Two models: the GPT of examples/train_gpt.py, and one with the layers of a 7B model
(shapes.py: 32 layers scanned over and rematerialised, 4096 wide, batch 1 x 2048 on each device,
float32 weights) with Adam and with SGD. Three layouts: one H100; eight, data parallel; eight, fully
sharded (every array of the state split along its largest dimension that divides). "by hand" is
plain jax.jit of the model with casts to bfloat16 written into it.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import rich
from jax.sharding import PartitionSpec
from rich.table import Table

import precir
from precir.report.units import percent_text
from precir.target import Memory, split_largest
from precir.target.hlo import parse

ROOT = Path(__file__).parent.parent
HAND = "by hand"
RECIPES = (HAND, "bf16-mixed", "fp8", "fp8-row")  # what runs if nothing else is asked for
USUAL = ("example", "7B Adam", "7B SGD")
LAYOUTS = ("1", "8 data parallel", "8 fully sharded")
GIB = 1 << 30
HEADINGS = (
    "model", "H100s", "recipe", "arguments", "temporaries", "over bf16-mixed", "peak",
    "FP8 products", "multiply-adds in FP8", "sent", "compiled in",
)  # fmt: skip

Tree = Any


def load(path: Path) -> ModuleType:
    """Import a file that is in no package."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


shapes = load(ROOT / "benchmarks" / "shapes.py")


# --- the programs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A train step and its abstract arguments for so many devices; the last is the batch."""

    step: Callable[..., Any]
    args: Callable[[int], tuple[Tree, ...]]
    by_hand: Callable[..., Any] | None = None

    @property
    def state(self) -> tuple[int, ...]:
        """The arguments that come back, and may be written over."""
        return tuple(range(len(self.args(1)) - 1))


def example() -> Model:
    """The GPT of examples/train_gpt.py."""
    train_gpt = load(ROOT / "examples" / "train_gpt.py")
    config = train_gpt.Config()
    state = jax.eval_shape(lambda: train_gpt.init_state(config))

    def args(devices: int) -> tuple[Tree, ...]:
        rows = config.batch * devices
        return state, jax.ShapeDtypeStruct((rows, config.context + 1), jnp.int32)

    return Model(train_gpt.make_train_step(config), args)


def of_shape(shape: Any) -> Model:
    """A GPT of shapes.py."""
    step = shapes.make_train_step(shape)
    hand = shapes.make_train_step(replace(shape, dtype=jnp.bfloat16))

    def args(devices: int) -> tuple[Tree, ...]:
        made: tuple[Tree, ...] = shapes.abstract_args(replace(shape, batch=shape.batch * devices))
        return made

    return Model(step, args, hand)


MODELS: dict[str, Callable[[], Model]] = {
    "example": example,
    "124M Adam": lambda: of_shape(shapes.SMALL),
    "7B Adam": lambda: of_shape(shapes.SEVEN_B),
    "7B SGD": lambda: of_shape(replace(shapes.SEVEN_B, optimizer="sgd")),
}


# --- measuring ------------------------------------------------------------------------------------


def measure(model: Model, recipe: str | precir.Recipe, layout: str) -> Memory:
    """Compile one step for one layout."""
    devices = 1 if layout == "1" else 8
    args = model.args(devices)
    if recipe == HAND:
        step: Any = jax.jit(model.by_hand, donate_argnums=model.state)
    else:
        step = precir.compile(model.step, recipe=recipe, donate_argnums=model.state)
        args = jax.eval_shape(step.init, *args)
    if devices == 1:
        return precir.memory(step, *args)
    batch = PartitionSpec("data")
    if layout == LAYOUTS[1]:
        shardings = (*(PartitionSpec() for _ in args[:-1]), batch)
    else:
        shardings = (*(split_largest(a, "data", devices) for a in args[:-1]), batch)
    return precir.memory(step, *args, devices=devices, shardings=shardings)


def rows(models: list[str], recipes: list[str], layouts: list[str]) -> Iterator[tuple[Any, ...]]:
    """Each model on each layout under each recipe: name, layout, recipe, memory, seconds."""
    for name in models:
        model = MODELS[name]()
        for layout in layouts:
            for recipe in recipes:
                if recipe == HAND and model.by_hand is None:
                    continue
                start = time.perf_counter()
                found = measure(model, recipe, layout)
                yield name, layout, recipe, found, time.perf_counter() - start
                jax.clear_caches()


def cells(row: tuple[Any, ...], base: Memory | None) -> tuple[str, ...]:
    """One row of the table. `base` is the same under bf16-mixed."""
    name, layout, recipe, found, seconds = row
    total = sum(p.count for p in found.products)
    sent = sum(c.bytes for c in found.collectives)
    over = f"{found.temporary / base.temporary:.2f}" if base else ""
    return (
        name, layout, recipe, size(found.argument), size(found.temporary), over,
        size(found.peak) + ("" if found.fits else " (does not fit)"), f"{found.low} of {total}",
        percent_text(found.low_share, 1), size(sent) if sent else "", f"{seconds:.0f} s",
    )  # fmt: skip


def size(count: int) -> str:
    """GiB, or MiB of what is small."""
    return f"{count / GIB:.2f} GiB" if count > GIB / 10 else f"{count / (1 << 20):.1f} MiB"


def largest(found: Memory, count: int) -> Iterator[str]:
    """The largest arrays that the program makes outside of loops, those it writes over left out."""
    module = parse(found.hlo)
    views = ("parameter", "get-tuple-element", "bitcast", "tuple", "while", "optimization-barrier")
    made = [
        (array.bytes, f"{array.dtype}{list(array.shape)} by {each.name}")
        for each in module.computations[module.entry].values()
        if each.op not in views and len(each.types) == 1
        for array in each.types
    ]
    for number, text in sorted(made, key=lambda m: -m[0])[:count]:
        yield f"{size(number)} {text}"


# --- what is written ------------------------------------------------------------------------------


def write(path: Path, table: list[tuple[str, ...]], lists: dict[str, list[str]]) -> None:
    """Write the rows as Markdown, with the versions they hold for."""
    versions = ", ".join(f"{n} {version(n)}" for n in ("jax", "jaxlib", "jax-cuda12-plugin"))
    lines = [
        "# Memory, products and traffic on H100s that are not there",
        "",
        "Made by `python benchmarks/memory.py`, which explains it.",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, {versions}; compiled on "
        f"{platform.machine()} without a GPU.",
        "Bytes are of each device. *Sent* is the sum over collectives of the whole array that is",
        "reduced, gathered or moved. *Compiled in* is all of it, on this machine: JAX's trace,",
        "precir, XLA.",
        "",
        *(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *table)),
        "",
    ]
    if lists:
        lines += [
            "The largest arrays made outside of the loops, on one H100. A `broadcast` is where",
            "gradients of all layers are gathered, a `transpose` a copy of all layers' weights in",
            "the layout that cuBLASLt wants of an FP8 operand.",
            "",
        ]
        for name, found in lists.items():
            lines += [f"- {name}: {'; '.join(found)}."]
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def version(package: str) -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def main() -> None:
    """Compile every model for every layout under every recipe."""
    parser = argparse.ArgumentParser(description="Memory of train steps on H100s not there.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(USUAL))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--largest", type=int, default=8, help="arrays listed for the 7B (8)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "memory.md")
    options = parser.parse_args()
    table, bases, lists = Table(*HEADINGS, title="On H100s, each"), {}, {}
    made = []
    for row in rows(options.models, options.recipes, options.layouts):
        name, layout, recipe, found, _ = row
        if recipe == "bf16-mixed":
            bases[name, layout] = found
        if name.startswith("7B Adam") and layout == "1" and recipe in (HAND, "bf16-mixed", "fp8"):
            lists[f"{name}, {recipe}"] = list(largest(found, options.largest))
        made.append(cells(row, bases.get((name, layout))))
        table.add_row(*made[-1])
        print(" | ".join(made[-1]), flush=True)
        write(options.out, made, lists)
    rich.print(table)


if __name__ == "__main__":
    main()
