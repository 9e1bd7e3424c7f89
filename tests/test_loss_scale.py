"""Recipe 16-mixed: the loss scale grows until a gradient overflows, and that step is skipped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import precir
from precir import Packed, StateError
from precir.errors import RecipeError
from precir.kernels.loss_scale import FIRST_LOSS_SCALE, GROWTH_INTERVAL
from tests.programs import assert_bit_identical

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
MICRO = 4


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.custom_vjp
def gated(x: Any, w: Any) -> Any:
    return jnp.tanh(x) * w


gated.defvjp(
    lambda x, w: (gated(x, w), (jnp.tanh(x), w)),
    lambda kept, g: (g * kept[1] * (1 - kept[0] ** 2), jnp.sum(g * kept[0], axis=0)),
)


def begin() -> dict[str, Any]:
    params = {
        "w": jnp.asarray(0.3 * normal(0, 8, 16)),
        "gate": jnp.ones(16),
        "v": jnp.asarray(0.3 * normal(1, 16, 4)),
    }
    return {
        "params": params,
        "moments": OPTIMIZER.init(params),
        "key": jax.random.key(3),
        "step": jnp.int32(0),
        "mask": jnp.asarray([True, False]),
    }


def loss_of(params: Any, x: Any, y: Any, key: Any) -> Any:
    kept = jax.random.bernoulli(key, 0.9, x.shape)
    h = gated(jnp.where(kept, x, 0) @ params["w"], params["gate"])
    return jnp.mean((h @ params["v"] - y) ** 2)


def updated(state: Any, grads: Any, key: Any) -> Any:
    updates, moments = OPTIMIZER.update(grads, state["moments"], state["params"])
    return {
        "params": optax.apply_updates(state["params"], updates),
        "moments": moments,
        "key": key,
        "step": state["step"] + 1,
        "mask": ~state["mask"],
    }


def plain_step(state: Any, x: Any, y: Any) -> Any:
    key, now = jax.random.split(state["key"])
    loss, grads = jax.value_and_grad(loss_of)(state["params"], x, y, now)
    return updated(state, grads, key), loss


def accumulating_step(state: Any, x: Any, y: Any) -> Any:
    key, now = jax.random.split(state["key"])

    def micro(total: Any, part: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(state["params"], *part, now)
        return jax.tree.map(jnp.add, total, grads), loss

    zeros = jax.tree.map(jnp.zeros_like, state["params"])
    total, losses = jax.lax.scan(micro, zeros, (x, y))
    return updated(state, jax.tree.map(lambda g: g / MICRO, total), key), losses.mean()


STEPS = pytest.mark.parametrize(
    ("step", "leading"),
    [(plain_step, ()), (accumulating_step, (MICRO,))],
    ids=["plain", "accumulated"],
)


def batch_of(seed: int, leading: tuple[int, ...]) -> tuple[Any, Any]:
    x = normal(10 + seed, *leading, 32, 8)
    return x, np.tanh(x[..., :4])


def started(step: Any, leading: Any, **options: Any) -> tuple[Any, Packed]:
    compiled = precir.compile(step, recipe="16-mixed", **options)
    packed, *_ = compiled.init(begin(), *batch_of(0, leading))
    return compiled, packed


def having(packed: Packed, **state: Any) -> Packed:
    """With another loss scale, or another number of good steps."""
    new = {k: jnp.asarray(v, packed.state[k].dtype) for k, v in state.items()}
    return Packed(packed.tree, {**packed.state, **new})


def numbers(packed: Packed) -> tuple[float, int]:
    return float(packed.state["loss_scale"]), int(packed.state["good_steps"])


def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@STEPS
def test_training_is_that_of_float32(step: Any, leading: Any) -> None:
    compiled, packed = started(step, leading)
    assert numbers(packed) == (FIRST_LOSS_SCALE, 0)
    state, skipped = begin(), 0
    losses: list[list[float]] = [[], []]
    for n in range(30):
        batch = batch_of(n, leading)
        before = numbers(packed)
        packed, loss = compiled(packed, *batch)
        skipped += numbers(packed)[0] < before[0]
        state, wide = jax.jit(step)(state, *batch)
        losses[0].append(float(loss))
        losses[1].append(float(wide))
    assert skipped <= 4
    assert losses[0][0] == pytest.approx(losses[1][0], rel=2e-3)  # the loss itself, unscaled
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.1)
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert int(packed.tree["step"]) == 30 - skipped


@STEPS
def test_an_overflow_skips_one_step(step: Any, leading: Any) -> None:
    """A batch whose gradient leaves float16 at this scale and at no smaller one's."""
    compiled, packed = started(step, leading)
    packed = having(packed, loss_scale=2.0**15)
    for n in range(3):
        packed, _ = compiled(packed, *batch_of(n, leading))
    assert numbers(packed) == (2.0**15, 3)
    kept = copied(packed)
    x, y = batch_of(3, leading)
    after, loss = compiled(packed, x, y * 200)
    assert np.isfinite(loss)
    assert numbers(after) == (2.0**14, 0)
    assert_bit_identical(after.tree, kept.tree)  # parameters, moments, counts, key, masks
    good, loss = compiled(after, x, y)
    never, same = compiled(having(kept, loss_scale=2.0**14, good_steps=0), x, y)
    assert_bit_identical((good, loss), (never, same))
    assert numbers(good) == (2.0**14, 1)
    changed = [np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(
        jax.tree.leaves(good.tree["params"]), jax.tree.leaves(kept.tree["params"]), strict=True
    )]  # fmt: skip
    assert all(changed)
    assert int(good.tree["step"]) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@STEPS
