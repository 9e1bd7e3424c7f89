"""The report counts what the program does, and says it whole, in text, as data and on screen."""

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax import numpy as jnp
from rich.console import Console

import precir
from precir.errors import DumpError
from precir.ir import Type
from precir.program import Program
from precir.report import Report
from precir.report.group import common_scope, group
from precir.report.units import bytes_text, format_name, percent_text, type_bytes

LAYERS, WIDTH, BATCH = 12, 16, 8


def make_params() -> dict[str, Any]:
    block = {"up": jnp.ones((WIDTH, 4 * WIDTH)), "down": jnp.ones((4 * WIDTH, WIDTH))}
    return {f"h_{i}": block for i in range(LAYERS)} | {"head": jnp.ones((WIDTH, 10))}


def loss(params: dict[str, Any], x: jax.Array) -> jax.Array:
    with jax.named_scope("net"):
        for i in range(LAYERS):
            with jax.named_scope(f"h_{i}"):
                x = x + jnp.tanh(x @ params[f"h_{i}"]["up"]) @ params[f"h_{i}"]["down"]
        with jax.named_scope("head"):
            logits = x @ params["head"]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1))


def step(params: dict[str, Any], x: jax.Array) -> tuple[Any, jax.Array]:
    value, grads = jax.value_and_grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def program(fn: Callable[..., Any], *args: Any, recipe: Any = "fp8") -> Program:
    found: Program = precir.compile(fn, recipe=recipe).program(*args)
    return found


def rendered(report: Report, width: int) -> str:
    console = Console(width=width, record=True, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report)
    return console.export_text()


@pytest.fixture(scope="module")
def trained() -> Program:
    return program(step, make_params(), jnp.ones((BATCH, WIDTH)))


@pytest.fixture(scope="module")
def report(trained: Program) -> Report:
    return Report.of(trained)


# -- products --------------------------------------------------------------------------------------


def test_every_product_is_there_once(trained: Program, report: Report) -> None:
    traced = [n for n in trained.stages[0].graph.walk() if n.op == "dot_general"]
    assert len(report.products) == len(traced) == 3 * (2 * LAYERS + 1) - 1  # no gradient for x
    final = [n for n in trained.graph.walk() if n.op in ("dot_general", "scaled_dot")]
    # What is only read transposed is multiplied the other way round in the end.
    formats = [sorted(format_name(o.type.dtype) for o in n.inputs) for n in final]
    assert [sorted(p.format.split(" x ")) for p in report.products] == formats
    assert [p.low for p in report.products] == [n.op == "scaled_dot" for n in final]
    results = [format_name(n.outputs[0].type.dtype) for n in final]
    assert [p.result for p in report.products] == results


def test_a_product_says_what_where_and_why(report: Report) -> None:
    first = report.products[0]
    assert (first.low, first.format, first.scope, first.phase, first.op) == (
        *(True, "E4M3 x E4M3", "net/h_0", "forward", "dot_general"),
    )
    assert first.shape == "[8,16] x [16,64] -> [8,64]"
    assert first.where.startswith("test_report.py:")
    assert first.flops == 2 * BATCH * WIDTH * 4 * WIDTH
    assert first.times == 1
    wide = [p for p in report.products if not p.low]
    assert {p.scope for p in wide} == {"net/head"}
    assert all("loss" in reason for reason in report.wide)


def test_headlines(report: Report) -> None:
    assert report.headline == f"{report.low} of 74 products in FP8, 99.3% of the multiply-adds"
    plain = Report.of(program(lambda x: x @ x, jnp.ones((4, 4)), recipe="float32"))
    assert plain.headline == "0 of 1 products in FP8: 1 in f32"
    assert Report.of(program(jnp.sin, jnp.ones(4))).headline == "no matrix products"


def test_convolutions_and_integers_are_products_too() -> None:
    def fn(x: jax.Array, kernel: jax.Array, n: jax.Array) -> Any:
        return jax.lax.conv(x, kernel, (1, 1), "SAME").reshape(10, 64) @ jnp.ones((64, 4)), n @ n

    made = program(fn, jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3)), jnp.ones((4, 4), jnp.int32))
    conv, _, integers = Report.of(made).products
    assert (conv.op, conv.format, conv.low) == ("conv_general_dilated", "bf16 x bf16", False)
    assert conv.reason == "no 8-bit kernel for conv_general_dilated"
    assert conv.flops == 2 * (2 * 5 * 8 * 8) * (3 * 3 * 3)
    assert (integers.format, integers.reason) == ("i32 x i32", "not floating point")


