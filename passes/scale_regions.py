"""Carry scales into sub-programs and out of them again.

Data crosses as it always did. A scale that the sub-program needs as a number comes in as one more
operand; one that is made inside goes out as one more result where a call allows that, and where a
loop or a branch does not, the value is brought back under a scale known outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from precir.ir import BACKWARD, Graph, Node, Operand, Type, Value
from precir.ops.scales.scaled import ONE, Scale, Scaled, is_float
from precir.passes.scales import Options, Walk

_SCALAR = Type((), "float32")


def through_regions(walk: Walk, node: Node) -> Sequence[Scaled]:
    """The results of a node with sub-programs, and the node itself on scaled data."""
    return _RULES[node.op](walk, node)


def has_rule(node: Node) -> bool:
    """Whether a node's sub-programs are gone through; other ops that have some (scatters) go by
    their own law.
    """
    return node.op in _RULES


def _inner(
    walk: Walk, region: Graph, taken: Sequence[Scaled], backward: Sequence[bool],
    options: Options | None = None,
) -> Walk:  # fmt: skip
    """A walk through a sub-program that is given `taken`."""
    inner = Walk(region, options or walk.options, walk.facts, walk.numbers, walk)
    for value, x, late in zip(region.inputs, taken, backward, strict=True):
        scale = x.scale if is_float(value.type.dtype) else None
        inner.take(value, replace(x, data=value, scale=scale))
        if late:
            inner.backward.add(value)
    inner.run()
    return inner


def _given(walk: Walk, operands: Sequence[Operand]) -> tuple[list[Scaled], list[bool]]:
    return [walk.read(o) for o in operands], [o in walk.backward for o in operands]


def _outside(walk: Walk, x: Scaled) -> bool:
    """Whether a scale made inside is known in the program around, which `walk` goes through."""
    return x.scale is None or all(walk.known_base(b) for b, _ in x.scale.powers)


def _body(inner: Walk, outputs: Sequence[Operand], at: int | None = None) -> Graph:
    """The rewritten sub-program, what it captured added to its inputs: at `at`, or last."""
    inputs, extra = list(inner.graph.inputs), list(inner.captured.values())
    at = len(inputs) if at is None else at
    inputs[at:at] = extra
    return inner.graph.with_(inputs=tuple(inputs), nodes=tuple(inner.nodes), outputs=tuple(outputs))


def _brought(walk: Walk, inner: Walk) -> list[Operand]:
    """What the program around passes for what was captured."""
    return [walk.scalar(number) for number in inner.captured]


def _add(
    walk: Walk, new: Node, inner: Sequence[Walk], again: Sequence[tuple[int, int]] = ()
) -> None:
    """Add the node. What came from under the loss scale inside, in the last sub-programs of the
    node, is seen to be finite in the results it went into; `again` pairs results with the inputs
    of the sub-program that they become.
    """
    walk.add(new)
    for walked, body in zip(reversed(inner), reversed(new.regions), strict=False):
        reached, before = set(walked.left), -1
        while len(reached) != before:
            before = len(reached)
            for node in body:
                if any(o in reached for o in node.inputs):
                    reached.update(node.outputs)
            reached.update(body.inputs[i] for o, i in again if body.outputs[o] in reached)
        walk.left += [
            v
            for v, o in zip(new.outputs, body.outputs, strict=True)
            if o in reached and is_float(v.type.dtype) and v not in walk.left
        ]


def _call(walk: Walk, node: Node) -> list[Scaled]:
    """Remat and custom rules: scales made inside are results too."""
    xs, late = _given(walk, node.inputs)
    inner = _inner(walk, node.regions[0], xs, late)
    made = [inner.of(o) for o in inner.graph.outputs]
    fresh = dict.fromkeys(x.scale for x in made if x.scale and not _outside(walk, x))
    scalars = [inner.materialised(s) for s in fresh]
    body = _body(inner, [*(x.data for x in made), *scalars])
    params = dict(node.params)
    if isinstance(params.get("prevent_cse"), tuple):  # said of each operand
        params["prevent_cse"] = (*params["prevent_cse"], *[False] * len(inner.captured))
    new = node.like(
        inputs=[*(x.data for x in xs), *_brought(walk, inner)],
        types=[*(v.type for v in node.outputs), *[_SCALAR] * len(scalars)],
        params=params,
        regions=(body,),
    )
    _add(walk, new, [inner])
    count = len(made)
    outside = {s: walk.base(v) for s, v in zip(fresh, new.outputs[count:], strict=True)}
    return [
        replace(x, data=v, scale=outside.get(x.scale, x.scale) if x.scale else None, raw=False)
        for v, x in zip(new.outputs, made, strict=False)
    ]


def _shard_map(walk: Walk, node: Node) -> list[Scaled]:
    """Every device has the same scales: nothing is measured inside."""
    from jax.sharding import PartitionSpec

    xs, late = _given(walk, node.inputs)
    xs = [walk.sized_up(o, x) if x.raw else x for o, x in zip(node.inputs, xs, strict=True)]
    inner = _inner(walk, node.regions[0], xs, late, replace(walk.options, measure=False))
    made = [_known_outside(walk, inner, inner.of(o)) for o in inner.graph.outputs]
    everywhere: Any = PartitionSpec
    specs = (*node.params["in_specs"], *[everywhere()] * len(inner.captured))
    new = node.like(
        inputs=[*(x.data for x in xs), *_brought(walk, inner)],
        params={**node.params, "in_specs": specs},
        regions=(_body(inner, [x.data for x in made]),),
    )
    _add(walk, new, [inner])
    return _results(new, made)


def _known_outside(walk: Walk, inner: Walk, x: Scaled) -> Scaled:
    return x if _outside(walk, x) else Scaled(inner.plain(x), ONE, x.magnitude)


def _results(new: Node, made: Sequence[Scaled]) -> list[Scaled]:
    return [
        replace(x, data=v, scale=x.scale if is_float(v.type.dtype) else None, raw=False)
        for v, x in zip(new.outputs, made, strict=True)
    ]


def _scan(walk: Walk, node: Node) -> list[Scaled]:
    """The carry keeps the scale it begins with; one that begins as zeros takes the body's."""
    p, body = node.params, node.regions[0]
    consts, carry = p["num_consts"], p["num_carry"]
    xs, late = _given(walk, node.inputs)
    late[consts : consts + carry] = [node.phase == BACKWARD] * carry
    start = [_begun(x) for x in xs[consts : consts + carry]]

    def run(carried: Sequence[Scaled]) -> tuple[Walk, list[Scaled]]:
        given = [*xs[:consts], *carried, *xs[consts + carry :]]
        inner = _inner(walk, body, given, late)
        return inner, [inner.of(o) for o in body.outputs]

    inner, made, carried = _settled(walk, start, run, carry)
    outputs = [inner.under(x, c.scale) for x, c in zip(made, carried, strict=False)]
    rest = [_known_outside(walk, inner, x) for x in made[carry:]]
    new = node.like(
        inputs=[
            *(x.data for x in xs[:consts]), *_brought(walk, inner),
            *(x.data for x in xs[consts:]),
        ],
        params={**p, "num_consts": consts + len(inner.captured)},
        regions=(_body(inner, [*outputs, *(x.data for x in rest)], consts),),
    )  # fmt: skip
    first = new.params["num_consts"]
    _add(walk, new, [inner], [(i, first + i) for i in range(carry)])
    return _results(new, [*carried, *rest])


