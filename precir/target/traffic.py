"""Products and collectives of a compiled program, read off its HLO text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from precir.target.hlo import Array, Instruction, Module, Step, fused, steps
from precir.target.triton import CALL, read_kernel

_COLLECTIVES: Final = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_TARGET: Final = re.compile(r'custom_call_target="([^"]+)"')
_CONTRACTED: Final = (
    re.compile(r"lhs_contracting_dims=\{([\d,]*)\}"),
    re.compile(r'"lhs_contracting_dimensions":\[([\d,"]*)\]'),
)
_TRITON: Final = ('"__triton_gemm"', '"__triton_nested_gemm_fusion"')
_PRODUCTS: Final = ("__cublas$", "__cudnn$conv", "__cudnn$fmha")
_INTERNAL: Final = (  # neither kernels nor of interest
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "AllocateBuffer",
    "annotate_device_placement",
    "MoveToHost",
    "MoveToDevice",
)
_EIGHT: Final = ("f8",)


@dataclass(frozen=True)
class Product:
    """Products of one kind.

    Attributes:
      kernel: what computes them: "cuBLASLt FP8", "cuBLASLt", "cuBLAS", "Triton GEMM" (XLA's own),
        "fused dot" (in a fusion, on the ordinary cores or in Triton), "dot", "convolution",
        the name of a library call, or "Triton" and the name of a kernel that uses tensor cores.
      operands, out: element types, as HLO writes them; those of operands joined by " x ".
      count: in one run of the program, on one device.
      flops: of all of them, a multiply-add being two; 0 where they cannot be told.
    """

    kernel: str
    operands: str
    out: str
    count: int
    flops: int

    @property
    def low(self) -> bool:
        """Whether both operands are of 8 bits when they are multiplied."""
        return all(a.startswith(_EIGHT) for a in self.operands.split(" x "))


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind and element type: how many run on one device, and their bytes.

    `bytes` are those of the whole array that is reduced, gathered or moved, as one device sees it:
    the result of an all-gather, the operand of the others.
    """

    kind: str
    dtype: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Kernel:
    """Library calls that are no products: how many run."""

    name: str
    count: int


@dataclass(frozen=True)
class Traffic:
    """All of a program; `exact` is False where loops of unknown length or branches hold some."""

    products: tuple[Product, ...]
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    exact: bool


def traffic(module: Module) -> Traffic:
    """Count what a program does."""
    products: dict[tuple[str, str, str], list[int]] = {}
    collectives: dict[tuple[str, str], list[int]] = {}
    kernels: dict[str, int] = {}
    exact = True
    for step in steps(module):
        found = list(_found(module, step))
        exact &= step.exact or not found
        for each in found:
            if isinstance(each, Product):
                _add(products, (each.kernel, each.operands, each.out), step.times, each.flops)
            elif isinstance(each, Collective):
                _add(collectives, (each.kind, each.dtype), step.times, each.bytes)
            else:
                kernels[each.name] = kernels.get(each.name, 0) + step.times
    return Traffic(
        tuple(sorted((Product(*k, *v) for k, v in products.items()), key=lambda p: -p.flops)),
        tuple(sorted((Collective(*k, *v) for k, v in collectives.items()), key=lambda c: -c.bytes)),
        tuple(Kernel(*item) for item in sorted(kernels.items())),
        exact,
    )


def _add(sums: dict[Any, list[int]], key: Any, times: int, amount: int) -> None:
    found = sums.setdefault(key, [0, 0])
    found[0] += times
    found[1] += times * amount


def _found(module: Module, step: Step) -> Iterator[Product | Collective | Kernel]:
    each = step.instruction
    if each.op != "fusion":
        yield from _one(module, step.computation, each, "dot")
        return
    kernel = "Triton GEMM" if any(k in each.rest for k in _TRITON) else "fused dot"
    for computation, inner in fused(module, each):  # a library call may slice as it reads
        yield from _one(module, computation, inner, kernel)


def _one(
    module: Module, computation: str, each: Instruction, kernel: str
) -> Iterator[Product | Collective | Kernel]:
    """`kernel`: what computes a plain product here."""
    if each.op == "custom-call":
        yield from _call(module, computation, each)
    elif each.op in ("dot", "scaled-dot"):
        yield _product(module, computation, each, kernel)
    elif each.op == "convolution":
        yield _product(module, computation, each, "convolution")
    elif each.op.removesuffix("-start") in _COLLECTIVES:
        yield from _collectives(module, computation, each)


def _call(module: Module, computation: str, call: Instruction) -> Iterator[Product | Kernel]:
    found = _TARGET.search(call.rest)
    target = found[1] if found else "custom call"
    if target == CALL:
        kernel = read_kernel(call.rest)
        name = f"Triton {kernel.name}"
        if kernel.operands is None:
            yield Kernel(name, 1)
        else:
            yield _triton(module, computation, call, name, " x ".join(kernel.operands))
    elif target.startswith(_PRODUCTS):
        yield _product(module, computation, call, _kernel_name(target))
    elif target not in _INTERNAL:
        yield Kernel(target, 1)


def _kernel_name(target: str) -> str:
    if target.endswith("$f8"):
        return "cuBLASLt FP8"
    if target.startswith("__cublas$lt"):
        return "cuBLASLt"
    if target.startswith("__cublas$"):
        return "cuBLAS"
    return "convolution" if "conv" in target else target


def _product(module: Module, computation: str, each: Instruction, kernel: str) -> Product:
    operands = [module.types(computation, n) for n in each.operands[:2]]
    arrays = [a[0] for a in operands if a]
    names = " x ".join(a.dtype for a in arrays)
    out = each.types[0] if each.types else Array("", ())
    return Product(kernel, names, out.dtype, 1, _flops(each, arrays, out))


def _triton(
    module: Module, computation: str, call: Instruction, name: str, operands: str
) -> Product:
    """A kernel that uses tensor cores, taken to multiply its first two matrices."""
    given = [a for n in call.operands for a in module.types(computation, n)]
    matrices = [a for a in given if len(a.shape) > 1][:2]
    out = call.types[0] if call.types else Array("", ())
    flops = 0
    if len(matrices) == 2 and len(out.shape) > 1:  # operands may have any axes, results b, m, n
        sizes = math.prod(a.size for a in (*matrices, out))  # bmk bkn bmn = b^3 (mkn)^2
        sizes //= max(1, math.prod(out.shape[:-2]))
        flops = 2 * math.isqrt(sizes) if math.isqrt(sizes) ** 2 == sizes else 0
    return Product(name, operands, out.dtype, 1, flops)


def _flops(each: Instruction, operands: Sequence[Array], out: Array) -> int:
    for pattern in _CONTRACTED:
        found = pattern.search(each.rest)
        if found and operands:
            axes = [int(n) for n in re.findall(r"\d+", found[1])]
            return 2 * out.size * math.prod(operands[0].shape[a] for a in axes)
    return 0


def _collectives(module: Module, computation: str, each: Instruction) -> Iterator[Collective]:
    kind = each.op.removesuffix("-start")
    arrays = [a for name in each.operands for a in module.types(computation, name)]
    if kind == "all-gather":  # its results are whole; started, it has its operands in front of them
        arrays = list(each.types[len(arrays) if each.op != kind else 0 :])
    sums: dict[str, int] = {}
    for array in arrays:
        sums[array.dtype] = sums.get(array.dtype, 0) + array.bytes
    for dtype, size in sums.items():
        yield Collective(kind, dtype, 1, size)


def low_share(products: Iterable[Product]) -> float:
    """The part of the multiply-adds whose operands are of 8 bits."""
    rows = list(products)
    whole = sum(p.flops for p in rows)
    return sum(p.flops for p in rows if p.low) / whole if whole else 0.0
