"""The silent failures of other FP8 tools, each reproduced: precir passes every one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.kernels import E4M3, E5M2, quantize
from tests.programs import PROGRAMS, Program, assert_bit_identical, run

BY_NAME = {p.name: p for p in PROGRAMS}


def fp8(program: Program) -> Any:
    return precir.compile(program.step, recipe="fp8", **program.options())


def low(step: Any, program: Program) -> list[bool]:
    args = (program.init(0), *program.batch(0))
    return [p.low for p in step.program(*args, **program.keywords(0)).assignment.products]


def losses(step: Any, program: Program, steps: int) -> np.ndarray:
    return np.array(run(step, program, steps)[0])


def assert_close(program: Program, steps: int = 20) -> None:
    mine = losses(fp8(program), program, steps)
    theirs = losses(jax.jit(program.step, **program.options()), program, steps)
    assert np.isfinite(mine).all()
    assert abs(mine[-5:].mean() - theirs[-5:].mean()) <= 0.05


# qwix: what was traced in full precision first stays so.


@pytest.mark.parametrize("way", ["operator", "dot", "helper", "scan"])
def test_full_precision_traced_first(way: str) -> None:
    """`x @ w`, `jnp.dot`, a jitted helper and a module-level scan body are quantised although
    the same functions have run in float32 before.
    """
    program = BY_NAME[f"silent_first_{way}"]
    high = run(jax.jit(program.step), program, 1)
    step = fp8(program)
    assert sum(low(step, program)) >= 5
    assert run(step, program, 1) != high


@pytest.mark.parametrize("way", ["operator", "dot", "helper", "scan"])
def test_fp8_traced_first(way: str) -> None:
    """The float32 baseline does not run in FP8 because an FP8 step was compiled before it."""
    program = BY_NAME[f"silent_first_{way}"]
    before = run(jax.jit(program.step), program, 2)
    run(fp8(program), program, 1)
    for after in (jax.jit(program.step), precir.compile(program.step)):
        assert_bit_identical(run(after, program, 2), before)


def test_activation_shaped_like_a_weight() -> None:
    """qwix: an activation with the shape of a weight raises AssertionError."""
    program = BY_NAME["silent_square"]
    step = fp8(program)
    assert sum(low(step, program)) >= 7
    assert_close(program)


def test_sides_below_a_tile() -> None:
    """qwix: sides under 128 silently dequantise; here they are quantised, and said to be."""
    program = BY_NAME["silent_narrow"]
    step = fp8(program)
    assert sum(low(step, program)) >= 5
    graph = step.program(program.init(0), *program.batch(0)).graph
    assert sum(n.op == "scaled_dot" for n in graph.walk()) == sum(low(step, program))


# flax: a layer called twice, micro-batches, global norm, inf in a history, scale of one.


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_layer_called_several_times(calls: int) -> None:
    assert_close(BY_NAME[f"silent_reuse_{calls}"])


@pytest.mark.parametrize("way", ["scan", "loop"])
def test_micro_batches_of_different_size(way: str) -> None:
    assert_close(BY_NAME[f"silent_micro_{way}"])


def test_global_norm_has_no_scales_in_it() -> None:
    program = BY_NAME["silent_global_norm"]
    args = (program.init(0), *program.batch(0))
    mine, theirs = fp8(program)(*args)[2], jax.jit(program.step)(*args)[2]
    np.testing.assert_allclose(mine, theirs, rtol=0.05)


def test_nothing_remembers_an_infinite_batch() -> None:
    """The state holds no amax history: its structure is the program's own, and the step after
    a bad batch gives what it gives without one.
    """
    program = BY_NAME["silent_skip_batch"]
    step = fp8(program)
    state = program.init(0)
    after = step(state, *program.batch(2))[0]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    fresh = precir.compile(program.step, recipe="fp8", **program.options())
    host = jax.device_get(after)
    assert_bit_identical(step(after, *program.batch(3)), fresh(host, *program.batch(3)))
    assert np.isfinite(losses(step, program, 10)).all()


@pytest.mark.parametrize("kind", ["inputs", "gradients"])
@pytest.mark.parametrize("size", ["huge", "tiny"])
def test_extreme_sizes_on_the_first_step(kind: str, size: str) -> None:
    """Inputs of 1e±30 and gradients of 1e±12 move every weight on the first step."""
    program = BY_NAME[f"silent_{kind}_{size}"]
    state, batch = program.init(0), program.batch(0)
    mine, theirs = fp8(program)(state, *batch)[0], jax.jit(program.step)(state, *batch)[0]
    for before, a, b in zip(*map(jax.tree.leaves, (state, mine, theirs)), strict=True):
        moved, expected = np.asarray(a - before), np.asarray(b - before)
        assert np.isfinite(moved).all()
        assert np.linalg.norm(moved - expected) <= 0.3 * np.linalg.norm(expected)


def test_outliers() -> None:
    assert_close(BY_NAME["silent_outliers"])


# AQT: E5M2 times E5M2.


@pytest.mark.parametrize("name", ["silent_gradient_penalty", "silent_gram", "mlp_layers"])
def test_no_product_of_two_e5m2(name: str) -> None:
    program = BY_NAME[name]
    found = fp8(program).program(program.init(0), *program.batch(0))
    for node in found.graph.walk():
        if node.op == "scaled_dot":
            assert [o.type.dtype for o in node.inputs] != ["float8_e5m2"] * 2


# jax.nn mxfp8: zero blocks.


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e38, np.inf, -np.inf, np.nan])
def test_scales_are_normal_numbers(dtype: Any, value: float) -> None:
    """The scale of a zero, tiny, huge, infinite or NaN tensor is a normal power of two."""
    for x in (jnp.full((4, 32), value, jnp.float32), jnp.zeros((4, 32)).at[0, 0].set(value)):
        scale = np.asarray(jax.jit(lambda x: quantize(x, dtype).scale)(x))
        assert np.isfinite(scale).all()
        assert (scale >= np.finfo(np.float32).tiny).all()
        assert (np.frexp(scale)[0] == 0.5).all()


@pytest.mark.parametrize("name", [
    "silent_zero_inputs", "silent_zero_weights", "silent_zero_gradients", "silent_zero_blocks",
    "silent_all_zero",
])  # fmt: skip
def test_zeros(name: str) -> None:
    program = BY_NAME[name]
    mine, state = run(fp8(program), program, 6)
    assert np.isfinite(mine).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_zero_stays_exactly_zero() -> None:
    x = jnp.zeros((32, 32))
    product = precir.compile(lambda a, b: jnp.tanh(a @ b) @ b, recipe="fp8")(x, x)
    assert_bit_identical(product, jnp.zeros((32, 32)))


# jmp: a loss scale that breaks lowering. TransformerEngine: a baseline in another dtype.


def test_loss_scale_lowers() -> None:
    program = BY_NAME["silent_loss_scale"]
    assert fp8(program).lower(program.init(0), *program.batch(0)).compile() is not None
    assert_close(program)


def test_promotion_is_reported() -> None:
    """bfloat16 inputs that meet float32 weights: the products say what they run in."""
    program = BY_NAME["silent_promotion"]
    plain = precir.compile(program.step).program(program.init(0), *program.batch(0))
    assert ("bfloat16", "float32") in {p.operands for p in plain.assignment.products}
    mixed = precir.compile(program.step, recipe="bf16-mixed")
    products = mixed.program(program.init(0), *program.batch(0)).assignment.products
    assert {p.operands for p in products} == {("bfloat16", "bfloat16")}
    assert sum(low(fp8(program), program)) >= 5
