"""What the jobs of gpu_worker.py are made of: where they speak, arguments, judgements, times."""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
from gpu_clock import taking, together
from gpu_entry import Kernel, Sizes
from jax import numpy as jnp

A_RUN = 2e-3  # seconds that a program should take
MOST_SETS, MOST_BYTES = 32, 4 << 30


@dataclass(frozen=True)
class Job:
    """Something to run; ``guess`` is how many seconds of time must be left to start it."""

    name: str
    guess: float
    run: Callable[["Bench"], None]


@dataclass
class Bench:
    """What a job needs of the run that it is part of."""

    say: Callable[[dict[str, Any]], None]
    tiny: bool
    until: float
    without: set[tuple[str, str]]
    job: str = ""

    def at(self, contender: str) -> None:
        """Says who is about to run."""
        self.say({"at": contender})

    def skips(self, contender: str) -> bool:
        """Whether it has taken a process with it already."""
        return (self.job, contender) in self.without

    def lost(self, contender: str) -> bool:
        """Whether one of this name has, in any job."""
        return any(contender == name for _, name in self.without)

    def has(self, seconds: float) -> bool:
        """Whether there is so much time left."""
        return time.time() + seconds < self.until

    def row(self, section: str, name: str, size: str, **found: Any) -> None:
        """A row of the table, or part of one."""
        self.say({"row": {"section": section, "name": name, "size": size} | found})


def failure(error: Exception) -> str:
    """One line of what went wrong. Ends the process if the GPU does not answer any more, as after
    a kernel has read what is not there: nothing else would run either.
    """
    lines = str(error).strip().splitlines() or [""]
    text = f"failed: {type(error).__name__}: {lines[0][:160]}"
    try:
        jax.block_until_ready(jnp.arange(3) + 1)
    except Exception:
        print(text, file=sys.stderr, flush=True)
        os._exit(3)
    return text


def arguments(kernel: Kernel, sizes: Sizes, seed: int, special: bool = False) -> Any:
    """A kernel's arguments, on JAX's usual device."""
    with taking("reference"):
        return _maker(kernel.arguments, sizes, special)(jax.random.key(seed))


@cache
def _maker(arguments: Callable[..., Any], sizes: Sizes, special: bool) -> Any:
    return jax.jit(partial(arguments, sizes=sizes, special=special))


def moved(kernel: Kernel, args: Any) -> int:
    """The bytes that a kernel reads and writes: see gpu_kernels."""
    results = jax.eval_shape(kernel.function, *args)
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(v)) for v in (args, results)]
    return kernel.reads * sizes[0] + sizes[1]


def timed(bench: Bench, calls: Any, seconds: float, row: Any) -> dict[str, float | None]:
    """All in turns; one that fails is left out, and they start again."""
    if bench.tiny:
        return dict.fromkeys(calls)
    while calls:
        last = [""]

        def at(name: str, last: list[str] = last) -> None:
            if name != last[0]:
                last[0] = name
                bench.at(name)

        try:
            return dict(together(calls, seconds, at))
        except Exception as error:
            row(last[0], failed=failure(error))
            calls.pop(last[0])
    return {}


def argument_sets(bench: Bench, kernel: Kernel, sizes: Sizes) -> list[Any]:
    """So many that a program takes some milliseconds."""
    first = arguments(kernel, sizes, 0)
    size = moved(kernel, first)
    guess = max(size / 3e12, kernel.work(sizes) / 1e15 if kernel.work else 0.0, 4e-6)
    count = min(math.ceil(A_RUN / guess), MOST_SETS, MOST_BYTES // size)
    count = 2 if bench.tiny else max(2, count)
    return [first, *(arguments(kernel, sizes, seed) for seed in range(1, count))]


def wanted(kernel: Kernel, args: Any) -> Any:
    """What a kernel must return, by XLA on this device."""
    wanted = kernel.expected or kernel.function
    with taking("reference"):
        return jax.jit(lambda *args: wanted(*args))(*args)


def judged(kernel: Kernel, actual: Any, expected: Any) -> str:
    """Whether it did, in words."""
    with taking("reference"):
        return kernel.judge.verdict(float(jax.jit(kernel.judge.differ)(actual, expected)))
