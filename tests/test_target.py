"""Programs compiled for GPUs that are not there: bytes, products, collectives, and clear errors."""

import json
import math
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import precir
from precir.cli import main
from precir.cli.memory import parse_mesh, spread_specs
from precir.cli.trouble import UsageError
from precir.errors import TargetError
from precir.target import CARDS, Collective, Memory, card, split_largest
from precir.target.hlo import Array, parse, steps
from precir.target.traffic import traffic
from tests.cuda import environment

LAYERS, WIDTH, BATCH = 3, 256, 512
W = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
X = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2)


def train_step(w: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, gradient = jax.value_and_grad(loss)(w, x)
    return w - 0.1 * gradient, value


@cache
def taken(recipe: str) -> Memory:
    step = precir.compile(train_step, recipe=recipe, donate_argnums=0)
    found: Memory = step.memory(W, X)
    return found


# --- bytes ----------------------------------------------------------------------------------------


def test_arguments_outputs_and_aliases_are_those_of_the_shapes() -> None:
    found = taken("bf16-mixed")
    weights, inputs = 4 * math.prod(W.shape), 4 * math.prod(X.shape)
    assert found.argument == weights + inputs
    assert found.output == pytest.approx(weights + 4, abs=64)  # the table of a tuple's addresses
    assert found.alias == weights
    assert found.temporary > 0
    assert weights + inputs < found.peak <= found.argument + found.output + found.temporary
    assert found.fits
    assert found.capacity == CARDS["h100"].memory


def test_seven_billion_weights_are_only_shapes() -> None:
    w = jax.ShapeDtypeStruct((7, 1_000_000, 1_000), jnp.float32)
    found = precir.memory(lambda w: w * 2, w)
    assert found.argument == found.output == 28_000_000_000
    assert found.fits
    assert not precir.memory(lambda w: w * 2, w, target="l4").fits


def test_a_plain_function_and_its_jit_are_the_same() -> None:
    plain = precir.memory(train_step, W, X)
    jitted = precir.memory(jax.jit(train_step, donate_argnums=0), W, X)
    assert plain.products == jitted.products
    assert (plain.alias, jitted.alias) == (0, 4 * math.prod(W.shape))
    assert jitted.recipe == ""


# --- products -------------------------------------------------------------------------------------


def test_products_are_counted_in_loops() -> None:
    found = taken("bf16-mixed")
    (row,) = found.products
    assert (row.kernel, row.operands) == ("cuBLASLt", "bf16 x bf16")
    assert row.count == 3 * LAYERS
    assert row.flops == 2 * BATCH * WIDTH * WIDTH * row.count
    assert found.exact
    assert found.low == 0


def test_fp8_products_reach_the_tensor_cores_in_fp8() -> None:
    found = taken("fp8")
    low = [p for p in found.products if p.low]
    assert {p.kernel for p in low} <= {"cuBLASLt FP8", "Triton scaled_dot"}
    # A weight's gradient may be multiplied the other way round, for it is read transposed.
    kinds = {"f8e4m3fn x f8e4m3fn", "f8e5m2 x f8e4m3fn", "f8e4m3fn x f8e5m2"}
    assert {"f8e4m3fn x f8e4m3fn"} < {p.operands for p in low} <= kinds
    assert found.low_share > 0.9
    assert found.recipe == "fp8"


def test_compiler_options_choose_the_kernels() -> None:
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    options = {"xla_gpu_enable_triton_gemm": True}
    (row,) = precir.memory(jnp.dot, x, x, compiler_options=options).products
    assert (row.kernel, row.operands, row.flops) == ("Triton GEMM", "bf16 x bf16", 2 * 256**3)


# --- several devices ------------------------------------------------------------------------------


def test_data_parallel_reduces_the_gradient() -> None:
    step = precir.compile(train_step, recipe="bf16-mixed", donate_argnums=0)
    found = step.memory(W, X, devices=8, shardings=(P(), P("data")))
    assert found.mesh == {"data": 8}
    assert found.argument == 4 * (math.prod(W.shape) + math.prod(X.shape) // 8)
    reduced = sum(c.bytes for c in found.collectives if c.kind == "all-reduce")
    assert reduced >= 2 * math.prod(W.shape)  # the gradient, in 16 bits or more
    assert {c.kind for c in found.collectives} == {"all-reduce"}


def test_fully_sharded_state_is_gathered() -> None:
    found = precir.memory(
        jax.jit(train_step, donate_argnums=0), W, X,
        mesh={"fsdp": 4}, shardings=(split_largest(W, "fsdp", 4), P("fsdp")),
    )  # fmt: skip
    assert found.devices == 4
    assert found.argument == 4 * (math.prod(W.shape) + math.prod(X.shape)) // 4
    assert any(c.kind == "all-gather" and c.bytes > 0 for c in found.collectives)


def test_shardings_of_the_users_own_mesh_are_carried_over() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    w = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, P("a", "b")))
    found = precir.memory(lambda w: w + 1, w)
    assert found.mesh == {"a": 2, "b": 2}
    assert found.argument == 64 * 64
    step = precir.compile(lambda w: w + 1, in_shardings=NamedSharding(mesh, P("a")))
    assert step.memory(jax.ShapeDtypeStruct((64, 64), jnp.float32)).argument == 64 * 64 * 2


