"""Weights, first and second moments, each in a format of its own between steps (FP8-LM)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precir
from precir import ScaledArray
from precir.errors import RecipeError
from precir.passes.classes import classify_state
from precir.recipe import Recipe, Store
from precir.report import Report
from precir.state import find_state
from tests.test_state import batch_of, deep_loss, deep_params, mlp_loss, mlp_params, scan_loss

LEARNT = {"mu": "first moment", "trace": "first moment", "nu": "second moment",
          "sum_of_squares": "second moment"}  # fmt: skip
CLIPPED = optax.chain(
    optax.clip_by_global_norm(1.0), optax.clip(0.1), optax.add_decayed_weights(0.1),
    optax.scale_by_adam(), optax.scale_by_schedule(optax.cosine_decay_schedule(0.1, 9)),
)  # fmt: skip
OPTIMIZERS = {
    **{n: getattr(optax, n)(1e-2) for n in ("adam", "adamw", "lion", "nadam", "radam")},
    **{n: getattr(optax, n)(1e-2) for n in ("rmsprop", "adagrad", "lamb", "adabelief", "amsgrad")},
    "momentum": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "clipped": CLIPPED,
    "mixed": optax.apply_if_finite(optax.adamw(1e-2), 5),
}


def make_step(loss_fn: Any, optimizer: Any) -> Any:
    def step(params: Any, opt: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    return step


def classes(step: Any, *args: Any) -> dict[str, str]:
    program = precir.compile(step).program(*args)
    graph, labels = program.stages[0].graph, program.signature.labels()
    pairs = [(c.first + i, c.back + i) for c in find_state(graph, program.signature)
             for i in range(c.count)]  # fmt: skip
    return {labels[i]: what for i, what in classify_state(graph, pairs).items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_classes(name: str) -> None:
    """By how the update uses them, whatever they are called."""
    params, opt = mlp_params(), OPTIMIZERS[name].init(mlp_params())
    found = classes(make_step(mlp_loss, OPTIMIZERS[name]), params, opt, batch_of(0))
    assert sum(what == "weight" for what in found.values()) == len(params)
    for label, what in found.items():
        field = label.rsplit(".", 1)[-1].split("[")[0]
        if label.startswith("opt") and field in LEARNT:
            assert what == LEARNT[field], label
        elif label.startswith("opt"):
            assert what in ("other", "counter"), label


def test_what_is_no_average_of_gradients_is_left_alone() -> None:
    """A largest magnitude, factored squares, an average of the weights."""

    def step(params: Any, ema: Any, batch: Any) -> Any:
        grads = jax.grad(mlp_loss)(params, batch)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return params, jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, params)

    found = classes(step, mlp_params(), mlp_params(), batch_of(0))
    assert [w for label, w in found.items() if label.startswith("ema")] == ["other"] * 4
    others = (optax.adamax(1e-2), "nu"), (optax.yogi(1e-2), "nu"), (optax.adafactor(1e-2), "v_row")
    for optimizer, field in others:
        args = mlp_params(), optimizer.init(mlp_params()), batch_of(0)
        found = classes(make_step(mlp_loss, optimizer), *args)
        assert {w for label, w in found.items() if f".{field}[" in label} == {"other"}


def wide_params() -> dict[str, Any]:
    return {"w1": np.ones((256, 512), np.float32), "w2": np.ones((512, 256), np.float32)}


def wide_loss(p: Any, x: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ p["w1"]) @ p["w2"]) ** 2)


@pytest.mark.parametrize(
    ("recipe", "size"), [("fp8-lm-o1", 10), ("fp8-lm-o2", 5), ("fp8-lm-block", 4 + 8 / 128)]
)
def test_bytes_a_parameter(recipe: str, size: float) -> None:
    """Peng et al., equation 8, without the gradient's byte: 2 + (4 + 4), 2 + (1 + 2)."""
    optimizer = optax.adamw(1e-3)
    step = precir.compile(make_step(wide_loss, optimizer), recipe=recipe)
    state = step.init(wide_params(), optimizer.init(wide_params()), jnp.ones((2, 256)))[:2]
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    assert total / (2 * 256 * 512) == pytest.approx(size, rel=2e-4)


def test_stacks_have_scales_for_each_layer() -> None:
    """And no stack is widened as a whole for a loop over its layers."""
    optimizer = optax.adamw(1e-3)
    step = precir.compile(make_step(scan_loss, optimizer), recipe="fp8-lm-o2")
    args = step.init(deep_params(), optimizer.init(deep_params()), batch_of(0))
    stack = args[0]["layers"]["w"]
    assert isinstance(stack, ScaledArray)
    assert stack.scale.shape == (3, 1, 1)
    graph = step.program(*args).graph
    given = {v for v in graph.inputs if v.type.dtype == "float16"}
    for scan in (n for n in graph if n.op == "scan"):
        assert any(o in given for o in scan.inputs)
    assert isinstance(args[0]["layers"]["b"], np.ndarray | jax.Array)


