"""State travels with the arguments: narrow storage, amax histories, checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec

import precir
from precir import Packed, ScaledArray, StateError
from precir.kernels import quantize
from precir.observe import ObserveError
from precir.recipe import Recipe
from tests.programs import assert_bit_identical

KEPT = Recipe("float16-state", state="float16")
BOTH = precir.recipe("fp8-delayed").replace(name="both", state="float16")
OPTIMIZER = optax.adam(1e-2)
LAYERS, WIDTH, MICRO = 3, 16, 4


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mlp_params() -> dict[str, Any]:
    return {"w1": 0.3 * normal(0, 8, WIDTH), "b1": np.zeros(WIDTH, np.float32),
            "w2": 0.3 * normal(1, WIDTH, WIDTH), "w3": 0.3 * normal(2, WIDTH, 4)}  # fmt: skip


def mlp_loss(p: Any, batch: Any) -> jax.Array:
    x, y = batch
    h = jnp.tanh(x @ p["w1"] + p["b1"])
    return jnp.mean((jnp.tanh(h @ p["w2"]) @ p["w3"] - y) ** 2)


def deep_params() -> dict[str, Any]:
    layers = {
        "w": 0.3 * normal(3, LAYERS, WIDTH, WIDTH),
        "b": np.zeros((LAYERS, WIDTH), np.float32),
    }
    return {"in": 0.3 * normal(0, 8, WIDTH), "layers": layers, "out": 0.3 * normal(2, WIDTH, 4)}


def deep_loss(p: Any, batch: Any) -> jax.Array:
    x, y = batch

    @jax.checkpoint
    def layer(h: Any, w: Any) -> Any:
        return h + jnp.tanh(h @ w["w"] + w["b"]), None

    h, _ = jax.lax.scan(layer, x @ p["in"], p["layers"])
    return jnp.mean((h @ p["out"] - y) ** 2)


def scan_loss(p: Any, batch: Any) -> jax.Array:
    """Without remat: the forward loop hands quantised operands to the backward loop."""
    x, y = batch
    h, _ = jax.lax.scan(
        lambda h, w: (jnp.tanh(h @ w["w"] + w["b"]), None), x @ p["in"], p["layers"]
    )
    return jnp.mean((h @ p["out"] - y) ** 2)


def make_step(loss_fn: Any, accumulate: bool = False) -> Any:
    def step(params: Any, opt: Any, batch: Any) -> Any:
        if accumulate:

            def micro(total: Any, part: Any) -> Any:
                loss, grads = jax.value_and_grad(loss_fn)(params, part)
                return jax.tree.map(jnp.add, total, grads), loss

            zeros = jax.tree.map(jnp.zeros_like, params)
            grads, losses = jax.lax.scan(micro, zeros, batch)
            loss = losses.mean()
        else:
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt = OPTIMIZER.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    return step


def batch_of(seed: int, *leading: int) -> tuple[np.ndarray, np.ndarray]:
    x = normal(seed, *leading, 32, 8)
    return x, np.tanh(x[..., :4])


MLP = (make_step(mlp_loss), mlp_params, ())
DEEP = (make_step(deep_loss, accumulate=True), deep_params, (MICRO,))
SCAN = (make_step(scan_loss), deep_params, ())
MODELS = pytest.mark.parametrize("model", [MLP, DEEP], ids=["mlp", "deep"])
RECIPES = pytest.mark.parametrize(
    "recipe", ["fp8-delayed", KEPT, BOTH, "fp8-lm-block"], ids=lambda r: str(getattr(r, "name", r))
)


def start(model: Any, recipe: Any, **options: Any) -> Any:
    fn, params, leading = model
    step = precir.compile(fn, recipe=recipe, **options)
    p = jax.tree.map(jnp.asarray, params())
    return step, p, OPTIMIZER.init(p), leading


def train(step: Any, params: Any, opt: Any, leading: Any, seeds: Any) -> Any:
    losses = []
    for seed in seeds:
        params, opt, loss = step(params, opt, batch_of(seed, *leading))
        losses.append(np.asarray(loss))
    return params, opt, np.asarray(losses)


# -- the round trip --------------------------------------------------------------------------------


@RECIPES
@MODELS
def test_round_trip(model: Any, recipe: Any) -> None:
    step, p, o, leading = start(model, recipe)
    batch = batch_of(0, *leading)
    params, opt, same = step.init(p, o, batch)
    assert same is batch
    for _ in range(2):
        before = jax.tree.structure((params, opt))
        params, opt, loss = step(params, opt, batch)
        assert jax.tree.structure((params, opt)) == before
        assert np.isfinite(loss)
    mine, moments = step.unpack(params, opt)
    assert jax.tree.structure((mine, moments)) == jax.tree.structure((p, o))
    assert_same_kinds((mine, moments), (p, o))
    assert jax.tree.structure(step.unpack(params)) == jax.tree.structure(p)


def assert_same_kinds(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_without_state_nothing_changes() -> None:
    step, p, o, _ = start(MLP, "fp8")
    batch = batch_of(0)
    assert step.init(p, o, batch) == (p, o, batch)
    assert step.unpack(p, o) == (p, o)
    assert precir.compile(lambda w: jax.tree.map(jnp.sin, w)).init(p) is p


def test_what_is_stored() -> None:
    step, p, o, _ = start(MLP, KEPT)
    params, opt, _ = step.init(p, o, batch_of(0))
    assert all(isinstance(w, ScaledArray) and w.dtype == jnp.float16 for w in params.values())
    assert isinstance(opt[0].mu["w1"], ScaledArray)
    assert opt[0].count.dtype == jnp.int32
    assert step.init(params, opt, batch_of(0))[0] is params


def test_bytes_at_rest_are_halved() -> None:
    step, p, o, _ = start(MLP, KEPT)
    params, opt, _ = step.init(p, o, batch_of(0))
    sizes = [sum(x.nbytes for x in jax.tree.leaves(t)) for t in ((params, opt), (p, o))]
    assert sizes[0] < 0.55 * sizes[1]


@RECIPES
@MODELS
def test_saved_module(model: Any, recipe: Any, tmp_path: Path) -> None:
    step, p, o, leading = start(model, recipe)
    params, opt, _ = step.init(p, o, batch_of(0, *leading))
    step.save(tmp_path / "saved.py", params, opt, batch_of(0, *leading))
    text = (tmp_path / "saved.py").read_text()
    assert max(map(len, text.splitlines())) <= 100
    alone: dict[str, Any] = {"__file__": str(tmp_path / "saved.py"), "__name__": "saved"}
    exec(compile(text, "saved.py", "exec"), alone)
    seeds = range(4)
    got = train(alone["step"], params, opt, leading, seeds)
    assert_bit_identical(got, train(step, params, opt, leading, seeds))
    assert step.source(p, o, batch_of(0, *leading)) == text


@RECIPES
def test_donation(recipe: Any) -> None:
    step, p, o, _ = start(MLP, recipe, donate_argnums=(0, 1))
    params, opt, batch = step.init(p, o, batch_of(0))
    kept = jax.tree.map(jnp.copy, (params, opt))
    params, opt, _ = step(params, opt, batch)
    again, _, _ = step(*kept, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves(kept))
    assert_bit_identical(again, params)


@RECIPES
def test_inside_jit_and_scan(recipe: Any) -> None:
    step, p, o, _ = start(MLP, recipe)
    params, opt, batch = step.init(p, o, batch_of(0))

    @jax.jit
    def three(params: Any, opt: Any) -> Any:
        def once(carry: Any, _: Any) -> Any:
            params, opt, loss = step(*carry, batch)
            return (params, opt), loss

        return jax.lax.scan(once, (params, opt), length=3)

    (_, _), losses = three(params, opt)
    expected = train(step, params, opt, (), [0, 0, 0])[2]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_tree_map_and_eval_shape() -> None:
    step, p, o, _ = start(MLP, BOTH)
    params, opt, batch = step.init(p, o, batch_of(0))
    copied = jax.tree.map(lambda x: x + 0, params)
    assert isinstance(copied, Packed)
    assert_bit_identical(step(copied, opt, batch), step(params, opt, batch))
    shapes = jax.eval_shape(step.init, p, o, batch)
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(params)
    names = [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    assert ".tree['w1'].data" in names
    assert ".state['amax_history']" in names


def test_keywords_and_statics() -> None:
    fn = MLP[0]

    def step(rate: float, params: Any, *, opt: Any, batch: Any) -> Any:
        params, opt, loss = fn(params, opt, batch)
        return {"loss": rate * loss, "new": (params, opt)}

    p = jax.tree.map(jnp.asarray, mlp_params())
    compiled = precir.compile(step, recipe=BOTH, static_argnums=0)
    rate, params, opt, batch = compiled.init(2.0, p, opt=OPTIMIZER.init(p), batch=batch_of(0))
    assert rate == 2.0
    out = compiled(rate, params, batch=batch, opt=opt)
    assert isinstance(out["new"][0], Packed)
    assert jax.tree.structure(out["new"]) == jax.tree.structure((params, opt))


# -- which arguments are state ---------------------------------------------------------------------


def test_moments_are_not_taken_for_parameters() -> None:
    """The moments have the parameters' own structure; an average of the weights too."""

    def step(params: Any, average: Any, opt: Any, batch: Any) -> Any:
        params, opt, loss = MLP[0](params, opt, batch)
        average = jax.tree.map(lambda a, w: 0.9 * a + 0.1 * w, average, params)
        return opt, average, loss, params

    p = jax.tree.map(jnp.asarray, mlp_params())
    zeros = jax.tree.map(jnp.zeros_like, p)
    low = precir.compile(step, recipe=KEPT)
    state = low.init(p, zeros, OPTIMIZER.init(p), batch_of(0))
    opt, average, _, params = low(*state)
    high = jax.jit(step)(p, zeros, OPTIMIZER.init(p), batch_of(0))
    got = low.unpack(opt, average, params)
    for x, y in zip(
        jax.tree.leaves(got), jax.tree.leaves([high[i] for i in (0, 1, 3)]), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-5)


