"""Parts `memory`, `devices` and `cards` of fp8_lm.py: bytes of GPUs that are not there.

Nothing is run: XLA's own compiler for the card says what each device takes (see `precir.memory`).
"""

import importlib.util
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import precir
from precir.recipe import Store
from precir.target import Memory
from precir.target.hlo import parse

ROOT = Path(__file__).parent.parent
GIB = 1 << 30
Tree = Any


def load(name: str) -> ModuleType:
    """Import another benchmark, which is in no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


shapes = load("shapes")


@dataclass(frozen=True)
class Layout:
    """How a step lies on devices: the sizes of the mesh's axes, "data" and perhaps "model"."""

    data: int = 1
    model: int = 1

    @property
    def mesh(self) -> dict[str, int]:
        """As `precir.memory` takes it."""
        return {"data": self.data, "model": self.model}


# Tensor parallel along "model", as Megatron lays it: the first matrix of each pair by its columns,
# the second by its rows; fully sharded along "data" by the other axis. Without "model", by the rows
# of every matrix, which are gathered as they lie: gathered columns would have XLA transpose stacks.
SPECS: dict[str, tuple[str, ...]] = {
    "wte": ("model", "data"), "wpe": ("data", "model"),
    "qkv": ("data", "model"), "proj": ("model", "data"),
    "up": ("data", "model"), "down": ("model", "data"),
}  # fmt: skip


def spec_of(path: Any, leaf: Any, layout: Layout) -> PartitionSpec:
    """How one array of the state lies: the last two axes of a matrix are divided where the
    devices divide them, those of its scales as its own; what is left is whole everywhere.
    """
    names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    wanted = next((SPECS[n] for n in names if n in SPECS), ())
    if layout.model == 1 and wanted:
        wanted = ("data", "")
    sizes = layout.mesh | {"": 1}
    if len(leaf.shape) < 2 or not wanted:
        return PartitionSpec()
    last = zip(leaf.shape[-2:], wanted, strict=True)
    ends = (a if n % sizes[a] == 0 and sizes[a] > 1 else None for n, a in last)
    return PartitionSpec(*(None,) * (len(leaf.shape) - 2), *ends)


def specs(state: Tree, layout: Layout) -> Tree:
    """One for each array of a step's state as it lives between steps."""
    return jax.tree_util.tree_map_with_path(lambda p, x: spec_of(p, x, layout), state)


def measure(shape: Any, recipe: Any, layout: Layout, target: str) -> tuple[Memory, Tree]:
    """One step: what each device takes, and the abstract state as the recipe stores it."""
    if layout != Layout():
        mesh = AbstractMesh(tuple(layout.mesh.values()), tuple(layout.mesh))
        rows = NamedSharding(mesh, PartitionSpec("data", "model"))
        shape = replace(shape, batch=shape.batch * layout.data, rows=rows)
    step = precir.compile(shapes.make_train_step(shape), recipe=recipe, donate_argnums=(0, 1))
    args = jax.eval_shape(step.init, *shapes.abstract_args(shape))
    if layout == Layout():
        return step.memory(*args, target=target), args
    batch = PartitionSpec("data")
    where = (*(specs(a, layout) for a in args[:-1]), batch)
    return step.memory(*args, target=target, mesh=layout.mesh, shardings=where), args


def named(name: str) -> Any:
    """The recipe of a row: a name, and perhaps "+ fused" or "+ residuals"."""
    plain, *changes = name.split(" + ")
    recipe = precir.recipe(plain)
    for change in changes:
        recipe = recipe.replace(**CHANGES[change])
    return recipe


CHANGES = {"fused": {"update": "fused"}, "residuals": {"residuals": "float8_e4m3fn"}}


def gib(count: float) -> str:
    """Two places."""
    return f"{count / GIB:.2f}"


# --- one H100 -------------------------------------------------------------------------------------

ONE = (
    "float32", "float32 + fused", "bf16-mixed", "bf16-mixed + fused", "fp8", "fp8 + fused",
    "fp8-lm-o1", "fp8-lm-o1 + fused", "fp8-lm-o2", "fp8-lm-o2 + fused",
    "fp8-lm-block", "fp8-lm-block + fused",
)  # fmt: skip
HEAD = "| recipe | arguments | temporaries | peak | peak against bf16-mixed |"
RULE = "| --- | ---: | ---: | ---: | ---: |"


