"""The command line: `precir compile`, `check`, `inspect`, `diff`, `memory`, `plan`, `recipes`."""

from precir.cli.entry import main

__all__ = ["main"]