def test_an_abstract_mesh_will_do() -> None:
    sharding = NamedSharding(AbstractMesh((8,), ("d",)), P("d"))
    x = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding)
    assert precir.memory(lambda x: x + 1, x).argument == 32


def test_splitting_takes_the_largest_axis_that_divides() -> None:
    shapes = {"a": (3, 16, 8), "b": (5,), "c": (8, 8), "d": ()}
    tree = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    assert split_largest(tree, "x", 8) == {
        "a": P(None, "x", None),
        "b": P(),
        "c": P("x", None),
        "d": P(),
    }


# --- what is said ---------------------------------------------------------------------------------


def test_it_prints_and_is_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = taken("bf16-mixed")
    text = str(found)
    assert "train_step  recipe bf16-mixed  on one h100" in text
    assert "cuBLASLt: bf16 x bf16 -> bf16" in text
    assert "temporaries" in text
    data = json.loads(json.dumps(found.data))
    assert data["temporary"] == found.temporary
    assert data["products"][0]["kernel"] == "cuBLASLt"
    rich.print(found)
    assert "arguments" in capsys.readouterr().out


def test_unknown_targets_and_ill_fitting_shardings_are_named() -> None:
    with pytest.raises(TargetError, match="did you mean 'h100'"):
        precir.memory(train_step, W, X, target="h10")
    with pytest.raises(TargetError, match="nothing says how the arguments lie on 8 devices"):
        precir.memory(train_step, W, X, devices=8)
    with pytest.raises(TargetError, match="devices=4, but the mesh"):
        precir.memory(train_step, W, X, devices=4, mesh={"data": 8}, shardings=P())
    with pytest.raises(TargetError, match="3 shardings for 2 arguments"):
        precir.memory(train_step, W, X, devices=8, shardings=(P(), P(), P()))
    with pytest.raises(TargetError, match="no arrays"):
        precir.memory(lambda: 1.0)


def test_a_missing_plugin_is_one_command_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from precir.target import topology

    def missing(*_: Any) -> Any:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topology, "_devices", missing)
    monkeypatch.setattr(topology, "_PLUGINS", ("no_such_plugin_of_mine",))
    topology.compile_only.cache_clear()
    with pytest.raises(TargetError, match=r'pip install "precir\[cuda\]"'):
        topology.compile_only(card("h100"), 1)
    topology.compile_only.cache_clear()


