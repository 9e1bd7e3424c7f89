"""What the passes do with facts: fold what is proved, withhold a format, say why."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precir
from precir.check import RangesError
from precir.ir import Graph
from precir.passes.facts import infer_facts
from precir.passes.proved import fold_proved


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.walk()]


def folded(fn: Any, *args: Any) -> list[str]:
    graph = precir.lower(fn, *args)
    return ops(fold_proved(graph, infer_facts(graph)))


X = jnp.linspace(-2, 2, 8)


def test_an_index_that_cannot_be_negative_is_not_wrapped() -> None:
    def rows(table: jax.Array) -> jax.Array:
        return table[jnp.arange(4)]

    assert "select_n" in ops(precir.lower(rows, X))
    assert "select_n" not in folded(rows, X)


def test_an_extremum_with_one_winner_goes() -> None:
    assert "max" not in folded(lambda i: jnp.maximum(jnp.arange(4) + i[:4] * 0, -1), jnp.arange(8))
    ids = jnp.arange(8, dtype=jnp.uint8)
    assert "min" not in folded(lambda i: jnp.minimum(jnp.sin(i.astype(jnp.float32)), 2.0), ids)


def test_what_is_not_proved_stays() -> None:
    assert "max" in folded(lambda x: jnp.maximum(x, -1e30), X)  # x may be NaN, or below
    assert "max" in folded(lambda x: jnp.maximum(jax.nn.relu(x), 0.0), X)
    assert "max" in folded(lambda x: jnp.maximum(jnp.tanh(x), 0.5), X)


def test_given_ranges_fold_nothing() -> None:
    graph = precir.lower(lambda x: jnp.maximum(x, -5.0), X)
    given = [precir.Range(-1, 1).fact()._replace(basis=1)]
    assert "max" in ops(fold_proved(graph, infer_facts(graph, given)))


def test_folding_changes_no_bit() -> None:
    def fn(x: jax.Array) -> jax.Array:
        return jax.nn.softmax(x.at[jnp.arange(8)].mul(2.0)) + jnp.maximum(jnp.tanh(x), -1.0)

    graph = precir.lower(fn, X)
    assert ops(graph) != ops(fold_proved(graph, infer_facts(graph)))
    low = precir.compile(fn, recipe=precir.Recipe("wide", "mixed", "float32"))
    np.testing.assert_array_equal(low(X), jax.jit(fn)(X))


def positions(x: jax.Array) -> jax.Array:
    return jnp.sin(jnp.arange(4000).astype(jnp.float32) / 100) * x


def test_positions_are_not_kept_in_bfloat16() -> None:
    compiled = precir.compile(positions, recipe="bf16-true")
    x = jnp.ones(4000)
    report = compiled.report(x)
    assert any("whole numbers up to 3,999" in k.reason for k in report.kept)
    assert "Kept wide" in str(report)
    error = float(jnp.abs(compiled(x) - jax.jit(positions)(x)).max())
    # The quotient is rounded to bfloat16, the positions are not: those would be off by eight.
    assert error < 0.15


def test_a_range_that_is_past_the_format_keeps_it_out() -> None:
    def far(x: jax.Array) -> jax.Array:
        return jnp.sqrt(x * 2.0)

    x = jnp.full(4, 1e6)
    blind = precir.compile(far, recipe="16-true")
    told = precir.compile(far, recipe="16-true", ranges=(precir.Range(1e5, 1e7),))
    assert not np.isfinite(blind(x)).all()
    np.testing.assert_allclose(told(x), far(x), rtol=1e-2)
    (row, *_) = told.report(x).kept
    assert "past the 6.55e+04 of float16" in row.reason


def test_scalars_of_counts_stay_wide_in_a_program_of_one_format() -> None:
    """As where the arrays are cast by hand: 0.999 is 1 in bfloat16, and 1 - 1 would divide."""

    def corrected(count: jax.Array, v: jax.Array) -> jax.Array:
        return v / (1 - 0.999 ** (count + 1))

    v = jnp.full(4, 0.25)
    for recipe in ("bf16-true", "16-true"):
        compiled = precir.compile(corrected, recipe=recipe)
        np.testing.assert_allclose(compiled(0, v), 250.0, rtol=1e-2)
        assert "bfloat16" in compiled.source(0, v) or "float16" in compiled.source(0, v)


def test_ranges_that_do_not_fit_are_refused_at_the_first_call() -> None:
    compiled = precir.compile(lambda x: x, recipe="bf16-true", ranges=(None, None))
    with pytest.raises(RangesError, match="2 ranges for 1 arguments"):
        compiled(X)


def test_the_report_says_what_a_tensor_holds() -> None:
    compiled = precir.compile(jax.nn.softmax, recipe="bf16-mixed", ranges=(precir.Range(-5, 5),))
    holds = [t.holds for t in compiled.report(X).tensors if t.op == "div"]
    assert holds == ["[5.68e-06, 1]"] or holds[0].endswith(", 1]")


def test_float32_infers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("facts were inferred")

    monkeypatch.setattr("precir.passes.pipeline.infer_facts", never)
    assert precir.compile(positions).program(jnp.ones(4000)).assignment.kept == {}
    with pytest.raises(AssertionError, match="facts were inferred"):
        precir.compile(positions, recipe="bf16-mixed").program(jnp.ones(4000))


def test_what_was_seen_past_a_format_does_not_get_it() -> None:
    def energy(x: jax.Array) -> jax.Array:
        return jnp.sqrt((x * 3.0) * (x * 3.0))

    x = jnp.full(4, 200.0)
    blind = precir.compile(energy, recipe="16-true")
    assert not np.isfinite(blind(x)).all()
    seen = precir.observe(energy, [(x,), (x / 2,)])
    told = precir.compile(energy, recipe="16-true", stats=seen)
    np.testing.assert_allclose(told(x), energy(x), rtol=1e-2)
    assert "seen up to 3.6e+05" in told.report(x).kept[0].reason


def test_what_was_seen_to_vanish_does_not_get_it() -> None:
    def tiny(x: jax.Array) -> jax.Array:
        return jnp.sqrt(x * 1e-9) * 1e4

    x = jnp.linspace(0.5, 1, 8)
    seen = precir.observe(tiny, [(x,)])
    told = precir.compile(tiny, recipe="16-true", stats=seen)
    assert any("100% of what was seen" in k.reason for k in told.report(x).kept)
    np.testing.assert_allclose(told(x), tiny(x), rtol=1e-2)


def test_statistics_of_another_program_are_refused() -> None:
    seen = precir.observe(lambda x: jnp.cos(x) + 1, [(X,)])
    told = precir.compile(lambda y: {"a": jnp.tanh(y["b"])}, recipe="16-true", stats=seen)
    with pytest.raises(precir.PrecirError, match="name no tensor of this program"):
        told({"b": X})
