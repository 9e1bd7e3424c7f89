"""Updates of AdamW to narrow storage: what is recognised, what is written, and the same numbers."""

import sys
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import precir
from precir.errors import VerifyError
from precir.ir import Type
from precir.ops.adam import ADAM
from precir.recipe import Store
from precir.scaled import ScaledArray
from precir.verify import verify

RECIPES = ("fp8-lm-o2", "fp8-lm-block")
X = jax.random.normal(jax.random.key(1), (16, 64))


def unrolled(params, x):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"]) ** 2)


def scanned(params, x):
    def layer(h, w):
        return jnp.tanh(h @ w["a"]) @ w["b"], None

    return jnp.mean(jax.lax.scan(layer, x, params)[0] ** 2)


def weights(*stack):
    a, b = jax.random.split(jax.random.key(2))
    return {
        "a": jax.random.normal(a, (*stack, 64, 128)) / 8,
        "b": jax.random.normal(b, (*stack, 128, 64)) / 8,
    }


def step_of(optimizer, loss=unrolled):
    def step(state, x):
        params, inner = state
        value, grads = jax.value_and_grad(loss)(params, x)
        updates, inner = optimizer.update(grads, inner, params)
        return (optax.apply_updates(params, updates), inner), value

    return step


def by_hand(params, x, rate=3e-3, b1=0.8, b2=0.95):
    """Adam as one may write it down."""

    def init():
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, zeros, zeros, jnp.int32(0)

    def step(state, x):
        params, first, second, count = state
        value, grads = jax.value_and_grad(unrolled)(params, x)
        count = count + 1
        t = count.astype(jnp.float32)
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, second, grads)
        root = jnp.sqrt(1 - b2**t)

        def moved(w, m, v):
            step = (m / (1 - b1**t)) / (jnp.sqrt(v) / root + 1e-7)
            return w - rate * (0.1 * w + step)

        return (jax.tree.map(moved, params, first, second), first, second, count), value

    return step, init()


def case(name):
    """A step and its first state."""
    if name == "by hand":
        return by_hand(weights(), X)
    params = weights(3) if "scan" in name else weights()
    schedule = optax.warmup_cosine_decay_schedule(1e-3, 1e-2, 2, 10)
    optimizer = {
        "adamw": optax.adamw(schedule, weight_decay=0.1),
        "adam": optax.adam(3e-3, eps=1e-6),
        "clipped": optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(schedule)),
        "not clipped": optax.chain(optax.clip_by_global_norm(1e6), optax.adamw(1e-2)),
        "mean of four": optax.chain(optax.scale(0.25), optax.adamw(1e-2)),
        "each by its rms": optax.chain(optax.clip_by_block_rms(1e-4), optax.adamw(1e-2)),
        "by value": optax.chain(optax.clip(1e-4), optax.scale_by_adam(), optax.scale(-0.01)),
        "over scan": optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(schedule)),
    }[name]
    loss = scanned if "scan" in name else unrolled
    return step_of(optimizer, loss), (params, optimizer.init(params))


CASES = (
    "adamw",
    "adam",
    "clipped",
    "not clipped",
    "mean of four",
    "each by its rms",
    "by value",
    "over scan",
    "by hand",
)


def compiled(step, recipe, kernels="fused", **changes):
    return precir.compile(step, recipe=precir.recipe(recipe, kernels=kernels, **changes))


def updates(step, *args):
    return [n for n in step.program(*args).graph.walk() if n.op == ADAM]


def run(step, state, count=3):
    state, x = step.init(state, X)
    for _ in range(count):
        state, value = step(state, x)
    return state, value


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ScaledArray))


