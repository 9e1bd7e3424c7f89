"""What benchmarks/ measures, where it can be had in seconds: lengths, linearity, phases."""

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

import precir

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


@pytest.fixture
def of_training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return benchmark("fp8_lm_training")


def test_bytes_a_parameter_of_state_and_gradients(of_training: ModuleType) -> None:
    """Peng et al., equation 8: 16 and 6; and nothing waits where updates are fused."""
    args, count = of_training.random_args(of_training.SMALL), of_training.SMALL.parameters
    train = of_training.shapes.make_train_step(of_training.SMALL)
    for name, state, waiting in (("float32", 12, 4), ("fp8-lm-o2 + fused", 5, 0)):
        step = precir.compile(train, recipe=of_training.named(name))
        found = of_training.bytes_of(step, args, count)
        assert found == pytest.approx((state, waiting), abs=0.1)


def test_what_a_moment_loses_in_storage(of_training: ModuleType) -> None:
    """Squares over many binades vanish under one scale in E4M3, and do not in blocks."""
    m = jnp.logspace(-8, 0, 512).reshape(4, 128)
    moments = optax.ScaleByAdamState(jnp.zeros((), jnp.int32), {"w": m}, {"w": m**2})
    lost = {
        name: of_training.moment_error(moments, of_training.SCHEMES[name][1], 1000)
        for name in ("#0", "#4", "blocks")
    }
    assert lost["#0"] == (0, 0, 0)
    assert lost["#4"][2] > 0.3 > 0.01 >= lost["blocks"][2]
    assert lost["#4"][0] > 100 * lost["blocks"][0]


def test_a_layout_divides_what_the_devices_divide(of_training: ModuleType) -> None:
    memory = of_training.load("fp8_lm_memory")
    state = {"up": jax.ShapeDtypeStruct((2, 64, 6), jnp.float32), "ln_1": jnp.zeros((2, 64))}
    made = memory.specs(state, memory.Layout(data=4, model=4))
    assert made == {"up": PartitionSpec(None, "data", None), "ln_1": PartitionSpec()}
