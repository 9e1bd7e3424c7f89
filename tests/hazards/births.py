"""Where inf and NaN are born: a jaxpr evaluated equation by equation, watching every value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclass(frozen=True)
class Birth:
    """A NaN or an inf out of operands that hold none of it."""

    symptom: str
    primitive: str
    file: str
    line: int


def births(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[Birth]:
    """Every birth in a run of the function, in order; a literal's inf is born where it is used."""
    closed = jax.make_jaxpr(fn)(*args)
    found: list[Birth] = []
    evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), found)
    return found


def evaluate(jaxpr: Jaxpr, consts: Any, args: Any, found: list[Birth]) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = inside(eqn, operands, found)
        if results is None:
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            given = zip(eqn.invars, operands, strict=True)
            note(eqn, [x for atom, x in given if not isinstance(atom, Literal)], results, found)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def inside(eqn: Any, operands: list[Any], found: list[Birth]) -> list[Any] | None:
    """The results of an equation that holds jaxprs, by going through them; None for another."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return scan(params, operands, found)
    if name == "while":
        return loop(params, operands, found)
    if name == "cond":
        which = int(np.clip(operands[0], 0, len(params["branches"]) - 1))
        return enter(params["branches"][which], operands[1:], found)
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            return enter(params[key], operands, found)
    return None


def enter(body: Any, operands: list[Any], found: list[Birth]) -> list[Any]:
    if isinstance(body, ClosedJaxpr):
        return evaluate(body.jaxpr, body.consts, operands, found)
    return evaluate(body, (), operands, found)


def scan(params: dict[str, Any], operands: list[Any], found: list[Birth]) -> list[Any]:
    consts = operands[: params["num_consts"]]
    carry = operands[params["num_consts"] :][: params["num_carry"]]
    inputs = operands[params["num_consts"] + params["num_carry"] :]
    rows: list[list[Any]] = []
    steps = range(params["length"])
    for i in reversed(steps) if params["reverse"] else steps:
        results = enter(params["jaxpr"], [*consts, *carry, *[x[i] for x in inputs]], found)
        carry = results[: params["num_carry"]]
        rows.append(results[params["num_carry"] :])
    if params["reverse"]:
        rows.reverse()
    return [*carry, *[jnp.stack(column) for column in zip(*rows, strict=True)]]


def loop(params: dict[str, Any], operands: list[Any], found: list[Birth]) -> list[Any]:
    tested, bodied = params["cond_nconsts"], params["body_nconsts"]
    tests, bodies = operands[:tested], operands[tested : tested + bodied]
    carry = operands[tested + bodied :]
    while bool(enter(params["cond_jaxpr"], [*tests, *carry], found)[0]):
        carry = enter(params["body_jaxpr"], [*bodies, *carry], found)
    return carry


def note(eqn: Any, operands: list[Any], results: list[Any], found: list[Birth]) -> None:
    for symptom, has in (("nan", has_nan), ("inf", has_inf)):
        if any(map(has, results)) and not any(map(has, operands)):
            if symptom == "nan" and any(map(has_inf, operands)):
                continue  # inf / inf: what comes of an inf, not a cause
            frame = source_info_util.user_frame(eqn.source_info.traceback)
            file, line = (frame.file_name, frame.start_line) if frame else ("", 0)
            found.append(Birth(symptom, eqn.primitive.name, file, line))


def has_nan(x: Any) -> bool:
    return floating(x) and bool(np.isnan(np.asarray(x, np.float64)).any())


def has_inf(x: Any) -> bool:
    return floating(x) and bool(np.isinf(np.asarray(x, np.float64)).any())


def floating(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))
