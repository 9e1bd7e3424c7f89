"""Statistics: their arithmetic, their measurement on the device, and what an observation keeps."""

import io
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import precir
from precir.domains.stats import Stats, merge_all
from precir.errors import DumpError, VerifyError
from precir.formats import BF16, E4M3, E5M2, F16, F32, format_of
from precir.ir import Graph, Node, Type, Value
from precir.kernels import amax, merge_stats, observe
from precir.observe import Observation, ObserveError, Runner, instrument
from precir.observe import observe as observe_batches
from precir.passes.observe import observe_values
from precir.text import parse, print_graph
from precir.verify import verify
from tests.programs import PROGRAMS

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-45, 3.4e38, 1.0, -2.0]
numbers = st.floats(width=32) | st.sampled_from(SPECIAL)
arrays = st.lists(numbers, max_size=20).map(lambda v: np.asarray(v, np.float32))
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


def same(a: Stats, b: Stats) -> None:
    """All that is exact is equal; sums are close, where those of `a` are known."""
    for field in ("format", "count", "amax", "smallest", "zeros", "subnormal", "plus_inf",
                  "minus_inf", "nan", "bins"):  # fmt: skip
        assert getattr(a, field) == getattr(b, field), field
    for x, y, size in ((a.total, b.total, b.amax), (a.squares, b.squares, b.squares)):
        if a.finite == a.count and math.isfinite(x) and y > 1e-30:
            assert x == pytest.approx(y, rel=1e-4, abs=1e-5 * size * max(1, b.count))


# --- arithmetic


@given(arrays, arrays)
def test_merge_is_of_both(x, y):
    a, b = Stats.of(x), Stats.of(y)
    both = Stats.of(np.concatenate([x, y]))
    same(a | b, both)
    assert a | b == b | a
    assert a | Stats(F32) == a


@given(arrays, arrays, arrays)
def test_merge_associates(x, y, z):
    a, b, c = map(Stats.of, (x, y, z))
    same((a | b) | c, a | (b | c))
    same(merge_all([a, b, c]), a | b | c)


def test_merge_refuses_other_formats():
    with pytest.raises(ValueError, match="float32 and of float16"):
        Stats(F32).merge(Stats(F16))


@pytest.mark.parametrize("scale", [-20, -3, 0, 5, 30])
@pytest.mark.parametrize("format", [F16, BF16, E4M3, E5M2], ids=str)
@given(values=st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=30))
def test_fractions_are_those_of_casting(format, scale, values):
    x = np.asarray(values, np.float32)
    stats = Stats.of(x)
    scaled = np.ldexp(x.astype(np.float64), scale)
    tie = scaled == format.smallest_subnormal / 2
    with np.errstate(all="ignore"):
        cast = np.asarray(scaled.astype(format.dtype), np.float64)
    kept = (scaled < format.smallest_normal) if format is BF16 else (cast == 0) & ~tie
    assert stats.underflow(format, scale) == pytest.approx(kept.mean())
    assert stats.flushed(format, scale) == pytest.approx(np.mean(scaled < format.smallest_normal))
    beyond = np.mean(scaled > format.max)
    bound = 2.0 ** math.floor(math.log2(format.max))
    assert beyond <= stats.overflow(format, scale) <= np.mean(scaled >= bound)


def test_moments():
    x = np.asarray([1.0, -3.0, 0.0, 2.0], np.float32)
    stats = Stats.of(x)
    assert stats.mean == 0
    assert stats.rms == pytest.approx(np.sqrt(np.mean(x**2)))
    assert (stats.fraction(stats.zeros), stats.smallest) == (0.25, 1)
    assert math.isnan(Stats(F32).mean)
    assert math.isnan(Stats(F32).rms)


# --- on the device


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=st.lists(numbers, min_size=1, max_size=12))
def test_observe_is_numpys(dtype, values):
    full = np.resize(np.asarray(values, np.float32), 12)  # one compilation
    with np.errstate(all="ignore"):
        x = full.astype(format_of(dtype).dtype)
    expected = Stats.of(x)
    same(Stats.of_vector(observe(jnp.asarray(x)), dtype), expected)
    moments = Stats.of_vector(observe(jnp.asarray(x), histogram=False), dtype)
    assert moments.bins is None
    assert (moments.amax, moments.zeros, moments.nan) == (
        expected.amax, expected.zeros, expected.nan,
    )  # fmt: skip
    largest = float(amax(jnp.asarray(x)))
    if expected.finite == expected.count and (expected.amax == 0 or expected.amax > 1e-37):
        assert largest == expected.amax
    else:
        assert not math.isfinite(largest) or largest <= expected.amax


