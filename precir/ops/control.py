"""Ops that hold sub-programs: loops, branches, remat, custom rules, shard_map."""

from __future__ import annotations

from precir.ir import Node, Value
from precir.ops.base import Keeps, Op
from precir.ops.facts import loops
from precir.ops.scales import laws
from precir.ops.writing import Hole, Template, Writer, jaxpr_source, source

OWN = Keeps.OWN
Pieces = list[str | Hole]


def _group(indices: range) -> Pieces:
    """Operands that travel as one: bare if single, None if none, else a tuple."""
    if len(indices) == 0:
        return ["None"]
    if len(indices) == 1:
        return [Hole(indices[0])]
    pieces: Pieces = ["("]
    for i in indices:
        pieces += [", "] * (i > indices[0]) + [Hole(i)]
    return [*pieces, ")"]


def _pattern(count: int) -> str:
    return "_" if count == 0 else "{}" if count == 1 else "(" + ", ".join(["{}"] * count) + ")"


def _closed(function: str, consts: range, w: Writer) -> Pieces:
    """`function` with its leading constants bound."""
    if not consts:
        return [function]
    pieces: Pieces = [f"{w.use('functools', 'partial')}({function}"]
    for i in consts:
        pieces += [", ", Hole(i, array=True)]
    return [*pieces, ")"]


def _scan(node: Node, w: Writer) -> Template:
    p = node.params
    consts, carry = p["num_consts"], p["num_carry"]
    xs, ys = len(node.inputs) - consts - carry, len(node.outputs) - carry
    function = w.function(node.regions[0], (carry, xs), (carry, ys))
    pieces: Pieces = ["lax.scan(", *_closed(function, range(consts), w), ", "]
    pieces += _group(range(consts, consts + carry))
    pieces.append(", ")
    pieces += _group(range(consts + carry, len(node.inputs)))
    options = f", length={p['length']}"
    if p["reverse"]:
        options += ", reverse=True"
    if p["unroll"] != 1:
        options += f", unroll={p['unroll']}"
    return Template((*pieces, options + ")"), targets=f"{_pattern(carry)}, {_pattern(ys)}")


def _while(node: Node, w: Writer) -> Template:
    p = node.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    count = len(node.inputs) - n_cond - n_body
    if node.regions[0].outputs[0].type.shape:
        return _batched_while(node, w)
    cond = w.function(node.regions[0], (count,))
    body = w.function(node.regions[1], (count,), (count,))
    pieces: Pieces = ["lax.while_loop(", *_closed(cond, range(n_cond), w), ", "]
    pieces += [*_closed(body, range(n_cond, n_cond + n_body), w), ", "]
    pieces += [*_group(range(n_cond + n_body, len(node.inputs))), ")"]
    return Template(tuple(pieces), targets=_pattern(count))


def _batched_while(node: Node, w: Writer) -> Template:
    """Vmap of a loop runs on while any predicate holds; only the primitive says so."""
    body, cond = jaxpr_source(node.regions[1], w), jaxpr_source(node.regions[0], w)
    pieces: Pieces = ["lax.while_p.bind(", *_comma(range(len(node.inputs)))]
    pieces.append(f", cond_nconsts={node.params['cond_nconsts']}, cond_jaxpr={cond}")
    pieces.append(f", body_nconsts={node.params['body_nconsts']}, body_jaxpr={body})")
    return Template(tuple(pieces), targets="({},)" if len(node.outputs) == 1 else None)


def _cond(node: Node, w: Writer) -> Template:
    functions = [w.function(r) for r in node.regions]
    rest: Pieces = []
    for i in range(1, len(node.inputs)):
        rest += [", ", Hole(i)]
    many = len(functions) != 2
    targets = None if len(node.outputs) != 1 else "{}"
    if many:
        return Template(
            ("lax.switch(", Hole(0), f", [{', '.join(functions)}]", *rest, ")"), targets=targets
        )
    return Template(
        ("lax.cond(", Hole(0), f", {functions[1]}, {functions[0]}", *rest, ")"), targets=targets
    )


