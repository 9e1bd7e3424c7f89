"""The pass that computes and quantises in one kernel: what it writes, and when."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import precir
from precir.errors import VerifyError
from precir.ops.fused import FUSED
from precir.passes.fused_cost import Cost, Work
from precir.passes.turned_products import turn_products
from precir.report import Report
from precir.text import parse, print_graph
from precir.verify import verify
from tests.cases.fused import (
    BIAS,
    COLUMNS,
    GAIN,
    OUT,
    W,
    X,
    arrays,
    fused_of,
    graph_of,
    nodes,
)  # fmt: skip
from tests.cases.norms import layer_slow, rms_plain

# --- what is written ------------------------------------------------------------------------------


def mlp(p: Any, x: jax.Array) -> jax.Array:
    h = layer_slow(x, p["gain"], p["bias"])
    h = jax.nn.gelu(h @ p["up"])
    return x + h @ p["down"]


def swiglu(p: Any, x: jax.Array) -> jax.Array:
    h = rms_plain(x, p["gain"], None)
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def weights(block: str = "mlp") -> dict[str, jax.Array]:
    up, gate, down = arrays((COLUMNS, OUT), (COLUMNS, OUT), (OUT, COLUMNS))
    own = {"bias": BIAS} if block == "mlp" else {"gate": gate / 16}
    return {"gain": GAIN / 2, "up": up / 16, "down": down / 16, **own}


BLOCKS = {"mlp": mlp, "swiglu": swiglu}
RECIPES = ("fp8", "fp8-block", "fp8-row", "mxfp8", "fp8-delayed")


def step_of(block: Callable[..., jax.Array]) -> Callable[..., Any]:
    def step(p, x):
        return jax.value_and_grad(lambda p, x: jnp.mean(block(p, x) ** 2), argnums=(0, 1))(p, x)

    return step


def error(found: Any, exact: Any) -> float:
    """The largest over the leaves of |found - exact| / |exact|, by the root of the squares."""
    return max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    )


def run_both(block: str, recipe: str, **more: Any) -> tuple[Any, Any, Any]:
    """The results in float32, and with plain and fused kernels."""
    fn, p = step_of(BLOCKS[block]), weights(block)

    def step(p, x):  # delayed scales are carried with something
        return p, *fn(p, x)

    exact = jax.jit(fn)(p, X)
    results = []
    for kernels in ("plain", "fused"):
        made = precir.recipe(recipe, kernels=kernels, last_product=None, **more)
        compiled = precir.compile(step, recipe=made)
        args = compiled.init(p, X)
        graph = compiled.program(*args).graph
        verify(graph, deep=True)
        assert parse(print_graph(graph)) == graph
        assert bool({n.op for n in graph.walk()} & set(FUSED)) == (kernels == "fused")
        results.append(compiled(*args)[1:])
    return exact, *results


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_numbers_are_those_of_the_plain_program(block: str, recipe: str) -> None:
    """Where activations are float32, only float32's own rounding tells the two apart."""
    _, plain, fused = run_both(block, recipe, compute="float32")
    assert error(fused, plain) <= 1e-3  # one code in very many is another


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_numbers_are_no_further_from_float32(block: str, recipe: str) -> None:
    """Where activations are bfloat16 the kernels round less often."""
    exact, plain, fused = run_both(block, recipe)
    apart = error(plain, exact)
    assert apart < 0.15
    assert error(fused, exact) <= 1.1 * apart + 1e-3
    assert error(fused, plain) <= 0.5 * apart


@pytest.mark.parametrize("recipe", ["fp8-block", "fp8"])
def test_no_plain_norm_or_activation_is_left(recipe: str) -> None:
    p = weights()
    step = fused_of(step_of(mlp), p, X, recipe=recipe)
    program = step.program(p, X)
    ops = {n.op for n in program.graph.walk()}
    assert {"norm_quantize", "act_quantize", "act_gradients", "quantize_both"} <= ops
    assert not {"tanh", "erf", "logistic"} & ops
    source = program.emitted.text
    assert "norm_quantize(" in source
    assert 'activation="gelu_tanh"' in source
    assert "act_gradients(" in source


@pytest.mark.parametrize("recipe", ["fp8-block", "fp8"])
def test_what_is_gated_has_a_gradient_for_each(recipe: str) -> None:
    """That of the second factor is an activation, gated by the gradient."""
    p = weights("swiglu")
    program = fused_of(step_of(swiglu), p, X, recipe=recipe).program(p, X)
    every = nodes(program.graph, "act_gradients")
    assert [(n.params["gated"], len(n.inputs)) for n in every if n.params["block"]] == (
        [(True, 3)] * (recipe == "fp8-block")
    )
    assert all(n.params["gated"] for n in every)
    assert len(every) == (1 if recipe == "fp8-block" else 2)
    backward = [n for n in nodes(program.graph, "act_quantize") if n.phase == "backward"]
    assert len(backward) == len(every)
    assert "logistic" not in {n.op for n in program.graph.walk()}
    assert "of_up=False" in program.emitted.text


