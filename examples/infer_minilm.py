"""Read the trained model in fewer bits: embeddings and answers for all test snippets.

    python examples/infer_minilm.py

Fine-tunes MiniLM for a minute in float32 (see finetune_minilm.py), then answers every test snippet
with the same weights in each format, and says how long it took, how many bytes the weights are, how
many answers are right, and how near each embedding is to that of float32. In FP8 the weights are
stored in 8 bits and the activations have scales from a few batches of what was trained on; as 8-bit
integers the weights are stored, and dequantised for products in bfloat16.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import finetune_minilm as finetune
import jax
import jax.numpy as jnp
import minilm
import numpy as np
import rich
from rich.filesize import decimal
from rich.table import Table

import precir

Model = tuple[Callable[..., Any], Any]  # a function of (params, tokens, mask), and its params
# One scale for each row of a weight, for 128 x 128, and for each row again.
STORED = {"fp8-inference": "E4M3", "fp8-block": "E4M3", "int8-inference": "int8"}
SEEN = 512  # snippets that activations are calibrated on


class Inference(NamedTuple):
    """Embeddings and logits of snippets, and what they took."""

    embeddings: np.ndarray  # [snippets, width], each of length one
    logits: np.ndarray  # [snippets, 2]
    weight_bytes: int
    seconds: list[float]  # one for each batch; the first compiles

    def cosines(self, other: "Inference") -> np.ndarray:
        """How near each embedding is to another model's: 1 for the same direction."""
        a, b = self.embeddings, other.embeddings
        return np.sum(a * b, 1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def make_model(config: finetune.Config) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The model as it is used once it is trained: embeddings, [batch, width], and logits."""

    def answer(params: Any, tokens: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
        pooled = minilm.pool(minilm.encode(params["encoder"], tokens, mask, config.encoder), mask)
        with jax.named_scope("normalise"):
            inverse = jax.lax.rsqrt(jnp.sum(pooled * pooled, axis=-1, keepdims=True))
        with jax.named_scope("head"):
            return pooled * inverse, minilm.linear(params["head"], pooled)

    return answer


def make_models(
    params: Any,
    config: finetune.Config,
    seen: finetune.Batch,
    recipes: Sequence[str] = tuple(STORED),
) -> dict[str, Model]:
    """Float32 first; bfloat16, the same weights read in it and weights kept in it; and weights
    stored in 8 bits, with activations in FP8 calibrated on the first `SEEN` snippets of `seen`.
    """
    model = make_model(config)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    first = finetune.Batch(*(x[:SEEN] for x in seen))
    batches = [(part.tokens, part.mask) for part in finetune.parts(first)]
    stored = {
        name: precir.quantize_model(model, params, batches, recipe=name, measure=False)
        for name in recipes
    }
    return {
        "float32": (precir.compile(model), params),
        "bf16-mixed": (precir.compile(model, recipe="bf16-mixed"), params),
        "bf16-mixed, bfloat16 weights": (precir.compile(model, recipe="bf16-mixed"), half),
        "bf16-true, bfloat16 weights": (precir.compile(model, recipe="bf16-true"), half),
        **{f"{name}, {STORED[name]} weights": (q, q.params) for name, q in stored.items()},
    }


def infer(models: dict[str, Model], data: finetune.Batch) -> dict[str, Inference]:
    """Run every model over all snippets, batch by batch in turn, so that times compare."""
    found: dict[str, Any] = {name: ([], [], []) for name in models}
    for batch in finetune.parts(data):
        for name, (model, params) in models.items():
            start = time.perf_counter()
            vectors, logits = jax.block_until_ready(model(params, batch.tokens, batch.mask))
            taken = time.perf_counter() - start
            for into, what in zip(found[name], (vectors, logits, taken), strict=True):
                into.append(np.asarray(what, np.float64))
    return {
        name: Inference(
            np.concatenate(vectors),
            np.concatenate(logits),
            sum(x.nbytes for x in jax.tree.leaves(models[name][1])),
            [float(s) for s in seconds],
        )
        for name, (vectors, logits, seconds) in found.items()
    }


def make_rows(found: dict[str, Inference], data: finetune.Batch) -> list[list[str]]:
    """One row for each model, the first being what the others are compared with.

    The first and the last batch, which have a shape of their own to compile for, are not timed.
    """
    first = next(iter(found.values()))
    rows = []
    for name, it in found.items():
        ratios = np.array(it.seconds[1:-1]) / np.array(first.seconds[1:-1])
        cosines = it.cosines(first)
        rows.append([
            name,
            f"{np.median(ratios):.2f}",
            decimal(it.weight_bytes),
            f"{it.weight_bytes / first.weight_bytes:.3f}",
            f"{finetune.right(it.logits, data):.2%}",
            f"{cosines.mean():.5f}",
            f"{cosines.min():.5f}",
        ])  # fmt: skip
    return rows


HEADINGS = ("model", "time", "weights", "of float32's", "right", "cosine, mean", "worst")


def main() -> None:
    """Train in float32, then answer in every format."""
    config = finetune.Config()
    data = finetune.load_data(config)
    steps = finetune.compile_steps(["32-true"], config)
    with finetune.make_progress() as progress:
        _, params = finetune.train(steps, config, minilm.load_params(), data, progress)
    found = infer(make_models(params["32-true"], config, data[0]), data[1])
    emulated = " On this CPU FP8 is emulated." if jax.default_backend() == "cpu" else ""
    table = Table(*HEADINGS, caption=f"Time: median over batches, float32 is 1.{emulated}")
    for row in make_rows(found, data[1]):
        table.add_row(*row)
    rich.print(table)


if __name__ == "__main__":
    main()
