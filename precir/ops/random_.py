"""Random numbers and PRNG keys."""

from __future__ import annotations

from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, bind, call
from precir.ops.facts import functions, moving
from precir.ops.scales import laws
from precir.ops.writing import REQUIRED, Hole, Template, Writer, source

OWN = Keeps.OWN


def _implementation(node: Node) -> str:
    return str(node.params["impl"].name)


def _seed(node: Node, w: Writer) -> Template:
    if isinstance(node.inputs[0], Literal):
        return Template(
            (f"jax.random.key({node.inputs[0].value}, impl={_implementation(node)!r})",)
        )
    if node.inputs[0].type.rank:
        return bind(node, w)
    return Template(("jax.random.key(", Hole(0), f", impl={_implementation(node)!r})"))


def _wrap(node: Node, w: Writer) -> Template:
    return Template(("jax.random.wrap_key_data(", Hole(0), f", impl={_implementation(node)!r})"))


def _bits(node: Node, w: Writer) -> Template:
    if node.inputs[0].type.rank or node.params.get("out_sharding") is not None:
        return bind(node, w)
    shape, width = source(tuple(node.params["shape"]), w), node.params["bit_width"]
    return Template(("jax.random.bits(", Hole(0), f", {shape}, jnp.uint{width})"))


def _split(node: Node, w: Writer) -> Template:
    if node.inputs[0].type.rank:
        return bind(node, w)
    shape = tuple(node.params["shape"])
    return Template(("jax.random.split(", Hole(0), f", {shape[0] if len(shape) == 1 else shape})"))


def _fold_in(node: Node, w: Writer) -> Template:
    if node.inputs[0].type.rank or node.inputs[1].type.rank:
        return bind(node, w)
    return Template(("jax.random.fold_in(", Hole(0), ", ", Hole(1), ")"))


OPS: tuple[Op, ...] = (
    Op("random_seed", OWN, functions.anything, laws.unscaled, _seed),
    Op("random_wrap", OWN, functions.anything, laws.unscaled, _wrap),
    Op("random_unwrap", OWN, functions.anything, laws.unscaled, call("jax.random.key_data")),
    Op("random_bits", OWN, functions.anything, laws.unscaled, _bits),
    Op("random_split", OWN, functions.anything, laws.unscaled, _split),
    Op("random_fold_in", OWN, functions.anything, laws.unscaled, _fold_in),
    Op("random_gamma", OWN, moving.random_gamma, laws.unscaled, bind),
    Op("random_clone", OWN, functions.anything, laws.unscaled, bind),
    Op("threefry2x32", OWN, functions.anything, laws.unscaled, bind),
    Op("iota_2x32_shape", OWN, functions.anything, laws.unscaled, bind),
    Op(
        "rng_bit_generator",
        OWN,
        functions.anything,
        laws.unscaled,
        call(
            "lax.rng_bit_generator",
            positional=("shape",),
            keywords={"dtype": REQUIRED, "algorithm": REQUIRED, "out_sharding": None},
        ),
    ),
)
