"""Recipes with `sharded`: a weight is quantised one way, whatever reads it, to the same numbers."""

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

import precir
from tests.triton_values import assert_same

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 32)).astype(np.float32)
W = [RNG.normal(size=s).astype(np.float32) / 8 for s in ((32, 128), (128, 32))]
STACK = [np.stack([w, -w, w / 2]) for w in W]


def dense(x, w):
    return jax.nn.gelu(x @ w[0]) @ w[1]


def unrolled(w, x):
    return jnp.mean(dense(dense(x, w), w) ** 2)


def scanned(w, x):
    body = jax.checkpoint(lambda x, w: (x + dense(x, w), None))
    return jnp.mean(lax.scan(body, x, w)[0] ** 2)


def cast(w, x):
    return unrolled([a.astype(jnp.bfloat16) for a in w], x.astype(jnp.bfloat16))


def branches(w, x):
    return lax.cond(x[0, 0] > 0, unrolled, lambda w, x: -unrolled(w, x), w, x)


PROGRAMS = ((unrolled, W), (scanned, STACK), (cast, W), (branches, W))


@pytest.mark.parametrize("recipe", ["fp8", "fp8-block", "fp8-delayed"])
@pytest.mark.parametrize(
    ("function", "weights"), PROGRAMS, ids=lambda f: getattr(f, "__name__", "")
)
def test_no_weight_is_quantised_both_ways(function, weights, recipe):
    def step(w, x):
        value, gradients = jax.value_and_grad(function)(w, x)
        return jax.tree.map(lambda w, g: w - g, w, gradients), value

    compiled = [
        precir.compile(step, recipe=precir.recipe(recipe, sharded=s)) for s in (False, True)
    ]
    results, both = [], []
    for each in compiled:
        w, x = each.init(weights, X)
        graph = each.program(w, x).graph
        both.append(
            sum(n.op == "quantize_both" and n.inputs[0].type.shape != X.shape for n in graph.walk())
        )
        w, value = each(w, x)
        results.append(jax.tree.leaves((each.unpack(w), value)))
    assert_same(*results)
    shapes = {a.shape[-2:] for a in weights}
    alone = compiled[1].program(*compiled[1].init(weights, X)).graph
    for node in alone.walk():
        assert node.op != "quantize_both" or node.inputs[0].type.shape not in shapes
    assert both[0] > both[1]


@pytest.mark.parametrize("sharded", [False, True])
def test_stored_weights_are_arguments_too(sharded):
    recipe = precir.recipe("fp8-lm-o2", sharded=sharded)

    def step(w, m, x):
        value, gradients = jax.value_and_grad(unrolled)(w, x)
        m = jax.tree.map(lambda m, g: 0.9 * m + g, m, gradients)
        return jax.tree.map(lambda w, m: w - m, w, m), m, value

    compiled = precir.compile(step, recipe=recipe)
    w = [np.tile(a, (4, 4)) for a in W]
    x = np.tile(X, (1, 4))
    graph = compiled.program(*compiled.init(w, [0 * a for a in w], x)).graph
    shapes = {a.shape for a in w}
    both = [n for n in graph.walk() if n.op == "quantize_both"]
    assert any(n.inputs[0].type.shape in shapes for n in both) != sharded
