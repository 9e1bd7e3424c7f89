"""precir: a compiler pass pipeline for numerical precision in JAX."""

from precir.compile import Compiled, compile
from precir.errors import PrecirError
from precir.lower import lower
from precir.recipe import RECIPES, Recipe, recipe
from precir.scaled import ScaledArray
from precir.version import __version__

__all__ = [
    "RECIPES",
    "Compiled",
    "PrecirError",
    "Recipe",
    "ScaledArray",
    "__version__",
    "compile",
    "lower",
    "recipe",
]