def test_data_is_not_state() -> None:
    """An image that comes back as its reconstruction, a rate as a loss."""

    def step(rate: Any, x: Any, w: Any) -> Any:
        loss, g = jax.value_and_grad(lambda w: jnp.mean((jnp.tanh(x @ w) - x) ** 2))(w)
        return loss, jnp.tanh(x @ w), w - rate * g

    low = precir.compile(step, recipe=KEPT)
    rate, x, w = low.init(jnp.float32(0.1), normal(0, 8, 8), normal(1, 8, 8))
    assert not isinstance(rate, ScaledArray)
    assert not isinstance(x, ScaledArray)
    assert isinstance(w, ScaledArray)
    _, back, new = low(rate, x, w)
    assert isinstance(back, jax.Array)
    assert isinstance(new, ScaledArray)


@pytest.mark.parametrize("recipe", ["float32", "bf16-mixed"])
def test_scaled_arrays_by_hand(recipe: str) -> None:
    """Values go in; what comes back is stored as it came."""
    step, p, o, _ = start(MLP, recipe)
    params = {**p, "w1": quantize(p["w1"], jnp.float16), "w2": quantize(p["w2"], "e4m3")}
    new, _, loss = step(params, o, batch_of(0))
    assert new["w1"].dtype == jnp.float16
    assert new["w2"].dtype == jnp.float8_e4m3fn
    assert isinstance(new["b1"], jax.Array)
    plain = jax.tree.map(jnp.asarray, precir.compile(MLP[0]).unpack(params))
    expected, _, other = step(plain, o, batch_of(0))
    np.testing.assert_array_equal(loss, other)
    assert_bit_identical(new["w1"], quantize(expected["w1"], jnp.float16))


