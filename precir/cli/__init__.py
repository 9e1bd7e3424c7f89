"""The command line: `precir compile`, `check`, `inspect`, `diff`, `memory` and `recipes`."""

from precir.cli.entry import main

__all__ = ["main"]
