"""What every test run stands on: eight devices on the CPU, and reproducible examples in CI."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["COLUMNS"] = "120"  # rich takes the width of the terminal it happens to be in

# Both are read when JAX first starts, so they are set here, before any test imports it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()

# What compiles for a GPU where there is none: see the Makefile.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
sys.path.append(str(Path(sys.prefix, "cuda")))

# Compiling makes the first example of any test slow, so no deadline.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if "CI" in os.environ else "default")


@pytest.fixture(autouse=True, scope="session")
def _verify_between_passes():
    """Every graph that a pass makes in a test is verified."""
    from precir.passes import pipeline

    pipeline.verifying = True


@pytest.fixture(autouse=True)
def _few_executables() -> Iterator[None]:
    yield
    from tests.relief import relieve

    relieve()
