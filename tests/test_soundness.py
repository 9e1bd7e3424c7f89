"""What really runs lies within what is proved of it: no value outside of its facts, anywhere."""

import functools
import warnings
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import precir
from tests.cases import Case
from tests.programs import PROGRAMS, Program, advance
from tests.soundness import Opened, fills_for, violations
from tests.test_harnesses import arguments, harnesses

CHUNKS = 16
HALVES = ("bfloat16", "float16")

# Groups with harnesses that take float32 and do not trace or compile in 16 bits: linear algebra by
# LAPACK, Fourier transforms, complex numbers, and those with a float32 constant inside. 89 of 806
# that are no scatters.
NO_HALF = {
    "bitcast_convert_type", "cholesky", "complex", "conj", "custom_linear_solve", "eig", "eigh",
    "fft", "lu", "qr", "reduce", "reduce_window_add", "reduce_window_max", "reduce_window_min",
    "reduce_window_mul", "svd", "tridiagonal_solve",
}  # fmt: skip
UNTRACEABLE = (TypeError, ValueError, NotImplementedError)


def half(case: Case, seed: int, dtype: str, draw: int = 0) -> tuple:
    """The arguments of a harness, float32 ones recast."""
    args = arguments(case, seed + 7919 * draw)
    return jax.tree.map(
        lambda x: np.asarray(x).astype(dtype) if np.asarray(x).dtype == np.float32 else x, args
    )


def single(case: Case, seed: int) -> bool:
    """Whether a harness takes float32."""
    return any(np.asarray(x).dtype == np.float32 for x in jax.tree.leaves(arguments(case, seed)))


