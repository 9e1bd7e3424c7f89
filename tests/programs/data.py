"""Small synthetic tasks that a model learns in 50 steps; a batch is numpy, made from its index."""

import numpy as np

VOCAB = 32
NEXT = np.random.default_rng(1).permutation(VOCAB)
TEACHER = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32) / np.sqrt(8)


def tokens(i: int, rows: int = 8, length: int = 17) -> tuple[np.ndarray]:
    """Sequences in which each token decides the next one."""
    sequence = [np.random.default_rng(i).integers(VOCAB, size=rows)]
    for _ in range(length - 1):
        sequence.append(NEXT[sequence[-1]])
    return (np.stack(sequence, axis=1).astype(np.int32),)


def regression(i: int, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of 8, and 4 smooth functions of them, about 1 in size."""
    x = np.random.default_rng(i).normal(size=(rows, 8)).astype(np.float32)
    return x, np.tanh(2 * x @ TEACHER)


def images(i: int, rows: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 noise with one bright quadrant, and which quadrant it is."""
    rng = np.random.default_rng(i)
    image = rng.normal(size=(rows, 8, 8, 1)).astype(np.float32)
    label = rng.integers(4, size=rows).astype(np.int32)
    for picture, quadrant in zip(image, label, strict=True):
        top, left = 4 * (quadrant // 2), 4 * (quadrant % 2)
        picture[top : top + 4, left : left + 4] += 2
    return image, label


def series(i: int, rows: int = 16, length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Series of 4 numbers a step, and a fading sum of the first two: what a recurrence can hold."""
    x = np.random.default_rng(i).normal(size=(rows, length, 4)).astype(np.float32)
    fading = 0.7 ** np.arange(length - 1, -1, -1, dtype=np.float32)
    return x, np.einsum("btd,t->bd", x[..., :2], fading)
