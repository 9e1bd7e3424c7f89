"""Launches of Triton kernels that make tensor descriptors, for Hopper's TMA.

Such a kernel writes its descriptors to memory that Triton calls global scratch: so many bytes for
each program, through a pointer that is the last but one of the compiled kernel's parameters, after
those that are written in its source; the last is for a profiler. jaxlib hands every kernel null
pointers for both, after what it is told to pass. Here it is told to pass one array more, a result
that nothing reads: it takes the place of the first.

That rests on how Triton orders the parameters, and on how much it asks for. Both are read in what
it compiled, and anything else than expected raises `WorkspaceError`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, Final

import jax
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import mlir

from precir.errors import PrecirError

DESCRIPTOR: Final = 128  # bytes of one, and what it is aligned to
HIDDEN: Final = 2  # parameters of a compiled kernel that are not in its source


class WorkspaceError(PrecirError, RuntimeError):
    """A kernel that Triton compiled otherwise than this module knows."""


def launch_with_workspace(
    kernel: Any,
    arrays: Sequence[Array],
    out: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    *,
    descriptors: int,
    warps: int,
    stages: int,
    capability: int | None,
    constants: dict[str, Any],
) -> tuple[Array, ...]:
    """As `precir.kernels.launch.launch`, of a kernel each program of which makes so many
    descriptors.

    Raises ``WorkspaceError`` when it is lowered, if the kernel asks for more memory than they
    take, or for it in another place than this module knows.
    """
    grid = (*grid, *(1,) * (3 - len(grid)))
    space = jax.ShapeDtypeStruct((int(np.prod(grid)) * descriptors * DESCRIPTOR,), np.dtype("u1"))  # type: ignore[no-untyped-call]
    *results, _ = _call.bind(
        *arrays,
        kernel=kernel,
        out=(*out, space),
        grid=grid,
        descriptors=descriptors,
        warps=warps,
        stages=stages,
        capability=capability,
        constants=tuple(sorted(constants.items())),
    )
    return tuple(results)


_call: Any = Primitive("precir_triton_call")
_call.multiple_results = True


def _types(*_: Any, out: Any, **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in out]


_call.def_abstract_eval(_types)


def _lower(
    context: Any,
    *arrays: Any,
    kernel: Any,
    out: Any,
    grid: tuple[int, int, int],
    descriptors: int,
    warps: int,
    stages: int,
    capability: int | None,
    constants: Any,
) -> Any:
    from jax_triton import triton_lib

    library = triton_lib.triton_kernel_call_lib
    pointers = [triton_lib.get_triton_type(x) for x in (*context.avals_in, *context.avals_out[:-1])]
    made: list[Any] = []
    compiled, _ = triton_lib.get_or_create_triton_kernel(
        _backend(len(pointers), descriptors, made),
        "cuda",
        kernel,
        pointers,
        [],
        num_warps=warps,
        num_stages=stages,
        num_ctas=1,
        compute_capability=capability,
        enable_fp_fusion=False,
        metaparams=dict(constants),
        dump=False,
    )
    for ptx, metadata, target in made:  # not where it was compiled before
        if metadata["num_warps"] != warps:
            given = metadata["name"], metadata["num_warps"], 1, metadata["shared"], ptx, "", target
            _specialized[compiled] = library.TritonKernel(*given)
    compiled = _specialized.get(compiled, compiled)
    parameters = [library.create_array_parameter(0, 16) for _ in pointers]
    parameters.append(library.create_array_parameter(0, DESCRIPTOR))
    call = library.TritonKernelCall(compiled, *grid, parameters).to_proto("", b"")
    lowering: Any = jax.ffi.ffi_lowering
    rule = lowering("triton_kernel_call", api_version=2, backend_config=zlib.compress(call))
    return rule(context, *arrays)


_specialized: dict[Any, Any] = {}
"""By what triton_lib compiled, which starts as many warps as were asked for: the same kernel with
those that Triton added to load for the others.
"""

mlir.register_lowering(_call, _lower, platform="cuda")


def _backend(pointers: int, descriptors: int, made: list[Any]) -> Any:
    """How triton_lib makes a compiler: one that checks what it compiled, and leaves it here."""
    from jax_triton.triton_lib import cb

    class Checked(cb.CUDABackend):  # type: ignore[misc]
        """Triton's compiler."""

        def make_ptx(self, source: Any, metadata: Any, options: Any, capability: int) -> str:
            ptx: str = super().make_ptx(source, metadata, options, capability)
            check(ptx, metadata, pointers, descriptors)
            made.append((ptx, metadata, capability))
            return ptx

    return lambda _, capability: Checked(cb.GPUTarget("cuda", capability, 32))


def check(ptx: str, metadata: dict[str, Any], pointers: int, descriptors: int) -> None:
    """Raises ``WorkspaceError`` unless a kernel of so many ``pointers`` finds all that it asks for
    in an array after them: memory for ``descriptors``, and no other.
    """
    name = metadata["name"]
    read = set(map(int, re.findall(rf"\[{name}_param_(\d+)", ptx)))
    declared = set(map(int, re.findall(rf"\.param [^\n]*\b{name}_param_(\d+)", ptx)))
    size, alignment = metadata["global_scratch_size"], metadata["global_scratch_align"]
    if declared != set(range(pointers + HIDDEN)):
        found = f"{len(declared)} parameters where {pointers} and {HIDDEN} more are expected"
    elif max(read) != pointers:
        found = f"its workspace is not read from parameter {pointers}, the last read is {max(read)}"
    elif size > descriptors * DESCRIPTOR or alignment > DESCRIPTOR:
        found = f"{size} bytes at multiples of {alignment} for {descriptors} descriptors"
    else:
        return
    raise WorkspaceError(f"{name}: {found}", fix="a Triton of 3.6 to 3.9, or Tiling.tma=False")