def test_sub_programs_count_once_and_say_how_often() -> None:
    def fn(w: jax.Array, x: jax.Array) -> Any:
        def inner(c: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return c @ w, None

        def outer(c: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return jax.lax.scan(inner, c, None, length=3)[0], None

        x = jax.lax.scan(outer, x, None, length=5)[0]
        x = jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ w, x)
        return jax.lax.cond(x.sum() > 0, lambda c: c @ w, lambda c: c, x)

    found = Report.of(program(fn, jnp.ones((4, 4)), jnp.ones((4, 4))))
    assert [p.times for p in found.products] == [15, None, 1]
    assert "multiply-adds" not in found.headline  # nobody knows how often the while loop runs
    assert {t.times for t in found.tensors} == {1, 5, 15, None}


def test_overrides_are_reasons() -> None:
    recipe = precir.recipe("fp8").where(scope="net/h_3", keep="float32")
    found = Report.of(program(step, make_params(), jnp.ones((BATCH, WIDTH)), recipe=recipe))
    kept = [p for p in found.products if p.scope == "net/h_3"]
    assert {p.format for p in kept} == {"f32 x f32"}
    assert {p.reason for p in kept} == {"float32 by override at net/h_3"}
    assert found.numbers.endswith("; f32 at net/h_3")


# -- residuals and tensors -------------------------------------------------------------------------


def test_residuals_are_what_backward_reads() -> None:
    def fn(x: jax.Array) -> Any:
        return jax.grad(lambda x: jnp.sum(jnp.sin(x)))(x)

    found = Report.of(program(fn, jnp.ones((64,)), recipe="float32"))
    assert [(t.op, t.bytes) for t in found.residuals] == [("cos", 256)]
    assert found.residual_bytes == 256


def test_stacked_residuals_of_a_scan_count_whole() -> None:
    def total(w: jax.Array, x: jax.Array) -> jax.Array:
        def body(c: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return jnp.sin(c @ w), None

        return jnp.sum(jax.lax.scan(body, x, None, length=5)[0])

    w = jnp.ones((4, 4))
    found = Report.of(program(jax.grad(total), w, w, recipe="float32"))
    stacked = [t for t in found.residuals if t.op == "scan"]
    assert stacked
    assert {t.shape for t in stacked} == {"[5,4,4]"}
    assert {t.bytes for t in stacked} == {5 * 4 * 4 * 4}


def test_what_remat_computes_again_is_not_kept() -> None:
    def fn(x: jax.Array, remat: bool) -> Any:
        def f(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(jnp.sin(jnp.sin(x))))

        return jax.grad(jax.checkpoint(f) if remat else f)(x)

    kept, again = (
        Report.of(program(lambda x, r=r: fn(x, r), jnp.ones(64), recipe="float32"))
        for r in (False, True)
    )
    assert kept.residual_bytes == 3 * 256
    assert again.residual_bytes == 0


def test_fp8_keeps_less(report: Report) -> None:
    args = make_params(), jnp.ones((BATCH, WIDTH))
    plain, half = (Report.of(program(step, *args, recipe=r)) for r in ("float32", "bf16-mixed"))
    assert report.residual_bytes < half.residual_bytes
    assert sum(t.bytes for t in report.residuals) == report.residual_bytes
    assert {f.format for f in plain.formats} <= {"f32", "bool", "i32"}


def test_tensors_are_all_values_largest_first(trained: Program, report: Report) -> None:
    assert len(report.tensors) == sum(len(n.outputs) for n in trained.graph.walk())
    sizes = [t.bytes for t in report.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(f.bytes for f in report.formats) == sum(sizes)
    assert sum(f.count for f in report.formats) == len(sizes)


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (Type((3, 5), "float32"), 60),
        (Type((), "bfloat16"), 2),
        (Type((8, 4), "float8_e4m3fn", scale=()), 32 + 4),
        (Type((8, 4), "float8_e5m2", scale=(8, 1)), 32 + 32),
        (Type((3,), "int4"), 2),
        (Type((3,), "float4_e2m1fn"), 2),
        (Type((7,), "bool"), 7),
        (Type((2,), "complex64"), 16),
        (Type((2,), "key<fry>"), 16),
        (Type((9,), "float0"), 0),
        (Type((0, 5), "float64"), 0),
        (Type((4,), "no such type"), 0),
    ],
)
def test_bytes_of_a_value(type_: Type, expected: int) -> None:
    assert type_bytes(type_) == expected


# -- as text, as data, on screen -------------------------------------------------------------------


def test_text_has_every_row_and_no_width(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(report)
    monkeypatch.setenv("COLUMNS", "20")
    assert str(report) == text
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if set(line) == {"-"}]
    titles = {lines[n - 1]: n for n in starts}
    for title, rows in (
        ("Products in program order", report.products),
        ("Residuals, largest first", report.residuals),
        ("Tensors, largest first", report.tensors),
    ):
        block = lines[titles[title] + 2 :]
        assert [*block, ""].index("") == len(rows)
    assert all(line == line.rstrip() for line in lines)
    assert report.headline in lines


def test_text_is_the_same_for_the_same_program(report: Report) -> None:
    again = Report.of(program(step, make_params(), jnp.ones((BATCH, WIDTH))))
    assert again == report
    assert str(again) == str(report)


def test_data_goes_and_comes_back(report: Report) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert Report.from_json(data) == report
    assert data["headline"] == report.headline
    assert data["residual_bytes"] == report.residual_bytes
    assert sum(f["bytes"] for f in data["formats"]) == sum(t.bytes for t in report.tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: [], "`name` is missing"),
        (lambda d: d | {"recipe": 3}, "`recipe` is missing or is not a str"),
        (lambda d: {k: v for k, v in d.items() if k != "tensors"}, "`tensors` is missing"),
        (lambda d: d | {"products": [*d["products"], {}]}, "row 74 of `products`"),
        (lambda d: d | {"tensors": [d["tensors"][0] | {"bytes": "9"}]}, "`bytes` in row 0"),
        (lambda d: d | {"tensors": [d["tensors"][0] | {"more": 1}]}, "row 0 of `tensors`"),
    ],
)
def test_other_data_is_refused(report: Report, change: Any, said: str) -> None:
    with pytest.raises(DumpError, match=said):
        Report.from_json(change(report.to_json()))


