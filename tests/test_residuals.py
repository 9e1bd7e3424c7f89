"""What a scan over layers keeps for its gradient under fp8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.passes.residuals import share_residuals
from precir.verify import verify


def layers(params, x):
    def layer(x, w):
        return x + jax.nn.relu(x @ w["up"]) @ w["down"], None

    x, _ = jax.lax.scan(layer, x, params)
    return jnp.mean(x**2)


@pytest.fixture
def arguments():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (3, 16, 32)) / 4,
        "down": jax.random.normal(keys[1], (3, 32, 16)) / 6,
    }
    return params, jax.random.normal(keys[2], (8, 16))


def test_scan_hands_on_quantised_operands(arguments):
    step = precir.compile(jax.value_and_grad(layers), recipe="fp8")
    graph = step.program(*arguments).graph
    verify(graph)
    forward, backward = (n for n in graph if n.op == "scan")
    stacked = [v.type for v in forward.outputs if v.type.scale is not None]
    assert [t.scale for t in stacked] == [(3,), (3,)]  # the inputs of both products
    received = [v.type.dtype for v in backward.regions[0].inputs]
    assert received.count("float8_e4m3fn") == 2
    assert share_residuals(graph) is graph  # nothing is left to do


def test_values_are_those_of_quantising_twice(arguments):
    """Handing on the operand changes bytes, not numbers: an unrolled loop gives the same."""

    def unrolled(params, x):
        for i in range(3):
            w = {name: p[i] for name, p in params.items()}
            x = x + jax.nn.relu(x @ w["up"]) @ w["down"]
        return jnp.mean(x**2)

    # Carried values keep float32 in a scan, so compare with everything but products in float32.
    recipe = precir.recipe("fp8").replace(last_product=None, compute="float32")
    scanned = precir.compile(jax.value_and_grad(layers), recipe=recipe)(*arguments)
    plain = precir.compile(jax.value_and_grad(unrolled), recipe=recipe)(*arguments)
    np.testing.assert_allclose(scanned[0], plain[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(scanned[1]), jax.tree.leaves(plain[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-5)
