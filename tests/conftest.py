"""What every test run stands on: eight devices on the CPU, and reproducible examples in CI."""

import gc
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["COLUMNS"] = "120"  # rich takes the width of the terminal it happens to be in

# Both are read when JAX first starts, so they are set here, before any test imports it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()

# Compiling makes the first example of any test slow, so no deadline.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if "CI" in os.environ else "default")


@pytest.fixture(autouse=True, scope="session")
def _verify_between_passes():
    """Every graph that a pass makes in a test is verified."""
    from precir.passes import pipeline

    pipeline.verifying = True


_finished = count(1)
_MOST_MAPS = 20_000  # Linux kills a process that asks for more than 65,530


@pytest.fixture(autouse=True)
def _few_executables() -> Iterator[None]:
    """Forget compiled programs now and then: each holds mappings of memory, and XLA dies of a
    segmentation fault where the system gives it no more of them.
    """
    yield
    if next(_finished) % 20 == 0 and _mappings() > _MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


def _mappings() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
