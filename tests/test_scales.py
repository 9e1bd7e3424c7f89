"""What the scales pass makes of programs: how often it measures, what it keeps, what it folds."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import numpy as jnp

import precir
from precir.emit import Signature, emit, load
from precir.ops.scales.scaled import ONE, Scale
from precir.passes.simplify import drop_dead
from precir.scaled import ScaledArray

SCALES = st.builds(
    lambda exponent, powers: math.prod(
        (Scale(0, ((base, 1),)) ** p for base, p in powers.items()), start=Scale(exponent)
    ),
    st.integers(-9, 9),
    st.dictionaries(st.integers(1, 4), st.integers(-3, 3), max_size=3),
)


def number(scale: Scale) -> float:
    """A scale where base n is 2^(10^n)-like: far from any other."""
    return scale.exponent + sum(p * 1000.0**b for b, p in scale.powers)


@given(SCALES, SCALES, st.integers(-3, 3))
def test_scales_multiply_as_numbers_do(a: Scale, b: Scale, n: int) -> None:
    assert number(a * b) == number(a) + number(b)
    assert number(a / b) == number(a) - number(b)
    assert number(a**n) == n * number(a)
    assert a * b == b * a
    assert a / a == ONE
    assert all(p for _, p in (a * b).powers)


def transformer(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Three residual blocks of a normalisation and two products, with a head."""
    for i in range(3):
        with jax.named_scope(f"h_{i}"):
            y = x - x.mean(-1, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)
            x = x + jax.nn.gelu(y @ params[f"up_{i}"]) @ params[f"down_{i}"]
    return x @ params["head"]


def make_step(shift: float = 1.0):  # type: ignore[no-untyped-def]
    def loss(params, x, y):  # type: ignore[no-untyped-def]
        logits = transformer(params, x)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * y, -1)) * shift

    def step(params, x, y):  # type: ignore[no-untyped-def]
        value, grads = jax.value_and_grad(loss)(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.1 / shift * g, params, grads), value / shift

    return step


def arguments() -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    params = {"head": drawn(32, 10)}
    for i in range(3):
        params |= {f"up_{i}": drawn(32, 64), f"down_{i}": drawn(64, 32)}
    x = jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)
    return params, x, jax.nn.one_hot(jnp.arange(16) % 10, 10)


@pytest.mark.parametrize("recipe", ["scaled-16", "scaled-fp8"])
def test_two_scales_a_layer_are_measured_at_most(recipe: str) -> None:
    step = precir.compile(make_step(), recipe=recipe)
    report = step.report(*arguments())
    rows = {r.layer: r for r in report.rescales}
    layers = [rows[f"h_{i}"] for i in range(3)]
    assert [r.measured for r in layers] == [1, 1, 1]  # of one branch each
    assert sum(r.measured for r in report.rescales) <= 4  # and where the gradient begins
    assert all(r.free for r in layers)
    assert "Changes of scale, by layer" in str(report)


@pytest.mark.parametrize("recipe", ["scaled-32", "scaled-bf16"])
def test_formats_with_room_measure_and_balance_nothing(recipe: str) -> None:
    """They hold what is far from one as well."""
    compiled = precir.compile(make_step(), recipe=precir.recipe(recipe).replace(state=None))
    graph = compiled.program(*arguments()).graph
    ops = [n.op for n in graph.walk()]
    for op in ("rms_scale", "scale_max", "scale_product", "amax_scale"):
        assert op not in ops