def condition(node: Node) -> Value | None:
    """The boolean (or unclamped index) behind a cond's index, if the index was made from one:
    `lax.cond` and `lax.switch` make the index again themselves.
    """
    index = node.inputs[0]
    if not isinstance(index, Value) or index.node is None:
        return None
    made = index.node
    two = len(node.regions) == 2
    if two and made.op == "convert_element_type" and made.inputs[0].type.dtype == "bool":
        return made.inputs[0] if isinstance(made.inputs[0], Value) else None
    if not two and made.op == "clamp" and isinstance(made.inputs[1], Value):
        return made.inputs[1]
    return None


def _remat(node: Node, w: Writer) -> Template:
    """JAX lowers a differentiated remat to its body behind an optimization barrier, so that the
    compiler cannot share the recomputation with the first computation.
    """
    function = w.function(node.regions[0])
    prevent = node.params["prevent_cse"]
    count = len(node.inputs)
    held = [prevent] * count if isinstance(prevent, bool) else list(prevent)
    if not node.params["differentiated"] or not any(held):
        return Template((f"{function}(", *_comma(range(count)), ")"))
    if all(held):
        pieces: Pieces = [f"{function}(*lax.optimization_barrier(("]
        return Template((*pieces, *_comma(range(count)), "," if count == 1 else "", ")))"))
    kept = [i for i in range(count) if held[i]]
    names = {i: f"b{n}" for n, i in enumerate(kept)}
    arguments: Pieces = []
    for i in range(count):
        arguments += [", "] * (i > 0) + ([names[i]] if i in names else [Hole(i)])
    head = f"(lambda {', '.join(names.values())}: {function}("
    tail = "," if len(kept) == 1 else ""
    return Template(
        (head, *arguments, "))(*lax.optimization_barrier((", *_comma(kept), tail, ")))")
    )


def _comma(indices: range | list[int]) -> Pieces:
    pieces: Pieces = []
    for n, i in enumerate(indices):
        pieces += [", "] * (n > 0) + [Hole(i)]
    return pieces


def _call(node: Node, w: Writer) -> Template:
    return Template((f"{w.function(node.regions[0])}(", *_comma(range(len(node.inputs))), ")"))


def _jit(node: Node, w: Writer) -> Template:
    function = f"jax.jit({w.function(node.regions[0])})"
    return Template((f"{function}(", *_comma(range(len(node.inputs))), ")"))


def _shard_map(node: Node, w: Writer) -> Template:
    p = dict(node.params)
    function = w.function(node.regions[0])
    mesh = source(p["mesh"], w)
    specs_in, specs_out = tuple(p["in_specs"]), tuple(p["out_specs"])
    out = source(specs_out[0] if len(specs_out) == 1 else specs_out, w)
    axes = ""
    manual = p.get("manual_axes", p.get("newly_manual_axes"))
    if manual is not None and set(manual) != set(p["mesh"].axis_names):
        axes = f", axis_names={{{', '.join(map(repr, sorted(manual)))}}}"
    head = (
        f"jax.shard_map({function}, mesh={mesh}, in_specs={source(specs_in, w)}, out_specs={out}, "
        f"check_vma={p['check_vma']}{axes})("
    )
    return Template((head, *_comma(range(len(node.inputs))), ")"))


OPS: tuple[Op, ...] = (
    Op("scan", OWN, loops.scan, laws.unscaled, _scan),
    Op("while", OWN, loops.while_, laws.unscaled, _while),
    Op("cond", OWN, loops.cond, laws.unscaled, _cond),
    Op("remat", OWN, loops.call, laws.unscaled, _remat),
    Op("custom_jvp_call", OWN, loops.call, laws.unscaled, _call),
    Op("custom_vjp_call", OWN, loops.call, laws.unscaled, _call),
    Op("jit", OWN, loops.call, laws.unscaled, _jit),
    Op("shard_map", OWN, loops.call, laws.unscaled, _shard_map),
)
