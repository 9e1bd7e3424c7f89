"""What follows a product in its kernel: what the pass finds, what it leaves, and the numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import precir
from precir.errors import VerifyError
from precir.ir import Node
from precir.passes import epilogue_cost
from precir.passes.epilogue_cost import Cost
from precir.program import Program
from precir.report import Report
from precir.text import parse, print_graph
from precir.verify import verify
from tests.cases.fused import arrays, nodes

M, K, N = 256, 128, 256
X, W, B, V, C, R, COLUMN = arrays((M, K), (K, N), (N,), (N, K), (K,), (M, N), (M,))
EIGHT = ("float8_e4m3fn", "float8_e5m2")


def compiled(fn: Callable[..., Any], kernels: str = "fused", **more: Any) -> precir.Compiled:
    options = {"recipe": "fp8-block", "compute": "float32", **more}
    stats = options.pop("stats", None)
    name = options.pop("recipe")
    recipe = precir.recipe(name, last_product=None, kernels=kernels, **options)
    return precir.compile(fn, recipe=recipe, stats=stats)


def both(fn: Callable[..., Any], *args: Any, **more: Any) -> tuple[Program, Any, Any]:
    """The program, and its results with and without fused kernels."""
    fused, plain = compiled(fn, **more), compiled(fn, "plain", **more)
    args = fused.init(*args)
    program = fused.program(*args)
    verify(program.graph, deep=True)
    assert parse(print_graph(program.graph), program.graph.constants) == program.graph
    return program, fused(*args), plain(*args)


def error(found: Any, plain: Any) -> float:
    """The largest over the leaves of |found - plain| / |plain|, by the root of the squares."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max(float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1)) for a, b in wide)


def epilogue(node: Node) -> dict[str, Any]:
    names = ("bias", "activation", "narrow", "amax")
    return {k: node.params[k] for k in names if node.params.get(k)}


def epilogues(program: Program) -> list[dict[str, Any]]:
    return [e for e in map(epilogue, nodes(program.graph, "scaled_dot")) if e]


# --- a bias ---------------------------------------------------------------------------------------


def of_module(module: Any, *shape: int) -> Callable[..., Any]:
    """A layer of flax whose bias is not zero."""

    def fn(x: Any, w: Any, b: Any) -> Any:
        free = {"kernel": w.reshape(K, *shape), "bias": b.reshape(shape)}
        return module.apply({"params": free}, x)

    return fn


def of_nnx(x: Any, w: Any, b: Any) -> Any:
    layer = nnx.Linear(K, N, rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = nnx.Param(w), nnx.Param(b)
    return layer(x)


def of_haiku(x: Any, w: Any, b: Any) -> Any:
    layer = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(N)(x)))
    return layer.apply({"linear": {"w": w, "b": b}}, x)


def of_equinox(x: Any, w: Any, b: Any) -> Any:
    layer = eqx.nn.Linear(K, N, key=jax.random.key(0))
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (w.T, b))
    return jax.vmap(layer)(x)


def of_a_scan(x: Any, w: Any, b: Any) -> Any:
    def body(h: Any, layer: Any) -> Any:
        return h @ layer[0] + layer[1], None

    square = jnp.stack([w[:, :K], w[:, K:]]) / 16
    return lax.scan(body, x, (square, b.reshape(2, K)))[0]