def test_gradients_of_layers_are_stacked_in_8_bits() -> None:
    optimizer = optax.adamw(1e-3)
    for loss_fn in (scan_loss, deep_loss):
        step = precir.compile(make_step(loss_fn, optimizer), recipe="fp8-lm-o2")
        args = step.init(deep_params(), optimizer.init(deep_params()), batch_of(0))
        graph = step.program(*args).graph
        backward = next(n for n in graph if n.op == "scan" and n.phase == "backward")
        stacks = [v.type for v in backward.outputs if v.type.shape == (3, 16, 16)]
        assert [(t.dtype, t.scale) for t in stacks] == [("float8_e4m3fn", (3,))]


def test_returned_gradients_keep_their_digits() -> None:
    """Only what the update reads is rounded."""

    def step(params: Any, batch: Any) -> Any:
        grads = jax.grad(scan_loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), grads

    def returned(recipe: Any) -> Any:
        compiled = precir.compile(step, recipe=recipe)
        return compiled(*compiled.init(deep_params(), batch_of(0)))[1]

    low = precir.recipe("fp8-lm-o2")
    for a, b in zip(*map(jax.tree.leaves, map(returned, (low, low.replace(weight_gradient=None)))),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * np.abs(b).max())


def test_what_is_read_and_not_learnt_is_no_weight() -> None:
    """A hidden state that is handed from step to step."""

    def step(params: Any, hidden: Any, batch: Any) -> Any:
        def loss(p: Any) -> Any:
            h = jnp.tanh(batch[0] @ p["w1"] + hidden["h"])
            return jnp.mean((jnp.tanh(h @ p["w2"]) @ p["w3"] - batch[1]) ** 2), h

        (value, h), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), {"h": h}, value

    found = classes(step, mlp_params(), {"h": np.zeros((32, 16), np.float32)}, batch_of(0))
    assert found['hidden["h"]'] == "other"
    assert found['params["w2"]'] == "weight"


def test_the_report_says_what_lives_in_what() -> None:
    """What is no weight and no moment too, which stays as it is."""
    optimizer = optax.amsgrad(1e-3)
    step = precir.compile(make_step(mlp_loss, optimizer), recipe="fp8-lm-o2")
    report = step.report(mlp_params(), optimizer.init(mlp_params()), batch_of(0))
    rows = {(r.what, r.format): r for r in report.state}
    assert rows["weight", "f16"].count == rows["first moment", "E4M3"].count == 3
    assert rows["second moment", "f16"].count == 3
    assert rows["weight", "f32"].names == 'params["b1"]'
    assert 'opt[0].nu_max["w1"]' in rows["other", "f32"].names
    assert rows["second moment", "f16"].bytes == sum(
        2 * w.size + 4 for k, w in mlp_params().items() if k != "b1"
    )
    assert "State between steps" in str(report)
    assert Report.from_json(report.to_json()).state == report.state
    assert precir.compile(mlp_loss).report(mlp_params(), batch_of(0)).state == ()


def test_clipping_reaches_every_leaf() -> None:
    """A gradient of any size moves no weight by more than the clipped step."""
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    step = precir.compile(make_step(mlp_loss, optimizer), recipe="fp8-lm-o2")
    params = {k: 30 * v for k, v in mlp_params().items()}
    packed, opt, batch = step.init(params, optimizer.init(params), batch_of(0))
    new = step.unpack(step(packed, opt, batch)[0])
    old = step.unpack(packed)
    wide = jax.jit(make_step(mlp_loss, optimizer))(params, opt, batch)[0]
    for name in params:
        moved = np.linalg.norm(np.asarray(wide[name] - params[name]))
        assert moved <= 1.001e-3
        rounding = np.abs(params[name]).max() * 2.0**-10 * np.sqrt(params[name].size)
        assert np.linalg.norm(np.asarray(new[name] - old[name])) <= 2e-3 + rounding


def test_plain_state_and_functions_without_state() -> None:
    """What `init` did not wrap stays plain; a model function has nothing to store."""
    optimizer = optax.adamw(1e-3)
    step = precir.compile(make_step(mlp_loss, optimizer), recipe="fp8-lm-o2")
    params, opt = mlp_params(), optimizer.init(mlp_params())
    new, _, _ = step(params, opt, batch_of(0))
    assert not any(isinstance(x, ScaledArray) for x in new.values())
    loss = precir.compile(mlp_loss, recipe="fp8-lm-o2")
    assert np.isfinite(jax.grad(loss)(params, batch_of(0))["w1"]).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "float16", "weight": Store("float16")}, "state is the format of all"),
        ({"scaling": "propagated", "weight": Store("float16")}, "keep all state in one format"),
        ({"weight_gradient": "float16"}, "weight_gradient cannot be 'float16'"),
    ],
)
def test_recipes_that_contradict_themselves(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe("mine", "mixed", "float16").replace(**changes)
    with pytest.raises(RecipeError, match="format cannot be 'int8'"):
        Store("int8")