def _begun(x: Scaled) -> Scaled:
    """What a loop carries first; nothing is known of what follows but the scale."""
    return replace(x, blind=1)


def _settled(
    walk: Walk,
    start: list[Scaled],
    run: Callable[[Sequence[Scaled]], tuple[Walk, list[Scaled]]],
    carry: int,
) -> tuple[Walk, list[Scaled], list[Scaled]]:
    """Run a loop's body until every carried value has a scale that its result can be given."""
    carried = start
    while True:
        inner, made = run(carried)
        after = [
            replace(x, scale=_first(walk, c)) if x.scale is None and c.scale is not None else x
            for x, c in zip(carried, made[:carry], strict=True)
        ]
        if after == carried:
            return inner, made, carried
        carried = after


def _first(walk: Walk, x: Scaled) -> Scale:
    return x.scale if x.scale is not None and _outside(walk, x) else ONE


def _while(walk: Walk, node: Node) -> list[Scaled]:
    p = node.params
    cond, body = node.regions
    of_cond, of_body = p["cond_nconsts"], p["body_nconsts"]
    xs, late = _given(walk, node.inputs)
    first = of_cond + of_body
    start = [_begun(x) for x in xs[first:]]

    def run(carried: Sequence[Scaled]) -> tuple[Walk, list[Scaled]]:
        inner = _inner(walk, body, [*xs[of_cond:first], *carried], late[of_cond:])
        return inner, [inner.of(o) for o in body.outputs]

    inner, made, carried = _settled(walk, start, run, len(start))
    outputs = [inner.under(x, c.scale) for x, c in zip(made, carried, strict=True)]
    asked = _inner(walk, cond, [*xs[:of_cond], *carried], [*late[:of_cond], *late[first:]])
    new = node.like(
        inputs=[
            *(x.data for x in xs[:of_cond]), *_brought(walk, asked),
            *(x.data for x in xs[of_cond:first]), *_brought(walk, inner),
            *(x.data for x in xs[first:]),
        ],
        params={**p, "cond_nconsts": of_cond + len(asked.captured),
                "body_nconsts": of_body + len(inner.captured)},
        regions=(_body(asked, [asked.leaving(o) for o in cond.outputs], of_cond),
                 _body(inner, outputs, of_body)),
    )  # fmt: skip
    first = new.params["body_nconsts"]
    _add(walk, new, [inner], [(i, first + i) for i in range(len(carried))])
    return _results(new, carried)


