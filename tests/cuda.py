"""What compiles for GPUs, which the Makefile puts apart, in processes that tests start."""

import os
import sys
from pathlib import Path

FOLDER = str(Path(sys.prefix, "cuda"))


def environment(**changes: str) -> dict[str, str]:
    """The environment of such a process, some variables changed."""
    paths = [p for p in (os.environ.get("PYTHONPATH"), FOLDER) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}
