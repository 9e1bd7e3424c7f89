"""The pass `recomputed`: scales of what is computed again come from where it was computed first."""

from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

import precir
from precir.passes import recomputed

RNG = np.random.default_rng(0)
N = 32
# Layers and rows of very different sizes: under another one's scale nothing would be left.
SIZES = 2.0 ** np.array([0, -6, 5], np.float32)[:, None, None]
W = {
    "up": RNG.normal(size=(3, N, 4 * N)).astype(np.float32) / N**0.5 * SIZES,
    "down": RNG.normal(size=(3, 4 * N, N)).astype(np.float32) / N * SIZES[::-1],
}
X = RNG.normal(size=(16, N)).astype(np.float32)


def normal(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def layer(x, w):
    return x + jax.nn.gelu(normal(x) @ w["up"]) @ w["down"]


def over(w, x, body, **options):
    return jnp.mean(lax.scan(lambda x, w: (body(x, w), None), x, w, **options)[0] ** 2)


def scanned(w, x):
    return over(w, x, jax.checkpoint(layer))


def backwards(w, x):
    return over(w, x, jax.checkpoint(layer), reverse=True)


def without_barrier(w, x):
    return over(w, x, jax.checkpoint(layer, prevent_cse=False))


def some_saved(w, x):
    return over(w, x, jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable))


def plain(w, x):
    return over(w, x, layer)


def unrolled(w, x):
    for i in range(3):
        x = jax.checkpoint(layer)(x, jax.tree.map(lambda a, i=i: a[i], w))
    return jnp.mean(x**2)


def nested(w, x):
    pairs = jax.tree.map(lambda a: jnp.stack([a, a / 2]), w)

    def inner(x, w):
        return x + lax.scan(lambda x, w: (jax.checkpoint(layer)(x, w), None), x, w)[0], None

    return jnp.mean(lax.scan(inner, x, pairs)[0] ** 2)


def twice(w, x):
    """Both loops quantise the same weights, the second those of the other end first."""
    x = lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]
    return over(w, x, jax.checkpoint(layer), reverse=True)


def masked(w, x):
    key = jax.random.key(0)

    @jax.checkpoint
    def body(x, w_i):
        w, i = w_i
        keep = jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, x.shape)
        return layer(jnp.where(keep, x, 0), w)

    return over((w, jnp.arange(3)), x, body)


def flipped(w, x):
    """The second loop goes over other stacks, of the same numbers in another order."""
    x = lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]
    return over(jax.tree.map(lambda a: jnp.flip(a, 0), w), x, layer)


def scaled(w, x):
    x = lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]
    return over(jax.tree.map(lambda a: 64 * a, w), x, layer)


def shorter(w, x):
    x = lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]
    return over(jax.tree.map(lambda a: a[1:], w), x, layer)


def carried(w, x):
    """What a loop quantises is one thing at each step, and not what its second run does."""
    body = partial(lax.scan, lambda x, _: (normal(x @ w["up"][0] @ w["down"][0]), None), length=3)
    return jnp.mean(body(body(x)[0] * 8)[0] ** 2)


def lengths(w, x):
    """Loops of several lengths, and a checkpoint outside of them, quantise one matrix."""
    square = w["up"][0] @ w["down"][0]
    body = partial(lax.scan, lambda x, _: (normal(x @ square), None))
    x = jax.checkpoint(lambda x: normal(x @ square))(normal(x @ square))
    return jnp.mean(body(body(x, length=3)[0] * 8, length=5)[0] ** 2)


# How many tensors are measured; without the pass, and with it. Loops within loops are left alone;
# where the second loop goes over other stacks, each has its own gradient's weights alone.
FOUND = {
    scanned: (10, 6), backwards: (10, 6), without_barrier: (10, 6), some_saved: (10, 6),
    plain: (8, 6), unrolled: (25, 15), nested: (10, 10), twice: (18, 12), masked: (10, 6),
    flipped: (16, 12), scaled: (16, 12), shorter: (16, 12), carried: (16, 10),
    lengths: (18, 14),
}  # fmt: skip
EACH = pytest.mark.parametrize("function", FOUND, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(recomputed, "_LEAST", 1)


def both_ways(function, recipe):
    """With the pass, and without."""
    compiled = [precir.compile(jax.value_and_grad(function), recipe=recipe) for _ in range(2)]
    compiled[0].program(W, X)
    with mock.patch("precir.passes.pipeline.hand_scales_on", lambda graph: graph):
        compiled[1].program(W, X)
    return compiled


@EACH
@pytest.mark.parametrize("kernels", ["fused", "plain"])
def test_the_same_numbers(function, kernels):
    recipe = precir.recipe("fp8", kernels=kernels)
    actual, expected = (jax.tree.leaves(c(W, X)) for c in both_ways(function, recipe))
    for a, b in zip(actual, expected, strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def measured(graph):
    return sum(
        n.op == "quantize" and n.params.get("scaling", "current") == "current" for n in graph.walk()
    )


@EACH
def test_found(function):
    counts = []
    for compiled in both_ways(function, precir.recipe("fp8", kernels="plain")):
        counts.append(measured(compiled.program(W, X).graph))
    assert tuple(counts[::-1]) == FOUND[function]
