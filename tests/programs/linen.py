"""flax linen: modules by name, TrainState, mutable collections, lifted scan and remat."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from .data import VOCAB, tokens
from .program import Program, Tree


class Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows, length, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(x).reshape(rows, length, self.heads, -1)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.Dense(width, name="proj")(mixed.reshape(x.shape))


class Block(nn.Module):
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        h = Attention(self.heads, name="attn")(nn.LayerNorm(name="ln_1")(x))
        x = x + nn.Dropout(self.dropout)(h, deterministic=not train)
        h = nn.gelu(nn.Dense(4 * width, name="fc")(nn.LayerNorm(name="ln_2")(x)))
        h = nn.Dense(width, name="proj")(h)
        return x + nn.Dropout(self.dropout)(h, deterministic=not train)


class GPT(nn.Module):
    layers: int = 2
    width: int = 32
    heads: int = 4
    length: int = 16
    dropout: float = 0.0
    tied: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        embed = nn.Embed(VOCAB, self.width, name="wte")
        x = embed(tokens) + nn.Embed(self.length, self.width, name="wpe")(
            jnp.arange(tokens.shape[1])
        )
        for i in range(self.layers):
            x = Block(self.heads, self.dropout, name=f"h_{i}")(x, train)
        x = nn.LayerNorm(name="ln_f")(x)
        return embed.attend(x) if self.tied else nn.Dense(VOCAB, name="head", use_bias=False)(x)


def next_token_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def adamw() -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 50, 1e-4)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


GPT_UNTIED, GPT_TIED, ADAMW = GPT(), GPT(tied=True), adamw()


def gpt_init(seed: int) -> TrainState:
    return gpt_state(GPT_UNTIED, seed)


def gpt_tied_init(seed: int) -> TrainState:
    return gpt_state(GPT_TIED, seed)


@partial(jax.jit, static_argnums=0)
def gpt_state(model: nn.Module, seed: int) -> TrainState:
    params = model.init(jax.random.key(seed), tokens(0)[0][:, :-1])["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=ADAMW)


def gpt_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_fn(params: Tree) -> jax.Array:
        return next_token_loss(state.apply_fn({"params": params}, tokens[:, :-1]), tokens)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


# Dropout: the key lives in the state and is split at every step.

GPT_DROPOUT = GPT(dropout=0.1)


@jax.jit
def dropout_init(seed: int) -> tuple[Tree, Tree, jax.Array]:
    params = GPT_DROPOUT.init(jax.random.key(seed), tokens(0)[0][:, :-1])
    return params, ADAMW.init(params), jax.random.key(seed + 1)


def dropout_step(state: tuple[Tree, Tree, jax.Array], tokens: jax.Array) -> tuple[Any, jax.Array]:
    params, moments, key = state
    key, dropout = jax.random.split(key)

    def loss_fn(params: Tree) -> jax.Array:
        logits = GPT_DROPOUT.apply(params, tokens[:, :-1], train=True, rngs={"dropout": dropout})
        return next_token_loss(logits, tokens)

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, moments = ADAMW.update(gradients, moments, params)
    return (optax.apply_updates(params, updates), moments, key), loss


# Layers under nn.scan, each rematerialised: the block is traced once, its parameters are stacked.


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attn")(h, mask=mask)
        h = nn.silu(nn.Dense(64, name="fc")(nn.RMSNorm()(x)))
        return x + nn.Dense(x.shape[-1], name="proj")(h), None


class ScannedGPT(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, 32, name="wte")(tokens)
        layers = nn.scan(
            nn.remat(ScannedBlock, prevent_cse=False),
            length=3,
            in_axes=nn.broadcast,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        x, _ = layers(name="layers")(x, nn.make_causal_mask(tokens))
        return nn.Dense(VOCAB, name="head")(nn.LayerNorm(name="ln_f")(x))


SCANNED = ScannedGPT()


def scanned_init(seed: int) -> TrainState:
    return gpt_state(SCANNED, seed)


# The forward function alone, to be differentiated by its user; one batch, so that its labels
# can stay with the loss.

(FIXED,) = tokens(0)


def gpt_params(seed: int) -> Tree:
    return gpt_init(seed).params


def gpt_logits(params: Tree, tokens: jax.Array) -> jax.Array:
    return GPT_UNTIED.apply({"params": params}, tokens)


def gpt_inputs(i: int) -> tuple[Any]:
    return (FIXED[:, :-1],)


@jax.jit
def gpt_loss(logits: jax.Array) -> jax.Array:
    return next_token_loss(logits, FIXED)


PROGRAMS = (
    Program("linen_gpt", "train", gpt_step, gpt_init, tokens, products=39),
    Program("linen_gpt_tied", "train", gpt_step, gpt_tied_init, tokens, products=39, slow=True),
    Program(
        "linen_gpt_dropout", "train", dropout_step, dropout_init, tokens, products=39, slow=True
    ),
    Program("linen_gpt_scan_remat", "train", gpt_step, scanned_init, tokens, products=34),
    Program(
        "linen_gpt_model",
        "model",
        gpt_logits,
        gpt_params,
        gpt_inputs,
        products=13,
        gradient_products=39,
        loss=gpt_loss,
        rate=0.5,
    ),
)
