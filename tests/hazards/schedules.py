"""Learning-rate, noise and temperature schedules, and clocks of all kinds."""

from typing import Any

import jax
import jax.numpy as jnp

from .case import Real, Whole, hazard, safe

Array = Any

# --- hazards ---


def inverse_square_root(step: Array) -> Array:
    warm = jnp.minimum(step / 100.0, 1.0)
    return warm * jax.lax.rsqrt(step)  # HERE


def exponential_decay(step: Array, rate: Array) -> Array:
    factor = jnp.asarray(0.9999, rate.dtype)
    return rate * factor**step  # HERE


def fraction_of_a_large_total(step: Array) -> Array:
    return step / 100000.0  # HERE


def step_as_half(step: Array, rate: Array) -> Array:
    progress = step.astype(rate.dtype)  # HERE
    return rate * (1.0 - progress / 1000.0)


def step_as_bfloat16(step: Array, rate: Array) -> Array:
    now = jnp.asarray(step, rate.dtype)  # HERE
    return now * rate


def tiny_final_rate(rate: Array) -> Array:
    floor = rate * 1e-8  # HERE
    return floor


def warmup_by_zero(step: Array, warmup: Array) -> Array:
    return jnp.minimum(1.0, step / warmup)  # HERE


def diffusion_alphas(betas: Array) -> Array:
    alphas = 1.0 - betas  # HERE
    return jnp.cumprod(alphas)


def signal_to_noise(alpha_bar: Array) -> Array:
    return alpha_bar / (1.0 - alpha_bar)  # HERE


def noise_scale(sigma: Array) -> Array:
    return sigma**3  # HERE


def elapsed_time(x: Array) -> Array:
    def tick(clock: Array, _: None) -> tuple[Array, Array]:
        clock = clock + 0.001  # HERE
        return clock, clock * x

    final, _ = jax.lax.scan(tick, jnp.ones((), x.dtype) * 4, None, length=500)
    return final


def wall_clock(seconds: Array) -> Array:
    later = seconds + 0.25  # HERE
    return later - seconds


def sinusoidal_phase(step: Array) -> Array:
    phase = step * 0.1  # HERE
    return jnp.sin(phase)


def cosine_restart(step: Array, period: Array) -> Array:
    return jnp.cos(jnp.mod(step, period))  # HERE


def restart_or_decay(step: Array, loss: Array, best: Array) -> Array:
    def improve(loss: Array) -> Array:
        return (best - loss) / (best + 1e-8)  # HERE

    def hold(loss: Array) -> Array:
        return loss * 0.5

    return jax.lax.cond(step > 10, improve, hold, loss)


def double_until_large(rate: Array) -> Array:
    def big(rate: Array) -> Array:
        return rate < 1e5

    def body(rate: Array) -> Array:
        return rate * 2.0  # HERE

    return jax.lax.while_loop(big, body, rate)


