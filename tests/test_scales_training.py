"""Training an MLP on scikit-learn's digits with scales: what float16 alone loses, they keep."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import precir

STEPS = 240


@cache
def tasks() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "scales_tasks.py"
    spec = importlib.util.spec_from_file_location("scales_tasks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def trained(recipe: str, shifted: bool) -> Any:
    """What a run ends with: the state as the step returned it, and the held-out scores."""
    task = tasks().TASKS["digits"]
    step = precir.compile(task.make_step(shifted), recipe=recipe)
    batches = task.batches(0, STEPS)
    carried, _ = step.init(task.start(shifted, 0), batches[0])
    for batch in batches:
        carried, _ = step(carried, batch)
    return carried, task.evaluate(step.unpack(carried).params)


def is_scaled(x: Any) -> bool:
    return isinstance(x, precir.ScaledArray)


def test_plain_float16_loses_gradients_of_a_small_loss() -> None:
    assert trained("float32", True)[1].accuracy > 0.97
    assert trained("16-true", True)[1].accuracy < 0.5


def test_scaled_float16_keeps_gradients_of_a_small_loss_without_loss_scaling() -> None:
    assert not precir.recipe("scaled-16").loss_scaling
    plain, scaled = trained("float32", True)[1], trained("scaled-16", True)[1]
    assert scaled.accuracy >= plain.accuracy - 0.01


def test_weights_and_moments_in_float16_train_as_float32_ones() -> None:
    plain = trained("float32", False)[1]
    state, scores = trained("scaled-16", False)
    stored = [x for x in jax.tree.leaves(state, is_leaf=is_scaled) if x.size > 1]
    assert stored
    assert all(is_scaled(x) and x.data.dtype == np.float16 for x in stored)
    assert scores.accuracy >= plain.accuracy - 0.01
    assert scores.loss <= plain.loss + 0.02
