"""Indexing, reductions, sorting, windows, linear algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.cases.case import array, f32, i32, table

CASES, case = table("arrays")

# slices


@case(f32(4, 5))
def dynamic_slice_literals(x):
    return (
        lax.dynamic_slice(x, (1, 2), (2, 2)),
        lax.dynamic_slice(x, (np.int32(9), np.int32(-9)), (2, 2)),
        lax.dynamic_slice(x, (np.uint8(250), np.uint8(1)), (1, 2)),
        lax.dynamic_update_slice(x, jnp.ones((2, 2)), (3, -2)),
        lax.dynamic_slice(jnp.float32(2.0), (), ()),
        lax.dynamic_update_slice(x, jnp.ones((4, 0)), (0, 0)),
    )


@case(f32(4, 5), 2)
@case(f32(4, 5), -3)
@case(f32(4, 5), -11)
@case(f32(4, 5), np.uint8(200))
@case(f32(4, 5), np.int8(-128))
def dynamic_slice_indices(x, i):
    return (
        lax.dynamic_slice(x, (i, i * 0), (2, 5)),
        lax.dynamic_slice(x, (i, i), (2, 2), allow_negative_indices=False),
        lax.dynamic_update_slice(x, jnp.ones((2, 2)), (i, i * 0 + 1)),
        lax.dynamic_index_in_dim(x, i, 1, keepdims=False),
        lax.dynamic_update_index_in_dim(x, jnp.zeros(5), i, 0),
        x[i],
        x[i, 1:3],
        x.at[i].set(0),
    )


@case(f32(4, 5, 6))
def static_indexing(x):
    return (
        x[1:3],
        x[:, ::2],
        x[..., -1],
        x[::-1],
        x[None, 1, ..., 2:5:2],
        x[1:1],
        x[[1, 2], :, [0, 3]],
    )


@case(f32(4, 5), i32(3), array(np.uint8, 2, 2))
def gather_modes(x, i, j):
    return (
        x[i],
        x[i, i],
        jnp.take(x, i, axis=1),
        jnp.take(x, j, axis=0, mode="clip"),
        jnp.take(x, i, axis=0, mode="wrap"),
        x.at[i].get(mode="fill", fill_value=7.0),
        x.at[j].get(mode="promise_in_bounds"),
        x.at[i].get(mode="drop"),
        x.at[jnp.sort(i)].get(indices_are_sorted=True, unique_indices=True, mode="clip"),
        jnp.take_along_axis(x, jnp.abs(i)[:, None] % 4, axis=0),
    )


@case(array(np.int8, 4, 5), i32(3))
@case(array(bool, 4, 5), i32(3))
@case(array(np.uint16, 4, 5), i32(3))
@case(array(np.complex64, 4, 5), i32(3))
@case(array(jnp.bfloat16, 4, 5), i32(3))
def gather_fills(x, i):
    return x.at[i * 2].get(mode="fill"), jnp.take(x, i, axis=1, mode="fill")


@case(f32(4, 5), i32(3), f32(3, 5))
@case(array(np.int32, 4, 5), i32(3), array(np.int32, 3, 5))
@case(array(jnp.bfloat16, 4, 5), i32(3), array(jnp.bfloat16, 3, 5))
def scatters(x, i, u):
    at = x.at[i]
    return (
        at.set(u),
        at.add(u),
        at.multiply(u),
        at.min(u),
        at.max(u),
        at.subtract(u),
        at.set(u, mode="clip"),
        at.add(u, mode="drop"),
        at.add(u, mode="promise_in_bounds"),
        x.at[jnp.sort(i)].add(u, indices_are_sorted=True),
        x.at[i, i].add(1),
        x.at[:, 1].set(0),
        x.at[1:3].multiply(2),
        x.at[i, 2].set(u[:, 0]),
    )


@case(f32(4, 5), i32(3))
def scatter_apply(x, i):
    return x.at[i % 4].apply(jnp.sin), x.at[i].power(2), x.at[i].divide(2.0)


@case(f32(3, 5), i32(3, 2))
def scatter_batched(x, i):
    return jax.vmap(lambda x, i: x.at[i].add(1.0))(x, i), jax.grad(lambda x: x[i[0]].sum())(x)


@case(array(np.complex64, 4), i32(2))
def scatter_complex(x, i):
    return x.at[i].add(1j), x.at[i].set(2), x.at[i].multiply(x[:2])


# reductions


@case(f32(3, 4), i32(3, 4))
def reduce_two(x, i):
    def larger(a, b):
        first = a[0] >= b[0]
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    return (
        lax.reduce((x, i), (np.float32(-np.inf), np.int32(-1)), larger, (1,)),
        lax.reduce((x,), (np.float32(0),), lambda a, b: (a[0] + 2 * b[0],), (0, 1)),
        lax.reduce(x, 1.0, lambda a, b: a * b + 1e-8, (0,)),
        lax.reduce(x, -np.inf, lax.max, (0,)),
    )


@case(f32(6, 6), i32(6, 6))
def reduce_windows(x, i):
    def larger(a, b):
        first = a[0] >= b[0]
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    start = (np.float32(-np.inf), np.int32(-1))
    return (
        lax.reduce_window((x, i), start, larger, (2, 3), (1, 2), "SAME"),
        lax.reduce_window(x, np.float32(1), lambda a, b: a * b, (2, 2), (2, 2), "VALID"),
        lax.reduce_window(x, 0.0, lax.add, (3, 3), (1, 1), ((1, 1), (0, 2)), (2, 1), (1, 2)),
        lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "SAME"),
        lax.reduce_window(i, np.int32(2**31 - 1), lax.min, (2, 2), (1, 1), "VALID"),
    )


@case(f32(1, 6, 6, 2))
def pooling(x):
    def pooled(x):
        best = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        mean = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9
        return best.sum() + (mean**2).sum()

    return jax.value_and_grad(pooled)(x)


@case(f32(3, 4))
@case(f32(0, 4))
@case(f32(3, 0))
@case(array(np.float16, 3, 4))
@case(array(jnp.bfloat16, 3, 4))
@case(array(np.int8, 3, 4))
@case(array(np.uint32, 3, 4))
@case(array(bool, 3, 4))
@case(array(np.complex64, 3, 4))
def reductions(x):
    some = (jnp.sum, jnp.prod, jnp.mean, jnp.any, jnp.all, jnp.cumsum, jnp.cumprod, jnp.std)
    low = x.dtype != bool and not jnp.iscomplexobj(x) and x.size
    more = (jnp.max, jnp.min, jnp.argmax, jnp.argmin, jnp.ptp, jnp.median) if low else ()
    results = [f(x, axis=a) for f in (*some, *more) for a in (None, 0, -1)]
    return results, lax.reduce_max_p.bind(x, axes=(1, 0), out_sharding=None) if low else None


@case(f32(0, 3))
def reductions_of_nothing(x):
    return x.sum(0), lax.reduce_max(x, (0,)), lax.reduce_min(x, (0,)), x.prod(), lax.cumsum(x)


@case(f32(5, 3))
@case(array(np.int32, 5, 3))
@case(array(np.float16, 5, 3))
def cumulative(x):
    ops = (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin)
    ops = (*ops, lax.cumlogsumexp) if x.dtype != np.int32 else ops
    return [f(x, axis=a, reverse=r) for f in ops for a in (0, 1) for r in (False, True)]


@case()
def weak_reductions():
    x = lax.full((3,), 1.5)
    y = lax.full((2, 3), 2)
    return (
        x,
        y,
        x.sum(),
        x.max(),
        y.sum(0),
        y.max(1),
        -x,
        abs(x),
        x.astype(jnp.float32),
        jnp.mean(x),
    )


# sorting


@case(i32(9), f32(9), array(np.int8, 9))
def sorts(a, b, c):
    return (
        lax.sort((a, b)),
        lax.sort((a, b, c), num_keys=2),
        lax.sort((a, b), is_stable=False),
        lax.sort(b),
        lax.sort((b,)),
        lax.sort((c, a, b), num_keys=3, dimension=0),
        jnp.argsort(b),
        jnp.argsort(a, descending=True, stable=True),
        jnp.lexsort((a, b)),
        lax.top_k(b, 3),
        jnp.unique(a, size=5),
        jnp.searchsorted(lax.sort(b), b),
        lax.approx_max_k(b, 2),
        lax.approx_min_k(b, 2),
    )


@case(f32(3, 4))
def sorts_of_matrices(x):
    return (
        lax.sort(x, dimension=0),
        lax.sort((x, x * 2), dimension=0, num_keys=2),
        lax.sort(x, dimension=1),
        lax.top_k(x, 2),
        lax.top_k(x, 2, axis=0),
        jnp.sort(x, axis=None),
        jnp.quantile(x, 0.3, axis=1),
        jax.grad(lambda x: jnp.sort(x)[:, 1].sum())(x),
        lax.top_k(x, 0),
    )


@case(jnp.array([jnp.nan, 1.0, -0.0, 0.0, jnp.inf, -jnp.inf]))
def sorts_of_specials(x):
    return (
        jnp.sort(x),
        jnp.argsort(x),
        x.argmax(),
        x.argmin(),
        x.max(),
        lax.top_k(x, 3),
        jnp.nanmax(x),
    )


# shapes


@case(f32(2, 3, 4))
def shapes(x):
    return (
        x.reshape(6, 4),
        x.reshape(-1),
        x.T,
        x.transpose(2, 0, 1),
        jnp.moveaxis(x, 0, 2),
        x[None],
        jnp.squeeze(x[:1], 0),
        jnp.flip(x, 1),
        jnp.roll(x, 2, 1),
        jnp.tile(x, (1, 2, 1)),
        jnp.repeat(x, 2, 0),
        jnp.pad(x, 1),
        jnp.pad(x, ((0, 0), (1, 2), (0, 0)), mode="edge"),
        lax.pad(x, 0.0, [(0, -1, 1), (-1, 0, 0), (0, 0, 2)]),
        jnp.concatenate([x, x * 2], 1),
        lax.concatenate([x], 0),
        jnp.stack([x, x]),
        jnp.split(x, 2, 2),
        lax.split(x, (1, 2), 1),
        lax.split(x, (2,), 0),
        lax.expand_dims(x, (0, 2)),
        jnp.broadcast_to(x, (5, 2, 3, 4)),
        lax.broadcast(x, (2,)),
        lax.rev(x, (0, 2)),
        lax.reshape(x, (4, 6), (2, 1, 0)),
        lax.squeeze(x, ()),
        lax.transpose(x, (0, 1, 2)),
        jnp.einsum("abc,dbc->ad", x, x),
        jnp.tril(x),
        jnp.diagonal(x),
    )


@case(f32(0, 3), f32(3, 0))
def zero_sizes(x, y):
    return (
        x @ y,
        y @ x,
        x + 1,
        x.T,
        x.reshape(3, 0),
        jnp.concatenate([x, x]),
        x[:, 1],
        jnp.sort(x, 0),
        x.sum(1),
    )


@case()
def iotas():
    return (
        jnp.arange(3),
        jnp.arange(3.0),
        jnp.arange(5, dtype=jnp.bfloat16),
        lax.broadcasted_iota(jnp.uint8, (2, 3), 1),
        lax.iota(jnp.int8, 4),
        jnp.eye(3),
        jnp.linspace(0, 1, 5),
        jnp.zeros((2, 0)),
        jnp.full((2,), 3),
        jnp.ones(3, bool),
        jnp.full((2,), -0.0),
        jnp.full((2,), jnp.nan),
        jnp.full((), 2, jnp.uint32),
        jnp.zeros((2,), jnp.complex64),
    )


# linear algebra


def positive(a):
    return a @ a.T + 3 * jnp.eye(a.shape[-1])


@case(f32(4, 4), f32(4))
def decompositions(a, b):
    s = positive(a)
    return (
        jnp.linalg.cholesky(s),
        jnp.linalg.qr(a),
        jnp.linalg.qr(a, mode="r"),
        jax.scipy.linalg.lu(a),
        jnp.linalg.eigh(s),
        jnp.linalg.svd(a),
        jnp.linalg.svd(a[:, :2], full_matrices=False),
        jnp.linalg.svd(a, compute_uv=False),
        jnp.linalg.solve(a, b),
        jnp.linalg.inv(a),
        jnp.linalg.det(a),
        jnp.linalg.slogdet(a),
        jnp.linalg.eigvals(a),
        jax.scipy.linalg.solve_triangular(a, b, lower=True),
        jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(s), b),
        jnp.linalg.pinv(a),
        jnp.linalg.lstsq(a, b)[0],
        lax.linalg.lu(a),
        lax.linalg.tridiagonal_solve(b, b + 9, b, b[:, None]),
        jax.scipy.linalg.expm(a * 0.1),
        lax.linalg.schur(a),
        lax.linalg.hessenberg(a),
        lax.linalg.symmetric_product(a, s, alpha=2.0),
    )


@case(f32(2, 3, 3), f32(2, 3))
def decompositions_batched(a, b):
    return (
        jnp.linalg.solve(a, b[..., None]),
        jnp.linalg.cholesky(a @ a.mT + jnp.eye(3)),
        jnp.linalg.inv(a),
    )


@case(f32(3, 3), f32(3))
def decomposition_gradients(a, b):
    return (
        jax.grad(lambda a: jnp.linalg.solve(a, b).sum())(a),
        jax.grad(lambda a: jnp.linalg.slogdet(positive(a))[1])(a),
        jax.grad(lambda a: jnp.linalg.cholesky(positive(a)).sum())(a),
        jax.grad(lambda a: jnp.linalg.svd(a, compute_uv=False).sum())(a),
    )


@case(array(np.complex64, 3, 3), array(np.complex64, 3))
def decompositions_complex(a, b):
    return (
        jnp.linalg.solve(a, b),
        jnp.linalg.qr(a),
        jnp.linalg.svd(a, compute_uv=False),
        jnp.linalg.eigh(a + a.conj().T),
    )


@case(f32(4, 8), array(np.complex64, 4, 8))
def ffts(x, z):
    return (
        jnp.fft.fft(x),
        jnp.fft.rfft(x),
        jnp.fft.irfft(z),
        jnp.fft.ifft2(z),
        jnp.fft.fftn(z),
        jnp.fft.fftshift(x),
    )


@case(f32(2, 3, 4), f32(2, 4, 5))
def products(a, b):
    return (
        a @ b,
        a[0] @ b[0],
        a[0] @ b[0, :, 0],
        a[0, 0] @ b[0],
        jnp.dot(a[0, 0], b[0, :, 0]),
        jnp.einsum("bij,bjk->bik", a, b, precision="highest"),
        lax.dot(a[0], b[0], preferred_element_type=jnp.float32),
        lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32),
        jnp.matmul(
            a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32
        ),
        lax.dot_general(a, b, (((), ()), ((), ()))),
        a[:, 0] @ b[0, :, :1],
        lax.batch_matmul(a, b),
        jnp.tensordot(a, b, ((2,), (1,))),
        jnp.outer(a[0, 0], b[0, 0]),
        jnp.vdot(a[0, 0], b[0, :, 1]),
    )


@case(i32(6, 4), f32(3, 4, 5))
def ragged_dot(x, w):
    return lax.ragged_dot(x.astype(jnp.float32), w, jnp.array([1, 3, 2]))


@case(f32(2, 8, 8, 3), f32(3, 3, 3, 4))
def convolutions(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return (
        lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers),
        lax.conv_general_dilated(
            x, w, (2, 1), ((0, 1), (1, 0)), (1, 2), (2, 1), dimension_numbers=numbers
        ),
        lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=numbers),
        jax.grad(
            lambda w: lax.conv_general_dilated(
                x, w, (1, 1), "VALID", dimension_numbers=numbers
            ).sum()
        )(w),
    )
