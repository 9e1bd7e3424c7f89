"""Which way a product of FP8 operands takes on a GPU: the table, its overrides, its reasons."""

import json
import math
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from precir.kernels import E4M3, ScaledArray, choice, scaled_dot
from precir.kernels.choice import ENVIRONMENT, ChoiceError, Grain, choose, explain, prefer, seconds
from precir.kernels.launch import target
from precir.kernels.tiling import TUNED, Tiling
from precir.scaled import scale_shape

WHOLE, ROW, LINE, SQUARE, MX = Grain(), Grain(1), Grain(1, 128), Grain(128, 128), Grain(1, 32)
FP8 = ("float8_e4m3fn", "float8_e4m3fn")
MATMUL = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")
LARGE = (1, 4096, 4096, 4096)


def test_the_table_says_where_its_numbers_are_from() -> None:
    table = choice.table()
    rows = [*table["devices"].values(), *table["ways"].values(), *table["measured"]]
    assert all(row["source"] for row in rows)
    assert set(table["ways"]) == set(choice.WAYS)
    for row in table["ways"].values():
        assert row["source"].startswith("model: ")
    for row in table["measured"]:
        assert row["source"].startswith("measured")
        assert row["way"] in choice.WAYS
        assert "tiling" not in row or Tiling(**row["tiling"]) in TUNED
    assert json.loads(Path(choice.__file__).with_name("choice.json").read_text()) == table


def test_the_model_keeps_to_the_ceilings() -> None:
    """No product is faster than its multiplications, nor than reading and writing it."""
    for device, ceiling in choice.table()["devices"].items():
        for size in (64, 500, 4096, 16384):
            for grain in (WHOLE, ROW, LINE, MX):
                shapes, out = (1, size, size, size), np.dtype(np.float32)
                for way, time in seconds(shapes, FP8, (grain, grain), out, device).items():
                    rate = ceiling[choice.table()["ways"][way]["rate"]]
                    assert time >= 2 * size**3 / rate
                    assert time >= 6 * size**2 / ceiling["bytes"]


def test_eight_bits_are_for_large_products() -> None:
    for grains in ((WHOLE, WHOLE), (ROW, ROW), (LINE, SQUARE), (LINE, LINE)):
        assert choose((1, 16, 16, 16), FP8, grains, jnp.bfloat16) == "bf16"
        assert choose(LARGE, FP8, grains, jnp.bfloat16) in ("triton", "xla")
    assert choose(LARGE, FP8, (LINE, SQUARE), jnp.bfloat16) == "triton"
    # 32 at a time, a sum in float32 costs more than FP8 gains.
    assert choose((1, 8192, 8192, 8192), FP8, (MX, MX), jnp.bfloat16) == "bf16"


def test_ways_that_there_are_not() -> None:
    assert set(seconds(LARGE, FP8, (WHOLE, WHOLE), jnp.bfloat16)) == {"triton", "xla", "bf16"}
    assert set(seconds(LARGE, FP8, (LINE, WHOLE), jnp.bfloat16)) == {"triton", "bf16"}
    assert set(seconds(LARGE, FP8, (Grain(1, 16), WHOLE), jnp.bfloat16)) == {"bf16"}
    wide = ("float8_e4m3fn", "bfloat16")
    assert set(seconds(LARGE, wide, (WHOLE, WHOLE), jnp.bfloat16)) == {"bf16"}
    text = explain(LARGE, FP8, (Grain(1, 16), WHOLE), jnp.bfloat16)
    assert text.startswith("bf16: bf16 ")
    assert "no triton: blocks of 16" in text
    assert "no xla: scales change" in text
    assert "\n" not in text


def test_what_was_measured_corrects_the_model() -> None:
    modelled = seconds(LARGE, FP8, (ROW, ROW), jnp.bfloat16, "NVIDIA H100 80GB HBM3")
    assert "by the model, NVIDIA H100" in explain(LARGE, FP8, (ROW, ROW), jnp.bfloat16)
    row = {
        "device": "NVIDIA H100",
        "way": "triton",
        "shapes": LARGE,
        "granularity": ["row", "row"],
        "out": "bfloat16",
        "seconds": 3 * modelled["triton"],
        "source": "measured",
    }
    with mock.patch.dict(choice.table(), measured=[row]):
        measured = seconds(LARGE, FP8, (ROW, ROW), jnp.bfloat16)
        assert math.isclose(measured["triton"], 3 * modelled["triton"])
        assert measured["xla"] == modelled["xla"]
        assert choose(LARGE, FP8, (ROW, ROW), jnp.bfloat16) == "xla"
        assert "measured near it" in explain(LARGE, FP8, (ROW, ROW), jnp.bfloat16)
        assert seconds(LARGE, FP8, (LINE, ROW), jnp.bfloat16)["triton"] < measured["triton"]


