"""Train a small GPT on bytes of English text, once per recipe, and compare the recipes.

    python examples/train_gpt.py
    python examples/train_gpt.py --recipes float32 fp8 --layers 2 --steps 200 --text book.txt

Nothing in the model or in the train step knows about precision. `precir.compile` takes the train
step as it is and is called like the result of `jax.jit`. Every recipe starts from the same weights
and sees the same batches in the same order, so what differs between the curves is the recipe.

The folder `out/` then holds, for every recipe, the emitted module (`train_step_fp8.py`: read it, or
train with it, see plug_in.py) and the dump of every pass (`fp8/`), beside the plot `losses.png`,
the start (`init.npz`) and the losses (`losses.json`).
"""

import argparse
import json
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import precir

RECIPES = ("float32", "bf16-mixed", "fp8")


@dataclass(frozen=True)
class Config:
    """The size of the model and of the run."""

    layers: int = 3
    width: int = 128
    heads: int = 4
    context: int = 64  # bytes that the model sees at once
    batch: int = 8
    steps: int = 800
    lr: float = 1.5e-3
    seed: int = 0


# --- the model ------------------------------------------------------------------------------------
# Module names become scopes (GPT/h_0/attn/qkv), by which precir's report and emitted code name
# every tensor. Linear layers carry no biases.


def layer_norm(name: str) -> nn.LayerNorm:
    """Flax's, but without its faster E[x^2] - E[x]^2 for the variance, which loses digits."""
    return nn.LayerNorm(use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Every position takes a weighted mean over itself and the positions before it."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        size = width // self.heads
        qkv = nn.Dense(3 * width, use_bias=False, name="qkv")(x)
        q, k, v = qkv.reshape(batch, length, 3, self.heads, size).transpose(2, 0, 3, 1, 4)
        with jax.named_scope("scores"):
            scores = q @ k.swapaxes(2, 3) * size**-0.5
            causal = jnp.tril(jnp.ones((length, length), bool))
            weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        with jax.named_scope("mix"):
            mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)
        return nn.Dense(width, use_bias=False, name="proj")(mixed)


class Mlp(nn.Module):
    """Two linear layers with a nonlinearity between them, at each position alone."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = nn.Dense(4 * width, use_bias=False, name="up")(x)
        return nn.Dense(width, use_bias=False, name="down")(nn.gelu(h))


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to what comes in."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.heads, name="attn")(layer_norm("ln_1")(x))
        return x + Mlp(name="mlp")(layer_norm("ln_2")(x))


class GPT(nn.Module):
    """From bytes, [batch, length], to the logits of each next byte, [batch, length, 256]."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        width = self.config.width
        positions = jnp.arange(tokens.shape[1])
        x = nn.Embed(256, width, name="wte")(tokens)
        x = x + nn.Embed(self.config.context, width, name="wpe")(positions)
        for i in range(self.config.layers):
            x = Block(self.config.heads, name=f"h_{i}")(x)
        x = layer_norm("ln_f")(x)
        return nn.Dense(256, use_bias=False, name="lm_head")(x)


# --- the train step -------------------------------------------------------------------------------


class State(NamedTuple):
    """All that one step hands to the next."""

    params: Any
    opt_state: Any
    step: jax.Array


def loss_fn(params: Any, tokens: jax.Array, config: Config) -> jax.Array:
    """Return the mean cross entropy, in nats per byte; each byte is guessed from those before."""
    logits = GPT(config).apply({"params": params}, tokens[:, :-1])
    with jax.named_scope("loss"):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(losses)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW, with gradients clipped by their global norm, a linear warmup and a cosine decay."""
    warmup = 1 + config.steps // 20
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, config.steps + 1)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


def init_state(config: Config) -> State:
    """Fresh weights from the seed, and the optimizer's state for them."""
    tokens = jnp.zeros((1, config.context), jnp.int32)
    params = GPT(config).init(jax.random.key(config.seed), tokens)["params"]
    return State(params, make_optimizer(config).init(params), jnp.zeros((), jnp.int32))


def apply_gradients(state: State, grads: Any, config: Config) -> State:
    """One step of the optimizer."""
    updates, opt_state = make_optimizer(config).update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state, state.step + 1)


def make_train_step(config: Config) -> Callable[[State, jax.Array], tuple[State, jax.Array]]:
    """The train step for one configuration: an ordinary function, neither jitted nor cast."""

    def train_step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, tokens, config)
        return apply_gradients(state, grads, config), loss

    return train_step


# The step at the default size, for `precir compile examples/train_gpt.py:train_step`, which asks
# `train_step_args` for arguments to trace it with; others ask for batches too.
train_step = make_train_step(Config())


def train_step_args() -> tuple[State, jax.Array]:
    """Arguments of `train_step`, as at the first step."""
    config = Config()
    return init_state(config), jnp.asarray(make_batches(read_text(), config)[0][0])