HAZARDS = (
    hazard(
        restart_or_decay, Whole(0, 100, ()), Real(0, 1, ()), Real(0, 1, ()),
        kind="underflow", root="literal", at="div", symptom="nan", trigger=(50, 0.0, 0.0),
    ),
    hazard(
        double_until_large, Real(1, 10, ()),
        kind="overflow", root=("mul", "literal"), at="mul", symptom="inf", trigger=(3.0,),
    ),
    hazard(
        inverse_square_root, Real(0, 1000, ()), format="float32", intrinsic=True,
        kind="invalid", root="rsqrt", at=("rsqrt", "mul"), symptom="nan", trigger=(0.0,),
    ),
    hazard(
        exponential_decay, Real(100, 1000, ()), Real(0.1, 1, ()), error=0.05,
        kind="rounds-to-bound", root="literal", at=("pow", "mul"), symptom="wrong",
        trigger=(1000.0, 1.0),
    ),
    hazard(
        fraction_of_a_large_total, Real(0, 60000, ()),
        kind="overflow", root="literal", at="div", symptom="zero", trigger=(60000.0,),
    ),
    hazard(
        step_as_half, Whole(0, 5000, ()), Real(0.5, 1, ()), error=2e-4,
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(4999, 1.0),
    ),
    hazard(
        step_as_bfloat16, Whole(0, 5000, ()), Real(0.5, 1, ()), format="bfloat16", error=2e-3,
        kind="inexact", root="convert_element_type", at="convert_element_type", symptom="wrong",
        trigger=(257, 1.0),
    ),
    hazard(
        tiny_final_rate, Real(0.001, 1, ()),
        kind="underflow", root="literal", at="mul", symptom="zero", trigger=(0.5,),
    ),
    hazard(
        warmup_by_zero, Real(0, 100, ()), Real(0, 100, ()), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0, 0.0),
    ),
    hazard(
        diffusion_alphas, Real(1e-4, 1e-3, (100,)), format="bfloat16", error=0.05,
        kind=("absorption", "rounds-to-bound"), root="sub", at="sub", symptom="stuck",
        trigger=(1e-3,),
    ),
    hazard(
        signal_to_noise, Real(0, 0.9999, ()),
        kind="rounds-to-bound", root=("input", "div"), at="div", symptom="inf",
        trigger=(0.9999,),
    ),
    hazard(
        noise_scale, Real(0.002, 80, ()),
        kind="overflow", root="integer_pow", at="integer_pow", symptom="inf", trigger=(80.0,),
    ),
    hazard(
        elapsed_time, Real(0, 1, ()),
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.0,), error=0.05,
    ),
    hazard(
        wall_clock, Real(1.6e9, 1.8e9, ()), format="float32",
        kind="absorption", root="add", at="add", symptom="stuck", trigger=(1.7e9,),
    ),
    hazard(
        sinusoidal_phase, Real(10000, 60000, ()),
        kind="inexact", root=("mul", "input", "literal"), at="mul", symptom="wrong",
        trigger=(50000.0,),
    ),
    hazard(
        cosine_restart, Real(0, 1000, ()), Real(0, 100, ()), format="float32", intrinsic=True,
        kind="invalid", root="rem", at="rem", symptom="nan", trigger=(10.0, 0.0),
    ),
)  # fmt: skip

# --- safe ---


def rsqrt_from_warmup(step: Array) -> Array:
    return jnp.minimum(jax.lax.rsqrt(jnp.maximum(step, 1.0)), 0.1)


def cosine(step: Array) -> Array:
    fraction = jnp.clip(step / 1000.0, 0.0, 1.0)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))


def linear_from_integers(step: Array, rate: Array) -> Array:
    fraction = jnp.minimum(step, 1000).astype(jnp.float32) / 1000.0
    return rate * (1.0 - fraction).astype(rate.dtype)


def small_integer_steps(step: Array, rate: Array) -> Array:
    return rate * step.astype(rate.dtype) / 200.0


def decay_in_range(step: Array) -> Array:
    return 0.99**step


def piecewise(step: Array, rate: Array) -> Array:
    return jnp.where(step < 100, rate, jnp.where(step < 200, rate * 0.1, rate * 0.01))


def guarded_snr(alpha_bar: Array) -> Array:
    return alpha_bar / jnp.maximum(1.0 - alpha_bar, 0.01)


def branch_by_step(step: Array, rate: Array) -> Array:
    return jax.lax.cond(step < 10, lambda r: r * 0.1, lambda r: r / 2.0, rate)


SAFE = (
    safe(rsqrt_from_warmup, Real(0, 1000, ())),
    safe(cosine, Real(0, 2000, ())),
    safe(linear_from_integers, Whole(0, 1_000_000, ()), Real(0.001, 1, ())),
    safe(small_integer_steps, Whole(0, 256, ()), Real(0.01, 1, ()), format="bfloat16"),
    safe(decay_in_range, Real(0, 100, ())),
    safe(piecewise, Real(0, 300, ()), Real(0.01, 1, ())),
    safe(guarded_snr, Real(0, 1, ()), error=0.3),
    safe(branch_by_step, Whole(0, 100, ()), Real(0.01, 1, ())),
)
