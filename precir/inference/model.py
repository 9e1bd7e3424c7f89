"""`precir.quantize_model`: a model function, its weights and some batches become a small model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from precir.compile import Compiled, compile
from precir.inference.errors import InferenceError
from precir.inference.gather import report_of
from precir.inference.measure import Measured, compare
from precir.inference.report import InferenceReport
from precir.inference.storing import Plan, make_plan
from precir.observe import observe
from precir.program import Program
from precir.recipe import Recipe
from precir.recipe import recipe as find_recipe

_SCALINGS = ("current", "static")


class QuantizedModel:
    """A model whose weights are stored in few bits. Made by `quantize_model`.

    Call it as `jax.jit` of the model, with `params` for the weights: it works inside jit and vmap.

    Attributes:
      params: the weights as they are stored: the tree that was given, with a `ScaledArray` in the
        place of each array that is stored in fewer bits. An ordinary pytree: shard it, save it,
        put it on devices.
      recipe: what they were quantised by.
      compiled: the compiled function, as of `precir.compile`.
    """

    def __init__(
        self, wide: Compiled, low: Compiled, plan: Plan, params: Any, inputs: Sequence[Any]
    ) -> None:
        self.params, self.recipe, self.compiled = params, low.recipe, low
        self._wide, self._plan, self._inputs = wide, plan, tuple(inputs)
        self._tree: Any = jax.tree.structure(params)
        self._report: InferenceReport | None = None

    def __call__(self, params: Any, *inputs: Any, **named: Any) -> Any:
        """The model's result. Raises `InferenceError` unless `params` are stored as these are."""
        self._check(params)
        return self.compiled(params, *inputs, **named)

    def __repr__(self) -> str:
        return f"<precir.quantize_model of {self._plan_name}, recipe {self.recipe.name}>"

    def quantize(self, params: Any) -> Any:
        """Other weights of the same structure, stored as these are; scales of activations stay.

        Works under `jax.jit`. Raises `InferenceError` on other structures and shapes.
        """
        return self._plan.quantized(params)

    def report(self) -> InferenceReport:
        """Bytes, formats and errors, layer by layer; prints as tables with `rich.print`. Of errors
        it says what the calibration batches showed.
        """
        assert self._report is not None
        return self._report

    def compare(self, params: Any, batches: Iterable[Sequence[Any]]) -> InferenceReport:
        """The report of other batches, and how much of them left the calibrated ranges.

        `params` are the wide weights, which are not kept.
        """
        return self._measured(params, self._plan.quantized(params), _listed(batches))

    def save(self, path: str | Path, *inputs: Any) -> None:
        """Write the emitted module for inputs like these (or the first batch): readable JAX, to be
        imported where precir's compiler is not and called as `module.name(q.params, *inputs)`.
        """
        self.compiled.save(path, self.params, *self._given(inputs))

    def source(self, *inputs: Any) -> str:
        """The emitted module's text for inputs like these, or the first batch."""
        return self.compiled.source(self.params, *self._given(inputs))

    def program(self, *inputs: Any) -> Program:
        """The `Program` for inputs like these, or the first batch."""
        return self.compiled.program(self.params, *self._given(inputs))

    def dump(self, folder: str | Path, *inputs: Any) -> None:
        """One text file per pass, the program's report and the emitted module."""
        self.compiled.dump(folder, self.params, *self._given(inputs))

    def memory(self, *inputs: Any, **options: Any) -> Any:
        """What it takes of GPUs that are not there, with the options of `precir.memory`."""
        return self.compiled.memory(self.params, *self._given(inputs), **options)

    def lower(self, params: Any, *inputs: Any) -> Any:
        """As `jax.jit(model).lower`."""
        self._check(params)
        return self.compiled.lower(params, *inputs)

    # ------------------------------------------------------------------------------------------

    @property
    def _plan_name(self) -> str:
        return getattr(self.compiled, "__name__", "a model")

    def _given(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs or self._inputs

    def _check(self, params: Any) -> None:
        if jax.tree.structure(params) != self._tree:
            raise InferenceError(
                "these weights are not stored as the model takes them",
                fix="pass q.params, or q.quantize(params) for other weights of the same structure",
            )

    def _measured(
        self, params: Any, stored: Any, batches: Sequence[Any], measure: bool = True
    ) -> InferenceReport:
        reference, found = self._plan.reference(params), Measured()
        if measure:
            found = compare(self._wide, self.compiled, reference, stored, batches)
        return report_of(self._plan, self.program(), found, params, stored)


def quantize_model(
    model_fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Sequence[Any]],
    *,
    recipe: str | Recipe = "fp8-inference",
    measure: bool = True,
    **options: Any,
) -> QuantizedModel:
    """Quantise a model for inference: weights stored in 8 bits, once, with their scales.

        q = precir.quantize_model(model, params, batches)
        y = q(q.params, x)
        print(q.report())

    What products read is stored in the format and under scales of the reach that they take (by
    the recipe: a tensor, a row, a block; each layer of a stack has its own), so that they take it
    as it lies. Embeddings are stored so too, and dequantised after the lookup. What only products
    in 16 bits read (the last, by the recipe) is stored in these 16 bits, which changes nothing of
    it. All else stays as it is: biases, norms, what is computed with before it is multiplied.

    Under "fp8-inference" each activation has one scale, from the largest element that any batch
    showed and a binade of room (`precir.passes.static.MARGIN`). What goes past it later saturates
    at the largest of the format, and says nothing; `QuantizedModel.compare` counts it.

    Under "int8-inference" weights are integers from -127 to 127, each channel under a scale of its
    own. Products run in bfloat16 (none of 8-bit integers has a kernel here): each weight is
    dequantised where its product reads it, in a loop one layer at a time, and activations need no
    scales.

    Args:
      model_fn: `model_fn(params, *inputs)`.
      params: a pytree of arrays. Weights in 16 bits are read as float32.
      batches: tuples of inputs to calibrate on, at least one; kept until all is measured. Those to
        come may have other shapes.
      recipe: a name or a `Recipe` of current or static scaling. Under "bf16-mixed" matrices are
        stored in bfloat16.
      measure: whether to run the batches once more, quantised and not, for the report's errors.
      options: those of `precir.compile`, as `static_argnums` and `donate_argnums`.

    Raises:
      InferenceError (a ValueError): no batches, or none that is a tuple; weights that are not
        finite, or none to store; a recipe that carries state.
      RecipeError: the recipe is unknown, or an activation was not seen.
    """
    found = find_recipe(recipe)
    if found.scaling not in _SCALINGS or found.stores or found.update != "plain":
        raise InferenceError(
            f"recipe {found.name} is for training: it carries state from step to step",
            fix='"fp8-inference", or another recipe whose scales are current or static',
        )
    if found.loss_scaling:
        found = found.replace(loss_scaling=False)
    calibrating = _listed(batches)
    plan = make_plan(model_fn, params, calibrating[0], found, options)
    wide = compile(model_fn, **options)
    stats = None
    if found.scaling == "static":
        reference = plan.reference(params)
        stats = observe(wide, [(reference, *b) for b in calibrating], detail="amax")
    low = compile(model_fn, recipe=found, stats=stats, **options)
    stored = plan.quantized(params)
    made = QuantizedModel(wide, low, plan, stored, tuple(map(_abstract, calibrating[0])))
    made._report = made._measured(params, stored, calibrating, measure)
    return made


def _listed(batches: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Raises `InferenceError` unless there are some, and each is a tuple."""
    found = list(batches)
    for batch in found:
        if not isinstance(batch, (tuple, list)) or hasattr(batch, "_fields"):
            raise InferenceError(
                f"a batch is a tuple of the model's inputs, not {type(batch).__name__}",
                fix="[(x,) for x in ...]: without the weights, and in a tuple also if it is one",
            )
    if not found:
        raise InferenceError(
            "there were no batches to calibrate on",
            fix="a few tuples of inputs like those to come",
        )
    return [tuple(b) for b in found]


def _abstract(argument: Any) -> Any:
    """Its shapes, so that the report's inputs keep no arrays."""

    def one(leaf: Any) -> Any:
        is_array = isinstance(leaf, (jax.Array, np.ndarray))
        struct: Any = jax.ShapeDtypeStruct
        return struct(leaf.shape, leaf.dtype) if is_array else leaf

    return jax.tree.map(one, argument)
