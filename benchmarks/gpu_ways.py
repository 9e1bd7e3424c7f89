"""What gpu_worker.py times for the table of choices: each way of a product, each tiling."""

from collections.abc import Sequence
from functools import partial

import gpu_kernels as kernels
from gpu_bench import Bench, argument_sets, failure, judged, timed, wanted
from gpu_clock import chain, taking
from gpu_entry import Kernel, Sizes, said

from precir.kernels.tiling import Tiling

GRAINS = {
    "tensor": ("tensor", "tensor"), "row": ("row", "row"),
    "1x128, 128x128": ("1x128", "128x128"), "1x128, 1x128": ("1x128", "1x128"),
}  # fmt: skip


def ways_of(grains: str, tilings: Sequence[Tiling]) -> dict[str, Kernel]:
    """The ways of a product that are timed, and by Triton each of these tilings."""
    others = ("xla", "bf16") if grains in ("tensor", "row") else ("bf16",)
    found = {said(t): kernels.scaled_product(grains, "triton", t) for t in tilings}
    return found | {way: kernels.scaled_product(grains, way) for way in others}


def time_ways(bench: Bench, grains: str, sizes: Sizes, tilings: Sequence[Tiling]) -> None:
    """Each way of a product, for the measured rows of kernels/choice.json: with the tiling that is
    the fastest of those whose result is right.
    """
    calls, contenders = {}, ways_of(grains, tilings)
    first = next(iter(contenders.values()))
    args = argument_sets(bench, first, first.tiny if bench.tiny else sizes)
    expected = wanted(first, args[0])
    row = partial(bench.row, "choice", size=f"{'x'.join(map(str, sizes))}, {grains}")
    for name, kernel in contenders.items():
        if bench.skips(name) or (kernel.tiling and bench.lost(name)):
            continue
        bench.at(name)
        try:
            with taking(kernel.way, kernel.tiling):
                call = chain(kernel.function, args)
            verdict = judged(kernel, call()[0], expected)
            if verdict.startswith("WRONG"):
                row(name, failed=f"failed: {verdict}")
            else:
                calls[name] = call
        except Exception as error:
            row(name, failed=failure(error))
    fastest: dict[str | None, tuple[float | None, str]] = {}
    for name, seconds in timed(bench, calls, 0.15, row).items():
        way = contenders[name].way
        if way not in fastest or (seconds or 0.0) < (fastest[way][0] or 0.0):
            fastest[way] = seconds, name
    for way, (seconds, name) in fastest.items():
        found = {"way": way, "granularity": GRAINS[grains], "shapes": [1, *sizes]}
        found |= {"out": "bfloat16", "epilogue": False}
        tiling = contenders[name].tiling
        found |= {"tiling": tiling._asdict()} if tiling else {}
        each = seconds / len(args) if seconds else None
        bench.say({"choice": found | {"seconds": each}})