def test_packed_stands_for_its_tree() -> None:
    step, p, o, _ = start(MLP, "fp8-delayed")
    params, _, batch = step.init(p, o, batch_of(0))
    assert_bit_identical(precir.compile(mlp_loss)(params, batch), jax.jit(mlp_loss)(p, batch))


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fp8-delayed", BOTH])
def test_not_begun(recipe: Any) -> None:
    step, p, o, _ = start(MLP, recipe)
    with pytest.raises(StateError, match=r"step\.init"):
        step(p, o, batch_of(0))


def test_plain_state_stays_plain() -> None:
    """16 bits between steps are what `init` makes, and not needed."""
    step, p, o, _ = start(MLP, precir.Recipe("stored", state="float16"))
    after = step(p, o, batch_of(0))
    assert_bit_identical(after, jax.jit(MLP[0])(p, o, batch_of(0)))
    params, _, batch = step.init(p, o, batch_of(0))
    half = step(params, o, batch)
    assert all(isinstance(x, ScaledArray) for x in jax.tree.leaves(half[0], is_leaf=_is_scaled))
    assert not any(isinstance(x, ScaledArray) for x in jax.tree.leaves(half[1], is_leaf=_is_scaled))


def _is_scaled(x: Any) -> bool:
    return isinstance(x, ScaledArray)


