"""Fine-tune a pretrained transformer to tell praise from blame, once per recipe, and compare.

    python examples/finetune_minilm.py
    python examples/finetune_minilm.py --recipes 32-true bf16-true fp8-block --seeds 0 1 --steps 150

The model is all-MiniLM-L6-v2 with a linear classifier on its pooled output (minilm.py), the data
are 10,566 snippets of movie reviews that people rated (reviews.py); both are downloaded once. All
22.6 million parameters are trained, with AdamW and without dropout. What changes from run to run is
one argument of `precir.compile`, a name as in Lightning Fabric or one of precir's own.

All recipes train side by side: each step goes to one after another, with the same batch, so that
their times can be compared on a machine that has other things to do. The folder out/minilm/ then
holds the table's numbers (`runs.json`), the plot `finetune.png` and the emitted modules.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import fetch
import jax
import jax.numpy as jnp
import minilm
import numpy as np
import optax
import reviews
import rich
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import precir

FABRIC = ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
PALETTE = (
    "#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1",
    "#a6761d", "#e7298a", "#66a61e", "#999999",
)  # fmt: skip
QUICK = ("32-true", "bf16-mixed", "16-mixed", "16-true", "fp8")


@dataclass(frozen=True)
class Config:
    """The size of the encoder, and of the run."""

    encoder: minilm.Config = field(default_factory=minilm.Config)
    length: int = 32  # tokens of a snippet; half have fewer than 26, a quarter is cut
    batch: int = 32
    steps: int = 80
    lr: float = 2e-4
    seed: int = 0


# --- the train step -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Snippets: tokens and where they are, [batch, length], and whether positive, [batch]."""

    tokens: Any
    mask: Any
    labels: Any


class State(NamedTuple):
    """All that one step hands to the next."""

    params: Any
    opt_state: Any
    step: jax.Array


def logits_fn(params: Any, batch: Batch, config: Config) -> jax.Array:
    """The logits of negative and positive, [batch, 2]."""
    x = minilm.encode(params["encoder"], batch.tokens, batch.mask, config.encoder)
    pooled = minilm.pool(x, batch.mask)
    with jax.named_scope("head"):
        return minilm.linear(params["head"], pooled)


def loss_fn(params: Any, batch: Batch, config: Config) -> jax.Array:
    """The mean cross entropy, in nats."""
    logits = logits_fn(params, batch, config)
    with jax.named_scope("loss"):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW, with a linear warmup and a cosine decay."""
    warmup = 1 + config.steps // 10
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, config.steps + 1)
    return optax.adamw(schedule, weight_decay=0.01)


def init_state(config: Config, encoder: Any) -> State:
    """The encoder's weights, a new head from the seed, and the optimizer's state for both."""
    kernel = 0.02 * jax.random.normal(jax.random.key(config.seed), (config.encoder.width, 2))
    params = {"encoder": encoder, "head": {"kernel": kernel, "bias": jnp.zeros(2)}}
    return State(params, make_optimizer(config).init(params), jnp.zeros((), jnp.int32))


def make_train_step(config: Config) -> Callable[[State, Batch], tuple[State, jax.Array]]:
    """The train step for one configuration: an ordinary function, neither jitted nor cast."""

    def train_step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, config)
        updates, opt_state = make_optimizer(config).update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state, state.step + 1), loss

    return train_step


# The step at the default size, for `precir check examples/finetune_minilm.py:train_step --format
# float16`, which asks `train_step_args` for arguments to try it with.
train_step = make_train_step(Config())


def train_step_args() -> tuple[State, Batch]:
    """Arguments of `train_step`, as at the first step."""
    config = Config()
    batch = next(batches(load_data(config)[0], config))
    return init_state(config, minilm.load_params()), batch


# --- the data -------------------------------------------------------------------------------------


def load_data(config: Config) -> tuple[Batch, Batch]:
    """All snippets to train on, and all to test on; the same for every seed."""

    def arrays(snippets: list[reviews.Snippet]) -> Batch:
        tokens, mask = minilm.tokenise([s.text for s in snippets], config.length)
        return Batch(tokens, mask, np.array([s.positive for s in snippets], np.int32))

    train, test = reviews.split(reviews.read_snippets())
    return arrays(train), arrays(test)


def batches(data: Batch, config: Config) -> Any:
    """Yield a batch for each step: all snippets in a new order, again and again."""
    rng, order = np.random.default_rng(config.seed), np.array([], int)
    for _ in range(config.steps):
        if len(order) < config.batch:
            order = np.concatenate([order, rng.permutation(len(data.labels))])
        chosen, order = order[: config.batch], order[config.batch :]
        yield Batch(*(x[chosen] for x in data))


# --- training -------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one training run left behind."""

    recipe: str
    seed: int
    losses: list[float] = field(default_factory=list)  # one a step; ends where it is NaN
    seconds: list[float] = field(default_factory=list)  # the first call compiles
    relative: list[float] = field(default_factory=list)  # of each step's time to the first recipe's
    accuracy: float = 0.0  # on all snippets to test on
    state_bytes: int = 0  # what lives between steps: weights, moments, counts, scales

    @property
    def failed(self) -> bool:
        """Whether the loss became NaN, after which nothing changes any more."""
        return bool(self.losses) and not np.isfinite(self.losses[-1])

    @property
    def loss(self) -> float:
        """The mean over the last 20 steps."""
        return float(np.mean(self.losses[-20:]))


