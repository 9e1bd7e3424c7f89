"""Recipes: which numbers a program computes in, as small frozen values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from precir.errors import RecipeError
from precir.recipe_file import SUFFIX, load_recipe, save_recipe

KEEP, MIXED, TRUE = "keep", "mixed", "true"


@dataclass(frozen=True)
class Override:
    """Nodes whose scope matches `scope` (a glob, as `*/lm_head`) compute in `keep`."""

    scope: str
    keep: str


@dataclass(frozen=True)
class Chosen:
    """The format of one op, whatever its class.

    Attributes:
      at: its name as `precir.observe` names what it makes; `*` stands for a number.
      format: "float32", "bfloat16", and for products "fp8" (as recipe `fp8`) or "fp8-block".
      why: in a few words.
    """

    at: str
    format: str
    why: str = ""

    def __post_init__(self) -> None:
        _among("format", self.format, ("float32", "bfloat16", *_LOW))

    @property
    def low(self) -> bool:
        """Whether it is an 8-bit one."""
        return self.format in _LOW

    @property
    def dtype(self) -> str:
        """What an op that multiplies nothing computes in."""
        return "bfloat16" if self.low else self.format

    def like(self, recipe: Recipe) -> Recipe:
        """The recipe by which an 8-bit product runs: the one of that name, or the one given."""
        return RECIPES[self.format] if self.low else recipe


_LOW = ("fp8", "fp8-block")


@dataclass(frozen=True)
class Store:
    """How a class of state lives between steps: as `ScaledArray`s.

    Attributes:
      format: that of the data.
      block: how many elements along the last axis have one scale; 0 for one scale for the whole
        tensor, or for each layer where a scan goes over a stack of layers.
    """

    format: str
    block: int = 0

    def __post_init__(self) -> None:
        _among("format", self.format, _STORAGE)
        if self.block < 0:
            raise RecipeError(f"a block is a number of elements, not {self.block}")


@dataclass(frozen=True)
class Recipe:
    """What a compiled program computes in.

    Attributes:
      name: what it is called.
      mode: "keep" changes nothing; "mixed" chooses by op class; "true" puts everything in
        `compute`. Arguments and results keep their dtypes in every mode.
      compute: dtype of products, and of ops that follow their operands.
      wide: dtype of sums, norms, exponentials, losses and updates (mode "mixed").
      forward: 8-bit format of the operands of products, None to leave them in `compute`.
      gradient: 8-bit format of incoming gradients in backward products.
      last_product: dtype of a product whose result reaches the loss through no other product
        (the logits), and of its two gradients; None treats it like the rest.
      scaling: where the scale of a quantised tensor comes from: "current" (its own largest
        element), "delayed" (the largest of the last `history` steps, carried as state), "static"
        (what `precir.observe` saw), "propagated" (the scales of what it was made of, each op by
        its law: Scalify, arXiv 2407.17353), or "unit" (always one: a control, not for training).
      activation_scales, weight_scales, gradient_scales: over what one scale reaches, for each
        class of operand: "tensor", "row" (all that one element of the product sums over),
        "1x128" and "128x128" (blocks of the axis that is summed over, and of both axes:
        DeepSeek-V3, arXiv 2412.19437), or "mx" (32 of the axis that is summed over, scales in
        E8M0: OCP MX 1.0). Under static scaling, `weight_scales` is for weights that are stored in
        8 bits, whose scales are stored with them; any other operand has one for the tensor.
      history: how many steps delayed scaling looks back.
      state: format in which weights and moments live between steps, as `ScaledArray`s; None
        leaves them as they are.
      weight, first_moment, second_moment: the same for one class of state, of matrices; which is
        which is seen from how the update uses it (`precir.passes.classes`).
      weight_gradient: format of the gradients of stored weights between their product and the
        update; None leaves them as they are.
      residuals: format in which the backward pass finds what the forward pass saves for it, where
        that may be rounded: "bfloat16", or 8 bits under a scale for every 128 elements of a row
        (COAT, arXiv 2410.19313); None leaves it as it is.
      loss_scaling: whether gradients are computed of the loss times a scale that grows until they
        overflow (Micikevicius et al., arXiv 1710.03740).
      update: where parameters are updated: "plain" (where the program says), or "fused" (in the
        loop that makes their gradients, where one layer's gradients exist at a time: LOMO,
        arXiv 2306.09782).
      kernels: "fused" computes and quantises in one kernel where that is expected to take less
        time (`precir.passes.kernels`); "plain" never does.
      sharded: whether weights are cut among devices and collected for their products (FSDP,
        ZeRO-3). Each then crosses in one copy, which is turned where a product reads it so; else a
        kernel writes both, which costs less memory traffic.
      stored: format in which `precir.quantize_model` stores what products in 16 bits read: "int8",
        under scales over what `weight_scales` says; None stores it in these 16 bits.
      overrides: exceptions by scope; the last that matches wins.
      chosen: exceptions by op, as `precir.choose` makes them.
    """

    name: str
    mode: str = KEEP
    compute: str = "float32"
    wide: str = "float32"
    forward: str | None = None
    gradient: str | None = None
    last_product: str | None = None
    scaling: str = "current"
    activation_scales: str = "tensor"
    weight_scales: str = "tensor"
    gradient_scales: str = "tensor"
    history: int = 16
    state: str | None = None
    weight: Store | None = None
    first_moment: Store | None = None
    second_moment: Store | None = None
    weight_gradient: str | None = None
    residuals: str | None = None
    loss_scaling: bool = False
    update: str = "plain"
    kernels: str = "fused"
    sharded: bool = False
    stored: str | None = None
    overrides: tuple[Override, ...] = ()
    chosen: tuple[Chosen, ...] = ()

    def __post_init__(self) -> None:
        _among("mode", self.mode, (KEEP, MIXED, TRUE))
        _among("compute", self.compute, _FLOATS)
        _among("wide", self.wide, _FLOATS)
        _among("scaling", self.scaling, _SCALINGS)
        _among("update", self.update, ("plain", "fused"))
        _among("kernels", self.kernels, ("fused", "plain"))
        for field in ("activation_scales", "weight_scales", "gradient_scales"):
            _among(field, getattr(self, field), _REACHES)
        reaches = {self.activation_scales, self.gradient_scales}
        if self.scaling != "static":  # of which stored weights need none: theirs go with them
            reaches.add(self.weight_scales)
        if self.scaling != "current" and reaches != {"tensor"}:
            raise RecipeError(
                f"{self.scaling} scaling has one scale for each tensor, not for each "
                f"{', '.join(sorted(reaches - {'tensor'}))}",
                fix='scales for parts of a tensor are current: scaling="current"',
            )
        if self.history < 1:
            raise RecipeError(f"history is a number of steps, not {self.history}")
        if self.state is not None:
            _among("state", self.state, ("float16", "bfloat16"))
        if self.state is not None and self.by_class:
            raise RecipeError(
                "state is the format of all weights and moments",
                fix="leave it out, and give weight, first_moment and second_moment theirs",
            )
        if self.scaling == "propagated" and self.by_class:
            raise RecipeError(
                "propagated scales keep all state in one format", fix='state="float16"'
            )
        if self.weight_gradient is not None:
            _among("weight_gradient", self.weight_gradient, _NARROW)
        if self.residuals is not None:
            _among("residuals", self.residuals, (*_NARROW, "bfloat16"))
            if self.scaling == "propagated":
                raise RecipeError("propagated scales keep residuals in the format they are made in")
        if self.stored is not None:
            _among("stored", self.stored, ("int8",))
            if self.forward is not None:
                raise RecipeError(
                    "what products in 8 bits read is stored in their own format",
                    fix="leave stored out, or forward and gradient",
                )
        for field in ("forward", "gradient"):
            if getattr(self, field) is not None:
                _among(field, getattr(self, field), _NARROW)
        if self.last_product is not None:
            _among("last_product", self.last_product, _FLOATS)
        if (self.forward is None) != (self.gradient is None):
            raise RecipeError("forward and gradient are 8-bit formats together or neither")
        if self.mode == TRUE and self.scaling == "propagated":
            raise RecipeError(
                "propagated scales leave sums, losses and updates in the wide format, and mode "
                "'true' has none",
                fix="mode 'mixed'",
            )
        for o in self.overrides:
            _among("keep", o.keep, _FLOATS)

    @property
    def by_class(self) -> dict[str, Store]:
        """How the classes of state live that have a format of their own."""
        kinds = {
            "weight": self.weight,
            "first moment": self.first_moment,
            "second moment": self.second_moment,
        }
        return {what: store for what, store in kinds.items() if store is not None}

    @property
    def stores(self) -> bool:
        """Whether any state lives in another format between steps."""
        return self.state is not None or bool(self.by_class)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed. Raises `RecipeError` for a field there is not."""
        unknown = set(changes) - set(self.__dataclass_fields__)
        if unknown:
            raise RecipeError(
                f"a recipe has no field {', '.join(sorted(unknown))}",
                fix=f"one of {', '.join(self.__dataclass_fields__)}",
            )
        return replace(self, **changes)

    def where(self, *, scope: str, keep: str) -> Recipe:
        """A copy in which nodes whose scope matches the glob `scope` compute in `keep`."""
        return replace(self, overrides=(*self.overrides, Override(scope, keep)))

    def save(self, path: str | Path) -> None:
        """Write it to a `.json` file that a person can edit; `precir.recipe(path)` reads it."""
        save_recipe(self, path)

    def override(self, scope: str) -> str | None:
        """The dtype that an override asks for at a scope, if one does."""
        for o in reversed(self.overrides):
            if fnmatchcase(scope, o.scope) or fnmatchcase(scope, f"{o.scope}/*"):
                return o.keep
        return None


