"""Matrix products and convolutions."""

from __future__ import annotations

import numpy as np

from precir.ir import Literal, Node
from precir.ops.base import Keeps, Op, call
from precir.ops.facts import folds
from precir.ops.scales import products
from precir.ops.writing import PRODUCT, REQUIRED, Hole, Template, Writer


def _dot(node: Node, w: Writer) -> Template:
    a, b = (o.type for o in node.inputs)
    p = node.params
    preferred = p.get("preferred_element_type")
    plain = (
        a.dtype == b.dtype == "float32"
        and b.rank == 2
        and a.rank >= 2
        and p["dimension_numbers"] == (((a.rank - 1,), (0,)), ((), ()))
        and p.get("precision") is None
        and p.get("out_sharding") is None
        and (preferred is None or np.dtype(preferred) == np.float32)
        and not any(isinstance(o, Literal) for o in node.inputs)
    )
    if plain:
        return Template((Hole(0, PRODUCT), " @ ", Hole(1, PRODUCT + 1)), PRODUCT)
    return _dot_general(node, w)


_dot_general = call(
    "lax.dot_general",
    positional=("dimension_numbers",),
    keywords={"precision": None, "preferred_element_type": None, "out_sharding": None},
)

OPS: tuple[Op, ...] = (
    Op("dot_general", Keeps.PRODUCT, folds.dot_general, products.dot_general, _dot),
    Op(
        "conv_general_dilated",
        Keeps.CONVOLUTION,
        folds.convolution,
        products.convolution,
        call(
            "lax.conv_general_dilated",
            positional=("window_strides", "padding"),
            keywords={
                "lhs_dilation": None,
                "rhs_dilation": None,
                "dimension_numbers": REQUIRED,
                "feature_group_count": 1,
                "batch_group_count": 1,
                "precision": None,
                "preferred_element_type": None,
                "out_sharding": None,
            },
        ),
    ),
)
