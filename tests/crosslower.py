"""Compile what a JAX function launches on a GPU, for a GPU that is not there.

`lower_for_cuda` gives the machine code of every raw kernel, of which a test asserts what only that
can show: which instructions, how much shared memory, how many registers. It needs the packages of
``precir[cuda]``, and no NVIDIA library.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from precir.kernels.launch import target


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel: its name, Triton's IR, PTX, and bytes of shared memory."""

    name: str
    ttir: str
    ttgir: str
    ptx: str
    shared: int
    capability: int

    def resources(self) -> dict[str, int]:
        """What NVIDIA's assembler reports: registers of a thread, and bytes that it spills."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "kernel.ptx")
            source.write_text(self.ptx)
            arch = f"sm_{self.capability}" + "a" * (self.capability >= 90)
            run = subprocess.run(
                [_assembler(), "-v", f"--gpu-name={arch}", source, "-o", Path(folder, "cubin")],
                capture_output=True,
                text=True,
            )
        assert run.returncode == 0, run.stderr
        return {
            "registers": _number(r"Used (\d+) registers", run.stderr),
            "spilled": _number(r"(\d+) bytes spill stores", run.stderr),
        }


def lower_for_cuda(
    function: Callable[..., Any], *types: Any, capability: int = 90
) -> tuple[str, list[Kernel]]:
    """The StableHLO of ``function`` for CUDA, and the raw kernels that it launches.

    ``types`` are its arguments: arrays or ``jax.ShapeDtypeStruct``.
    """
    from jax_triton import triton_lib

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(triton_lib, "_JAX_TRITON_DUMP_DIR", folder),
        mock.patch.object(triton_lib, "_COMPILED_KERNEL_CACHE", {}),  # what is cached is not dumped
        target(capability),
    ):
        # A function of its own, since JAX remembers what it lowered.
        traced = jax.jit(lambda *args: function(*args)).trace(*types)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        kernels = [_read(path, capability) for path in sorted(Path(folder).iterdir())]
    return text, kernels


def _read(folder: Path, capability: int) -> Kernel:
    (info,) = folder.glob("*.compile_info")
    parts = {kind: info.with_suffix(kind).read_text() for kind in (".ttir", ".ttgir", ".ptx")}
    shared = _number(r"shared_mem_bytes: (\d+)", info.read_text())
    return Kernel(info.stem, parts[".ttir"], parts[".ttgir"], parts[".ptx"], shared, capability)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in {text}"
    return int(match[1])


def _assembler() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas")
