"""`precir` on the command line: parse, run, and say in one message what went wrong."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console

from precir.cli import (
    checking,
    choosing,
    compiling,
    diffing,
    inspecting,
    memory,
    planning,
    recipes,
)
from precir.cli.trouble import one_line
from precir.errors import PrecirError
from precir.version import __version__

_TROUBLE = 2
_WIDTH = 120  # of what goes to a file or a pipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 for any trouble."""
    try:
        options = make_parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        status: int = options.run(options, make_console())
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exception(error)
        sys.stderr.write(f"precir: error: {_message(error)}\n")
        return _TROUBLE


def _message(error: Exception) -> str:
    if isinstance(error, PrecirError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}\n  where  {error.filename}"
    return f"{one_line(error)}\n  fix    this is a bug in precir; --traceback shows where"


def make_console() -> Console:
    """Writes to standard output, as wide as the terminal."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no box characters
    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_WIDTH if fixed else None)


class _Parser(argparse.ArgumentParser):
    """Its errors are one line, and where to find help."""

    def error(self, message: str) -> NoReturn:
        self.exit(_TROUBLE, f"precir: error: {message}\n  fix    see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", help="show where in Python an error comes from"
    )
    parser = _Parser(prog="precir", description="A precision compiler for JAX.")
    parser.add_argument("--version", action="version", version=f"precir {__version__}")
    commands: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    rooms = compiling, checking, choosing, inspecting, diffing, memory, planning, recipes
    for command in rooms:
        command.add_parser(commands, common)
    return parser
