"""Compile a model function, and differentiate it afterwards.

    python examples/model_function.py

`precir.compile` also takes a function that is not yet a train step. `jax.grad` of the result runs
the backward pass that precir compiled together with the forward one: its products run in FP8 too,
and what is kept between the two is narrow. The update below stays plain JAX.
"""

import jax
import jax.numpy as jnp
import numpy as np

import precir

# Ten digits as 5 rows of 3 pixels, one bit a pixel, from the top left.
DIGITS = (0o75557, 0o26227, 0o71747, 0o71717, 0o55711, 0o74717, 0o74757, 0o71122, 0o75757, 0o75717)


def make_images(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy 8x8 images, each of one digit near the middle, and the digits."""
    random = np.random.default_rng(seed)
    pixels = np.array([[digit >> bit & 1 for bit in reversed(range(15))] for digit in DIGITS])
    y = random.integers(0, 10, number)
    x = random.normal(0.0, 0.2, (number, 8, 8)).astype(np.float32)
    for image, digit in zip(x, y, strict=True):
        row, column = random.integers(1, 3), random.integers(2, 4)
        image[row : row + 5, column : column + 3] += pixels[digit].reshape(5, 3)
    return x.reshape(number, 64), y


def logits_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A network of two layers: 64 pixels, 128 hidden units, 10 digits."""
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def loss_fn(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross entropy."""
    logp = jax.nn.log_softmax(logits_fn(params, x))
    return -jnp.mean(jnp.take_along_axis(logp, y[:, None], axis=1))


def main() -> None:
    """Train with plain gradient descent under two recipes."""
    x, y = make_images(4096, seed=0)
    x_test, y_test = make_images(1024, seed=1)
    up, down = jax.random.split(jax.random.key(0))
    for recipe in ("float32", "fp8"):
        loss = precir.compile(loss_fn, recipe=recipe)
        gradient = jax.jit(jax.value_and_grad(loss))
        params = {
            "up": jax.random.normal(up, (64, 128)) / 8,
            "down": jax.random.normal(down, (128, 10)) / 11,
        }
        for step in range(1000):
            batch = slice(step % 16 * 256, (step % 16 + 1) * 256)
            value, grads = gradient(params, x[batch], y[batch])
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        right = np.mean(np.argmax(logits_fn(params, x_test), axis=1) == y_test)
        print(f"{recipe:8} loss {float(value):.4f}   {right:.1%} of the held-out digits are right")


if __name__ == "__main__":
    main()