def assert_alike(fused, plain):
    """The kernel rounds as float32 does, so a number between two of storage goes either way."""
    assert jax.tree.structure(fused) == jax.tree.structure(plain)
    for a, b in zip(leaves(fused), leaves(plain), strict=True):
        if isinstance(a, ScaledArray):
            np.testing.assert_array_equal(a.scale, b.scale)
            wide = [np.asarray(t.unscale()) for t in (a, b)]
            apart = ~np.isclose(*wide, rtol=1e-5, atol=1e-9, equal_nan=True)
            assert apart.mean() < 2e-3
            np.testing.assert_allclose(*wide, rtol=0.26, atol=float(np.max(a.scale)) * 2.0**-9)
        else:
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "recipe"), list(zip(CASES, cycle(RECIPES), strict=False)))
def test_one_kernel_for_each_weight_and_the_same_numbers(name, recipe):
    step, state = case(name)
    fused, plain = (compiled(step, recipe, kernels) for kernels in ("fused", "plain"))
    assert_alike(run(fused, state, 1), run(plain, state, 1))
    (start, x) = fused.init(state, X)
    found = updates(fused, start, x)
    assert len(found) == 2
    assert fused.source(start, x).count("adam_update(") == 2


def test_the_numbers_are_those_of_the_program():
    step, state = by_hand(weights(), X)
    step = compiled(step, "fp8-lm-o2")
    source = " ".join(step.source(*step.init(state, X)).split())
    said = "cast_4_q, lr=0.003, b1=0.8, b2=0.95, eps=1e-07, weight_decay=0.1, corrections=("
    assert f'adam_update( state[0]["a"], state[1]["a"], state[2]["a"], {said}' in source
    clipped, state = case("clipped")
    clipped = compiled(clipped, "fp8-lm-o2")
    assert "gradient_scale=" in clipped.source(*clipped.init(state, X))


@pytest.mark.parametrize("name", ["over scan", "not clipped"])
def test_in_the_loop_that_makes_the_gradient(name):
    step, state = case(name)
    fused = compiled(step, "fp8-lm-block", update="fused")
    args = fused.init(state, X)
    assert len(updates(fused, *args)) == 2
    if "scan" in name:
        assert not any(n.op == ADAM for n in fused.program(*args).graph)
        plain = compiled(step, "fp8-lm-block", "plain", update="fused")
        assert_alike(run(fused, state, 1), run(plain, state, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
def test_on_a_gpu_new_state_lies_where_the_old_did():
    """And on eight each updates what it has."""
    optimizer = optax.adamw(1e-2)
    params = {k: jax.ShapeDtypeStruct((2048, 2048), jnp.float32) for k in "ab"}
    state = params, jax.eval_shape(optimizer.init, params)
    x = jax.ShapeDtypeStruct((64, 2048), jnp.float32)
    found = {}
    for kernels in ("fused", "plain"):
        recipe = precir.recipe("fp8-lm-block", kernels=kernels)
        step = precir.compile(step_of(optimizer), recipe=recipe, donate_argnums=0)
        args = jax.eval_shape(step.init, state, x)
        found[kernels] = step.memory(*args, target="h100")
    fused, plain = found["fused"], found["plain"]
    assert "Triton adam_write" in {k.name for k in fused.kernels}
    assert fused.alias == plain.alias >= 4 * 2 * 2048 * 2048
    assert fused.temporary < plain.temporary
    rows = jax.tree.map(lambda a: P("data") if a.ndim == 2 and a.shape[0] > 1 else P(), args[0])
    eight = precir.compile(step_of(optimizer), recipe="fp8-lm-block", donate_argnums=0)
    eight = eight.memory(*args, target="h100", devices=8, shardings=(rows, P("data")))
    assert "Triton adam_write" in {k.name for k in eight.kernels}
    assert eight.argument < fused.argument / 7
    assert sum(c.bytes for c in eight.collectives) < 8 * 2 * 2048 * 2048


# --- where samples are not ------------------------------------------------------------------------

STATE = precir.recipe(
    "float32",
    weight=Store("float16"),
    first_moment=Store("float8_e4m3fn"),
    second_moment=Store("float16"),
)


def formula(w, m, v, g, t, rate=1e-2, root=0.0, eps=1e-8, decay=0.0):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    step = (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.99**t) + root) + eps)
    return w - rate * (step + decay * w), m, v


def kept_where_not_finite(w, *args):
    new, m, v = formula(w, *args)
    return jax.lax.select(jnp.isfinite(new), new, w), m, v


