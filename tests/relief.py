"""Compiled programs, forgotten before there are too many.

Each holds mappings of memory, some 40 for a program of middling size, and XLA dies of a
segmentation fault where Linux gives a process no more of them (65,530, vm.max_map_count).
"""

import gc
from itertools import count
from pathlib import Path

_MOST = 20_000
_asked = count(1)


def relieve() -> None:
    """Clear JAX's caches if they hold many programs; looks every twentieth time."""
    if next(_asked) % 20 == 0 and _mappings() > _MOST:
        import jax

        jax.clear_caches()
        gc.collect()


def _mappings() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
