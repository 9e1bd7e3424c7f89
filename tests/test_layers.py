"""The pass `layers`: which stacks go into a loop whole, and that nothing else changes by it."""

import sys
from unittest import mock

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

import precir
from precir.kernels.quantize import quantize_p
from precir.kernels.quantize_both import quantize_both_p
from precir.passes import layers
from tests.test_divided import assert_same, on_devices
from tests.triton_values import numbers

RECIPES = ("fp8", "fp8-row", "fp8-block", "fp8-delayed")
N = 32


def dense(x, w):
    return jax.nn.silu(x @ w["up"]) @ w["down"]


def weights(count=3):
    rng = np.random.default_rng(0)
    return {
        "up": jnp.asarray(rng.normal(size=(count, N, 4 * N)) / N**0.5, jnp.float32),
        "down": jnp.asarray(rng.normal(size=(count, 4 * N, N)) / (4 * N) ** 0.5, jnp.float32),
    }


def loss(w, x, body, **options):
    return jnp.mean(lax.scan(lambda x, w: (body(x, w), None), x, w, **options)[0] ** 2)


def plain(w, x):
    return loss(w, x, dense)


def backwards(w, x):
    return loss(w, x, dense, reverse=True)


def with_remat(w, x):
    return loss(w, x, jax.checkpoint(lambda x, w: x + dense(x, w)))


def kept(w, x):
    return loss(w, x, jax.checkpoint(dense, policy=jax.checkpoint_policies.dots_saveable))


def twice(w, x):
    """Both products read one matrix, the second its transpose."""
    return loss(w["up"], x, jax.checkpoint(lambda x, w: jnp.tanh(x @ w) @ w.T))


def nested(w, x):
    pairs = jax.tree.map(lambda a: jnp.stack([a, a + 1]), w)
    return jnp.mean(lax.scan(lambda x, w: (loss(w, x, dense) + x, None), x, pairs)[0])


def half(w, x):
    return plain(jax.tree.map(lambda a: a.astype(jnp.bfloat16), w), x.astype(jnp.bfloat16))


def in_branches(w, x):
    return loss(w, x, lambda x, w: lax.cond(x[0, 0] > 0, dense, lambda x, w: -dense(x, w), x, w))


def decayed(w, x):
    """A stack that is read otherwise too."""
    return loss(w, x, lambda x, w: dense(x, w) * (1 - 1e-3 * jnp.sum(w["up"] ** 2)))


# Stacks that go in whole: into the scans of the program and of its gradient, in program order. Into
# the latter goes also what was saved, where a remat only quantises it.
FOUND = {
    plain: (2, 2), backwards: (2, 2), with_remat: (2, 3), kept: (2, 3), twice: (0, 1),
    nested: (0, 2, 0, 4), half: (2, 2), in_branches: (0, 0), decayed: (1, 2),
}  # fmt: skip
EACH = pytest.mark.parametrize("function", FOUND, ids=lambda f: f.__name__)
X = np.random.default_rng(1).normal(size=(16, N)).astype(np.float32)
ARGS = weights(), X


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(layers, "_LEAST", 1)


def step(function):
    """One of gradient descent, as recipes that carry state want it."""

    def update(w, x):
        value, gradients = jax.value_and_grad(function)(w, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, w, gradients), value

    return update


def run(compiled):
    args = compiled.init(*ARGS)
    for _ in range(2):
        w, value = compiled(*args)
        args = w, X
    return jax.tree.leaves(compiled.unpack(w)), value


def without():
    return mock.patch("precir.passes.pipeline.read_layers", lambda graph: graph)


@pytest.mark.parametrize("recipe", RECIPES)
@EACH
def test_the_same_bits(function, recipe):
    actual = run(precir.compile(step(function), recipe=recipe))
    with without():
        expected = run(precir.compile(step(function), recipe=recipe))
    assert_same(jax.tree.leaves(actual), jax.tree.leaves(expected))


def whole(graph):
    """The inputs of a graph that its layers are taken from."""
    found = set()
    for node in graph:
        if node.op == "layer":
            found.add(node.inputs[0])
        elif node.op == "remat":
            inner = node.regions[0]
            found |= {node.inputs[inner.inputs.index(v)] for v in whole(inner)}
    return found


@EACH
def test_found(function):
    graph = precir.compile(jax.value_and_grad(function), recipe="fp8").program(*ARGS).graph
    scans = [n for n in graph.walk() if n.op == "scan"]
    assert tuple(len(whole(n.regions[0])) for n in scans) == FOUND[function]


def test_small_layers_and_single_ones_are_sliced(monkeypatch):
    def layers_of(count):
        compiled = precir.compile(jax.value_and_grad(plain), recipe="fp8")
        return [n for n in compiled.program(weights(count), X).graph.walk() if n.op == "layer"]

    assert layers_of(2)
    assert not layers_of(1)
    assert not layers_of(0)
    monkeypatch.setattr(layers, "_LEAST", 4 * N * N + 1)
    assert not layers_of(2)


def test_under_vmap():
    compiled = precir.compile(jax.value_and_grad(with_remat), recipe="fp8")
    ws = jax.tree.map(lambda a: jnp.stack([a, -2 * a]), weights())
    actual = jax.vmap(compiled, (0, None))(ws, X)
    expected = [compiled(jax.tree.map(lambda a, i=i: a[i], ws), X) for i in range(2)]
    for a, *b in zip(*map(jax.tree.leaves, (actual, *expected)), strict=True):
        np.testing.assert_allclose(a, jnp.stack(b), rtol=1e-2, atol=1e-3)


def test_source_names_the_stack():
    source = precir.compile(jax.value_and_grad(plain), recipe="fp8").source(*ARGS)
    assert "quantize(Layer(up, layer), E4M3)" in source


@pytest.mark.parametrize("spec", [P(None, "a"), P(None, None, ("a", "b")), P("b", "a")], ids=str)
def test_in_parts(spec):
    stack, i = numbers((4, 64, 256)), jnp.int32(2)
    params = {"dtype": np.dtype("float8_e4m3fn"), "block": (), "scales": np.dtype("float32")}
    for primitive, more in ((quantize_p, {"batch_ndim": 0}), (quantize_both_p, {})):
        actual, expected, _ = on_devices(primitive, [stack, i], [spec, P()], **params, **more)
        assert_same(actual, expected)


@pytest.mark.skipif(
    sys.platform != "linux", reason="XLA's compiler for GPUs is there on Linux alone"
)
def test_no_layer_is_copied_on_an_h100():
    shapes = jax.eval_shape(
        lambda: {"up": jnp.zeros((3, 256, 1024)), "down": jnp.zeros((3, 1024, 256))}
    )
    x = jax.ShapeDtypeStruct((512, 256), jnp.float32)
    step_ = precir.compile(jax.value_and_grad(with_remat), recipe="fp8")
    with without():
        other = precir.compile(jax.value_and_grad(with_remat), recipe="fp8")
        before = other.memory(shapes, x, target="h100")
    after = step_.memory(shapes, x, target="h100")
    copies = [m.hlo.count("f32[1,256,1024]{2,1,0} fusion") for m in (before, after)]
    assert copies[0] > copies[1] == 0