def test_a_norm_hands_its_rows_to_its_gradient() -> None:
    p = weights()
    graph = fused_of(step_of(mlp), p, X).program(p, X).graph
    (norm,) = nodes(graph, "norm_quantize")
    mean, rstd = norm.outputs[-2:]
    assert graph.users[mean]
    assert graph.users[rstd]
    assert not nodes(graph, "rsqrt")


def test_what_else_reads_the_value_gets_a_wide_copy() -> None:
    def fn(x, g, b, w):
        h = layer_slow(x, g, b)
        return h @ w, jnp.cos(h)

    args = X, GAIN, BIAS, W
    step = fused_of(fn, *args)
    (norm,) = nodes(step.program(*args).graph, "norm_quantize")
    assert norm.params["plain"] == "float32"
    np.testing.assert_allclose(step(*args)[1], jax.jit(fn)(*args)[1], atol=2e-6)


def test_scales_stay_those_of_the_recipe() -> None:
    """Of a current scale the kernel takes a look first; of blocks it needs none."""
    for recipe, looks in (("fp8", 1), ("fp8-block", 0), ("fp8-row", 0), ("fp8-delayed", 1)):
        step = fused_of(lambda x, w: (jax.nn.silu(x) @ w, x), X, W, recipe=recipe)
        graph = step.program(*step.init(X, W)).graph
        made = nodes(graph, "act_quantize")
        assert [n.params["dtype"] for n in made].count("") == looks
        (writes,) = [n for n in made if n.params["dtype"]]
        assert writes.params["given"] == bool(looks)


def test_static_scales_are_numbers() -> None:
    def fn(x, w):
        return jax.nn.silu(x) @ w

    made = precir.recipe("fp8-static", last_product=None)
    step = precir.compile(fn, recipe=made, stats=precir.observe(fn, [(X, W)]))
    assert "scale=2.0**-" in step.program(X, W).emitted.text.split("act_quantize(")[1][:120]
    np.testing.assert_allclose(step(X, W), fn(X, W), atol=0.06 * float(jnp.max(jnp.abs(fn(X, W)))))


def test_overrides_and_other_recipes_are_left_alone() -> None:
    for recipe in ("float32", "bf16-mixed", "scaled-fp8"):
        program = precir.compile(step_of(mlp), recipe=recipe).program(weights(), X)
        assert not program.fused
        before = program.stages[-2].graph
        assert program.graph == (turn_products(before) if recipe == "scaled-fp8" else before)


def test_within_scan_and_remat() -> None:
    def layers(p, x):
        def layer(x, p):
            return jax.checkpoint(mlp)(p, x), None

        return jnp.mean(jax.lax.scan(layer, x, p)[0] ** 2)

    p = jax.tree.map(lambda w: jnp.stack([w, w]), weights())
    step = fused_of(jax.value_and_grad(layers), p, X)
    program = step.program(p, X)
    verify(program.graph, deep=True)
    assert {f.times for f in program.fused} == {2}
    loss, grads = step(p, X)
    exact, its = jax.jit(jax.value_and_grad(layers))(p, X)
    np.testing.assert_allclose(loss, exact, rtol=2e-2)
    assert error(grads, its) < 0.2


