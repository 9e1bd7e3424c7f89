"""The other 8-bit recipes: scales by row, by block, MX, and from calibration."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.errors import RecipeError
from precir.formats import power_of_two
from precir.ir import Literal, Node
from precir.ops.fused import FUSED
from precir.passes.grains import Grain, grain
from precir.report.gather import recipe_in_words
from precir.text import externals_of, parse, print_graph
from tests.programs import PROGRAMS, Program, run

FINER = ("fp8-row", "fp8-block", "mxfp8")
finer = pytest.mark.parametrize("recipe", FINER)


def dot_node(left: Any, right: Any, dims: Any) -> Node:
    from precir.ir import Type, Value

    operands = [Value(Type(shape, "float32")) for shape in (left, right)]
    return Node("dot_general", operands, [], {"dimension_numbers": dims})


@pytest.mark.parametrize(
    ("reach", "left", "right"),
    [
        ("tensor", (), ()),
        ("row", (1, 1, 512), (1, 512, 1)),
        ("1x128", (1, 1, 128), (1, 128, 1)),
        ("128x128", (1, 128, 128), (1, 128, 128)),
        ("mx", (1, 1, 32), (1, 32, 1)),
    ],
)
def test_blocks_follow_the_axis_that_is_summed_over(reach: str, left: Any, right: Any) -> None:
    node = dot_node((3, 40, 512), (3, 512, 70), (((2,), (1,)), ((0,), (0,))))
    assert [grain(node, i, reach).block for i in (0, 1)] == [left, right]


def test_blocks_of_several_summed_axes() -> None:
    node = dot_node((4, 300, 8), (4, 300, 16), (((0, 1), (0, 1)), ((), ())))
    assert grain(node, 0, "row").block == (4, 300, 1)
    assert grain(node, 0, "1x128").block == (1, 128, 1)
    assert grain(node, 1, "128x128").block == (1, 128, 128)
    outer = dot_node((4,), (5,), (((), ()), ((), ())))
    assert grain(outer, 0, "1x128") == Grain()


# --- on every program


def arguments(program: Program) -> tuple[Any, dict[str, Any]]:
    if jax.device_count() < program.needs_devices:
        pytest.skip(f"needs {program.needs_devices} devices")
    return (program.init(0), *program.batch(0)), program.keywords(0)


def assert_text_survives(graph: Any) -> None:
    text = print_graph(graph)
    assert parse(text, graph.constants, externals_of(graph)) == graph


EIGHT = ("float8_e4m3fn", "float8_e5m2")
SOME = ("mlp_layers", "linen_gpt", "nested_scans", "layers_scan_remat_model", "experts",
        "silent_outliers", "keywords_and_statics", "bfloat16_compute")  # fmt: skip
chosen = pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.name in SOME], ids=lambda p: p.name
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "recipe"),  # every program under one of them, in turn
    [(p, ("fp8-block", "scaled-fp8")[i % 2]) for i, p in enumerate(PROGRAMS)],
    ids=lambda x: getattr(x, "name", x),
)
def test_compiles_to_text_and_source(program: Program, recipe: str) -> None:
    args, kwargs = arguments(program)
    compiled = precir.compile(program.step, recipe=recipe, **program.options())
    found = compiled.program(*args, **kwargs)
    assert_text_survives(found.graph)
    low = [p for p in found.assignment.products if p.low]
    writes = [n for n in found.graph.walk() if n.op in ("quantize", *FUSED)]
    made = [n for n in writes if n.params["dtype"] in EIGHT]
    assert bool(low) == bool(made)
    losses, _ = run(compiled, program, steps=3)
    assert np.isfinite(losses).all()


@finer
@chosen
def test_finite(program: Program, recipe: str) -> None:
    args, kwargs = arguments(program)
    compiled = precir.compile(program.step, recipe=recipe, **program.options())
    graph = compiled.program(*args, **kwargs).graph
    assert_text_survives(graph)
    found = compiled.program(*args, **kwargs)
    for product in (p for p in found.assignment.products if p.low):
        summed = product.node.params["dimension_numbers"][0][0]
        assert product.operands == ("float8_e4m3fn", "float8_e4m3fn")
        assert all(bool(g.block) == bool(summed) for g in product.grains)
    losses, _ = run(compiled, program, steps=3)
    assert np.isfinite(losses).all()


# precir.observe sees no gradient of a model alone, so static scales are for train steps.
LEARN = [
    pytest.param(name, recipe, marks=pytest.mark.slow if name == "linen_gpt" else ())
    for name in ("mlp_layers", "linen_gpt", "layers_scan_remat_model")
    for recipe in (*FINER, "fp8-static")
    if (name, recipe) != ("layers_scan_remat_model", "fp8-static")
]


@pytest.mark.parametrize(("name", "recipe"), LEARN)
def test_learns_as_float32_does(name: str, recipe: str) -> None:
    (program,) = [p for p in PROGRAMS if p.name == name]
    options = {"stats": observed(program)} if recipe == "fp8-static" else {}
    compiled = precir.compile(program.step, recipe=recipe, **options, **program.options())
    low, _ = run(compiled, program)
    high, _ = run(jax.jit(program.step, **program.options()), program)
    assert np.isfinite(low).all()
    assert abs(np.mean(low[-5:]) - np.mean(high[-5:])) <= 0.05


# --- which operand has which blocks


def loss(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(jnp.einsum("bti,io->bto", x, params["up"]))
    hidden = jax.nn.relu(hidden @ params["down"])
    return jnp.mean((hidden @ params["head"]) ** 2)


def given() -> tuple[Any, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = {"up": (192, 320), "down": (320, 192), "head": (192, 64)}
    params = {
        n: jax.random.normal(k, s) / 14 for (n, s), k in zip(sizes.items(), keys[1:], strict=True)
    }
    return params, jax.random.normal(keys[0], (4, 24, 192))


def test_weights_and_activations_have_their_own_blocks() -> None:
    step = precir.compile(jax.grad(loss), recipe="fp8-block")
    program = step.program(*given())
    shapes = {(192, 320), (320, 192)}
    for product in program.assignment.products:
        for operand, g in zip(product.node.inputs, product.grains, strict=True):
            if product.low and isinstance(operand, precir.ir.Value) and operand.type.rank == 2:
                weight = operand.type.shape in shapes
                assert g.reach == ("128x128" if weight else "1x128")
    writes = [n for n in program.graph.walk() if n.op in ("quantize", *FUSED)]
    made = [n for n in writes if n.params["block"] == (128, 128)]
    assert len(made) == 2  # both weights, each once, forward and backward
    assert "E4M3/1x128 x E4M3/128x128" in str(step.report(*given()))
    text = step.source(*given())
    assert "block=(128, 128)" in text
    assert "block=(1, 1, 128)" in text


def test_what_the_update_reads_is_a_weight() -> None:
    """Of two matrices that a train step is given, the one it updates, wherever it stands."""

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        hidden = lambda w: jax.nn.relu(w @ x)  # noqa: E731
        return w - 0.1 * jax.grad(lambda w: jnp.mean(hidden(w) ** 2))(w)

    low = precir.recipe("fp8-block").replace(last_product=None)
    w, x = jnp.ones((256, 192)), jnp.ones((192, 130))
    found = precir.compile(step, recipe=low).program(w, x)
    first = next(p for p in found.assignment.products if p.low)
    assert [g.reach for g in first.grains] == ["128x128", "1x128"]


def test_an_outlier_does_not_drown_the_rest() -> None:
    """One token a hundred thousand times as large: its own scale keeps it to itself."""
    params, x = given()
    x = x.at[0, 3].multiply(1e5)
    quiet = np.ones((4, 24), bool)
    quiet[0, 3] = False

    def first(params: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("bti,io->bto", x, params["up"])

    exact = np.asarray(first(params, x), np.float64)[quiet]

    def noise(recipe: str) -> float:
        low = precir.recipe(recipe).replace(last_product=None)
        made = np.asarray(precir.compile(first, recipe=low)(params, x), np.float64)[quiet]
        return float(10 * np.log10(np.mean(exact**2) / np.mean((made - exact) ** 2)))

    for recipe in FINER:
        assert noise(recipe) >= 28
        assert noise(recipe) >= noise("fp8") + 10


@finer
def test_recipe_in_words(recipe: str) -> None:
    words = recipe_in_words(precir.recipe(recipe))
    assert {
        "fp8-row": "a scale for each row",
        "fp8-block": "1x128 activations and gradients, 128x128 weights",
        "mxfp8": "a scale for each 32 elements (MX, E8M0)",
    }[recipe] in words


def test_finer_scales_are_current() -> None:
    with pytest.raises(RecipeError, match="one scale for each tensor"):
        precir.recipe("fp8-row").replace(scaling="static")


# --- static


def observed(program: Program, steps: int = 5) -> Any:
    def batches() -> Iterator[tuple[Any, ...]]:
        state = program.init(0)
        for i in range(steps):
            outputs = yield (state, *program.batch(i))
            state = outputs[0]

    return precir.observe(program.step, batches())


def test_static_scales_are_those_of_what_was_seen() -> None:
    params, x = given()
    step = jax.grad(loss)
    stats = precir.observe(step, [(params, x), (params, 3 * x)])
    graph = precir.compile(step, recipe="fp8-static", stats=stats).program(params, x).graph
    made = [n for n in graph.walk() if n.op in ("quantize", *FUSED)]
    assert all(type(n.inputs[-1]) is Literal for n in made)
    scales = {n.inputs[0].hint: n.inputs[1].value for n in made if n.inputs[0].node is None}
    assert scales["x"] == 2 * power_of_two(float(jnp.abs(3 * x).max()), "e4m3")
    up = [v for k, v in scales.items() if "up" in k]
    assert up == [2 * power_of_two(float(jnp.abs(params["up"]).max()), "e4m3")]


def test_static_scales_do_not_follow_the_data() -> None:
    params, x = given()
    stats = precir.observe(loss, [(params, x)])
    low = precir.recipe("fp8-static").replace(last_product=None)
    compiled = precir.compile(loss, recipe=low, stats=stats)
    expected = float(loss(params, x))
    assert abs(float(compiled(params, x)) - expected) <= 0.02 * expected
    assert np.isfinite(float(compiled(params, 1e4 * x)))  # saturates, and stays finite
    assert float(compiled(params, 1e4 * x)) < 1e4 * expected


def test_static_needs_statistics() -> None:
    params, x = given()
    with pytest.raises(
        RecipeError, match=r"fp8-static needs statistics: .*stats=precir.observe"
    ) as error:
        precir.compile(loss, recipe="fp8-static")(params, x)
    assert "test_fp8_recipes.py" in str(error.value)
    partial = precir.observe(loss, [(params, x)])
    with pytest.raises(RecipeError):  # the gradient was not seen
        precir.compile(jax.grad(loss), recipe="fp8-static", stats=partial)(params, x)