def row(name: str, found: Memory, base: int | None) -> str:
    """A line of a table in GiB."""
    against = f"{100 * (found.peak / base - 1):+.0f}%" if base else ""
    fits = "" if found.fits else " (does not fit)"
    sizes = f"{gib(found.argument)} | {gib(found.temporary)} | {gib(found.peak)}{fits}"
    return f"| {name} | {sizes} | {against} |"


def table(shape: Any, names: tuple[str, ...], layout: Layout, target: str) -> Iterator[list[str]]:
    """The lines so far, after each row; peaks are set against bf16-mixed's."""
    found: dict[str, Memory] = {}
    for name in names:
        start = time.perf_counter()
        jax.clear_caches()
        found[name] = measure(shape, named(name), layout, target)[0]
        base = found["bf16-mixed"].peak if "bf16-mixed" in found else None
        lines = [row(n, m, base) for n, m in found.items()]
        print(shape.layers, shape.width, lines[-1], f"{time.perf_counter() - start:.0f} s",
              flush=True)  # fmt: skip
        yield [HEAD, RULE, *lines]


def memory_section(names: tuple[str, ...] = ONE) -> Iterator[list[str]]:
    """6.6 billion parameters on one H100."""
    shape = shapes.SEVEN_B
    intro = (
        f"{shape.parameters:,} parameters, {shape.layers} layers of {shape.width} in a scan with "
        f"remat, batch {shape.batch} x {shape.length}, Adam, state donated. GiB on one H100."
    )
    for lines in table(shape, names, Layout(), "h100"):
        yield [intro, "", *lines]


# --- what is saved for the backward pass ----------------------------------------------------------

SAVED = ("bf16-mixed", "fp8", "fp8 + residuals", "bf16-mixed + residuals")


