"""`precir compile`: a function in a file, to a dump and a report."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from precir.cli.arguments import parse_arguments, parse_static
from precir.cli.target import Target, default_arguments, find_target
from precir.cli.trouble import in_user_code, user_frame
from precir.compile import Compiled, compile
from precir.dump import check_folder, dump
from precir.errors import PrecirError
from precir.program import Program
from precir.recipe import recipe as find_recipe
from precir.report import Report


def add_function(parser: argparse.ArgumentParser) -> None:
    """Which function to compile, how, and for which arguments."""
    parser.add_argument("target", metavar="FILE:FUNCTION", help="as train.py:train_step")
    parser.add_argument(
        "--recipe", help="see `precir recipes`; without it float32, or that of a compiled function"
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


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "compile",
        parents=[common],
        help="compile a function, write its dump and print the report",
        description="Compile a function of a Python file. Its arguments are those that --args "
        "describes, else what FUNCTION_args() in the file returns: a tuple, or (args, kwargs).",
    )
    add_function(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="folder for the dump (out/FUNCTION)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    recipe = None if options.recipe is None else find_recipe(options.recipe)
    static = parse_static(options.static)
    given = None if options.args is None else parse_arguments(options.args)
    target = find_target(options.target)
    folder = options.out or Path("out", target.name)
    check_folder(folder)  # before the work, not after it
    function = compiled_target(target, recipe, static)
    args, kwargs = default_arguments(target) if given is None else given
    program = _program(target, function, args, {**kwargs, **static})
    dump(program, folder)
    console.print(Report.of(program))
    console.print()
    _say_where(console, program, folder)
    return 0


def compiled_target(target: Target, recipe: Any, static: dict[str, Any]) -> Compiled:
    """The function, compiled; one that already is keeps its recipe if none is given."""
    function = target.function
    if isinstance(function, Compiled):
        return function if recipe is None else function.with_recipe(recipe)
    compiled: Compiled = compile(
        function, recipe=recipe or "float32", static_argnames=tuple(static) or None
    )
    return compiled


def _program(target: Target, function: Compiled, args: Any, kwargs: Any) -> Program:
    with guarded(target, function):
        return function.program(*args, **kwargs)


@contextmanager
def guarded(target: Target, function: Compiled) -> Iterator[None]:
    """What goes wrong inside while a function is traced is said in the user's terms."""
    try:
        yield
    except PrecirError:
        raise
    except Exception as error:
        if user_frame(error) is None and not isinstance(error, (TypeError, ValueError)):
            raise  # nobody's fault but precir's
        fix = f"it is {target.name}{parameters_of(function)}" if user_frame(error) is None else None
        raise in_user_code(error, f"{target.name} cannot be traced", fix) from error


def parameters_of(function: Any) -> str:
    """How a function is written, as `(w, x, *, scale)`."""
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"


def _say_where(console: Console, program: Program, folder: Path) -> None:
    module = folder / f"{program.signature.name}.py"
    lines = [("one text per pass", folder / f"00_{program.stages[0].name}.ir ...")]
    lines.append(("the whole report", folder / "report.txt"))
    if module.exists():
        lines.append(("the module", module))
    else:
        lines.append(("no module", module.with_name(f"{module.name}.txt")))
    for what, path in lines:
        console.print(f"[dim]{what:18}[/]{path}", highlight=False, soft_wrap=True)