def test_a_wish_goes_before_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in choice.WAYS:
        with prefer(way):
            assert choose(LARGE, FP8, (ROW, ROW), jnp.bfloat16) == way
            assert f"{way} was asked for" in explain(LARGE, FP8, (ROW, ROW), jnp.bfloat16)
    with prefer("xla"):  # which there is not
        assert choose(LARGE, FP8, (LINE, SQUARE), jnp.bfloat16) == "triton"
    monkeypatch.setenv(ENVIRONMENT, "bf16")
    assert choose(LARGE, FP8, (ROW, ROW), jnp.bfloat16) == "bf16"
    with prefer("triton"):
        assert choose(LARGE, FP8, (ROW, ROW), jnp.bfloat16) == "triton"
    monkeypatch.setenv(ENVIRONMENT, "cutlass")
    with pytest.raises(ChoiceError, match="triton, xla, bf16"):
        choose(LARGE, FP8, (ROW, ROW), jnp.bfloat16)


def lowered(m: int, n: int, k: int, block: Any = ()) -> str:
    def f(x: Any, s: Any, y: Any, t: Any) -> Any:
        a, b = ScaledArray(x, s, block), ScaledArray(y, t, block)
        return scaled_dot(a, b, NT, out=jnp.bfloat16)

    types = [
        jax.ShapeDtypeStruct(shape, dtype)
        for data in ((m, k), (n, k))
        for shape, dtype in ((data, E4M3.dtype), (scale_shape(data, block), np.float32))
    ]
    return jax.jit(f).trace(*types).lower(lowering_platforms=("cuda",)).as_text()


@LINUX
def test_the_rule_on_cuda_asks() -> None:
    ways = {"triton": "triton_kernel_call", "xla": "f8E4M3FN>, tensor<512x512xf8E4M3FN>) -> "}
    ways["bf16"] = "stablehlo.optimization_barrier"
    with target(90):
        for way, mark in ways.items():
            with prefer(way):  # type: ignore[arg-type]
                text = lowered(512, 512, 512)
            assert [mark in text for mark in ways.values()] == [w == way for w in ways], way
        assert ways["triton"] in lowered(512, 512, 512, (1, 128))
        assert ways["triton"] not in lowered(16, 16, 16, (1, 128))
    with target(80), prefer("triton"):
        assert ways["triton"] not in lowered(512, 512, 512)
    assert ways["triton"] not in lowered(512, 512, 512, (1, 128))  # with no GPU to ask


@LINUX
def test_xla_partitions_no_kernel() -> None:
    """Where XLA divides the program among devices it would give each all of a kernel's work."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    x, y = (
        jax.ShapeDtypeStruct(s, E4M3.dtype, sharding=NamedSharding(mesh, p))
        for s, p in (((2048, 512), P("d")), ((512, 512), P()))
    )

    def f(x: Any, y: Any) -> Any:
        a, b = (ScaledArray(v, jnp.ones((), jnp.float32)) for v in (x, y))
        return scaled_dot(a, b, MATMUL, out=jnp.bfloat16)

    mapped = jax.shard_map(f, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), check_vma=False)
    with target(90), prefer("triton"):
        texts = [
            jax.jit(g).trace(x, y).lower(lowering_platforms=("cuda",)).as_text()
            for g in (f, mapped)
        ]
    assert ["triton_kernel_call" in text for text in texts] == [False, True]


def test_operands_of_other_formats_go_by_xla() -> None:
    with target(90), prefer("triton"):
        x = ScaledArray(jnp.ones((4, 4), jnp.bfloat16), jnp.ones((), jnp.float32))
        text = jax.jit(lambda x: scaled_dot(x, x, MATMUL)).trace(x)
        assert "triton" not in text.lower(lowering_platforms=("cuda",)).as_text()
