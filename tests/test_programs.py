"""The corpus itself: every program runs under plain jax.jit, repeats its bits, and learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.programs import (
    PROGRAMS,
    Program,
    advance,
    assert_bit_identical,
    count,
    every_program,
    run,
)


def jitted(program: Program):
    if jax.device_count() < program.needs_devices:
        pytest.skip(f"needs {program.needs_devices} devices")
    return jax.jit(program.step, **program.options())


def test_names_are_unique() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


@every_program
def test_runs_and_repeats(program: Program) -> None:
    step = jitted(program)
    traced = step.trace(program.init(0), *program.batch(0), **program.keywords(0))
    if program.products is not None:
        assert count(traced.jaxpr, "dot_general") == program.products
    assert count(traced.jaxpr, "conv_general_dilated") == program.convolutions
    losses, state = run(step, program, steps=3)
    assert np.isfinite(losses).all()
    again, other = run(step, program, steps=3)
    assert losses == again
    assert_bit_identical(state, other)


@every_program
def test_gradient_products(program: Program) -> None:
    if program.kind != "model":
        assert program.gradient_products is None
        return
    step = jitted(program)
    jaxpr = jax.make_jaxpr(lambda state: advance(step, program, state, 0))(program.init(0))
    assert count(jaxpr, "dot_general") == program.gradient_products


@pytest.mark.slow
@every_program
def test_learns(program: Program) -> None:
    losses, _ = run(jitted(program), program)
    assert np.isfinite(losses).all()
    if program.learns:
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_bits_of_special_values() -> None:
    nan, payload = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert_bit_identical(
        {"x": nan, "key": jax.random.key(0)}, {"x": payload, "key": jax.random.key(0)}
    )
    assert_bit_identical(jnp.array([1 + 2j, nan]), jnp.array([1 + 2j, nan]))
    assert_bit_identical(jnp.array([1, nan], jnp.bfloat16), jnp.array([1, nan], jnp.bfloat16))
    for x, y in [
        (0.0, -0.0),
        (nan, 1.0),
        (1.0, 1),
        (np.float32(1), np.float16(1)),
        (1 + 2j, 2 + 2j),
        (jax.random.key(0), jax.random.key(1)),
        ([1.0], (1.0,)),
    ]:
        with pytest.raises(AssertionError):
            assert_bit_identical(x, y)