def test_not_a_number_in_the_batch(step: Any, leading: Any, bad: float) -> None:
    compiled, packed = started(step, leading)
    kept = copied(packed)
    x, y = batch_of(0, leading)
    y[..., 3, 1] = bad
    after, loss = compiled(packed, x, y)
    assert not np.isfinite(loss)
    assert_bit_identical(after.tree, kept.tree)
    assert numbers(after) == (FIRST_LOSS_SCALE / 2, 0)


@STEPS
def test_too_large_a_scale_comes_down(step: Any, leading: Any) -> None:
    compiled, packed = started(step, leading)
    packed = having(packed, loss_scale=2.0**24)
    scales = [2.0**24]
    for n in range(30):
        packed, loss = compiled(packed, *batch_of(n, leading))
        assert np.isfinite(loss)
        scales.append(numbers(packed)[0])
    ratios = [b / a for a, b in itertools.pairwise(scales)]
    assert set(ratios) == {0.5, 1.0}
    assert scales[-1] == scales[-8]
    assert int(packed.tree["step"]) == ratios.count(1.0)


def test_growth() -> None:
    compiled, packed = started(plain_step, ())
    packed = having(packed, loss_scale=2.0**8, good_steps=GROWTH_INTERVAL - 2)
    assert GROWTH_INTERVAL == 2000
    seen = []
    for n in range(3):
        packed, _ = compiled(packed, *batch_of(n, ()))
        seen.append(numbers(packed))
    assert seen == [(2.0**8, 1999), (2.0**9, 0), (2.0**9, 1)]
    top, _ = compiled(having(packed, loss_scale=2.0**-24, good_steps=1999), *batch_of(0, ()))
    assert numbers(top) == (2.0**-23, 0)
    x, y = batch_of(0, ())
    low, _ = compiled(having(packed, loss_scale=2.0**-24), x, y * np.inf)
    assert numbers(low) == (2.0**-24, 0)


