"""GPUs that are not there: XLA's own compiler for them says what a program takes."""

from precir.target.cards import CARDS, Card, card
from precir.target.memory import Memory, memory
from precir.target.shardings import split_largest
from precir.target.topology import compile_only
from precir.target.traffic import Collective, Kernel, Product

__all__ = [
    "CARDS",
    "Card",
    "Collective",
    "Kernel",
    "Memory",
    "Product",
    "card",
    "compile_only",
    "memory",
    "split_largest",
]
