"""How benchmarks/gpu.py tells the time of a GPU, what a program is made of, and what it runs on.

A launch costs the host some microseconds, and a call of a JAX program a hundred, so neither a
kernel nor a call is timed alone. `chain` makes one program that runs a function on several sets of
arguments, one after the other (`lax.optimization_barrier` ties each to the result before it), all
results returned: nothing can be left out, merged or overlapped, and no set is still in the cache
from the run before if the sets are more than the cache holds. `together` then starts such a program
several times without waiting, waits for the last, and takes off what a single one takes: what is
left is the device's time of those in between. Contenders take turns; the median counts.
"""

import importlib.metadata
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import jax
from jax import lax

from precir.kernels.choice import prefer
from precir.kernels.launch import target
from precir.kernels.tiling import Tiling, tiled
from precir.target.hlo import parse
from precir.target.traffic import traffic

PACKAGES = ("jax", "jaxlib", "triton", "jax-triton", "flax", "qwix", "numpy")
LEAST, MOST = 3, 20  # calls that are started before the clock is read
ROUNDS = 25  # at most
AT_ONCE = 0.02  # seconds that the calls of a reading take, or so


def on_gpu() -> bool:
    """Whether JAX's first device is a GPU."""
    return bool(jax.devices()[0].platform in ("gpu", "cuda"))


@contextmanager
def taking(way: str | None, tiling: Tiling | None = None) -> Iterator[None]:
    """Inside, programs are compiled for one way of `precir.kernels.choice`; "reference" is none of
    our kernels, and None the usual. ``tiling`` is that of products by Triton, None the usual.
    """
    if way == "reference":
        # No GPU that kernels are for: each takes its plain JAX reference.
        with target(0) if on_gpu() else nullcontext():
            yield
    else:
        with prefer(way), tiled(tiling):  # type: ignore[arg-type]
            yield


def chain(function: Callable[..., Any], sets: Sequence[tuple[Any, ...]]) -> Callable[[], Any]:
    """A compiled call of ``function`` on each of the sets, in their order; see the module.

    It has the attribute ``compiled``, JAX's compiled program.
    """

    def run(sets: Sequence[tuple[Any, ...]]) -> list[Any]:
        results: list[Any] = []
        for each in sets:
            args = each
            if results:
                args, results[-1] = lax.optimization_barrier((args, results[-1]))
            results.append(function(*args))
        return results

    return bound(jax.jit(run).lower(sets).compile(), sets)


def bound(compiled: Any, *args: Any) -> Callable[[], Any]:
    """A compiled program with its arguments, to be called without any."""

    def call() -> Any:
        return compiled(*args)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call


def together(
    calls: Mapping[str, Callable[[], Any]], seconds: float = 0.5, at: Callable[[str], None] = str
) -> dict[str, float]:
    """Seconds of one call of each, of which about ``seconds`` are spent on every one.

    ``at`` is told the name of the one that is about to run.
    """
    counts, spans = {}, {}
    for name, call in calls.items():
        at(name)
        _elapsed(call, 2)
        once = _elapsed(call, 1)
        counts[name] = min(max(LEAST, int(AT_ONCE / max(once, 1e-6))), MOST)
        spans[name] = _elapsed(call, counts[name]) + once
    longest = max(spans.values(), default=0.0)
    rounds = min(max(5, int(seconds / max(longest, 1e-6))), ROUNDS)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            at(name)
            one, many = _elapsed(call, 1), _elapsed(call, counts[name])
            found[name].append((many - one) / (counts[name] - 1))
    return {name: median(times) for name, times in found.items()}


def _elapsed(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def made_of(call: Any, times: int = 1) -> str:
    """Which kernels and products a compiled program runs, and how often in a ``times``-th of it;
    and of several products, how many are in FP8.
    """
    found = traffic(parse(call.compiled.as_text()))
    counts: Counter[str] = Counter()
    for each in found.products:
        counts[each.kernel] += each.count
    for kernel in found.kernels:
        counts[kernel.name] += kernel.count
    total = sum(p.count for p in found.products)
    low = sum(p.count for p in found.products if p.low)
    share = [f"{low} of {total} products in FP8"] if total > times else []
    names = [f"{n // times} {name}" if n > times else name for name, n in counts.most_common()]
    return "; ".join([*share, ", ".join(names) or "XLA"])


def environment() -> dict[str, str]:
    """The device and what runs on it."""
    found = {"device": jax.devices()[0].device_kind, "platform": jax.default_backend()}
    found |= {"machine": platform.machine(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if on_gpu():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.check_output(query, text=True).split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            found["driver"] = "unknown"
    return found
