"""Where carrying scales is known to go wrong: zeros, infinities, NaN, masks, powers, long sums.

What Scalify (jax-scalify 0.1.1, arXiv 2407.17353) gives NaN, a wrong number or an error for under
`jax.jit`. Everything runs under jit, through the compiler, against plain JAX in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import precir
from precir import ScaledArray

# Of the largest element: eight units in the last place of what the recipe computes in.
ROOM = {
    "scaled-32": 8 * 2.0**-23,
    "scaled-16": 8 * 2.0**-10,
    "scaled-bf16": 8 * 2.0**-7,
    "scaled-fp8": 8 * 2.0**-3,
}
STORED = {"scaled-bf16": "bfloat16"}
BF16 = pytest.param("scaled-bf16", marks=pytest.mark.slow)  # float32's exponents: much the same
RECIPES = pytest.mark.parametrize("recipe", ["scaled-32", "scaled-16", BF16])
ALL_RECIPES = pytest.mark.parametrize(
    "recipe", [BF16 if name == "scaled-bf16" else name for name in ROOM]
)

MASK = np.arange(24).reshape(4, 6) % 3 != 0
NO_ROW = MASK & (np.arange(4) != 2)[:, None]  # a row with nothing in it


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(x: np.ndarray) -> np.ndarray:
    """Numbers that every format holds."""
    return np.asarray(np.round(x * 2) / 2, np.float32)


X = whole(normal(0, 4, 6) * 2)
ZEROS = np.zeros((4, 6), np.float32)


@dataclass(frozen=True)
class Expression:
    name: str
    function: Callable[..., Any]
    inputs: tuple[np.ndarray, ...] = (X,)
    smooth: bool = True  # whether it has a gradient worth the name


def masked_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = jnp.where(mask, q @ k.T / 2.0, -jnp.inf)
    return jax.nn.softmax(scores) @ v


def safe_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """A row that sees nothing gives zeros."""
    scores = jnp.where(mask, q @ k.T / 2.0, -jnp.inf)
    largest = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(largest), largest, 0))
    total = weights.sum(-1, keepdims=True)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0) @ v


QKV = tuple(whole(normal(n, *shape)) for n, shape in enumerate([(4, 8), (6, 8), (6, 8)]))
OF_X = {
    "max(x, -inf)": lambda x: jnp.maximum(x, -jnp.inf),
    "min(x, inf)": lambda x: jnp.minimum(x, jnp.inf),
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=-1),
    "where(mask, x, 0)": lambda x: jnp.where(MASK, x, 0),
    "where(mask, zeros, x)": lambda x: jnp.where(MASK, jnp.zeros_like(x), x),
    "masked softmax": lambda x: jax.nn.softmax(jnp.where(MASK, x, -jnp.inf)),
    "softmax(where=mask)": lambda x: jax.nn.softmax(x, where=MASK),
    "var": lambda x: jnp.var(x, axis=-1),
    "var of all": jnp.var,
    "std": lambda x: jnp.std(x, axis=0),
    "mean": jnp.mean,
    "mean of a row": lambda x: jnp.mean(x, axis=-1),
    "-mean(log_softmax)": lambda x: -jnp.mean(jax.nn.log_softmax(x)[:, 0]),
    "relu": jax.nn.relu,
    "max(x, 0)": lambda x: jnp.maximum(x, 0),
    "clip": lambda x: jnp.clip(x, -1, 2),
    "clip to inf": lambda x: jnp.clip(x, 0, jnp.inf),
    "pad 0": lambda x: jnp.pad(x, 1),
    "pad 3": lambda x: jnp.pad(x, 1, constant_values=3.0),
    "x - x": lambda x: x - x,
    "x + zeros": lambda x: x + jnp.zeros(6),
    "exp(zeros) * x": lambda x: jnp.exp(jnp.zeros_like(x)) * x,
    "exp(zeros) + x": lambda x: jnp.exp(jnp.zeros_like(x)) + x,
    "exp(x - x) + x": lambda x: jnp.exp(x - x) + x,
    "x ** 8": lambda x: x**8,
    "concatenate": lambda x: jnp.concatenate([x, x * 8, jnp.ones((1, 6))]),
    "prod": lambda x: jnp.prod(x / 4),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "sort": lambda x: jnp.sort(x, axis=1),
    "one-hot product": lambda x: jax.nn.one_hot(jnp.array([0, 2]), 4) @ x,
    "layer norm": lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6),
    "sqrt(sum of squares)": lambda x: jnp.sqrt(jnp.sum(x * x)),
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
}
ROUGH = {
    "x + inf": lambda x: x + jnp.inf,
    "x - inf": lambda x: x - jnp.inf,
    "x / 0": lambda x: x / 0,
    "where(mask, x, -inf)": lambda x: jnp.where(MASK, x, -jnp.inf),
    "where(mask, x, nan)": lambda x: jnp.where(MASK, x, jnp.nan),
    "softmax of a row with nothing": lambda x: jax.nn.softmax(jnp.where(NO_ROW, x, -jnp.inf)),
    "logsumexp of -inf": lambda x: jax.nn.logsumexp(jnp.where(NO_ROW, x, -jnp.inf), axis=-1),
    "argmax": lambda x: jnp.argmax(x, axis=-1),
    "argmin": lambda x: jnp.argmin(x, axis=-1),
    "sign": jnp.sign,
    "isnan": lambda x: jnp.isnan(jnp.where(MASK, x, jnp.nan)),
    "isfinite": lambda x: jnp.isfinite(x * jnp.inf),
    "x > 0": lambda x: x > 0,
    "x == 0": lambda x: x == 0,
    "x < y": lambda x: x < x.T.reshape(4, 6),
    "int32": lambda x: x.astype(jnp.int32),
    "bool": lambda x: x.astype(bool),
    "round": lambda x: jnp.round(x * 0.75),
    "floor": lambda x: jnp.floor(x),
    "mod": lambda x: jnp.mod(x, 1.5),
    "top_k": lambda x: jax.lax.top_k(x, 2)[1],
}
SMOOTH_CASES = [Expression(n, f) for n, f in OF_X.items()] + [
    Expression("attention", lambda q, k, v: masked_attention(q, k, v, MASK), QKV),
    Expression("attention, empty row", lambda q, k, v: safe_attention(q, k, v, NO_ROW), QKV),
    Expression("prod of 256 ones", jnp.prod, (np.ones((16, 16), np.float32),)),
    Expression("product", lambda x, y: x @ y.T, (X, whole(normal(1, 3, 6)))),
    Expression("batched", lambda x, y: jnp.einsum("bij,bkj->bik", x, y),
               (whole(normal(2, 2, 3, 4)), whole(normal(3, 2, 5, 4)))),
    Expression("two axes", lambda x, y: jnp.einsum("bij,bij->b", x, y),
               (whole(normal(2, 2, 3, 4)), whole(normal(3, 2, 3, 4)))),
]  # fmt: skip
CASES = [*SMOOTH_CASES, *(Expression(n, f, smooth=False) for n, f in ROUGH.items())]
ZERO_CASES = [c for c in CASES if len(c.inputs) == 1 and c.inputs[0] is X]


def stored(inputs: Any, recipe: str, power: int = 0) -> dict[str, Any]:
    """One argument, of which no result has the structure, and `power` on the scales."""
    made = precir.scale([jnp.asarray(x) for x in inputs], STORED.get(recipe, "float16"))
    return {"inputs": [ScaledArray(x.data, x.scale * 2.0**power) for x in made]}


def assert_like(got: Any, want: Any, room: float) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype != np.float32:
            np.testing.assert_array_equal(a, b)
            continue
        size = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=room * max(size, 2.0**-100))


def check(function: Any, given: dict[str, Any], recipe: str) -> None:
    def call(given: Any) -> Any:
        return function(*given["inputs"])

    of_a_model = precir.recipe(recipe).replace(state=None)  # there is none
    got = precir.compile(call, recipe=of_a_model)(given)
    assert_like(got, jax.jit(function)(*precir.unscale(given)["inputs"]), ROOM[recipe])


def with_gradient(function: Any) -> Any:
    """The value, and the gradient of a sum of it in which no two elements weigh the same."""

    def both(*inputs: Any) -> Any:
        def loss(inputs: Any) -> Any:
            y = function(*inputs)
            return jnp.sum(y * (1 + jnp.arange(y.size).reshape(y.shape) % 4)), y

        grads, y = jax.grad(loss, has_aux=True)(inputs)
        return y, list(grads)

    return both


def named(cases: Any) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@RECIPES
@named(CASES)
def test_value(case: Expression, recipe: str) -> None:
    check(case.function, stored(case.inputs, recipe), recipe)


@RECIPES
@named(SMOOTH_CASES)
def test_gradient(case: Expression, recipe: str) -> None:
    check(with_gradient(case.function), stored(case.inputs, recipe), recipe)


@named([c for c in SMOOTH_CASES if len(c.inputs) > 1])
def test_products_in_eight_bits(case: Expression) -> None:
    check(with_gradient(case.function), stored(case.inputs, "scaled-fp8"), "scaled-fp8")


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0**40])
@named(ZERO_CASES)
def test_zeros_under_any_scale(case: Expression, scale: float) -> None:
    """Zero included, which Scalify has for them."""
    given = {"inputs": [ScaledArray(jnp.asarray(ZEROS, jnp.float16), jnp.float32(scale))]}
    check(case.function, given, "scaled-32")


@RECIPES
def test_zeros_beside_others(recipe: str) -> None:
    """The scale of zeros has no say in that of what they are added to, chosen from, joined with."""

    def function(x: Any, zeros: Any) -> Any:
        return [
            x + zeros,
            jnp.where(MASK, zeros, x),
            jnp.concatenate([zeros, x]),
            jnp.maximum(x, zeros),
            x - zeros * 3,
        ]

    given = stored((X, ZEROS), recipe)
    x, zeros = given["inputs"]
    far = ScaledArray(zeros.data, jnp.float32(2.0**60))
    check(function, {"inputs": [x, far]}, recipe)


@RECIPES
@pytest.mark.parametrize("power", [-20, 6, 12])
def test_powers_of_large_scales(power: int, recipe: str) -> None:
    """No power of a scale is infinite or zero while the value is neither."""

    def function(x: Any) -> Any:
        y = x**8
        return [y, (x * x) * (x * x) * x, jnp.prod(x / 2.0**power, axis=1), x**-2]

    ones = jnp.asarray(np.where(MASK, 1.0, 1.5), jnp.float32)
    check(function, stored([ones * 2.0**power], recipe), recipe)


def test_a_long_chain_by_the_same_weights() -> None:
    """Each product takes one more power of the weights' scale."""

    def linear(x: Any, w: Any) -> Any:
        for _ in range(24):
            x = x @ w
        return x

    def recurrent(x: Any, w: Any) -> Any:
        for _ in range(24):
            x = jnp.tanh(x) @ w
        return x

    w = np.linalg.qr(normal(0, 16, 16))[0].astype(np.float16)
    x = normal(1, 4, 16)
    for function in (linear, recurrent):
        check(with_gradient(function), stored([x, w], "scaled-32"), "scaled-32")