def _cond(walk: Walk, node: Node) -> list[Scaled]:
    """One scale for what the branches return: theirs if they agree, else that of the largest."""
    xs, late = _given(walk, node.inputs)
    branches = [_inner(walk, r, xs[1:], late[1:]) for r in node.regions]
    columns = [
        [b.of(o) for b, o in zip(branches, outputs, strict=True)]
        for outputs in zip(*(r.outputs for r in node.regions), strict=True)
    ]
    scales = [_agreed(walk, column) for column in columns]
    outputs = [
        [
            b.under(column[n], scale) if is_float(column[n].type.dtype) else column[n].data
            for column, scale in zip(columns, scales, strict=True)
        ]
        for n, b in enumerate(branches)
    ]
    captured = list(dict.fromkeys(number for b in branches for number in b.captured))
    for b in branches:  # all are given what one of them asks for
        b.captured = {n: b.captured.get(n) or Value(_SCALAR, hint="scale") for n in captured}
    new = node.like(
        inputs=[*(x.data for x in xs), *map(walk.scalar, captured)],
        regions=tuple(_body(b, o) for b, o in zip(branches, outputs, strict=True)),
    )
    _add(walk, new, branches)
    return [
        Scaled(v, scale if is_float(v.type.dtype) else None, max(x.size for x in column))
        for v, scale, column in zip(new.outputs, scales, columns, strict=True)
    ]


def _agreed(walk: Walk, column: Sequence[Scaled]) -> Scale | None:
    given = [x for x in column if x.scale is not None]
    if not given:
        return None
    powers = {x.scale.powers for x in given if x.scale}
    if len(powers) == 1 and _outside(walk, given[0]):
        return max(given, key=lambda x: x.magnitude).scale
    return ONE


_RULES: Final[dict[str, Callable[[Walk, Node], Sequence[Scaled]]]] = {
    "remat": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "jit": _call,
    "shard_map": _shard_map,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
