"""Cards that XLA can compile for without having one: what its compiler asks about each.

Figures of the H100, H200 and A100 are those that XLA itself keeps of them
(`xla/backends/gpu/target_config/specs`); those of the L4, RTX 3090 and RTX 4090 are NVIDIA's
datasheets and architecture papers (Ada, Ampere GA102). Peaks are dense and NVIDIA's own: with
sums in float32, without sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from precir.errors import TargetError

_TEXT: Final = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared_memory}
  threads_per_core_limit: {threads} core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory} shared_memory_per_block_optin: {block_memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{description}"
"""


@dataclass(frozen=True)
class Card:
    """One GPU model.

    Attributes:
      name: what users call it, as "h100".
      description: what its driver calls it.
      capability: the compute capability, (9, 0) for Hopper.
      cores: streaming multiprocessors.
      memory: bytes on the device.
      bandwidth: bytes a second between device memory and cores.
      l2: bytes of second-level cache.
      clock: boost, in GHz.
      shared_memory: bytes of shared memory of a core, at most 1 KiB less of a block.
      threads: that one core holds at a time.
      fpus: float32 lanes of one core.
      flops: peak operations a second of a dense product, by the format of its operands.
    """

    name: str
    description: str
    capability: tuple[int, int]
    cores: int
    memory: int
    bandwidth: int
    l2: int
    clock: float
    shared_memory: int
    threads: int
    fpus: int
    flops: Mapping[str, float] = field(hash=False)

    @property
    def text(self) -> str:
        """The card as XLA's compiler reads it: a `GpuTargetConfigProto` in text form."""
        major, minor = self.capability
        hopper = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return _TEXT.format(
            shared_memory=self.shared_memory, threads=self.threads, cores=self.cores,
            fpus=self.fpus, bandwidth=self.bandwidth, l2=self.l2, clock=self.clock,
            memory=self.memory, block_memory=self.shared_memory - 1024, major=major,
            minor=minor, features=hopper, description=self.description,
        )  # fmt: skip


_HOPPER: Final = {
    "f32": 67e12, "tf32": 494.7e12, "bf16": 989.4e12, "f16": 989.4e12, "fp8": 1978.9e12
}  # fmt: skip

CARDS: Final[Mapping[str, Card]] = {
    card.name: card
    for card in (
        Card(
            "h100", "NVIDIA H100 80GB HBM3", (9, 0), 132, 84942979072, 3352320000000, 52428800,
            1.98, 233472, 2048, 128, _HOPPER,
        ),
        Card(
            "h200", "NVIDIA H200 141GB HBM3e", (9, 0), 132, 151397597184, 4800000000000, 52428800,
            1.98, 233472, 2048, 128, _HOPPER,
        ),
        Card(
            "a100", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 85100068864, 2039040000000, 41943040,
            1.41, 167936, 2048, 64, {"f32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "f16": 312e12},
        ),
        Card(
            "l4", "NVIDIA L4", (8, 9), 58, 24 << 30, 300000000000, 50331648,
            2.04, 102400, 1536, 128,
            {"f32": 30.3e12, "tf32": 60e12, "bf16": 121e12, "f16": 121e12, "fp8": 242.5e12},
        ),
        Card(
            "rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 128, 24 << 30, 1008000000000, 75497472,
            2.52, 102400, 1536, 128,
            {"f32": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12, "f16": 165.2e12, "fp8": 330.3e12},
        ),
        Card(
            "rtx3090", "NVIDIA GeForce RTX 3090", (8, 6), 82, 24 << 30, 936000000000, 6291456,
            1.695, 102400, 1536, 128,
            {"f32": 35.6e12, "tf32": 35.6e12, "bf16": 71e12, "f16": 71e12},
        ),
    )
}  # fmt: skip


def card(name: str | Card) -> Card:
    """The card of that name. Raises `TargetError` for one that is not known."""
    if isinstance(name, Card):
        return name
    found = CARDS.get(name.lower())
    if found is None:
        close = get_close_matches(name.lower(), CARDS, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(CARDS)}"
        raise TargetError(f"there is no target {name!r}", fix=known)
    return found