def test_half_begun() -> None:
    step, p, o, _ = start(MLP, BOTH)
    params, _, batch = step.init(p, o, batch_of(0))
    with pytest.raises(StateError, match="amax_history"):
        step(params.tree, step.init(p, o, batch)[1], batch)


def test_model_function() -> None:
    model = precir.compile(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w1"]) @ p["w2"]) @ p["w3"], recipe="fp8-delayed"
    )
    for use in (
        model,
        model.init,
        model.report,
        lambda p, x: jax.grad(lambda p: model(p, x).sum())(p),
    ):
        with pytest.raises(StateError, match="train step"):
            use(mlp_params(), normal(0, 32, 8))


def test_history_of_another_program() -> None:
    step, p, o, _ = start(MLP, "fp8-delayed")
    params, opt, batch = step.init(p, o, batch_of(0))
    other = precir.compile(MLP[0], recipe=precir.recipe("fp8-delayed").replace(history=4))
    with pytest.raises(StateError, match="another program"):
        other(params, opt, batch)


def test_one_scale_for_a_tensor() -> None:
    with pytest.raises(precir.errors.RecipeError, match="one scale"):
        precir.recipe("fp8-delayed").replace(weight_scales="row")


def test_not_observed() -> None:
    step, p, o, _ = start(MLP, "fp8-delayed")
    with pytest.raises(ObserveError, match="carries state"):
        step.observe([(p, o, batch_of(0))])


def test_no_derivative_of_a_step() -> None:
    step, p, o, _ = start(MLP, "fp8-delayed")
    params, opt, batch = step.init(p, o, batch_of(0))
    with pytest.raises(precir.errors.DerivativeError, match="carries state"):
        jax.grad(lambda x: step(params, opt, (x, batch[1]))[2])(batch[0])


# -- delayed scaling -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MLP, DEEP, SCAN], ids=["mlp", "deep", "scan"])
def test_first_step_is_current_scaling(model: Any) -> None:
    """An empty history falls back to the tensor itself."""
    step, p, o, leading = start(model, "fp8-delayed")
    batch = batch_of(0, *leading)
    params, opt, _ = step.init(p, o, batch)
    assert_bit_identical(
        step.unpack(*step(params, opt, batch)), start(model, "fp8")[0](p, o, batch)
    )


