"""`precir.compile(fn, recipe="auto")`: the recipe is chosen at the first call, by its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax

from precir.auto.choice import Choice
from precir.auto.choose import BASE, ChooseError, choose
from precir.compile import Compiled
from precir.recipe import recipe as find_recipe
from precir.target.cards import Card


class Automatic(Compiled):
    """A function whose recipe is chosen by the numbers of its first call, and kept.

    Attributes:
      choice: what was chosen and why; None before the first call.
    """

    def __init__(
        self, fn: Any, options: dict[str, Any], ranges: Any, tolerance: float, target: str | Card
    ) -> None:
        super().__init__(fn, find_recipe(BASE).replace(name="auto"), options, ranges)
        self.choice: Choice | None = None
        self._asked = tolerance, target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().__call__(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().trace(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().eval_shape(*args, **kwargs)

    def init(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().init(*args, **kwargs)

    def program(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().program(*args, **kwargs)

    def memory(self, *args: Any, **kwargs: Any) -> Any:
        self._settle(args, kwargs)
        return super().memory(*args, **kwargs)

    def with_options(self, **options: Any) -> Compiled:
        if self.choice is not None:
            return super().with_options(**options)
        return Automatic(self._fn, self._options | options, self._ranges, *self._asked)

    def _settle(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if self.choice is not None:
            return
        name = getattr(self._fn, "__name__", "the function")
        if any(_unknown(x) for x in jax.tree.leaves((args, kwargs))):
            raise ChooseError(
                f'recipe "auto" is chosen by the numbers of the first call of {name}, and these '
                "arguments have none: they are traced or abstract",
                fix="call it once on real arrays, outside of jax.jit and the like; or choose "
                "first: recipe=precir.choose(fn, batches).recipe",
            )
        tolerance, target = self._asked
        given = self._positional(args, kwargs, name)
        plain = self.with_recipe("float32")
        self.choice = choose(plain, [given], tolerance=tolerance, target=target)
        self.recipe = self.choice.recipe

    def _positional(
        self, args: Sequence[Any], kwargs: dict[str, Any], name: str
    ) -> tuple[Any, ...]:
        if not kwargs:
            return tuple(args)
        bound = inspect.signature(self._fn).bind(*args, **kwargs)
        if bound.kwargs:
            raise ChooseError(
                f"{name} has arguments that go by name alone: {', '.join(bound.kwargs)}",
                fix="choose for a function of positional arguments, and compile with the recipe",
            )
        return bound.args


def _unknown(leaf: Any) -> bool:
    return isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
