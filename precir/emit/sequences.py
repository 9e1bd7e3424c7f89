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
    elements, or those of each group."""

    bundle: str
    shape: tuple[int, ...]
    count: int
    reach: str
    index: int

    @property
    def size(self) -> int:
        return sum(self.shape)

    def __str__(self) -> str:
        return f"{self.bundle}[{self.index}]{self.reach}"


def indices(numbers: Sequence[int]) -> str | None:
    """An iterable that yields `numbers`: a range, its reverse, or a range in string order (the
    order in which JAX flattens a dict of `h_0`, `h_1`, ..., `h_10`)."""
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
    if len({b for b, _ in pattern}) > 1:
        inner = ", ".join(f"{h.bundle}[i]{h.reach}" for h in homes[:width])
        return f"*[leaf for i in {over} for leaf in ({inner})]", length
    reaches = [r for _, r in pattern]
    bundle = first.bundle
    whole = numbers == list(range(first.count))
    item = "group" if whole else f"{bundle}[i]"
    if whole and first.size == 1:
        return f"*{bundle}", length
    head = f"for group in {bundle}" if whole else f"for i in {over}"
    if first.size == 1:
        return f"*[{item} {head}]", length
    if width == 1:
        return f"*[{item}{reaches[0]} {head}]", length
    everything = [f"[{e}]" for e in range(first.size)]
    if reaches == everything:
        return f"*[leaf {head} for leaf in {item}]", length
    if len(first.shape) == 1 and reaches == everything[(at := everything.index(reaches[0])) :][:width]:
        return f"*[leaf {head} for leaf in {item}[{at}:{at + width}]]", length
    picked = ", ".join(f"{item}{r}" for r in reaches)
    return f"*[leaf {head} for leaf in ({picked})]", length


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