BIASES: dict[str, Callable[..., Any]] = {
    "plain": lambda x, w, b: x @ w + b,
    "the other way round": lambda x, w, b: b + x @ w,
    "einsum": lambda x, w, b: jnp.einsum("mk,kn->mn", x, w) + b[None, :],
    "transposed": lambda x, w, b: jnp.einsum("mk,nk->mn", x, w.T) + b,
    "spread": lambda x, w, b: x @ w + jnp.broadcast_to(b[None], (M, N)),
    "of a row": lambda x, w, b: x @ w + b.reshape(1, N),
    "of 16 bits": lambda x, w, b: x @ w + b.astype(jnp.bfloat16),
    "scaled": lambda x, w, b: x @ w + 2 * b,
    "batches": lambda x, w, b: x.reshape(2, 4, -1, K) @ w + b,
    "several axes": lambda x, w, b: (
        jnp.einsum("mk,kab->mab", x, w.reshape(K, 4, -1)) + b.reshape(4, -1)
    ),
    "of whole numbers": lambda x, w, b: x @ w + jnp.arange(N),
    "of another product": lambda x, w, b: x @ w + (b @ x.reshape(N, -1)[:, :1]) * b,
    "in a checkpoint": jax.checkpoint(lambda x, w, b: x @ w + b),
    "linen": of_module(nn.Dense(N), N),
    "linen, several axes": of_module(nn.DenseGeneral((4, N // 4)), 4, N // 4),
    "nnx": of_nnx,
    "haiku": of_haiku,
    "equinox": of_equinox,
    "in a scan": of_a_scan,
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_is_added_in_the_kernel(name: str) -> None:
    program, found, plain = both(BIASES[name], X, W, B)
    assert {"bias": True} in epilogues(program)
    assert error(found, plain) < 1e-6


NO_BIASES: dict[str, Callable[..., Any]] = {
    "of each row": lambda x, w, b: x @ w + COLUMN[:, None],
    "of each element": lambda x, w, b: x @ w + R,
    "of a number": lambda x, w, b: x @ w + b[0],
    "of one": lambda x, w, b: x @ w + b[:1],
    "of a literal": lambda x, w, b: x @ w + 0.5,
    "of its mean": lambda x, w, b: (lambda y: y + y.mean(0))(x @ w),
    "of itself": lambda x, w, b: (lambda y: y + y)(x @ w),
    "of its own row": lambda x, w, b: (lambda y: y + y[0])(x @ w),
    "read twice": lambda x, w, b: (lambda y: (y + b, y[:3]))(x @ w),
    "returned too": lambda x, w, b: (lambda y: (y + b, y))(x @ w),
    "taken away": lambda x, w, b: x @ w - b,
    "multiplied": lambda x, w, b: x @ w * b,
    "of half the axes": lambda x, w, b: (
        jnp.einsum("mk,kab->mab", x, w.reshape(K, 2, -1)) + b[: N // 2]
    ),
    "of the first axis of two": lambda x, w, b: (
        jnp.einsum("mk,kab->mab", x, w.reshape(K, 2, -1)) + b[:2, None]
    ),
    "of square rows": lambda x, w, b: x @ w + jnp.broadcast_to(b[:, None], (M, N)),
    "of each example": lambda x, w, b: (
        jnp.einsum("emk,ekn->emn", x.reshape(2, -1, K), jnp.stack([w, -w]))
        + jnp.stack([b, -b])[:, None]
    ),
    "of a row alone": lambda x, w, b: x[:1] @ w + b[None],
    "residual of a row": lambda x, w, b: x[:1] @ w + R[:1],
    "after a cap": lambda x, w, b: jnp.minimum(x @ w, 6) + b,
    "turned over": lambda x, w, b: jnp.flip(x @ w, 1) + b,
    "of integers": lambda x, w, b: (x @ w).astype(jnp.int32) + jnp.arange(N),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BIASES)
def test_what_is_no_bias_is_left(name: str) -> None:
    program, found, plain = both(NO_BIASES[name], X, W, B)
    assert nodes(program.graph, "scaled_dot")
    assert not epilogues(program)
    assert error(found, plain) == 0


def test_a_bias_of_none() -> None:
    for x, w in ((X[:0], W), (X, W[:, :0]), (X[:, :0], W[:0])):
        _, found, plain = both(BIASES["plain"], x, w, B[: w.shape[1]])
        np.testing.assert_array_equal(found, plain)


def test_special_biases() -> None:
    b = B.at[:4].set(jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 3e38]))
    x = X.at[0, 0].set(jnp.inf).at[1, 1].set(jnp.nan)
    program, found, plain = both(lambda x, w, b: jax.nn.relu(x @ w + b), x, W, b)
    assert epilogues(program) == [{"bias": True, "activation": "relu"}]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(plain))
    np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_what_is_written_wider_has_to_pay() -> None:
    """A sum in float32 of a product in bfloat16: twice the bytes, where XLA adds as it reads."""

    def sum_of(x: Any, w: Any, b: Any) -> Any:
        return (x @ w).astype(jnp.float32) + b

    x, w = (v.astype(jnp.bfloat16) for v in (X, W))
    program, found, plain = both(sum_of, x, w, B, compute="bfloat16")
    (product,) = nodes(program.graph, "scaled_dot")
    assert (epilogue(product), product.params["dtype"]) == ({"bias": True}, "float32")
    assert error(found, plain) < 4e-3
    program = compiled(lambda *a: sum_of(*a).sum(1), compute="bfloat16").program(x, w, B)
    assert not epilogues(program)


# --- an activation --------------------------------------------------------------------------------

ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "relu": (jax.nn.relu, "relu"),
    "relu by hand": (lambda x: jnp.maximum(x, 0), "relu"),
    "gelu": (partial(jax.nn.gelu, approximate=False), "gelu"),
    "gelu_tanh": (jax.nn.gelu, "gelu_tanh"),
    "silu": (jax.nn.silu, "silu"),
    "swish by hand": (lambda x: x / (1 + jnp.exp(-x)), "silu"),
    "of 32 bits": (lambda x: jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype), "silu"),
}


