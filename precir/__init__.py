"""precir: a compiler pass pipeline for numerical precision in JAX."""

__version__ = "0.1.0"
