"""How the Triton kernel of a product cuts it up: tiles, warps, how they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from precir.kernels.choice import Grain, tuned


class Tiling(NamedTuple):
    """How the kernel cuts a product up: the sizes of a tile, and how many programs of how many
    warps run, loading how many steps of K ahead.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group: int = 8
    resident: int = 1
    """Programs for each multiprocessor."""
    flatten: bool = True
    """Whether a tile is loaded while the one before it is finished: one program has then all the
    shared memory that it can use."""
    tma: bool = False
    """Whether operands are loaded by TMA where both are contiguous along K, else by pointers."""
    store: bool = False
    """Whether the result is stored by TMA where operands are loaded so, and its rows are multiples
    of 16 bytes."""
    specialize: bool = False
    """Whether four warps more do the loading, where that is by TMA and Triton compiles it: of one
    example, no largest magnitude kept. The loops are then not flattened."""

    def possible(self, operands: bool, result: bool, plain: bool) -> Tiling:
        """The nearest to it for operands and a result that tensor descriptors describe or not, and
        a product of one example, no largest magnitude kept, or another.
        """
        tma = self.tma and operands
        specialize = self.specialize and tma and plain
        return self._replace(
            tma=tma,
            store=self.store and tma and result,
            specialize=specialize,
            flatten=self.flatten and not specialize,
        )

    @property
    def descriptors(self) -> int:
        """Those that a program makes; of the result's, one by each half of specialised warps."""
        return 2 * self.tma + (2 if self.specialize else 1) * self.store


USUAL: Final = Tiling(128, 128, 128, 8, 4)
TUNED: Final = (
    USUAL,
    USUAL._replace(tma=True),
    USUAL._replace(tma=True, store=True),
    USUAL._replace(tma=True, specialize=True),
    USUAL._replace(tma=True, store=True, specialize=True),
    Tiling(64, 256, 128, 8, 3, tma=True),
    Tiling(64, 128, 128, 4, 4, resident=2, flatten=False),
    Tiling(64, 128, 128, 4, 4, resident=2, flatten=False, tma=True),
)
"""Those that are tried on a GPU for products of more than 64 rows and columns. Each fits Hopper's
shared memory with scales of any kind and with results of any dtype, and has its sums in registers:
of 128 by 256, the sum and the products to be added to it do not fit.
"""

_tiling: ContextVar[Tiling | None] = ContextVar("tiling", default=None)


@contextmanager
def tiled(tiling: Tiling | None) -> Iterator[None]:
    """Inside, kernels that are lowered use these tiles, but K steps as scales allow: to tune them,
    and to test small ones.
    """
    token = _tiling.set(tiling)
    try:
        yield
    finally:
        _tiling.reset(token)


def tiles(shapes: Sequence[int], granularity: tuple[Grain, Grain], step: int) -> Tiling:
    """The tiles of a product of ``shapes`` (batch, M, N, K), of at most ``step`` along K: as
    `tiled` says, or what was fastest where it was measured, at the shapes nearest to these.
    """
    _, m, n, _ = shapes
    given = _tiling.get()
    if given is None and min(m, n) <= 64:
        given = Tiling(64, 128, 128, 4, 4) if m <= n else Tiling(128, 64, 128, 4, 4)
    if given is None:
        found = tuned(shapes, granularity)
        given = Tiling(**found) if found else USUAL
    return given._replace(k=min(given.k, step))
