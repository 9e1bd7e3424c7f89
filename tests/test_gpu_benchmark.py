"""benchmarks/gpu.py where there is no GPU: its judges, its clock, its table, its supervision of
workers, and all of it end to end in the tiny mode.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precir.kernels import E4M3, ScaledArray
from precir.kernels import choice as choices
from precir.kernels.tiling import TUNED, USUAL, tiles
from tests.cuda import environment
from tests.test_benchmarks import ROOT, benchmark


@pytest.mark.slow
def test_the_gpu_benchmark_runs_end_to_end_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--out", out]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    text = out.read_text()
    assert "Tiny mode" in text
    assert not re.search(r"\d (us|ms|TB/s|TFLOP/s|tokens/s)", text)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {len(benchmark("gpu_table").HEADINGS)}
    named = {row[0].removeprefix("| "): row for row in rows}
    for name in ("quantize, tensor", "scaled_dot, 1x128, 128x128", "tiny step: fp8"):
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


def test_the_fastest_right_tiling_goes_into_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """And from there into the kernels that are compiled."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ways, table = benchmark("gpu_ways"), benchmark("gpu_table")
    times = dict.fromkeys(ways.ways_of("tensor", TUNED), 3e-3)
    _, by_tma, wrong, fails, hangs, *_ = times
    times |= {by_tma: 2e-3, wrong: 1e-3, fails: 1e-3, hangs: 1e-3}
    monkeypatch.setattr(ways, "timed", lambda _, calls, *__: {name: times[name] for name in calls})
    judged, taking, running = ways.judged, ways.taking, [""]

    def judge(*args: Any) -> str:
        return "WRONG: 7" if running[0] == wrong else judged(*args)

    def compile_for(way: str, tiling: Any) -> Any:
        if running[0] == fails:
            raise RuntimeError("does not fit")
        return taking(way, tiling)

    monkeypatch.setattr(ways, "judged", judge)
    monkeypatch.setattr(ways, "taking", compile_for)
    found = table.Found(H100)
    ceiling = {"section": "ceiling", "size": "", "by": "", "seconds": 1.0}
    found.add(ceiling | {"name": "copy", "bytes": 3e12, "work": 0})
    found.add(ceiling | {"name": "bf16 product", "bytes": 0, "work": 8e14})

    def say(message: dict[str, Any]) -> None:
        running[0] = message.get("at", running[0])
        found.hear(message)

    lost = {("another job", hangs)}
    bench = benchmark("gpu_bench").Bench(say, True, math.inf, lost)
    ways.time_ways(bench, "tensor", (4096, 4096, 4096), TUNED)
    rows = {name: row["failed"] for (_, name, _), row in found.rows.items() if "failed" in row}
    assert rows == {
        wrong: "failed: WRONG: 7",
        fails: "failed: RuntimeError: does not fit",
    }
    new = table.choice_table(found, json.loads(table.CHOICE.read_text()))
    assert {row["way"] for row in new["measured"]} == set(choices.WAYS)
    with mock.patch.object(choices, "table", return_value=json.loads(table.laid_out(new))):
        whole = (choices.Grain(), choices.Grain())
        assert tiles((1, 8192, 4096, 4096), whole, 128) == TUNED[1]
        assert TUNED[1].tma
    assert tiles((1, 8192, 4096, 4096), whole, 128) == USUAL


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
    monkeypatch.setattr(gpu, "PATIENCE", 3.0)
    options = gpu.parse(["--tiny"])
    found = gpu.Found()
    went = list(gpu.measure(options, found))
    assert [name for name in went if "\n" not in name and "worker" not in name] == [
        "one", "two", "two", "three", "three",
    ]  # fmt: skip
    names = [(row["section"], row["name"]) for row in found.rows.values()]
    assert names == [(j, c) for j in ("one", "two", "three") for c in ("good", "bad")]
    assert "ended with code -6: a kernel went wrong" in found.rows["two", "bad", ""]["failed"]
    assert "said nothing for 3.0 s" in found.rows["three", "bad", ""]["failed"]


def test_judges_see_what_is_wrong() -> None:
    entry = benchmark("gpu_entry")
    names = ("count_different", "share_apart", "share_of_bound")
    count_different, share_apart, share_of_bound = (jax.jit(getattr(entry, n)) for n in names)
    codes = np.arange(4000, dtype=np.uint8) % 120
    one, two, nan = codes.copy(), codes.copy(), codes.copy()
    one[:3] += 1
    two[5] += 2
    nan[7] = 127
    data, one, two, nan = (jnp.asarray(c.view(E4M3.dtype)) for c in (codes, one, two, nan))
    assert count_different(one, data) == 3
    assert count_different(nan, nan) == 0
    assert count_different(jnp.float32(0), jnp.float32(-0.0)) == 1
    assert share_apart(data, data) == share_apart(nan, nan) == 0
    assert share_apart(one, data) == 0.75  # of one in a thousand
    assert share_apart(two, data) == share_apart(nan, data) == np.inf
    x = jnp.linspace(1, 2, 9)
    assert 0.9 < share_apart(x * (1 + 1e-5), x) < 1 < share_apart(x * 1.0001, x)
    assert share_apart(x.at[0].set(np.inf), x) == np.inf
    magnitude = jnp.full(9, 10.0)
    near, far = x.astype(jnp.bfloat16), (x * 1.02).astype(jnp.bfloat16)
    assert share_of_bound(near, (x, magnitude)) <= 1 < share_of_bound(far, (x, magnitude))
    narrow = ScaledArray((x / 2).astype(E4M3.dtype), jnp.float32(2))
    assert share_of_bound((narrow, x[-1]), (x, magnitude, x[-1])) <= 1
    assert share_of_bound((narrow, x[0]), (x, magnitude, x[-1])) > 1
    assert not share_of_bound(jnp.full(9, np.nan), (x, magnitude)) <= 1
    assert "WRONG" in entry.WITHIN.verdict(float("nan"))
    assert entry.SAME.verdict(0.0) == "equal"