@STEPS
def test_the_scale_saves_what_underflows(step: Any, leading: Any) -> None:
    """Gradients of 2^-30 and less, all zero in float16 without a scale."""

    def tiny(params: Any, x: Any, y: Any) -> Any:
        h = jnp.tanh(x @ params["w"]) @ params["v"]
        return jnp.mean((h - y) ** 2) * 2.0**-26

    def gradients(state: Any, x: Any, y: Any) -> Any:
        loss, g = jax.value_and_grad(tiny)(state, x, y)
        return jax.tree.map(lambda p, g: p - g * 2.0**26, state, g), loss

    params = {"w": 0.3 * normal(0, 8, 16), "v": 0.3 * normal(1, 16, 4)}
    x, y = batch_of(0, ())
    want, _ = jax.jit(gradients)(params, x, y)
    compiled = precir.compile(gradients, recipe="16-mixed")
    packed, *_ = compiled.init(params, x, y)
    after, loss = compiled(having(packed, loss_scale=2.0**20), x, y)
    for name, p in params.items():
        moved = np.asarray(want[name]) - p
        error = np.abs(np.asarray(after.tree[name]) - np.asarray(want[name]))
        assert error.max() < 0.01 * np.abs(moved).max(), name
    assert float(loss) < 2.0**-20


def test_donation_and_jit() -> None:
    compiled, packed = started(plain_step, (), donate_argnums=0)
    _, other = started(plain_step, ())
    plain = precir.compile(plain_step, recipe="16-mixed")

    @jax.jit
    def around(packed: Any, x: Any, y: Any) -> Any:
        return plain(packed, x, y)

    for n in range(4):
        batch = batch_of(n, ())
        given = packed
        packed, loss = compiled(packed, *batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.tree["params"]))
        other, same = around(other, *batch)
        assert_bit_identical((packed, loss), (other, same))
    x, y = batch_of(9, ())
    kept = copied(packed)
    packed, _ = compiled(packed, x, y * np.inf)  # skipped, with its buffers given away
    assert_bit_identical(packed.tree, kept.tree)


def test_on_a_mesh() -> None:
    """There JAX places the constant one that gradients begin with, too."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    compiled, packed = started(plain_step, ())
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put((packed, *batch_of(0, ())), whole)
    (after, loss), (same, right) = compiled(*placed), compiled(packed, *batch_of(0, ()))
    np.testing.assert_allclose(loss, right, rtol=1e-6)
    assert numbers(after) == numbers(same) == (FIRST_LOSS_SCALE, 1)
    for a, b in zip(jax.tree.leaves(after.tree), jax.tree.leaves(same.tree), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    compiled, packed = started(plain_step, ())
    for n in range(3):
        packed, _ = compiled(packed, *batch_of(n, ()))
    tree = Packed({**packed.tree, "key": jax.random.key_data(packed.tree["key"])}, packed.state)
    with ocp.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "kept", tree)
        keeper.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        back = keeper.restore(tmp_path / "kept", shapes)
    key = jax.random.wrap_key_data(back.tree["key"])
    back = Packed({**back.tree, "key": key}, back.state)
    assert_bit_identical(back, packed)
    again, _ = started(plain_step, ())
    batch = batch_of(3, ())
    assert_bit_identical(again(back, *batch), compiled(packed, *batch))


def test_what_has_no_loss() -> None:
    params = begin()["params"]
    model = precir.compile(lambda p, x: x @ p["w"], recipe="16-mixed")
    with pytest.raises(RecipeError, match="computes no gradient"):
        model(params, batch_of(0, ())[0])

    def decayed(p: Any) -> Any:
        return jax.tree.map(lambda w: w * 0.9, p)

    with pytest.raises(RecipeError, match="no loss to scale"):
        precir.compile(decayed, recipe="16-mixed").init(params)


def test_no_state_comes_back() -> None:
    def gradient(params: Any, x: Any, y: Any) -> Any:
        return jax.grad(lambda p: jnp.mean((x @ p["w"] - y) ** 2))(params)["w"][0] * 2

    step = precir.compile(gradient, recipe="16-mixed")
    with pytest.raises((RecipeError, StateError)):
        step(begin()["params"], normal(0, 4, 8), normal(1, 4, 16))


def test_a_step_without_its_state_says_so() -> None:
    compiled, _ = started(plain_step, ())
    with pytest.raises(StateError, match="loss_scale"):
        compiled(begin(), *batch_of(0, ()))