@pytest.mark.parametrize("width", [80, 120, 200])
def test_screen_shows_layers_as_one(report: Report, width: int) -> None:
    shown = rendered(report, width)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("net/h_*") >= 4
    assert shown.count("net/h_0") + shown.count("net/h_5") == 0  # alike, all of them
    assert "×12" in shown
    assert "more (report.txt has all)" in shown
    assert "forward" in shown
    assert "backward" in shown


def test_narrow_screens_only_cut(report: Report) -> None:
    for width in (20, 40, 60):
        assert max(map(len, rendered(report, width).splitlines())) <= width


@pytest.mark.parametrize("fn", [jnp.sin, lambda x: x], ids=["no_products", "no_nodes"])
def test_small_programs_have_reports(fn: Callable[..., Any]) -> None:
    found = Report.of(program(fn, jnp.ones(4)))
    assert "nothing is kept" in str(found)
    assert found.recipe in rendered(found, 80)


def test_compiled_functions_report(report: Report) -> None:
    compiled = precir.compile(step, recipe="fp8")
    assert compiled.report(make_params(), jnp.ones((BATCH, WIDTH))) == report


# -- the small things ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["a/h_0/b", "a/h_1/b"], "a/h_*/b"),
        (["a2/h_0", "a2/h_7", "a2/h_10"], "a2/h_*"),
        (["a/h_3"], "a/h_3"),
        (["x1y1", "x2y1"], "x*y1"),
        ([""], ""),
        ([], ""),
    ],
)
def test_common_scope(scopes: list[str], expected: str) -> None:
    assert common_scope(scopes) == expected


def test_group_keeps_order_and_what_differs() -> None:
    rows = [("h_0", "a"), ("h_0", "b"), ("h_1", "a"), ("head", "a")]
    found = group(rows, lambda r: r[0], lambda r: r[1])
    assert [(g.scope, g.count) for g in found] == [("h_*", 2), ("h_0", 1), ("head", 1)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (14_200_000, "14.2 MB"),
     (3 * 10**15, "3,000.0 TB")],
)  # fmt: skip
def test_bytes_text(count: int, expected: str) -> None:
    assert bytes_text(count) == expected


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 0, "0%"), (0, 5, "0%"), (5, 5, "100%"), (99_999, 100_000, "99.9%"), (1, 10**9, "0.1%"),
     (1, 8, "12.5%")],
)  # fmt: skip
def test_percent_text(part: int, whole: int, expected: str) -> None:
    assert percent_text(part, whole) == expected


def test_every_product_in_fp8_says_its_way_on_a_gpu() -> None:
    """And the model never sends one where it would be slower than in bf16."""
    w = jnp.ones((512, 256))
    step = precir.compile(lambda x, w: jnp.sum(jnp.tanh(x @ w) @ w.T), recipe="fp8-block")
    report = step.report(jnp.ones((64, 512)), w)
    assert [bool(p.way) for p in report.products] == [p.low for p in report.products]
    for p in report.products:
        if p.low:
            way, times = p.way.split(": ", 1)
            took = {n: float(t) for n, t in re.findall(r"(\w+) ([\d.]+) us", times)}
            assert took[way] <= 1.05 * took["bf16"]
            assert "by the model" in times or "measured" in times
    assert "Products in FP8 on a GPU" in str(report)