_SCALINGS = ("current", "delayed", "static", "propagated", "unit")
_REACHES = ("tensor", "row", "1x128", "128x128", "mx")
_FLOATS = ("float32", "bfloat16", "float16", "float64")
_NARROW = ("float8_e4m3fn", "float8_e5m2")
_STORAGE = (*_NARROW, "float16", "bfloat16")


def _among(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{field} cannot be {value!r}", fix=f"one of {', '.join(known)}")


_FP8 = Recipe(
    "fp8", MIXED, "bfloat16",
    forward="float8_e4m3fn", gradient="float8_e5m2", last_product="bfloat16",
)  # fmt: skip


def _fp8_lm(name: str, first: Store | None, second: Store | None) -> Recipe:
    """Peng et al., arXiv 2310.18313, section 2: weights in scaled float16, gradients in E4M3."""
    return replace(
        _FP8, name=name, weight=Store("float16"), first_moment=first, second_moment=second,
        weight_gradient="float8_e4m3fn",
    )  # fmt: skip


_SCALED = Recipe("scaled-16", MIXED, "float16", scaling="propagated", state="float16")


def _finer(name: str, activations: str, weights: str) -> Recipe:
    return replace(
        _FP8, name=name, gradient="float8_e4m3fn",
        activation_scales=activations, gradient_scales=activations, weight_scales=weights,
    )  # fmt: skip


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe("float32"),
        Recipe("lomo", update="fused"),
        Recipe("bf16-mixed", MIXED, "bfloat16"),
        Recipe("bf16-true", TRUE, "bfloat16", "bfloat16"),
        Recipe("16-true", TRUE, "float16", "float16"),
        Recipe("16-mixed", MIXED, "float16", loss_scaling=True),
        Recipe("64-true", TRUE, "float64", "float64"),
        _FP8,
        replace(_FP8, name="fp8-delayed", scaling="delayed"),
        replace(_FP8, name="fp8-static", scaling="static"),
        # What `precir.quantize_model` takes: no state, no gradient, nothing measured on the way.
        replace(_FP8, name="fp8-inference", scaling="static", weight_scales="row"),
        # Weights alone: products run in 16 bits, for none of 8-bit integers has a kernel here.
        Recipe("int8-inference", MIXED, "bfloat16", weight_scales="row", stored="int8"),
        # E4M3 for gradients too, as torchao's and Transformer Engine's recipes of that reach:
        # where each row or block has its own scale, a digit more is worth more than the range.
        _finer("fp8-row", "row", "row"),
        _finer("fp8-block", "1x128", "128x128"),
        _finer("mxfp8", "mx", "mx"),
        _fp8_lm("fp8-lm-o1", None, None),
        _fp8_lm("fp8-lm-o2", Store("float8_e4m3fn"), Store("float16")),
        # The same state: where it is sharded, what crosses of a weight is its 8-bit image.
        _fp8_lm("fp8-lm-o3", Store("float8_e4m3fn"), Store("float16")),
        # What per-tensor scales lose of a second moment, blocks keep, and E5M2 reaches as far.
        _fp8_lm("fp8-lm-block", Store("float8_e4m3fn", 128), Store("float8_e5m2", 128)),
        Recipe("scaled-32", scaling="propagated"),
        _SCALED,
        replace(_SCALED, name="scaled-bf16", compute="bfloat16", state="bfloat16"),
        replace(
            _SCALED,
            name="scaled-fp8",
            forward="float8_e4m3fn",
            gradient="float8_e5m2",
            last_product="float16",
        ),
    )
}
# Lightning Fabric's spellings of what is here, and of what is not yet.
_ALIASES = {
    "32-true": "float32",
    "32": "float32",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
    "64": "64-true",
}
_NOT_YET = {
    "auto": "it is chosen by measuring: precir.choose(fn, batches).recipe",
    "transformer-engine": "use fp8, which needs no module swap",
    "transformer-engine-float16": "use fp8, which needs no module swap",
}


