"""Memory of train steps whose updates are fused into the backward pass, against depth.

    python benchmarks/lomo.py                              all of it (about an hour on two cores)
    python benchmarks/lomo.py --targets cpu --depths 2 4   a part of it

LOMO (arXiv 2306.09782) updates a parameter as soon as its gradient exists. Recipe `lomo` does so
for layers in a scan; for layers written out one by one the compiler does it by itself, unless a
number made of all gradients feeds the updates.

depth   Temporary bytes of one step of a small GPT (blocks of 256, 32 tokens) with 2 to 32 layers,
        plain (recipe float32) and fused (recipe lomo): layers unrolled and in a scan, SGD and
        Adam, with and without clipping by the global norm; state donated. "Growth" is from the
        last depth but one to the last, for each layer, in units of one layer's parameters.
grows   Which arrays unrolled layers add, from XLA's buffer assignment: activations or gradients.
large   A transformer of 6.6 billion parameters (32 layers of 4096, 32 heads, 2048 tokens, batch 1,
        vocabulary 32000; scan with remat, bfloat16 compute, float32 parameters): arguments and
        temporaries of one step on an H100.

Bytes are what `compiled.memory_analysis()` says: on the CPU, and of XLA's own compiler for an
H100, which needs none (a plugin `jax-cuda12-plugin` of jax's version must be installed). Nothing
is run. What is 16 bits wide is measured on the H100 alone: the CPU's compiler keeps float32
copies of it.

The results go to benchmarks/results/lomo.md and lomo.png.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import optax
from jax import lax
from jax import numpy as jnp

import precir

RESULTS = Path(__file__).parent / "results"
DEPTHS = (2, 4, 8, 16, 32)
GIB = 2**30

# -- the machines ----------------------------------------------------------------------------------


def on_h100(step: Any, arguments: Any, **options: Any) -> precir.target.Memory:
    """What one step takes of an H100, its products as XLA chooses where there is none to time."""
    usual = {"xla_gpu_enable_triton_gemm": True, **options}
    return precir.memory(step, *arguments, target="h100", compiler_options=usual)


def taken(step: Any, arguments: Any, target: str) -> int:
    """Bytes that one step takes beside its arguments, the first of which is donated."""
    if target == "h100":
        return on_h100(step, arguments).temporary
    return int(step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)


# -- the models ------------------------------------------------------------------------------------


def shapes(layers: int, width: int, hidden: int, vocabulary: int) -> Any:
    """Parameters of a GPT, stacked by layer."""

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    square = (layers, width, width)
    blocks = {
        **{name: array(layers, width) for name in ("ln_1", "ln_2")},
        **{name: array(*square) for name in ("wq", "wk", "wv", "wo")},
        "up": array(layers, width, hidden),
        "down": array(layers, hidden, width),
    }
    return {
        "embed": array(vocabulary, width),
        "blocks": blocks,
        "head": array(width, vocabulary),
    }


def apart(params: Any) -> Any:
    """The same with a list of layers."""
    count = params["blocks"]["wq"].shape[0]
    layer = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params["blocks"])
    return {**params, "blocks": [layer] * count}


def norm(x: Any, scale: Any) -> Any:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide * wide, -1, keepdims=True)
    return (wide * lax.rsqrt(mean + 1e-6) * scale).astype(x.dtype)


def block(h: Any, p: Any, heads: int) -> Any:
    batch, time, width = h.shape
    w = {name: a.astype(h.dtype) for name, a in p.items()}
    x = norm(h, p["ln_1"])

    def split(x: Any) -> Any:
        return x.reshape(batch, time, heads, -1).transpose(0, 2, 1, 3)

    q, k, v = split(x @ w["wq"]), split(x @ w["wk"]), split(x @ w["wv"])
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / (width // heads) ** 0.5
    seen = jnp.tril(jnp.ones((time, time), bool))
    scores = jnp.where(seen, scores.astype(jnp.float32), -1e9)
    mixed = jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores).astype(h.dtype), v)
    h = h + mixed.transpose(0, 2, 1, 3).reshape(batch, time, width) @ w["wo"]
    return h + jax.nn.gelu(norm(h, p["ln_2"]) @ w["up"]) @ w["down"]


def loss(params: Any, batch: Any, heads: int, compute: Any) -> Any:
    """Of the next token; blocks in a scan under remat, or a list of them one after the other."""
    tokens, targets = batch
    h = params["embed"][tokens].astype(compute)
    if isinstance(params["blocks"], list):
        for p in params["blocks"]:
            h = block(h, p, heads)
    else:
        body = jax.checkpoint(lambda h, p: block(h, p, heads))
        h, _ = lax.scan(lambda h, p: (body(h, p), None), h, params["blocks"])
    logits = (h @ params["head"].astype(compute)).astype(jnp.float32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -jnp.mean(chosen)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(0.1),
    "SGD + clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "Adam": lambda: optax.adam(1e-3),
    "Adam + clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
}


def train_step(optimizer: Any, heads: int, compute: Any) -> Callable[..., Any]:
    def step(state: Any, batch: Any) -> Any:
        params, memory = state
        value, gradients = jax.value_and_grad(loss)(params, batch, heads, compute)
        updates, memory = optimizer.update(gradients, memory, params)
        return (optax.apply_updates(params, updates), memory), value

    return step


def tokens(batch: int, time: int) -> Any:
    return (jax.ShapeDtypeStruct((batch, time), jnp.int32),) * 2


# -- against depth ---------------------------------------------------------------------------------


def small(form: str, name: str, recipe: str, layers: int) -> tuple[Any, Any]:
    """A step of the small GPT, and its arguments."""
    params = shapes(layers, 256, 1024, 512)
    params = apart(params) if form == "unrolled" else params
    optimizer = OPTIMIZERS[name]()
    state = params, jax.eval_shape(optimizer.init, params)
    step = precir.compile(train_step(optimizer, 4, jnp.float32), recipe=recipe, donate_argnums=0)
    return step, (state, tokens(2, 16))


def temporaries(form: str, name: str, recipe: str, target: str, layers: int) -> int:
    """Temporary bytes of one step of the small GPT."""
    step, arguments = small(form, name, recipe, layers)
    return taken(step, arguments, target)


# -- what grows ------------------------------------------------------------------------------------


def saved(layers: int) -> int:
    """Bytes that the unrolled model's forward pass saves for its backward pass, all layers."""
    step, arguments = small("unrolled", "SGD", "float32", layers)
    return int(step.report(*arguments).residual_bytes)


