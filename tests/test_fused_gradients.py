"""The gradients of norms by one kernel: what is recognised, what is written, and its numbers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import precir
from precir.errors import VerifyError
from precir.ir import Graph, Literal, Node, Value
from precir.passes.fused_cost import Cost, gradients_saved
from precir.passes.norm_gradients import Gradients, find_gradients
from precir.report import Report
from precir.text import parse, print_graph
from precir.verify import verify

ROWS, COLUMNS, OUT = 96, 64, 128


def arrays(*shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(5), len(shapes))
    return tuple(jax.random.normal(k, s) * 2 + 0.25 for k, s in zip(keys, shapes, strict=True))


X, GAIN, BIAS, UP, DOWN = arrays(
    (ROWS, COLUMNS), (COLUMNS,), (COLUMNS,), (COLUMNS, OUT), (OUT, COLUMNS)
)
UP, DOWN = UP / 16, DOWN / 16


def nodes(graph: Graph, op: str) -> list[Node]:
    return [n for n in graph.walk() if n.op == op]


# --- what is recognised ---------------------------------------------------------------------------


def layer_by_hand(x, g, b):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3) * g + b


def layer_by_var(x, g, b):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def layer_fast(x, g, b):
    """As flax's default: the mean of the squares less the square of the mean."""
    return nn.LayerNorm(epsilon=1e-6).apply({"params": {"scale": g, "bias": b}}, x)


def layer_slow(x, g, b):
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    return norm.apply({"params": {"scale": g, "bias": b}}, x)


def layer_no_bias(x, g, b):
    return layer_by_var(x, g, 0.0)


def layer_alone(x, g, b):
    return nn.LayerNorm(use_bias=False, use_scale=False).apply({"params": {}}, x)


def rms_flax(x, g, b):
    return nn.RMSNorm(epsilon=1e-6).apply({"params": {"scale": g}}, x)


def rms_plain(x, g, b):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g


def rms_alone(x, g, b):
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) / COLUMNS + 1e-6)


def rms_by_power(x, g, b):
    return g * (x * ((x * x).mean(-1, keepdims=True) + 1e-5) ** -0.5) + b


def rms_of_one_more(x, g, b):
    """As Gemma has it: weights are kept as what is more than one."""
    return rms_plain(x, 1 + g, b)


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


def step_of(norm: Callable[..., jax.Array], stream: bool = True) -> Callable[..., Any]:
    """A block with a residual connection, and its gradients."""

    def loss(x, g, b, up, down):
        h = jnp.tanh(x)  # so that x is not the program's own
        y = jnp.sin(norm(h, g, b) @ up) @ down
        return jnp.mean((h + y if stream else y) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))


ARGS = X, GAIN, BIAS, UP, DOWN


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


# --- what is written ------------------------------------------------------------------------------


def two_blocks(norm: Callable[..., jax.Array]) -> Callable[..., Any]:
    def block(p, x):
        return x + jax.nn.gelu(norm(x, p["gain"], p["bias"]) @ p["up"]) @ p["down"]

    def loss(p, x):
        for each in p:
            x = block(each, x)
        return jnp.mean(norm(x, p[0]["gain"], p[1]["bias"]) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1))


P = [{"gain": GAIN / 2, "bias": BIAS, "up": UP, "down": k * DOWN} for k in (1, -1)]
BATCH = X.reshape(2, ROWS // 2, COLUMNS)


def error(found: Any, exact: Any) -> float:
    """The largest over the leaves of |found - exact| / |exact|, by the root of the squares."""
    return max(
        float(jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) or 1))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    )


