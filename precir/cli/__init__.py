"""The command line: `precir compile`, `check`, `inspect`, `diff` and `recipes`."""

from precir.cli.entry import main

__all__ = ["main"]