def test_history_is_the_largest_of_all_micro_batches() -> None:
    """Neither the sum, as a gradient would be, nor the last."""
    step, p, o, _ = start(DEEP, "fp8-delayed")
    x, y = batch_of(0, MICRO)
    x[1] *= 7
    params, opt, batch = step.init(p, o, (x, y))
    params, opt, _ = step(params, opt, batch)
    history = np.asarray(params.state["amax_history"])
    assert history.dtype == np.float32
    assert history.shape[1] == 16
    assert (history[:, 0] > 0).all()
    assert (history[:, 1:] == 0).all()
    for known in (np.abs(x).max(), np.abs(p["in"]).max(), np.abs(p["layers"]["w"]).max()):
        assert np.float32(known) in history[:, 0]
    h = np.abs(hidden(p, x)).max()
    assert np.isclose(history[:, 0], h, rtol=0.1).any()
    first = history[:, 0]
    x[1] /= 7
    params, opt, _ = step(params, opt, (x, y))
    history = np.asarray(params.state["amax_history"])
    np.testing.assert_array_equal(history[:, 1], first)
    assert np.abs(x).max() in history[:, 0]


def hidden(p: Any, x: np.ndarray) -> np.ndarray:
    """What enters each of the layers."""
    h, found = x @ p["in"], []
    for w, b in zip(p["layers"]["w"], p["layers"]["b"], strict=True):
        found.append(h)
        h = h + np.tanh(h @ w + b)
    return np.stack(found)


def test_scales_are_of_the_steps_before() -> None:
    """A tensor that grows at once saturates under the scale of its past, and then does not."""
    delayed = precir.recipe("fp8-delayed").replace(history=2)

    def step(w: Any, x: Any, big: Any) -> Any:
        def loss(w: Any) -> Any:
            return jnp.sum((big * x @ w) @ jnp.eye(8))

        out, grads = jax.value_and_grad(loss)(w["w"])
        return {"w": w["w"] - 0 * grads}, out

    compiled = precir.compile(step, recipe=delayed)
    x = np.ones((32, 8), np.float32)
    w, _, _ = compiled.init({"w": jnp.eye(8)}, x, jnp.float32(1))
    w, out = compiled(w, x, jnp.float32(1))
    assert out == 256
    w, out = compiled(w, x, jnp.float32(1000))
    assert out < 448 * 256 / 128  # clipped at 448 times the scale for 1, 2^-8
    for _ in range(2):
        w, out = compiled(w, x, jnp.float32(1000))
        np.testing.assert_allclose(out, 256000, rtol=0.07)
    w, out = compiled(w, x, jnp.float32(1))
    assert np.asarray(w.state["amax_history"])[:, 0].max() < 1000
    assert np.asarray(w.state["amax_history"])[:, 1].max() == 1000


def test_infinity_and_nan_leave_no_trace() -> None:
    step, p, o, _ = start(MLP, "fp8-delayed")
    params, opt, batch = step.init(p, o, batch_of(0))
    x = np.array(batch[0])
    x[0, 0], x[1, 1] = np.inf, np.nan
    params, _, loss = step(params, opt, (x, batch[1]))
    assert np.isnan(loss)
    assert np.isfinite(params.state["amax_history"]).all()
    finite = x[np.isfinite(x)]
    assert np.abs(finite).max() in np.asarray(params.state["amax_history"])[:, 0]


