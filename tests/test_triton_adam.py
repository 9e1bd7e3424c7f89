"""adam_update against optax, and the Triton kernel against the reference, bit for bit."""

import sys

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from precir.errors import DerivativeError
from precir.kernels import E4M3, E5M2, ScaledArray, adam_update, quantize
from precir.kernels.adam_update import UpdateError, _on_cuda, _reference, adam_p
from precir.kernels.launch import SHARED_MEMORY
from tests.crosslower import lower_for_cuda
from tests.interpreter import interpreted
from tests.triton_values import assert_same

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
SCALARS = {"lr": 3e-3, "count": 5, "eps": 1e-8, "weight_decay": 0.1}

# How weight, first and second moment and gradient are stored: a format and a block, or a dtype.
O2 = ("float16", ()), ("e4m3", ()), ("float16", ()), ("e4m3", ())
BLOCK = ("float16", ()), ("e4m3", 128), ("e5m2", 128), ("bfloat16",)
MIXED = ("float32",), ("e5m2", 32), ("float16", ()), ("float32",)
PLAIN = ("float32",), ("float32",), ("float32",), ("bfloat16",)
GROUPS = ("float16", 64), ("e4m3", 64), ("e4m3", 64), ("e5m2", 64)
STORES = pytest.mark.parametrize(
    "stores", [O2, BLOCK, MIXED, PLAIN, GROUPS], ids=["o2", "block", "mixed", "plain", "groups"]
)


