"""The pass that computes and quantises in one kernel: what it recognises."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precir.passes.fused_act import FUNCTIONS, find_activation
from precir.passes.fused_norm import find_norm
from precir.passes.sinks import find_sinks, positions
from tests.cases.fused import (
    BIAS,
    GAIN,
    UP,
    G,
    W,
    X,
    fused_of,
    graph_of,
    nodes,
)  # fmt: skip
from tests.cases.norms import (
    layer_by_hand,
    layer_by_var,
    layer_fast,
    layer_slow,
    rms_alone,
    rms_flax,
    rms_of_one_more,
    rms_plain,
)

NORMS = {
    layer_by_hand: ("layer", 1e-3, True, True),
    layer_by_var: ("layer", 1e-5, True, True),
    layer_fast: ("layer", 1e-6, True, True),
    layer_slow: ("layer", 1e-6, True, True),
    rms_flax: ("rms", 1e-6, True, False),
    rms_plain: ("rms", 1e-5, True, False),
    rms_alone: ("rms", 1e-6, False, False),
    rms_of_one_more: ("rms", 1e-5, True, False),
}


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_norms_are_recognised_however_they_are_spelled(norm) -> None:
    graph = graph_of(lambda x, g, b, w: norm(x, g, b) @ w, X, GAIN, BIAS, W)
    found = [find_norm(s.value, positions(graph)) for s in find_sinks(graph)]
    (one,) = [f for f in found if f is not None]
    kind, eps, weight, bias = NORMS[norm]
    assert (one.kind, one.weight is not None, one.bias is not None) == (kind, weight, bias)
    assert np.float32(one.eps) == np.float32(eps)
    assert one.x is graph.inputs[0]
    assert "rstd" in one.rows.values() or norm in (layer_by_hand, rms_alone)


NOT_NORMS = {
    "over the other axis": lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5),
    "of the sample": lambda x: (
        (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-5)
    ),
    "of the deviation": lambda x: x / (jnp.sqrt((x * x).mean(-1, keepdims=True)) + 1e-2),
    "cubed": lambda x: x**3 / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5),
    "not centred": lambda x: x / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "by the largest": lambda x: x / (jnp.max(jnp.abs(x), -1, keepdims=True) + 1e-5),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "capped": lambda x: jnp.clip(rms_plain(x, 1.0, None), -8, 8),
    "capped after a weight": lambda x: jnp.minimum(rms_plain(x, GAIN, None), 1e3),
    "thresholded": lambda x: jnp.where(jnp.abs(rms_plain(x, 1.0, None)) < 9, x, 0),
    "capped far off": lambda x: jnp.clip(rms_plain(x, 1.0, None), -1e15, 1e15),
    "of no less": lambda x: x * jax.lax.rsqrt(jnp.maximum((x * x).mean(-1, keepdims=True), 1e-12)),
    "eps of the root": lambda x: x / (jnp.sqrt((x * x).mean(-1, keepdims=True)) + 1e-12),
}


@pytest.mark.parametrize("name", NOT_NORMS)
def test_what_is_no_norm_is_none(name: str) -> None:
    graph = graph_of(lambda x, w: NOT_NORMS[name](x) @ w, X, W)
    assert all(find_norm(s.value, positions(graph)) is None for s in find_sinks(graph))


ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "gelu": (partial(jax.nn.gelu, approximate=False), "gelu"),
    "gelu_tanh": (jax.nn.gelu, "gelu_tanh"),
    "gelu by hand": (
        lambda x: 0.5 * x * (1 + jnp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "gelu_tanh",
    ),
    "silu": (jax.nn.silu, "silu"),
    "silu by hand": (lambda x: x / (1 + jnp.exp(-x)), "silu"),
    "relu": (jax.nn.relu, "relu"),
    "relu by hand": (lambda x: jnp.where(x > 0, x, 0), "relu"),
}


@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_recognised_however_they_are_spelled(name: str, gated: bool) -> None:
    act, kind = ACTIVATIONS[name]

    def fn(x, up, w):
        return (act(x) * (up * 0.5 + x) if gated else act(x)) @ w

    x, up, w = X.astype(jnp.bfloat16), UP.astype(jnp.bfloat16), W
    graph = graph_of(fn, x, up, w)  # its constants are those of bfloat16
    found = [find_activation(s.value, positions(graph)) for s in find_sinks(graph)]
    (one,) = [f for f in found if f is not None]
    assert (one.name, one.x is graph.inputs[0]) == (kind, True)
    assert (one.up is not None, one.gradient) == (gated, None)


NOT_ACTIVATIONS = {
    "quick gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "leaky": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "relu6": jax.nn.relu6,
    "squared": lambda x: jnp.square(jax.nn.relu(x)),
    "tanh": jnp.tanh,
    "near": lambda x: 1.02 * jax.nn.gelu(x),
    "shifted": lambda x: jax.nn.silu(x + 0.01),
    "relu20": lambda x: jnp.minimum(jax.nn.relu(x), 20),
    "held in float16's range": lambda x: jnp.clip(jax.nn.gelu(x), -65504, 65504),
    "shrunk": lambda x: jnp.where(jnp.abs(x) > 1e-3, jax.nn.relu(x), 0),
    "nearly": lambda x: jax.nn.silu(x) + 1e-5,
    "capped far off": lambda x: jnp.clip(jax.nn.silu(x), -1e15, 1e15),
    "no NaN": lambda x: jnp.nan_to_num(jax.nn.silu(x)),
    "other near zero": lambda x: jnp.where(jnp.abs(x) < 1e-9, x + 3e-3, jax.nn.silu(x)),
}


@pytest.mark.parametrize("name", NOT_ACTIVATIONS)
def test_what_is_no_activation_is_none(name: str) -> None:
    graph = graph_of(lambda x, w: NOT_ACTIVATIONS[name](x) @ w, X, W)
    found = [find_activation(s.value, positions(graph)) for s in find_sinks(graph)]
    # What is shifted is one of the sum, which is made before.
    assert all(f is None or (name == "shifted" and f.x.node is not None) for f in found)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_capped_before_is_an_argument(name: str) -> None:
    """As in gpt-oss: neither cap may be lost."""
    act, kind = ACTIVATIONS[name]

    def fn(x, up, w):
        return act(jnp.minimum(x, 7)) * jnp.clip(up, -7, 7) @ w

    graph = graph_of(fn, X, UP, W)
    found = [find_activation(s.value, positions(graph)) for s in find_sinks(graph)]
    (one,) = [f for f in found if f is not None]
    assert one.name == kind
    assert one.x not in graph.inputs
    assert one.up not in graph.inputs


def test_a_norm_of_what_is_capped() -> None:
    graph = graph_of(lambda x, g, w: rms_plain(jnp.clip(x, -1e6, 1e6), g, None) @ w, X, GAIN, W)
    found = [find_norm(s.value, positions(graph)) for s in find_sinks(graph)]
    (one,) = [f for f in found if f is not None]
    assert one.x not in graph.inputs
    graph = graph_of(lambda x, g, w: rms_plain(jnp.nan_to_num(x), g, None) @ w, X, GAIN, W)
    found = [find_norm(s.value, positions(graph)) for s in find_sinks(graph)]
    assert all(f is None or f.x not in graph.inputs for f in found)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_recognised(name: str) -> None:
    act, kind = ACTIVATIONS[name]

    def loss(w, v, x):
        return jnp.sum(jnp.sin(act(x @ w) @ v))

    v = W.T.astype(jnp.float32)
    graph = graph_of(jax.grad(loss, argnums=(0, 1, 2)), W, v, X)
    found = [find_activation(s.value, positions(graph)) for s in find_sinks(graph)]
    kinds = {(f.name, f.gradient is not None) for f in found if f is not None}
    # From JAX 0.12 on erfc's derivative takes numbers apart by their bits: no real function.
    in_bits = name == "gelu" and jax.__version_info__ >= (0, 12)
    assert kinds == {(kind, False)} | (set() if in_bits else {(kind, True)})


def test_compilation_is_deterministic_where_a_gradient_is_an_input() -> None:
    def loss(x, w, up, weight):
        return jnp.sum(jax.nn.silu(x @ w) * up * weight)

    sources, kept = set[str](), []
    for n in range(8):
        fn = jax.value_and_grad(lambda *a: loss(*a), argnums=(0, 1))
        kept.append([object() for _ in range(97 * n)])  # so that values lie elsewhere
        program = fused_of(fn).program(X, W, G, G + 1)
        assert nodes(program.graph, "act_gradients")
        sources.add(program.emitted.text)
    assert len(sources) == 1


def test_a_slope_at_zero_is_the_program_s() -> None:
    """That of a maximum is a half."""

    def loss(w, v, x):
        return jnp.sum(jnp.sin(jnp.maximum(x @ w, 0) @ v))

    graph = graph_of(jax.grad(loss, argnums=(0, 1, 2)), W, W.T, X)
    found = [find_activation(s.value, positions(graph)) for s in find_sinks(graph)]
    assert {(f.name, f.gradient is None) for f in found if f is not None} == {("relu", True)}


def test_a_norm_of_float8_is_of_what_it_is_widened_to() -> None:
    graph = graph_of(
        lambda x, w: rms_plain(x.astype("float32"), 1.0, None) @ w, X.astype("float8_e4m3fn"), W
    )
    (found,) = (find_norm(s.value, positions(graph)) for s in find_sinks(graph)[:1])
    assert found is not None
    assert found.x.type.dtype == "float32"


def test_a_weight_may_be_made_of_the_rows() -> None:
    """The kernel that needs it does not give what it is made of."""

    def fn(x, g, w):
        root = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * root * (g * root.mean()) @ w

    assert nodes(fused_of(fn).program(X, GAIN, W).graph, "norm_quantize")


def test_functions_are_those_of_the_kernels() -> None:
    from precir.kernels.act_quantize import _ACTIVATIONS

    x = np.linspace(-9, 9, 301)
    assert FUNCTIONS.keys() == _ACTIVATIONS.keys()
    for name, function in FUNCTIONS.items():
        for ours, theirs in zip(function(x), _ACTIVATIONS[name](jnp.asarray(x)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