def digits(recipe: str | precir.Recipe) -> Any:
    """In which to call what is compiled with a recipe: 64 bits have to be switched on in JAX."""
    return jax.enable_x64(True) if precir.recipe(recipe).compute == "float64" else nullcontext()


def compile_steps(recipes: Sequence[str], config: Config) -> dict[str, precir.Compiled]:
    """The train step under every recipe. The state is donated: each step may overwrite it."""
    step = make_train_step(config)
    return {name: precir.compile(step, recipe=name, donate_argnums=(0,)) for name in recipes}


def train(
    steps: dict[str, precir.Compiled], config: Config, encoder: Any, data: tuple[Batch, Batch],
    progress: Progress,
) -> tuple[list[Run], dict[str, Any]]:  # fmt: skip
    """Train under every recipe, step by step in turn; return the runs and the last weights.

    A run whose loss is NaN is over. The accuracy is that of the weights in the plain float32 model,
    the same for every recipe: what the weights became is compared, not how they are read.
    """
    first, first_name = next(batches(data[0], config)), next(iter(steps))
    runs, states = {}, {}
    for name, step in steps.items():
        fresh = jax.tree.map(jnp.copy, init_state(config, encoder))  # its own, to be donated
        with digits(name):
            states[name], _ = step.init(fresh, first)  # as the recipe stores it
        nbytes = sum(x.nbytes for x in jax.tree.leaves(states[name]))
        runs[name] = Run(name, config.seed, state_bytes=nbytes)
    task = progress.add_task(f"seed {config.seed}", total=config.steps, at="compiling")
    for batch in batches(data[0], config):
        for name, step in steps.items():
            if runs[name].failed:
                continue
            start = time.perf_counter()
            with digits(name):
                states[name], loss = step(states[name], batch)
                runs[name].losses.append(float(loss))  # waits until the step is done
            runs[name].seconds.append(time.perf_counter() - start)
            runs[name].relative.append(runs[name].seconds[-1] / runs[first_name].seconds[-1])
        said = "  ".join(f"{run.recipe} {run.losses[-1]:.3f}" for run in runs.values())
        progress.update(task, advance=1, at=said)
    params = {name: step.unpack(states[name]).params for name, step in steps.items()}
    for name, run in runs.items():
        run.accuracy = accuracy(params[name], data[1], config)
    return list(runs.values()), params


def accuracy(params: Any, data: Batch, config: Config) -> float:
    """The part of all snippets whose larger logit is right, by the plain float32 model."""
    logits = jax.jit(logits_fn, static_argnums=2)
    return right(np.concatenate([logits(params, batch, config) for batch in parts(data)]), data)