def saved_section(names: tuple[str, ...] = SAVED) -> Iterator[list[str]]:
    """The same model with and without remat, what the forward pass saves in E4M3 or as it is."""
    shape = shapes.SEVEN_B
    head = [
        "The same model, without remat and with it; `+ residuals` is "
        '`residuals="float8_e4m3fn"` (COAT, arXiv 2410.19313). *Saved* is what the forward pass '
        "makes and the backward pass reads, as the compiled program has it, and the bytes of it "
        "in each format; GiB on one H100.",
        "",
        "| | recipe | saved | formats | temporaries | peak |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]  # fmt: skip
    lines: list[str] = []
    for remat in (False, True):
        for name in names:
            jax.clear_caches()
            asked = replace(shape, remat=remat)
            found, _ = measure(asked, named(name), Layout(), "h100")
            step = precir.compile(shapes.make_train_step(asked), recipe=named(name))
            report = step.report(*shapes.abstract_args(asked))
            formats = ", ".join(f"{gib(f.bytes)} {f.format}" for f in report.residual_formats
                                if f.bytes > GIB / 20)  # fmt: skip
            cells = (
                "remat" if remat else "no remat", name, gib(report.residual_bytes), formats,
                gib(found.temporary), gib(found.peak),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            yield [*head, *lines]


# --- 128 H100 -------------------------------------------------------------------------------------

GPTS = {
    "GPT-175B": shapes.Shape(96, 12288, 96, 2048, 1, 32000),
    "GPT-13B": shapes.Shape(40, 5120, 40, 2048, 1, 32000),
    "GPT-7B": shapes.SEVEN_B,
}
MANY = (
    "bf16-mixed", "bf16-mixed + fused", "fp8-lm-o2", "fp8-lm-o2 + fused", "fp8-lm-block + fused",
    "fp8-lm-block", "fp8",
)  # fmt: skip
LAYOUT = Layout(data=16, model=8)


def devices_section(
    models: tuple[str, ...] = tuple(GPTS), names: tuple[str, ...] = MANY, batch: int = 1
) -> Iterator[list[str]]:
    """GPTs of the paper's sizes on 128 H100."""
    intro = (
        f"128 H100, the same layout for every row: tensor parallel {LAYOUT.model}, fully sharded "
        f"{LAYOUT.data}, activations between layers divided by rows and tokens; micro-batch "
        f"{batch} x 2048 on each of the {LAYOUT.data}, Adam, scan with remat, state donated. GiB "
        "on each device. The paper's claim is 29% to 39% less than bf16."
    )
    done: list[str] = []
    for model in models:
        shape = replace(GPTS[model], batch=batch)
        lines: list[str] = []
        for lines in table(shape, names, LAYOUT, "h100"):
            made = [f"### {model}, {shape.parameters / 1e9:.1f} billion parameters", "", *lines, ""]
            yield [intro, "", *done, *made]
        done += [f"### {model}, {shape.parameters / 1e9:.1f} billion parameters", "", *lines, ""]


# --- eight cards of 24 GiB ------------------------------------------------------------------------

SIXTY_FIVE = shapes.Shape(80, 8192, 64, 512, 1, 32000, optimizer="sgd")
# What is said of it, the card, the layout, rows on each place along "data", tokens in a row.
CARDS = (
    ("fully sharded", "rtx3090", Layout(data=8), 1, 512),
    ("fully sharded", "rtx3090", Layout(data=8), 1, 1024),
    ("fully sharded", "rtx4090", Layout(data=8), 1, 512),
    ("tensor parallel", "rtx3090", Layout(model=8), 8, 512),
)
LOMO = precir.Recipe(
    "lomo-16", "mixed", "bfloat16", weight=Store("float16"), update="fused",
    last_product="bfloat16",
)  # fmt: skip


def parts_of(state: Tree, layout: Layout) -> Iterator[tuple[str, int]]:
    """Every array of the state on one device, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sizes = layout.mesh
    for path, x in leaves:
        count = x.size * x.dtype.itemsize
        for axis in spec_of(path, x, layout):
            count //= sizes[axis] if axis else 1
        yield jax.tree_util.keystr(path[1:], simple=True, separator="/"), count


VIEWS = ("parameter", "tuple", "get-tuple-element", "while", "bitcast", "constant", "call")


def largest(found: Memory, count: int, state: set[str]) -> Iterator[str]:
    """The largest arrays that the program makes, inside of loops too, once for each shape; those
    of a dtype in which nothing but the state is stacked (as "f16") only where they are no stack.
    """
    seen: dict[str, int] = {}
    for name, computation in parse(found.hlo).computations.items():
        if name.startswith(("fused", "wrapped")):  # what is inside a kernel is no array
            continue
        for i in computation.values():
            for array in i.types if i.op not in VIEWS else ():
                if array.dtype not in state or len(array.shape) < 3:
                    seen[f"{array.dtype}{list(array.shape)}"] = array.bytes
    for name, size in sorted(seen.items(), key=lambda x: -x[1])[:count]:
        yield f"{gib(size)} GiB {name}"


def cards_section() -> Iterator[list[str]]:
    """65 billion parameters on eight cards of 24 GiB."""
    shape = SIXTY_FIVE
    lines = [
        f"{shape.parameters / 1e9:.1f} billion parameters, {shape.layers} layers of {shape.width} "
        "in a scan with remat, SGD, weights in scaled float16, updates fused, products in "
        "bfloat16, state donated. *Fully sharded*: each matrix divided by rows, a row of tokens "
        "on each card. *Tensor parallel*: each pair of matrices by columns and rows, what lies "
        "between layers by tokens. GiB on each card. LOMO's paper, table 2, has 19.18 GB for "
        "65B on eight RTX 3090.",
    ]
    for about, target, layout, batch, length in CARDS:
        jax.clear_caches()
        asked = replace(shape, batch=batch, length=length)
        found, args = measure(asked, LOMO, layout, target)
        fits = "fits" if found.fits else "does not fit"
        saved = shape.layers * batch * length * shape.width * 4 // layout.model
        rows = {
            **dict(parts_of(args[:-1], layout)),
            "arguments": found.argument, "temporaries": found.temporary,
            "of them, activations saved for the backward pass": saved, "code": found.code,
            f"peak ({fits} {gib(found.capacity)})": found.peak,
        }  # fmt: skip
        lines += ["", f"### Eight {target}, {about}, {batch * layout.data} x {length} tokens", ""]
        lines += ["| part | GiB |", "| --- | ---: |"]
        lines += [f"| {name} | {gib(size)} |" for name, size in rows.items() if size > GIB / 200]
        lines += ["", f"Largest arrays beside the state: {'; '.join(largest(found, 8, {'f16'}))}."]
        print("\n".join(lines), flush=True)
        yield lines
