"""Geometry: frames, angles, rotations, triangles, rays, projections, segments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.hazards.case import Real, hazard, safe

Array = Any

# --- hazards ---


def camera_right(forward: Array, up: Array) -> Array:
    side = jnp.cross(forward, up)
    return side / jnp.linalg.norm(side)  # HERE


def slerp(a: Array, b: Array, t: Array) -> Array:
    theta = jnp.arccos(jnp.clip(jnp.dot(a, b), -1.0, 1.0))
    first = jnp.sin((1.0 - t) * theta) / jnp.sin(theta)  # HERE
    return first * a + t * b


def heron(a: Array, b: Array, c: Array) -> Array:
    s = 0.5 * a + 0.5 * b + 0.5 * c
    product = s * (s - a) * (s - b) * (s - c)  # HERE
    return jnp.sqrt(product)


def nearest_neighbour(points: Array) -> Array:
    def loss(points: Array) -> Array:
        gaps = points[:, None] - points[None, :]
        distance = jnp.sqrt(jnp.sum(gaps**2, axis=-1))  # HERE
        return jnp.sum(jnp.min(distance + 100.0 * jnp.eye(3, dtype=points.dtype), axis=1))

    return jax.grad(loss)(points)


def ray_and_sphere(b: Array, c: Array) -> Array:
    discriminant = b * b - c
    return -b - jnp.sqrt(discriminant)  # HERE


def circumradius(p: Array, q: Array, r: Array) -> Array:
    def side(u: Array, v: Array) -> Array:
        return jnp.hypot(u[0] - v[0], u[1] - v[1])

    twice = (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
    return side(p, q) * side(q, r) * side(r, p) / (2.0 * twice)  # HERE


def pinhole(x: Array, z: Array) -> Array:
    return 1000.0 * x / z  # HERE


def polar_angle(v: Array) -> Array:
    r = jnp.sqrt(jnp.sum(v * v))
    return jnp.arccos(v[2] / r)  # HERE


def point_on_segment(p: Array, a: Array, b: Array) -> Array:
    along = b - a
    t = jnp.dot(p - a, along) / jnp.dot(along, along)  # HERE
    return a + jnp.clip(t, 0.0, 1.0) * along


def quaternion_inverse(q: Array) -> Array:
    conjugate = q * jnp.asarray([1, -1, -1, -1], q.dtype)
    return conjugate / jnp.sum(q * q)  # HERE


def tangent_slope(angle: Array) -> Array:
    return jnp.sin(angle) / jnp.sqrt(1.0 - jnp.sin(angle) ** 2)  # HERE


HAZARDS = (
    hazard(
        camera_right, Real(-1, 1, (3,)), Real(-1, 1, (3,)), format="float32", intrinsic=True,
        kind="invalid", root=("div", "sqrt"), at="div", symptom="nan",
        trigger=(np.array([0.0, 0, 1]), np.array([0.0, 0, 1])),
    ),
    hazard(
        slerp, Real(-0.5, 0.5), Real(-0.5, 0.5), Real(0, 1, ()),
        format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.5, 0.5, 0.25),
    ),
    hazard(
        heron, Real(60, 100, ()), Real(60, 100, ()), Real(60, 100, ()),
        kind="overflow", root="mul", at="mul", symptom="inf", trigger=(90.0, 90.0, 90.0),
    ),
    hazard(
        nearest_neighbour, Real(-1, 1, (3, 2)), format="float32", intrinsic=True,
        kind="invalid", root=("sqrt", "div"), at=("mul", "div"), symptom="nan",
        trigger=(np.array([[0.0, 0], [1, 0], [0, 1]]),),
    ),
    hazard(
        ray_and_sphere, Real(-1, 1), Real(-1, 1), format="float32", intrinsic=True,
        kind="invalid", root="sqrt", at="sqrt", symptom="nan", trigger=(0.1, 0.9),
    ),
    hazard(
        circumradius, Real(-1, 1, (2,)), Real(-1, 1, (2,)), Real(-1, 1, (2,)),
        format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="inf",
        trigger=(np.array([0.0, 0]), np.array([0.5, 0.5]), np.array([1.0, 1])),
    ),
    hazard(
        pinhole, Real(-2, 2), Real(0.01, 10),
        kind="overflow", root="div", at="div", symptom="inf", trigger=(2.0, 0.02),
    ),
    hazard(
        polar_angle, Real(-1, 1, (3,)), format="float32", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0,),
    ),
    hazard(
        point_on_segment, Real(-1, 1, (2,)), Real(-1, 1, (2,)), Real(-1, 1, (2,)),
        format="bfloat16", intrinsic=True,
        kind="invalid", root="div", at="div", symptom="nan", trigger=(0.0, 0.5, 0.5),
    ),
    hazard(
        quaternion_inverse, Real(-1e-4, 1e-4),
        kind=("underflow", "invalid"), root=("mul", "div", "convert_element_type"), at="div",
        symptom="inf", trigger=(1e-4,),
    ),
    hazard(
        tangent_slope, Real(0, 1.6), kind=("cancellation", "rounds-to-bound", "invalid"),
        root=("sin", "integer_pow", "sub", "div"), at="div", symptom="inf", trigger=(1.57,),
    ),
)  # fmt: skip

# --- safe ---


def camera_right_with_floor(forward: Array, up: Array) -> Array:
    side = jnp.cross(forward, up)
    return side / jnp.maximum(jnp.linalg.norm(side), 0.01)


def slerp_or_line(a: Array, b: Array, t: Array) -> Array:
    theta = jnp.arccos(jnp.clip(jnp.dot(a, b), -1.0, 1.0))
    wide = theta > 0.1
    sine = jnp.sin(jnp.where(wide, theta, 1.0))
    first = jnp.where(wide, jnp.sin((1.0 - t) * theta) / sine, 1.0 - t)
    return first * a + t * b


def heron_in_halves(a: Array, b: Array, c: Array) -> Array:
    s = 0.5 * a + 0.5 * b + 0.5 * c
    return jnp.sqrt(s * (s - a)) * jnp.sqrt((s - b) * (s - c))


def nearest_neighbour_softened(points: Array) -> Array:
    def loss(points: Array) -> Array:
        gaps = points[:, None] - points[None, :]
        distance = jnp.sqrt(jnp.sum(gaps**2, axis=-1) + 1e-2)
        return jnp.sum(jax.nn.logsumexp(-distance, axis=1))

    return jax.grad(loss)(points)


def ray_and_sphere_clamped(b: Array, c: Array) -> Array:
    discriminant = jnp.maximum(b * b - c, 0.0)
    return -b - jnp.sqrt(discriminant)


def circumradius_with_floor(p: Array, q: Array, r: Array) -> Array:
    def side(u: Array, v: Array) -> Array:
        return jnp.hypot(u[0] - v[0], u[1] - v[1])

    twice = (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
    return side(p, q) * side(q, r) * side(r, p) / (2.0 * jnp.maximum(jnp.abs(twice), 0.1))


def pinhole_beyond_the_near_plane(x: Array, z: Array) -> Array:
    return 1000.0 * x / jnp.maximum(z, 0.1)


def polar_angle_by_arctan(v: Array) -> Array:
    return jnp.arctan2(jnp.sqrt(v[0] * v[0] + v[1] * v[1]), v[2])


def point_on_segment_with_floor(p: Array, a: Array, b: Array) -> Array:
    along = b - a
    t = jnp.dot(p - a, along) / jnp.maximum(jnp.dot(along, along), 0.1)
    return a + jnp.clip(t, 0.0, 1.0) * along


def inverse_of_long_quaternion(q: Array) -> Array:
    conjugate = q * jnp.asarray([1, -1, -1, -1], q.dtype)
    return conjugate / jnp.sum(q * q)


def gentle_slope(angle: Array) -> Array:
    return jnp.sin(angle) / jnp.sqrt(1.0 - jnp.sin(angle) ** 2)


def haversine(latitude: Array, longitude: Array) -> Array:
    h = jnp.sin(0.5 * longitude) ** 2 * jnp.cos(latitude) ** 2
    return 2.0 * jnp.arcsin(jnp.sqrt(jnp.clip(h, 0.0, 1.0)))


SAFE = (
    safe(camera_right_with_floor, Real(-1, 1, (3,)), Real(-1, 1, (3,)), format="float32"),
    safe(slerp_or_line, Real(-0.5, 0.5), Real(-0.5, 0.5), Real(0, 1, ()), format="float32"),
    safe(heron_in_halves, Real(60, 100, ()), Real(60, 100, ()), Real(60, 100, ())),
    safe(nearest_neighbour_softened, Real(-1, 1, (3, 2)), format="float32"),
    safe(ray_and_sphere_clamped, Real(-1, 1), Real(-1, 1), format="float32"),
    safe(
        circumradius_with_floor, Real(-1, 1, (2,)), Real(-1, 1, (2,)), Real(-1, 1, (2,)),
        format="float32",
    ),
    safe(pinhole_beyond_the_near_plane, Real(-2, 2), Real(0.01, 10)),
    safe(polar_angle_by_arctan, Real(0.2, 1, (3,))),
    safe(
        point_on_segment_with_floor, Real(-1, 1, (2,)), Real(-1, 1, (2,)), Real(-1, 1, (2,)),
        format="float32",
    ),
    safe(inverse_of_long_quaternion, Real(0.3, 1)),
    safe(gentle_slope, Real(0, 1)),
    safe(haversine, Real(-1, 1), Real(0.1, 2)),
)  # fmt: skip