def places(step: Any, arguments: Any, target: str) -> Counter[int]:
    """How many places of each size XLA has for temporary arrays: its buffer assignment."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        if target == "h100":
            on_h100(step, arguments, **options)
        else:
            step.lower(*arguments).compile(compiler_options=options)
        text = max((p.read_text() for p in Path(folder).glob("*buffer-assignment.txt")), key=len)
    found: Counter[int] = Counter()
    for part in re.split(r"^allocation ", text, flags=re.MULTILINE):
        if "preallocated-temp" in part.partition("\n")[0]:
            sizes: dict[str, int] = {}
            for size, offset in re.findall(r"\(size=(\d+),offset=(\d+)\)", part):
                sizes[offset] = max(int(size), sizes.get(offset, 0))
            found.update(sizes.values())
    return found


def grows_section(targets: list[str], names: list[str]) -> Iterator[list[str]]:
    """Why unrolled layers grow by what they do."""
    few, many = 8, 16
    a_layer = (saved(many) - saved(few)) / (many - few)
    lines = [
        "## What grows with unrolled layers", "",
        f"Unrolled layers are not rematerialised, as those in a scan are here: one saves "
        f"{a_layer:,.0f} bytes for the backward pass, {a_layer / one_layer():.4f} of a layer's "
        "parameters (what forward nodes make and backward nodes read), of which XLA computes some "
        "again. So that, and 0.05, is the most that a layer may add. Places for temporary arrays "
        f"in XLA's buffer assignment that {many} layers have more than {few}, for each layer, by "
        "the size of the largest array in them. An activation of the model is 32,768 bytes, one "
        "of the MLP 131,072; a gradient is 262,144 at the least. With two backward passes XLA "
        "keeps what both read and computes less again; on the CPU two activations a layer twice, "
        "as f32[256,32] beside f32[32,256], most of the 0.03 that it is over.", "",
        "| | optimizer | update | activations, 32,768 bytes | of the MLP, 131,072 "
        "| gradients, 262,144 and more | growth | at most |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for target in targets:
        for name in names:
            for recipe, shown in (("float32", "plain"), ("lomo", "fused")):
                jax.clear_caches()
                more = places(*small("unrolled", name, recipe, many), target)
                more.subtract(places(*small("unrolled", name, recipe, few), target))
                grads = sum(n for size, n in more.items() if size >= 262_144)
                sizes = [temporaries("unrolled", name, recipe, target, n) for n in (few, many)]
                counts = [f"{n / (many - few):.2f}" for n in (more[32768], more[131072], grads)]
                at_most = f"{a_layer / one_layer() + 0.05:.4f}"
                cells = (
                    target.upper(), name, shown, *counts,
                    f"{growth(sizes, [few, many]):.4f}", at_most,
                )  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
                yield lines


def one_layer() -> int:
    """Bytes of the parameters of one layer of the small GPT."""
    blocks = shapes(1, 256, 1024, 512)["blocks"]
    return sum(4 * a.size for a in jax.tree.leaves(blocks))


Row = tuple[str, str, str, str, list[int]]


def depth_rows(
    targets: list[str], depths: list[int], names: list[str], forms: list[str]
) -> Iterator[Row]:
    for target in targets:
        for form in forms:
            for name in names:
                for recipe in ("float32", "lomo"):
                    jax.clear_caches()
                    bytes_ = [temporaries(form, name, recipe, target, n) for n in depths]
                    print(target, form, name, recipe, bytes_, growth(bytes_, depths), flush=True)
                    yield target, form, name, recipe, bytes_


def growth(bytes_: list[int], depths: list[int]) -> float:
    """Of the last two depths, a layer, in layers' parameters."""
    return (bytes_[-1] - bytes_[-2]) / (depths[-1] - depths[-2]) / one_layer()


