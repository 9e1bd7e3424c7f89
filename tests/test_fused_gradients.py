"""The gradients of norms by one kernel: what is written, and its numbers."""

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
from precir.ir import Literal
from precir.passes.fused_cost import Cost, gradients_saved
from precir.report import Report
from precir.text import parse, print_graph
from precir.verify import verify
from tests.cases.fused import nodes
from tests.cases.norms import (
    ARGS,
    BIAS,
    COLUMNS,
    DOWN,
    GAIN,
    ROWS,
    UP,
    X,
    error,
    fused_of,
    layer_fast,
    layer_slow,
    rms_alone,
    rms_flax,
    rms_plain,
    step_of,
)


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
