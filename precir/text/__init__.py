"""The text form of a graph: what dumps, golden tests and diffs stand on."""

from precir.text.files import load_graph, save_graph
from precir.text.parser import parse
from precir.text.printer import externals_of, node_text, print_graph
from precir.text.values import External

__all__ = [
    "External",
    "externals_of",
    "load_graph",
    "node_text",
    "parse",
    "print_graph",
    "save_graph",
]