@pytest.mark.parametrize("bias", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_computed_in_the_kernel(name: str, bias: bool) -> None:
    act, kind = ACTIVATIONS[name]

    def fn(x: Any, w: Any, b: Any) -> Any:
        return act(x @ w + b if bias else x @ w)

    program, found, plain = both(fn, X, W / 8, B)
    assert epilogues(program) == [({"bias": True} if bias else {}) | {"activation": kind}]
    assert error(found, plain) < 1e-6


NO_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu6": jax.nn.relu6,
    "leaky": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "quick gelu": lambda y: y * jax.nn.sigmoid(1.702 * y),
    "capped": lambda y: jnp.minimum(jax.nn.silu(y), 20),
    "capped before": lambda y: jax.nn.silu(jnp.clip(y, -7, 7)),
    "far off": lambda y: jnp.clip(jax.nn.relu(y), 0, 1e15),
    "no NaN": lambda y: jnp.nan_to_num(jax.nn.relu(y)),
    "gated": lambda y: jax.nn.silu(y) * R,
    "gated by itself": lambda y: jax.nn.silu(y) * y[::-1],
    "its own residual": lambda y: y + jax.nn.relu(y),
    "read before": lambda y: (jax.nn.relu(y), y.mean()),
    "returned before": lambda y: (jax.nn.relu(y), y),
    "of another": lambda y: jax.nn.relu(R) + 0 * y,
    "of the other sign": lambda y: jax.nn.relu(-y),
    "of a residual": lambda y: jax.nn.relu(y + R),
}


@pytest.mark.parametrize("name", NO_ACTIVATIONS)
def test_what_is_no_activation_of_a_product_is_left(name: str) -> None:
    act = NO_ACTIVATIONS[name]
    program, found, plain = both(lambda x, w, b: act(x @ w), X, W, B)
    assert not epilogues(program)
    assert error(found, plain) == 0
    program, found, plain = both(lambda x, w, b: act(x @ w + b), X, W, B)
    assert all(e == {"bias": True} for e in epilogues(program))
    assert error(found, plain) < 1e-6


def test_an_activation_saved_for_its_gradient_is_left() -> None:
    def loss(w: Any, v: Any, x: Any, b: Any) -> Any:
        return jnp.mean(jnp.sin(jax.nn.gelu(x @ w + b) @ v))

    program, found, plain = both(jax.grad(loss, argnums=(0, 1, 3)), W / 8, V / 8, X, B)
    assert epilogues(program) == [{"bias": True}]
    assert nodes(program.graph, "act_quantize")
    assert error(found, plain) < 1e-3


# --- 8 bits, and the largest ----------------------------------------------------------------------


