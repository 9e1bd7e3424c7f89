"""`precir.compile`: like `jax.jit`, but what runs is the emitted module."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from precir.check.arguments import given_facts
from precir.emit.load import save as save_module
from precir.errors import PrecirError, RecipeError
from precir.packed import PLAIN, Layout, stripped, unpacked
from precir.program import Program, closed_jaxpr, make_program, replay
from precir.recipe import Recipe
from precir.recipe import recipe as find_recipe
from precir.state import not_begun, wrapped
from precir.vjp import differentiable, emit_pair, second_derivative, without_derivative


class Compiled:
    """A function that runs as emitted source. Called, traced and lowered as `jax.jit`'s is."""

    def __init__(
        self,
        fn: Callable[..., Any],
        recipe: Recipe,
        options: dict[str, Any],
        ranges: Any = None,
        stats: Any = None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._ranges, self._stats = ranges, stats
        self._options = options
        self.recipe = recipe
        self._static = {
            k: options[k] for k in ("static_argnums", "static_argnames") if k in options
        }
        self._donated = {
            k: options[k] for k in ("donate_argnums", "donate_argnames") if k in options
        }
        self._programs: dict[Any, tuple[Any, Program]] = {}
        self._inner: Any = jax.jit(fn, **self._static)

        @functools.wraps(fn)
        def run(*args: Any, **kwargs: Any) -> Any:
            return self._run(*args, **kwargs)

        self._outer: Any = jax.jit(run, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._outer(*args, **kwargs)
        except TypeError as error:
            if "custom_vjp function" in str(error) and "forward-mode" in str(error):
                raise second_derivative() from error
            raise

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        name = getattr(self._fn, "__name__", self._fn)
        return f"<precir.compile of {name}, recipe {self.recipe.name}>"

    # -- as jax.jit has them -------------------------------------------------------------------

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fn).trace`: a traced program, of the emitted source."""
        return self._outer.trace(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fn).lower`, abstract arguments and shardings included."""
        return self._outer.lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fn).eval_shape`."""
        return self._outer.eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forget every compiled signature."""
        self._outer.clear_cache()
        self._inner.clear_cache()
        self._programs.clear()

    # -- what precir adds ----------------------------------------------------------------------

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The `Program` for arguments like these: its graphs after each pass, its formats, its
        emitted module. Arguments may be arrays or `jax.ShapeDtypeStruct`s.
        """
        plain, named, layout = self._plain(args, kwargs)
        return self._program(self._inner.trace(*plain, **named), layout)

    def _program(self, traced: Any, layout: Layout) -> Program:
        jaxpr = traced.jaxpr
        key = (id(jaxpr.jaxpr), traced.in_tree, layout)
        found = self._programs.get(key)
        if found is None:
            static = self._static_positions()
            given = given_facts(traced, self._ranges) if self._ranges is not None else ()
            program = make_program(
                self._fn, traced, self.recipe, static, self._decorator(static), given,
                self._seen(), layout,
            )  # fmt: skip
            found = (jaxpr, program)
            if not program.captured:
                self._programs[key] = found
        return found[1]

    def _seen(self) -> Any:
        """What was observed of each tensor, by its name."""
        if self._stats is None:
            return None
        return {name: self._stats[name].stats for name in self._stats}

    @functools.cached_property
    def _stored_plain(self) -> Compiled:
        """The same for arguments as they are: what comes plain goes back plain."""
        return self.with_recipe(
            self.recipe.replace(state=None, weight=None, first_moment=None, second_moment=None)
        )

    def with_recipe(self, recipe: str | Recipe) -> Compiled:
        """The same function, with the same options, under another recipe."""
        return Compiled(self._fn, find_recipe(recipe), self._options, self._ranges, self._stats)

    def with_options(self, **options: Any) -> Compiled:
        """The same function, with these options of `jax.jit` besides its own."""
        return Compiled(self._fn, self.recipe, self._options | options, self._ranges, self._stats)

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments of the first step, in the order given: what the step carries from one
        step to the next is in the form that it takes and returns.

            params, opt, batch = step.init(params, opt, batch)
            for batch in batches:
                params, opt, loss = step(params, opt, batch)
            params, opt = step.unpack(params, opt)

        State are the arguments that come back as results. Under a recipe that carries something
        of its own (`fp8-delayed`), the first of them becomes a `Packed`; under one that stores
        state in 16 bits, their weights and moments become `ScaledArray`s. All other arguments are
        returned as they are, and so is everything under a recipe without state. One argument is
        returned alone.

        Works under `jax.jit` and `jax.eval_shape`, as to restore a checkpoint. Raises
        `StateError` if the recipe needs state and no argument comes back.
        """
        given = [*args, *kwargs.values()]
        plain_args, plain_kwargs, layout = self._plain(args, kwargs)
        if layout == PLAIN:
            program = self._program(self._inner.trace(*plain_args, **plain_kwargs), layout)
            given = self._wrapped(program, args, kwargs)
        return given[0] if len(given) == 1 else tuple(given)

    def unpack(self, *values: Any) -> Any:
        """The user's own of what the step takes and returns: float32 arrays, no `Packed`. What is
        the user's own already stays as it is.
        """
        found = tuple(unpacked(v) for v in values)
        return found[0] if len(found) == 1 else found

    def source(self, *args: Any, **kwargs: Any) -> str:
        """The emitted module's text for arguments like these."""
        return self.program(*args, **kwargs).emitted.text

    def save(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the emitted module for arguments like these; large constants go to an `.npz`
        beside it. It imports nothing of the original program.
        """
        save_module(self.program(*args, **kwargs).emitted, path)

    def save_with_gradient(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write one module for this function and its gradient, compiled together: a
        `jax.custom_vjp` with respect to every floating-point argument. For a model function whose
        emitted code is to be differentiated where precir is not.
        """
        program = self.program(*args, **kwargs)
        dynamic, named = self._dynamic(args, kwargs)
        save_module(emit_pair(self._fn_of_dynamic(args, kwargs), program, dynamic, named), path)

    def report(self, *args: Any, **kwargs: Any) -> Any:
        """Every product and tensor, its format and why; prints as tables with `rich.print`."""
        from precir.report import Report

        return Report.of(self.program(*args, **kwargs))

    def observe(self, batches: Iterable[tuple[Any, ...]], **options: Any) -> Any:
        """Run on batches and measure every tensor: see `precir.observe`."""
        from precir.observe import observe

        return observe(self, batches, **options)

    def dump(self, folder: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write one text file per pass, the report and the emitted module to `folder`."""
        from precir.dump import dump

        dump(self.program(*args, **kwargs), folder)

    def memory(self, *args: Any, **kwargs: Any) -> Any:
        """What the emitted program takes of GPUs that are not there: see `precir.memory`, whose
        options (`target`, `devices`, `mesh`, `shardings`, `compiler_options`) come by name beside
        the function's own arguments.
        """
        from precir.target import memory

        return memory(self, *args, **kwargs)

    def plan(
        self,
        *args: Any,
        tokens: float | None = None,
        steps: float | None = None,
        target: Any = "h100",
        speedups: Any = None,
        factors: Any = None,
        tolerance: float = 0.01,
        **kwargs: Any,
    ) -> Any:
        """What the scaling laws say of training with this step: see `precir.plan`, whose options
        come by name beside the function's own arguments.

        N is read off the graph, D is `tokens`, or those of one call times `steps`, and the speed
        of this recipe is that of its own share of products in 8 bits.
        """
        from precir.planner import plan_step

        program = self.program(*args, **kwargs)
        return plan_step(
            program, tokens=tokens, steps=steps, target=target, speedups=speedups,
            factors=factors, tolerance=tolerance,
        )  # fmt: skip

    @property
    def in_shardings(self) -> Any:
        """As they were given, or None."""
        return self._options.get("in_shardings")

    def moved_to(self, move: Callable[[Any], Any]) -> Any:
        """The `jax.jit` that runs this, for arguments that lie on other devices. `move` takes a
        tree of shardings there.
        """
        moved = {k: v for k, v in self._options.items() if k != "in_shardings"}
        if "out_shardings" in moved:
            moved["out_shardings"] = move(moved["out_shardings"])
        return jax.jit(self._outer.__wrapped__, **moved)

    # ------------------------------------------------------------------------------------------

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs under `jax.jit`'s trace, once for each signature."""
        with _collector_paused():
            return self._trace(*args, **kwargs)

    def _trace(self, *args: Any, **kwargs: Any) -> Any:
        plain_args, plain_kwargs, layout = self._plain(args, kwargs)
        traced = self._inner.trace(*plain_args, **plain_kwargs)
        program = self._program(traced, layout)
        if program.state and layout == PLAIN:
            if program.state.extras:
                raise not_begun(program.state, self.recipe)
            program = self._stored_plain._program(traced, layout)
        dynamic, named = self._dynamic(args, kwargs)
        main, captured = program.main, program.captured
        fn, call = self._fn_of_dynamic(args, kwargs), lambda args, kwargs: main(*args, **kwargs)
        if captured:  # arguments like any other from here on
            closed, out_tree = closed_jaxpr(traced), program.signature.result

            def fn(given: Sequence[Any], _: dict[str, Any]) -> Any:
                return replay(closed, out_tree, jax.tree.leaves(given[0]), given[1:])

            def call(given: Sequence[Any], _: dict[str, Any]) -> Any:
                args, kwargs = given[0]
                extra = {f"captured_{i}": v for i, v in enumerate(given[1:])}
                return main(*args, **kwargs, **extra)

            dynamic, named = [(dynamic, named), *captured], {}
        with _naming_user_lines(program):
            if layout != PLAIN:
                return without_derivative(program, call, dynamic, named)
            return differentiable(fn, program, call, dynamic, named)

    def _plain(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any], Layout]:
        """The arguments as the user's function takes them, and how those given stand for them."""
        dynamic, named = self._dynamic(args, kwargs)
        plain, layout = stripped([*dynamic, *(named[k] for k in sorted(named))])
        if layout == PLAIN:
            return args, kwargs, layout
        return *self._filled(args, kwargs, plain), layout

    def _wrapped(self, program: Program, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        dynamic, named = self._dynamic(args, kwargs)
        made = wrapped(program.state, [*dynamic, *(named[k] for k in sorted(named))])
        args, kwargs = self._filled(args, kwargs, made)
        return [*args, *kwargs.values()]

    def _filled(
        self, args: Sequence[Any], kwargs: dict[str, Any], dynamic: Sequence[Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with others in the place of those that are not static."""
        new, static = iter(dynamic), self._static_names()
        filled = [a if self._is_static(i, len(args)) else next(new) for i, a in enumerate(args)]
        named = dict(zip(sorted(k for k in kwargs if k not in static), new, strict=True))
        return filled, {k: named.get(k, v) for k, v in kwargs.items()}

    def _static_positions(self) -> tuple[int, ...]:
        numbers = self._static.get("static_argnums", ())
        found = {numbers} if isinstance(numbers, int) else set(numbers)
        names = self._static.get("static_argnames") or ()
        names = {names} if isinstance(names, str) else set(names)
        for i, p in enumerate(self._parameters()):
            if p.name in names and p.kind is not p.KEYWORD_ONLY:
                found.add(i)
        return tuple(sorted(found))

    def _parameters(self) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(self._fn).parameters.values())
        except (TypeError, ValueError):
            return []

    def _static_names(self) -> set[str]:
        names = self._static.get("static_argnames") or ()
        found = {names} if isinstance(names, str) else set(names)
        parameters = self._parameters()
        for i in self._static_positions():
            if -len(parameters) <= i < len(parameters):
                found.add(parameters[i].name)
        return found

    def _is_static(self, position: int, count: int) -> bool:
        static = self._static_positions()
        return position in static or position - count in static

    def _dynamic(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        names = self._static_names()
        kept = [a for i, a in enumerate(args) if not self._is_static(i, len(args))]
        return kept, {k: v for k, v in kwargs.items() if k not in names}

    def _fn_of_dynamic(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """The user's function with its static arguments filled in."""
        names = self._static_names()
        fixed = {k: v for k, v in kwargs.items() if k in names}
        statics = {i: a for i, a in enumerate(args) if self._is_static(i, len(args))}

        def fn(positional: Sequence[Any], keywords: dict[str, Any]) -> Any:
            rest = iter(positional)
            full = [statics[i] if i in statics else next(rest) for i in range(len(args))]
            return self._fn(*full, **fixed, **keywords)

        return fn

    def _decorator(self, static: Sequence[int]) -> str:
        donated = self._donated.get("donate_argnums")
        if donated is None or donated == ():
            return "@jax.jit"
        numbers = (donated,) if isinstance(donated, int) else tuple(donated)
        moved = tuple(n - sum(s < n for s in static) for n in numbers if n not in static)
        return f"@functools.partial(jax.jit, donate_argnums={moved!r})"


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No garbage collection inside.

    A program only grows while it is made, and to look through all of it again and again costs as
    much as making it.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class _naming_user_lines:
    """Adds the user's line to an exception raised in emitted code."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, PrecirError):
            return
        file = getattr(self.program.module, "__file__", None)
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == file:
                source = self.program.emitted.sources.get(traceback.tb_lineno)
                if source is not None and source.where is not None:
                    where = source.where
                    place = f"{where.file}:{where.line} ({where.function})"
                    error.add_note(f"in code that precir emitted for {place}")
            traceback = traceback.tb_next


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    recipe: str | Path | Recipe = "float32",
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    in_shardings: Any = None,
    out_shardings: Any = None,
    keep_unused: bool = False,
    ranges: Any = None,
    stats: Any = None,
    tolerance: float | None = None,
    target: Any = None,
) -> Any:
    """Compile a JAX function, a model or a whole train step, in the precision of a recipe.

    Behaves as `jax.jit(fn, ...)` does: any pytrees, traced at the first call, cached by abstract
    signature, usable inside jit, grad, vmap and scan, and as a decorator. What runs is a module
    of JAX source that precir emits: see `Compiled.source`, `.save` and `.dump`.

    Args:
      fn: the function; leave it out to use `compile(recipe=...)` as a decorator.
      recipe: a name ("float32" changes nothing), a `Recipe`, a file that one was saved to, or
        "auto": the formats that cost least within `tolerance` on `target`, chosen by the numbers
        of the first call as `precir.choose` does, and kept; see `.choice` after it.
      static_argnums, static_argnames, donate_argnums, donate_argnames, in_shardings,
        out_shardings, keep_unused: as in `jax.jit`.
      ranges: what is known of the arguments' numbers, as in `precir.check`: one entry for each
        positional argument that is not static, a `precir.Range`, a pytree prefix of them, a
        function from an array's path to one, or None. Formats that these rule out are not given.
      stats: what `precir.observe` saw of the same function under recipe "float32": a tensor that
        was seen past a format's limits, or mostly below them, does not get it.
      tolerance, target: of recipe "auto" alone, as in `precir.choose`: the error to accept (0.01)
        and the card whose time to save ("h100").

    Raises:
      RecipeError: the recipe is unknown, or not "auto" and given a tolerance or target.
      ChooseError: at the first call under "auto", when there is nothing to choose by.
      RangesError: at the first call, ranges that do not fit the arguments.
      TypeError, ValueError: whatever `jax.jit` raises for the same arguments.
    """
    automatic = recipe == "auto"
    if not automatic and (tolerance is not None or target is not None):
        raise RecipeError(
            'a tolerance and a target are what recipe "auto" chooses by',
            fix='recipe="auto", or leave them out',
        )
    found: str | Recipe = "auto" if automatic else find_recipe(recipe)
    given = {
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        "donate_argnums": donate_argnums,
        "donate_argnames": donate_argnames,
        "in_shardings": in_shardings,
        "out_shardings": out_shardings,
        "keep_unused": keep_unused or None,
    }
    options = {k: v for k, v in given.items() if v is not None}
    if fn is None:
        return lambda f: compile(
            f, recipe=found, ranges=ranges, stats=stats, tolerance=tolerance, target=target,
            **options,
        )  # fmt: skip
    if not callable(fn):
        raise TypeError(f"precir.compile takes a function, not {type(fn).__name__}")
    if isinstance(fn, Compiled):
        fn = fn._fn
    if isinstance(found, str):
        from precir.auto.choose import TOLERANCE
        from precir.auto.compiled import Automatic

        tolerance = TOLERANCE if tolerance is None else tolerance
        return Automatic(fn, options, ranges, tolerance, target or "h100")
    return Compiled(fn, found, options, ranges, stats)