def depth_section(rows: list[Row], depths: list[int]) -> list[str]:
    shown = {"float32": "plain", "lomo": "fused"}
    lines = ["## Against depth", ""]
    lines.append(
        f"Temporary MB of one step; a layer has {one_layer():,} bytes of parameters and "
        f"{2 * 16 * 256 * 4:,} of saved activations (0.0104 of a layer). Growth: layers' "
        f"parameters for each layer, from {depths[-2]} to {depths[-1]} layers."
    )
    for target in dict.fromkeys(r[0] for r in rows):
        title = "CPU" if target == "cpu" else "H100"
        lines += ["", f"### {title}", ""]
        lines.append(
            "| layers | optimizer | update | " + " | ".join(map(str, depths)) + " | growth |"
        )
        lines.append("| --- | --- | --- |" + " ---: |" * (len(depths) + 1))
        for where, form, name, recipe, bytes_ in rows:
            if where == target:
                cells = [f"{b / 1e6:.2f}" for b in bytes_]
                grown = f"{growth(bytes_, depths):.4f}"
                lines.append(
                    f"| {form} | {name} | {shown[recipe]} | {' | '.join(cells)} | {grown} |"
                )
    return lines


def picture(rows: list[Row], depths: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    targets = list(dict.fromkeys(r[0] for r in rows))
    names = list(dict.fromkeys(r[2] for r in rows))
    figure, axes = pyplot.subplots(
        len(targets), len(names), squeeze=False, sharex=True, sharey="row",
        figsize=(3.2 * len(names), 3 * len(targets)),
    )  # fmt: skip
    styles = {
        ("unrolled", "float32"): ("tab:orange", "--", "unrolled, plain"),
        ("unrolled", "lomo"): ("tab:blue", "--", "unrolled, fused"),
        ("scan", "float32"): ("tab:orange", "-", "scan, plain"),
        ("scan", "lomo"): ("tab:blue", "-", "scan, fused"),
    }
    for target, form, name, recipe, bytes_ in rows:
        ax = axes[targets.index(target)][names.index(name)]
        colour, line, label = styles[form, recipe]
        ax.plot(depths, [b / 1e6 for b in bytes_], line, color=colour, label=label, marker=".")
        ax.set_title(f"{name}, {target.upper()}", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("layers")
    for row in axes:
        row[0].set_ylabel("temporaries, MB")
        row[0].set_ylim(bottom=0)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


# -- 6.6 billion parameters ------------------------------------------------------------------------


def large(name: str, recipe: str, layers: int = 32) -> Any:
    params = shapes(layers, 4096, 4 * 4096, 32000)
    optimizer = OPTIMIZERS[name]()
    state = params, jax.eval_shape(optimizer.init, params)
    step = precir.compile(train_step(optimizer, 32, jnp.bfloat16), recipe=recipe, donate_argnums=0)
    return on_h100(step, (state, tokens(1, 2048)))


def large_section(names: list[str]) -> list[str]:
    params = jax.tree.leaves(shapes(32, 4096, 4 * 4096, 32000))
    count = sum(a.size for a in params)
    lines = ["## 6.6 billion parameters on one H100", ""]
    lines.append(
        f"{count:,} parameters, {4 * count / GIB:.1f} GiB in float32; GiB as XLA's compiler for "
        "an H100 says, for one step with its state donated."
    )
    lines += ["", "| optimizer | update | arguments | temporaries | peak |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for name in names:
        for recipe, shown in (("float32", "plain"), ("lomo", "fused")):
            jax.clear_caches()
            m = large(name, recipe)
            sizes = (m.argument, m.temporary, m.peak)
            cells = " | ".join(f"{s / GIB:.2f}" for s in sizes)
            lines.append(f"| {name} | {shown} | {cells} |")
            print(lines[-1], flush=True)
    return lines


# -- all of it -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="*", default=["cpu", "h100"], choices=["cpu", "h100"])
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS))
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument(
        "--forms", nargs="*", default=["scan", "unrolled"], choices=["scan", "unrolled"]
    )
    parser.add_argument("--no-large", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib", "optax"))
    text = [
        "# Updates fused into the backward pass",
        "",
        "Made by `python benchmarks/lomo.py`, which explains it.",
        "",
        f"{datetime.date.today()}, compiled, not run, on {platform.machine()}; "
        f"Python {platform.python_version()}, {versions}.",
        "",
    ]
    largest = [] if options.no_large else [*large_section(options.optimizers), ""]
    rows: list[Row] = []
    grown: list[str] = []

    def write() -> None:  # after each row: all of it takes long
        depth = [*depth_section(rows, options.depths), "", "![Temporaries](lomo.png)", ""]
        found = [*(depth if rows else []), *grown]
        (options.out / "lomo.md").write_text("\n".join([*text, *largest, *found]))

    write()
    for row in depth_rows(options.targets, options.depths, options.optimizers, options.forms):
        rows.append(row)
        write()
    if rows:
        picture(rows, options.depths, options.out / "lomo.png")
    if "unrolled" in options.forms:
        names = [n for n in options.optimizers if n.startswith("SGD")]
        for lines in grows_section(options.targets[::-1], names):
            grown[:] = [*lines, ""]
            write()


if __name__ == "__main__":
    main()
