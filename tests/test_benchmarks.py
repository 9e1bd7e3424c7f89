"""What benchmarks/ measures, where it can be had in seconds: lengths, linearity, phases."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from precir.kernels import choice as choices

ROOT = Path(__file__).parent.parent


@cache
def benchmark(name: str) -> ModuleType:
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def emitted(layers: int, recipe: str) -> Any:
    pytest.importorskip("ruff", reason="ruff lays the emitted code out")
    return benchmark("readable").emit(layers, recipe)


RECIPES = ("float32", "bf16-mixed", "fp8")


@pytest.mark.parametrize("recipe", RECIPES)
def test_emitted_train_step_reads_like_code(recipe: str) -> None:
    assert list(emitted(4, recipe).faults()) == []


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "layers",
    # Past ten layers the order of a dict's keys is not that of their numbers.
    [8, pytest.param(12, marks=pytest.mark.slow), pytest.param(24, marks=pytest.mark.slow)],
)
def test_emitted_train_step_is_as_long_at_any_depth(recipe: str, layers: int) -> None:
    assert emitted(layers, recipe).lines == emitted(4, recipe).lines


def test_a_table_of_ops_is_a_fault() -> None:
    module = benchmark("readable").Module("OPS = [('add', 0, 1)]\n")
    assert list(module.faults()) == ["line 1 is a table"]


@pytest.mark.parametrize("program", ["train", "random", "nested"])
def test_scaling_measures_about_as_many_equations_as_asked(program: str) -> None:
    scaling = benchmark("scaling")
    found = scaling.measure(scaling.PROGRAMS[program](400), "fp8", None)
    assert 200 < found["equations"] < 800
    assert found["all"] > 0


@pytest.mark.slow
def test_a_first_call_is_measured_phase_by_phase() -> None:
    compile_time = benchmark("compile_time")
    case = compile_time.Case(1)
    plain = compile_time.in_process(case, None)
    found = compile_time.in_process(case, "float32")
    assert set(found["phases"]) == set(compile_time.PHASES)
    assert set(plain["phases"]) == set(compile_time.PHASES) - {"precir", "retrace"}
    row = compile_time.make_row(case, "float32", [plain], [found])
    assert len(row) == len(compile_time.HEADINGS)


@pytest.mark.slow
def test_the_cost_of_scales_is_measured_beside_plain_jit() -> None:
    scalify = benchmark("scalify")
    case = scalify.Case("tiny", "float16", (8, 4, 4), 2, 2)
    plain, scaled = scalify.SYSTEMS[0], scalify.of_precir("float16", "scaled-16", "dynamic")
    results = {}
    for system in (plain, scaled):
        found = scalify.in_process(sys.executable, "first call", case, system, 1)
        turns = scalify.in_process(sys.executable, "steps", case, system, 2)
        assert len(turns["plain"]) == len(turns["system"]) == 2
        results[case, system.name] = found | {"plain": 1.0, "step": 1.0}
    assert results[case, scaled.name]["nested"] > results[case, plain.name]["nested"]
    [row] = scalify.make_rows(results, (case,))
    assert len(row) == len(scalify.HEADINGS)


def test_every_loss_optimizer_and_schedule_of_optax_has_an_entry() -> None:
    pytest.importorskip("optax")
    kinds = {program.part for program in benchmark("optax_check").programs()}
    assert kinds == {"forward", "gradient", "update", "int32 step", "float step"}


@pytest.mark.parametrize(
    "name", ["cosine_similarity", "l2_loss", "sgd", "warmup_constant_schedule"]
)
def test_what_is_found_in_optax_is_confirmed_and_nothing_missed(name: str) -> None:
    pytest.importorskip("optax")
    optax_check = benchmark("optax_check")
    report = optax_check.Report()
    for program in optax_check.programs():
        if program.name == name:
            for format in optax_check.FORMATS:
                report.add(program, format)
    assert report.checks >= 2
    assert [row.cells for row in report.false] == []
    assert report.missed == []
    assert all(row.place.startswith("optax/") for row in report.rows)
    assert bool(report.rows) == (name == "cosine_similarity")


def test_the_planner_is_set_beside_the_papers(tmp_path: Path) -> None:
    planner = benchmark("planner")
    rows = list(planner.figures())
    assert len(rows) > 12
    assert all(len(row) == len(planner.HEADINGS) for row in rows)
    planner.draw(tmp_path / "planner.png")
    assert (tmp_path / "planner.png").stat().st_size > 10_000


def test_a_model_of_seven_billion_weights_is_only_shapes() -> None:
    shapes = benchmark("shapes")
    assert shapes.SEVEN_B.parameters == 6_582_177_792
    for scanned in (True, False):
        shape = replace(shapes.TINY, scanned=scanned)
        out = jax.eval_shape(shapes.make_train_step(shape), *shapes.abstract_args(shape))
        assert jax.tree.map(lambda x: x.shape, out[:2]) == jax.tree.map(
            lambda x: x.shape, shapes.abstract_args(shape)[:2]
        )


@pytest.mark.slow
def test_memory_is_measured_for_every_layout() -> None:
    memory = benchmark("memory")
    model = memory.of_shape(memory.shapes.TINY)
    made = [memory.measure(model, "bf16-mixed", layout) for layout in memory.LAYOUTS]
    assert [m.devices for m in made] == [1, 8, 8]
    assert made[0].argument == made[1].argument > 7 * made[2].argument
    row = memory.cells(("tiny", "1", "bf16-mixed", made[0], 1.0), made[0])
    assert len(row) == len(memory.HEADINGS)
    assert list(memory.largest(made[0], 2))


# --- benchmarks/gpu.py ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_gpu_benchmark_runs_end_to_end_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--out", out]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    text = out.read_text()
    assert "Tiny mode" in text
    assert not re.search(r"\d (us|ms|TB/s|TFLOP/s|tokens/s)", text)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {len(benchmark("gpu_table").HEADINGS)}
    named = {row[0].removeprefix("| "): row for row in rows}
    for name in ("quantize, tensor", "scaled_dot, 1x128, 128x128", "tiny step: fp8-lm-block"):
        assert name in named
    assert "loss 5." in named["tiny step: flax FP8 ops"][-2]


@pytest.mark.slow
def test_no_results_are_written_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--out", out]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert run.returncode == 1
    assert "error: no GPU here" in run.stderr
    assert not out.exists()


def test_the_committed_results_are_of_a_gpu_or_say_that_there_are_none() -> None:
    text = (ROOT / "benchmarks" / "results" / "gpu.md").read_text()
    assert "Tiny mode" not in text
    if "Not yet run on a GPU" in text:
        assert not re.search(r"\d (us|ms|TB/s|TFLOP/s|tokens/s)", text)
    else:
        assert "NVIDIA" in text
        assert "driver" in text


def test_a_chain_is_every_call_and_is_timed() -> None:
    clock = benchmark("gpu_clock")
    sets = [(jnp.full((8, 8), float(i)), jnp.eye(8)) for i in range(3)]
    calls = {"product": clock.chain(jnp.matmul, sets), "sum": clock.chain(jnp.add, sets)}
    for i, result in enumerate(calls["product"]()):
        assert (result == i).all()
    assert clock.made_of(calls["product"], 3) != "XLA"
    seen: list[str] = []
    times = clock.together(calls, 0.01, seen.append)
    assert set(times) == set(calls) == set(seen)


FP8 = ("float8_e4m3fn", "float8_e4m3fn")
H100 = {"device": "NVIDIA H100 80GB HBM3", "machine": "x86_64", "driver": "570"} | dict.fromkeys(
    ("python", "jax", "jaxlib", "triton", "jax-triton", "flax", "qwix", "numpy"), "1.0"
)


def test_the_gpu_table_measures_against_floors_and_bases() -> None:
    table = benchmark("gpu_table")
    found = table.Found(H100)
    ceiling = {"section": "ceiling", "size": "", "by": ""}
    found.add(ceiling | {"name": "copy", "seconds": 1.0, "bytes": 3e12, "work": 0})
    found.add(ceiling | {"name": "bf16 product", "seconds": 1.0, "bytes": 0, "work": 800e12})
    kernel = {"section": "quantize", "size": "1", "bytes": 3e6, "work": 0, "rate": "fp8", "by": ""}
    kernel |= {"base": "XLA", "aim": ("share", 0.85), "check": "equal"}
    found.add(kernel | {"name": "quantize", "seconds": 2e-6})
    found.add(kernel | {"name": "XLA", "seconds": 4e-6, "aim": None})
    product = {"section": "product", "size": "8", "bytes": 1, "work": 1979e9, "by": ""}
    product |= {"base": "bf16", "check": "WRONG: 3", "aim": ("over", 1.0), "rate": "fp8"}
    found.add(product | {"name": "dot", "seconds": 2e-3})
    found.add({"section": "step", "name": "qwix", "size": "", "failed": "not installed: qwix"})
    found.add({"section": "step", "name": "fp8", "size": "", "failed": "failed: Bad: luck"})
    rows = {row[0]: row[1:] for row in table.table(found)}
    assert rows["quantize"] == (
        "1", "2.0 us", "1.50 TB/s", "50%", "2.00 x XLA", "", "equal", "MISSED 85%",
    )  # fmt: skip
    assert rows["quantize: XLA"][3:5] == ("25%", "")
    assert rows["dot"][1:4] == ("2.00 ms", "990 TFLOP/s", "50%")
    assert rows["dot"][-1] == "WRONG"
    assert rows["step: qwix"][-2:] == ("not installed: qwix", "")
    assert rows["step: fp8"][-1] == "FAILED"


def test_measured_choices_replace_those_of_the_same_device() -> None:
    table = benchmark("gpu_table")
    old = json.loads(table.CHOICE.read_text())
    assert json.loads(table.laid_out(old)) == old
    found = table.Found(H100)
    ceiling = {"section": "ceiling", "size": "", "by": "", "seconds": 1.0}
    found.add(ceiling | {"name": "copy", "bytes": 3.01e12, "work": 0})
    found.add(ceiling | {"name": "bf16 product", "bytes": 0, "work": 777e12})
    choice = {"way": "xla", "granularity": ["row", "row"], "shapes": [1, 512, 256, 128]}
    choice |= {"out": "bfloat16", "epilogue": False, "seconds": 1.23456e-5}
    for seconds in (1.0, choice["seconds"]):
        found.hear({"choice": choice | {"seconds": seconds}})
    new = table.choice_table(found, table.choice_table(found, old))
    assert json.loads(table.laid_out(new)) == new
    mine = [row for row in new["measured"] if row["device"] == "NVIDIA H100"]
    assert [row["seconds"] for row in mine] == [1.235e-5]
    assert new["devices"]["NVIDIA H100"]["bytes"] == 3.01e12
    assert new["devices"]["NVIDIA H200"] == old["devices"]["NVIDIA H200"]
    with mock.patch.object(choices, "table", return_value=new):
        text = choices.explain(
            (1, 512, 256, 128),
            ("float8_e4m3fn",) * 2,
            (choices.Grain(1),) * 2,
            "bfloat16",
            "NVIDIA H100",
        )
    assert "measured near it" in text
    assert "xla 12.3 us" in text


WORKER = """
import json, os, sys, time
options = json.loads(sys.argv[1])
def say(**what): print(json.dumps(what), flush=True)
say(environment={"platform": "cpu"})
say(jobs=["one", "two", "three"])
for i, job in list(enumerate(["one", "two", "three"]))[options["from"]:]:
    say(begin=i, name=job)
    for contender in ("good", "bad"):
        if [job, contender] in options["without"]:
            continue
        say(at=contender)
        if (job, contender) == ("two", "bad"):
            print("a kernel went wrong", file=sys.stderr, flush=True)
            os.abort()
        say(row={"section": job, "name": contender, "size": "", "failed": "not installed"})
    if job == "three" and ["three", "bad"] not in options["without"]:
        time.sleep(60)
    say(end=i)
"""


def test_a_kernel_that_takes_the_process_with_it_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = benchmark("gpu")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(gpu, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(gpu, "PATIENCE", 5.0)
    options = gpu.parse(["--tiny"])
    found = gpu.Found()
    went = list(gpu.measure(options, found))
    assert [name for name in went if "\n" not in name and "worker" not in name] == [
        "one", "two", "two", "three", "three",
    ]  # fmt: skip
    names = [(row["section"], row["name"]) for row in found.rows.values()]
    assert names == [(j, c) for j in ("one", "two", "three") for c in ("good", "bad")]
    assert "ended with code -6: a kernel went wrong" in found.rows["two", "bad", ""]["failed"]
    assert "said nothing for 5.0 s" in found.rows["three", "bad", ""]["failed"]