@pytest.mark.parametrize("where", ["cond", "while", "shard_map"])
def test_inside(where: str) -> None:
    """A branch not taken saw nothing; a loop its largest; devices all of theirs."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def model(w: Any, x: Any, flag: Any) -> Any:
        if where == "cond":
            return jax.lax.cond(flag, lambda x: x @ w, lambda x: 2 * x, x)
        if where == "while":
            return jax.lax.fori_loop(0, 3, lambda _, h: 2 * (h @ w), x)
        axis = PartitionSpec("d")
        return jax.shard_map(
            lambda x, w: x @ w, mesh=mesh, in_specs=(axis, PartitionSpec()), out_specs=axis
        )(x, w)

    def step(w: Any, x: Any, flag: Any) -> Any:
        h = model(w["w"], x, flag)
        return {"w": w["w"] + 0.0 * jnp.sum(h)}, jnp.sum((h @ jnp.eye(8)) ** 2)

    compiled = precir.compile(step, recipe="fp8-delayed")
    x = np.linspace(-1, 3, 64 * 8, dtype=np.float32).reshape(64, 8)
    state, _, _ = compiled.init({"w": jnp.eye(8)}, x, True)
    state, _ = compiled(state, x, True)
    history = np.asarray(state.state["amax_history"])
    expected = {"cond": 3, "while": 12, "shard_map": 3}[where]
    assert expected in np.round(history[:, 0], 5)
    state, _ = compiled(state, x / 2, False)
    history = np.asarray(state.state["amax_history"])
    assert {"cond": 0, "while": 6, "shard_map": 1.5}[where] in np.round(history[:, 0], 5)


def test_out_of_reach() -> None:
    """A product in the condition of a loop, or in the loop of a batch, is scaled by itself."""

    def step(w: Any, x: Any) -> Any:
        def loop(h: Any) -> Any:
            return jax.lax.while_loop(lambda h: jnp.sum(h @ w["w"]) < 100.0, lambda h: 2 * h, h)

        h = jax.vmap(loop)(x.reshape(2, 4, 8)).reshape(8, 8) + loop(x)
        return {"w": w["w"] + 0.0 * jnp.sum(h)}, jnp.sum((h @ jnp.eye(8) @ jnp.eye(8)) ** 2)

    compiled = precir.compile(step, recipe="fp8-delayed")
    w, x = {"w": jnp.eye(8)}, np.linspace(0, 3, 64, dtype=np.float32).reshape(8, 8)
    state, _ = compiled.init(w, x)
    expected = precir.compile(step, recipe="fp8")(w, x)
    assert len(state.state["amax_history"]) < 4
    assert_bit_identical(compiled.unpack(*compiled(state, x)), expected)


def test_said_in_words() -> None:
    step, p, o, _ = start(MLP, "fp8-delayed")
    assert "delayed scaling, 16 steps" in str(step.report(p, o, batch_of(0)))
    assert "delayed scaling, 16 steps" in step.source(p, o, batch_of(0))


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 7])
@RECIPES
@MODELS
def test_resumes_bit_for_bit(model: Any, recipe: Any, stop: int, tmp_path: Path) -> None:
    step, p, o, leading = start(model, recipe)
    first = step.init(p, o, batch_of(0, *leading))[:2]
    through = train(step, *first, leading, range(10))
    *half, _ = train(step, *first, leading, range(stop))
    with ocp.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "checkpoint", tuple(half))
    again, p, o, leading = start(model, recipe)
    shapes = jax.eval_shape(again.init, p, o, batch_of(0, *leading))[:2]
    with ocp.StandardCheckpointer() as keeper:
        restored = keeper.restore(tmp_path / "checkpoint", shapes)
    assert jax.tree.structure(restored) == jax.tree.structure(tuple(half))
    resumed = train(again, *restored, leading, range(stop, 10))
    assert_bit_identical(resumed[:2], through[:2])
    assert_bit_identical(resumed[2], through[2][stop:])


# -- training --------------------------------------------------------------------------------------


@MODELS
@RECIPES
def test_trains_as_float32(model: Any, recipe: Any) -> None:
    fn, _, leading = model
    step, p, o, leading = start(model, recipe)
    low = train(step, *step.init(p, o, batch_of(0, *leading))[:2], leading, range(60))[2]
    high = train(jax.jit(fn), p, o, leading, range(60))[2]
    assert high[-5:].mean() < 0.5 * high[0]
    assert abs(low[-5:].mean() - high[-5:].mean()) < 0.05 * high[0]
