"""What the function rows of the instruction table mean where NumPy has no function of that name: in NumPy, for arrays of
any float dtype. The digits that the definitions promise are those of float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray


def _each(function: Callable[[float], float]) -> Callable[[Array], Array]:
    of_array = np.vectorize(function, otypes=[np.float64])
    return lambda a: of_array(a).astype(a.dtype)


def _log_gamma(x: float) -> float:
    if x <= 0 and (math.isinf(x) or x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:
        return math.inf


def _digamma(x: float) -> float:
    """Recurrence up to 15, the asymptotic series beyond, reflection below 0."""
    if x == 0:
        return -math.copysign(math.inf, x)
    if x < 0:
        if math.isinf(x) or x == math.floor(x):
            return math.nan
        return _digamma(1 - x) - math.pi / math.tan(math.pi * math.fmod(x, 1))
    terms = []
    while x < 15:
        terms.append(-1 / x)
        x += 1
    if not math.isfinite(x):
        return x
    z = 1 / (x * x)
    series = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z * (1 / 132 - z * (691 / 32760 - z / 12))))))
    return math.fsum([*terms, math.log(x), -0.5 / x, -series])


erf = _each(math.erf)
erfc = _each(math.erfc)
log_gamma = _each(_log_gamma)
digamma = _each(_digamma)


def signbit(a: Array) -> Array:
    """Whether the sign is negative; NaN counts as positive, because outputs hold the canonical one."""
    return (np.signbit(a) & ~np.isnan(a)).astype(a.dtype)


def copysign(a: Array, x: Array) -> Array:
    """|a| with the sign of x; NaN counts as positive."""
    return np.copysign(a, np.where(np.isnan(x), np.abs(x), x))


def power(a: Array, x: Array) -> Array:
    """a to the power x as in C. Not np.power with a scalar exponent: for 0.5 that is sqrt, which differs at -inf. Nor with
    a negative base where the exponent is even: powl of some C libraries takes -2^63 for an odd number."""
    x = np.ascontiguousarray(np.broadcast_to(x, a.shape))
    return np.power(np.where(np.rint(x / 2) == x / 2, np.abs(a), a), x)
