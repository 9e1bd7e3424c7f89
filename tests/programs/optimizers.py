"""One small network under many optax optimizers: precision trouble often starts in the update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from .data import regression
from .plain import mlp_init, mse
from .program import Program, Tree


def trained(optimizer: optax.GradientTransformationExtraArgs) -> dict[str, Callable[..., Any]]:
    """The `init` and `step` of a train step with this optimizer."""

    @jax.jit
    def init(seed: int) -> tuple[Tree, Tree]:
        params = mlp_init(seed)
        return params, optimizer.init(params)

    def step(state: tuple[Tree, Tree], x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
        params, moments = state
        loss, gradients = jax.value_and_grad(mse)(params, x, y)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return {"init": init, "step": step}


OPTIMIZERS = {
    "momentum": optax.sgd(0.03, momentum=0.9, nesterov=True),
    "adam_bfloat16_moment": optax.adam(1e-2, mu_dtype=jnp.bfloat16),
    "adamw_masked": optax.adamw(
        optax.cosine_decay_schedule(2e-2, 50),
        weight_decay=0.1,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ),
    "lion": optax.lion(3e-3),
    "adafactor": optax.adafactor(3e-2, min_dim_size_to_factor=8),
    "lamb": optax.lamb(3e-2),
    "rmsprop_clipped": optax.chain(optax.clip(0.1), optax.rmsprop(1e-2)),
    "skip_not_finite": optax.apply_if_finite(optax.adam(1e-2), max_consecutive_errors=3),
}

PROGRAMS = (
    *(
        Program(
            f"optax_{name}",
            "train",
            batch=regression,
            products=8,
            slow=name == "skip_not_finite",
            **trained(optimizer),
        )
        for name, optimizer in OPTIMIZERS.items()
    ),
    # Newton-Schulz iterations in the update: three products for each weight matrix. They amplify
    # rounding, and diverge within 50 steps when each operand is rounded to E4M3.
    Program("optax_muon", "train", batch=regression, products=17, **trained(contrib.muon(2e-2))),
)