def test_where_arguments_lie_on_a_mesh() -> None:
    """There JAX wraps the constants of derivatives."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec())
    args = jax.eval_shape(lambda: (weights(), X))
    lying = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), args)
    found = [
        [(f.kernel, f.used) for f in fused_of(step_of(mlp), *a).program(*a).fused]
        for a in (args, lying)
    ]
    assert found[0] == found[1]


def test_under_vmap() -> None:
    def fn(x, g, b, w):
        return jax.nn.gelu(layer_slow(x, g, b)) @ w, layer_slow(x, g, b) @ w

    args = jnp.stack([X, 3 * X]), GAIN, BIAS, W
    step = fused_of(fn, X, GAIN, BIAS, W)
    over = jax.vmap(step, in_axes=(0, None, None, None))(*args)
    for i in range(2):
        one = step(args[0][i], GAIN, BIAS, W)
        np.testing.assert_allclose(one[1], over[1][i], rtol=1e-5, atol=1e-5)


# --- products the other way round, 16 bits, the model ---------------------------------------------


def test_products_read_transposed_are_turned() -> None:
    def loss(w, x):
        return jnp.sum(jnp.sin(x @ w))

    graph = graph_of(jax.grad(loss), W, X)
    assert nodes(graph, "transpose")
    turned = turn_products(graph)
    verify(turned, deep=True)
    assert not nodes(turned, "transpose")
    assert turned.outputs[0].type == graph.outputs[0].type
    assert turn_products(turned) is turned


def test_what_is_only_quantised_is_stored_in_16_bits() -> None:
    def fn(x, w):
        return jax.nn.softmax(x, -1) @ w

    program = fused_of(fn, X, W).program(X, W)
    (cast,) = [f for f in program.fused if f.kernel == "cast"]
    assert cast.saved.bytes == 2 * X.size * 2
    (quantize,) = [n for n in nodes(program.graph, "quantize") if n.inputs[0].type.shape == X.shape]
    assert quantize.inputs[0].type.dtype == "bfloat16"
    weight = next(n for n in program.graph.walk() if program.graph.inputs[1] in n.inputs)
    assert weight.op in ("quantize", "quantize_both")  # its digits are kept


def test_what_is_stored_between_steps_keeps_its_digits_on_the_way() -> None:
    def step(p, x):
        loss, g = jax.value_and_grad(lambda p: jnp.mean(mlp(p, x) ** 2))(p)
        return jax.tree.map(lambda p, g: p - 1e-2 * g, p, g), loss

    compiled = precir.compile(step, recipe="fp8-lm-o2")
    graph = compiled.program(*compiled.init(weights(), X)).graph
    stored = [n for n in nodes(graph, "quantize") if n.params.get("fused")]
    assert len(stored) >= 2
    assert {n.inputs[0].type.dtype for n in stored} == {"float32"}


WORK = Work(
    elements=1 << 24, width=4, read=2 << 24, made=0, measured=False, lying=True, apart=0,
    copied=False, turned=False, others=False,
)  # fmt: skip


def test_the_model_counts_bytes_and_launches() -> None:
    n = WORK.elements
    assert WORK.separate == Cost((2 + 4 + 4 + 1) * n, 2)
    assert WORK.together == Cost((2 + 1) * n, 1)
    standing = replace(WORK, apart=1, turned=True)
    assert standing.separate == Cost((2 + 4 + 4 + 1 + 4 + 1 + 2) * n, 4)
    assert standing.together == Cost((2 + 2) * n, 1)
    others = replace(WORK, others=True)
    assert (others.saved, others.together.bytes) == (Cost(4 * n, 1), (2 + 1 + 4) * n)
    assert replace(WORK, measured=True).saved == Cost((4 + 4 + 4 - 2) * n, 1)
    assert replace(WORK, made=8 * n).saved == Cost(0, 1)
    assert Cost(3 * 10**12, 0).seconds == pytest.approx(1.0)


def test_what_does_not_pay_is_not_used(monkeypatch) -> None:
    monkeypatch.setattr(Cost, "seconds", property(lambda _: -1.0))
    program = fused_of(step_of(mlp), weights(), X).program(weights(), X)
    assert program.fused
    assert not any(f.used for f in program.fused if f.kernel != "cast")
    assert not {n.op for n in program.graph.walk()} & set(FUSED)
    assert "(no norm_quantize)" in str(Report.of(program))


# --- what is said of it ---------------------------------------------------------------------------


def test_the_report_says_what_is_fused_and_why() -> None:
    p = weights()
    report = fused_of(step_of(mlp), p, X).report(p, X)
    used = {k.kernel: k for k in report.kernels if k.used}
    assert {"norm_quantize", "act_quantize", "act_gradients", "quantize_both"} <= used.keys()
    assert used["norm_quantize"].bytes > 0
    assert "LayerNorm" in used["norm_quantize"].reason
    assert Report.from_json(report.to_json()) == report
    text = str(report)
    assert "Computed and quantised in one kernel" in text
    assert "the gradient of gelu_tanh" in text


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "kind": ("norm_quantize", {"kind": "batch"}, "parameter kind is 'batch'"),
    "activation": ("act_quantize", {"activation": "tanh"}, "parameter activation"),
    "operands": ("norm_quantize", {"bias": False}, "operands, expected x, weight"),
    "block": ("act_quantize", {"block": (1, 1, 128)}, "the block is"),
    "no scale": ("act_quantize", {"block": ()}, "a scale is given"),
    "results": ("act_quantize", {"amax": True}, "results, expected"),
    "format": ("act_gradients", {"dtype": ""}, "nothing is quantised"),
    "shape": ("turned_back", {"shape": (3, 4)}, "expected the transpose of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contracts(case: str) -> None:
    op, params, message = BROKEN[case]
    p = weights()
    graph = fused_of(step_of(mlp), p, X).program(p, X).graph
    node = nodes(graph, op)[0]
    types = [v.type for v in node.outputs]
    broken = node.like(params={**node.params, **params}, types=types)
    at = graph.nodes.index(node)
    cut = graph.with_(nodes=(*graph.nodes[:at], broken), outputs=())
    with pytest.raises(VerifyError, match=message):
        verify(cut)


def test_facts_enclose_what_is_computed() -> None:
    p = weights()
    program = fused_of(step_of(mlp), p, X).program(p, X)
    for node in program.graph.walk():
        if node.op in FUSED:
            assert len([program.facts[v] for v in node.outputs]) == len(node.outputs)
    given = jnp.clip(GAIN, 0.5, 2)

    def bounded(x, g, w):
        return rms_plain(jnp.tanh(x), jnp.clip(g, 0.5, 2), None) @ w

    made = precir.recipe("fp8-block", last_product=None)
    ranges = (precir.Range(-9, 9), precir.Range(-9, 9), None)
    graph_program = precir.compile(bounded, recipe=made, ranges=ranges).program(X, given, W)
    (norm,) = nodes(graph_program.graph, "norm_quantize")
    fact = graph_program.facts[norm.outputs[0]]
    assert fact.finite
    most = 2 * np.sqrt(COLUMNS)
    assert most <= fact.hi <= 1.2 * most
