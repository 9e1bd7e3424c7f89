"""The gradients of norms by one kernel: what is recognised, and what is not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import precir
from precir.ir import Value
from precir.passes.norm_gradients import Gradients, find_gradients
from tests.cases.fused import nodes
from tests.cases.norms import (
    ARGS,
    BIAS,
    COLUMNS,
    DOWN,
    GAIN,
    UP,
    X,
    error,
    fused_of,
    layer_alone,
    layer_by_hand,
    layer_by_var,
    layer_fast,
    layer_no_bias,
    layer_slow,
    rms_alone,
    rms_by_power,
    rms_flax,
    rms_of_one_more,
    rms_plain,
    step_of,
)

NORMS = {  # kind, weight, gradients of weight and bias
    layer_by_hand: ("layer", True, True, True),
    layer_by_var: ("layer", True, True, True),
    layer_fast: ("layer", True, True, True),
    layer_slow: ("layer", True, True, True),
    layer_no_bias: ("layer", True, True, False),
    layer_alone: ("layer", False, False, False),
    rms_flax: ("rms", True, True, False),
    rms_plain: ("rms", True, True, False),
    rms_alone: ("rms", False, False, False),
    rms_by_power: ("rms", True, True, True),
    rms_of_one_more: ("rms", True, True, False),
}


def gradients_of(fn: Callable[..., Any], *args: Any, compute: str = "bfloat16") -> list[Gradients]:
    """What is found before the pass."""
    plain = precir.recipe("fp8-block", kernels="plain", last_product=None, compute=compute)
    return list(find_gradients(precir.compile(fn, recipe=plain).program(*args).graph))


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_gradients_are_recognised_however_the_norm_is_spelled(norm) -> None:
    kind, weight, of_weight, of_bias = NORMS[norm]
    for stream in (False, True):
        (found,) = gradients_of(step_of(norm, stream), *ARGS)
        assert (found.rows.kind, found.weight is not None) == (kind, weight)
        if weight:
            assert (found.of_weight is not None, found.of_bias is not None) == (of_weight, of_bias)
        assert len(found.beside) == stream
        assert made_by(found.rows.x) == "tanh"
        assert made_by(found.gradient) == "scaled_dot"


def made_by(value: Value) -> str:
    """The op that made a value, before it was widened."""
    while value.node is not None and value.node.op in ("cast", "convert_element_type"):
        value = value.node.inputs[0]
    return value.node.op if value.node is not None else "input"


@jax.custom_vjp
def capped(x: jax.Array) -> jax.Array:
    return x


capped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1e-3, 1e-3),))


@jax.custom_vjp
def guarded(x: jax.Array) -> jax.Array:
    return x


guarded.defvjp(lambda x: (x, None), lambda _, g: (jnp.where(jnp.isfinite(g), g, 0),))


def stopped_variance(x, g, b):
    root = jax.lax.stop_gradient(jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5))
    return (x - x.mean(-1, keepdims=True)) * root * g + b


def stopped_mean(x, g, b):
    mean = jax.lax.stop_gradient(x.mean(-1, keepdims=True))
    return (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def of_the_sample(x, g, b):
    root = jax.lax.rsqrt(x.var(-1, keepdims=True, ddof=1) + 1e-5)
    return (x - x.mean(-1, keepdims=True)) * root * g + b


def least_variance(x, g, b):
    root = jax.lax.rsqrt(jnp.maximum(x.var(-1, keepdims=True), 1e-5))
    return (x - x.mean(-1, keepdims=True)) * root * g + b


def over_rows(x, g, b):
    return (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5) * g + b


def by_half_the_root(x, g, b):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) ** 0.5 * g


def own_scaled_gradient(x, g, b):
    @jax.custom_vjp
    def unit(x):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def back(x, d):
        root = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        y = x * root
        return (0.5 * (root * d) - root * y * (d * y).mean(-1, keepdims=True),)

    unit.defvjp(lambda x: (unit(x), x), back)
    return unit(x) * g


OTHERS = (
    stopped_variance, stopped_mean, of_the_sample, least_variance, over_rows, by_half_the_root,
    own_scaled_gradient,
)  # fmt: skip


@pytest.mark.parametrize("norm", OTHERS, ids=lambda f: f.__name__)
def test_other_gradients_are_left_alone(norm) -> None:
    assert not gradients_of(step_of(norm), *ARGS)


def test_a_cap_on_a_gradient_stays() -> None:
    """Before the norm's it is of what is read, and after it the kernel's result is capped."""
    (found,) = gradients_of(step_of(lambda x, g, b: capped(layer_by_var(x, g, b))), *ARGS)
    assert made_by(found.gradient) != "scaled_dot"
    (found,) = gradients_of(step_of(lambda x, g, b: layer_by_var(capped(x), g, b), False), *ARGS)
    assert made_by(found.gradient) == "scaled_dot"

    def between(x, g, b):  # of the normalised rows, before the weight
        unit = capped(layer_by_var(x, 1.0, 0.0))
        return unit * g + b

    for each in gradients_of(step_of(between), *ARGS):
        assert each.weight is None
        assert each.of_weight is None


def test_what_is_kept_out_stays_out() -> None:
    """A NaN that a program replaces reaches no kernel."""
    (found,) = gradients_of(step_of(lambda x, g, b: layer_by_var(jnp.nan_to_num(x), g, b)), *ARGS)
    assert made_by(found.rows.x) != "tanh"
    (found,) = gradients_of(step_of(lambda x, g, b: guarded(layer_by_var(x, g, b))), *ARGS)
    assert made_by(found.gradient) != "scaled_dot"
    between = step_of(lambda x, g, b: guarded(layer_by_var(x, 1.0, 0.0)) * g + b)
    for each in gradients_of(between, *ARGS):
        assert each.weight is None


def with_gradient(back: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """An identity whose gradient is what `back` makes of it."""

    @jax.custom_vjp
    def fn(x: jax.Array) -> jax.Array:
        return x

    fn.defvjp(lambda x: (x, None), lambda _, g: (back(g),))
    return fn


# What changes no number of usual size, and so no sample.
UNSEEN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "capped far off": lambda g: jnp.clip(g, -1e15, 1e15),
    "flushed": lambda g: jnp.where(jnp.abs(g) < 1e-12, 0, g),
    "no infinities": lambda g: jnp.where(jnp.isinf(g), 0, g),
    "shifted": lambda g: g + 1e-16,
    "narrowed": lambda g: g.astype(jnp.float8_e5m2).astype(jnp.float32),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_sample_sees_stays(name: str) -> None:
    odd = with_gradient(UNSEEN[name])

    def of_all(x, g, b):  # of the normalised rows, before the weight
        return odd(layer_by_var(x, 1.0, 0.0)) * g + b

    def of_bias(x, g, b):
        return layer_by_var(x, g, 0.0) + odd(jnp.broadcast_to(b, x.shape))

    def of_weight(x, g, b):
        return layer_by_var(x, 1.0, 0.0) * odd(jnp.broadcast_to(g, x.shape)) + b

    for each in gradients_of(step_of(of_all), *ARGS):
        assert each.weight is None
        assert each.of_weight is None
    (found,) = gradients_of(step_of(of_bias), *ARGS)
    assert found.of_bias is None
    assert all(f.of_weight is None for f in gradients_of(step_of(of_weight), *ARGS))


def mean_square(x: jax.Array) -> jax.Array:
    return (x * x).mean(-1, keepdims=True)


def least_root(x, g, b):
    return x / jnp.maximum(jnp.sqrt(mean_square(x)), 1e-12) * g


def no_zero(x, g, b):
    zero = mean_square(x) == 0
    root = jax.lax.rsqrt(jnp.where(zero, 1, mean_square(x)))
    return x * jnp.where(zero, 0, root) * g


def eps_of_the_root(x, g, b):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-12) * g + b


@pytest.mark.parametrize("norm", [least_root, no_zero, eps_of_the_root], ids=lambda f: f.__name__)
def test_rows_of_zeros_or_nearly_are_as_the_program_has_them(norm) -> None:
    assert not gradients_of(step_of(norm), *ARGS)
    program = fused_of(step_of(norm)).program(*ARGS)
    assert not nodes(program.graph, "norm_quantize")


def test_of_a_square_a_term_may_be_turned() -> None:
    def turned(x, g, b):
        rows = layer_by_var(x, 1.0, 0.0)
        return rows + rows.T

    def of_rows(x, g, b):
        return layer_by_var(x, 1.0, 0.0) * g[:, None]

    for each in gradients_of(step_of(turned), X[:COLUMNS], *ARGS[1:]):
        assert made_by(each.gradient) != "scaled_dot"
    for each in gradients_of(step_of(of_rows), X[:COLUMNS], *ARGS[1:]):
        assert each.weight is None


def test_a_weight_of_integers_is_read_as_numbers() -> None:
    def loss(x, up, down, g):
        h = jnp.tanh(x)
        return jnp.mean((h + layer_by_var(h, g.astype(jnp.float32), 0.0) @ up @ down) ** 2)

    fn = jax.value_and_grad(loss, argnums=(0, 1, 2))
    args = X, UP, DOWN, (10 * GAIN).astype(jnp.int8)
    step = fused_of(fn, compute="float32")
    assert nodes(step.program(*args).graph, "norm_gradients")
    plain = fused_of(fn, kernels="plain", compute="float32")
    assert error(step(*args), plain(*args)) < 1e-5


@pytest.mark.parametrize("narrow", ["float8_e5m2", "int32"])
def test_what_is_added_up_is_added_as_it_is_rounded(narrow: str) -> None:
    odd = with_gradient(lambda g: g.astype(narrow).astype(jnp.float32))

    def loss(x, g, b, up, down):
        h = jnp.tanh(x)
        rest = odd(h)  # whose gradient is a sum itself
        y = jnp.sin(layer_by_var(rest, odd(g), b) @ up) @ down
        return 1e3 * jnp.mean((2 * rest + y) ** 2) + jnp.sum(jnp.sin(h))

    fn = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
    step, plain = (fused_of(fn, kernels=k, compute="float32") for k in ("fused", "plain"))
    assert nodes(step.program(*ARGS).graph, "norm_gradients")
    assert error(step(*ARGS), plain(*ARGS)) < 1e-5


def test_what_is_added_may_need_the_gradient_of_the_bias() -> None:
    """No kernel computes both."""

    @jax.custom_vjp
    def tied(x, b):
        return x, b

    tied.defvjp(lambda x, b: ((x, b), None), lambda _, d: (d[0] + d[1].sum() / 1e3, d[1]))

    def loss(x, g, b, up, down):
        h, b = tied(jnp.tanh(x), b)
        return jnp.mean((h + jnp.sin(layer_by_var(h, g, b) @ up) @ down) ** 2)

    program = fused_of(jax.value_and_grad(loss, argnums=(0, 1, 2))).program(*ARGS)
    assert not nodes(program.graph, "norm_gradients")
    assert [f.used for f in program.fused if f.kernel == "norm_gradients"] == [False]


def test_what_a_norm_is_of_may_be_as_long_as_it_is_wide() -> None:
    x, up, down = X[:COLUMNS], UP, DOWN
    (found,) = gradients_of(step_of(layer_slow), x, GAIN, BIAS, up, down)
    assert found.of_weight is not None
    assert found.of_bias is not None
