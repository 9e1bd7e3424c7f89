"""What is known of softmax, of normalised vectors and of activations, however they are written."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import precir
from precir.domains.fact import Fact, contains, interval, of_array
from precir.passes.facts import infer_facts

N = 8
"""Matrices are square, so that a wrong axis is not given away by its length."""
MASK = np.tril(np.ones((N, N), bool))


def fact_of(function, reach: float = 1.0) -> Fact:
    """Of its result, for a square matrix within a reach of zero."""
    graph = precir.compile(function).program(jnp.zeros((N, N))).graph
    return infer_facts(graph, [interval(-reach, reach)])[graph.outputs[0]]


def matrices(reach: float):
    rng = np.random.RandomState(0)
    x = rng.uniform(-1, 1, (N, N)) * reach
    yield x
    yield np.eye(N) * reach
    yield np.ones((N, N)) * reach
    yield np.zeros((N, N))
    yield np.where(rng.rand(N, N) < 0.2, x, x * 1e-6)
    yield np.sign(x) * reach
    yield x * 1e-20


def holds(function, f: Fact, reach: float) -> None:
    call = jax.jit(function)
    for x in matrices(reach):
        assert contains(f, np.asarray(call(jnp.asarray(x, jnp.float32))))


def by_hand(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def with_none(x):
    e = jnp.exp(x - jnp.max(x, axis=1)[:, None])
    return e / jnp.sum(e, axis=1)[:, None]


def over_rows(x):
    e = jnp.exp(x - x.max(0))
    return e / e.sum(0)


def times_inverse(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e * (1 / e.sum(-1, keepdims=True))


def masked(x):
    x = jnp.where(MASK, x, -jnp.inf)
    return jax.nn.softmax(x, -1)


def masked_finite(x):
    return jax.nn.softmax(jnp.where(MASK, x, -1e9), -1)


def without_maximum(x):
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True)


def stopped(x):
    e = jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


SOFTMAX = [
    jax.nn.softmax, lambda x: jax.nn.softmax(x, axis=0), by_hand, with_none, over_rows, masked,
    masked_finite, without_maximum, stopped, lambda x: jax.nn.softmax(x.T, axis=0).T,
    lambda x: jax.nn.softmax(x * 3), lambda x: jnp.exp(jax.nn.log_softmax(x)),
]  # fmt: skip


@pytest.mark.parametrize("reach", [1.0, 30.0])
@pytest.mark.parametrize("softmax", SOFTMAX)
def test_softmax_is_within_one(softmax, reach: float) -> None:
    f = fact_of(softmax, reach)
    assert f.lo >= 0
    assert f.hi <= 1.0 + 1e-4
    assert f.finite
    holds(softmax, f, reach)


def sum_of_crossed(x):
    e = jnp.exp(x)
    return e / e.sum(-1)  # a row beside each row, not a column


def sum_of_part(x):
    e = jnp.exp(x)
    return e / e[:, 1:].sum(-1, keepdims=True)


def sum_of_flipped(x):
    e = jnp.exp(x)
    return e / e[::-1].sum(-1, keepdims=True)


def signed(x):
    return x / (jnp.abs(x.sum(-1, keepdims=True)) + 1e-2)


@pytest.mark.parametrize("function", [sum_of_crossed, sum_of_part, sum_of_flipped, signed])
def test_no_softmax(function) -> None:
    f = fact_of(function, 5.0)
    assert f.hi > 2
    holds(function, f, 5.0)


def max_crossed(x):
    return jnp.exp(x - x.max(-1))


def max_of_flipped(x):
    return jnp.exp(x - x[:, ::-1][::-1].max(-1, keepdims=True))


def test_maximum_over_another_axis() -> None:
    for function in (max_crossed, max_of_flipped):
        f = fact_of(function, 5.0)
        assert f.hi > np.exp(9)
        holds(function, f, 5.0)
    assert fact_of(lambda x: jnp.exp(x - x.max(0, keepdims=True)), 5.0).hi <= 1.001


# -- norms -------------------------------------------------------------------------------------


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)


def by_var(x):
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def by_std(x):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5)


def columns(x):
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)


def rms(x):
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


def flax_norm(x):
    return nn.LayerNorm(use_bias=False, use_scale=False, use_fast_variance=False).apply({}, x)


def flax_fast(x):
    return nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x)


def flax_rms(x):
    return nn.RMSNorm(use_scale=False).apply({}, x)


def haiku_norm(x):
    made = hk.without_apply_rng(hk.transform(lambda x: hk.LayerNorm(-1, False, False)(x)))
    return made.apply({}, x)


NORMS = [layer_norm, by_var, columns, rms, flax_norm, flax_fast, flax_rms, haiku_norm]


@pytest.mark.parametrize("reach", [1.0, 100.0])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_within_the_root(norm, reach: float) -> None:
    f = fact_of(norm, reach)
    assert f.finite
    most = np.sqrt(N) * (1.01 if norm is not flax_fast else 200 if reach > 1 else 2)
    assert f.magnitude <= most
    holds(norm, f, reach)


def unit_length(x):
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)


def unit_guarded(x):
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)), 1e-6)


def unit_by_norm(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("function", [unit_length, unit_guarded, unit_by_norm])
def test_lengths_are_within_one(function) -> None:
    f = fact_of(function)
    assert f.magnitude <= (1.001 if function is unit_length else 1.31)  # squares may underflow
    holds(function, f, 1.0)


def mean_of_another(x):
    y = x - x[::-1].mean(-1, keepdims=True)
    var = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
    return y * lax.rsqrt(var + 1e-6)


def variance_of_columns(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1) + 1e-6)


def variance_of_squares(x):
    return x * x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def absolute_mean(x):
    return x * lax.rsqrt(jnp.mean(jnp.abs(x) ** 3, -1, keepdims=True) + 1e-6)


@pytest.mark.parametrize(
    "function", [mean_of_another, variance_of_columns, variance_of_squares, absolute_mean]
)
def test_no_norm(function) -> None:
    f = fact_of(function)
    assert f.magnitude > np.sqrt(N) * 1.5
    holds(function, f, 1.0)


# -- activations -------------------------------------------------------------------------------

# From 0.12 on JAX splits x into two floats to square it in the derivative of erfc, and their
# product is no plain exp(-x * x) any more: bounded, but not tightly.
EXACT = 1.4 if jax.__version_info__ < (0, 12) else np.inf
ACTIVATIONS = {
    jax.nn.gelu: 1.3,
    lambda x: jax.nn.gelu(x, approximate=False): EXACT,
    jax.nn.silu: 1.4,
    jnp.tanh: 1.13,
    jax.nn.sigmoid: 0.4,
    lambda x: x * jnp.tanh(jax.nn.softplus(x)): 3.0,
}


@pytest.mark.parametrize("reach", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_of_activations(activation, reach: float) -> None:
    def slope(x):
        return jax.grad(lambda x: activation(x).sum())(x)

    f = fact_of(slope, reach)
    assert f.finite or reach > 100
    holds(slope, f, reach)
    if ACTIVATIONS[activation] < 2 and reach < 100:
        assert f.magnitude <= ACTIVATIONS[activation]


def test_activations_of_several_values() -> None:
    """What saturates in x says nothing of y."""

    def function(x):
        y = x[::-1]
        return jnp.tanh(x) * y + jnp.tanh(y) * x

    f = fact_of(function, 50.0)
    assert f.hi >= 99
    holds(function, f, 50.0)


def test_cases_are_not_taken_across_elements() -> None:
    """A sum over elements has those of all cases in it."""

    def function(x):
        return (jax.nn.silu(x) / (jnp.sum(jax.nn.silu(x), -1, keepdims=True) + 3.0)) * x

    holds(function, fact_of(function, 20.0), 20.0)


@pytest.mark.parametrize("function", [jnp.tanh, jax.nn.sigmoid, lax.erf])
def test_saturated(function) -> None:
    """Far out an activation is at its limit; infinities of the other sign are at the other."""
    graph = precir.compile(function).program(jnp.zeros(3)).graph
    for values in ([np.inf, -np.inf], [30.0, -np.inf], [-30.0, np.inf], [30.0, 1e30], [-30.0, -50]):
        x = np.array(values, np.float32)
        f = infer_facts(graph, [of_array(x)])[graph.outputs[0]]
        assert contains(f, np.asarray(function(jnp.asarray(x))))


def test_cases_underflow() -> None:
    """What is known by cases is rounded into its dtype, as all is."""
    graph = precir.compile(lax.erfc).program(jnp.zeros(3, jnp.float16)).graph
    x = np.array([-9.1484375, 7.625, 0.5], np.float16)
    f = infer_facts(graph, [of_array(x)])[graph.outputs[0]]
    assert contains(f, np.asarray(jax.jit(lax.erfc)(jnp.asarray(x))))
