"""Parts `bytes`, `training`, `equal`, `ablation` and `accumulation` of fp8_lm.py: what is run."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fp8_lm_memory import load, named, shapes

import precir
from precir.ir import BACKWARD, UPDATE, Graph, Value
from precir.kernels import quantize
from precir.recipe import Store

gpt = load("quality").gpt  # examples/train_gpt.py
Tree = Any

# --- bytes a parameter ----------------------------------------------------------------------------

BYTES = (
    "float32", "float32 + fused", "fp8", "fp8-lm-o1", "fp8-lm-o2", "fp8-lm-o2 + fused",
    "fp8-lm-block", "fp8-lm-block + fused",
)  # fmt: skip
WIDE = shapes.Shape(4, 512, 8, 32, 2, 64)  # its vectors are 0.04% of it


def waiting(graph: Graph) -> dict[Value, int]:
    """The bytes of every gradient that the update reads, in the format in which it waits."""
    found: dict[Value, int] = {}
    for node in graph:
        for o in node.inputs:
            made = o.node if isinstance(o, Value) else None
            if node.phase != UPDATE or made is None or made.phase != BACKWARD:
                continue
            value = made.inputs[0] if made.op == "dequantize" else o
            if isinstance(value, Value) and value.type.rank:
                kind = value.type
                found[value] = math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize
    return found


def bytes_of(step: precir.Compiled, args: tuple[Any, ...], count: int) -> tuple[float, float]:
    """Bytes a parameter: of the live arrays of the state, and of the gradients that wait."""
    packed = step.init(*args)
    state = sum(x.nbytes for x in jax.tree.leaves(packed[:-1]) if x.ndim)
    return state / count, sum(waiting(step.program(*packed).graph).values()) / count


def example_case() -> tuple[Any, tuple[Any, ...], int]:
    """The GPT of examples/train_gpt.py: its step, arguments, and number of parameters."""
    config = gpt.Config()
    state = gpt.init_state(config)
    tokens = np.zeros((config.batch, config.context + 1), np.int32)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    return gpt.make_train_step(config), (state, tokens), count


def random_args(shape: Any, seed: int = 0) -> tuple[Any, ...]:
    """Weights, empty moments and tokens of a model of shapes.py."""
    rng = np.random.default_rng(seed)
    params, opt, tokens = shapes.abstract_args(shape)

    def weight(path: Any, x: Any) -> jax.Array:
        is_gain = path[-1].key.startswith("ln")
        drawn = 0.02 * rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(np.ones(x.shape, np.float32) if is_gain else drawn)

    weights = jax.tree_util.tree_map_with_path(weight, params)
    opt = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), opt)
    return weights, opt, rng.integers(0, shape.vocabulary, tokens.shape, np.int32)


def scan_case() -> tuple[Any, tuple[Any, ...], int]:
    """A wider GPT whose layers are in a scan."""
    return shapes.make_train_step(WIDE), random_args(WIDE), WIDE.parameters


def bytes_section(names: tuple[str, ...] = BYTES) -> Iterator[list[str]]:
    """Bytes a parameter, of both models under every recipe."""
    cases = {"example": example_case(), "wide": scan_case()}
    counts = " and ".join(f"{case[2]:,}" for case in cases.values())
    head = [
        f"The GPT of examples/train_gpt.py, and one four times as wide, its layers in a scan: "
        f"{counts} parameters. *State* is `nbytes` of every leaf that `step.init` gives, scales "
        "and vectors included; *gradients* those that wait between the backward pass and the "
        "update, in the format in which the compiled step has them wait.",
        "",
        "| recipe | state, example | gradients | both | state, wide | gradients | both |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines = []
    for name in names:
        cells = []
        for fn, args, count in cases.values():
            state, grads = bytes_of(precir.compile(fn, recipe=named(name)), args, count)
            cells += [f"{state:.3f}", f"{grads:.3f}", f"{state + grads:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        yield [*head, *lines]


# --- training -------------------------------------------------------------------------------------

TRAINED = (
    "float32", "fp8", "fp8 + residuals", "fp8-lm-o2", "fp8-lm-o2 + fused", "fp8-lm-block",
    "fp8-lm-block + fused + residuals",
)  # fmt: skip
WITHIN = 0.02


@cache
def batches(config: Any) -> tuple[np.ndarray, np.ndarray]:
    made: tuple[np.ndarray, np.ndarray] = gpt.make_batches(gpt.read_text(), config)
    return made


def trained(name: str, recipe: Any, config: Any) -> tuple[Any, Any]:
    """The last state and the run of the example under a recipe."""
    step = precir.compile(gpt.make_train_step(config), recipe=recipe)
    with gpt.make_progress() as progress:
        progress.disable = True
        made: tuple[Any, Any] = gpt.train(name, step, config, batches(config), progress)
    return made


def training_section(
    names: tuple[str, ...] = TRAINED, seeds: int = 3, steps: int = 200
) -> Iterator[list[str]]:
    """Held-out loss of the example under every recipe."""
    head = [
        f"The example GPT, {steps} steps, held-out loss in float32 after the last: each seed's, "
        f"and the mean difference from float32; at most {WITHIN} is wanted.",
        "",
        f"| recipe | {' | '.join(f'seed {s}' for s in range(seeds))} | minus float32 | |",
        f"| --- |{' ---: |' * seeds} ---: | --- |",
    ]
    lines: list[str] = []
    base: list[float] = []
    for name in names:
        losses = []
        for seed in range(seeds):
            config = dataclasses.replace(gpt.Config(), steps=steps, seed=seed)
            losses.append(trained(name, named(name), config)[1].held_out_loss)
        base = base or losses
        apart = float(np.mean(np.subtract(losses, base)))
        said = "" if losses is base else "within" if abs(apart) <= WITHIN else "MISSED"
        cells = " | ".join(f"{x:.4f}" for x in losses)
        lines.append(f"| {name} | {cells} | {apart:+.4f} | {said} |")
        print(lines[-1], flush=True)
        yield [*head, *lines]


EQUAL = ("float32", "fp8", "fp8-lm-o2", "fp8-lm-block")
SMALL = dataclasses.replace(shapes.TINY, layers=3, length=32, batch=4)


def run(step: precir.Compiled, args: tuple[Any, ...], steps: int) -> tuple[list[float], Tree]:
    """The losses of some steps, and the unpacked state after them."""
    *state, tokens = step.init(*args)
    losses = []
    for _ in range(steps):
        *state, loss = step(*state, tokens)
        losses.append(float(loss))
    return losses, step.unpack(*state)


def largest_apart(one: Tree, other: Tree) -> float:
    """The largest difference of an element."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def equal_section(names: tuple[str, ...] = EQUAL, steps: int = 20) -> Iterator[list[str]]:
    """Fused beside plain, on a GPT whose layers are in a scan."""
    head = [
        f"A GPT of {SMALL.layers} layers of {SMALL.width} in a scan, Adam: {steps} steps with the "
        'update as it is, and with `update="fused"`: the largest difference of a moment and of a '
        "weight after one step, of a loss and of a weight after all. XLA orders the divisions of "
        "one update in another way in a loop, so that a weight may differ in its last place after "
        "the first step. From there 8 bits make much of it: a number on the other side of a "
        "rounding moves by a sixteenth, and Adam turns any change of a small gradient into one of "
        "a whole step (3e-4). *Control* is the plain run beside itself from first weights each "
        "moved by one unit in the last place.",
        "",
        "| recipe | last loss, plain | fused | moment, one step | weight, one step "
        "| loss | weight | loss, control | weight, control |",
        "| --- |" + " ---: |" * 8,
    ]
    lines: list[str] = []
    for name in names:
        args = random_args(SMALL)
        near = (jax.tree.map(lambda p: jnp.nextafter(p, jnp.inf), args[0]), *args[1:])
        step, fused = (
            precir.compile(shapes.make_train_step(SMALL), recipe=named(n))
            for n in (name, f"{name} + fused")
        )
        (_, first), (_, first_fused) = run(step, args, 1), run(fused, args, 1)
        plain, *others = (run(s, a, steps) for s, a in ((step, args), (fused, args), (step, near)))
        cells = [f"{plain[0][-1]:.6f}", f"{others[0][0][-1]:.6f}"]
        cells += [f"{largest_apart(first[i], first_fused[i]):.2g}" for i in (1, 0)]
        for losses, state in others:
            cells.append(f"{np.max(np.abs(np.subtract(plain[0], losses))):.2g}")
            cells.append(f"{largest_apart(plain[1][0], state[0]):.2g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        yield [*head, *lines]


# --- the ablation ---------------------------------------------------------------------------------

O2 = precir.recipe("fp8-lm-o2")
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
# Number in the paper's table 6, what is stored how, the recipe.
SCHEMES: dict[str, tuple[str, Any]] = {
    "#0": ("float32", precir.recipe("float32")),
    "#1": ("bf16-mixed", precir.recipe("bf16-mixed")),
    "#2a": ("weight float16, m E4M3, v float16 (O2)", O2),
    "#2b": ("weight bfloat16, m E4M3, v float16", O2.replace(weight=Store("bfloat16"))),
    "#3": ("weight E4M3, m E4M3, v float16", O2.replace(weight=Store(E4M3))),
    "#4": ("weight float16, m E4M3, v E4M3", O2.replace(second_moment=Store(E4M3))),
    "#4 in E5M2": ("weight float16, m E4M3, v E5M2", O2.replace(second_moment=Store(E5M2))),
    "blocks": (
        "weight float16, m E4M3, v E5M2, blocks of 128 (fp8-lm-block)",
        precir.recipe("fp8-lm-block"),
    ),
    "blocks, E4M3": (
        "weight float16, m and v E4M3, blocks of 128",
        precir.recipe("fp8-lm-block").replace(second_moment=Store(E4M3, 128)),
    ),
}


def stored(x: jax.Array, store: Store | None) -> jax.Array:
    """What a moment is after it was stored."""
    if store is None:
        return x
    block = (1,) * (x.ndim - 1) + (store.block,) if store.block else ()
    return quantize(x, store.format, block=block).unscale()


def moment_error(moments: Any, recipe: Any, steps: int) -> tuple[float, float, float]:
    """Of m / (sqrt(v) + 1e-8), both corrected for their beginning: the rms of the error by the rms
    of the value and the median of the relative error, over all matrices; and the part of v's
    elements that became zero though they were not.
    """
    apart, whole, relative, lost, count = 0.0, 0.0, [], 0, 0

    def ratio(m: jax.Array, v: jax.Array) -> np.ndarray:
        m, v = m / (1 - 0.9**steps), v / (1 - 0.999**steps)
        return np.asarray(m / (jnp.sqrt(v) + 1e-8), np.float64)

    for m, v in zip(jax.tree.leaves(moments.mu), jax.tree.leaves(moments.nu), strict=True):
        if m.ndim < 2:
            continue
        narrow = stored(m, recipe.first_moment), stored(v, recipe.second_moment)
        true, found = ratio(m, v), ratio(*narrow)
        used = np.asarray(v > 0)
        apart += float(np.sum((found - true)[used] ** 2))
        whole += float(np.sum(true[used] ** 2))
        relative.append(np.abs(found - true)[used] / np.maximum(np.abs(true)[used], 1e-30))
        lost += int(np.sum(used & np.asarray(narrow[1] == 0)))
        count += int(np.sum(used))
    return (apart / whole) ** 0.5, float(np.median(np.concatenate(relative))), lost / count


def find_moments(opt: Any) -> Any:
    """Adam's part of an optax state."""
    is_adam: Callable[[Any], bool] = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    return next(x for x in jax.tree.leaves(opt, is_leaf=is_adam) if is_adam(x))


def ablation_section(
    names: tuple[str, ...] = tuple(SCHEMES), steps: int = 150, rates: tuple[float, ...] = ()
) -> Iterator[list[str]]:
    """Held-out loss under every scheme, and what it does to float32's moments."""
    configs = [
        dataclasses.replace(gpt.Config(), steps=steps, lr=lr)
        for lr in rates or (gpt.Config().lr, 4 * gpt.Config().lr)
    ]
    heads = " | ".join(f"lr {c.lr:g}" for c in configs)
    head = [
        f"One seed, {steps} steps of the example GPT: held-out loss at the end. The errors are of "
        "m/(√v + 1e-8) when the last moments of the float32 run (the first learning rate) are "
        "stored so; rms over all elements by the rms of the value. *v lost*: elements of v that "
        "become zero.",
        "",
        f"| | stored | {heads} | rms error of m/√v | median relative error | v lost |",
        f"| --- | --- |{' ---: |' * (len(configs) + 3)}",
    ]
    lines: list[str] = []
    moments = None
    for name in names:
        about, recipe = SCHEMES[name]
        losses = []
        for config in configs:
            state, made = trained(name, recipe, config)
            losses.append(f"{made.held_out_loss:.4f}")
            moments = moments or find_moments(state.opt_state)  # of the first, float32
        rms, median, lost = moment_error(moments, recipe, steps)
        cells = f"{rms:.3g} | {100 * median:.2g}% | {100 * lost:.2g}%"
        lines.append(f"| {name} | {about} | {' | '.join(losses)} | {cells} |")
        print(lines[-1], flush=True)
        yield [*head, *lines]


# --- accumulation over micro-batches --------------------------------------------------------------

COUNTS = (1, 4, 16, 64)


def accumulation_section(counts: tuple[int, ...] = COUNTS) -> Iterator[list[str]]:
    """How far a sum of gradients is from their sum in float64, by how it is carried."""
    config = dataclasses.replace(gpt.Config(), steps=max(counts))
    params = gpt.init_state(config).params
    gradient = jax.jit(jax.grad(gpt.loss_fn), static_argnums=2)

    def fp8(x: np.ndarray) -> np.ndarray:
        return np.asarray(quantize(jnp.asarray(x), E4M3).unscale())

    def bf16(x: np.ndarray) -> np.ndarray:
        return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))

    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "float32, as precir leaves it": lambda x: x, "bfloat16": bf16, "E4M3, as MS-AMP does": fp8,
    }  # fmt: skip
    true: list[Any] = []
    sums: dict[str, list[Any]] = {name: [] for name in ways}
    rows: dict[str, list[str]] = {name: [] for name in (*ways, "float32, then E4M3 once")}

    def error(found: list[Any]) -> str:
        apart = sum(float(np.sum((f - t) ** 2)) for f, t in zip(found, true, strict=True))
        whole = sum(float(np.sum(t**2)) for t in true)
        return f"{(apart / whole) ** 0.5:.2g}"

    for number, tokens in enumerate(batches(config)[0], 1):
        leaves = [np.asarray(g) for g in jax.tree.leaves(gradient(params, tokens, config))]
        leaves = [g for g in leaves if g.ndim >= 2]
        before = true or [np.zeros(g.shape) for g in leaves]
        true = [t + g for t, g in zip(before, leaves, strict=True)]
        for name, rounded in ways.items():
            before = sums[name] or [np.zeros_like(g) for g in leaves]
            sums[name] = [rounded(s + g) for s, g in zip(before, leaves, strict=True)]
        if number in counts:
            for name in ways:
                rows[name].append(error(sums[name]))
            rows["float32, then E4M3 once"].append(error([fp8(s) for s in sums[next(iter(ways))]]))
    head = [
        "Gradients of the example GPT's matrices at its start, summed over micro-batches of "
        f"{config.batch} rows: relative error of the sum against the same sum in float64, by the "
        "number of micro-batches and by what carries it.",
        "",
        f"| carried in | {' | '.join(map(str, counts))} |",
        f"| --- |{' ---: |' * len(counts)}",
    ]
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    print("\n".join(lines), flush=True)
    yield [*head, *lines]
