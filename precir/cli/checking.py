"""`precir check`: the lines of a function that go wrong in a format, as a linter prints them."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

import jax
from rich.console import Console
from rich.text import Text

from precir.check.entry import check
from precir.check.hazard import SEVERITIES, Hazard
from precir.check.report import Findings, as_json, as_sarif
from precir.check.suppress import counted, misspelt
from precir.check.text import header, marked, show
from precir.cli.arguments import parse_arguments, parse_static
from precir.cli.compiling import parameters_of
from precir.cli.ranges import Given, all_positional, names_of, parse_ranges, spread
from precir.cli.target import Target, default_arguments, find_target
from precir.cli.trouble import in_user_code, user_frame
from precir.errors import PrecirError
from precir.formats import format_of

_ABOUT: Final = """\
Say which lines of a function go wrong where its floating-point arguments are of a format: what
overflows, vanishes, cancels or stands still. Arguments are those that --args describes, else what
FUNCTION_args() in the file returns: a tuple, or (args, kwargs).

What the arguments hold is told by --range; else by FUNCTION_ranges in the file, as precir.check
takes it (a tuple, or a function that returns one); else the values that FUNCTION_args() returns
are taken as an example. Floats that only --args describes are unknown.

A comment  # precir: ignore  or  # precir: ignore[overflow, underflow]  on the line, on the first
or last line of the statement, or alone above it, suppresses what is found there."""

_STATUS: Final = """\
exit status:
  0  nothing was found (notes do not count), or --exit-zero
  1  errors or warnings were found
  2  the check could not be made: bad input, or the function cannot be traced"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "check",
        parents=[common],
        help="find the lines that go wrong in a format",
        description=_ABOUT,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="FILE:FUNCTION", help="as train.py:train_step")
    parser.add_argument(
        "--format",
        default="float16",
        help="float16 (default), bfloat16, float8_e4m3fn, float32 ...",
    )
    parser.add_argument(
        "--args",
        metavar="SPECS",
        help="types and shapes of the arguments, as 'f32[8,128] i32[8] f32[] key scale=f32[]'",
    )
    parser.add_argument(
        "--static",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a static argument, by name; can be given several times",
    )
    parser.add_argument(
        "--range",
        metavar="ARRAY=LO:HI",
        action="append",
        default=[],
        help="where an argument's numbers lie: by position (0=-1:1), name (x=-1:1) or path with * "
        "('params/*/bias=0:1'); can be given several times, the last that fits holds",
    )
    parser.add_argument(
        "--notes", action="store_true", help="show notes as well: see `precir.check`"
    )
    parser.add_argument("--output", choices=("text", "json", "sarif"), default="text")
    parser.add_argument("--exit-zero", action="store_true", help="exit with 0 whatever is found")
    parser.add_argument(
        "--seconds", type=_seconds, metavar="S", help="to look for a witness (4, or 0 if large)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    format = format_of(options.format).name
    given = parse_ranges(options.range)
    static = parse_static(options.static)
    specs = None if options.args is None else parse_arguments(options.args)
    target = find_target(options.target)
    args, kwargs = default_arguments(target) if specs is None else specs
    call = _call(target, tuple(args), kwargs, static, given)
    found = _findings(target, call, format, options)
    if options.output == "text":
        _print(found, target, call, console)
    else:
        made = as_json(found) if options.output == "json" else as_sarif(found)
        sys.stdout.write(json.dumps(made, indent=2) + "\n")
    bad = any(h.severity != "note" for h in found.shown)
    return int(bad and not options.exit_zero)


@dataclass(frozen=True)
class Call:
    """A function, what it is called with, and what is known of that, also in words."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ranges: Any
    known: str


def _call(
    target: Target,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    static: dict[str, Any],
    given: Sequence[Given],
) -> Call:
    function = getattr(target.function, "_fn", target.function)  # what precir.compile was given
    if static:
        function = _with_static(function, static)
    if given:
        names = [*names_of(function, len(args)), *kwargs]
        if kwargs:  # ranges go by position
            function, args = (
                all_positional(function, len(args), list(kwargs)),
                (*args, *kwargs.values()),
            )
        return Call(function, args, {}, spread(given, names, args), "given by --range")
    if target.ranges is not None:
        known = f"given by {target.name}_ranges"
        return Call(function, args, kwargs, _own_ranges(target), known)
    arrays = jax.tree.leaves((args, kwargs))
    shapes = any(isinstance(x, jax.ShapeDtypeStruct) for x in arrays)
    known = "unknown: give --range" if shapes else f"as those of {target.name}_args()"
    return Call(function, args, kwargs, None, known)


def _with_static(function: Callable[..., Any], static: dict[str, Any]) -> Callable[..., Any]:
    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, **static)

    return called


def _own_ranges(target: Target) -> Any:
    """The file's FUNCTION_ranges: a value, a rule on paths, or a function that returns either."""
    ranges = target.ranges
    if not callable(ranges) or _takes_arguments(ranges):
        return ranges
    try:
        return ranges()
    except Exception as error:
        raise in_user_code(error, f"{target.name}_ranges() failed") from error


def _takes_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    return False


def _findings(target: Target, call: Call, format: str, options: argparse.Namespace) -> Findings:
    """All that is found, in one check: notes are counted even where they are not shown."""
    with counted() as silent:
        hazards = _checked(target, call, format, options.seconds)
    shown = [h for h in hazards if options.notes or h.severity != "note"]
    silent = [h for h in silent if options.notes or h.severity != "note"]
    own = os.path.realpath(target.place)
    files = dict.fromkeys([own, *sorted(h.file for h in [*hazards, *silent])])
    same = {os.path.realpath(f): f for f in files if f}
    wrong = [m for f in same for m in misspelt(f)]
    return Findings(options.target, format, shown, len(hazards) - len(shown), silent, wrong)


def _checked(target: Target, call: Call, format: str, seconds: float | None) -> list[Hazard]:
    asked: dict[str, Any] = {"format": format, "ranges": call.ranges, "notes": True}
    try:
        return check(call.function, *call.args, **asked, seconds=seconds, **call.kwargs)
    except PrecirError:
        raise
    except Exception as error:
        if user_frame(error) is None and not isinstance(error, (TypeError, ValueError)):
            raise  # nobody's fault but precir's
        mine = user_frame(error) is None
        fix = f"it is {target.name}{parameters_of(target.function)}" if mine else None
        raise in_user_code(error, f"{target.name} cannot be traced in {format}", fix) from error


def _print(found: Findings, target: Target, call: Call, console: Console) -> None:
    show(found.shown, console)
    for m in found.misspelt:
        console.print(header(m.file, m.line, m.column, "warning", "comment", m.message))
        for line in marked(m.file, m.line, m.column, m.line, 1 << 30):
            console.print(line, soft_wrap=True, highlight=False)
        console.print()
    console.print(_last_line(found, target, call), soft_wrap=True, highlight=False)


def _last_line(found: Findings, target: Target, call: Call) -> Text:
    """`2 errors, 1 warning (3 notes hidden: --notes)`."""
    by = Counter(h.severity for h in found.shown)
    said = ", ".join(_count(by[s], s) for s in SEVERITIES if by[s])
    aside = [f"{_count(found.hidden, 'note')} hidden: --notes"] if found.hidden else []
    aside += [f"{len(found.suppressed)} suppressed"] if found.suppressed else []
    if said:
        more = f" ({'; '.join(aside)})" if aside else ""
        return Text.assemble((said, "bold"), f" in {target.name}, {found.format}{more}")
    arrays = _count(len(jax.tree.leaves((call.args, call.kwargs))), "array")
    more = "; ".join([arrays, *aside])
    clean = f" in {target.name}, {found.format}, its arguments {call.known} ({more})"
    return Text.assemble(("no findings", "bold green"), clean)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
