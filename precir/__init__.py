"""precir: a compiler pass pipeline for numerical precision in JAX."""

from precir.auto import Choice, choose
from precir.check import Hazard, check
from precir.compile import Compiled, compile
from precir.domains import Kinds, Range, Stats
from precir.errors import PrecirError
from precir.inference import InferenceError, InferenceReport, QuantizedModel, quantize_model
from precir.lower import lower
from precir.observe import Observation, observe
from precir.packed import Packed, StateError
from precir.planner import fit_law, plan
from precir.recipe import RECIPES, Recipe, recipe
from precir.scaled import ScaledArray
from precir.scaling import scale, unscale
from precir.target import Memory, memory
from precir.version import __version__

__all__ = [
    "RECIPES",
    "Choice",
    "Compiled",
    "Hazard",
    "InferenceError",
    "InferenceReport",
    "Kinds",
    "Memory",
    "Observation",
    "Packed",
    "PrecirError",
    "QuantizedModel",
    "Range",
    "Recipe",
    "ScaledArray",
    "StateError",
    "Stats",
    "__version__",
    "check",
    "choose",
    "compile",
    "fit_law",
    "lower",
    "memory",
    "observe",
    "plan",
    "quantize_model",
    "recipe",
    "scale",
    "unscale",
]
