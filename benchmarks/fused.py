"""What fused kernels save of an H100's memory and of its traffic, counted without one.

    python benchmarks/fused.py                       # about twenty minutes on two cores
    python benchmarks/fused.py --models example --recipes fp8-block

XLA's own compiler for the card runs on any machine (see `precir.memory`); nothing is executed and
nothing timed. Each train step is compiled under each recipe with `kernels="plain"` and with
`kernels="fused"`. *Bytes moved* are counted from the scheduled program: each kernel reads its
operands and writes its results once; of what a kernel only takes a slice, the slice counts, and of
what it updates in place, the update; loops count as often as they run. What caches save is not
known here, nor what a product reads twice.
"""

import argparse
import datetime
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import memory as common  # benchmarks/memory.py
import rich
from rich.table import Table

import precir
from precir.target.hlo import Instruction, Module, parse, steps
from precir.target.triton import CALL

ROOT = Path(__file__).parent.parent
RECIPES = ("fp8", "fp8-row", "fp8-block", "fp8-delayed")
BASE = "bf16-mixed"
HEADINGS = (
    "model", "H100s", "recipe", "kernels", "temporaries", "over bf16-mixed", "bytes moved",
    "over bf16-mixed", "computed and quantised in one kernel",
)  # fmt: skip
FREE = (
    "parameter", "get-tuple-element", "tuple", "bitcast", "while", "constant", "call",
    "conditional", "optimization-barrier", "iota", "after-all",
)  # fmt: skip

shapes = common.shapes
MODELS = {
    "example": common.example,
    "7B, 2 layers": lambda: common.of_shape(replace(shapes.SEVEN_B, layers=2)),
    "7B, 2 layers, no remat": lambda: common.of_shape(
        replace(shapes.SEVEN_B, layers=2, remat=False, scanned=False)
    ),
}


def moved(text: str) -> int:
    """Bytes that the kernels of a program read and write."""
    module = parse(text)
    return sum(
        step.times * _bytes(module, step.computation, step.instruction)
        for step in steps(module)
        if step.instruction.op not in FREE
    )


def _bytes(module: Module, computation: str, each: Instruction) -> int:
    sizes = [sum(t.bytes for t in module.types(computation, o)) for o in each.operands]
    if each.op == "custom-call":
        sizes = _read_by(module, computation, each)
    written = sum(t.bytes for t in each.types)
    if each.op in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if each.op == "dynamic-update-slice":
        return 2 * sizes[1]
    if each.op != "fusion":
        return sum(sizes) + written
    return _of_fusion(module, each, sizes, written)


def _read_by(module: Module, computation: str, call: Instruction) -> list[int]:
    """An operand is read once, and of a stack (`precir.kernels.Layer`) the layer whose number comes
    behind it.
    """
    operands = list(dict.fromkeys(call.operands))
    kinds = [module.types(computation, o) for o in operands]
    sizes = [sum(t.bytes for t in kind) for kind in kinds]
    for i, kind in enumerate(kinds[1:]):
        if CALL in call.rest and [(t.dtype, t.shape) for t in kind] == [("s32", ())]:
            sizes[i] //= kinds[i][0].shape[0]
    return sizes


def _of_fusion(module: Module, each: Instruction, sizes: list[int], written: int) -> int:
    """Of a stack that it takes a slice of, the slice; of one that it updates, the update."""
    name = each.rest.partition("calls=%")[2].split(",")[0].split()[0]
    inner = module.computations.get(name, {})
    parameters: dict[str, int] = {}
    for i in inner.values():
        if i.op == "parameter":
            parameters[i.name] = len(parameters)
    number = {p: int(n) for p, n in _numbers(inner)}
    updated = 0
    for p in parameters:
        readers = [i for i in inner.values() if p in i.operands]
        at = number.get(p, parameters[p])
        if readers and all(r.op in ("dynamic-slice", "slice") for r in readers):
            sizes[at] = sum(t.bytes for r in readers for t in r.types)
        elif readers and all(
            r.op == "dynamic-update-slice" and r.operands[0] == p for r in readers
        ):
            updated += sizes[at]
            sizes[at] = 0
            written += sum(t.bytes for r in readers for t in module.types(name, r.operands[1]))
    return sum(sizes) + max(0, written - updated)


def _numbers(inner: Any) -> Iterator[tuple[str, str]]:
    """The place of each parameter, where its name says it: `param_1.5`."""
    for i in inner.values():
        if i.op == "parameter":
            digits = i.name.removeprefix("param_").split(".")[0]
            if digits.isdigit():
                yield i.name, digits


# --- what is written ------------------------------------------------------------------------------


def rows(models: list[str], recipes: list[str], layouts: list[str]) -> Iterator[tuple[str, ...]]:
    """One for each model, layout, recipe and way of its kernels; bf16-mixed comes first."""
    for name in models:
        model = MODELS[name]()
        for layout in layouts:
            base = common.measure(model, BASE, layout)
            yield cells(name, layout, BASE, "", base, base, "")
            for recipe in recipes:
                for kernels in ("plain", "fused"):
                    made = precir.recipe(recipe, kernels=kernels)
                    found = common.measure(model, made, layout)
                    used = counted(model, made) if kernels == "fused" else ""
                    yield cells(name, layout, recipe, kernels, found, base, used)
                    jax.clear_caches()


def counted(model: common.Model, recipe: precir.Recipe) -> str:
    """How many values each kernel computes, in one call: "65 norm_quantize, ..."."""
    step = precir.compile(model.step, recipe=recipe)
    fused = step.program(*jax.eval_shape(step.init, *model.args(1))).fused
    kinds: Counter[str] = Counter()
    for each in fused:
        if each.used and each.kernel != "cast":
            kinds[each.kernel] += each.times or 1
    return ", ".join(f"{n} {kernel}" for kernel, n in sorted(kinds.items()))


def cells(
    name: str, layout: str, recipe: str, kernels: str, found: Any, base: Any, used: str
) -> tuple[str, ...]:
    bytes_, least = moved(found.hlo), moved(base.hlo)
    return (
        name, layout, recipe, kernels, common.size(found.temporary),
        f"{found.temporary / base.temporary:.3f}", common.size(bytes_), f"{bytes_ / least:.3f}",
        used,
    )  # fmt: skip


def write(path: Path, table: list[tuple[str, ...]]) -> None:
    versions = ", ".join(f"{n} {common.version(n)}" for n in ("jax", "jaxlib", "jax-cuda12-plugin"))
    lines = [
        "# Computed and quantised in one kernel",
        "",
        "Made by `python benchmarks/fused.py`, which explains it.",
        "",
        f"{datetime.date.today()}, Python {platform.python_version()}, {versions}; compiled on "
        f"{platform.machine()} without a GPU. Bytes are of each device.",
        "",
        *(f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *table)),
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def main() -> None:
    """Compile every model under every recipe, with plain and with fused kernels."""
    parser = argparse.ArgumentParser(description="Fused kernels on H100s not there.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--layouts", nargs="+", choices=common.LAYOUTS, default=["1"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "fused.md")
    options = parser.parse_args()
    table, made = Table(*HEADINGS, title="On H100s, each"), []
    for row in rows(options.models, options.recipes, options.layouts):
        made.append(row)
        table.add_row(*row)
        print(" | ".join(row), flush=True)
        write(options.out, made)
    rich.print(table)


if __name__ == "__main__":
    main()
