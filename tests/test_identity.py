"""Recipe float32 changes nothing: the same bits, and the same optimised program, as jax.jit."""

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import pytest

import precir
from tests.programs import Program, advance, assert_bit_identical, every_program
from tests.programs.program import host

Tree = Any


class Counted:
    """A function that counts how often it is called, that is traced, and refuses to go on after
    `most` times: what runs beyond must be something else.
    """

    def __init__(self, fn: Callable[..., Any], most: int | None = None) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn, self.most, self.count = fn, most, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        assert self.most is None or self.count <= self.most, "the original was called again"
        return self.fn(*args, **kwargs)


def skip_without_devices(program: Program) -> None:
    if jax.device_count() < program.needs_devices:
        pytest.skip(f"needs {program.needs_devices} devices")


def instructions(text: str) -> Counter[str]:
    """The instructions of an optimised HLO module as a multiset, without what names them.

    Names of instructions and computations and metadata go, and so does the place of a value in
    the tuple that a loop or a branch is given, which is its name there. Shapes, layouts, opcodes
    and attributes stay.
    """
    found: Counter[str] = Counter()
    for line in text.splitlines():
        _, equals, right = line.strip().partition(" = ")
        if not equals:
            continue
        right = re.sub(r", metadata=\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "", right)
        right = re.sub(r", (frontend_attributes|branch_computations)=\{[^{}]*\}", "", right)
        right = re.sub(r", (calls|to_apply|body|condition)=%[\w.\-]+", "", right)
        right = re.sub(r"/\*index=\d+\*/|, stack_frame_id=\d+", "", right)
        right = re.sub(r"%[\w.\-]+", "%", right)
        if " get-tuple-element(" in right:
            right = right.partition(", index=")[0]
        if right.startswith("("):
            elements, _, rest = right.partition(") ")
            right = f"({', '.join(sorted(elements[1:].split(', ')))}) {rest}"
        found[right] += 1
    return found


def assert_same_instructions(mine: Any, theirs: Any) -> None:
    """Both compiled programs are the same multiset of optimised instructions."""
    a, b = instructions(mine.as_text()), instructions(theirs.as_text())
    more, fewer = a - b, b - a
    shown = [f"+ {n} x {k[:150]}" for k, n in more.items()]
    shown += [f"- {n} x {k[:150]}" for k, n in fewer.items()]
    assert not shown, "\n".join(shown[:40])


def programs(kind: str) -> Any:
    """The programs of one kind, to be parametrized over."""
    chosen = [p for p in every_program.args[1] if p.values[0].kind == kind]
    return pytest.mark.parametrize("program", chosen)


@programs("train")
def test_bits(program: Program) -> None:
    """Three steps give the bits of jax.jit's, the original traced as often as jit traces it."""
    skip_without_devices(program)
    options = program.options()
    original = Counted(program.step)
    expected = three_steps(jax.jit(original, **options), program)
    traced = Counted(program.step, most=original.count)
    outputs = three_steps(precir.compile(traced, **options), program)
    for mine, theirs in zip(outputs, expected, strict=True):
        assert_bit_identical(mine, theirs)


def three_steps(step: Callable[..., Tree], program: Program) -> list[Tree]:
    """What each of three steps gives, on the host before the next one may donate it."""
    state, outputs = program.init(0), []
    for i in range(3):
        out = step(state, *program.batch(i), **program.keywords(i))
        outputs.append(jax.tree.map(host, out))
        state = out[0]
    return outputs


@every_program
def test_instructions(program: Program) -> None:
    """What XLA makes of the emitted module is what it makes of the original."""
    skip_without_devices(program)
    options = program.options()
    args, kwargs = (program.init(0), *program.batch(0)), program.keywords(0)
    mine = precir.compile(program.step, **options).lower(*args, **kwargs).compile()
    theirs = jax.jit(program.step, **options).lower(*args, **kwargs).compile()
    if program.name not in FEWER or size(mine) >= size(theirs):
        assert_same_instructions(mine, theirs)


# These may need fewer (it depends on JAX's release): lax.cond and lax.scan, called again, see that
# a branch only hands on an input or that a value is a constant, and carry one value less than JAX's
# own derivative of them does.
FEWER = {"cond_loss", "linen_gpt_scan_remat", "linen_accumulate", "layers_scan_remat"}


def size(compiled: Any) -> int:
    return instructions(compiled.as_text()).total()


def gradient_step(program: Program, model: Callable[..., Tree]) -> Callable[..., Tree]:
    """Loss, gradients and outputs of a model, differentiated inside one jit."""

    def of(params: Tree, *args: Any, **kwargs: Any) -> Tree:
        def loss(params: Tree) -> tuple[jax.Array, Tree]:
            outputs = model(params, *args, **kwargs)
            return program.loss(outputs), outputs

        return jax.value_and_grad(loss, has_aux=True)(params)

    return jax.jit(of)


@programs("model")
def test_gradient_bits(program: Program) -> None:
    """A compiled model, differentiated inside a jit, gives the gradient of the plain model."""
    skip_without_devices(program)
    options = program.options()
    model = precir.compile(program.step, **options)
    mine = gradient_step(program, model)
    theirs = gradient_step(program, jax.jit(program.step, **options))
    params = program.init(0)
    for i in range(3):
        expected = theirs(params, *program.batch(i), **program.keywords(i))
        assert_bit_identical(mine(params, *program.batch(i), **program.keywords(i)), expected)
        params, _ = advance(program.step, program, params, i)
