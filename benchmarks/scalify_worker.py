"""One system on one MLP, in a process of its own: what benchmarks/scalify.py measures with.

    python benchmarks/scalify_worker.py '{"task": "first call", "system": "plain", ...}'

Runs under JAX 0.4.31, which jax-scalify needs, and under the JAX that precir needs: nothing but JAX
and NumPy is imported until the system is known. The last line printed is the answer, as JSON.
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from operator import methodcaller

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts the cores

import jax
import jax.numpy as jnp
import numpy as np

SCALE, RATE = 0.1, 0.1  # of the parameters at the start; of the learning

# --- the program: the from-scratch MNIST example that jax-scalify ships, without its hints --------


def log_sum_exp(a):
    """jax.nn's, without the choice for infinite maxima, of which scalify makes NaN."""
    largest = jax.lax.stop_gradient(jnp.max(a, axis=1, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(a - largest), axis=1, keepdims=True)) + largest


def predict(params, x):
    """The logarithms of the classes' probabilities, [batch, classes]."""
    for w, b in params[:-1]:
        x = jax.nn.relu(jnp.dot(x, w) + b)
    w, b = params[-1]
    logits = jnp.dot(x, w) + b
    return logits - log_sum_exp(logits)


def loss(params, batch):
    """The mean cross entropy; targets are one-hot."""
    inputs, targets = batch
    return -jnp.mean(jnp.sum(predict(params, inputs) * targets, axis=1))


def update(params, batch):
    """One step of SGD."""
    grads = jax.grad(loss)(params, batch)
    return [(w - RATE * dw, b - RATE * db) for (w, b), (dw, db) in zip(params, grads)]  # noqa: B905


def arguments(sizes, batch):
    """Parameters and a batch of random images, float32 NumPy arrays."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    params = [(SCALE * normal(n, m), SCALE * normal(m)) for n, m in pairwise(sizes)]
    labels = rng.integers(0, sizes[-1], batch)
    return params, (normal(batch, sizes[0]), np.eye(sizes[-1], dtype=np.float32)[labels])


# --- the systems ----------------------------------------------------------------------------------


def as_plain(given):
    """The function as jax.jit has it, and its arguments."""
    arrays = arguments(given["sizes"], given["batch"])
    cast = partial(jnp.asarray, dtype=given["dtype"])
    return jax.jit(update), jax.tree_util.tree_map(cast, arrays)


def as_scalify(given):
    """The function as jax-scalify has it, all its arguments with a scale, as in its examples."""
    import jax_scalify as jsa

    mend_conversions()
    params, batch = arguments(given["sizes"], given["batch"])
    params = jsa.as_scaled_array(params, scale=np.float32(SCALE))
    batch = jsa.as_scaled_array(batch, scale=np.float32(1))
    cast = methodcaller("astype", given["dtype"])
    scaled = jax.tree_util.tree_map(cast, (params, batch), is_leaf=jsa.core.is_scaled_leaf)
    arrays = jax.tree_util.tree_map(jnp.asarray, scaled)
    return jax.jit(jsa.scalify(update)), arrays


def mend_conversions():
    """Let scalify's rule for conversions take the parameter that JAX 0.4.31 has and it does not.

    Without, every sum in float16 fails (its open issue 132).
    """
    from jax_scalify.core import interpreters

    convert = jax.lax.convert_element_type_p
    rule, kind = interpreters._scaled_ops_registry[convert]

    def mended(a, sharding=None, **params):
        return rule(a, **params)

    interpreters._scaled_ops_registry[convert] = (mended, kind)


def as_precir(given):
    """The function as precir has it: plain arguments, or parameters in float16 with scales."""
    import precir

    recipe = precir.recipe(given["recipe"]).replace(**given["changes"])
    step = precir.compile(update, recipe=recipe)
    if given["state"] == "static":
        return step, as_plain(given)[1]
    return step, step.init(*as_plain(given | {"dtype": "float32"})[1])


SYSTEMS = {"plain": as_plain, "scalify": as_scalify, "precir": as_precir}


def surroundings(given):
    """What the function is traced and called in."""
    if given["system"] != "scalify":
        return nullcontext()
    import jax_scalify as jsa

    return jsa.ScalifyConfig(rounding_mode=jsa.Pow2RoundMode.DOWN, scale_dtype=np.float32)


# --- what is measured -----------------------------------------------------------------------------


def first_call(given):
    """Processor time of trace, lowering and XLA's compile together; and how large all became."""
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.float32(1)))
    with surroundings(given):
        compiled, args = SYSTEMS[given["system"]](given)
        jax.block_until_ready(args)
        start = time.process_time()
        executable = compiled.lower(*args).compile()
        passed = time.process_time() - start
        nested, flat = count(jax.make_jaxpr(compiled)(*args).jaxpr)
    lines = len(executable.as_text().splitlines())
    return {"first call": passed, "nested": nested, "flat": flat, "lines": lines}


def count(jaxpr):
    """Equations, those that hold others counted as well; and those that hold none."""
    nested = flat = 0
    for eqn in jaxpr.eqns:
        leaves = jax.tree_util.tree_leaves(list(eqn.params.values()))
        held = [getattr(p, "jaxpr", p) for p in leaves]
        inner = [count(j) for j in held if hasattr(j, "eqns")]
        nested += 1 + sum(n for n, _ in inner)
        flat += sum(f for _, f in inner) if inner else 1
    return nested, flat


def steps(given):
    """Processor time of a step in each of some rounds, plain and the system taking turns."""
    with surroundings(given):
        functions = [as_plain(given), SYSTEMS[given["system"]](given)]
        turns = []
        for r in range(given["rounds"] + 1):
            order = (0, 1) if r % 2 else (1, 0)
            times = {i: step_time(*functions[i], given["calls"]) for i in order}
            turns.append([times[0], times[1]])
    return {"plain": [t[0] for t in turns[1:]], "system": [t[1] for t in turns[1:]]}


def step_time(function, args, calls):
    """Processor time of one of `calls` steps, the first from the parameters in `args`."""
    params, batch = args
    start = time.process_time()
    for _ in range(calls):
        params = function(params, batch)
    jax.block_until_ready(params)
    return (time.process_time() - start) / calls


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    tasks = {"first call": first_call, "steps": steps}
    print(json.dumps(tasks[given["task"]](given) | {"jax": jax.__version__}))
