"""What the backward pass finds of the forward one in 8 or 16 bits (recipe field `residuals`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.errors import RecipeError
from precir.ir import BACKWARD
from precir.report.units import type_bytes
from precir.verify import verify

E4M3 = precir.recipe("bf16-mixed", residuals="float8_e4m3fn")
WIDTH, LAYERS = 128, 3


def layer(x, w):
    mean = jnp.mean(x, -1, keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(jnp.mean((x - mean) ** 2, -1, keepdims=True) + 1e-5)
    weights = jax.nn.softmax(y @ y.T / 8)
    return x + jax.nn.gelu((weights @ y) @ w["up"]) @ w["down"]


def model(params, x, scanned=True, remat=False):
    one = jax.checkpoint(layer) if remat else layer
    if scanned:
        x, _ = jax.lax.scan(lambda x, w: (one(x, w), None), x, params["layers"])
    else:
        for i in range(LAYERS):
            x = one(x, jax.tree.map(lambda w, i=i: w[i], params["layers"]))
    return x @ params["out"]


def loss(params, x, **how):
    return -jnp.mean(jax.nn.log_softmax(model(params, x, **how))[:, 0])


@pytest.fixture(scope="module")
def arguments():
    up, down, out, x = jax.random.split(jax.random.key(0), 4)
    params = {
        "layers": {
            "up": jax.random.normal(up, (LAYERS, WIDTH, 2 * WIDTH)) / 11,
            "down": jax.random.normal(down, (LAYERS, 2 * WIDTH, WIDTH)) / 16,
        },
        "out": jax.random.normal(out, (WIDTH, 256)) / 11,
    }
    return params, jax.random.normal(x, (32, WIDTH))


def saved(graph):
    """What forward nodes make and backward ones read."""
    readers = ((v, n) for n in graph if n.phase == BACKWARD for v in n.inputs)
    made = {v: n for v, n in readers if getattr(v, "node", None) and v.node.phase == "forward"}
    return [v for v in made if v.node.op != "constant"]


def kept_bytes(graph):
    """Of the activations among them: what has a row for each of 32 examples."""
    return sum(type_bytes(v.type) for v in saved(graph) if v.type.shape[-2:-1] == (32,))


def error(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("how", [
    {}, {"remat": True}, {"scanned": False}, {"scanned": False, "remat": True},
])  # fmt: skip
def test_gradients_are_near_and_the_loss_is_the_same(arguments, how):
    def step(params, x):
        return jax.value_and_grad(loss)(params, x, **how)

    recipe = precir.recipe("float32", residuals="float8_e4m3fn")
    plain, narrow = (precir.compile(step, recipe=r) for r in ("float32", recipe))
    graph = narrow.program(*arguments).graph
    verify(graph)
    (one, wide), (two, rounded) = plain(*arguments), narrow(*arguments)
    assert one == two  # the forward pass has all digits
    assert 1e-4 < error(rounded, wide) < 2.0**-4  # half a unit of E4M3's last place, at 1
    before, after = (kept_bytes(s.program(*arguments).graph) for s in (plain, narrow))
    assert after < 0.6 * before


def test_bfloat16_is_cast(arguments):
    recipe = precir.recipe("float32", residuals="bfloat16")
    plain, narrow = (
        precir.compile(jax.grad(loss), recipe=r)(*arguments) for r in ("float32", recipe)
    )
    assert 1e-5 < error(narrow, plain) < 2.0**-8


def test_scan_stacks_one_narrow_image_of_what_a_gelu_needs(arguments):
    graph = precir.compile(jax.grad(loss), recipe=E4M3).program(*arguments).graph
    forward, backward = (n for n in graph if n.op == "scan")
    kinds = [v.type for v in forward.outputs[1:]]
    wide = [t.shape for t in kinds if t.scale is None]
    assert all(shape[-1] == 1 for shape in wide)  # statistics
    narrow = [t for t in kinds if t.scale is not None]
    assert [t.shape for t in narrow].count((LAYERS, 32, 2 * WIDTH)) == 1  # its input
    assert {t.dtype for t in narrow} == {"float8_e4m3fn"}
    assert narrow[0].block == (1, 128 if narrow[0].shape[-1] >= 128 else narrow[0].shape[-1])
    assert sum(v.type.scale is not None for v in backward.regions[0].inputs) == len(narrow)


def test_products_and_the_rest_share_an_image(arguments):
    """Under fp8 the operand that a product keeps is what others read, too."""
    recipe = precir.recipe("fp8", residuals="float8_e4m3fn")
    graph = precir.compile(jax.grad(loss), recipe=recipe).program(*arguments).graph
    forward = next(n for n in graph if n.op == "scan")
    shared = [v.type for v in forward.outputs if v.type.scale == (LAYERS,)]
    assert len(shared) >= 2  # one scale for each layer: operands of products
    values = [o for o in forward.regions[0].outputs if o.node and o.node.op == "quantize"]
    assert len({v.node.inputs[0] for v in values}) == len(values)  # nothing is kept twice


@jax.custom_vjp
def keeps(x, w):
    return x @ w


def keeps_forward(x, w):
    positions = jnp.floor(x * 1000)
    filled = jnp.where(x > 0, x, -jnp.inf)
    rows = jnp.broadcast_to(jnp.sum(x, -1, keepdims=True), x.shape)
    cuts = jnp.sin(x)
    short = jnp.cos(x.reshape(-1, 1))
    kept = positions.clip(0, 2000), filled, rows, cuts, short, jnp.exp(x)
    return x @ w, (kept, w)


def keeps_backward(residuals, g):
    (positions, filled, rows, cuts, short, fine), w = residuals
    more = jnp.where(cuts > 0.5, short.reshape(cuts.shape), positions)
    dx = (g @ w.T) * fine * rows + jnp.where(filled < 0, more, filled * fine)
    return dx, fine.T @ g


keeps.defvjp(keeps_forward, keeps_backward)


def test_what_must_not_be_rounded_stays(arguments):
    params, x = arguments
    w, out = params["layers"]["up"][0], params["out"]

    def step(x, out):
        return jnp.sum(keeps(x, w[:, :WIDTH]) @ out)

    recipe = E4M3.replace(last_product="float32")
    compiled = precir.compile(jax.value_and_grad(step, argnums=(0, 1)), recipe=recipe)
    graph = compiled.program(x, out).graph
    (narrow,) = [v.node for v in saved(graph) if v.type.scale is not None]
    made = narrow.inputs[0].node
    assert (made.inputs[0].node if made.op == "cast" else made).op == "exp"
    reasons = " ".join(k.reason for k in compiled.report(x, out).kept)
    for why in ("statistic", "whole numbers", "no room", "compares", "too short", "last product"):
        assert why in reasons, (why, reasons)


def test_weights_of_a_train_step_stay_and_state_is_the_same(arguments):
    """What is made of weights alone is no activation."""

    def step(params, x):
        normed = params | {"out": params["out"] / (1 + jnp.abs(params["out"]))}
        grads = jax.grad(loss)(normed, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    program = precir.compile(step, recipe=E4M3).program(*arguments)
    out = [v for v in saved(program.graph) if v.type.shape[-2:] == (WIDTH, 256)]
    assert out
    assert all(v.type.scale is None for v in out)


def test_model_function_saves_narrow_arrays(arguments):
    compiled = precir.compile(model, recipe=E4M3)
    _, pull = jax.vjp(compiled, *arguments)
    dtypes = [x.dtype.name for x in jax.tree.leaves(pull)]
    assert "float8_e4m3fn" in dtypes
    big = [x for x in jax.tree.leaves(pull) if x.size >= 32 * WIDTH and x.dtype.name == "float32"]
    given = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(arguments)}
    assert len(big) <= len(given)  # the arguments themselves
    grads = jax.grad(lambda p, x: jnp.mean(compiled(p, x) ** 2))(*arguments)
    plain = jax.grad(lambda p, x: jnp.mean(model(p, x) ** 2))(*arguments)
    assert error(grads, plain) < 2.0**-4


def test_micro_batches_in_a_scan(arguments):
    def step(params, x):
        def one(total, part):
            grads = jax.grad(loss)(params, part, scanned=False)
            return jax.tree.map(jnp.add, total, grads), None

        return jax.lax.scan(one, jax.tree.map(jnp.zeros_like, params), x.reshape(2, 16, WIDTH))[0]

    narrow = precir.compile(step, recipe=E4M3)
    (scan,) = (n for n in narrow.program(*arguments).graph if n.op == "scan")
    assert any(v.type.scale is not None for v in saved(scan.regions[0]))
    assert error(narrow(*arguments), jax.jit(step)(*arguments)) < 2.0**-4


def test_fields_and_words(arguments):
    with pytest.raises(RecipeError, match="residuals"):
        precir.recipe("fp8", residuals="float16")
    with pytest.raises(RecipeError, match="propagated"):
        precir.recipe("scaled-16", residuals="bfloat16")
    report = precir.compile(jax.grad(loss), recipe=E4M3).report(*arguments)
    assert "residuals in E4M3" in report.numbers


def test_fused_update_reads_narrow_stacks(arguments):
    def step(params, x):
        grads = jax.grad(loss)(params, x, remat=True)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    plain, fused = (
        precir.compile(step, recipe=E4M3.replace(update=u))(*arguments) for u in ("plain", "fused")
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(fused), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_emitted_text(tmp_path):
    """What a reader sees: rounded where it is made, read through a barrier."""

    def model(w, x):
        return jnp.sum(jnp.tanh(x @ w) @ w)

    step = precir.compile(jax.value_and_grad(model), recipe=E4M3)
    step.save(tmp_path / "step.py", jnp.ones((WIDTH, WIDTH)), jnp.ones((32, WIDTH)))
    lines = [line.split("#")[0].strip() for line in (tmp_path / "step.py").read_text().split("\n")]
    kept = [x for x in lines if "quantize(" in x or "optimization_barrier" in x or "unscale" in x]
    assert any("E4M3, block=(1, 128))" in x for x in kept)
    assert any("lax.optimization_barrier((" in x for x in kept)
    assert any(".unscale()" in x for x in kept)
