"""Low precision on every program: finite, every product accounted for, the loss near float32's."""

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

import precir
from precir.ir import Graph
from precir.ops.fused import FUSED
from tests.programs import PROGRAMS, Program, every_program, run

NARROW = {"float8_e4m3fn", "float8_e5m2"}


def compiled(program: Program, recipe: str = "fp8") -> Any:
    if jax.device_count() < program.needs_devices:
        pytest.skip(f"needs {program.needs_devices} devices")
    return precir.compile(program.step, recipe=recipe, **program.options())


def first_arguments(program: Program) -> tuple[Any, dict[str, Any]]:
    return (program.init(0), *program.batch(0)), program.keywords(0)


SOME = ("mlp_layers", "attention_grouped", "rnn_scan", "bfloat16_compute", "conv", "experts",
        "custom_vjp_model", "keywords_and_statics")  # fmt: skip
some = pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.name in SOME], ids=lambda p: p.name
)


@some  # all of them: test_loss_near_float32
def test_finite(program: Program) -> None:
    losses, _ = run(compiled(program), program, steps=3)
    assert np.isfinite(losses).all()


@every_program
def test_every_product_accounted_for(program: Program) -> None:
    args, kwargs = first_arguments(program)
    found = compiled(program).program(*args, **kwargs)
    products = found.assignment.products
    assigned = {stage.name: stage.graph for stage in found.stages}["assign"]
    dots = [n for n in assigned.walk() if n.op == "dot_general"]
    assert {p.node for p in products if p.node.op == "dot_general"} == set(dots)
    if program.products is not None:
        assert len(dots) <= program.products  # a product nobody reads is dropped
    for product in products:
        assert product.reason
        if product.low:
            assert set(product.operands) <= NARROW
            assert product.operands != ("float8_e5m2", "float8_e5m2")


@every_program
def test_quantised_once_for_each_format(program: Program) -> None:
    args, kwargs = first_arguments(program)
    graph = compiled(program).program(*args, **kwargs).graph
    for part in parts(graph):
        made = Counter(
            (tuple(map(id, n.inputs)), str(sorted(n.params.items(), key=str)))
            for n in part.nodes
            if n.op in ("quantize", *FUSED)
        )
        assert all(count == 1 for count in made.values())


def parts(graph: Graph) -> list[Graph]:
    """A graph and all graphs below."""
    return [graph, *(p for n in graph.nodes for r in n.regions for p in parts(r))]


@pytest.mark.slow
@every_program
def test_loss_near_float32(program: Program) -> None:
    options = program.options()
    low, _ = run(compiled(program), program)
    high, _ = run(jax.jit(program.step, **options), program)
    assert np.isfinite(low).all()
    assert abs(np.mean(low[-5:]) - np.mean(high[-5:])) <= 0.05


@pytest.mark.parametrize("recipe", ["bf16-mixed", "bf16-true", "16-true"])
@some
def test_other_recipes_finite(program: Program, recipe: str) -> None:
    """float16 overflows past 65,504: none of these programs goes there."""
    losses, _ = run(compiled(program, recipe), program, steps=3)
    assert np.isfinite(losses).all()