@pytest.mark.parametrize(
    ("recipe", "norm"),
    [("fp8", rms_plain), ("fp8-block", layer_slow), ("fp8-delayed", layer_slow)],
    ids=["fp8", "fp8-block", "fp8-delayed"],
)
def test_numbers_are_those_of_the_plain_program(recipe: str, norm: Any) -> None:
    """Where activations are float32, only float32's own rounding tells the two apart."""
    fn, results = two_blocks(norm), []

    def step(p, x):  # delayed scales are carried with something
        return p, *fn(p, x)

    for kernels in ("plain", "fused"):
        made = precir.recipe(recipe, kernels=kernels, last_product=None, compute="float32")
        compiled = precir.compile(step, recipe=made)
        args = compiled.init(P, BATCH)
        graph = compiled.program(*args).graph
        verify(graph, deep=True)
        assert parse(print_graph(graph)) == graph
        assert len(nodes(graph, "norm_gradients")) == 3 * (kernels == "fused")
        results.append(compiled(*args)[1:])
    assert error(results[1], results[0]) <= 1e-3  # one code in very many is another


@pytest.mark.parametrize("norm", [layer_fast, rms_alone], ids=lambda f: f.__name__)
def test_numbers_are_no_further_from_float32(norm: Any) -> None:
    fn = two_blocks(norm)
    exact, apart = jax.jit(fn)(P, BATCH), []
    for kernels in ("plain", "fused"):
        made = precir.recipe("fp8-block", kernels=kernels, last_product=None)
        apart.append(error(precir.compile(fn, recipe=made)(P, BATCH), exact))
    assert apart[1] <= 1.1 * apart[0] + 1e-3


def fused_of(fn: Callable[..., Any], recipe: str = "fp8-block", **more: Any) -> precir.Compiled:
    return precir.compile(fn, recipe=precir.recipe(recipe, last_product=None, **more))


def test_nothing_wide_is_saved_for_it() -> None:
    """Nor is the norm's backward pass computed from anything but its input."""
    program = fused_of(two_blocks(layer_slow)).program(P, BATCH)
    ops = [n.op for n in program.graph.walk()]
    assert ops.count("norm_quantize") == 2
    for norm in nodes(program.graph, "norm_quantize"):
        readers = {u.op for v in norm.outputs[-2:] for u in program.graph.users[v]}
        assert readers == {"norm_gradients"}
    source = program.emitted.text
    assert source.count("norm_gradients(") == 3 or "for " in source
    assert "add=" in source
    assert Report.of(program).kernels


def test_without_a_quantised_product_gradients_stay() -> None:
    for recipe in ("float32", "bf16-mixed", "scaled-fp8"):
        program = precir.compile(two_blocks(layer_slow), recipe=recipe).program(P, BATCH)
        assert not nodes(program.graph, "norm_gradients")


def test_within_scan_and_remat() -> None:
    """What is computed again is beside its gradient; what is saved for another loop is not."""
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *P)

    def losses(wrap):
        def layer(x, p):
            h = nn.LayerNorm(use_fast_variance=False).apply(
                {"params": {"scale": p["gain"], "bias": p["bias"]}}, x
            )
            return x + jax.nn.gelu(h @ p["up"]) @ p["down"], None

        return lambda p, x: jnp.mean(jax.lax.scan(wrap(layer), x, p)[0] ** 2)

    for wrap, used in ((jax.checkpoint, [2]), (lambda f: f, [])):
        fn = jax.value_and_grad(losses(wrap))
        step = fused_of(fn, compute="float32")
        program = step.program(stacked, BATCH)
        verify(program.graph, deep=True)
        assert [f.times for f in program.fused if f.kernel == "norm_gradients"] == used
        plain = fused_of(fn, kernels="plain", compute="float32")
        assert error(step(stacked, BATCH), plain(stacked, BATCH)) <= 1e-3


def test_with_narrow_residuals() -> None:
    """What is saved for it is its input alone, narrow or not."""
    fn = two_blocks(rms_flax)
    exact = jax.jit(fn)(P, BATCH)
    step = fused_of(fn, residuals="float8_e4m3fn")
    verify(step.program(P, BATCH).graph, deep=True)
    plain = fused_of(fn, residuals="float8_e4m3fn", kernels="plain")
    assert error(step(P, BATCH), exact) <= 1.2 * error(plain(P, BATCH), exact)


