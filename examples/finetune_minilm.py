"""wip"""
from typing import Any, NamedTuple
import jax, jax.numpy as jnp, numpy as np, optax
import minilm, reviews, precir
from dataclasses import dataclass

@dataclass(frozen=True)
class Config:
    """The run; the size of the encoder beside it."""
    encoder: minilm.Config = minilm.Config()
    length: int = 32
    batch: int = 32
    steps: int = 200
    lr: float = 1e-4
    seed: int = 0

class Batch(NamedTuple):
    tokens: Any
    mask: Any
    labels: Any

class State(NamedTuple):
    params: Any
    opt_state: Any
    step: Any

def logits_fn(params, batch, config):
    x = minilm.pool(minilm.encode(params["encoder"], batch.tokens, batch.mask, config.encoder), batch.mask)
    with jax.named_scope("head"):
        return minilm.linear(params["head"], x)

def loss_fn(params, batch, config):
    logits = logits_fn(params, batch, config)
    with jax.named_scope("loss"):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))

def make_optimizer(config):
    warmup = 1 + config.steps // 10
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, config.steps + 1)
    return optax.adamw(schedule, weight_decay=0.01)

def init_state(config, encoder):
    key = jax.random.key(config.seed)
    head = {"kernel": 0.02 * jax.random.normal(key, (config.encoder.width, 2)), "bias": jnp.zeros(2)}
    params = {"encoder": encoder, "head": head}
    return State(params, make_optimizer(config).init(params), jnp.zeros((), jnp.int32))

def make_train_step(config):
    def train_step(state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, config)
        updates, opt_state = make_optimizer(config).update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state, state.step + 1), loss
    return train_step