@pytest.mark.slow
def test_it_works_where_jax_gave_up_on_the_plugin() -> None:
    code = (
        "import os; os.environ.pop('JAX_PLATFORMS', None)\n"
        "import jax, jax.numpy as jnp, precir\n"
        "jnp.ones(3) + 1\n"
        "x = jax.ShapeDtypeStruct((8,), jnp.float32)\n"
        "print(precir.memory(lambda x: x + 1, x).argument)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert run.stdout == "32\n", run.stderr


@pytest.mark.parametrize("name", CARDS)
def test_every_card_compiles(name: str) -> None:
    x = jax.ShapeDtypeStruct((8,), jnp.float32)
    assert precir.memory(lambda x: x + 1, x, target=name).card == name


# --- reading HLO ----------------------------------------------------------------------------------

HLO = """\
HloModule m, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%gemm (p0: bf16[4,8], p1: bf16[8,16]) -> f32[4,16] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %p1 = bf16[8,16]{1,0} parameter(1)
  ROOT %d = f32[4,16]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sliced (p0: f8e4m3fn[4,8], p1: f8e5m2[16,8]) -> f16[4,16] {
  %p0 = f8e4m3fn[4,8]{1,0} parameter(0)
  %p1 = f8e5m2[16,8]{1,0} parameter(1)
  ROOT %d = (f16[4,16]{1,0}, s8[64]{0}) custom-call(%p0, %p1), custom_call_target="__cublas$gemm"
}

%body (t: (s32[], bf16[4,8], bf16[8,16])) -> (s32[], bf16[4,8], bf16[8,16]) {
  %t = (s32[], bf16[4,8]{1,0}, /*index=2*/bf16[8,16]{1,0:S(5)}) parameter(0)
  %a = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %b = bf16[8,16]{1,0} get-tuple-element(%t), index=2
  %f = f32[4,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm, backend_config={"kind":"__triton_gemm"}
  %s = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %e = bf16[16,8]{1,0} all-gather-done(%s)
  %r = (f32[4,16]{1,0}, bf16[4,8]{1,0}) all-reduce(%f, %a), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %u = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) tuple(%a, %b)
}

ENTRY %main (x: f8e4m3fn[4,8], y: f8e5m2[16,8]) -> bf16[4,16] {
  %x = f8e4m3fn[4,8]{1,0} parameter(0)
  %y = f8e5m2[16,8]{1,0} parameter(1)
  %w = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"},"k":[]}
  %v = (s32[], bf16[4,8]{1,0}, bf16[8,16]{1,0}) while(%x), condition=%c, body=%body
  %j = f16[4,16]{1,0} fusion(%x, %y), kind=kCustom, calls=%sliced
  %k = f32[4]{0} custom-call(%x), custom_call_target="triton_kernel_call"
  ROOT %q = (bf16[4,16]{1,0}, s8[64]{0}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul$f8", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
}
"""  # noqa: E501


def test_hlo_is_read() -> None:
    module = parse(HLO)
    assert module.entry == "main"
    assert module.types("body", "t") == (
        Array("s32", ()),
        Array("bf16", (4, 8)),
        Array("bf16", (8, 16)),
    )
    assert module.computations["main"]["q"].operands == ("x", "y")
    assert [s.times for s in steps(module) if s.instruction.op == "fusion"] == [12, 1, 1]
    assert Array("s4", (3,)).bytes == 2
    assert Array("pred", (3,)).bytes == 3


KERNEL = b""".visible .entry quantize_dot(
  wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e5m2 {%r1}, 1, 1;
"""


def test_triton_kernels_are_known_by_their_machine_code() -> None:
    def call(code: bytes, axes: str = "2,4,8") -> str:
        text = "".join(f"\\{b:03o}" for b in zlib.compress(code))
        return (
            f"ENTRY %main (a: f8e4m3fn[{axes}]) -> f32[2,4,16] {{\n"
            f"  %a = f8e4m3fn[{axes}] parameter(0)\n"
            "  %b = f8e5m2[2,8,16]{2,1,0} parameter(1)\n"
            "  ROOT %k = f32[2,4,16]{2,1,0} custom-call(%a, %b), "
            f'custom_call_target="triton_kernel_call", backend_config="{text}"\n}}\n'
        )

    (product,) = traffic(parse(call(KERNEL))).products
    assert (product.kernel, product.operands) == ("Triton quantize_dot", "f8e4m3fn x f8e5m2")
    assert product.flops == 2 * 2 * 4 * 8 * 16
    assert product.low
    (product,) = traffic(parse(call(KERNEL, "2,2,2,8"))).products  # its rows along two axes
    assert product.flops == 2 * 2 * 4 * 8 * 16
    found = traffic(parse(call(KERNEL.splitlines()[0])))
    assert [k.name for k in found.kernels] == ["Triton quantize_dot"]
    assert found.products == ()


def test_work_is_counted() -> None:
    found = traffic(parse(HLO))
    assert not found.exact  # the second loop's length is unknown
    assert [(p.kernel, p.operands, p.out, p.count, p.flops) for p in found.products] == [
        ("Triton GEMM", "bf16 x bf16", "f32", 13, 13 * 2 * 4 * 16 * 8),
        ("cuBLASLt FP8", "f8e4m3fn x f8e5m2", "bf16", 1, 2 * 4 * 16 * 8),
        ("cuBLAS", "f8e4m3fn x f8e5m2", "f16", 1, 0),
    ]
    assert set(found.collectives) == {
        Collective("all-gather", "bf16", 13, 13 * 4 * 8 * 2 * 4),
        Collective("all-reduce", "f32", 13, 13 * 4 * 16 * 4),
        Collective("all-reduce", "bf16", 13, 13 * 4 * 8 * 2),
    }
    assert [(k.name, k.count) for k in found.kernels] == [("Triton kernel", 1)]


# --- the command ----------------------------------------------------------------------------------

SOURCE = """
import jax, jax.numpy as jnp

def step(params, x):
    return {"w": params["w"] - 0.1 * jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(params["w"])}

def chosen(x, how):
    return x * 2 if how == "twice" else 0

def step_args():
    return {"w": jnp.ones((16, 16))}, jnp.ones((32, 16))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "small.py"
    path.write_text(SOURCE)
    return path


def test_the_command_prints_a_table(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", "bf16-mixed", "--donate", "params", "--on", "a100"]
    assert main(["memory", f"{file}:step", *options]) == 0
    out = capsys.readouterr().out
    assert "step  recipe bf16-mixed  on one a100" in out
    assert "in the place of donated arguments           0.00 MiB" in out


def test_the_command_shards_and_prints_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharded = ["--mesh", "4", "--shard", "x=data", "--shard", "params=any:data"]
    assert main(["memory", f"{file}:step", *sharded, "--output", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["devices"] == 4
    assert data["argument"] == (16 * 16 + 32 * 16) * 4 // 4


def test_the_command_knows_state_that_the_recipe_adds(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", f"{file}:step", "--recipe", "scaled-16", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["argument"] == 16 * 16 * 2 + 4 + 32 * 16 * 4


def test_the_command_takes_static_arguments(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--args", "f32[8]", "--static", "how=twice", "--output", "json"]
    assert main(["memory", f"{file}:chosen", *options]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == 32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--mesh", "x"], "--mesh 'x' is no mesh"),
        (["--on", "h1000"], "did you mean 'h100'?"),
        (["--mesh", "8"], "nothing says how the arguments lie on the mesh"),
        (["--mesh", "8", "--shard", "x"], "--shard 'x' is not ARRAY=AXES"),
        (["--mesh", "8", "--shard", "x=model"], "the mesh has no axis 'model'"),
        (["--mesh", "8", "--shard", "y=data"], "--shard 'y=data' fits no array"),
        (["--donate", "state"], "there is no argument 'state'"),
    ],
)
def test_the_command_says_what_is_wrong(
    given: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", f"{file}:step", *given]) == 2
    assert said in capsys.readouterr().err


def test_a_mesh_and_specs_as_text() -> None:
    assert parse_mesh("data=4,model=2") == {"data": 4, "model": 2}
    assert parse_mesh(None) == {}
    with pytest.raises(UsageError):
        parse_mesh("data=4,data=2")
    params = {"w": jax.ShapeDtypeStruct((4, 8), jnp.float32), "b": X}
    found = spread_specs(["p/*=-,model", "p/b=data"], ["p"], [params], {"data": 4, "model": 2})
    assert found == ({"w": P(None, "model"), "b": P("data")},)
