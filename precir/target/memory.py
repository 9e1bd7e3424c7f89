"""`precir.memory`: what a program takes of a GPU that is not there, by XLA's own compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import jax

from precir.errors import TargetError
from precir.kernels.launch import target as compiled_for
from precir.target.cards import Card
from precir.target.cards import card as find_card
from precir.target.hlo import parse
from precir.target.shardings import Place, find_place, placed
from precir.target.traffic import Collective, Kernel, Product, low_share, traffic

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# Without a GPU nothing is timed, and XLA then prefers its own Triton kernels for all products.
# With one, cuBLASLt takes most large ones, and it is there that FP8 either happens or does not.
_OPTIONS: Final = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Memory:
    """What one device needs to run a program, as XLA planned it, and what it runs.

    Prints as tables with `rich.print`; `str` gives the same as plain text, `data` as plain data.

    Attributes:
      name: the function.
      recipe: the recipe it was compiled with, "" for none.
      card: the name of the target.
      mesh: the sizes of the devices' axes by name.
      argument, output, alias, temporary, code: bytes on each device; `alias` are those of outputs
        that take the place of donated arguments.
      peak: the most bytes that are alive at once, arguments included.
      capacity: bytes on the card.
      products: by kernel and formats, those with most work first; loops are counted in full.
      collectives: by kind and element type, most bytes first.
      kernels: other library and Triton kernels.
      exact: whether the counts are; not if a loop's length is unknown (it is counted once) or
        there are branches (all are counted).
      hlo: the program, as text.
    """

    name: str
    recipe: str
    card: str
    mesh: Mapping[str, int]
    argument: int
    output: int
    alias: int
    temporary: int
    code: int
    peak: int
    capacity: int
    products: tuple[Product, ...]
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    exact: bool
    hlo: str

    @property
    def devices(self) -> int:
        """How many."""
        count = 1
        for size in self.mesh.values():
            count *= size
        return count

    @property
    def low(self) -> int:
        """How many products multiply 8-bit operands."""
        return sum(p.count for p in self.products if p.low)

    @property
    def low_share(self) -> float:
        """The part of all multiply-adds that is in 8 bits, 0 to 1."""
        return low_share(self.products)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the card's memory; XLA sets some of it aside."""
        return self.peak <= self.capacity

    @property
    def data(self) -> dict[str, Any]:
        """As dicts, lists, strings, numbers and booleans; without the program's text."""
        found = asdict(self)
        del found["hlo"]
        for key in ("products", "collectives", "kernels"):
            found[key] = list(found[key])
        return found | {"devices": self.devices, "low": self.low, "fits": self.fits}

    def __str__(self) -> str:
        from precir.target.table import plain

        return plain(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from precir.target.table import screen

        yield from screen(self)


def memory(
    fn: Callable[..., Any],
    *args: Any,
    target: str | Card = "h100",
    devices: int | None = None,
    mesh: Mapping[str, int] | None = None,
    shardings: Any = None,
    compiler_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Memory:
    """Compile a function for GPUs that are not there, and say what it takes of each.

    XLA's own compiler for that card runs, up to the machine code; nothing is executed and no
    array is made, so that a model of any size can be asked about on any machine.

        precir.memory(jax.jit(train_step, donate_argnums=0), state, batch, target="h100")

    Args:
      fn: a function, the result of `jax.jit` (without shardings of its own) or of
        `precir.compile`.
      *args, **kwargs: as for a call; arrays or `jax.ShapeDtypeStruct`s, with a `NamedSharding` or
        without.
      target: a name in `precir.target.CARDS`.
      devices: how many; one, if neither this nor `mesh` nor the arguments' shardings say more.
      mesh: the devices' axes and their sizes, as {"data": 2, "model": 4}.
      shardings: a `jax.sharding.PartitionSpec` for each positional argument, or a tree prefix of
        them; None for what lies whole on every device.
      compiler_options: XLA's. `xla_gpu_enable_triton_gemm` is False unless said otherwise: with no
        GPU to time them on, XLA would take its own Triton kernels for every product, where on a
        GPU it takes cuBLASLt for most large ones.

    Raises:
      TargetError: an unknown target, shardings that do not fit, or JAX's CUDA plugin is missing.
    """
    card = find_card(target)
    if shardings is None:
        shardings = getattr(fn, "in_shardings", None)
    place = find_place(card, (args, kwargs), devices, mesh, shardings)
    jitted = _jitted(fn, place)
    positional = placed(args, shardings, place)
    named = {k: placed((v,), None, place)[0] for k, v in kwargs.items()}
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((positional, named))):
        raise TargetError("the function is given no arrays", fix="pass at least one")
    major, minor = card.capability
    with compiled_for(10 * major + minor):  # with the Triton kernels that such a GPU gets
        lowered = jitted.trace(*positional, **named).lower()
    compiled = lowered.compile(compiler_options={**_OPTIONS, **(compiler_options or {})})
    recipe = getattr(getattr(fn, "recipe", None), "name", "")
    return _read(compiled, getattr(fn, "__name__", "function"), recipe, card, place)


def _jitted(fn: Any, place: Place) -> Any:
    if hasattr(fn, "moved_to"):  # of precir.compile
        return fn.moved_to(place.moved_all)
    return fn if hasattr(fn, "trace") and hasattr(fn, "lower") else jax.jit(fn)


def _read(compiled: Any, name: str, recipe: str, card: Card, place: Place) -> Memory:
    sizes = compiled.memory_analysis()
    text = compiled.as_text()
    found = traffic(parse(text))
    return Memory(
        name=name,
        recipe=recipe,
        card=card.name,
        mesh=dict(place.mesh.shape),
        argument=sizes.argument_size_in_bytes,
        output=sizes.output_size_in_bytes,
        alias=sizes.alias_size_in_bytes,
        temporary=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        peak=sizes.peak_memory_in_bytes,
        capacity=card.memory,
        products=found.products,
        collectives=found.collectives,
        kernels=found.kernels,
        exact=found.exact,
        hlo=text,
    )