@given(x=st.lists(numbers, min_size=8, max_size=8), y=st.lists(numbers, min_size=8, max_size=8))
def test_merge_stats_is_of_both(x, y):
    a, b = (np.asarray(v, np.float32) for v in (x, y))
    merged = merge_stats(observe(jnp.asarray(a)), observe(jnp.asarray(b)))
    same(Stats.of_vector(merged, F32), Stats.of(np.concatenate([a, b])))
    assert Stats.of_vector(merge_stats(merged, jnp.zeros_like(merged)), F32) == Stats.of_vector(
        merged, F32
    )


FLOAT, INT = Type((4,), "float32"), Type((4,), "int32")
BROKEN = {
    "of integers": ("observe", [INT], Type((266,), "int32"), {"histogram": True}, "expected a fl"),
    "no histogram": ("observe", [FLOAT], Type((266,), "int32"), {"histogram": False}, r"int32\[10"),
    "two": ("observe", [FLOAT, FLOAT], Type((10,), "int32"), {"histogram": False}, "2 operands"),
    "amax": ("amax", [FLOAT], FLOAT, {}, r"expected float32\[\]"),
    "amax of integers": ("amax", [INT], Type((), "float32"), {}, "expected a floating"),
    "merged": ("merge_stats", [INT, FLOAT], INT, {}, "operands"),
    "merged results": ("merge_stats", [INT, INT], FLOAT, {}, "results"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_verifier_knows_the_ops(name):
    op, operands, result, params, what = BROKEN[name]
    inputs = tuple(Value(t) for t in operands)
    node = Node(op, inputs, [result], params)
    with pytest.raises(VerifyError, match=what):
        verify(Graph("main", inputs, (node,), node.outputs))


def test_observe_shapes():
    x = jax.random.normal(jax.random.key(0), (3, 5, 7)) * 1e-3
    same(Stats.of_vector(observe(x), F32), Stats.of(x))
    assert float(amax(x)) == np.abs(x).max()
    assert Stats.of_vector(observe(jnp.zeros((0, 3))), F32).count == 0
    assert float(amax(jnp.zeros((0, 3)))) == 0
    rows = jax.vmap(observe)(x)
    same(Stats.of_vector(rows[1], F32), Stats.of(x[1]))
    with pytest.raises(ValueError, match="int32"):
        Stats.of_vector(np.zeros(3, np.int32), F32)


# --- programs

OBSERVED = (
    *("mlp_layers", "nested_scans", "rnn_while", "cond_loss", "switch_update", "optax_muon"),
    *("shard_map_data", "many_types_model", "custom_jvp_log1pexp", "bfloat16_compute"),
)


@pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.name in OBSERVED], ids=lambda p: p.name
)
def test_every_tensor_of_programs(program):
    """What the device measured is what NumPy says of the tensors themselves."""
    if jax.device_count() < program.needs_devices:
        pytest.skip("needs devices")
    args = (program.init(0), *program.batch(0))
    compiled = precir.compile(program.step, **program.options())
    made = compiled.program(*args)
    graph, observed = observe_values(made.graph, "full")
    verify(graph, deep=True)
    text = print_graph(graph)
    assert parse(text, constants=graph.constants) == graph
    runner = Runner(made, "full")
    runner.run(list(args), ())
    found = runner.tensors()
    chosen = {o.exposed.value for o in observed}
    raw = instrument(made, lambda value, inside: value in chosen)
    _, flat = raw.call(*args)
    assert len(raw.exposed) == len(observed) == len(found)
    for o, e in zip(observed, raw.exposed, strict=True):
        assert o.exposed.value is e.value
        if any(node.op == "while" for node, _ in e.inside):
            continue  # whose raw values are those of the last iteration
        array = np.asarray(flat[e.output])
        if e.made is not None:
            array = array[np.asarray(flat[e.made])]
        close(found[o.name].stats, Stats.of(array))


