"""Eight devices: data and tensor parallel steps by shard_map, and shardings left to jit."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .data import regression
from .plain import dense_init, mlp, mlp_init, mse
from .program import Program, Tree


@cache
def mesh() -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@cache
def grid() -> Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


# Each device sees its rows; the gradients are averaged by hand.


def data_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    @partial(jax.shard_map, mesh=mesh(), in_specs=(P(), P("data"), P("data")), out_specs=P())
    def step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
        local = jax.lax.pcast(params, "data", to="varying")
        loss, gradients = jax.value_and_grad(mse)(local, x, y)
        loss, gradients = jax.lax.pmean((loss, gradients), "data")
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradients), loss

    return step(params, x, y)


# Weights cut over two devices: one product gathers nothing and sums its parts; the gradient
# crosses shard_map from outside.


@jax.jit
def tensor_init(seed: int) -> Tree:
    return dense_init(jax.random.key(seed), (8, 32, 4))


def tensor_loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    first, second = params
    specs = (
        {"w": P(None, "model"), "b": P("model")},
        {"w": P("model", None), "b": P()},
        P("data"),
        P("data"),
    )

    @partial(jax.shard_map, mesh=grid(), in_specs=specs, out_specs=P())
    def loss(first: Tree, second: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ first["w"] + first["b"])
        out = jax.lax.psum(h @ second["w"], "model") + second["b"]
        return jax.lax.pmean(jnp.mean((out - y) ** 2), "data")

    return loss(first, second, x, y)


def tensor_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    loss, gradients = jax.value_and_grad(tensor_loss)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradients), loss


# Weights kept in eighths, gathered for use; the gradient of all_gather scatters the sum.


def gathered_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    cut = {"w": P("data"), "b": P()}

    @partial(
        jax.shard_map,
        mesh=mesh(),
        in_specs=([cut, cut], P("data"), P("data")),
        out_specs=([cut, cut], P()),
    )
    def step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
        def loss_fn(params: Tree) -> jax.Array:
            whole = [{**p, "w": jax.lax.all_gather(p["w"], "data", tiled=True)} for p in params]
            return jax.lax.pmean(mse(whole, x, y), "data")

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradients), loss

    return step(params, x, y)


# Shardings given to jit, and constraints inside.


def constrained_step(params: Tree, x: jax.Array, y: jax.Array) -> tuple[Tree, jax.Array]:
    def loss_fn(params: Tree) -> jax.Array:
        h = jax.nn.relu(x @ params[0]["w"] + params[0]["b"])
        h = jax.lax.with_sharding_constraint(h, NamedSharding(grid(), P("data", "model")))
        return jnp.mean((mlp(params[1:], h) - y) ** 2)

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradients), loss


def constrained_options() -> dict[str, Any]:
    whole, rows = (NamedSharding(grid(), spec) for spec in (P(), P("data")))
    columns = [{"w": NamedSharding(grid(), P(None, "model")), "b": whole}] * 3
    return {"in_shardings": (columns, rows, rows), "out_shardings": (columns, whole)}


PROGRAMS = (
    Program(
        "shard_map_data", "train", data_step, mlp_init, regression, products=8, needs_devices=8
    ),
    Program(
        "shard_map_tensor",
        "train",
        tensor_step,
        tensor_init,
        regression,
        products=5,
        needs_devices=8,
    ),
    Program(
        "shard_map_gathered",
        "train",
        gathered_step,
        tensor_init,
        regression,
        products=5,
        needs_devices=8,
    ),
    Program(
        "jit_shardings",
        "train",
        constrained_step,
        mlp_init,
        regression,
        products=8,
        needs_devices=8,
        options=constrained_options,
    ),
)
