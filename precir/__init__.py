"""precir: a compiler pass pipeline for numerical precision in JAX."""

__version__ = "0.1.0"

from precir.compile import Compiled, compile
from precir.errors import PrecirError
from precir.lower import lower
from precir.recipe import RECIPES, Recipe, recipe
from precir.scaled import ScaledArray

__all__ = ["RECIPES", "Compiled", "PrecirError", "Recipe", "ScaledArray", "compile", "lower", "recipe"]
