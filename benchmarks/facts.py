"""How much is known of every tensor, and what knowing it costs.

    python benchmarks/facts.py

Precision: of the float tensors of a train step with parameters in [-1, 1], the share with a finite
proved bound, with NaN proved absent and with infinities proved absent, forward and backward.

Cost: the processor time of the inference for the GPT of examples/train_gpt.py at 12 layers, and
per equation over programs of 1,000 to 100,000 equations; ratios, but for the one target that is
in seconds.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.table import Table

import precir
from precir.domains.fact import Fact, interval, top
from precir.formats import FORMATS
from precir.ir import BACKWARD, FORWARD, UPDATE, Graph
from precir.passes.facts import infer_facts

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Share:
    """Of the float tensors of one phase, in 0 to 1."""

    tensors: int
    bounded: float
    no_nan: float
    no_inf: float


def shares(graph: Graph, inputs: list[Fact | None]) -> dict[str, Share]:
    """What is proved of the results of every node, sub-programs' too, by phase."""
    facts = infer_facts(graph, inputs)
    found: dict[str, list[tuple[bool, bool, bool]]] = {}
    for node in graph.walk():
        for value in node.outputs:
            if value.type.dtype not in FORMATS or node.op == "constant":
                continue
            f, whole = facts[value], top(value.type.dtype)
            bounded = -whole.hi < f.lo and f.hi < whole.hi
            found.setdefault(node.phase, []).append(
                (bounded and not f.flags & 12, not f.flags & 16, not f.flags & 12)
            )
    return {
        phase: Share(len(rows), *(sum(column) / len(rows) for column in zip(*rows, strict=True)))
        for phase, rows in found.items()
    }


def unit_inputs(graph: Graph, examples: list[Any]) -> list[Fact | None]:
    """Parameters in [-1, 1], second moments in [0, 1], integers as they are."""
    facts: list[Fact | None] = []
    for value, example in zip(graph.inputs, examples, strict=True):
        label = value.hint.lower()
        if value.type.dtype in FORMATS:
            facts.append(interval(0 if ".nu" in label else -1, 1))
        elif value.type.dtype == "bool" or value.type.dtype.startswith("key"):
            facts.append(None)
        else:
            numbers = np.asarray(example)
            facts.append(interval(float(numbers.min()), float(numbers.max()), whole=True))
    return facts


def graph_of(step: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Graph, list[Any]]:
    compiled = precir.compile(step)
    program = compiled.program(*args)
    return program.stages[0].graph, jax.tree.leaves(args)


def steps() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """A GPT, a ResNet and an RNN."""
    gpt = load(ROOT / "examples" / "train_gpt.py")
    config = gpt.Config(layers=2)
    state = gpt.init_state(config)
    tokens = np.zeros((config.batch, config.context + 1), np.int32)
    tokens[0, 0] = 255
    yield "GPT, 2 layers", gpt.make_train_step(config), (state, tokens)
    yield "ResNet", *resnet()
    from tests.programs import PROGRAMS

    for name in ("haiku_lstm", "rnn_scan"):
        for program in PROGRAMS:
            if program.name == name:
                yield name, program.step, (program.init(0), *program.batch(0))


class Block(nn.Module):
    """Two convolutions with batch normalisation, and what came in added."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(self.width, (3, 3))(x)))
        y = nn.BatchNorm(use_running_average=False)(nn.Conv(self.width, (3, 3))(y))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Three blocks and a classifier."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (3, 3))(x)
        for _ in range(3):
            x = Block(8)(x)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def resnet() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    model, optimizer = ResNet(), optax.sgd(0.1, momentum=0.9)
    images, labels = jnp.zeros((4, 8, 8, 3)), jnp.array([0, 3, 5, 9])
    variables = model.init(jax.random.key(0), images)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, stats, opt = state

        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(variables, images, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), new["batch_stats"]

        (loss, new_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt)
        return (optax.apply_updates(params, updates), new_stats, opt), loss

    params = variables["params"]
    return step, ((params, variables["batch_stats"], optimizer.init(params)), images, labels)


def twelve_layers() -> tuple[Graph, list[Fact | None]]:
    gpt = load(ROOT / "examples" / "train_gpt.py")
    config = gpt.Config(layers=12)
    state = jax.eval_shape(lambda: gpt.init_state(config))
    shaped: Any = jax.ShapeDtypeStruct
    tokens = shaped((config.batch, config.context + 1), np.int32)
    graph = precir.compile(gpt.make_train_step(config)).program(state, tokens).stages[0].graph
    return graph, [interval(-1, 1) if v.type.dtype in FORMATS else None for v in graph.inputs]


def seconds(graph: Graph, inputs: list[Fact | None], rounds: int = 5) -> float:
    """Processor time of one inference, the median."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        infer_facts(graph, inputs)
        taken.append(time.process_time() - start)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    table = Table("program", "phase", "tensors", "finite bound", "no NaN", "no inf")
    for name, step, args in steps():
        graph, examples = graph_of(step, args)
        for phase, share in shares(graph, unit_inputs(graph, examples)).items():
            if phase in (FORWARD, BACKWARD, UPDATE):
                numbers = (f"{x:.3f}" for x in (share.bounded, share.no_nan, share.no_inf))
                table.add_row(name, phase, str(share.tensors), *numbers)
    rich.print(table)
    graph, inputs = twelve_layers()
    count = sum(1 for _ in graph.walk())
    cost = seconds(graph, inputs)
    rich.print(f"12 layers: {count:,} equations, {cost:.3f} s of processor time (target 0.5)")
    scaling = load(ROOT / "benchmarks" / "scaling.py")
    line = Table("equations", "time per equation over that of the first")
    first = None
    for asked in (1_000, 10_000, 100_000):
        fn, args = scaling.PROGRAMS["train"](asked)
        big = precir.lower(fn, *args)
        size = sum(1 for _ in big.walk())
        each = seconds(big, [], 3) / size
        first = first or each
        line.add_row(f"{size:,}", f"{each / first:.2f}")
    rich.print(line)
    if options.output:
        options.output.write_text(_markdown(table, line, count, cost), encoding="utf-8")


def _markdown(table: Table, line: Table, count: int, cost: float) -> str:
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib", "numpy"))
    text = f"# Facts: how much is known, and what it costs\n\n{datetime.date.today()}, "
    text += f"Python {platform.python_version()}, {versions}.\n\n"
    for each in (table, line):
        heads = [str(c.header) for c in each.columns]
        text += f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}\n"
        for row in zip(*(c._cells for c in each.columns), strict=True):
            text += f"| {' | '.join(map(str, row))} |\n"
        text += "\n"
    return text + f"12 layers: {count:,} equations in {cost:.3f} s of processor time.\n"


if __name__ == "__main__":
    main()
