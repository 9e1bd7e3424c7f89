"""Bounds that vary with a variance or a sum: they hold of what runs, degenerate data included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.domains.fact import Fact, interval
from precir.ir import Graph
from precir.ops.facts.spreads import Base, Spread, regrouped, supremum
from precir.passes.facts import infer_facts
from tests.soundness import Opened

ROWS, WIDTH = 6, 16


def layer_norm(x, scale):
    mean = jnp.mean(x, -1, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-6) * scale


def by_var(x, scale):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * scale


def over_rows(x, scale):
    y = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
    return y * scale


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def unit_length(x, scale):
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12) * scale


def softmax(x, scale):
    return jax.nn.softmax(x * 30) * scale


def log_softmax(x, scale):
    return jax.nn.log_softmax(x * 30) * scale


def shares(x, scale):
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True) * scale


def l1_normalized(x, scale):
    return x / (jnp.sum(jnp.abs(x), -1, keepdims=True) + 1e-3) * scale


NORMS = [
    layer_norm, by_var, over_rows, rms_norm, unit_length, softmax, log_softmax, shares,
    l1_normalized,
]  # fmt: skip


def gradient(norm):
    def step(x, scale, out):
        return jax.grad(lambda x, scale: jnp.sum(jnp.tanh(norm(x, scale)) * out), (0, 1))(x, scale)

    return step


def draws(dtype: str):
    rng = np.random.RandomState(0)
    x = rng.uniform(-1, 1, (ROWS, WIDTH))
    row = np.zeros((ROWS, WIDTH))
    row[:, 0] = 1
    yield x
    yield row  # all in one element
    yield np.ones_like(x)  # no variance
    yield np.zeros_like(x)
    for small in (1e-2, 1e-3, 1.7e-3, 1e-4, 1e-8, 1e-20, 1e-30, 1e-40):
        yield x * small
        yield row * small
        yield 1 - np.abs(x) * small
    yield np.where(x > 0, 1.0, -1.0)
    yield np.where(rng.rand(ROWS, WIDTH) < 0.1, 1.0, 1e-6 * x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_gradients_lie_within(norm, dtype: str) -> None:
    step = gradient(norm)
    rng = np.random.RandomState(1)
    given = [(1.0, "uniform"), (1.0, "signs")]
    args = [
        jnp.asarray(a, dtype)
        for a in (np.ones((ROWS, WIDTH)), np.ones(WIDTH), np.ones((ROWS, WIDTH)))
    ]
    program = precir.compile(step).program(*args)
    opened = Opened(program)
    opened.facts = infer_facts(program.graph, [interval(-1, 1)] * 3)  # type: ignore[attr-defined]
    for x in draws(dtype):
        for _, how in given:
            scale = rng.uniform(-1, 1, WIDTH) if how == "uniform" else rng.choice([-1, 1], WIDTH)
            out = rng.uniform(-1, 1, x.shape) if how == "uniform" else np.sign(x + 1e-50)
            values = [jnp.asarray(a, dtype) for a in (x, scale, out)]
            _, flat = opened.made.call(*values)
            for e in opened.made.exposed:
                array = np.asarray(flat[e.output]).astype(np.float64)
                fact = opened.facts.of_value[e.value]  # type: ignore[attr-defined]
                assert within(fact, array), f"{e.value.node and e.value.node.op} {fact} {array}"


def within(fact: Fact, array: np.ndarray) -> bool:
    finite = array[np.isfinite(array)]
    if finite.size and not (fact.lo <= finite.min() and finite.max() <= fact.hi):
        return False
    return bool(fact.flags & 16 or not np.isnan(array).any()) and bool(
        fact.flags & 12 or not np.isinf(array).any()
    )


def graph_of(step, *args) -> Graph:
    return precir.compile(step).program(*args).graph


def magnitude(step, *shapes) -> float:
    """Of the first result, arguments in [-1, 1]."""
    args = [jnp.zeros(s, jnp.float32) for s in shapes]
    graph = graph_of(step, *args)
    return infer_facts(graph, [interval(-1, 1)] * len(args))[graph.outputs[0]].magnitude


@pytest.mark.parametrize(
    ("norm", "most"),
    [(layer_norm, 1e4), (by_var, 5e3), (over_rows, 5e3), (rms_norm, 1e4), (unit_length, 1e7),
     (softmax, 70), (log_softmax, 1000)],
    ids=lambda x: getattr(x, "__name__", ""),
)  # fmt: skip
def test_gradients_are_bounded_well(norm, most: float) -> None:
    def step(x, scale, out):
        return jax.grad(lambda x: jnp.sum(norm(x, scale) * out))(x)

    assert magnitude(step, (ROWS, WIDTH), (WIDTH,), (ROWS, WIDTH)) < most


def wrong_axis(x, scale):
    mean = jnp.mean(x, -1, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), 0, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-6) * scale


def of_another(x, scale):
    other = jnp.flip(x, 0)
    var = jnp.mean(jnp.square(other), -1, keepdims=True)
    return x * jax.lax.rsqrt(var + 1e-6) * scale


def transposed(x, scale):
    var = jnp.mean(jnp.square(x.T), -1, keepdims=True)
    return x * jax.lax.rsqrt(var + 1e-6) * scale


def of_part(x, scale):
    var = jnp.mean(jnp.square(x[:, :-1]), -1, keepdims=True)
    return x * jax.lax.rsqrt(var + 1e-6) * scale


def crossed(x, scale):
    """Rows normalised by the variance of columns: of a square matrix shapes agree."""
    var = jnp.mean(jnp.square(x), -1)
    return x * jax.lax.rsqrt(var[None, :] + 1e-6) * scale


def difference_of_another(x, scale):
    mean = jnp.mean(x, -1, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean[::-1]) * jax.lax.rsqrt(var + 1e-6) * scale


@pytest.mark.parametrize(
    "norm",
    [of_another, transposed, of_part, crossed, difference_of_another],
    ids=lambda f: f.__name__,
)
def test_near_misses(norm) -> None:
    """What is not divided by its own norm may be as large as intervals say."""
    assert magnitude(norm, (WIDTH, WIDTH), (WIDTH,)) >= 900


def test_wrong_axis_is_bounded_by_the_other() -> None:
    """Of n numbers in a column, each is still within the root of n of their mean square."""
    assert magnitude(wrong_axis, (WIDTH, WIDTH), (WIDTH,)) == pytest.approx(4, rel=1e-2)


def softmax_form(x, g, h, axis=-1, power=-2, sign=-1):
    """The gradient of a softmax as JAX writes it, or nearly."""
    e = jnp.exp(x)
    s = jnp.sum(e, -1, keepdims=True)
    mean = jnp.sum(g * jax.lax.integer_pow(s, power) * e, axis, keepdims=True)
    return (h / s + sign * mean) * e if sign > 0 else (h / s + -mean) * e


def test_gradient_of_softmax() -> None:
    def right(x, g):
        return softmax_form(x, g, g)

    shape = (WIDTH, WIDTH)
    assert 0.5 <= magnitude(right, shape, shape) <= 0.52
    call = jax.jit(right)
    for x in (np.eye(WIDTH) * 2 - 1, np.ones(shape), np.eye(WIDTH)):
        for g in (np.eye(WIDTH) * 2 - 1, 1 - 2 * np.eye(WIDTH)):
            found = np.abs(np.asarray(call(x.astype(np.float32), g.astype(np.float32)))).max()
            assert found <= magnitude(right, shape, shape)


def test_what_is_not_the_gradient_of_softmax() -> None:
    shape = (WIDTH, WIDTH)

    def of_another(x, g, h):
        return softmax_form(x, g, h)

    def over_other_axis(x, g):
        return softmax_form(x, g, g, axis=0)

    def added(x, g):
        return softmax_form(x, g, g, sign=1)

    def first_power(x, g):
        return softmax_form(x, g, g, power=-1)

    assert magnitude(of_another, shape, shape, shape) > 0.6
    for function in (over_other_axis, added, first_power):
        assert magnitude(function, shape, shape) > 0.6


def test_regrouped() -> None:
    assert regrouped(frozenset([2]), (8, 64, 384), (8, 64, 3, 4, 32)) == ({2, 3, 4}, 1)
    assert regrouped(frozenset([2, 3, 4]), (8, 64, 3, 4, 32), (8, 64, 384)) == ({2}, 1)
    assert regrouped(frozenset([2]), (8, 64, 3, 4, 32), (8, 64, 384)) == ({2}, 128)
    assert regrouped(frozenset([0]), (8, 64), (1, 8, 1, 64, 1)) == ({1}, 1)
    assert regrouped(frozenset([1]), (1, 8, 64), (8, 64)) == ({0}, 1)
    assert regrouped(frozenset([0]), (6, 4), (4, 6)) == ({0, 1}, 4)
    assert regrouped(frozenset(), (6, 4), (4, 6)) == (frozenset(), 1)


@pytest.mark.parametrize("inner", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("outer", [-3.0, -1.5, -0.5, 0.0, 1.0])
def test_supremum(inner: float, outer: float) -> None:
    for base in (Base(1e-6, 1e6, 1e-6), Base(1e-6, 2e-6, 1e-6), Base(1e-3, 10.0, 1e-6)):
        x = np.geomspace(base.lo, base.hi, 10001)
        truth = np.max(np.maximum(x - base.eps, 0) ** inner * x**outer)
        spread = Spread(None, (), inner, outer, 1.0, 1.0)  # type: ignore[arg-type]
        assert truth <= supremum(spread, base) <= truth * 1.1 + 1e-9
