"""What benchmarks/gpu.py runs in a process of its own: the jobs, one after the other.

    python benchmarks/gpu_worker.py '{"tiny": false, "until": 1e12, "from": 0, "without": []}'

It answers in lines of JSON on stdout: {"environment"}, {"jobs"}, then for each job {"begin"}, any
number of {"at"} (who is about to run), {"check"}, {"row"}, {"choice"} and {"left"} (no time), and
{"end"}. So whoever reads knows what was going on when a kernel took the process with it, and can
start another one, from that job on and without that contender.
"""

import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import gpu_kernels as kernels
import gpu_steps as steps
import jax
import numpy as np
from gpu_clock import chain, environment, made_of, taking, together
from gpu_entry import Group, Kernel, Sizes, numbers
from jax import numpy as jnp

A_RUN = 2e-3  # seconds that a program should take
MOST_SETS, MOST_BYTES = 32, 4 << 30
GIB = 1 << 30


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


# --- kernels --------------------------------------------------------------------------------------


def check(bench: Bench, kernel: Kernel) -> None:
    """A kernel against what it must return, at odd sizes and with special values."""
    if bench.skips(kernel.name):
        return
    bench.at(kernel.name)
    sizes = (kernel.tiny,) if bench.tiny else kernel.checked
    try:
        if bench.tiny and kernel.name not in kernels.TINY:
            text = f"{moved(kernel, _shapes(kernel))} bytes, not run"
        else:
            worst = max(difference(kernel, each) for each in sizes)
            text = f"{kernel.judge.verdict(worst)}, {len(sizes)} sizes"
    except Exception as error:
        text = failure(error)
    bench.say({"check": {"name": kernel.name, "text": text}})


def difference(kernel: Kernel, sizes: Sizes) -> float:
    """How far a kernel's result on this device is from the reference's on the CPU."""
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    with jax.default_device(cpu):
        args = _arguments(kernel, sizes, 0, special=True)
        if kernel.expected is None:
            expected = jax.jit(lambda *args: kernel.function(*args))(*args)
    actual = jax.device_put(_run(kernel, jax.device_put(args, device)), cpu)
    if kernel.expected is None:
        return float(jax.jit(kernel.judge.differ)(actual, expected))
    with jax.default_device(cpu), jax.enable_x64(True):
        expected = jax.jit(kernel.expected)(*args)
        return float(jax.jit(kernel.judge.differ)(actual, expected))


def _arguments(kernel: Kernel, sizes: Sizes, seed: int, special: bool = False) -> Any:
    with taking("reference"):
        return _maker(kernel.arguments, sizes, special)(jax.random.key(seed))


@cache
def _maker(arguments: Callable[..., Any], sizes: Sizes, special: bool) -> Any:
    return jax.jit(partial(arguments, sizes=sizes, special=special))


def _shapes(kernel: Kernel) -> Any:
    make = partial(kernel.arguments, sizes=kernel.tiny, special=True)
    return jax.eval_shape(make, jax.random.key(0))


def _run(kernel: Kernel, args: Any) -> Any:
    with taking(kernel.way):
        return jax.jit(lambda *args: kernel.function(*args)).lower(*args).compile()(*args)


def moved(kernel: Kernel, args: Any) -> int:
    """The bytes that a kernel reads and writes: see gpu_kernels."""
    results = jax.eval_shape(kernel.function, *args)
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(v)) for v in (args, results)]
    return kernel.reads * sizes[0] + sizes[1]


def time_group(bench: Bench, group: Group) -> None:
    """The kernels of a group at its size, in turns; and their results there."""
    calls, facts, sets = {}, {}, {}
    size = "x".join(map(str, group.kernels[0].tiny if bench.tiny else group.sizes))
    row = partial(bench.row, group.name, size=size)
    for kernel in group.kernels:
        if bench.skips(kernel.name):
            continue
        bench.at(kernel.name)
        sizes = kernel.tiny if bench.tiny else group.sizes
        try:
            if kernel.arguments not in sets:
                sets[kernel.arguments] = _sets(bench, kernel, sizes)
            args = sets[kernel.arguments]
            with taking(kernel.way):
                calls[kernel.name] = chain(kernel.function, args)
            work = kernel.work(sizes) if kernel.work else 0.0
            facts[kernel.name] = {
                "bytes": moved(kernel, args[0]), "work": work, "rate": kernel.rate,
                "by": made_of(calls[kernel.name], len(args)), "aim": kernel.aim,
                "base": group.base, "sets": len(args),
            }  # fmt: skip
            if kernel.name != group.base:
                facts[kernel.name]["check"] = _at_size(kernel, calls[kernel.name], args[0])
        except Exception as error:
            calls.pop(kernel.name, None)
            row(kernel.name, failed=failure(error), base=group.base)
    for name, seconds in _timed(bench, calls, 0.25, row).items():
        row(name, seconds=seconds / facts[name]["sets"] if seconds else None, **facts[name])


