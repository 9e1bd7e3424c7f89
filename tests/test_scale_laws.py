"""Scales carried through every primitive: the plain answer, whatever scales the arguments have.

Powers of two change no digit, so all that may differ is the order of XLA's work: 64 units in the
last place of a result's largest element. NaN and infinities are in the same places.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp
from jax.sharding import PartitionSpec

import precir
from precir.ir import UPDATE, Graph, Value
from precir.ops import OPS
from precir.ops.scales.scaled import is_float
from tests.carried import assert_close, carrying, check_law, has_floats
from tests.cases import CASES, Case
from tests.cases.case import drawn, f32
from tests.programs.program import is_jaxpr
from tests.test_harnesses import arguments, harnesses

CHUNKS = 32
QUICK_STRIDE = 90
SCATTER_STRIDE = 4  # scatters are 57% of all, and differ in dimension numbers
TABLE = Path(__file__).parent / "golden" / "scales" / "laws.md"
ARITHMETIC = {"scale_product", "scale_max", "scale_root", "rms_scale", "amax_scale"}


# -- every primitive -------------------------------------------------------------------------------


def swept() -> list[tuple[int, Case]]:
    """Every harness but three quarters of the scatters."""
    return [
        (seed, case)
        for seed, case in enumerate(harnesses())
        if not case.group.startswith("scatter") or seed % SCATTER_STRIDE == 0
    ]


def sample() -> list[tuple[int, Case]]:
    """Every ninetieth harness, and the first of each group."""
    seen: set[str] = set()
    found = []
    for seed, case in enumerate(harnesses()):
        if seed % QUICK_STRIDE == 0 or case.group not in seen:
            found.append((seed, case))
        seen.add(case.group)
    return found


def failures(cases: Iterable[tuple[int, Case]]) -> Iterator[str]:
    checked = 0
    for seed, case in cases:
        if not has_floats(arguments(case, seed)):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # harnesses overflow and truncate on purpose
                check_law(case, partial(arguments, case, seed), seed)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            yield f"{case.name}: {type(error).__name__}: {reason}"
        checked += 1
        if checked % 40 == 0:
            jax.clear_caches()  # one process compiles thousands of programs


def assert_none_fails(cases: Iterable[tuple[int, Case]]) -> None:
    found = list(failures(cases))
    assert not found, f"{len(found)} differ:\n" + "\n".join(found)


@pytest.mark.parametrize("part", range(8))
def test_sample(part: int) -> None:
    assert_none_fails(sample()[part::8])


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(CHUNKS))
def test_every_primitive(part: int) -> None:
    assert_none_fails(swept()[part::CHUNKS])


@pytest.mark.parametrize("part", range(8))
def test_cases(part: int) -> None:
    assert_none_fails([(0, case) for case in CASES][part::8])


# -- control flow of our own -----------------------------------------------------------------------

PROGRAMS: list[Case] = []


def program(*given: Any) -> Callable[..., Any]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS.append(Case(function.__name__, "program", function, lambda r: drawn(given, r)))
        return function

    return add


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@program(f32(4), f32(6, 4), f32(4, 4))
def scan_(c: Any, xs: Any, w: Any) -> Any:
    def body(c: Any, x: Any) -> Any:
        c = jnp.tanh(c @ w) + x
        return c, (c * x, c.sum(), jnp.argmax(c))

    return lax.scan(body, c, xs), lax.scan(body, c, xs, reverse=True)


@program(f32(4), f32(4), f32(5, 4))
def scan_that_swaps(a: Any, b: Any, xs: Any) -> Any:
    """Scales that would go round with the values."""
    return lax.scan(lambda c, x: ((c[1], c[0] * 2.0**9), c[0] + x), (a, b), xs)


@program(f32(5, 4))
def scan_from_zeros(xs: Any) -> Any:
    def body(c: Any, x: Any) -> Any:
        total, first = c
        return (total + x, jnp.where(first == 0, x, first)), total

    return lax.scan(body, (jnp.zeros(4), jnp.zeros(4)), xs)


@program(f32(3, 4, 2), f32(2))
def scan_in_scan(xs: Any, w: Any) -> Any:
    def outer(c: Any, x: Any) -> Any:
        inner, ys = lax.scan(lambda c, y: (c * w + y, c / (1 + y * y)), c, x)
        return inner, (ys, jnp.linalg.norm(inner))

    return lax.scan(outer, jnp.zeros(2), xs)


@program(f32(3), f32(3, 4), f32(4))
def scan_with_scales_made_inside(c: Any, xs: Any, w: Any) -> Any:
    def body(c: Any, x: Any) -> Any:
        y = jnp.sqrt(jnp.abs(x).sum() + 1) * w
        return c * y[:3], (y, jnp.square(y) * 2.0**-20)

    return lax.scan(body, c, xs)


@program(f32(4), f32(5, 4), f32(4, 4))
def scan_gradient(c: Any, xs: Any, w: Any) -> Any:
    def loss(c: Any, w: Any) -> Any:
        last, ys = lax.scan(lambda c, x: (jnp.tanh(c @ w + x), c.sum()), c, xs)
        return (last**2).mean() + ys.sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(c, w)


@program(f32(3), f32())
def while_that_asks_for_the_value(x: Any, step: Any) -> Any:
    step = jnp.abs(step) + 0.1
    return lax.while_loop(lambda c: jnp.max(jnp.abs(c)) < 1000, lambda c: c * 2 + step, x)


@program(f32(3), f32(3))
def while_of_several(x: Any, y: Any) -> Any:
    def body(c: Any) -> Any:
        n, x, y, best = c
        return n + 1, y * 0.5, x + y, jnp.maximum(best, x)

    return lax.while_loop(lambda c: c[0] < 6, body, (0, x, y, jnp.full(3, -jnp.inf)))


@program(f32(3), f32(3, 3))
def fori_(x: Any, w: Any) -> Any:
    return lax.fori_loop(0, 4, lambda i, c: c @ w / (1 + i) + x, x)


@program(f32(3), f32(3), f32())
def cond_of_unlike_scales(x: Any, y: Any, p: Any) -> Any:
    def small(x: Any, y: Any) -> Any:
        return x * 2.0**-9, y, jnp.zeros(3)

    def large(x: Any, y: Any) -> Any:
        return y * 2.0**9, x * y, x

    return lax.cond(p > 0.5, small, large, x, y), lax.cond(p > -99, small, large, x, y)


@program(f32(3), f32(3))
def switch_(x: Any, y: Any) -> Any:
    branches = [jnp.add, jnp.multiply, lambda x, y: x * 8, lambda x, y: jnp.exp(-y * y)]
    which = [jnp.clip(jnp.argmax(x) + n, 0, 3) for n in range(4)]
    return [lax.switch(n, branches, x, y) for n in which]


@program(f32(2, 4), f32(4))
def cond_in_scan(xs: Any, w: Any) -> Any:
    def body(c: Any, x: Any) -> Any:
        return lax.cond(x.sum() > 0, lambda c: c * x, lambda c: c + w, c), c

    return lax.scan(body, w, xs)


@program(f32(5, 4), f32(4, 4), f32(4, 2))
def remat_(x: Any, w: Any, v: Any) -> Any:
    @jax.checkpoint
    def layer(x: Any, w: Any) -> Any:
        return jax.nn.gelu(x @ w) * jnp.linalg.norm(w)

    def loss(w: Any, v: Any) -> Any:
        return jnp.mean(jax.nn.softmax(layer(layer(x, w), w) @ v) ** 2)

    return loss(w, v), jax.grad(loss, argnums=(0, 1))(w, v)


@jax.custom_jvp
def rooted(x: Any) -> Any:
    return jnp.sqrt(jnp.abs(x) + 1)


@rooted.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return rooted(primals[0]), 3 * tangents[0] * primals[0]


@jax.custom_vjp
def clipped(x: Any, w: Any) -> Any:
    return x * w


clipped.defvjp(
    lambda x, w: (x * w, (x, w)), lambda kept, g: (jnp.clip(g, -0.5, 0.5) * kept[1], kept[0].sum(0))
)


@program(f32(4, 3), f32(3))
def custom_rules(x: Any, w: Any) -> Any:
    def loss(x: Any, w: Any) -> Any:
        return (clipped(rooted(x), w) ** 2).sum()

    return loss(x, w), jax.grad(loss, argnums=(0, 1))(x, w), jax.jvp(rooted, (x,), (x * w,))


@program(f32(5, 3), f32(3, 3))
def vmap_of_gradient(xs: Any, w: Any) -> Any:
    def loss(x: Any) -> Any:
        return jnp.sum(jax.nn.log_softmax(x @ w)) * jnp.linalg.norm(x)

    return jax.vmap(jax.value_and_grad(loss))(xs), jax.hessian(loss)(xs[0])


@program(f32(8, 3), f32(3, 2), f32(8, 2))
def shard_map_(x: Any, w: Any, y: Any) -> Any:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, all_of_it = PartitionSpec("data"), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(rows, all_of_it, rows), out_specs=all_of_it)
    def loss(x: Any, w: Any, y: Any) -> Any:
        return lax.psum(jnp.sum((jnp.tanh(x @ w) - y) ** 2), "data")

    return jax.value_and_grad(loss, argnums=1)(x, w, y)


@program(f32(4, 8, 3), f32(3, 2), f32(4, 8, 2))
def gradient_accumulation(xs: Any, w: Any, ys: Any) -> Any:
    def loss(w: Any, x: Any, y: Any) -> Any:
        return jnp.mean((x @ w - y) ** 2)

    def micro(total: Any, batch: Any) -> Any:
        value, g = jax.value_and_grad(loss)(w, *batch)
        return total + g, value

    total, losses = lax.scan(micro, jnp.zeros_like(w), (xs, ys))
    norm = jnp.sqrt(jnp.sum(total * total))
    return w - 0.1 * total * jnp.minimum(1.0, 1.0 / norm), losses.mean()


EVERY_PROGRAM = pytest.mark.parametrize("case", PROGRAMS, ids=lambda case: case.name)


@EVERY_PROGRAM
def test_control_flow(case: Case) -> None:
    """With a scale for each argument that is known only while the program runs."""
    check_law(case, partial(arguments, case, 0), 0)


@pytest.mark.slow
@EVERY_PROGRAM
def test_control_flow_under_static_scales(case: Case) -> None:
    given = arguments(case, 0)
    compiled = precir.compile(case.function, recipe="scaled-32")
    assert_close(compiled(*given), jax.jit(case.function)(*given))


@pytest.mark.slow
@EVERY_PROGRAM
def test_control_flow_of_zeros(case: Case) -> None:
    """Zeros have a scale too, and it says nothing; every other argument has none."""
    given = jax.tree.map(jnp.zeros_like, arguments(case, 0))
    function, scaled = carrying(case, given, 0)
    floats = [
        precir.ScaledArray(x.data, jnp.float32(2.0**12)) if n % 2 == 0 else x.data
        for n, x in enumerate(scaled["floats"])
    ]
    compiled = precir.compile(function, recipe="scaled-32")
    assert_close(compiled({**scaled, "floats": floats}), jax.jit(case.function)(*given))


# -- what carries and what does not ----------------------------------------------------------------

CARRIES = "carries the scale"
RATIO = "depends on nothing but the ratio of its operands"
TRUE = "is computed of the true values"


def scaled_graph(case: Case, seed: int) -> Graph:
    """The program after the scales pass."""
    function, given = carrying(case, arguments(case, seed), seed)
    compiled = precir.compile(function, recipe="scaled-32")
    stages = {stage.name: stage.graph for stage in compiled.program(given).stages}
    return stages["scales"]


def laws_seen(graph: Graph, inside: bool = False) -> Iterator[tuple[str, str]]:
    """Each op of the program, or of a sub-program that is given data, and how it treats the scales
    of its operands.
    """
    scaled: set[Any] = set(graph.inputs if inside else ())  # what is data, not a true value
    for node in graph:
        floats = [o for o in node.inputs if isinstance(o, Value) and is_float(o.type.dtype)]
        given_data = node.op == "data_of" or any(o in scaled for o in floats)
        true = any(o.node is not None and o.node.op == "unscale" for o in floats)
        if node.op in WALKED:
            for region in node.regions:
                yield from laws_seen(region, inside=given_data)
        if given_data and node.op != "unscale" and not true:
            scaled.update(v for v in node.outputs if is_float(v.type.dtype))
        complex_ones = any("complex" in o.type.dtype for o in (*node.inputs, *node.outputs))
        if node.op not in OPS or node.op in OURS or node.phase == UPDATE or complex_ones:
            continue
        after = {n.op for v in node.outputs for n in graph.users.get(v, ())}
        returned = any(v in graph.outputs and is_float(v.type.dtype) for v in node.outputs)
        if true:
            yield node.op, TRUE
        elif given_data and (after & {"unscale", "rescale"} or (inside and returned)):
            yield node.op, CARRIES
        elif given_data:
            yield node.op, RATIO


WALKED = {"remat", "custom_jvp_call", "custom_vjp_call", "shard_map", "scan", "while", "cond"}
OURS = {*ARITHMETIC, "cast", "data_of", "dequantize", "quantize", "rescale", "unscale"}


def table() -> dict[str, set[str]]:
    """How each primitive was seen to treat scales: in three harnesses of each group, and in
    programs of several ops.
    """
    drawn_from: dict[str, list[tuple[int, Case]]] = defaultdict(list)
    for seed, case in enumerate(harnesses()):
        group = drawn_from[case.group]
        if len(group) < 3 and has_floats(arguments(case, seed)):
            group.append((seed, case))
    cases = [entry for group in drawn_from.values() for entry in group]
    found: dict[str, set[str]] = defaultdict(set)
    for seed, case in [*cases, *((0, c) for c in (*CASES, *PROGRAMS))]:
        if not has_floats(arguments(case, seed)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for op, law in laws_seen(scaled_graph(case, seed)):
                found[op].add(law)
    for laws in found.values():
        if len(laws) > 1:
            laws.discard(RATIO)  # a result that nobody asked the scale of
    return found


def as_text(found: dict[str, set[str]]) -> str:
    carrying_ones = sum(CARRIES in laws for laws in found.values())
    lines = [
        "# What each primitive does with the scales of its operands",
        "",
        "Seen by tests/test_scale_laws.py in JAX's primitive harnesses and in programs with",
        "control flow, where every floating-point argument has a scale that is known only while",
        'the program runs. "Or" where it depends on parameters, operands or what is around.',
        "",
        f"{carrying_ones} of {len(found)} carry.",
        "",
        "| primitive | it |",
        "|---|---|",
    ]
    order = (CARRIES, RATIO, TRUE)
    for op in sorted(found):
        lines.append(f"| {op} | {', or '.join(law for law in order if law in found[op])} |")
    return "\n".join(lines) + "\n"


@pytest.mark.sweep
def test_table_of_laws() -> None:
    """SCALES_WRITE=1 in the environment writes it anew."""
    found = table()
    assert sum(CARRIES in laws for laws in found.values()) >= 60
    text = as_text(found)
    if os.environ.get("SCALES_WRITE"):
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(text, encoding="utf-8")
    elif jax.__version__ == "0.10.2":  # another JAX may trace other primitives
        assert TABLE.read_text(encoding="utf-8") == text, (
            "SCALES_WRITE=1 pytest tests/test_scale_laws.py -k table writes it anew"
        )


# -- scales that are known while compiling cost nothing --------------------------------------------


def mlp(p: Any, x: Any) -> Any:
    for w, b in p[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ p[-1][0] + p[-1][1]


def mlp_step(p: Any, x: Any, y: Any) -> Any:
    def loss(p: Any) -> Any:
        return jnp.mean((mlp(p, x) - y) ** 2)

    value, grads = jax.value_and_grad(loss)(p)
    return jax.tree.map(lambda a, g: a - 0.1 * g, p, grads), value


def attention(q: Any, k: Any, v: Any) -> Any:
    scores = q @ k.T / jnp.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones(scores.shape, bool))
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) @ v


def layer_norm(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


PARAMETERS = [(normal(n, 16, 16) / 4, np.zeros(16, np.float32)) for n in range(4)]
STEP = (PARAMETERS, normal(5, 8, 16), normal(6, 8, 16))


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (mlp, STEP[:2]),
        (attention, [normal(n, 8, 8) for n in range(3)]),
        (layer_norm, [normal(0, 8, 8)]),
        (jax.nn.gelu, [normal(0, 8)]),
        (jax.nn.log_softmax, [normal(0, 8, 8)]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_static_scales_fold(function: Any, given: Any) -> None:
    graph = precir.compile(function, recipe="scaled-32").program(*given).stages[-1].graph
    assert not ARITHMETIC & {node.op for node in graph.walk()}


def equations(jaxpr: Any) -> int:
    """How many equations, those of sub-programs too; a call of one is not counted beside it."""
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [
            sub
            for value in equation.params.values()
            for sub in jax.tree.leaves(value, is_leaf=is_jaxpr)
            if is_jaxpr(sub)
        ]
        total += sum(map(equations, inner)) if inner else 1
    return total


def growth(*given: Any) -> float:
    plain = jax.make_jaxpr(mlp_step)(*STEP)
    scaled = jax.make_jaxpr(precir.compile(mlp_step, recipe="scaled-32"))(*given)
    return equations(scaled) / equations(plain)


def test_a_train_step_hardly_grows() -> None:
    assert growth(*STEP) < 1.5


def test_a_train_step_on_scaled_parameters_grows_little() -> None:
    assert growth(precir.scale(STEP[0], "float16"), *STEP[1:]) < 3