def recast(cases: list[tuple[int, Case]], dtype: str) -> tuple[list[str], Counter]:
    """What is outside of its facts in harnesses recast to `dtype`, and the groups left out."""
    found, left_out = [], Counter()
    for n, (seed, case) in enumerate(cases):
        if not single(case, seed):
            continue
        call = jax.jit(case.function, **case.options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # harnesses overflow and truncate on purpose
            try:
                args = half(case, seed, dtype)
                graph = precir.lower(case.function, *args)
                call.lower(*args).compile()
            except UNTRACEABLE:
                left_out[case.group] += 1
                continue
            found += outside(case, graph, call, lambda s: half(case, seed, dtype, s))  # noqa: B023
        if n % 100 == 99:
            jax.clear_caches()
    return found, left_out


def outside(case: Case, graph, call, draw) -> Iterator[str]:
    static = case.options.get("static_argnums", ())
    for found in violations(graph, call, draw, fills_for(case.group, graph), static=static):
        if found:
            yield f"{case.name}: {found}"


@functools.cache
def quick() -> list[tuple[int, Case]]:
    """Every sixtieth harness, and the first of each group that takes float32."""
    seen, found = set(), []
    for seed, case in enumerate(harnesses()):
        if seed % 60 == 0 or (case.group not in seen and single(case, seed)):
            found.append((seed, case))
            seen.add(case.group)
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("part", range(2))
def test_sample_recast(part: int, dtype: str) -> None:
    found, left_out = recast(quick()[part::2], dtype)
    assert not found, "\n".join(found)
    assert set(left_out) <= NO_HALF


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("part", range(CHUNKS))
def test_every_harness_recast(part: int, dtype: str) -> None:
    found, left_out = recast(list(enumerate(harnesses()))[part::CHUNKS], dtype)
    assert not found, f"{len(found)} outside:\n" + "\n".join(found)
    assert set(left_out) <= NO_HALF
    assert left_out.total() <= 89 // CHUNKS + 8


# -- what XLA computes instead -----------------------------------------------------------------

REWRITTEN = {
    "x / exp(y)": lambda x, y: x / jnp.exp(y),
    "x / pow(y, z)": lambda x, y: x / lax.pow(y, y + 1),
    "x / sqrt(y)": lambda x, y: x / jnp.sqrt(y),
    "x / rsqrt(y)": lambda x, y: x / lax.rsqrt(y),
    "x ** 3": lambda x, y: x**3,
    "1 / x": lambda x, y: x**-1,
    "log(exp(x))": lambda x, y: jnp.log(jnp.exp(x)),
    "log(pow(x, y))": lambda x, y: jnp.log(lax.pow(x, y)),
    "log(sqrt(x))": lambda x, y: jnp.log(jnp.sqrt(x)),
    "exp(x) * exp(y)": lambda x, y: jnp.exp(x) * jnp.exp(y),
    "x * c * c": lambda x, y: x * 100 * 1000,
    "x * c / c": lambda x, y: x * 3 / 7,
    "x / c / c": lambda x, y: x / 1e-4 / 1e-4,
    "x + c - c": lambda x, y: x + 6e4 - 5e4,
    "x / y / z": lambda x, y: (x / y) / (x + y),
    "x / (y / z)": lambda x, y: x / (y / (x + y)),
    "(x / y) / (y / z)": lambda x, y: (x / y) / (y / (x + 1)),
    "sqrt(x * x)": lambda x, y: jnp.sqrt(x * x),
    "x / row": lambda x, y: x / y[0],
    "x / sum": lambda x, y: x / jnp.sum(abs(y)),
    "pow(exp(x), y)": lambda x, y: lax.pow(jnp.exp(x), y),
    "pow(pow(x, y), z)": lambda x, y: lax.pow(lax.pow(abs(x), y), x),
    "x * y + x": lambda x, y: x * y + x,
    "x * y - x * row": lambda x, y: x * y - x * y[0],
    "x * x / x": lambda x, y: x * x / x,
    "1 / (1 / x)": lambda x, y: 1 / (1 / x),
    "sum(x * c) / c": lambda x, y: jnp.sum(x * 3) / 7,
    "x / max(x)": lambda x, y: x / jnp.max(abs(x)),
    "exp(x) / sum": lambda x, y: jnp.exp(x) / jnp.sum(jnp.exp(x)),
    "exp(x * y - max)": lambda x, y: jnp.exp(x * y - jnp.max(x * y)),
    "softmax": lambda x, y: jax.nn.softmax(x * y),
    "log_softmax": lambda x, y: jax.nn.log_softmax(x / y),
    "logsumexp": lambda x, y: jax.nn.logsumexp(x) + y,
    "norm": lambda x, y: x / jnp.linalg.norm(x),
    "layer norm": lambda x, y: (x - x.mean()) * lax.rsqrt(jnp.var(x) + 1e-6) * y,
    "variance": lambda x, y: jnp.mean(x * x) - jnp.mean(x) ** 2,
    "silu(x) / y": lambda x, y: jax.nn.silu(x) / y,
    "gelu": lambda x, y: jax.nn.gelu(x),
    "where": lambda x, y: jnp.where(x > 0, jnp.log(jnp.sqrt(x)), y),
    "x / (|x| + y)": lambda x, y: x / (abs(x) + y),
    "clip / clip": lambda x, y: jnp.clip(x, -1, 1) / jnp.clip(y, 0.1, 1),
    "gradient of log_softmax": jax.grad(lambda x, y: jnp.sum(jax.nn.log_softmax(x * y) * y)),
    "gradient of norm": jax.grad(lambda x, y: jnp.linalg.norm(x) + jnp.std(y * x)),
}


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten(name: str, dtype: str) -> None:
    function = REWRITTEN[name]

    def draw(seed: int) -> tuple:
        random = np.random.RandomState(seed)
        return tuple(jnp.asarray(random.randn(4, 7) * 2, dtype) for _ in range(2))

    graph = precir.lower(function, *draw(0))
    found = [v for v in violations(graph, jax.jit(function), draw, draws=4) if v]
    assert not found, "\n".join(found)


# -- every intermediate value ------------------------------------------------------------------


def step_of(program: Program):
    """A whole train step: of a model, its gradient and an update."""
    if program.kind == "train":
        return program.step, program.options()

    def step(state, *args):
        loss, gradients = jax.value_and_grad(
            lambda state: program.loss(program.step(state, *args))
        )(state)
        return jax.tree.map(lambda p, g: p - (0.1 * g).astype(p.dtype), state, gradients), loss

    return step, {}


QUICK = {
    "linen_gpt_model", "nnx_mlp", "equinox_mlp", "haiku_lstm", "rnn_while", "cond_loss",
    "nested_scans", "bfloat16_compute", "float16_loss_scale", "optax_adafactor",
    "custom_vjp_matmul", "shard_map_data", "silent_outliers", "silent_gradients_tiny", "integers",
}  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [pytest.param(p, id=p.name, marks=() if p.name in QUICK else pytest.mark.slow)
     for p in PROGRAMS],
)  # fmt: skip
def test_every_value_of_a_step(program: Program) -> None:
    if jax.device_count() < program.needs_devices:
        pytest.skip(f"needs {program.needs_devices} devices")
    step, options = step_of(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = precir.compile(step, **options)
        jitted = jax.jit(program.step, **program.options())
        state = program.init(0)
        opened = None
        for i in range(3):
            args, keywords = (state, *program.batch(i)), program.keywords(i)
            opened = opened or Opened(compiled.program(*args, **keywords))
            given = dynamic(options, args, keywords)
            found = list(opened.outside(*given[0], **given[1]))
            assert not any(found), f"step {i}, of {len(found)}:\n" + "\n".join(filter(None, found))
            assert len(found) > 10
            state, _ = advance(jitted, program, state, i)


def dynamic(options: dict, args: tuple, keywords: dict) -> tuple[list, dict]:
    """Without static arguments."""
    numbers, names = options.get("static_argnums", ()), options.get("static_argnames", ())
    numbers = (numbers,) if isinstance(numbers, int) else numbers
    names = (names,) if isinstance(names, str) else names
    kept = [x for i, x in enumerate(args) if i not in numbers]
    return kept, {k: x for k, x in keywords.items() if k not in names}