def _timed(bench: Bench, calls: Any, seconds: float, row: Any) -> dict[str, float | None]:
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


def _sets(bench: Bench, kernel: Kernel, sizes: Sizes) -> list[Any]:
    first = _arguments(kernel, sizes, 0)
    size = moved(kernel, first)
    guess = max(size / 3e12, kernel.work(sizes) / 1e15 if kernel.work else 0.0, 4e-6)
    count = min(math.ceil(A_RUN / guess), MOST_SETS, MOST_BYTES // size)
    count = 2 if bench.tiny else max(2, count)
    return [first, *(_arguments(kernel, sizes, seed) for seed in range(1, count))]


def _at_size(kernel: Kernel, call: Any, args: Any) -> str:
    """The first result against XLA's on this device."""
    actual = call()[0]
    with taking("reference"):
        wanted = kernel.expected or kernel.function
        expected = jax.jit(lambda *args: wanted(*args))(*args)
        return kernel.judge.verdict(float(jax.jit(kernel.judge.differ)(actual, expected)))


def ceilings(bench: Bench) -> None:
    """The bandwidth of a copy and the peak of a bfloat16 product, measured here."""
    size = 1 << (12 if bench.tiny else 28)
    side = 64 if bench.tiny else 8192
    # Gaussian, since a GPU that multiplies constants draws less power, and is faster for it.
    make = jax.jit(numbers, static_argnums=(1, 2))
    keys = jax.random.split(jax.random.key(0), 3)
    x, a = (
        [(make(k, (size,), np.float32),) for k in keys[:2]],
        [make(k, (side, side)) for k in keys],
    )
    named = {
        "copy": chain(jnp.copy, x),
        "negation": chain(jnp.negative, x),
        "bf16": chain(jnp.matmul, [(a[0], a[1]), (a[1], a[2]), (a[2], a[0])]),
    }
    row = partial(bench.row, "ceiling")
    for name, seconds in _timed(bench, named, 0.5, partial(row, size="")).items():
        product = name == "bf16"
        row(
            "bf16 product" if product else name,
            size="x".join([str(side)] * 3) if product else f"{4 * size >> 20} MiB",
            seconds=seconds / (3 if product else 2) if seconds else None,
            bytes=0 if product else 8 * size, work=2.0 * side**3 if product else 0.0,
            by=made_of(named[name], 3 if product else 2),
        )  # fmt: skip


# --- train steps ----------------------------------------------------------------------------------

COMPILE = 45.0  # seconds that a train step may take to compile


def time_steps(bench: Bench, model: steps.Model) -> None:
    """A train step under every recipe and by every peer, in turns."""
    calls, facts = {}, {}
    row = partial(bench.row, model.name, size=model.size)
    args = steps.start(model.shape)
    for name in steps.CONTENDERS if not bench.tiny else steps.TINY_CONTENDERS:
        if bench.skips(name):
            continue
        if not bench.has(COMPILE):
            row(name, failed="left out: no time")
            continue
        bench.at(name)
        try:
            begun = time.perf_counter()
            calls[name] = steps.build(name, model.shape, args)
            seconds = time.perf_counter() - begun
            facts[name] = _step_facts(calls[name], model, name)
            if not bench.tiny:
                facts[name]["compile"] = seconds
        except steps.NotInstalled as missing:
            row(name, failed=str(missing))
        except Exception as error:
            calls.pop(name, None)
            row(name, failed=failure(error))
    for name, seconds in _timed(bench, calls, 2.0, row).items():
        row(name, seconds=seconds, base=steps.BF16, **facts[name])


def _step_facts(call: Any, model: steps.Model, name: str) -> dict[str, Any]:
    loss = float(call()[-1])
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss of the first step is {loss}")
    memory = call.compiled.memory_analysis()
    return {
        "by": made_of(call),
        "check": f"loss {loss:.4f}",
        "tokens": model.shape.batch * model.shape.length,
        "temporary": memory.temp_size_in_bytes / GIB,
        "aim": ("over", model.aim) if name in ("fp8", "fp8-block") else None,
    }


# --- the table of choices -------------------------------------------------------------------------

GRAINS = {
    "tensor": ("tensor", "tensor"), "row": ("row", "row"),
    "1x128, 128x128": ("1x128", "128x128"), "1x128, 1x128": ("1x128", "1x128"),
}  # fmt: skip


def time_ways(bench: Bench, grains: str, sizes: Sizes) -> None:
    """Each way of a product, for the measured rows of kernels/choice.json."""
    ways = ("triton", "xla", "bf16") if grains in ("tensor", "row") else ("triton", "bf16")
    calls, make = {}, kernels.scaled_product(grains, "triton")
    args = _sets(bench, make, make.tiny if bench.tiny else sizes)
    for way in ways:
        if bench.skips(way):
            continue
        bench.at(way)
        with taking(way):
            calls[way] = chain(make.function, args)
    ignored = partial(bench.row, "choice", size="x".join(map(str, sizes)))
    for way, seconds in _timed(bench, calls, 0.15, ignored).items():
        found = {"way": way, "granularity": GRAINS[grains], "shapes": [1, *sizes]}
        each = seconds / len(args) if seconds else None
        bench.say({"choice": found | {"out": "bfloat16", "epilogue": False, "seconds": each}})


# --- the jobs -------------------------------------------------------------------------------------


def jobs(choice: bool, tiny: bool, only: str) -> list[Job]:
    """All of them, the most important first."""
    found = [Job("ceilings", 10, ceilings)]
    if choice:
        sizes = (*kernels.SQUARES, *kernels.LAYERS)
        for each in sizes[-1:] if tiny else sizes:
            for grains in GRAINS:
                name = f"choice {'x'.join(map(str, each))}, {grains}"
                found.append(Job(name, 8, partial(time_ways, grains=grains, sizes=each)))
        return found
    found += [Job(f"check {k.name}", 8, partial(check, kernel=k)) for k in kernels.KERNELS]
    ranked: list[tuple[float, Job]] = []
    for group in kernels.groups(tiny):
        name = f"time {group.name}, {'x'.join(map(str, group.sizes))}"
        job = Job(name, 4 + 2 * len(group.kernels), partial(time_group, group=group))
        ranked.append((group.rank, job))
    for model in (steps.TINY,) if tiny else steps.MODELS:
        job = Job(f"time {model.name}", 2 * COMPILE, partial(time_steps, model=model))
        ranked.append((model.rank, job))
    found += [job for _, job in sorted(ranked, key=lambda r: r[0])]
    return [job for job in found if only in job.name or job.name == "ceilings"]


def speaker() -> Callable[[dict[str, Any]], None]:
    """A way of saying things on stdout, on which nothing else is printed from then on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda what: print(json.dumps(what, default=_plain), file=answers, flush=True)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | jax.Array) else str(value)


def main(argv: Sequence[str]) -> None:
    """Run the jobs, and tell of each."""
    options = json.loads(argv[0])
    say = speaker()
    todo = jobs(options["choice"], options["tiny"], options["only"])
    say({"environment": environment()})
    say({"jobs": [job.name for job in todo]})
    if options["plan"]:
        return
    without = {(job, contender) for job, contender in options["without"]}
    bench = Bench(say, options["tiny"], options["until"], without)
    for i, job in enumerate(todo[options["from"] :], options["from"]):
        if not bench.has(job.guess):
            say({"left": job.name})
            continue
        say({"begin": i, "name": job.name})
        try:
            job.run(replace(bench, job=job.name))
        except Exception as error:
            bench.row("failed", job.name, "", failed=failure(error))
        gc.collect()
        say({"end": i})


if __name__ == "__main__":
    main(sys.argv[1:])