def right(logits: np.ndarray, data: Batch) -> float:
    """The part of all snippets whose larger logit is that of the label."""
    return float(np.mean(np.argmax(logits, axis=1) == data.labels))


def parts(data: Batch, size: int = 128) -> list[Batch]:
    """All snippets in batches of at most `size`, in their order."""
    starts = range(0, len(data.labels), size)
    return [Batch(*(x[start : start + size] for x in data)) for start in starts]


def make_progress() -> Progress:
    """A progress bar that shows the losses."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[at]}"),
    )  # fmt: skip


# --- what is written and shown --------------------------------------------------------------------


def relative_time(runs: list[Run], recipe: str) -> float:
    """The median over the steps of all seeds, without those that compile."""
    return float(np.median([x for run in runs if run.recipe == recipe for x in run.relative[1:]]))


def formats(report: Any) -> str:
    """How many matrix products run in which formats, as "72 float8_e4m3fn, 6 bfloat16"."""
    counts = Counter(product.format for product in report.products)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def make_table(runs: list[Run], reports: dict[str, Any]) -> Table:
    """Return one row for each recipe, over all seeds."""
    device = jax.devices()[0]
    table = Table(
        caption=f"Step: median time, {runs[0].recipe} is 1, on this {device.device_kind}; float32 "
        f"products at JAX's {jax.config.jax_default_matmul_precision or 'default'} precision"
        + (
            ", which on a CPU is float32 (no TF32); FP8 is emulated."
            if device.platform == "cpu"
            else "."
        )
    )
    table.add_column("recipe")
    table.add_column("matrix products in")
    for heading in ("accuracy", "least", "most", "train loss", "state", "residuals", "step"):
        table.add_column(heading, justify="right")
    for name, report in reports.items():
        mine = [run for run in runs if run.recipe == name]
        accuracies = [run.accuracy for run in mine]
        table.add_row(
            name,
            formats(report),
            f"{np.mean(accuracies):.1%}",
            f"{min(accuracies):.1%}",
            f"{max(accuracies):.1%}",
            f"{np.mean([run.loss for run in mine]):.3f}",
            decimal(mine[0].state_bytes),
            decimal(report.residual_bytes),
            f"{relative_time(runs, name):.2f}",
        )
    return table


def plot(runs: list[Run], path: Path) -> None:
    """Draw the accuracy of every recipe, one dot a seed, beside the curves of the losses: each less
    that of the first recipe that did not fail, which had the same batches.
    """
    from matplotlib.figure import Figure  # a figure of its own needs no display

    names = list(dict.fromkeys(run.recipe for run in runs))
    colours = dict(zip(names, PALETTE * len(names), strict=False))
    failed = {run.recipe for run in runs if run.failed}
    base_name = next((name for name in names if name not in failed), names[0])
    first = {run.seed: run for run in runs if run.recipe == base_name}
    figure = Figure(figsize=(11, 1.6 + 0.42 * max(7, len(names))), layout="constrained")
    left, right_ = figure.subplots(1, 2, width_ratios=(1, 1.25))
    base = 100 * np.mean([run.accuracy for run in first.values()])
    shown = [100 * run.accuracy for run in runs if not run.failed] or [base]
    low, high = min(*shown, base - 1), max(*shown, base + 1)
    low, high = low - 0.15 * (high - low), high + 0.2 * (high - low)
    left.axvspan(base - 1, base + 1, color=colours[base_name], alpha=0.08, lw=0)
    for row, name in enumerate(names):
        mine, colour = [run for run in runs if run.recipe == name], colours[name]
        values = [100 * run.accuracy for run in mine]
        if name in failed:  # wherever that is: not to stretch the axis
            left.plot(low, row, "<", color=colour, ms=9, clip_on=False)
            said = f"{np.mean(values):.1f}: NaN from step {len(mine[0].losses)}"
            left.annotate(said, (low, row), (9, 0), textcoords="offset points", va="center")
            continue
        left.plot(values, [row] * len(values), "o", color=colour, mfc="w", ms=7, mew=1.6)
        left.plot(np.mean(values), row, "|", color=colour, ms=17, mew=2.4)
        said = f"{np.mean(values):.1f}"
        left.annotate(said, (max(values), row), (9, 0), textcoords="offset points", va="center")
        middles, means = smooth(np.mean([compared(run, first[run.seed]) for run in mine], axis=0))
        some = len(mine) < len(first)
        label = f"{name}, seed {' '.join(str(run.seed) for run in mine)} alone" if some else name
        right_.plot(middles, means, "--" if some else "-", color=colour, lw=1.6, label=label)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    left.set_xlim(low, high)
    left.set_title("Right of all test snippets, in %", loc="left")
    left.set_xlabel(f"one dot a seed; shaded: within a point of {base_name}")
    right_.set_title(
        f"Training loss less that of {base_name} with the same batches, nats", loc="left"
    )
    right_.set_xlabel("step; running means, over the seeds too")
    right_.legend(frameon=False, fontsize="small")
    for axes in (left, right_):
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def compared(run: Run, base: Run) -> np.ndarray:
    """Each step's loss, less that of the run it is compared with."""
    return np.array(run.losses) - np.array(base.losses)


