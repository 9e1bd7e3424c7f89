"""`precir plan`: what the scaling laws of precision say about a training run."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any, Final

from rich.console import Console

from precir.cli.compiling import compiled_target, guarded
from precir.cli.target import Target, default_arguments, find_target
from precir.cli.trouble import UsageError
from precir.planner import Measured, measure, plan, plan_step
from precir.recipe import recipe as find_recipe
from precir.target import CARDS

_UNITS: Final = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_NUMBER: Final = re.compile(r"([\d.]+(?:e[+-]?\d+)?)([kMBT]?)")


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "plan",
        parents=[common],
        help="which precision a training run deserves, by the scaling laws",
        description="Predicted loss of each recipe, the best bits for a budget, the speedups "
        "needed to pay, and the risk of quantising afterwards. Give two of --params, --tokens and "
        "--compute, or --compute alone. What lies outside a law's runs is said on its line.",
    )
    parser.add_argument(
        "target",
        metavar="FILE:FUNCTION",
        nargs="?",
        help="a train step to read N, FLOPs and formats off, as train.py:train_step",
    )
    parser.add_argument("--recipe", help="that it is compiled with (fp8)")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train on FUNCTION_batches() from FUNCTION_args(), under --recipe and in float32, and "
        "plan with the N_eff/N that the losses show",
    )
    parser.add_argument("--steps", metavar="S", help="calls of it, in the place of --tokens")
    parser.add_argument("--params", metavar="N", help="weights, as 1.3B (embeddings left out)")
    parser.add_argument("--tokens", metavar="D", help="tokens to train on, as 100B")
    parser.add_argument("--compute", metavar="C", help="FLOPs of training at 16 bits, as 1e21")
    parser.add_argument("--on", metavar="CARD", default="h100", help=", ".join(CARDS))
    parser.add_argument(
        "--speedup",
        metavar="RECIPE=X",
        action="append",
        default=[],
        help="measured speed over bf16-mixed, as fp8=1.4, in the place of the card's nominal one",
    )
    parser.add_argument(
        "--factor",
        metavar="RECIPE=F",
        action="append",
        default=[],
        help="measured N_eff/N, as fp8=0.97, in the place of the law's",
    )
    parser.add_argument("--output", choices=("text", "json"), default="text", help="(text)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    shared: dict[str, Any] = {
        "target": options.on,
        "speedups": _pairs(options.speedup, "--speedup"),
        "factors": _pairs(options.factor, "--factor"),
        "tokens": number(options.tokens, "--tokens"),
    }
    params = number(options.params, "--params")
    compute = number(options.compute, "--compute")
    steps = number(options.steps, "--steps")
    if options.target is not None:
        if params is not None or compute is not None:
            raise UsageError("--params and --compute are read off the step", fix="leave them out")
        target = find_target(options.target)
        if options.measure:
            result = _measured(target, options.recipe or "fp8")
            shared["factors"] = {result.recipe: result.factor, **shared["factors"]}
            console.print(f"measured: {result}", highlight=False)
        found = plan_step(_program(target, options.recipe or "fp8"), steps=steps, **shared)
    else:
        if steps is not None or options.recipe is not None or options.measure:
            raise UsageError(
                "--steps, --recipe and --measure are of a step", fix="name it: FILE:FUNCTION"
            )
        found = plan(params=params, compute=compute, **shared)
    if options.output == "json":
        sys.stdout.write(json.dumps(found.data, indent=1) + "\n")
    else:
        console.print(found)
    return 0


def _program(target: Target, recipe: str) -> Any:
    args, kwargs = default_arguments(target)
    function = compiled_target(target, find_recipe(recipe), {})
    with guarded(target, function):
        return function.program(*args, **kwargs)


def _measured(target: Target, recipe: str) -> Measured:
    """Short runs on what FUNCTION_batches() in the file gives."""
    if target.make_batches is None:
        raise UsageError(
            f"nothing says what {target.name} is trained on",
            where=target.place,
            fix=f"define {target.name}_batches() in the file, which returns its last argument for "
            "each step",
        )
    args, _ = default_arguments(target)
    return measure(target.function, args[:-1], target.make_batches(), recipe)


def number(text: str | None, option: str) -> float | None:
    """`1.3B`, `1e21`."""
    if text is None:
        return None
    found = _NUMBER.fullmatch(text.strip())
    try:
        return float(found[1]) * _UNITS[found[2]] if found else float(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no number", fix="as 1.3B or 1e21") from None


def _pairs(settings: list[str], option: str) -> dict[str, float]:
    found = {}
    for text in settings:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"{option} {text!r} is not RECIPE=NUMBER", fix="as fp8=1.4") from None
    return found
