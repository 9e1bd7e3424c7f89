"""Run raw Triton kernels in numpy, with Triton's own interpreter and no GPU.

The interpreter is chosen by TRITON_INTERPRET when ``triton`` is imported, and a process that has
it chosen compiles nothing. So it runs in a process of its own, one for each process that tests,
started at the first launch; arrays go there and back through pipes.

``launch`` runs a kernel on numpy arrays. Inside ``interpreted()`` what a kernel's CUDA rule
launches is run here, so that the rule itself (grids, shapes, which kernel) is tested too: call it
outside of jit.

Two things are made as they are on a GPU. Conversions of floating-point numbers are those of
ml_dtypes, rounded to nearest even (the interpreter's own round FP8 wrongly), and to FP8 saturated
as PTX's ``cvt.rn.satfinite`` does. Results hold 0xA5 in every byte before a kernel runs, and every
array has guards on both sides that no kernel may write.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from tests.cuda import environment

ROOT = Path(__file__).parent.parent
GUARD = 256  # bytes
UNWRITTEN = 0xA5

TRITON_NAMES = {
    "bool": "i1",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
    **{f"{sign}int{n}": f"{sign[:1] or 'i'}{n}" for sign in ("", "u") for n in (8, 16, 32, 64)},
}


def launch(
    kernel: Any, grid: tuple[int, ...], *arrays: np.ndarray, **constants: Any
) -> list[np.ndarray]:
    """``kernel[grid](*arrays, **constants)``: the arrays as they are afterwards.

    ``kernel`` is a ``triton.jit`` function of a module; ``constants`` are numbers, booleans and
    strings. What goes wrong in the kernel raises here, with its traceback.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    arrays = tuple(np.ascontiguousarray(a).reshape(np.shape(a)) for a in arrays)
    header = {
        "kernel": [kernel.fn.__module__, kernel.fn.__name__],
        "grid": [int(n) for n in grid],
        "constants": constants,
        "arrays": [[a.dtype.name, a.shape] for a in arrays],
    }
    server.stdin.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        server.stdin.write(array.tobytes())
    server.stdin.flush()
    answer = json.loads(server.stdout.readline() or '{"error": "the interpreter ended"}')
    if "error" in answer:
        raise RuntimeError(f"in the interpreter:\n{answer['error']}")
    return _read_arrays(server.stdout, header["arrays"])


def unwritten(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array for a kernel to write, full of nothing in particular."""
    array = np.empty(shape, dtype)
    return np.frombuffer(bytes([UNWRITTEN]) * array.nbytes, array.dtype).reshape(array.shape)


def interpreted(capability: int = 90) -> AbstractContextManager[None]:
    """Inside, what CUDA rules launch runs in the interpreter."""
    from precir.kernels.launch import target

    return target(capability, _run)


def _run(kernel: Any, arrays: Any, out: Any, grid: Any, constants: Any) -> list[np.ndarray]:
    results = [unwritten(o.shape, o.dtype) for o in out]
    return launch(kernel, grid, *map(np.asarray, arrays), *results, **constants)[len(arrays) :]


@lru_cache(maxsize=1)
def _server() -> subprocess.Popen[bytes]:
    code = "from tests.interpreter import serve; serve()"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment(TRITON_INTERPRET="1", JAX_PLATFORMS="cpu"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(process.kill)
    return process


def _read_arrays(pipe: BinaryIO | Any, types: Any) -> list[np.ndarray]:
    return [
        _read_array(pipe, np.dtype(getattr(ml_dtypes, name, name)), shape) for name, shape in types
    ]


def _read_array(pipe: Any, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray:
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(pipe.read(size), dtype).reshape(shape)


# --- the interpreter's side


def serve() -> None:
    """Answer launches on stdin until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a kernel prints is no answer
    _mend_conversions()
    _mend_bounds()
    while line := requests.readline():
        header = json.loads(line)
        arrays = [Tensor(a) for a in _read_arrays(requests, header["arrays"])]
        try:
            module, name = header["kernel"]
            kernel = getattr(importlib.import_module(module), name)
            kernel[tuple(header["grid"])](*arrays, **header["constants"])
            results = [a.checked() for a in arrays]
        except Exception:
            answers.write(json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        else:
            answers.write(b"{}\n" + b"".join(results))
        answers.flush()


class Tensor:
    """A numpy array between guards, with what the interpreter asks of a torch tensor."""

    def __init__(self, array: np.ndarray) -> None:
        import triton.language as tl

        self.dtype = tl.str_to_ty(TRITON_NAMES[array.dtype.name], None)
        self.shape, self.nbytes = array.shape, array.nbytes
        self.bytes = np.full(array.nbytes + 2 * GUARD + 16, 0xFF, np.uint8)
        self.start = GUARD + (-(self.bytes.ctypes.data + GUARD)) % 16
        self.bytes[self.start : self.start + self.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def checked(self) -> bytes:
        """What it holds, once no guard is found written."""
        end = self.start + self.nbytes
        assert np.all(self.bytes[: self.start] == 0xFF), "written before the start of an array"
        assert np.all(self.bytes[end:] == 0xFF), "written past the end of an array"
        return self.bytes[self.start : end].tobytes()

    def data_ptr(self) -> int:
        return self.bytes.ctypes.data + self.start

    def untyped_storage(self) -> Tensor:
        return self

    cpu = untyped_storage

    def new_empty(self, *_: Any, **__: Any) -> Tensor:
        return Tensor.__new__(Tensor)

    def set_(self, storage: Tensor, *_: Any) -> None:
        self.__dict__.update(storage.__dict__)

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def stride(self) -> tuple[int, ...]:
        return ()

    def copy_(self, other: Tensor) -> None:
        assert other.bytes is self.bytes


def _mend_bounds() -> None:
    """Older interpreters take a loop's bound from an array of one element: NumPy no longer does."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = mended


def _mend_conversions() -> None:
    """Put exact conversions in the place of the interpreter's."""
    import triton.language as tl
    from triton.runtime import interpreter

    dtypes = {
        tl.float16: np.float16,
        tl.float32: np.float32,
        tl.float64: np.float64,
        tl.bfloat16: ml_dtypes.bfloat16,
        tl.float8e4nv: ml_dtypes.float8_e4m3fn,
        tl.float8e5: ml_dtypes.float8_e5m2,
    }

    def convert(x: np.ndarray, source: Any, to: Any, rounding: Any) -> np.ndarray:
        assert rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE), rounding
        value = np.ascontiguousarray(x).view(dtypes[source])
        if to in (tl.float8e4nv, tl.float8e5):
            largest = float(ml_dtypes.finfo(dtypes[to]).max)
            value = np.clip(value.astype(np.float32), -largest, largest)  # NaN stays NaN
        return value.astype(dtypes[to]).view(f"u{np.dtype(dtypes[to]).itemsize}").reshape(x.shape)

    interpreter._convert_float = convert
