"""`precir choose`: formats of least cost under a budget of error, for a function in a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import jax
from rich.console import Console

from precir.auto.choose import TOKENS, TOLERANCE, choose
from precir.cli.compiling import compiled_target, guarded
from precir.cli.planning import number
from precir.cli.target import Target, default_arguments, find_target
from precir.cli.trouble import UsageError
from precir.recipe_file import SUFFIX
from precir.target import CARDS
from precir.target.cards import card as find_card

_BATCHES: Final = 4


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "choose",
        parents=[common],
        help="the format of every product, by what its tensors hold: least time for an error",
        description="Measure what rounding each tensor of a function of a Python file would do to "
        "its loss and gradients, on FUNCTION_args(), or with FUNCTION_batches(), which gives the "
        "last argument for each step, on a few of these. Print time against error, the uniform "
        "recipes beside it, and each product's format with the reason for it.",
    )
    parser.add_argument("target", metavar="FILE:FUNCTION", help="as train.py:train_step")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="ERROR",
        default=TOLERANCE,
        help=f"the largest error to accept, in the unit of the loss ({TOLERANCE:g}); of a function "
        "without a loss, the relative error of its results",
    )
    parser.add_argument(
        "--target", "--on", dest="card", metavar="CARD", default="h100", help=", ".join(CARDS)
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"write what was chosen to a {SUFFIX} file, to edit and to give as --recipe",
    )
    parser.add_argument("--plot", type=Path, metavar="IMAGE", help="draw time against error")
    parser.add_argument(
        "--tokens", metavar="D", help=f"to train on in all, as 100B ({TOKENS / 1e9:g}B)"
    )
    parser.add_argument(
        "--batches", metavar="N", default=str(_BATCHES), help=f"how many to measure ({_BATCHES})"
    )
    parser.add_argument(
        "--after",
        metavar="STEPS",
        default="0",
        help="train for so many steps of FUNCTION_batches() before, in float32: a fresh model is "
        "sensitive to other things than one under way (0)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    found = find_card(options.card)
    tokens = number(options.tokens, "--tokens")
    count, after = _count(options.batches, "--batches", 1), _count(options.after, "--after", 0)
    if options.out is not None and options.out.suffix != SUFFIX:
        raise UsageError(
            f"--out {options.out} is no recipe file", fix=f"{options.out.with_suffix(SUFFIX)}"
        )
    target = find_target(options.target)
    function = compiled_target(target, "float32", {})
    with guarded(target, function):
        batches = list(_batches(target, function, count, after))
        choice = choose(
            function, batches, tolerance=options.tolerance, target=found, tokens=tokens or TOKENS
        )
    console.print(choice)
    for what, path, write in (
        ("the recipe", options.out, choice.recipe.save),
        ("the curve", options.plot, choice.plot),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            console.print(f"[dim]{what:12}[/]{path}", highlight=False, soft_wrap=True)
    return 0


def _batches(target: Target, function: Any, count: int, after: int) -> Iterator[tuple[Any, ...]]:
    """Arguments to measure on, of a state so many steps under way."""
    args, kwargs = default_arguments(target)
    if kwargs:
        raise UsageError(
            f"{target.name}_args() gives arguments by name: {', '.join(kwargs)}",
            where=target.place,
            fix="choosing takes positional ones: write a function of those around it",
        )
    if target.make_batches is None:
        if after:
            raise UsageError(
                f"nothing says what {target.name} is trained on",
                where=target.place,
                fix=f"define {target.name}_batches() in the file, which returns its last argument "
                "for each step; or leave --after out",
            )
        yield args
        return
    given, state = iter(target.make_batches()), args[:-1]
    run = jax.jit(target.function)
    for batch in islice(given, after):
        *state, _ = run(*state, batch)
    found = list(islice(given, count))
    if not found:
        raise UsageError(
            f"{target.name}_batches() gives no more than {after}", where=target.place,
            fix="more of them, or fewer steps with --after",
        )  # fmt: skip
    yield from ((*state, batch) for batch in found)


def _count(text: str, option: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{option} {text!r} is no number of them", fix=f"{least} or more")
    return int(text)
