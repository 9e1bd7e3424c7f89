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
from dataclasses import replace
from functools import partial
from typing import Any

import gpu_kernels as kernels
import gpu_steps as steps
import jax
import numpy as np
from gpu_bench import Bench, Job, argument_sets, arguments, failure, judged, moved, timed, wanted
from gpu_clock import chain, environment, made_of, taking
from gpu_entry import Group, Kernel, Sizes, numbers
from gpu_ways import GRAINS, time_ways
from jax import numpy as jnp

from precir.kernels.tiling import TUNED

GIB = 1 << 30


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
        args = arguments(kernel, sizes, 0, special=True)
        if kernel.expected is None:
            expected = jax.jit(lambda *args: kernel.function(*args))(*args)
    actual = jax.device_put(_run(kernel, jax.device_put(args, device)), cpu)
    if kernel.expected is None:
        return float(jax.jit(kernel.judge.differ)(actual, expected))
    with jax.default_device(cpu), jax.enable_x64(True):
        expected = jax.jit(kernel.expected)(*args)
        return float(jax.jit(kernel.judge.differ)(actual, expected))


def _shapes(kernel: Kernel) -> Any:
    make = partial(kernel.arguments, sizes=kernel.tiny, special=True)
    return jax.eval_shape(make, jax.random.key(0))


def _run(kernel: Kernel, args: Any) -> Any:
    with taking(kernel.way, kernel.tiling):
        return jax.jit(lambda *args: kernel.function(*args)).lower(*args).compile()(*args)


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
                sets[kernel.arguments] = argument_sets(bench, kernel, sizes)
            args = sets[kernel.arguments]
            with taking(kernel.way, kernel.tiling):
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
    for name, seconds in timed(bench, calls, 0.25, row).items():
        row(name, seconds=seconds / facts[name]["sets"] if seconds else None, **facts[name])


def _at_size(kernel: Kernel, call: Any, args: Any) -> str:
    """The first result against XLA's on this device."""
    return judged(kernel, call()[0], wanted(kernel, args))


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
    for name, seconds in timed(bench, named, 0.5, partial(row, size="")).items():
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
    for name, seconds in timed(bench, calls, 2.0, row).items():
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


# --- the jobs -------------------------------------------------------------------------------------


def jobs(choice: bool, tiny: bool, only: str) -> list[Job]:
    """All of them, the most important first."""
    found = [Job("ceilings", 10, ceilings)]
    if choice:
        sizes = dict.fromkeys((*kernels.SQUARES, *kernels.LAYERS[::2]), TUNED)
        sizes |= dict.fromkeys(kernels.LAYERS[1::2], TUNED[:2])
        for each in kernels.LAYERS[-1:] if tiny else sizes:
            for grains in GRAINS:
                name = f"choice {'x'.join(map(str, each))}, {grains}"
                run = partial(time_ways, grains=grains, sizes=each, tilings=sizes[each])
                found.append(Job(name, 4 + 2 * len(sizes[each]), run))
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
