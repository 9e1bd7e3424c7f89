"""The Triton kernel of scaled_dot where it loads by TMA: which products, its code, its workspace.

Its numbers are in test_triton_dot.py, where every product is made by pointers and by TMA.
"""

import re
import sys
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import precir
from precir.formats import F32
from precir.kernels import E4M3, E5M2, ScaledArray, quantize, scaled_dot, workspace
from precir.kernels import choice as choices
from precir.kernels import scaled_dot_cuda as cuda
from precir.kernels.choice import Grain, prefer
from precir.kernels.launch import SHARED_MEMORY, target
from precir.kernels.scaled_dot import _prepared
from precir.kernels.tiling import TUNED, USUAL, Tiling, tiled, tiles
from precir.kernels.workspace import WorkspaceError, check
from tests import interpreter
from tests.crosslower import lower_for_cuda
from tests.test_triton_dot import (
    CODE,
    MATMUL,
    NT,
    PAIRS,
    SMALL,
    SPILLED,
    assert_product,
    compiled,
    normal,
    only_triton,
    wide,
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

TMA = USUAL._replace(tma=True)
NARROW = {"out": E4M3.dtype, "out_scale": 1.0, "activation": "gelu", "bias": True}
FORMS = CODE | {
    "float32, ragged": (((), ()), {"out": F32.dtype}),
    "narrow, ragged": (((1, 128), (1, 128)), NARROW),
}
TILINGS = pytest.mark.parametrize("tiling", TUNED, ids=lambda t: "-".join(map(str, t)))


def launched(a: Any, b: Any, dims: Any, tiling: Tiling) -> tuple[Any, dict[str, Any]]:
    """The product as the interpreter makes it, and the constants of the launch."""
    seen: dict[str, Any] = {}

    def run(kernel: Any, arrays: Any, out: Any, grid: Any, constants: Any) -> list[np.ndarray]:
        seen.update(constants)
        return interpreter._run(kernel, arrays, out, grid, constants)

    operands, params = _prepared(a, b, dims, np.float32, 0, None, None, None, False)
    with target(90, run), only_triton(tiling):
        return cuda.on_cuda(*operands, **params)[0], seen


def test_tma_loads_what_is_contiguous_along_k() -> None:
    """Padded to 16 bytes if need be; an operand that is turned in the kernel takes pointers, and
    so does a result whose rows are no multiples of 16 bytes.
    """
    tiling = SMALL._replace(tma=True, store=True)
    for m, n, k, by_tma in ((40, 33, 64, True), (40, 33, 70, True), (40, 48, 64, False)):
        a, b = quantize(normal(m, k), E4M3), quantize(normal(k, n, seed=1), E4M3)
        actual, constants = launched(a, b, MATMUL, tiling)
        assert constants["TMA"] == by_tma
        assert_product(actual, *wide(a, b, MATMUL))
        actual, constants = launched(a, b.T, NT, tiling)
        assert constants["TMA"]
        assert constants["STORE"] == (n == 48)
        assert_product(actual, *wide(a, b, MATMUL))


def test_no_tile_reaches_into_the_next_of_a_batch() -> None:
    """Neither to read nor to write: the rows of one example are NaN, and those of no other."""
    dims = (((2,), (2,)), ((0,), (0,)))
    a, b = (quantize(normal(3, rows, 70, seed=rows), E4M3) for rows in (40, 36))
    data = jnp.asarray(a.data).at[1].set(np.nan)
    tiling = SMALL._replace(tma=True, store=True)
    actual, constants = launched(ScaledArray(data, a.scale), b, dims, tiling)
    assert constants["TMA"]
    assert constants["STORE"]
    expected, magnitude = wide(a, b, dims)
    assert np.all(np.isnan(actual[1]))
    assert_product(actual[::2], expected[::2], magnitude[::2])


@TILINGS
@pytest.mark.parametrize("block", [(), (1, 128)], ids=str)
def test_every_tiling_multiplies(tiling: Tiling, block: tuple[int, ...]) -> None:
    a = quantize(normal(150, 300), E4M3, block=block)
    b = quantize(normal(280, 300, seed=1), E5M2, block=block)
    actual, constants = launched(a, b, NT, tiling)
    names = ("BLOCK_M", "TMA", "STORE", "SPECIALIZE")
    expected = [tiling.m, tiling.tma, tiling.store, tiling.specialize]
    assert [constants[name] for name in names] == expected
    assert_product(actual, *wide(a, b, NT))


# --- the code


def shape_of(form: str) -> tuple[int, int, int]:
    return (1000, 1001, 1000) if "ragged" in form else (512, 512, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@TILINGS
def test_every_tiling_fits(tiling: Tiling, form: str) -> None:
    """In shared memory, as many programs as it says; sums and all in registers."""
    blocks, options = FORMS[form]
    shape = shape_of(form)
    if "bias" in options:
        options = {**options, "bias": np.ones(shape[1], np.float32)}
    kernel = compiled((E4M3, E4M3), blocks, shape, tiling, **options)
    found, (threads,) = kernel.resources(), re.findall(r"\.reqntid (\d+)", kernel.ptx)
    loaders = 128 if tiling.specialize and not options.get("amax") else 0
    assert int(threads) == 32 * tiling.warps + loaders
    assert ("setmaxnreg" in kernel.ptx) == bool(loaders)  # registers from those that load to others
    assert (kernel.shared + 1024) * tiling.resident <= SHARED_MEMORY + 1024
    assert found["registers"] * int(threads) * tiling.resident <= 1 << 16
    assert found["spilled"] <= (SPILLED if "ragged" in form else 0)


@PAIRS
@pytest.mark.parametrize(("store", "specialize"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("batch", [1, 3])
def test_hopper_loads_by_tma(pair: Any, batch: int, store: bool, specialize: bool) -> None:
    """Descriptors in the workspace, behind a fence; tiles from them to the tensor cores."""
    dims = (((2,), (2,)), ((0,), (0,)))

    def f(x: Any, y: Any) -> Any:
        return scaled_dot(whole(x), whole(y), dims, out=jnp.bfloat16)

    types = [
        jax.ShapeDtypeStruct((batch, rows, 1000), format.dtype)
        for rows, format in zip((1000, 1008), pair, strict=True)
    ]
    with only_triton(TMA._replace(store=store, specialize=specialize)):
        text, (kernel,) = lower_for_cuda(f, *types)
    names = ".".join({E4M3: "e4m3", E5M2: "e5m2"}[f] for f in pair)
    assert f"wgmma.mma_async.sync.aligned.m64n128k32.f32.{names}" in kernel.ptx
    assert f"cp.async.bulk.tensor.{2 if batch == 1 else 3}d.shared" in kernel.ptx
    assert "cp.async.cg.shared.global" not in kernel.ptx
    specialize &= batch == 1
    made = 2 + (2 if specialize else 1) * store
    assert kernel.ptx.count("fence.proxy.tensormap::generic.acquire.gpu") == made
    assert ("d.global.shared::cta.bulk_group" in kernel.ptx) == store
    assert ("setmaxnreg" in kernel.ptx) == specialize
    assert "[scaled_dot_param_8]" in kernel.ptx  # after six operands and two results
    assert "[scaled_dot_param_9]" not in kernel.ptx
    tiles_of_it = min(132, batch * 8 * 8)
    assert f"tensor<{tiles_of_it * 128 * made}xui8>" in text


def test_a_specialized_kernel_starts_with_all_its_warps() -> None:
    """Four that load beside eight that multiply; also where it is compiled already."""
    from jax_triton import triton_lib

    library, made, launched = triton_lib.triton_kernel_call_lib, {}, []
    make, call = library.TritonKernel, library.TritonKernelCall

    def kernel(name: str, warps: int, *others: Any) -> Any:
        new = make(name, warps, *others)
        made[new] = warps
        return new

    def launch(compiled: Any, *others: Any) -> Any:
        launched.append(made[compiled])
        return call(compiled, *others)

    with (
        mock.patch.object(library, "TritonKernel", kernel),
        mock.patch.object(library, "TritonKernelCall", launch),
        mock.patch.object(triton_lib, "_COMPILED_KERNEL_CACHE", {}),
        only_triton(TMA._replace(specialize=True)),
        target(90),
    ):
        for _ in range(2):
            x = jax.ShapeDtypeStruct((512, 512), E4M3.dtype)
            a_program = jax.jit(lambda x: scaled_dot(whole(x), whole(x), NT)).trace(x)
            a_program.lower(lowering_platforms=("cuda",))
    assert sorted(made.values()) == [4, 12]
    assert launched == [12, 12]


def whole(data: Any) -> ScaledArray:
    return ScaledArray(data, jnp.ones((), jnp.float32))


ENTRY = """.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .u64 .ptr .global .align 1 f_param_1,
	.param .u64 .ptr .global .align 1 f_param_2
)
	ld.param.b64 	%rd1, [f_param_1];
"""
ASKED = {"name": "f", "global_scratch_size": 256, "global_scratch_align": 128}


@pytest.mark.parametrize(
    ("ptx", "asked", "message"),
    [
        (ENTRY.replace("f_param_2\n", "f_param_2,\n\t.param .u64 f_param_3\n"), {}, "4 parameters"),
        (ENTRY.replace("[f_param_1]", "[f_param_2]"), {}, "the last read is 2"),
        (ENTRY.replace("[f_param_1]", "[f_param_0]"), {}, "not read from parameter 1"),
        (ENTRY, {"global_scratch_size": 384}, "384 bytes"),
        (ENTRY, {"global_scratch_align": 256}, "at multiples of 256"),
    ],
)
def test_a_workspace_that_is_not_as_known_is_refused(ptx: str, asked: Any, message: str) -> None:
    check(ENTRY, ASKED, 1, 2)
    with pytest.raises(WorkspaceError, match=message):
        check(ptx, ASKED | asked, 1, 2)


def test_a_kernel_is_refused_that_asks_for_more() -> None:
    with (
        mock.patch.object(workspace, "DESCRIPTOR", 64),
        pytest.raises(WorkspaceError, match="256 bytes"),
    ):
        compiled((E4M3, E4M3), ((), ()), (512, 512, 512), TMA)


# --- which tiling


def test_the_fastest_tiling_that_was_measured_is_taken() -> None:
    whole, square = (Grain(), Grain()), (Grain(1, 128), Grain(128, 128))

    def row(size: int, tiling: Tiling | None, way: str = "triton") -> dict[str, Any]:
        made = {"device": "NVIDIA H100", "way": way, "granularity": ["tensor", "tensor"]}
        made |= {"shapes": [1, size, size, size], "out": "bfloat16", "seconds": 1.0}
        return made | ({"tiling": tiling._asdict()} if tiling else {})

    rows = [row(8192, TUNED[1]), row(512, TUNED[3]), row(1024, None, "xla")]
    with mock.patch.dict(choices.table(), measured=rows):
        assert tiles((1, 6000, 6000, 8192), whole, 128) == TUNED[1]
        assert tiles((1, 512, 1024, 512), whole, 64) == TUNED[3]._replace(k=64)
        assert tiles((1, 6000, 6000, 8192), square, 128) == USUAL
        assert tiles((1, 64, 6000, 8192), whole, 128).m == 64
        with only_triton(SMALL):
            assert tiles((1, 6000, 6000, 8192), whole, 128) == SMALL
        kernel = compiled((E4M3, E4M3), ((), ()), (2048, 2048, 2048))
    assert "cp.async.bulk.tensor" in kernel.ptx
    assert tiles((1, 6000, 6000, 8192), whole, 128) == USUAL


# --- a program


def train_step(params: Any, x: Any, y: Any) -> Any:
    """Layers in a loop, by whose gradient a step is made."""

    def loss(params: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            return jax.nn.gelu(x @ w), None

        return jnp.mean((jax.lax.scan(layer, x, params)[0] - y) ** 2)

    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))


@pytest.mark.parametrize("recipe", ["fp8", "fp8-block"])
def test_a_train_step_compiles_for_an_h100(recipe: str) -> None:
    """XLA's own compiler takes it, each kernel with memory for its descriptors."""
    params = jax.ShapeDtypeStruct((4, 512, 512), np.dtype(np.float32))
    x = jax.ShapeDtypeStruct((1024, 512), np.dtype(np.float32))
    by_tma: list[bool] = []

    def seen(ptx: str, *args: Any) -> None:
        check(ptx, *args)
        by_tma.append("cp.async.bulk.tensor" in ptx)

    from jax_triton import triton_lib

    fresh = mock.patch.object(triton_lib, "_COMPILED_KERNEL_CACHE", {})
    with fresh, mock.patch.object(workspace, "check", seen), prefer("triton"), tiled(TMA):
        found = precir.compile(train_step, recipe=recipe).memory(params, x, x)
    kernels = [p for p in found.products if p.kernel == "Triton scaled_dot"]
    assert sum(p.count for p in kernels) >= 4
    assert by_tma
    assert all(by_tma)
