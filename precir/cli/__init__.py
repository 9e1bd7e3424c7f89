"""`precir compile`, `check`, `choose`, `inspect`, `diff`, `memory`, `plan` and `recipes`."""

from precir.cli.entry import main

__all__ = ["main"]
