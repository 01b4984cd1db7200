"""The words between two bounds of a normal variable, and its std between them.

Computed in decimal arithmetic of 60 digits, which is the same on every machine and leaves more
than 20 of them where the tails cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache

from fanin.errors import ArgumentError

__all__ = ["Interval", "interval"]

_DIGITS = 60
_DENSITY = Decimal("0.39894228040143267793994605993438186847585863116493465766592583")  # 1/√(2π)
# Beyond 12σ lie 1.8e-33 of the probability: neither a word nor the std of a double can tell.
_INFINITY = 12
# With fewer words than this the std of what is drawn is not the asked one to one percent.
_FEWEST_WORDS = 64


@dataclass(frozen=True)
class Interval:
    """Words first … first + width − 1, width ≤ 2³², and the std of the variable between them."""

    first: int
    width: int
    std: float


@lru_cache(maxsize=256)
def interval(low: float, high: float) -> Interval:
    """The words of a standard normal variable between `low` and `high`, which may be infinite.

    Raises ArgumentError where low < high does not hold, or hardly any word lies between them.

    >>> interval(-2.0, 2.0)
    Interval(first=97711073, width=4099545150, std=0.8796256610342398)

    Source: N. L. Johnson, S. Kotz, N. Balakrishnan, Continuous Univariate Distributions 1, 1994,
    section 13.10.1 (variance of the doubly truncated normal).
    """
    if not low < high:
        raise ArgumentError(f"low, high: {low!r}, {high!r}; low < high is needed")
    with localcontext(Context(prec=_DIGITS)):
        a, b = (Decimal(max(-_INFINITY, min(x, _INFINITY))) for x in (low, high))
        below_a, below_b = _distribution(a), _distribution(b)
        first, last = (int((p * 2**32).to_integral_value()) for p in (below_a, below_b))
        if last - first < _FEWEST_WORDS:
            raise ArgumentError(
                f"low, high: {low!r}, {high!r}; {_FEWEST_WORDS} of 2**32 values of a normal "
                f"variable have to lie between them, not {last - first}"
            )
        mass = below_b - below_a
        at_a, at_b = _density(a), _density(b)
        variance = 1 + (a * at_a - b * at_b) / mass - ((at_a - at_b) / mass) ** 2
        return Interval(first, last - first, math.sqrt(variance))


def _density(x: Decimal) -> Decimal:
    return _DENSITY * (-x * x / 2).exp()


def _distribution(x: Decimal) -> Decimal:
    """Φ(x) = ½ + φ(x)·(x + x³/3 + x⁵/(3·5) + …), terms of one sign (Abramowitz, Stegun 26.2.11)."""
    term, total, odd = x, Decimal(0), 1
    while total + term != total:
        total += term
        odd += 2
        term *= x * x / odd
    return Decimal("0.5") + _density(x) * total
