"""The linter: what it finds, what it leaves alone, and what it says."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.check import RangesError
from precir.formats import UnknownFormat
from tests.hazards import HAZARDS, SAFE, held_out

ROOT = Path(__file__).parent.parent
UNIT = precir.Range(0, 1)


@cache
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location(
        "benchmark_hazards", ROOT / "benchmarks" / "hazards.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SUITES = {
    "tuned": (*HAZARDS, *SAFE),
    "held-out": (*held_out.HAZARDS, *held_out.SAFE),
}


@cache
def results(suite: str) -> Any:
    return [benchmark().ask(case) for case in SUITES[suite]]


@pytest.mark.parametrize("suite", ["tuned", pytest.param("held-out", marks=pytest.mark.sweep)])
def test_recall_and_false_alarms(suite: str) -> None:
    found = benchmark().score(results(suite))
    said = "\n".join(filter(None, map(benchmark().explain, results(suite))))
    assert found.recall >= 0.95, said
    assert found.false_alarms <= 0.05, said
    assert found.root >= 0.9, said
    assert found.line >= 0.95, said


def shape(*sizes: int) -> Any:
    return jax.ShapeDtypeStruct(sizes, np.float32)  # type: ignore[no-untyped-call]


def log_loss(p: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.log(p + 1e-8))


def test_a_finding_says_what_where_and_the_way_out() -> None:
    (found,) = precir.check(log_loss, shape(8), ranges=(UNIT,))
    assert (found.kind, found.primitive, found.root) == ("underflow", "log", "literal")
    assert (found.symptom, found.severity) == ("inf", "error")
    assert found.file == __file__
    assert found.line == log_loss.__code__.co_firstlineno + 1
    assert "float16" in found.message
    assert found.mend


def test_an_error_keeps_a_witness_that_does_it() -> None:
    (found,) = precir.check(log_loss, shape(8), ranges=(UNIT,))
    (args, kwargs) = found.witness
    assert not kwargs
    (p,) = args
    assert p.shape == (8,)
    assert p in UNIT
    assert not np.isfinite(log_loss(jnp.asarray(p, jnp.float16)))


def test_nothing_wrong_nothing_said() -> None:
    assert precir.check(jax.nn.softmax, shape(8), ranges=(precir.Range(-50, 50),), notes=True) == []


def test_what_hangs_on_the_unknown_is_a_note() -> None:
    def divide(x: jax.Array) -> jax.Array:
        return 1 / x

    assert precir.check(divide, shape(4), ranges=(None,)) == []
    (note,) = precir.check(divide, shape(4), ranges=(None,), notes=True)
    assert (note.severity, note.primitive, note.witness) == ("note", "div", None)
    found = precir.check(divide, shape(4), ranges=(precir.Range(-1, 1),))
    assert [h.severity for h in found] == ["error"]


def test_an_inexact_whole_number_that_no_result_shows_is_a_note() -> None:
    def unused(ids: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(1e4 + ids.astype(x.dtype)) * x

    ids = jax.ShapeDtypeStruct((8,), np.int32)  # type: ignore[no-untyped-call]
    ranges = (precir.Range(3000, 4000), UNIT)
    assert precir.check(unused, ids, shape(8), ranges=ranges) == []
    found = precir.check(lambda i, x: i.astype(x.dtype) + x, ids, shape(8), ranges=ranges)
    assert [(h.kind, h.severity) for h in found] == [("inexact", "error")]


@pytest.mark.parametrize(
    ("real", "happened"), [([256.0, 256.0], True), ([400.0, 399.0], False), ([np.nan, 256], True)]
)
def test_an_error_is_confirmed_by_what_really_came_out(real: Any, happened: bool) -> None:
    from precir.check.confirm import alike
    from precir.check.shadow import Pair

    simulated = Pair(np.array([256.0, 256.0]), np.array([400.0, 400.0]))
    assert alike(np.array(real), simulated) is happened
    assert not alike(np.array(real), Pair(simulated.low, simulated.low))


def test_a_batch_of_keys_is_an_argument() -> None:
    def noise(keys: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda k: jax.random.normal(k, (), x.dtype))(keys) * x

    keys = jax.random.split(jax.random.key(0), 3)
    assert precir.check(noise, keys, shape(3), ranges=(None, UNIT)) == []
    assert precir.check(noise, jax.eval_shape(lambda: keys), shape(3), ranges=(None, UNIT)) == []


def test_example_values_are_ranges() -> None:
    squares = lambda x: jnp.sum(x.astype(jnp.float16) ** 2)  # noqa: E731
    assert precir.check(squares, jnp.linspace(0, 1, 8)) == []
    (found,) = precir.check(squares, jnp.linspace(0, 500, 8))
    assert found.kind == "overflow"


@pytest.mark.parametrize(
    "ranges",
    [
        ({"w": precir.Range(0, 400), "b": None},),
        (lambda path: precir.Range(0, 400) if "w" in path else None,),
        (precir.Range(0, 400),),
    ],
)
def test_ranges_are_a_prefix_or_a_rule(ranges: Any) -> None:
    def norm(params: Any) -> jax.Array:
        return jnp.sqrt(jnp.dot(params["w"], params["w"])) + params["b"]

    found = precir.check(norm, {"w": shape(16), "b": shape()}, ranges=ranges)
    assert [h.primitive for h in found] == ["dot_general"]


def test_a_closed_over_jit_is_looked_into() -> None:
    inner = jax.jit(log_loss)
    assert precir.check(lambda p: 2 * inner(p), shape(8), ranges=(UNIT,))


def test_a_comment_silences_a_finding() -> None:
    def all_kinds(x: jax.Array) -> jax.Array:
        return jnp.exp(x)  # precir: ignore

    def this_kind(x: jax.Array) -> jax.Array:
        return jnp.exp(x)  # precir: ignore[overflow]

    def another(x: jax.Array) -> jax.Array:
        return jnp.exp(x)  # precir: ignore[invalid]

    counts = [
        len(precir.check(f, shape(4), ranges=(precir.Range(0, 20),)))
        for f in (all_kinds, this_kind, another)
    ]
    assert counts == [0, 0, 1]


def guarded(x: jax.Array, v: jax.Array) -> jax.Array:
    return x / (jnp.sqrt(v) + 1e-8)


def guarded_well(x: jax.Array, v: jax.Array) -> jax.Array:
    return x / (jnp.sqrt(v) + 1e-4)


def test_a_guard_that_is_zero_is_found_without_a_run() -> None:
    """As in a program that is too large to be run: its constants are what they are."""
    args = (jnp.ones(4), jnp.zeros(4))
    (found,) = precir.check(guarded, *args, format="float16", seconds=0)
    assert (found.kind, found.severity, found.symptom) == ("underflow", "warning", "inf")
    assert "1e-08 is 0 in float16" in str(found)
    assert precir.check(guarded, *args, format="bfloat16", seconds=0) == []
    assert precir.check(guarded_well, *args, format="float16", seconds=0) == []
    # Where what it guards is never zero, nothing hangs on it.
    positive = (None, precir.Range(1, 2))
    assert precir.check(guarded, *args, format="float16", seconds=0, ranges=positive) == []


def test_float32_finds_what_is_wrong_in_any_format() -> None:
    trap = jax.grad(lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0)))
    (found, *_) = precir.check(trap, shape(4), format="float32", ranges=(UNIT,))
    assert found.kind == "invalid"


def test_bad_ranges() -> None:
    with pytest.raises(RangesError, match="2 ranges for 1 arguments"):
        precir.check(log_loss, shape(4), ranges=(UNIT, UNIT))
    with pytest.raises(RangesError, match="is no range"):
        precir.check(log_loss, shape(4), ranges=(lambda _: (0, 1),))
    with pytest.raises(RangesError, match="expected a tuple"):
        precir.check(log_loss, shape(4), ranges=3)
    with pytest.raises(ValueError, match="not an interval"):
        precir.Range(1, 0)


def test_bad_format() -> None:
    with pytest.raises(UnknownFormat, match="float12"):
        precir.check(log_loss, shape(4), format="float12")