@pytest.mark.parametrize("recipe", ["scaled-32", "scaled-16", "scaled-bf16"])
def test_a_long_sum_of_products(recipe: str) -> None:
    """4096 products of eight and eight: 262,144, more than float16 holds. Scalify's float16
    product overflows before it divides.
    """
    eights = np.full((2, 4096), 8.0, np.float32)

    def function(x: Any, y: Any) -> Any:
        return x @ y.T

    check(function, stored([eights, eights], recipe), recipe)
    plain = precir.recipe(recipe).replace(state=None)
    got = precir.compile(function, recipe=plain)(eights, eights)
    np.testing.assert_array_equal(got, np.full((2, 2), 262144.0))
    half = eights.astype(np.float16)
    unscaled = [ScaledArray(jnp.asarray(half), jnp.float32(1.0))] * 2
    got = precir.compile(lambda given: function(*given["x"]), recipe=plain)({"x": unscaled})
    np.testing.assert_array_equal(got, np.full((2, 2), 262144.0))


def test_bfloat16_data() -> None:
    """Scalify knows no bfloat16."""
    data = jnp.asarray(X, jnp.bfloat16)
    for power in (-30, 0, 30):
        given = {"inputs": [ScaledArray(data, jnp.float32(2.0**power))]}
        for name in ("relu", "layer norm", "clip", "softmax", "var", "sqrt(sum of squares)"):
            check(OF_X[name], given, "scaled-bf16")


