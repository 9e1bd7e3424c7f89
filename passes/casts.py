"""Insert casts and quantisation where formats meet, each made once and shared by its readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from precir.ir import Graph, Literal, Node, Operand, Type, Value
from precir.ops import Keeps, op_named
from precir.passes.assign import (
    Assignment,
    Product,
    fixed_inputs,
    fixed_outputs,
    region_operands,
)  # fmt: skip
from precir.passes.grains import Grain
from precir.recipe import Recipe
from precir.scaled import scale_shape


def insert_casts(graph: Graph, assignment: Assignment, recipe: Recipe) -> Graph:
    """The program that computes in the assigned formats; arguments and results as before."""
    if not assignment.compute and not assignment.result:
        return graph
    products = {p.node: p for p in assignment.products}
    return _Rewriter(graph, assignment, products, recipe).run(None)


class _Rewriter:
    """Rebuilds one graph. `versions[v]` holds what stands for an old value, by format."""

    def __init__(
        self, graph: Graph, assignment: Assignment, products: dict[Node, Product], recipe: Recipe
    ) -> None:
        self.graph, self.assignment, self.products, self.recipe = (
            graph,
            assignment,
            products,
            recipe,
        )
        self.nodes: list[Node] = []
        self.versions: dict[Value, dict[str, Operand]] = {}
        self.done: set[Node] = set()

    def run(self, outputs: Sequence[str] | None, *, retype_inputs: bool = False) -> Graph:
        """`outputs`: dtypes that results must have; None for the traced ones."""
        inputs = []
        for value in self.graph.inputs:
            dtype = self.assignment.dtype(value)
            new = value
            if retype_inputs and dtype != value.type.dtype:
                new = Value(_retyped(value.type, dtype), hint=value.hint)
            inputs.append(new)
            self.versions[value] = {new.type.dtype: new}
        for node in self.graph:
            self.node(node)
        wanted = outputs or [o.type.dtype for o in self.graph.outputs]
        place = self.graph.nodes[-1] if self.graph.nodes else None
        results = [self.read(o, w, place) for o, w in zip(self.graph.outputs, wanted, strict=True)]
        return self.graph.with_(
            inputs=tuple(inputs), nodes=tuple(self.nodes), outputs=tuple(results)
        )

    # -- reading a value in a format -----------------------------------------------------------

    def natural(self, operand: Operand) -> Operand:
        """What stands for a value, in the format it was made in."""
        if isinstance(operand, Literal):
            return operand
        versions = self.versions[operand]
        return next(iter(versions.values()))

    def read(self, operand: Operand, dtype: str, reader: Node | None) -> Operand:
        """A value in `dtype`, cast at most once."""
        if isinstance(operand, Literal):
            if operand.type.dtype == dtype:
                return operand
            return Literal(_rounded(operand.value, dtype), _retyped(operand.type, dtype))
        versions = self.versions[operand]
        if dtype not in versions:
            source = next(iter(versions.values()))
            versions[dtype] = self.add(
                "cast", [source], _retyped(source.type, dtype), {"dtype": dtype}, reader, operand
            )
        return versions[dtype]

    def quantized(self, operand: Operand, dtype: str, grain: Grain, reader: Node) -> Operand:
        """A value in 8 bits, quantised once for each format and reach of its scales."""
        if isinstance(operand, Literal):
            raise AssertionError("a product of a scalar literal")
        versions = self.versions[operand]
        key = f"quantized {dtype} {grain.block} {grain.scale_format}"
        if key not in versions:
            source = next(v for k, v in versions.items() if not k.startswith("quantized"))
            shape = source.type.shape
            kind = Type(shape, dtype, scale=scale_shape(shape, grain.block), block=grain.block)
            scaling = self.recipe.scaling
            if scaling == "propagated":
                scaling = "unit"  # its scale is with the data's
            if scaling == "static" and grain.scale is None:
                scaling = "current"  # of what is stored already
            params = grain.params(dtype, scaling)
            inputs = [source]
            if grain.scale is not None:
                params["scaling"] = "given"
                inputs.append(Literal(grain.scale, Type((), "float32")))
            versions[key] = self.add("quantize", inputs, kind, params, reader, operand)
        return versions[key]

    def add(
        self,
        op: str,
        inputs: list[Operand],
        kind: Type,
        params: dict[str, Any],
        reader: Node | None,
        made: Value,
    ) -> Operand:
        """A node of ours, at the place of the node that reads it first."""
        place = reader or made.node
        node = Node(op, inputs, [kind], params)
        if place is not None:
            node = place.like(op=op, inputs=inputs, types=[kind], params=params, regions=())
            node.effects = False
        self.nodes.append(node)
        return node.outputs[0]

    # -- nodes ---------------------------------------------------------------------------------

    def node(self, node: Node) -> None:
        product = self.products.get(node)
        if node.regions:
            self.with_regions(node)
        elif product is not None and product.low:
            self.low_product(node, product)
        elif product is not None and product.result == "float16" and self.rescaled(node):
            self.shifted_product(node, [self.read(o, "float16", node) for o in node.inputs])
        elif node in self.done:
            pass
        elif self.assignment.compute.get(node) == "natural":
            self.rescale(node)
        elif node.op == "cast":
            self.cast(node)
        else:
            self.plain(node)

    def rescale(self, node: Node) -> None:
        dtype = self.assignment.dtype(node.outputs[0])
        inputs = [self.natural(o) for o in node.inputs]
        kind = _retyped(node.outputs[0].type, dtype)
        self.keep(node, node.like(inputs=inputs, types=[kind], params={"dtype": dtype}))

    def cast(self, node: Node) -> None:
        """What was stored in fewer bits is there in both formats."""
        made = node.like(inputs=[self.natural(o) for o in node.inputs])
        self.keep(node, made)
        (source,) = made.inputs
        self.versions[node.outputs[0]].setdefault(source.type.dtype, source)

    def keep(self, node: Node, made: Node) -> None:
        self.nodes.append(made)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            self.versions[old] = {new.type.dtype: new}

    def low_product(self, node: Node, product: Product) -> None:
        operands = [
            self.quantized(o, f, g, node)
            for o, f, g in zip(node.inputs, product.operands, product.grains, strict=True)
        ]
        if self.rescaled(node):
            self.shifted_product(node, operands)
            return
        params = {"dimension_numbers": node.params["dimension_numbers"], "dtype": product.result}
        kind = Type(node.outputs[0].type.shape, product.result)
        self.keep(node, node.like(op="scaled_dot", inputs=operands, types=[kind], params=params))

    def rescaled(self, node: Node) -> Node | None:
        """The multiplication by a known power of two that alone reads a product."""
        if node.op != "dot_general" or node.params.get("out_sharding") is not None:
            return None
        readers = self.graph.users.get(node.outputs[0], ())
        if len(readers) != 1 or node.outputs[0] in self.graph.outputs:
            return None
        known = readers[0].op == "rescale" and isinstance(readers[0].inputs[1], Literal)
        return readers[0] if known else None

    def shifted_product(self, node: Node, operands: list[Operand]) -> None:
        """A product multiplied before it is rounded: its own data may be past the format."""
        reader = self.rescaled(node)
        assert reader is not None
        (value,), factor = reader.outputs, reader.inputs[1]
        assert isinstance(factor, Literal)
        dtype = self.assignment.dtype(value)
        shift = math.frexp(float(factor.value.real))[1] - 1
        params = {
            "dimension_numbers": node.params["dimension_numbers"], "dtype": dtype, "shift": shift,
        }  # fmt: skip
        kind = Type(value.type.shape, dtype)
        made = node.like(op="scaled_dot", inputs=operands, types=[kind], params=params)
        self.nodes.append(made)
        self.versions[value] = {dtype: made.outputs[0]}
        self.done.add(reader)

    def plain(self, node: Node) -> None:
        compute = self.assignment.compute.get(node)
        changed = compute is not None or any(v in self.assignment.result for v in node.outputs)
        if not changed:
            inputs = [self.natural(o) for o in node.inputs]
            same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
            self.keep(node, node if same else node.like(inputs=inputs))
            return
        inputs = []
        for o in node.inputs:
            wanted = o.type.dtype
            if wanted in _CHANGEABLE and compute not in (None, "traced"):
                wanted = compute or wanted
            inputs.append(self.read(o, wanted, node))
        types = [
            _retyped(v.type, self.assignment.result[v]) if v in self.assignment.result else v.type
            for v in node.outputs
        ]
        made = node.like(inputs=inputs, types=types, params=self.params(node, types))
        if self.is_identity(made):
            self.versions[node.outputs[0]] = {types[0].dtype: inputs[0]}
            return
        self.keep(node, made)

    def is_identity(self, node: Node) -> bool:
        return (
            node.op == "convert_element_type"
            and not node.outputs[0].type.weak
            and isinstance(node.inputs[0], Value)
            and node.inputs[0].type.dtype == node.outputs[0].type.dtype
        )

    def params(self, node: Node, types: Sequence[Type]) -> dict[str, Any]:
        """Parameters that name a dtype follow the result."""
        params = dict(node.params)
        if op_named(node.op).keeps in (Keeps.PRODUCT, Keeps.CONVOLUTION):
            params["preferred_element_type"] = np.dtype(_numpy(types[0].dtype))
        if node.op == "convert_element_type":
            params["new_dtype"] = np.dtype(_numpy(types[0].dtype))
        return params

    def with_regions(self, node: Node) -> None:
        if region_operands(node) is None:
            inputs = [self.read(o, o.type.dtype, node) for o in node.inputs]
            self.keep(node, node.like(inputs=inputs))
            return
        fixed = fixed_inputs(node)
        inputs = [
            self.read(o, o.type.dtype, node)
            if keep or isinstance(o, Literal)
            else self.natural_plain(o, node)
            for o, keep in zip(node.inputs, fixed, strict=True)
        ]
        regions = []
        held = fixed_outputs(node)
        for n, region in enumerate(node.regions):
            if node.op == "while" and n == 0:
                wanted = [o.type.dtype for o in region.outputs]
            else:
                wanted = [
                    o.type.dtype if i in held else self.assignment.dtype(node.outputs[i])
                    for i, o in enumerate(region.outputs)
                ]
            inner = _Rewriter(region, self.assignment, self.products, self.recipe)
            regions.append(inner.run(wanted, retype_inputs=True))
        types = [_retyped(v.type, self.assignment.dtype(v)) for v in node.outputs]
        self.keep(node, node.like(inputs=inputs, types=types, regions=tuple(regions)))

    def natural_plain(self, operand: Value, reader: Node) -> Operand:
        return self.read(operand, self.assignment.dtype(operand), reader)


_CHANGEABLE = {"float32"}


def _numpy(dtype: str) -> Any:
    import jax.numpy as jnp

    return getattr(jnp, dtype)


def _retyped(kind: Type, dtype: str) -> Type:
    return kind if kind.dtype == dtype else Type(kind.shape, dtype, kind.weak, kind.scale)


def _rounded(value: Any, dtype: str) -> Any:
    """A literal as its new dtype holds it."""
    if isinstance(value, (bool, int)) or dtype == "float64":
        return value
    import jax.numpy as jnp

    with np.errstate(over="ignore"):  # a mask of -1e9 is -inf in float16
        return float(np.asarray(value).astype(getattr(jnp, dtype)).astype(np.float64))
