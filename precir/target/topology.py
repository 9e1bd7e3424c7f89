"""Devices that are not there: XLA's compiler for a card, with no card and no CUDA.

The compiler comes in JAX's CUDA plugin, which JAX loads by itself where it runs on the CPU by
request (`JAX_PLATFORMS=cpu`) or finds a GPU. Elsewhere it gives up on the plugin for want of the
NVIDIA libraries, which compiling does not need: the plugin is then loaded here.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from jax.experimental import topologies

from precir.errors import TargetError
from precir.target.cards import Card

INSTALL: Final = 'pip install "precir[cuda]"'
_PLUGINS: Final = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
_SKIP: Final = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"


@functools.cache
def compile_only(card: Card, count: int) -> tuple[Any, ...]:
    """So many devices of that card, in one machine, to compile for and not to run on.

    Raises:
      TargetError: JAX's CUDA plugin is not installed, or does not work here.
    """
    try:
        return _devices(card, count)
    except NotImplementedError:  # the plugin is not registered
        _register()
    except Exception as error:
        raise _broken(error) from error
    try:
        return _devices(card, count)
    except Exception as error:
        raise _broken(error) from error


def _devices(card: Card, count: int) -> tuple[Any, ...]:
    found = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=card.text, topology=f"1x1x{count}"
    )
    return tuple(found.devices)


def _register() -> None:
    for name in _PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except ImportError:
            continue
        with _unchecked():
            plugin.initialize()
        return
    raise TargetError("XLA's compiler for NVIDIA GPUs is not installed", fix=INSTALL)


def _broken(error: Exception) -> TargetError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return TargetError(f"JAX's CUDA plugin gives no devices to compile for: {line}", fix=INSTALL)


@contextmanager
def _unchecked() -> Iterator[None]:
    """The plugin does not look for the NVIDIA libraries."""
    before = os.environ.get(_SKIP)
    os.environ[_SKIP] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SKIP]
        else:
            os.environ[_SKIP] = before