def test_casts_are_in_the_gradient_program() -> None:
    """Scalify drops every forward cast under `jax.grad`; here each product of a gradient reads
    what was cast, forward ones too.
    """

    def loss(given: Any) -> Any:
        x, *weights = given["inputs"]
        for w in weights:
            x = jax.nn.relu(x @ w)
        return jnp.mean(x**2)

    def step(given: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(given)
        return value, list(grads["inputs"])

    shapes = [(4, 6), (6, 8), (8, 8), (8, 2)]
    given = {"inputs": [jnp.asarray(normal(n, *s)) for n, s in enumerate(shapes)]}
    for recipe, forward, backward in (
        ("scaled-16", "float16", "float16"),
        ("scaled-fp8", "float8_e4m3fn", "float8_e5m2"),
    ):
        of_a_model = precir.recipe(recipe).replace(state=None)
        graph = precir.compile(step, recipe=of_a_model).program(given).stages[-1].graph
        products = [n for n in graph.walk() if n.op in ("dot_general", "scaled_dot")]
        assert len(products) == 9  # three forward, and two for each backward
        read = {
            phase: [o.type.dtype for n in products if n.phase == phase for o in n.inputs]
            for phase in ("forward", "backward")
        }
        assert read["forward"].count(forward) >= 4, read  # the last product is wide in fp8
        assert read["backward"].count(forward) >= 4, read
        assert read["backward"].count(backward) >= 4, read
        assert "float32" not in read["forward"] + read["backward"]
        made = [n.outputs[0].type.dtype for n in graph.walk() if n.op in ("cast", "quantize")]
        assert made.count(forward) >= 3, made