def mlp(p: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.gelu(x @ p["up"] + p["up_bias"])
    h = jax.nn.relu(h @ p["on"] + p["on_bias"])
    return h @ p["down"] + p["down_bias"]


def weights() -> dict[str, jax.Array]:
    up, on, down = arrays((K, N), (N, N), (N, K))
    p = {"up": up / 8, "on": on / 16, "down": down / 16}
    return p | {f"{k}_bias": 8 * v[0] for k, v in p.items()}


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products under one scale go by Triton, as large ones do."""
    times = epilogue_cost.seconds
    monkeypatch.setattr(
        epilogue_cost, "seconds", lambda *a, **k: {"triton": times(*a, **k)["triton"]}
    )


@pytest.mark.usefixtures("by_triton")
def test_what_is_only_quantised_is_never_wide() -> None:
    p = weights()
    more = {"recipe": "fp8-static", "stats": precir.observe(mlp, [(p, X)])}
    program, found, plain = both(mlp, p, X, **more)
    assert epilogues(program) == [
        {"bias": True, "activation": "gelu_tanh", "narrow": True},
        {"bias": True, "activation": "relu", "narrow": True},
        {"bias": True},
    ]
    assert {n.op for n in program.graph.walk()} & {"tanh", "act_quantize"} == set()
    (wide,) = [n for n in nodes(program.graph, "scaled_dot") if not n.params.get("narrow")]
    assert all(
        o.type.dtype in EIGHT for n in program.graph.users[wide.inputs[0]] for o in n.inputs[:2]
    )
    assert error(found, plain) < 1e-3
    source = program.emitted.text
    assert "out=jnp.float8_e4m3fn" in source
    assert "out_scale=2.0**" in source


@pytest.mark.usefixtures("by_triton")
@pytest.mark.parametrize("recipe", ["fp8", "fp8-delayed"])
def test_a_scale_is_measured_by_the_product(recipe: str) -> None:
    p = weights()
    program, found, plain = both(lambda p, x: (p, mlp(p, x)), p, X, recipe=recipe)
    assert epilogues(program) == [
        {"bias": True, "activation": "gelu_tanh", "amax": True},
        {"bias": True, "activation": "relu", "amax": True},
        {"bias": True},
    ]
    quantized = [n for n in program.graph if n.op in ("quantize", "finite_amax")]
    made = [n for n in quantized if n.inputs[0].node is not None]
    assert [n.params.get("scaling") for n in made] == ["given"] * 2
    assert error(found, plain) < 1e-3
    for batch in (7 * X, X / 1e30, jnp.zeros_like(X)):
        fused, unfused = (compiled(mlp, k, recipe="fp8") for k in ("fused", "plain"))
        assert error(fused(p, batch), unfused(p, batch)) < 1e-3


@pytest.mark.usefixtures("by_triton")
def test_the_largest_is_that_of_what_is_only_moved() -> None:
    def fn(x: Any, w: Any, v: Any) -> Any:
        heads = (x @ w).reshape(2, -1, 4, N // 4).transpose(0, 2, 1, 3)
        return jnp.einsum("bhqd,bhkd->bhqk", heads, heads), (x @ w)[:, :K] @ v

    program, found, plain = both(fn, X, W, V.T[:K], recipe="fp8")
    assert epilogues(program) == [{"amax": True}]  # a part of it has another
    assert error(found, plain) < 1e-6


@pytest.mark.usefixtures("by_triton")
def test_in_a_train_step() -> None:
    def step(p: Any, x: Any) -> Any:
        return p, *jax.value_and_grad(lambda p: jnp.mean(mlp(p, x) ** 2))(p)

    for recipe in ("fp8", "fp8-delayed"):
        program, found, plain = both(step, weights(), X, recipe=recipe)
        assert epilogues(program)[:2] == [{"bias": True}] * 2
        assert error(found, plain) < 1e-3


@pytest.mark.usefixtures("by_triton")
@pytest.mark.parametrize("recipe", ["fp8", "fp8-static", "fp8-block"])
def test_under_vmap(recipe: str) -> None:
    p = weights()
    stats = precir.observe(mlp, [(p, X)]) if recipe == "fp8-static" else None
    step = compiled(mlp, recipe=recipe, stats=stats)
    several, batches = {k: jnp.stack([v, v[::-1], v / 2]) for k, v in p.items()}, [X, 2 * X, -X]
    for names in ((), ("up_bias",), ("up", "on_bias"), tuple(p)):
        for x, axis in ((jnp.stack(batches), 0), (X, None)):
            given = p | {k: several[k] for k in names}
            axes = {k: 0 if k in names else None for k in p}
            if axis is None and not names:
                continue
            over = jax.vmap(step, in_axes=(axes, axis))(given, x)
            for i, each in enumerate(over):
                one = {k: v[i] if k in names else v for k, v in given.items()}
                assert error(each, step(one, x if axis is None else x[i])) < 1e-3


def test_on_a_mesh() -> None:
    p = weights()
    mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    specs = {"up": (None, "j"), "up_bias": ("j",), "on": ("j", None), "down": ("i", "j")}

    def lying(name: str, x: jax.Array) -> jax.Array:
        spec = PartitionSpec(*specs.get(name, ()))
        return jax.device_put(x, NamedSharding(mesh, spec))

    cut = {k: lying(k, v) for k, v in p.items()}
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("i", None)))
    assert error(compiled(mlp)(cut, x), compiled(mlp, "plain")(p, X)) < 1e-3


# --- what is said of it ---------------------------------------------------------------------------


def test_the_report_says_what_follows() -> None:
    p = weights()
    report = compiled(mlp).report(p, X)
    assert [k.reason for k in report.kernels if k.kernel == "scaled_dot"] == ["with a bias"] * 3
    assert sum(k.bytes for k in report.kernels if k.kernel == "scaled_dot") == 8 * M * (2 * N + K)
    assert Report.from_json(report.to_json()) == report
    program = compiled(lambda p, x: mlp(p, x).sum(0)).program(p, X)
    assert [f.used for f in program.fused if f.kernel == "scaled_dot"] == [True, True, False]


def test_what_does_not_pay_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where XLA multiplies faster, it adds and rounds in the pass that it multiplies scales in."""
    monkeypatch.setattr(epilogue_cost.choice, "fastest", lambda _: "bf16")
    program = compiled(mlp).program(weights(), X)
    assert not epilogues(program)
    assert "(no scaled_dot)" in str(Report.of(program))


def test_the_model_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled(lambda x, w, b: (x @ w + b).sum(0)).program(X, W, B)
    (product,) = nodes(program.graph, "scaled_dot")
    (total,) = nodes(program.graph, "add")
    value, n = total.outputs[0], M * N
    assert epilogue_cost.wide(program.graph, product, value) == (Cost(), 0.0)
    monkeypatch.setattr(epilogue_cost, "stored", lambda *_: True)
    saved, less = epilogue_cost.wide(program.graph, product, value)
    assert (saved, less) == (Cost(8 * n, 1), pytest.approx(Cost(8 * n, 1).seconds))
    saved, _ = epilogue_cost.narrow(product, value, "float8_e4m3fn")
    assert saved == Cost((8 + 5 + 3) * n, 2)
    saved, _ = epilogue_cost.measured(product, 2)
    assert saved == Cost(2 * 4 * n, 1)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"activation": "tanh"}, "the activation is 'tanh'"),
    "operands": ({"bias": False}, "3 operands, expected 2: a, b"),
    "scale": ({"narrow": True, "bias": False}, "scales: number 0 is float32"),
    "results": ({"amax": True}, "1 results, expected 2"),
    "bias": ({"dimension_numbers": (((1,), (1,)), ((), ()))}, "dimension_numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contracts(case: str) -> None:
    params, message = BROKEN[case]
    graph = compiled(BIASES["plain"]).program(X, W, B).graph
    (node,) = nodes(graph, "scaled_dot")
    broken = node.like(params={**node.params, **params})
    cut = graph.with_(nodes=(*graph.nodes[: graph.nodes.index(node)], broken), outputs=())
    with pytest.raises(VerifyError, match=message):
        verify(cut)


def test_facts_enclose_what_follows() -> None:
    def fn(x: Any, w: Any, b: Any) -> Any:
        w = jnp.tanh(w)
        return jax.nn.silu(jnp.tanh(x) @ w + jnp.tanh(b)), jnp.tanh(x) @ w

    ranges = (precir.Range(-9, 9),) * 3
    recipe = precir.recipe("fp8-block", last_product=None, compute="float32")
    program = precir.compile(fn, recipe=recipe, ranges=ranges).program(X, W, B)
    (node,) = [n for n in nodes(program.graph, "scaled_dot") if epilogue(n)]
    fact = program.facts[node.outputs[0]]
    assert fact.finite
    assert -0.31 <= fact.lo <= -0.27
    assert K <= fact.hi <= 1.3 * K + 2


def test_what_an_h100_runs() -> None:
    from tests.crosslower import lower_for_cuda

    p, x = weights(), X.astype(jnp.bfloat16)
    step = compiled(mlp, compute="bfloat16")
    _, kernels = lower_for_cuda(step, p, x)
    products = [k for k in kernels if k.name.startswith("scaled_dot")]
    assert len(products) == 3
    assert all("wgmma.mma_async" in k.ptx for k in products)
