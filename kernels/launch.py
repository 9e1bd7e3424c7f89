"""How a CUDA rule calls a raw Triton kernel: for which GPU, and through what.

A rule asks ``fp8_gpu()`` whether its kernels can be had, and else takes the reference. Neither
``triton`` nor ``jax_triton`` is imported before the first launch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

import jax
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from precir.kernels.workspace import launch_with_workspace

FP8_CAPABILITY: Final = 89  # the first with FP8 conversions: Ada, then Hopper (90)
SHARED_MEMORY: Final = 227 * 1024  # bytes a program may use on Hopper

Out = Sequence[jax.ShapeDtypeStruct]
Runner = Callable[[Any, Sequence[Array], Out, tuple[int, ...], dict[str, Any]], Sequence[Any]]

_target: ContextVar[tuple[int, Runner | None] | None] = ContextVar("target", default=None)
_possible: ContextVar[bool] = ContextVar("possible", default=True)


def launch(
    kernel: Any,
    arrays: Sequence[Array],
    out: Out,
    grid: tuple[int, ...],
    *,
    warps: int = 4,
    stages: int = 3,
    in_place: Mapping[int, int] | None = None,
    descriptors: int = 0,
    **constants: Any,
) -> tuple[Array, ...]:
    """What ``kernel`` (a ``triton.jit`` function) writes: arrays of the types ``out``.

    It takes pointers to ``arrays``, then to the results, then ``constants`` as ``tl.constexpr`` by
    name. The results hold anything before it runs, so it writes every element. ``grid`` is the
    number of programs along one to three axes, none of them 0; ``warps`` and ``stages`` are
    Triton's ``num_warps`` and ``num_stages``. A product and a sum are rounded apart.

    ``in_place`` gives arrays, by number, that results lie in the place of. Every element that the
    kernel writes there has to be made of what it read there. XLA copies such an array first where
    something else reads it later, or it is an argument that is not donated.

    ``descriptors`` is how many tensor descriptors each program makes, at most; with any, nothing is
    in place. See `precir.kernels.workspace`.
    """
    capability, runner = _target.get() or (None, None)
    if runner is not None:
        return tuple(runner(kernel, arrays, out, grid, constants))
    if descriptors:
        assert not in_place
        return launch_with_workspace(
            kernel,
            arrays,
            out,
            grid,
            descriptors=descriptors,
            warps=warps,
            stages=stages,
            capability=capability,
            constants=constants,
        )
    import jax_triton

    results = jax_triton.triton_call(
        *arrays,
        kernel=kernel,
        out_shape=list(out),
        grid=grid,
        num_warps=warps,
        num_stages=stages,
        compute_capability=capability,
        enable_fp_fusion=False,
        input_output_aliases=dict(in_place or {}),
        **constants,
    )
    return tuple(results)


def result(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The type of a result of ``launch``."""
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))  # type: ignore[no-untyped-call]


def fp8_gpu() -> bool:
    """Whether FP8 kernels in Triton can be had for the GPU that is compiled for."""
    capability = compute_capability()
    return capability is not None and capability >= FP8_CAPABILITY and _installed()


def compute_capability() -> int | None:
    """That of the GPU that is compiled for, 90 for Hopper: as ``target`` says, or of this machine's
    first. None where there is neither, and where ``lowering_for`` says that no kernel can be had.
    """
    if not _possible.get():
        return None
    named = _target.get()
    return named[0] if named is not None else _first_gpu()


@contextmanager
def target(capability: int, runner: Runner | None = None) -> Iterator[None]:
    """Compile for GPUs of this compute capability (90 for Hopper), with or without one here.

    With ``runner``, launches go to it instead of to jax_triton: it takes the kernel, its arrays,
    the types of its results, the grid and the constants, and returns the results.
    """
    token = _target.set((capability, runner))
    try:
        with _code_for_cuda_12():
            yield
    finally:
        _target.reset(token)


@contextmanager
def lowering_for(platforms: tuple[str, ...]) -> Iterator[None]:
    """Around a CUDA rule, traced and lowered: the platforms that a kernel of Triton's may be for.

    None where XLA divides the operands among devices: it would first collect them from all.
    ``jax.shard_map`` is what divides the work of a kernel.
    """
    token = _possible.set(platforms == ("cuda",))
    try:
        with _code_for_cuda_12() if fp8_gpu() else nullcontext():
            yield
    finally:
        _possible.reset(token)


@contextmanager
def _code_for_cuda_12() -> Iterator[None]:
    """Triton 3.9 writes PTX for Hopper in the version of CUDA 13, which JAX's CUDA 12 refuses."""
    from triton import knobs

    capability = compute_capability()
    with knobs.nvidia.scope():
        if capability is not None and capability < 100:
            knobs.nvidia.ptxas_blackwell = knobs.nvidia.ptxas.path
        yield


@lru_cache(maxsize=1)
def _first_gpu() -> int | None:
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        return None
    return int(device.compute_capability.replace(".", ""))


@lru_cache(maxsize=1)
def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("jax_triton", "triton"))