def slow_at_first(w, m, v, g, t):
    new, m, v = formula(w, m, v, g, t)
    return w + (new - w) * jnp.where(jnp.full(w.shape, t) < 10, 0.1, 1.0), m, v


def decayed_apart(w, m, v, g, t):
    new, m, v = formula(w, m, v, g, t, rate=1e-2 * (t - 21))
    return new - 1e-3 * w, m, v


def in_parts(w, m, v, g, t):
    g = 0.3 * (t * g)
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return w - 1e-3 * (t * m) / (jnp.sqrt(v) + 1e-8), m, v


def by_norm(w, m, v, g, t):
    return formula(w, m, v, g / jnp.sqrt(jnp.sum(g * g)), t)


def guarded(w, m, v, g, t):
    return formula(w, m, v, jnp.where(jnp.isfinite(jnp.sum(g)), g, 0), t)


def capped(w, m, v, g, t):
    return formula(w, m, v, jax.lax.clamp(jnp.float32(-1e9), g, jnp.float32(1e9)), t)


def rate_of_moment(w, m, v, g, t):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return w - 1e-2 / jnp.max(jnp.abs(m)) * m / (jnp.sqrt(v) + 1e-8), m, v


# How large gradients are, whether one is infinite, and whether there is a kernel.
ODD: dict[str, tuple[Any, float, bool, bool]] = {
    "added under a small root": (partial(formula, root=1e-20, eps=1e-12), 1e-10, False, False),
    "kept where not finite": (kept_where_not_finite, 1, True, False),
    "slow at first": (slow_at_first, 1, False, False),
    "decay apart from a rate of zero": (decayed_apart, 1, False, False),
    "numbers beside scalars": (in_parts, 1, False, True),
    "a norm past float32": (by_norm, 1e20, False, True),
    "a norm of nothing": (by_norm, 1e-25, False, True),
    "none where not finite": (guarded, 1, True, True),
    "capped at what is huge": (capped, 1e10, False, True),
    "a rate of the new moment": (rate_of_moment, 1, False, False),
}


def on_gradients(update, state, g, **changes):
    def step(state, g):
        w, m, v, count, *rest = state
        count = count + 1
        g = jax.grad(lambda w: jnp.sum(w * g.astype(jnp.float32)))(w)
        w, m, v = update(w, m, v, g, count.astype(jnp.float32), *rest)
        return (w, m, v, count, *rest), count

    both = [
        precir.compile(step, recipe=STATE.replace(kernels=k, **changes)) for k in ("fused", "plain")
    ]
    args = both[0].init(state, g)
    assert_alike(*(s(*args) for s in both))
    return updates(both[0], *args)


def given(size=1.0):
    w, m, v, g = (jax.random.normal(jax.random.key(i), (64, 128)) for i in range(4))
    return (w / 8, size * m / 8, (size * v / 8) ** 2, jnp.int32(20)), size * g


@pytest.mark.parametrize("name", ODD)
def test_where_samples_are_not(name):
    update, size, infinite, used = ODD[name]
    state, g = given(size)
    g = g.at[0, 0].set(jnp.inf) if infinite else g
    assert bool(on_gradients(update, state, g)) == used


def test_a_rate_of_a_new_moment_that_stays_wide():
    assert not on_gradients(rate_of_moment, *given(), first_moment=None)


@pytest.mark.parametrize("eps", [0.0, 1e-22])
def test_eps_of_the_program(eps):
    state, g = given()
    traced = lambda *args: formula(*args[:5], eps=args[5])  # noqa: E731
    (node,) = on_gradients(traced, (*state, jnp.float32(eps)), g)
    assert node.params["eps"] is None


def test_formats_that_the_kernel_has_not():
    state, g = given()
    for dtype in (jnp.int8, jnp.float8_e4m3fn):
        on_gradients(formula, state, (9 * g).astype(dtype))
    assert not on_gradients(formula, state, g, first_moment=Store("bfloat16"))


# --- what is left as it is ------------------------------------------------------------------------