def test_derivatives_of_a_model() -> None:
    """A function that is differentiated later has its gradients in a graph of its own."""

    def model(p, x):
        return x + jax.nn.gelu(layer_slow(x, p["gain"], p["bias"]) @ p["up"]) @ p["down"]

    def loss(f):
        return jax.value_and_grad(lambda p, x: jnp.mean(f(p, x) ** 2))

    step = fused_of(model, compute="float32")
    plain = fused_of(model, kernels="plain", compute="float32")
    assert error(loss(step)(P[0], BATCH), loss(plain)(P[0], BATCH)) <= 1e-3


def test_under_vmap() -> None:
    fn = step_of(layer_slow)
    over = jax.vmap(fused_of(fn, compute="float32"), in_axes=(0, None, None, None, None))
    both = over(jnp.stack([X, 3 * X]), *ARGS[1:])
    one = fused_of(fn, compute="float32")(3 * X, *ARGS[1:])
    assert error(jax.tree.map(lambda a: a[1], both), one) < 1e-5


def test_where_arguments_lie_on_a_mesh() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec())
    lying = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), (P, BATCH)
    )
    program = fused_of(two_blocks(layer_slow)).program(*lying)
    assert len(nodes(program.graph, "norm_gradients")) == 3


# --- the model, the report, the contracts ---------------------------------------------------------


def test_the_model_counts_bytes_and_launches() -> None:
    n, parts = 2048 * 4096, 16 * 264 * 4096
    found = gradients_saved((2048, 4096), 4 * n, [2 * n], 0, 2 * n, sums=True)
    assert found == Cost(2 * 4 * n - parts, 1)
    assert gradients_saved((2048, 4096), 4 * n, [], 2 * n, 2 * n, sums=False) == Cost(
        2 * n - parts, 1
    )
    two = gradients_saved((2048, 4096), 4 * n, [2 * n] * 2, 0, 2 * n, sums=True)
    assert two == Cost((2 * 4 - 4) * n - parts, 0)


def test_the_report_says_what_is_computed() -> None:
    report = fused_of(two_blocks(layer_slow)).report(P, BATCH)
    rows = [k for k in report.kernels if k.kernel == "norm_gradients"]
    assert len(rows) == 3
    assert all(k.used and k.bytes > 0 and k.phase == "backward" for k in rows)
    assert "the gradients of LayerNorm: input, weight, bias, with what goes by it" in str(report)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "batch"}, "do not say which norm"),
    "asked": ({"of_bias": 1}, "do not say which norm"),
    "operands": ({"weight": False}, "operands, expected x, gradient, mean, rstd, add"),
    "results": ({"of_bias": False}, "results, expected"),
    "shape": ({"kind": "rms", "weight": True, "add": True}, "operands, expected"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contracts(case: str) -> None:
    params, message = BROKEN[case]
    graph = fused_of(two_blocks(layer_slow)).program(P, BATCH).graph
    node = next(n for n in nodes(graph, "norm_gradients") if n.params["add"])
    broken = node.like(params={**node.params, **params})
    at = graph.nodes.index(node)
    with pytest.raises(VerifyError, match=message):
        verify(graph.with_(nodes=(*graph.nodes[:at], broken), outputs=()))


def test_facts_enclose_what_is_computed() -> None:
    def fn(x, g, b, up, down):
        x, g, up, down = (jnp.clip(a, -4, 4) for a in (x, g, up, down))
        return step_of(layer_slow)(x, g, b, up, down)

    program = fused_of(fn).program(*ARGS)
    (node,) = nodes(program.graph, "norm_gradients")
    facts = [program.facts[v] for v in node.outputs]
    assert len(facts) == 3
    assert not any(isinstance(o, Literal) for o in node.inputs)
    found = fused_of(fn)(*ARGS)[1]
    for fact, array in zip(facts[1:], found[1:3], strict=True):
        assert not fact.finite or float(np.abs(array).max()) <= fact.hi
