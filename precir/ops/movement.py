"""Ops that move numbers and make none, and those that make index-like arrays."""

from __future__ import annotations

from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, bind, call
from precir.ops.facts import moving, pointwise
from precir.ops.scales import laws
from precir.ops.writing import ATOM, REQUIRED, Hole, Template, Writer, source

MOVE, FOLLOW, OWN = Keeps.MOVE, Keeps.FOLLOW, Keeps.OWN


def _reshape(node: Node, w: Writer) -> Template:
    if node.params.get("dimensions") is not None or node.params.get("sharding") is not None:
        return _reshape_plain(node, w)
    if isinstance(node.inputs[0], Literal):
        return _reshape_plain(node, w)
    sizes = ", ".join(map(str, node.params["new_sizes"]))
    return Template((Hole(0, ATOM), f".reshape({sizes or '()'})"))


_reshape_plain = call(
    "lax.reshape", positional=("new_sizes",), keywords={"dimensions": None, "sharding": None}
)


def _transpose(node: Node, w: Writer) -> Template:
    permutation = tuple(node.params["permutation"])
    if isinstance(node.inputs[0], Literal):
        return _transpose_plain(node, w)
    if permutation == (1, 0):
        return Template((Hole(0, ATOM), ".T"))
    return Template((Hole(0, ATOM), f".transpose{source(permutation, w)}"))


_transpose_plain = call("lax.transpose", positional=("permutation",))


def _broadcast(node: Node, w: Writer) -> Template:
    shape, dims = tuple(node.params["shape"]), tuple(node.params["broadcast_dimensions"])
    operand = node.inputs[0]
    if node.params.get("sharding") is not None or len(node.inputs) > 1:
        return bind(node, w)
    if isinstance(operand, Literal):
        pieces = (f"lax.full({source(shape, w)}, ", Hole(0), ")")
        return Template(pieces)
    return Template(("lax.broadcast_in_dim(", Hole(0), f", {source(shape, w)}, {source(dims, w)})"))


def _slice(node: Node, w: Writer) -> Template:
    shape = node.inputs[0].type.shape
    starts, limits = node.params["start_indices"], node.params["limit_indices"]
    strides = node.params["strides"] or (1,) * len(shape)
    if isinstance(node.inputs[0], Literal):
        return _slice_plain(node, w)
    changed = [
        i for i, n in enumerate(shape) if (starts[i], limits[i], strides[i]) != (0, n, 1)
    ]  # lax.slice_in_dim reads better than three tuples where one axis is cut
    if len(changed) == 1:
        i = changed[0]
        stride = f", stride={strides[i]}" if strides[i] != 1 else ""
        axis = f", axis={i}" if i else ""
        return Template(
            ("lax.slice_in_dim(", Hole(0), f", {starts[i]}, {limits[i]}{stride}{axis})")
        )
    return _slice_plain(node, w)


_slice_plain = call(
    "lax.slice", positional=("start_indices", "limit_indices"), keywords={"strides": None}
)


def _iota(node: Node, w: Writer) -> Template:
    if node.inputs or node.params.get("sharding") is not None:
        return bind(node, w)
    dtype, shape = source(node.params["dtype"], w), tuple(node.params["shape"])
    if len(shape) == 1:
        return Template((f"lax.iota({dtype}, {shape[0]})",))
    return Template(
        (f"lax.broadcasted_iota({dtype}, {source(shape, w)}, {node.params['dimension']})",)
    )


def _concatenate(node: Node, w: Writer) -> Template:
    pieces: list[str | Hole] = ["lax.concatenate(["]
    for i in range(len(node.inputs)):
        pieces += [", "] * (i > 0) + [Hole(i)]
    return Template((*pieces, f"], {node.params['dimension']})"))


def _dynamic_slice(node: Node, w: Writer) -> Template:
    if len(node.inputs) != 1 + node.inputs[0].type.rank or _negative(node, 1):
        return bind(node, w)
    sizes = source(tuple(node.params["slice_sizes"]), w)
    return Template(
        ("lax.dynamic_slice(", Hole(0), ", ", *_indices(node, 1), f", {sizes}", _exactly(node, 1))
    )