def ascended(inner):
    """An optimizer that changes what another makes: `inner` of (update, parameter)."""

    def update(updates, state, params):
        return jax.tree.map(inner, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def reading_elsewhere(state, x):
    step = step_of(optax.adam(1e-2))
    (params, inner), value = step(state, x)
    return (params, inner), value + sum(jnp.sum(m) for m in jax.tree.leaves(inner[0].mu))


def skipping(state, x):
    """No update where the loss is large, as under a loss scale."""
    new, value = step_of(optax.adam(1e-2))(state, x)
    return jax.tree.map(partial(jnp.where, value < 2), new, state), value


OTHERS: dict[str, Any] = {
    "nesterov": optax.nadam(1e-2),
    "eps within the root": optax.adam(1e-2, eps=1e-3, eps_root=1e-3),
    "largest second moment": optax.amsgrad(1e-2),
    "capped": optax.chain(optax.adam(1e-2), ascended(lambda u, w: jnp.clip(u, -0.009, 0.009))),
    "decay of large weights": optax.chain(
        optax.adam(1e-2), ascended(lambda u, w: u - jnp.where(jnp.abs(w) > 0.1, 1e-3 * w, 0))
    ),
    "decay in the gradient": optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2)),
    "sign": optax.lion(1e-2),
    "after the trust ratio": optax.lamb(1e-2),
    "read elsewhere": reading_elsewhere,
    "skipped": skipping,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_updates_stay_as_they_are(name):
    other = OTHERS[name]
    optimizer = optax.adam(1e-2) if callable(other) and not isinstance(other, tuple) else other
    step = step_of(other) if isinstance(other, tuple) else other
    state = (weights(), optimizer.init(weights()))
    fused = compiled(step, "fp8-lm-block")
    assert not updates(fused, *fused.init(state, X))


def test_the_report_says_what_became_of_an_update():
    rows = {}
    for name in ("adamw", "nesterov", "read elsewhere"):
        step, state = case(name) if name in CASES else (None, None)
        if step is None:
            other = OTHERS[name]
            step = step_of(other) if isinstance(other, tuple) else other
            made = other if isinstance(other, tuple) else optax.adam(1e-2)
            state = (weights(), made.init(weights()))
        step = compiled(step, "fp8-lm-block")
        report = step.report(*step.init(state, X))
        rows[name] = {(k.used, k.reason) for k in report.kernels if k.kernel == ADAM}
    assert rows["adamw"] == {(True, "AdamW, on what is stored")}
    assert rows["read elsewhere"] == {(False, "what it computes is read elsewhere")}
    said = "it is not AdamW's, or its numbers are not products of scalars"
    assert rows["nesterov"] == {(False, said)}


def test_one_narrow_weight_alone_is_not_worth_a_kernel():
    step, state = case("adam")
    step = compiled(step, "fp8-lm-o1")
    report = step.report(*step.init(state, X))
    found = [k for k in report.kernels if k.kernel == ADAM]
    assert [(k.used, k.reason) for k in found] == [(False, "it takes no less")] * 2


BROKEN = {
    "a number is missing": ({"lr": None}, "operands, expected weight, first, second, gradient, lr"),
    "a number is none": ({"b1": "0.9"}, "expected a number or None for each of lr"),
    "another shape": (None, "the first is"),
    "wide in the place of narrow": (None, "results"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_contracts(name):
    change, message = BROKEN[name]
    step, state = case("by hand")
    step = compiled(step, "fp8-lm-o2")
    graph = step.program(*step.init(state, X)).graph
    one, other = (n for n in graph if n.op == ADAM)
    if change is not None:
        broken = one.like(params={**one.params, **change})
    elif name == "another shape":
        broken = one.like(inputs=[one.inputs[0], other.inputs[1], *one.inputs[2:]])
    else:
        types = [Type(one.outputs[0].type.shape, "float32"), *(v.type for v in one.outputs[1:])]
        broken = one.like(types=types)
    last = max(graph.nodes.index(one), graph.nodes.index(other))
    before = tuple(n for n in graph.nodes[:last] if n.op != ADAM)
    with pytest.raises(VerifyError, match=message):
        verify(graph.with_(nodes=(*before, broken), outputs=()))
