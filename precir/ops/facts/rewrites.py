"""What XLA computes instead: its simplifier moves operations over each other.

A rewrite that is exact for real numbers may leave the format where the program did not, or stay in
it where the program did not: on a CPU, with the flags that JAX sets, x / y with a broadcast y is
x * (1 / y), log(exp(x)) is x, (x / y) / z is x / (y * z), a mask times x is a choice (from JAX 0.12
on), and constants are folded. What a program really returns is one or the other, so that facts hold
both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from precir.domains.fact import Fact, join, negate, of_number, project
from precir.domains.kinds import SPECIAL
from precir.ir import Literal, Node, Operand, Value
from precir.ops.facts import functions
from precir.ops.facts.algebra import add_facts, div_facts, is_float, mul_facts, smallest
from precir.ops.facts.arithmetic import SHOWING, power_of
from precir.ops.facts.context import Answer, Context
from precir.ops.facts.pointwise import abs_fact
from precir.ops.facts.views import constant

ONE = of_number(1.0)
FAR = 64  # values looked at before a search is given up


def either(node: Node, f: Fact, ctx: Context) -> tuple[Fact, int]:
    """The fact joined with those of its rewrites, and the infinities and NaN only these have."""
    dtype = node.outputs[0].type.dtype
    rewrites = _OF.get(node.op)
    if rewrites is None or not is_float(dtype):
        return f, 0
    more = 0
    plain = project(f, dtype).flags
    for other in rewrites(node, dtype, ctx):
        f = join(f, other)
        more |= project(other, dtype).flags
    return f, more & ~plain & SPECIAL


def shown(operand: Operand) -> Node | None:
    """The node whose numbers an operand shows."""
    for _ in range(FAR):
        node = operand.node if isinstance(operand, Value) else None
        if node is None or node.op not in SHOWING:
            return node
        operand = node.inputs[0]
    return None


def spread(operand: Operand, size: int, ctx: Context) -> bool:
    """Whether XLA may see an operand as a broadcast, to `size` elements, of something smaller."""
    pending, seen = [operand], set[Operand]()
    while pending:
        value = pending.pop()
        if isinstance(value, Literal) or value in seen or _size(value) < size:
            continue
        seen.add(value)
        node = value.node
        if len(seen) > FAR:
            return True
        if node is None:
            if ctx.is_argument(value):
                return False
        elif node.op == "iota" or node.regions:
            return False
        elif node.op != "constant":
            if not node.inputs:
                return False
            pending += node.inputs
    return True


def _size(operand: Operand) -> int:
    return math.prod(operand.type.shape)


def quotients(node: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    x, y = node.inputs
    a, b = ctx.of(x), ctx.of(y)
    over, under = shown(x), shown(y)
    inverse = project(div_facts(ONE, b), dtype)
    if spread(y, _size(node.outputs[0]), ctx):
        yield mul_facts(a, inverse)
    if constant(y) is not None:
        yield from _folded(x, inverse, dtype, ctx)
    if under is not None:
        yield from _over_function(a, under, dtype, ctx)
        if under.op == "div":
            c, d = (ctx.of(o) for o in under.inputs)
            yield div_facts(project(mul_facts(a, d), dtype), c)
            if over is not None and over.op == "div":
                p, q = (ctx.of(o) for o in over.inputs)
                top, bottom = mul_facts(p, d), mul_facts(q, c)
                yield div_facts(project(top, dtype), project(bottom, dtype))
    if over is not None and over.op == "div":
        p, q = (ctx.of(o) for o in over.inputs)
        yield div_facts(p, project(mul_facts(q, b), dtype))


def _over_function(a: Fact, under: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    """Of a / f(x) as a * g(x)."""
    arguments = [ctx.of(o) for o in under.inputs]
    inverse: Answer
    if under.op == "exp":
        inverse = functions.exp(under, [negate(arguments[0])], ctx)
    elif under.op == "sqrt":
        inverse = functions.rsqrt(under, arguments, ctx)
    elif under.op == "rsqrt":
        inverse = functions.sqrt(under, arguments, ctx)
    elif under.op == "pow":
        inverse = power_of(under, [arguments[0], negate(arguments[1])])
    else:
        return
    assert isinstance(inverse, Fact)
    yield mul_facts(a, project(inverse, dtype))


def products(node: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    for x, y in (node.inputs, node.inputs[::-1]):
        if constant(y) is not None:
            yield from _folded(x, ctx.of(y), dtype, ctx)
        if ctx.of(y).flags & SPECIAL and _was_boolean(x):
            yield join(ctx.of(y), of_number(0.0))  # where(mask, y, 0): not NaN outside the mask
    one, other = (shown(o) for o in node.inputs)
    if one is not None and other is not None and one.op == other.op == "exp":
        a, b = ctx.of(one.inputs[0]), ctx.of(other.inputs[0])
        total = project(add_facts(a, b, smallest(dtype)), dtype)
        yield _one(functions.exp(one, [total], ctx))


def _was_boolean(operand: Operand) -> bool:
    """Whether an operand shows booleans, cast: XLA chooses by those instead of multiplying."""
    for _ in range(FAR):
        node = operand.node if isinstance(operand, Value) else None
        if node is None or not node.inputs:
            return False
        if node.op == "convert_element_type":
            return node.inputs[0].type.dtype == "bool"
        if node.op == "neg" or (node.op not in SHOWING and node.op != "split"):
            return False
        operand = node.inputs[0]
    return False


def _folded(x: Operand, factor: Fact, dtype: str, ctx: Context) -> Iterator[Fact]:
    """Of x * c where x is itself a product with a constant: of what is left, times one constant."""
    for _ in range(FAR):
        node = shown(x)
        if node is None or node.op not in ("mul", "div"):
            return
        left, right = node.inputs
        if node.op == "mul" and constant(left) is not None:
            left, right = right, left
        if constant(right) is None:
            return
        c = ctx.of(right)
        c = c if node.op == "mul" else project(div_facts(ONE, c), dtype)
        factor = project(mul_facts(factor, c), dtype)
        yield mul_facts(ctx.of(left), factor)
        x = left


def sums(node: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    x, y = node.inputs
    if constant(x) is not None and node.op != "sub":
        x, y = y, x
    if constant(y) is None:
        return
    more = ctx.of(y) if node.op != "sub" else negate(ctx.of(y))
    for _ in range(FAR):
        inner = shown(x)
        if inner is None or inner.op not in ("add", "add_any", "sub"):
            return
        left, right = inner.inputs
        if inner.op != "sub" and constant(left) is not None:
            left, right = right, left
        if constant(right) is None:
            return
        c = ctx.of(right) if inner.op != "sub" else negate(ctx.of(right))
        more = project(add_facts(more, c, smallest(dtype)), dtype)
        yield add_facts(ctx.of(left), more, smallest(dtype))
        x = left


def logarithms(node: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    inner = shown(node.inputs[0])
    if inner is None:
        return
    a = ctx.of(inner.inputs[0])
    if inner.op == "exp":
        yield a
    elif inner.op == "sqrt":
        yield mul_facts(_one(functions.log(inner, [a], ctx)), of_number(0.5))
    elif inner.op == "pow":
        size = project(_one(functions.log(inner, [abs_fact(a)], ctx)), dtype)
        yield join(mul_facts(ctx.of(inner.inputs[1]), size), of_number(0.0))


def roots(node: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    inner = shown(node.inputs[0])
    if inner is None:
        return
    twice = inner.op == "mul" and inner.inputs[0] is inner.inputs[1]
    if twice or inner.op == "square" or (inner.op == "integer_pow" and inner.params["y"] == 2):
        yield abs_fact(ctx.of(inner.inputs[0]))


def powers(node: Node, dtype: str, ctx: Context) -> Iterator[Fact]:
    inner, exponent = shown(node.inputs[0]), ctx.of(node.inputs[1])
    if inner is None or inner.op not in ("exp", "pow"):
        return
    a = ctx.of(inner.inputs[0])
    if inner.op == "exp":
        yield _one(functions.exp(inner, [project(mul_facts(a, exponent), dtype)], ctx))
    else:
        both = project(mul_facts(ctx.of(inner.inputs[1]), exponent), dtype)
        yield power_of(inner, [a, both])


def _one(answer: Answer) -> Fact:
    assert isinstance(answer, Fact)
    return answer


_OF = {
    "div": quotients,
    "mul": products,
    "add": sums,
    "add_any": sums,
    "sub": sums,
    "log": logarithms,
    "sqrt": roots,
    "pow": powers,
}
