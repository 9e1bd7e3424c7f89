"""Values from the middle of programs, out of every kind of sub-program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.observe import instrument
from precir.verify import verify
from tests.programs import PROGRAMS

NUMBERS = ("float", "bfloat", "int", "uint", "bool", "complex")


def exposed(fn, *args, op=None, chosen=None):
    """(value of the node `op`, whether it was made) of every such node, and the result of `fn`."""
    program = precir.compile(fn).program(*args)
    if chosen is None:

        def chosen(value, inside):
            return value.node is not None and value.node.op == op

    made = instrument(program, chosen)
    verify(made.graph, deep=True)
    result, flat = made.call(*args)
    held = [
        (np.asarray(flat[e.output]), None if e.made is None else np.asarray(flat[e.made]))
        for e in made.exposed
    ]
    for e, (array, _) in zip(made.exposed, held, strict=True):
        assert array.shape == (*e.leading, *e.value.type.shape)
    return held, result


def test_scan_stacks():
    def fn(xs):
        return jax.lax.scan(lambda c, x: (jnp.sin(c + x), None), 0.0, xs, reverse=True)[0]

    xs = jnp.arange(5.0)
    [(array, made)], result = exposed(fn, xs, op="sin")
    carry, expected = 0.0, np.zeros(5, np.float32)
    for i in reversed(range(5)):
        carry = expected[i] = np.sin(np.float32(carry + xs[i]))
    np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert made is None
    assert result == array[0]


@pytest.mark.parametrize("start", [0.0, 5.0, 100.0])
def test_while_keeps_the_last(start):
    def fn(x):
        return jax.lax.while_loop(lambda x: jnp.abs(x) < 50, lambda x: jnp.floor(x * 1.5 + 1), x)

    [(array, made)], result = exposed(fn, start, op="floor")
    assert made == (start < 50)
    assert array == (result if made else 0)
    [(array, made)], result = exposed(fn, start, op="abs")  # in the condition, which always ran
    assert made is None
    assert array == result


@pytest.mark.parametrize("pred", [True, False])
def test_cond_tells_which_was_taken(pred):
    def fn(p, x):
        return jax.lax.cond(p, lambda x: jnp.sin(x) * 2, lambda x: jnp.cos(x), x)

    x = jnp.arange(3.0)
    [(sin, made)], _ = exposed(fn, pred, x, op="sin")
    assert made == pred
    np.testing.assert_allclose(sin, np.sin(x) * pred, rtol=1e-6)
    [(cos, made)], _ = exposed(fn, pred, x, op="cos")
    assert made == (not pred)
    np.testing.assert_allclose(cos, np.cos(x) * (not pred), rtol=1e-6)


def branching(x):
    return jax.lax.cond(x > 2, lambda x: jnp.sin(x), lambda x: x * 0.5, x)


def test_cond_in_scan():
    def fn(xs):
        return jax.lax.scan(lambda c, x: (c, branching(x)), 0.0, xs)[1]

    xs = jnp.arange(5.0)
    [(sin, made)], _ = exposed(fn, xs, op="sin")
    assert made.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(sin, np.sin(xs) * made, rtol=1e-6)


def test_cond_in_while_keeps_the_last_taken():
    def fn(x):
        def body(carry):
            i, y = carry
            return i + 1, jax.lax.cond(i == 2, lambda y: jnp.sin(y), lambda y: y + 1, y)

        return jax.lax.while_loop(lambda c: c[0] < 5, body, (0, x))

    [(sin, made)], _ = exposed(fn, 0.0, op="sin")  # of the third iteration of five
    assert made
    np.testing.assert_allclose(sin, np.sin(2.0), rtol=1e-6)


def test_scan_in_cond_in_scan_in_while():
    def inner(x):
        ys = jax.lax.scan(lambda c, y: (c, branching(y)), 0.0, x + jnp.arange(4.0))[1]
        return jnp.sum(ys)

    def step(carry):
        i, x = carry
        _, ys = jax.lax.scan(lambda c, x: (c, jax.lax.cond(x > 0, inner, lambda x: x, x)), 0.0, x)
        return i + 1, ys

    def fn(x):
        return jax.lax.while_loop(lambda c: c[0] < 1, step, (0, x))

    [(sin, made)], _ = exposed(fn, jnp.asarray([-1.0, 1.0, 5.0]), op="sin")
    assert made.tolist() == [[False] * 4, [False, False, True, True], [True] * 4]
    expected = np.sin(np.asarray([-1.0, 1.0, 5.0])[:, None] + np.arange(4.0)) * made
    np.testing.assert_allclose(sin, expected, rtol=1e-5, atol=1e-7)


def test_remat_and_custom_rules():
    @jax.custom_jvp
    def rule(x):
        return jnp.cos(x)

    rule.defjvp(lambda p, t: (rule(*p), t[0]))

    @partial(jax.checkpoint, policy=None)
    def body(x):
        return rule(jnp.sin(x)) ** 2

    x = jnp.arange(3.0)
    held, _ = exposed(jax.grad(lambda x: body(x).sum()), x, op="sin")
    for array, made in held:
        assert made is None
        np.testing.assert_allclose(array, np.sin(x), rtol=1e-6)
    [(array, _)], _ = exposed(rule, x, op="cos")
    np.testing.assert_allclose(array, np.cos(x), rtol=1e-6)


@pytest.mark.parametrize("checked", [True, False])
def test_shard_map_has_an_axis_of_devices(checked):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.P("a")

    @partial(jax.shard_map, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=checked)
    def fn(x):
        y = jnp.sin(x) + jax.lax.psum(x.sum(), "a")
        _, z = jax.lax.scan(lambda c, r: (c, branching(r)), jnp.zeros(()), y[:, 0])
        return y + z[:, None]

    x = jnp.arange(8.0).reshape(4, 2)

    def chosen(value, inside):
        return value.node is not None and value.node.op == "sin"

    held, result = exposed(fn, x, chosen=chosen)
    np.testing.assert_array_equal(result, jax.jit(fn)(x))
    (outer, _), (inner, made) = held
    shards = np.repeat(np.sin(x).reshape(2, 2, 2), 2, axis=0)  # the same on both of axis "b"
    np.testing.assert_allclose(outer, shards, rtol=1e-5)
    assert inner.shape == made.shape == (4, 2)


def test_arguments_and_dtypes():
    def fn(a, b, c):
        return a.astype(jnp.float8_e4m3fn), b + 1, c.astype(jnp.complex64) * 2

    args = (jnp.ones(3, jnp.bfloat16), jnp.arange(2), jnp.asarray(True))
    held, _ = exposed(fn, *args, chosen=lambda value, inside: not inside)
    dtypes = [array.dtype.name for array, _ in held]
    assert dtypes[:4] == ["bfloat16", "int32", "bool", "float8_e4m3fn"]
    assert dtypes[-1] == "complex64"


CONTROL = ("rnn_while", "equilibrium", "nested_scans", "cond_loss", "switch_update", "optax_muon",
           "linen_gpt_scan_remat", "shard_map_data", "shard_map_tensor", "custom_jvp_log1pexp",
           "many_types_model")  # fmt: skip


@pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.name in CONTROL], ids=lambda p: p.name
)
def test_every_value_of_programs(program):
    """All numbers of all kinds come out, and the program's results with them."""
    if jax.device_count() < program.needs_devices:
        pytest.skip("needs devices")
    args = (program.init(0), *program.batch(0))
    compiled = precir.compile(program.step, **program.options())

    def chosen(value, inside):
        return value.type.dtype.startswith(NUMBERS)

    made = instrument(compiled.program(*args), chosen)
    verify(made.graph)
    result, flat = made.call(*args)
    reference = jax.jit(program.step)(*args)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.extended):
            x, y = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(x, y, rtol=2e-2, atol=1e-4)
    assert made.exposed
    for e in made.exposed:
        assert flat[e.output].shape == (*e.leading, *e.value.type.shape)
        assert flat[e.output].dtype.name == e.value.type.dtype
        if e.made is not None:
            assert flat[e.made].shape == e.leading[: flat[e.made].ndim]