def test_zeros_have_no_say_in_the_scale_of_a_sum() -> None:
    """A weight of zeros, as low-rank adapters begin with, costs what it is added to nothing."""

    def f(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return x @ w + (x @ a) @ b

    rng = np.random.default_rng(1)
    x, w, a = (
        jnp.asarray(rng.normal(size=s) * 1e-3, jnp.float32) for s in [(8, 16), (16, 16), (16, 4)]
    )
    w, a, b = (precir.scale(v, "float16") for v in (w, a, jnp.zeros((4, 16))))
    got = precir.compile(f, recipe="scaled-16")(x, w, a, b)
    expected = x @ w.unscale()
    assert np.max(np.abs(got - expected)) <= 4e-3 * np.max(np.abs(expected))


def test_what_is_stored_is_updated_as_it_was_stored() -> None:
    """Not as the model reads it, where small elements have lost digits."""

    def step(w: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, g = jax.value_and_grad(lambda w: jnp.sum((x @ w["w"]) ** 2))(w)
        return jax.tree.map(lambda w, g: w - 0.0 * g, w, g), loss

    data = jnp.asarray([[2.0**15, 1.5 * 2.0**-10]] * 4, jnp.float16)
    compiled = precir.compile(step, recipe="scaled-16")
    after, _ = compiled({"w": ScaledArray(data, jnp.float32(2.0**-12))}, jnp.ones((2, 4)))
    np.testing.assert_array_equal(after["w"].unscale(), data.astype(jnp.float32) * 2.0**-12)


def test_statistics_bring_data_near_one() -> None:
    """Most 16-bit tensors of the first step have a typical magnitude within 2^-2 to 2^2."""
    step, args = make_step(), arguments()
    seen = precir.observe(step, [args], detail="moments")
    with_stats = precir.compile(step, recipe="scaled-16", stats=seen)
    assert share_near_one(with_stats, args) >= 0.9
    assert share_near_one(precir.compile(step, recipe="scaled-16"), args) >= 0.6


def share_near_one(step: precir.Compiled, args: tuple) -> float:  # type: ignore[type-arg]
    program = step.with_recipe(step.recipe.replace(state=None)).program(*args)
    wanted = [
        v for n in program.graph for v in n.outputs
        if v.type.dtype == "float16" and math.prod(v.type.shape) >= 64
    ]  # fmt: skip
    graph = drop_dead(program.graph.with_(outputs=tuple(wanted)))
    result = jax.tree.structure([0] * len(wanted))
    signature = Signature("main", program.signature.parameters, result)
    made = load(emit(graph, signature)).main(*args)
    sizes = [np.log2(np.sqrt(np.mean(np.square(np.asarray(v, np.float64))))) for v in made]
    return float(np.mean([abs(s) <= 2 for s in sizes]))


def test_devices_agree_on_the_scale_of_what_they_are_given() -> None:
    """Each holds numbers of another size, and their sum needs one scale."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    spec = jax.sharding.PartitionSpec("d")

    @jax.shard_map(mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())
    def total(x: jax.Array) -> jax.Array:
        return jax.lax.psum(jnp.sum(x * x, axis=0, keepdims=True), "d")

    x = jnp.asarray([1.0, 8.0, 64.0, 512.0])[:, None] * jnp.linspace(1.0, 2.0, 6)
    got = precir.compile(total, recipe="scaled-16")(x)
    np.testing.assert_allclose(got, total(x), rtol=4e-3)


def test_losses_see_all_digits_of_their_targets() -> None:
    """An argument is rounded where it is read in fewer bits, not before."""
    y = jnp.asarray([1.0001, 0.9999, 1.00005, 0.5])
    step = precir.compile(jax.value_and_grad(lambda y: jnp.sum(jnp.exp(y))), recipe="scaled-16")
    np.testing.assert_allclose(step(y)[0], np.sum(np.exp(np.asarray(y, np.float64))), rtol=1e-6)


def test_powers_of_a_guess_are_measured() -> None:
    """Every product is off by the same factor: five squarings make it the 32nd power of it."""

    def squared(x: jax.Array) -> jax.Array:
        for _ in range(5):
            x = x @ x / 4
        return x

    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (4, 4)), jnp.float32)
    compiled = precir.compile(squared, recipe="scaled-16")
    np.testing.assert_allclose(compiled(x), squared(x), rtol=0.05)
    assert 1 <= sum(r.measured for r in compiled.report(x).rescales) <= 3


def test_what_is_divided_by_its_own_size_is_known() -> None:
    """Normalised, a sum over many layers needs no measuring before its next product."""

    def stack(x: jax.Array, w: jax.Array) -> jax.Array:
        for _ in range(20):
            x = x + jnp.tanh(x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) @ w) @ w
        return x

    report = precir.compile(stack, recipe="scaled-16").report(jnp.ones((8, 16)), jnp.eye(16))
    assert sum(r.measured for r in report.rescales) == 0