def train_step_batches() -> np.ndarray:
    """Its last argument for each step, for `precir choose` and `precir plan --measure`."""
    return make_batches(read_text(), Config())[0]


# --- the text -------------------------------------------------------------------------------------


def read_text(path: Path | None = None) -> np.ndarray:
    """Return the bytes of a file or, without one, of the language help that comes with Python."""
    if path is not None:
        return np.frombuffer(path.read_bytes(), np.uint8)
    topics = pydoc_data.topics.topics
    return np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)


def make_batches(text: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return the batches to train on, one a step, and 16 held-out ones.

    Both are int32[number, batch, context + 1], cut at random places: from the first nine tenths of
    the text to train on, from the last tenth to test on. The held-out batches are the same for
    every seed.
    """
    split = len(text) * 9 // 10
    train, held_out = text[:split], text[split:]

    def cut(part: np.ndarray, number: int, seed: int) -> np.ndarray:
        window = config.context + 1
        places = np.random.default_rng(seed).integers(
            0, len(part) - window + 1, (number, config.batch, 1)
        )
        return part[places + np.arange(window)].astype(np.int32)

    return cut(train, config.steps, config.seed), cut(held_out, 16, 0)


# --- training with one recipe ---------------------------------------------------------------------


@dataclass
class Run:
    """What one training run left behind."""

    name: str
    losses: list[float] = field(default_factory=list)  # one a step
    held_out: dict[int, float] = field(default_factory=dict)  # by the number of steps done
    seconds: list[float] = field(default_factory=list)  # the first call compiles
    report: Any = None

    @property
    def train_loss(self) -> float:
        """The mean over the last 20 steps."""
        return float(np.mean(self.losses[-20:]))

    @property
    def held_out_loss(self) -> float:
        """The loss on the held-out batches after the last step."""
        return self.held_out[len(self.losses)]

    @property
    def step_time(self) -> float:
        """The median, in seconds, without the first call."""
        return float(np.median(self.seconds[1:] or self.seconds))


def train(
    name: str,
    step: precir.Compiled,
    config: Config,
    batches: tuple[np.ndarray, np.ndarray],
    progress: Progress,
) -> tuple[State, Run]:
    """Call `step` once on every batch, from fresh weights, and watch the losses.

    The held-out loss is computed by the plain float32 model for every recipe, eight times in all.
    """
    plain_loss = jax.jit(loss_fn, static_argnums=2)
    train_batches, test_batches = batches
    every = max(1, len(train_batches) // 8)
    state, _ = step.init(init_state(config), train_batches[0])  # as the recipe stores it
    run = Run(name)
    task = progress.add_task(name, total=len(train_batches), loss="compiling", rate=0.0)
    for tokens in train_batches:
        start = time.perf_counter()
        state, loss = step(state, tokens)
        run.losses.append(float(loss))  # waits until the step is done
        run.seconds.append(time.perf_counter() - start)
        done = len(run.losses)
        if done % every == 0 or done == len(train_batches):
            params = step.unpack(state).params
            tests = [plain_loss(params, batch, config) for batch in test_batches]
            run.held_out[done] = float(np.mean(tests))
        rate = 1 / np.mean(run.seconds[-20:])
        progress.update(task, advance=1, loss=f"loss {run.losses[-1]:.3f}", rate=rate)
    return state, run


def make_progress() -> Progress:
    """A progress bar that shows the loss and the speed."""
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[rate]:.1f} step/s"),
        TimeRemainingColumn(),
    )


# --- what is written and shown --------------------------------------------------------------------


def module_name(recipe: str) -> str:
    """Return the name of the emitted module, without `.py`."""
    return "train_step_" + Path(recipe).stem.replace("-", "_")  # or the file's


def save_start(path: Path, state: State, batches: np.ndarray) -> None:
    """Write the initial state and the batches as plain arrays, named by their place in the state.

    An array is called, for instance, `params/h_0/attn/qkv/kernel` or `opt_state/1/0/count`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    name = jax.tree_util.keystr
    arrays = {name(at, simple=True, separator="/"): np.asarray(leaf) for at, leaf in leaves}
    np.savez_compressed(path, batches=batches, **arrays)


def make_table(runs: list[Run]) -> Table:
    """Return one row for each recipe."""
    table = Table(caption=f"Losses in nats per byte. Step: median time, {runs[0].name} is 1.")
    table.add_column("recipe", no_wrap=True)
    for heading in ("train", "held out", "products in FP8", "residuals", "first call", "step"):
        table.add_column(heading, justify="right")
    for run in runs:
        products = run.report.products
        table.add_row(
            run.name,
            f"{run.train_loss:.3f}",
            f"{run.held_out_loss:.3f}",
            f"{sum(product.low for product in products)} of {len(products)}",
            decimal(run.report.residual_bytes),
            f"{run.seconds[0]:.1f} s",
            f"{run.step_time / runs[0].step_time:.2f}",
        )
    return table


def smooth(losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the running mean over about 1/25 of the run, and the step at each window's middle."""
    window = max(1, len(losses) // 25)
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    return np.arange(len(means)) + (window + 1) / 2, means


def plot(runs: list[Run], path: Path) -> None:
    """Draw the losses above, and below how far each recipe is from the first one."""
    from matplotlib.figure import Figure  # a figure of its own needs no display

    # Told apart by the colour-blind too (Okabe and Ito).
    colours = ("#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    base = smooth(runs[0].losses)[1]
    figure = Figure(figsize=(9, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for order, run in enumerate(runs):
        colour, held_out = colours[order % len(colours)], np.array(list(run.held_out.items())).T
        label, size = f"held out, {run.held_out_loss:.3f} at the end", max(10 - 2.5 * order, 2)
        middles, means = smooth(run.losses)
        # Curves that lie on one another all stay visible: the later, the thinner.
        top.plot(range(1, len(run.losses) + 1), run.losses, color=colour, lw=0.5, alpha=0.25)
        top.plot(middles, means, color=colour, lw=max(3.4 - order, 0.8), label=run.name)
        top.plot(*held_out, "o", color=colour, mfc="w", ms=size, label=label)
        bottom.plot(middles, means - base, color=colour, lw=1.4)
    # The first steps fall from 5.5, far above all that is of interest.
    losses = np.concatenate([run.losses for run in runs])
    losses = losses[np.isfinite(losses)]
    top.set_ylim(0.95 * losses.min(), np.quantile(losses, 0.96))
    top.set_title("Training and held-out loss, nats per byte", loc="left")
    top.legend(ncols=len(runs), frameon=False, loc="upper right")
    bottom.set_title(f"Training loss minus that of {runs[0].name}", loc="left")
    span = 1.05 * max(0.02, *np.abs(bottom.dataLim.intervaly))
    bottom.set_ylim(-span, span)
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


# --- the command line -----------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> Any:
        """Print what is wrong, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str] | None) -> tuple[Config, np.ndarray, list[str], Path]:
    """Return the configuration, the text, the recipes and the folder to write to, all checked."""
    parser = Parser(description="Train a small GPT once per recipe, and compare the recipes.")
    default = Config()
    for name, help in (
        ("layers", "number of blocks"),
        ("width", "size of each position's vector"),
        ("heads", "attention heads in a block"),
        ("context", "bytes that the model sees at once"),
        ("batch", "windows of text in a batch"),
        ("steps", "steps to train for"),
        ("lr", "learning rate at its peak"),
        ("seed", "of the weights and of the batches"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{help} ({value})")
    names = f"any that precir knows, or a file ({' '.join(RECIPES)})"
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE", help=names)
    parser.add_argument("--text", type=Path, help="a file to train on (Python's language help)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (out)")
    options = vars(parser.parse_args(argv))

    out, recipes, path = options.pop("out"), options.pop("recipes"), options.pop("text")
    config = Config(**options)
    for name in ("layers", "width", "heads", "context", "batch", "steps", "lr"):
        if not options[name] > 0:
            parser.error(f"--{name} must be positive, not {options[name]}")
    try:
        for recipe in recipes:
            precir.recipe(recipe)
    except precir.errors.RecipeError as error:
        parser.error("--recipes: " + "; ".join(filter(None, (error.what, error.fix))))
    if config.width % config.heads:
        parser.error(f"--width {config.width} is not divisible by --heads {config.heads}")
    try:
        text = read_text(path)
    except OSError as error:
        parser.error(f"cannot read --text {path}: {error.strerror}")
    if len(text) < (needed := 10 * (config.context + 2)):
        parser.error(f"--text {path} has {len(text)} bytes; this context needs at least {needed}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        parser.error(f"cannot write to --out {out}: {error.strerror}")
    return config, text, list(dict.fromkeys(recipes)), out


def main(argv: Sequence[str] | None = None) -> None:
    """Train with every recipe, then show how they compare."""
    config, text, recipes, out = parse(argv)
    batches = make_batches(text, config)
    save_start(out / "init.npz", init_state(config), batches[0])

    runs = []
    with make_progress() as progress:
        for recipe in recipes:
            # The one line that is precir's. The state is donated: each step may overwrite it.
            step = precir.compile(make_train_step(config), recipe=recipe, donate_argnums=(0,))
            state, run = train(recipe, step, config, batches, progress)
            run.report = step.report(state, batches[0][-1])
            step.dump(out / module_name(recipe).removeprefix("train_step_"), state, batches[0][-1])
            step.save(out / f"{module_name(recipe)}.py", state, batches[0][-1])
            runs.append(run)

    losses = {module_name(run.name): run.losses for run in runs}
    (out / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    plot(runs, out / "losses.png")
    rich.print(make_table(runs))
    rich.print(f"Emitted modules, dumps and the plot losses.png are in {out}/")


if __name__ == "__main__":
    main()
