"""XLA's own compiler for an H100 takes a whole program with the Triton kernels in it."""

import subprocess
import sys

import pytest

from tests.cuda import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

PROGRAM = """
import re
import jax, numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from precir.kernels import E4M3, ScaledArray, scaled_dot
from precir.kernels.choice import prefer
from precir.kernels.launch import target
from precir.kernels.tiling import Tiling, tiled
from precir.target import card, compile_only

everywhere = NamedSharding(Mesh(np.array(compile_only(card("h100"), 1)), ("d",)), PartitionSpec())

def f(x, s, w, t, v, bias):
    a, b = ScaledArray(x, s, (1, 128)), ScaledArray(w, t, (128, 128))
    h, amax = scaled_dot(
        a, b, (((1,), (1,)), ((), ())), out=E4M3.dtype, out_scale=0.5, bias=bias,
        activation="gelu", amax=True,
    )
    last = ScaledArray(v, s[0, 0])
    return scaled_dot(h, last, (((1,), (1,)), ((), ())), out=jnp.bfloat16), amax

eight, wide = E4M3.dtype, np.dtype(np.float32)
types = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)
    for shape, dtype in (
        ((256, 512), eight), ((256, 4), wide), ((384, 512), eight), ((3, 4), wide),
        ((640, 384), eight), ((384,), wide),
    )
]
ways = {name: (name, None) for name in ("triton", "xla", "bf16")}
ways["tma"] = "triton", Tiling(128, 128, 128, 8, 4, tma=True)
for name, (way, tiling) in ways.items():
    with prefer(way), target(90), tiled(tiling):
        text = jax.jit(lambda *args: f(*args)).trace(*types).lower().compile(
            compiler_options={"xla_gpu_enable_triton_gemm": False}
        ).as_text()
    print(name, *sorted(re.findall(r'custom_call_target="([^"]+)"', text)))
"""


def test_xla_compiles_it_for_an_h100() -> None:
    """Both products by Triton; the one that cuBLASLt can do by it; both in bfloat16."""
    skip = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, env=environment(**skip), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    eight, sixteen, ours = "__cublas$lt$matmul$f8", "__cublas$lt$matmul", "triton_kernel_call"
    assert [line.split() for line in run.stdout.splitlines()] == [
        ["triton", ours, ours],
        ["xla", eight, ours],
        ["bf16", sixteen, sixteen],
        ["tma", ours, ours],
    ]
