"""Directed rounding of float64 numbers into a format."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from precir.formats import F64, Format, format_of

INFINITY = math.inf


class Grid(NamedTuple):
    """The numbers of a format, as rounding needs them."""

    max: float
    overflow_at: float  # the least magnitude that rounds past max (to nearest, ties to even)
    precision: int  # bits of the significand, the leading one counted
    least_exponent: int  # as frexp has it: 2**least_exponent is the quantum of subnormals
    smallest_normal: float
    smallest: float  # least positive number
    epsilon: float
    exact: bool  # float64: every Python float is on the grid
    overflow: str  # "inf", "nan" or "saturate"
    flushes: bool
    signed: bool
    zero: bool
    nan: bool


@cache
def grid_of(name: str) -> Grid:
    """The grid of the format of that dtype name."""
    f: Format = format_of(name)
    precision = f.mantissa_bits + 1
    ulp = math.ldexp(1.0, math.frexp(f.max)[1] - precision)
    overflow_at = INFINITY if f is F64 else f.max + ulp / 2
    if f.max / ulp % 2 == 0:  # a tie goes to the even one, which is max
        overflow_at = math.nextafter(overflow_at, INFINITY)
    if f.name == "float8_e8m0fnu":
        overflow_at = f.max * 1.5
    exponent = math.frexp(f.smallest_subnormal)[1] - 1
    if f.name == "float8_e8m0fnu":
        exponent = -1022  # powers of two only, none subnormal
    return Grid(
        f.max, overflow_at, precision, exponent, f.smallest_normal, f.smallest_subnormal,
        f.epsilon, f is F64, f.overflow, f.flushes_subnormals, f.has_sign, f.has_zero, f.has_nan,
    )  # fmt: skip


def round_down(x: float, grid: Grid) -> float:
    """The largest number of the grid, continued past its max, that is not above `x`."""
    if grid.exact or not x or x - x != 0:
        return x
    exponent = math.frexp(x)[1] - grid.precision
    if exponent < grid.least_exponent:
        exponent = grid.least_exponent
    return math.ldexp(float(math.floor(math.ldexp(x, -exponent))), exponent)


def round_up(x: float, grid: Grid) -> float:
    """The smallest number of the grid, continued past its max, that is not below `x`."""
    if grid.exact or not x or x - x != 0:
        return x
    exponent = math.frexp(x)[1] - grid.precision
    if exponent < grid.least_exponent:
        exponent = grid.least_exponent
    try:
        return math.ldexp(float(math.ceil(math.ldexp(x, -exponent))), exponent)
    except OverflowError:
        return INFINITY


def round_nearest(x: float, grid: Grid) -> float:
    """To nearest, ties to even: what a cast gives before it looks at overflow."""
    if grid.exact or not x or x - x != 0:
        return x
    exponent = max(math.frexp(x)[1] - grid.precision, grid.least_exponent)
    return math.ldexp(float(round(math.ldexp(x, -exponent))), exponent)


def below(x: float) -> float:
    return math.nextafter(x, -INFINITY)


def above(x: float) -> float:
    return math.nextafter(x, INFINITY)
