"""Which node each exception of a recipe means: by name, as `precir.observe` names tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from precir.errors import RecipeError
from precir.ir import Graph, Node
from precir.ops import Keeps, op_named
from precir.passes.observe import named_values
from precir.recipe import Chosen

_NUMBER: Final = re.compile(r"\d+")
_PHASE: Final = re.compile(r"^(backward|update) ")
_COUNT: Final = re.compile(r" #\d+$")


def place_of(name: str) -> str:
    """A name without the numbers in its scope and its own: that of the same op in all layers alike.

    `backward GPT/h_0/mlp/dot_general train.py:91 #2` is at `backward GPT/h_*/mlp/dot_general
    train.py:91 #*`.
    """
    place, space, line = _COUNT.sub("", name).rpartition(" ")
    count = " #*" if _COUNT.search(name) else ""
    return f"{_NUMBER.sub('*', place)}{space}{line}{count}"


def find_chosen(graph: Graph, chosen: Sequence[Chosen]) -> dict[Node, Chosen]:
    """The exception of each node that has one, the first that names it.

    A backward product that no entry names gets what is chosen for the forward product of its scope
    and line: one that is made by differentiating what was chosen for.

    Raises RecipeError if there are products and no entry names anything: a recipe for another
    program.
    """
    if not chosen:
        return {}
    exact: dict[str, Chosen] = {}
    for c in chosen:
        exact.setdefault(c.at, c)
    places = {at: e for at, e in exact.items() if "*" in at}
    patterns = [(_pattern(at), e) for at, e in places.items()]
    forward: dict[str, Chosen] = {}
    for at in exact:
        forward.setdefault(_forward(at), exact[at])
    found: dict[Node, Chosen] = {}
    products = 0
    for name, value in named_values(graph, "full").items():
        node = value.node
        if node is None or node in found:
            continue
        entry: Chosen | None = exact.get(name) or places.get(place_of(name))
        if entry is None and patterns:
            entry = next((e for p, e in patterns if p.fullmatch(name)), None)
        if op_named(node.op).keeps is Keeps.PRODUCT:
            products += 1
            if entry is None and name.startswith("backward "):
                entry = forward.get(_forward(name)) or forward.get(_forward(place_of(name)))
        if entry is not None:
            found[node] = entry
    if products and not found:
        raise RecipeError(
            f"nothing in {graph.name} has the name of any of the {len(exact)} ops that this recipe "
            f"chooses for, the first of them {chosen[0].at!r}",
            fix="names hold the file and line of an op: choose again for the program as it is now",
        )
    return found


def _pattern(at: str) -> re.Pattern[str]:
    return re.compile(r"\d+".join(re.escape(part) for part in at.split("*")))


def _forward(name: str) -> str:
    return _COUNT.sub("", _PHASE.sub("", name)).removesuffix(" #*")