def state(shape, stores, seed=0, special=True):
    """Of many sizes; a few elements are zero, infinite, NaN, subnormal or far out."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=shape) * 2.0 ** rng.integers(-12, 4, shape)
    if special and g.size > 50:
        few = rng.permutation(g.size)[: g.size // 8]
        g.flat[few] = rng.choice([0, -0.0, 1e-40, 1e-30, 1e4, -1e-12], few.size)
        g.flat[few[:3]] = [np.inf, -np.inf, np.nan]
    m = rng.normal(size=shape) * 2.0 ** rng.integers(-9, 2, shape)
    v = (rng.normal(size=shape) * 2.0 ** rng.integers(-9, 2, shape)) ** 2
    w = rng.normal(size=shape)
    if special and g.size > 50:
        m.flat[few[3:6]], v.flat[few[3:7]], w.flat[few[7:9]] = 0, 0, [1e-41, np.inf]
    return [stored(x, *how) for x, how in zip((w, m, v, g), stores, strict=True)]


def stored(x, format, block=None):
    x = jnp.asarray(x, jnp.float32)
    if block is None:
        return x.astype(format)
    block = (*(1,) * (x.ndim - 1), block) if isinstance(block, int) else block
    return quantize(x, format, block=block)


def one_call(*args, **kwargs):
    """The operands and the parameters of the one bind of ``adam_update``."""
    closed = jax.make_jaxpr(lambda *a: adam_update(*a, **kwargs))(*args)
    (at,) = [i for i, e in enumerate(closed.eqns) if e.primitive is adam_p]
    equation = closed.eqns[at]

    def operands(*leaves):
        inner = closed.jaxpr.replace(eqns=closed.eqns[:at], outvars=equation.invars)
        return jax.core.eval_jaxpr(inner, closed.consts, *leaves)

    return operands(*jax.tree.leaves(args)), equation.params


def check(args, **kwargs):
    operands, params = one_call(*args, **SCALARS, **kwargs)
    with interpreted():
        actual = _on_cuda(*operands, **params)
    assert any(isinstance(a, np.ndarray) for a in actual)
    # Op by op, where XLA has no product and sum to fuse.
    assert_same(actual, _reference(*operands, **params))


# --- what it is


def test_it_is_optax_adamw():
    w, m, v, g = state((7, 30), (*PLAIN[:3], ("float32",)), special=False)
    optimizer = optax.adamw(3e-3, weight_decay=0.1)
    (adam, *rest) = optimizer.init(w)
    updates, (adam, *_) = optimizer.update(g, (adam._replace(count=4, mu=m, nu=v), *rest), w)
    new = adam_update(w, m, v, g, **{**SCALARS, "count": jnp.int32(5)})
    np.testing.assert_allclose(new.first, adam.mu, rtol=1e-6)
    np.testing.assert_allclose(new.second, adam.nu, rtol=1e-6)
    np.testing.assert_allclose(new.weight, w + updates, rtol=1e-6)


def test_what_a_gradient_is_multiplied_by_and_moments_are_divided_by():
    w, m, v, g = state((7, 30), (*PLAIN[:3], ("float32",)), special=False)
    rest = {k: x for k, x in SCALARS.items() if k != "count"}
    scale, corrections = jnp.float32(0.37), (1 - 0.9**5, 1 - 0.999**5)
    new = adam_update(w, m, v, g, **rest, gradient_scale=scale, corrections=corrections)
    for a, b in zip(new, adam_update(w, m, v, scale * g, **SCALARS), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)
    # Its square may leave float32 where that of their product does not.
    for size in (1e-25, 1e25):
        far, back = size * g, np.float32(1 / size)
        new = adam_update(w, m, v, far, **SCALARS, gradient_scale=back)
        for a, b in zip(new, adam_update(w, m, v, back * far, **SCALARS), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6)
    for wrong in ({}, {"count": 5, "corrections": corrections}):
        with pytest.raises(UpdateError, match="known twice, or not at all"):
            adam_update(w, m, v, g, **rest, **wrong)


@STORES
def test_storage_is_quantize_of_the_wide_step(stores):
    args = state((6, 200), stores, special=False)
    wide = [a.unscale() if isinstance(a, ScaledArray) else a.astype(jnp.float32) for a in args]
    new, expected = (adam_update(*a, **SCALARS) for a in (args, wide))
    for before, after, plain in zip(args, new[:3], expected[:3], strict=False):
        assert type(before) is type(after)
        if isinstance(before, ScaledArray):
            other = quantize(plain, before.dtype, block=before.block)
            np.testing.assert_array_equal(after.scale, other.scale)
            error = np.abs(after.unscale() - other.unscale())
            assert np.mean(error > 0) < 1e-3  # XLA fuses products and sums otherwise
        else:
            np.testing.assert_allclose(after, plain, rtol=1e-6, atol=1e-8)


def test_a_proved_scale_holds():
    args = state((4, 100), O2, special=False)
    seen = adam_update(*args, **SCALARS)
    for step in range(6, 12):
        g = state((4, 100), O2, seed=step, special=False)[3]
        before = seen
        options = {**SCALARS, "count": step}
        seen = adam_update(*before[:3], g, **options, last=before.amax)
        free = adam_update(*before[:3], g, **options)
        np.testing.assert_array_equal(seen.amax, free.amax)
        for proved, own in zip(seen[1:3], free[1:3], strict=True):
            assert own.scale <= proved.scale
            np.testing.assert_allclose(proved.unscale(), own.unscale(), rtol=0.1, atol=proved.scale)
    with pytest.raises(UpdateError, match="bound of the gradient"):
        adam_update(*args[:3], args[3].unscale(), **SCALARS, last=seen.amax)
    g = args[3].unscale()
    bounded, turned = (
        adam_update(*args[:3], g, **SCALARS, last=seen.amax, gradient_amax=9, gradient_scale=s)
        for s in (1.0, -1.0)
    )
    assert bounded.second.scale > 0
    assert turned.first.scale == bounded.first.scale


def test_a_scale_for_each_layer_is_that_of_vmap():
    layers = ("float16", (1, 10, 40)), ("e4m3", (1, 10, 40)), ("e5m2", 32), ("bfloat16",)
    args = state((3, 10, 40), layers, special=False)
    new = adam_update(*args, **SCALARS)
    assert new.amax.shape == (3, 3)
    assert new.weight.scale.shape == (3, 1, 1)

    def alone(w, m, v, g):
        w, m = (ScaledArray(x.data, x.scale.reshape(())) for x in (w, m))
        return adam_update(w, m, ScaledArray(v.data, v.scale, (1, 32)), g, **SCALARS)

    each = jax.vmap(alone)(*args)
    assert_same(
        [x.reshape(-1) for x in jax.tree.leaves(new)],
        [x.reshape(-1) for x in jax.tree.leaves(each)],
    )
    rates = jnp.asarray([1e-3, 3e-3])
    options = {k: v for k, v in SCALARS.items() if k != "lr"}
    both = jax.vmap(lambda lr: adam_update(*args, lr=lr, **options))(rates)
    assert_same([x[1] for x in jax.tree.leaves(both)], jax.tree.leaves(new))


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (5, 0)], ids=str)
def test_small(shape):
    for stores in (O2, GROUPS) if len(shape) > 1 else (O2,):
        new = adam_update(*state(shape, stores), **SCALARS)
        assert new.weight.shape == shape
        assert new.amax.shape == (3,)


def test_errors():
    w, m, v, g = state((4, 8), O2)
    with pytest.raises(UpdateError, match="not of the weight's shape"):
        adam_update(w, m, v, g.unscale()[1:], **SCALARS)
    with pytest.raises(UpdateError, match="cannot be a plain bfloat16"):
        adam_update(w, m.unscale().astype(jnp.bfloat16), v, g, **SCALARS)
    with pytest.raises(UpdateError, match="blocks of"):
        adam_update(w, quantize(m.unscale(), E4M3, block=(2, 4)), v, g, **SCALARS)
    stacked = [quantize(x.unscale().reshape(2, 2, 8), E4M3) for x in (w, m, v, g)]
    layered = quantize(stacked[0].unscale(), E5M2, block=(1, 2, 8))
    with pytest.raises(UpdateError, match="store weight and moments alike"):
        adam_update(layered, *stacked[1:], **SCALARS)
    with pytest.raises(DerivativeError):
        jax.grad(lambda g: adam_update(w, m, v, g, **SCALARS).weight.unscale().sum())(g.unscale())


# --- the kernel


@ON_LINUX
@STORES
def test_in_the_interpreter(stores):
    check(state((9, 256) if stores in (O2, GROUPS) else (3, 5, 77), stores))


@ON_LINUX
def test_ragged_in_the_interpreter():
    check(state((1,), O2))
    check(state((5, 77), GROUPS))


@ON_LINUX
def test_one_scale_may_be_a_block_of_all_in_the_interpreter():
    whole = ("float16", (12, 40)), ("e4m3", 16), ("e5m2", 16), ("e4m3", ())
    check(state((12, 40), whole))
    new = adam_update(*state((12, 40), whole), **SCALARS)
    assert (new.weight.block, new.weight.scale.shape) == ((12, 40), (1, 1))


@ON_LINUX
def test_proved_in_the_interpreter():
    args = state((70, 100), O2)
    check(args, last=jnp.asarray([0.25, 1e-3, 1e-9]), gradient_amax=2.0, gradient_scale=-0.3)


@ON_LINUX
def test_layers_in_the_interpreter():
    layers = ("float16", (1, 10, 40)), ("e4m3", (1, 10, 40)), ("e5m2", 32), ("e4m3", ())
    check(state((3, 10, 40), layers))


@ON_LINUX
@pytest.mark.parametrize(
    ("stores", "reads"), [(O2, 2), (BLOCK, 2), (PLAIN, 1), (GROUPS, 1)], ids=str
)
def test_for_hopper(stores, reads):
    big = jax.tree.map(_grown, state((2, 128), stores, special=False))
    _, kernels = lower_for_cuda(lambda *args: adam_update(*args, **SCALARS), *big)
    assert {k.name for k in kernels} == {"adam_write", *["adam_amax"] * (reads - 1)}
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY
        used = kernel.resources()
        print(kernel.name, used, kernel.shared)
        assert used["spilled"] == 0, used
        assert used["registers"] <= 96, used


def _grown(leaf):
    """The type of the same leaf of a 4096 x 4096 state."""
    shape = tuple(n * 2048 if i == 0 else n * 32 for i, n in enumerate(leaf.shape))
    return jax.ShapeDtypeStruct(shape, leaf.dtype)
