"""Spell a Python list of values: whole subtrees, results of loops, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precir.emit.paths import Leaves
from precir.ir import Operand, Value


@dataclass(frozen=True)
class Home:
    """Where a collected loop result is kept: `bundle[index]` and from there `reach`, as `[2]`,
    or `[1][0]` in a bundle of groups, or nothing in a bundle of one. `shape` is the number of
    elements, or those of each group.
    """

    bundle: str
    shape: tuple[int, ...]
    count: int
    reach: str
    index: int

    @property
    def size(self) -> int:
        return sum(self.shape)

    @property
    def group(self) -> str:
        """`reach` up to its last step."""
        return self.reach[: self.reach.rfind("[")] if self.reach else ""

    @property
    def element(self) -> int:
        """The last step of `reach`."""
        return int(self.reach[self.reach.rfind("[") + 1 : -1]) if self.reach else 0

    def __str__(self) -> str:
        return f"{self.bundle}[{self.index}]{self.reach}"


def indices(numbers: Sequence[int]) -> str | None:
    """An iterable that yields `numbers`: a range, its reverse, or a range in string order (the
    order in which JAX flattens a dict of `h_0`, `h_1`, ..., `h_10`).
    """
    count, first = len(numbers), min(numbers)
    ascending = list(range(first, first + count))
    span = f"range({count})" if first == 0 else f"range({first}, {first + count})"
    if list(numbers) == ascending:
        return span
    if list(numbers) == ascending[::-1]:
        return f"reversed({span})"
    if list(numbers) == sorted(ascending, key=str):
        return f"sorted({span}, key=str)"
    return None


def flattened(homes: Sequence[Home]) -> tuple[str, int] | None:
    """Spell the longest leading run of loop results as one starred item: (text, length).

    A run is the same results of one iteration after another, in an order that `indices` can
    spell: `*[g for layer in grads for g in layer]`.
    """
    width = 0
    while width < len(homes) and homes[width].index == homes[0].index:
        width += 1
    pattern = [(h.bundle, h.reach) for h in homes[:width]]
    numbers: list[int] = []
    for start in range(0, len(homes) - width + 1, width):
        group = homes[start : start + width]
        same = all(h.index == group[0].index for h in group)
        if not same or [(h.bundle, h.reach) for h in group] != pattern or group[0].index in numbers:
            break
        numbers.append(group[0].index)
    over = indices(numbers) if len(numbers) > 1 else None
    if over is None:
        return None
    first, length = homes[0], len(numbers) * width
    whole = numbers == list(range(first.count)) and len({b for b, _ in pattern}) == 1
    head = f"for group in {first.bundle}" if whole else f"for i in {over}"
    if whole and first.size == 1:
        return f"*{first.bundle}", length
    shown = _side_by_side(homes[:width], whole)
    if len(shown) > 1:
        return f"*[leaf {head} for leaf in ({', '.join(shown)})]", length
    if shown[0].startswith("*"):
        return f"*[leaf {head} for leaf in {shown[0][1:]}]", length
    return f"*[{shown[0]} {head}]", length


def _side_by_side(homes: Sequence[Home], whole: bool) -> list[str]:
    """The results of one iteration, those kept side by side as one starred slice."""
    shown = []
    at = 0
    while at < len(homes):
        home, stop = homes[at], at + 1
        prefix, element = home.group, home.element
        while stop < len(homes) and (
            homes[stop].bundle == home.bundle
            and homes[stop].group == prefix
            and homes[stop].element == element + stop - at
        ):
            stop += 1
        item = "group" if whole else f"{home.bundle}[i]"
        size = home.shape[int(prefix[1:-1]) if prefix else 0]
        if stop - at == 1:
            shown.append(f"{item}{home.reach}")
        elif stop - at == size:
            shown.append(f"*{item}{prefix}")
        else:
            shown.append(f"*{item}{prefix}[{element}:{element + stop - at}]")
        at = stop
    return shown


def parts(values: Sequence[Operand], leaves: Leaves, homes: dict[Value, Home]) -> list[str | int]:
    """The items of a list display: starred runs as text, single values as their position."""
    items: list[str | int] = []
    at = 0
    while at < len(values):
        subtree = leaves.subtree(values, at)
        if subtree is not None:
            items.append(f"*jax.tree.leaves({subtree[0]})")
            at += subtree[1]
            continue
        run: list[Home] = []
        for value in values[at:]:
            home = homes.get(value) if isinstance(value, Value) else None
            if home is None:
                break
            run.append(home)
        found = flattened(run) if len(run) > 1 else None
        if found is not None:
            items.append(found[0])
            at += found[1]
        else:
            items.append(at)
            at += 1
    return items
