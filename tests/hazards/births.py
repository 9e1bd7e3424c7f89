"""Where inf and NaN are born: a jaxpr evaluated equation by equation, watching every value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from precir.lower import scan_params


@dataclass(frozen=True)
class Birth:
    """A NaN out of operands that hold no NaN, or an inf out of operands that hold no inf."""

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


def evaluate(
    jaxpr: Jaxpr, consts: Any, args: Any, found: list[Birth], site: tuple[str, int] = ("", 0)
) -> list[Any]:
    """The outputs; `site` is the line that called it, which stands for equations of JAX's own."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        frame = source_info_util.user_frame(eqn.source_info.traceback)
        here = (frame.file_name, frame.start_line) if frame else site
        results = inside(eqn, operands, found, here)
        if results is None:
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            given = zip(eqn.invars, operands, strict=True)
            variables = [x for atom, x in given if not isinstance(atom, Literal)]
            for symptom in born(variables, results):
                found.append(Birth(symptom, eqn.primitive.name, *here))
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def inside(
    eqn: Any, operands: list[Any], found: list[Birth], site: tuple[str, int]
) -> list[Any] | None:
    """The results of an equation that holds jaxprs, by going through them; None for another."""
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return scan(params, operands, found, site)
    if name == "while":
        return loop(params, operands, found, site)
    if name == "cond":
        which = int(np.clip(operands[0], 0, len(params["branches"]) - 1))
        return enter(params["branches"][which], operands[1:], found, site)
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            return enter(params[key], operands, found, site)
    return None


def enter(body: Any, operands: list[Any], found: list[Birth], site: tuple[str, int]) -> list[Any]:
    if isinstance(body, ClosedJaxpr):
        return evaluate(body.jaxpr, body.consts, operands, found, site)
    return evaluate(body, (), operands, found, site)


def scan(
    params: dict[str, Any], operands: list[Any], found: list[Birth], site: tuple[str, int]
) -> list[Any]:
    params = {**params, **scan_params(params)}
    consts = operands[: params["num_consts"]]
    carry = operands[params["num_consts"] :][: params["num_carry"]]
    inputs = operands[params["num_consts"] + params["num_carry"] :]
    rows: list[list[Any]] = []
    steps = range(params["length"])
    for i in reversed(steps) if params["reverse"] else steps:
        results = enter(params["jaxpr"], [*consts, *carry, *[x[i] for x in inputs]], found, site)
        carry = results[: params["num_carry"]]
        rows.append(results[params["num_carry"] :])
    if params["reverse"]:
        rows.reverse()
    return [*carry, *[jnp.stack(column) for column in zip(*rows, strict=True)]]


def loop(
    params: dict[str, Any], operands: list[Any], found: list[Birth], site: tuple[str, int]
) -> list[Any]:
    tested, bodied = params["cond_nconsts"], params["body_nconsts"]
    tests, bodies = operands[:tested], operands[tested : tested + bodied]
    carry = operands[tested + bodied :]
    while bool(enter(params["cond_jaxpr"], [*tests, *carry], found, site)[0]):
        carry = enter(params["body_jaxpr"], [*bodies, *carry], found, site)
    return carry


def born(operands: list[Any], results: list[Any]) -> list[str]:
    tests = (("nan", has_nan), ("inf", has_inf))
    return [name for name, has in tests if any(map(has, results)) and not any(map(has, operands))]


def has_nan(x: Any) -> bool:
    return floating(x) and bool(np.isnan(np.asarray(x, np.float64)).any())


def has_inf(x: Any) -> bool:
    return floating(x) and bool(np.isinf(np.asarray(x, np.float64)).any())


def floating(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))