def close(a: Stats, b: Stats) -> None:
    """The same up to the rounding by which the two runs differ."""
    assert (a.format, a.count, a.nan, a.plus_inf) == (b.format, b.count, b.nan, b.plus_inf)
    coarse = b.format.epsilon > 1e-4
    if not a.finite or b.amax < 1e-5:
        return  # what cancels is all rounding
    assert a.amax == pytest.approx(b.amax, rel=0.1 if coarse else 1e-2)
    if math.isfinite(a.rms):
        assert a.rms == pytest.approx(b.rms, rel=0.1 if coarse else 1e-2)


def train_step(w, x):
    def loss(w):
        h, ys = jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h.sum()), jnp.zeros(4), x)
        return jnp.mean(h**2) + jnp.mean(ys**2)

    value, grad = jax.value_and_grad(loss)(w)
    return w - 0.1 * grad, value


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
W = np.eye(4, dtype=np.float32) / 2


def test_a_generator_threads_state_bit_for_bit():
    seen = []

    def batches():
        w = W
        for _ in range(3):
            w, value = yield w, X
            seen.append((np.asarray(w), value))

    observation = observe_batches(train_step, batches())
    assert observation.batches == len(seen) == 3
    w = W
    for mine, value in seen:
        w, expected = jax.jit(train_step)(w, X)
        np.testing.assert_array_equal(mine, w)
        assert value == expected
    weights = Stats.of(np.stack([W, seen[0][0], seen[1][0]]))
    same(observation["argument w"].stats, weights)


def test_iterations():
    whole = observe_batches(train_step, [(W, X)] * 2)
    apart = observe_batches(train_step, [(W, X)] * 2, per_iteration=True)
    assert list(whole) == list(apart)
    [name] = [n for n in apart if "tanh" in n]
    assert apart[name].axes == (3,)
    assert len(apart[name].iterations) == 3
    assert apart[name].path == ("scan",)
    same(merge_all(apart[name].iterations), apart[name].stats)
    same(apart[name].stats, whole[name].stats)
    assert apart[name].stats.count == 2 * 3 * 4
    assert whole[name].iterations == ()


@pytest.mark.parametrize("detail", ["full", "moments", "amax"])
def test_details_save_and_load(detail, tmp_path):
    x = X.copy()
    x[0, 0], x[1, 1], x[2, 2] = np.inf, np.nan, 1e-41
    observation = precir.compile(train_step).observe([(W, X), (W, x)], detail=detail)
    observation.save(tmp_path / "seen.json")
    loaded = Observation.load(tmp_path / "seen.json")
    assert loaded == observation
    stats = observation["argument x"].stats
    expected = Stats.of(np.stack([X, x]))
    if detail == "amax":
        assert stats.partial
        assert math.isnan(stats.amax)
    else:
        assert (stats.amax, stats.nan, stats.plus_inf) == (1, 1, 1)
        assert (stats.zeros, stats.subnormal) == (expected.zeros, 1)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(loaded)
    assert "argument x" in console.export_text()
    merged = loaded.merge(observation)
    assert merged.batches == 4
    assert merged["argument w"].stats.amax == 0.5


def test_errors(tmp_path):
    with pytest.raises(ObserveError, match="no batches"):
        observe_batches(train_step, [])
    with pytest.raises(ObserveError, match="not known"):
        observe_batches(train_step, [(W, X)], detail="some")
    with pytest.raises(DumpError, match="cannot read"):
        Observation.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(DumpError, match="not an observation"):
        Observation.load(tmp_path / "other.json")
    with pytest.raises(DumpError, match="cannot write"):
        observe_batches(train_step, [(W, X)], detail="amax").save(tmp_path / "no" / "where")


def test_counts_may_outgrow_the_device(monkeypatch):
    whole = observe_batches(train_step, [(W, X)] * 5)
    monkeypatch.setattr(sys.modules["precir.observe"], "_DRAINED", 30)
    drained = observe_batches(train_step, [(W, X)] * 5)
    for name in whole:
        same(drained[name].stats, whole[name].stats)


def test_shapes_may_differ_between_batches():
    observation = observe_batches(train_step, [(W, X), (W, X[:2])])
    assert observation["argument x"].stats.count == X.size + X[:2].size