def recipe(name: str | Path | Recipe, **changes: Any) -> Recipe:
    """The recipe of that name, some of its fields changed: `recipe("bf16-mixed", update="fused")`;
    or that of a file that `Recipe.save` wrote, `recipe("chosen.json")`.

    Raises `RecipeError` that lists the known ones.
    """
    if isinstance(name, Recipe):
        return name.replace(**changes)
    if str(name).endswith(SUFFIX):
        kinds: dict[str, type] = {"chosen": Chosen, "overrides": Override}
        kinds |= dict.fromkeys(("weight", "first_moment", "second_moment"), Store)
        read: Recipe = load_recipe(Path(name), kinds, Recipe)
        return read.replace(**changes)
    if not isinstance(name, str):
        raise RecipeError(f"a recipe is a name or a precir.Recipe, not {type(name).__name__}")
    found = RECIPES.get(_ALIASES.get(name, name))
    if found is not None:
        return found.replace(**changes)
    known = ", ".join(sorted({*RECIPES, *_ALIASES}))
    if name in _NOT_YET:
        raise RecipeError(
            f"{name!r} is no recipe by itself", fix=f"{_NOT_YET[name]}; known: {known}"
        )
    close = get_close_matches(name, [*RECIPES, *_ALIASES], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise RecipeError(f"there is no recipe {name!r}", fix=f"{hint}known: {known}")