def _dynamic_update_slice(node: Node, w: Writer) -> Template:
    if _negative(node, 2):
        return bind(node, w)
    return Template(
        (
            "lax.dynamic_update_slice(",
            Hole(0),
            ", ",
            Hole(1),
            ", ",
            *_indices(node, 2),
            _exactly(node, 2),
        )
    )


def _indices(node: Node, first: int) -> list[str | Hole]:
    pieces: list[str | Hole] = ["("]
    for i in range(first, len(node.inputs)):
        pieces += [Hole(i), ", " if i + 1 < len(node.inputs) or i == first else ""]
    return [*pieces, ")"]


def _negative(node: Node, first: int) -> bool:
    """Whether an index is a negative literal, which no function passes on as it is."""
    literals = [o.value for o in node.inputs[first:] if isinstance(o, Literal)]
    return any(isinstance(v, int) and v < 0 for v in literals)


def _exactly(node: Node, first: int) -> str:
    """JAX has already counted negative indices from the end; counting twice changes those that
    are out of bounds.
    """
    signed = [
        o
        for o in node.inputs[first:]
        if not isinstance(o, Literal) and not o.type.dtype.startswith("uint")
    ]
    return ", allow_negative_indices=False)" if signed else ")"


def _split(node: Node, w: Writer) -> Template:
    pattern = "({},)" if len(node.outputs) == 1 else None
    sizes = source(tuple(int(s) for s in node.params["sizes"]), w)
    return Template(
        ("lax.split(", Hole(0), f", {sizes}, axis={node.params['axis']})"), targets=pattern
    )


def _unstack(node: Node, w: Writer) -> Template:
    pattern = "({},)" if len(node.outputs) == 1 else None
    axis = f", axis={node.params['axis']}" if node.params["axis"] else ""
    return Template(("lax.unstack(", Hole(0), f"{axis})"), targets=pattern)


def _squeeze(node: Node, w: Writer) -> Template:
    return Template(("lax.squeeze(", Hole(0), f", {source(tuple(node.params['dimensions']), w)})"))


def _barrier(node: Node, w: Writer) -> Template:
    pieces: list[str | Hole] = ["lax.optimization_barrier(("]
    for i in range(len(node.inputs)):
        pieces += [Hole(i), ", " if i + 1 < len(node.inputs) or i == 0 else ""]
    return Template((*pieces, "))"), targets="({},)" if len(node.outputs) == 1 else None)


OPS: tuple[Op, ...] = (
    Op("reshape", MOVE, pointwise.same_as_operand, laws.through, _reshape),
    Op("transpose", MOVE, pointwise.same_as_operand, laws.through, _transpose),
    Op("broadcast_in_dim", MOVE, pointwise.same_as_operand, laws.through, _broadcast),
    Op("squeeze", MOVE, pointwise.same_as_operand, laws.through, _squeeze),
    Op(
        "expand_dims",
        MOVE,
        pointwise.same_as_operand,
        laws.through,
        call("lax.expand_dims", keywords={"dimensions": REQUIRED}),
    ),
    Op("slice", MOVE, pointwise.same_as_operand, laws.through, _slice),
    Op(
        "rev",
        MOVE,
        pointwise.same_as_operand,
        laws.through,
        call("lax.rev", positional=("dimensions",)),
    ),
    Op(
        "pad",
        FOLLOW,
        moving.pad,
        laws.aligned(0, 1),
        call("lax.pad", positional=("padding_config",)),
    ),
    Op("concatenate", FOLLOW, pointwise.joined, laws.aligned(), _concatenate),
    Op("split", MOVE, pointwise.same_as_operand, laws.through, _split),
    Op(
        "stack",
        FOLLOW,
        pointwise.joined,
        laws.aligned(),
        call("lax.stack", packed=True, keywords={"axis": 0}),
    ),
    Op("unstack", MOVE, pointwise.same_as_operand, laws.through, _unstack),
    Op("dynamic_slice", MOVE, pointwise.same_as_operand, laws.through, _dynamic_slice),
    Op(
        "dynamic_update_slice",
        FOLLOW,
        moving.dynamic_update_slice,
        laws.aligned(0, 1),
        _dynamic_update_slice,
    ),
    Op("iota", OWN, moving.iota, laws.unscaled, _iota),
    Op("optimization_barrier", OWN, moving.passed_on, laws.each, _barrier),
)
