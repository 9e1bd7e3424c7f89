"""XLA's own compiler for an H100 takes a whole program with the Triton kernels in it."""

import subprocess
import sys

import pytest

from tests.cuda import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there on Linux alone")

CARD = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

PROGRAM = """
import re, sys
import jax, numpy as np
from jax import numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from precir.kernels import E4M3, ScaledArray, scaled_dot
from precir.kernels.choice import prefer
from precir.kernels.launch import target

card = topologies.get_topology_desc(
    platform="cuda", topology_name="", target_config=sys.argv[1], topology="1x1x1"
)
everywhere = NamedSharding(Mesh(np.array(card.devices), ("d",)), PartitionSpec())

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
for way in ("triton", "xla", "bf16"):
    with prefer(way), target(90):
        text = jax.jit(lambda *args: f(*args)).trace(*types).lower().compile(
            compiler_options={"xla_gpu_enable_triton_gemm": False}
        ).as_text()
    print(way, *sorted(re.findall(r'custom_call_target="([^"]+)"', text)))
"""


def test_xla_compiles_it_for_an_h100() -> None:
    """Both products by Triton; the one that cuBLASLt can do by it; both in bfloat16."""
    skip = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, CARD]
    run = subprocess.run(command, env=environment(**skip), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    eight, sixteen, ours = "__cublas$lt$matmul$f8", "__cublas$lt$matmul", "triton_kernel_call"
    assert [line.split() for line in run.stdout.splitlines()] == [
        ["triton", ours, ours],
        ["xla", eight, ours],
        ["bf16", sixteen, sixteen],
    ]