def smooth(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running mean over about a tenth of the run, and each window's middle step."""
    window = max(1, len(losses) // 10)
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    return np.arange(len(means)) + (window + 1) / 2, means


# --- the command line -----------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> Any:
        """Print what is wrong, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str] | None) -> tuple[Config, list[str], list[int], Path]:
    """Return the configuration, the recipes, the seeds and the folder to write to, all checked."""
    parser = Parser(description="Fine-tune MiniLM once per recipe, and compare the recipes.")
    default = Config()
    for name, help in (
        ("length", "tokens of a snippet"),
        ("batch", "snippets in a batch"),
        ("steps", "steps to train for"),
        ("lr", "learning rate at its peak"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{help} ({value})")
    known = f"{', '.join(FABRIC)} and those that `precir recipes` lists"
    parser.add_argument("--recipes", nargs="+", default=QUICK, metavar="RECIPE", help=known)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    out = Path("out", "minilm")
    parser.add_argument("--out", type=Path, default=out, help=f"folder to write to ({out})")
    options = vars(parser.parse_args(argv))
    out, recipes, seeds = options.pop("out"), options.pop("recipes"), options.pop("seeds")
    for name, value in options.items():
        if not value > 0:
            parser.error(f"--{name} must be positive, not {value}")
    if options["length"] > (most := default.encoder.positions):
        parser.error(f"--length is at most {most} tokens, which is all the positions there are")
    try:
        for name in recipes:
            precir.recipe(name)
        out.mkdir(parents=True, exist_ok=True)
    except precir.PrecirError as error:
        parser.error(f"{str(error).splitlines()[0]}; `precir recipes` lists them")
    except OSError as error:
        parser.error(f"cannot write to --out {out}: {error.strerror}")
    return Config(**options), list(dict.fromkeys(recipes)), list(dict.fromkeys(seeds)), out


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune under every recipe, then show how they compare."""
    config, recipes, seeds, out = parse(argv)
    try:
        data, encoder = load_data(config), minilm.load_params()
    except fetch.Unavailable as error:
        raise SystemExit(str(error)) from None
    steps, runs = compile_steps(recipes, config), []
    with make_progress() as progress:
        for seed in seeds:
            done, _ = train(steps, replace(config, seed=seed), encoder, data, progress)
            runs += done
    args = init_state(config, encoder), next(batches(data[0], config))
    reports = {}
    for name, step in steps.items():
        with digits(name):
            state, batch = step.init(*args)
            reports[name] = step.report(state, batch)
            step.save(out / f"train_step_{name.replace('-', '_')}.py", state, batch)
    (out / "runs.json").write_text(json.dumps([vars(run) for run in runs], indent=1) + "\n")
    plot(runs, out / "finetune.png")
    rich.print(make_table(runs, reports))
    rich.print(f"The emitted modules and the plot finetune.png are in {out}/")


if __name__ == "__main__":
    main()
