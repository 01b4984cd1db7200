"""What an activation does to the scale of a signal, and to the correlation of two, layer by layer.

The mean-field theory of wide random networks: Poole et al. 2016, Schoenholz et al. 2017.  A layer
is ``weights · φ(z) + bias`` with weight variance σw²/fan_in and bias variance σb²; q is the
variance of its pre-activations z, c their correlation between two inputs of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from fanin.errors import ArgumentError
from fanin.moments.functions import Activation, Function
from fanin.moments.gaussian import (
    activation_of,
    mean_and_square,
    mean_square_slope,
    number,
    pair,
    spread,
)

__all__ = [
    "Moments",
    "chi",
    "correlation_map",
    "critical",
    "depth_scale",
    "fixed_correlation",
    "fixed_point",
    "gain",
    "length_map",
    "moments",
]

# Lengths are searched between these, in steps of this ratio; outside a signal has vanished or
# exploded.
_SMALLEST, _LARGEST, _RATIO = 1e-12, 1e9, math.sqrt(2)
# Two numbers that agree to this are equal: quadrature is exact to about 1e-14, maps sum a few.
_EQUAL = 1e-12
# A variance that is kept is one of many (relu) only down to here: any smooth φ is linear below.
_LINEAR = 1e-3
_REACHED = 1e-6  # how near the length map must come to the critical point: both are roots
_BESIDE = 1e-3  # how far beside a fixed point its stability is tried
_STEPS = 200  # of Newton's method and of bisection; both end long before, at rounding


@dataclass(frozen=True)
class Moments:
    """Moments of φ(z) for z ~ N(mean_in, variance_in).

    Attributes:
        mean: E[φ].
        second: E[φ²].
        variance: E[φ²] − E[φ]², with all its digits.
        slope: E[φ'²], away from kinks (a jump adds nothing, as in back-propagation).
        mean_in: mean of z.
        variance_in: variance of z.
    """

    mean: float
    second: float
    variance: float
    slope: float
    mean_in: float = 0.0
    variance_in: float = 1.0

    @property
    def centred_chi(self) -> float:
        """How much a small difference between two inputs grows, relative, in one centred layer.

        ``variance_in · slope / variance``: χ where the weights have zero row sums and are scaled
        to keep the variance.  At least 1 by the Poincaré inequality, and 1 for linear φ alone
        (φ with jumps excepted); infinite where φ does not vary.
        """
        return self.variance_in * self.slope / self.variance if self.variance > 0 else math.inf


def moments(activation: str | Function, mean: float = 0.0, variance: float = 1.0) -> Moments:
    """E[φ], E[φ²], variance and E[φ'²] of an activation, for z ~ N(mean, variance).

    Named ones use their closed-form derivative, and are remembered.

    Args:
        activation: a name (`fanin.moments.NAMES`), or a function from a float64 array to one of
            the same shape; wrap it in an `Activation` to tell its derivative and kinks.
        mean: of z.
        variance: of z; at 0 the slope is the limit from above.

    Raises:
        ArgumentError: as `expectation`.

    >>> m = moments("relu")
    >>> round(m.mean, 6), round(m.second, 6), round(m.variance, 6), round(m.slope, 6)
    (0.398942, 0.5, 0.340845, 0.5)
    >>> round(m.centred_chi, 4)
    1.4669
    """
    mean, variance = number("mean", mean), number("variance", variance, low=0.0)
    if isinstance(activation, str):
        return _remembered(activation, mean, variance)
    known = activation_of(activation)
    return _moments(known, *mean_and_square(known, mean, variance), mean, variance)


@lru_cache(maxsize=4096)
def _remembered(name: str, mean: float, variance: float) -> Moments:
    return _moments(activation_of(name), *_sizes(name, mean, variance), mean, variance)


@lru_cache(maxsize=4096)
def _sizes(name: str, mean: float, variance: float) -> tuple[float, float]:
    """E[φ] and E[φ²]: all that a length map takes, and less than half the work."""
    return mean_and_square(activation_of(name), mean, variance)


def _moments(
    activation: Activation, first: float, second: float, mean: float, variance: float
) -> Moments:
    around = second - first**2
    if first**2 > second / 2:  # digits would cancel
        around = spread(activation, mean, variance, first)
        if around <= activation.rounding**2 * second:  # no more than rounding: φ is constant
            around = 0.0
    slope = mean_square_slope(activation, mean, variance)
    return Moments(first, second, around, slope, mean, variance)


def gain(activation: str | Function) -> float:
    """E[φ(z)²]^(−1/2) for z ~ N(0, 1): what the std of weights is multiplied with.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).

    Raises:
        ArgumentError: as `expectation`; or φ is zero for all these inputs.

    >>> round(gain("tanh"), 4)
    1.5925
    """
    second = moments(activation).second
    if second == 0:
        raise ArgumentError(
            f"activation {activation_of(activation).name!r} is zero for all inputs near N(0, 1): "
            "no gain preserves that"
        )
    return 1 / math.sqrt(second)


def length_map(
    activation: str | Function, q: float, weight_variance: float, bias_variance: float = 0.0
) -> float:
    """Variance of the next layer's pre-activations, σw² E[φ(√q z)²] + σb² (Poole 2016, eq. 3).

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        q: variance of this layer's pre-activations.
        weight_variance: σw²: fan_in times the variance of one weight.
        bias_variance: σb²: the variance of one bias.

    Raises:
        ArgumentError: as `expectation`; or an argument is negative.

    >>> round(length_map("relu", 3.0, 2.0), 12)
    3.0
    """
    q, w, b = _layer(q, weight_variance, bias_variance)
    if isinstance(activation, str):
        return w * _sizes(activation, 0.0, q)[1] + b
    return w * mean_and_square(activation_of(activation), 0.0, q)[1] + b


def _layer(q: float, weight_variance: float, bias_variance: float) -> tuple[float, float, float]:
    return (
        number("q", q, low=0.0),
        number("weight_variance", weight_variance, low=0.0),
        number("bias_variance", bias_variance, low=0.0),
    )


def fixed_point(
    activation: str | Function, weight_variance: float, bias_variance: float = 0.0
) -> float:
    """The variance q* of pre-activations that the length map keeps, reached from q = 1.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        weight_variance: σw²: fan_in times the variance of one weight.
        bias_variance: σb²: the variance of one bias.

    Returns:
        q*; 0 where the signal dies out, infinity where it grows without bound (or out of the
        range in which φ is finite).

    Raises:
        ArgumentError: as `length_map`.

    >>> round(fixed_point("tanh", 1.76095, 0.05), 4)
    0.57
    >>> fixed_point("relu", 2.0), fixed_point("relu", 1.9), fixed_point("relu", 2.1)
    (1.0, 0.0, inf)
    """
    _, w, b = _layer(1.0, weight_variance, bias_variance)
    known = _resolved(activation)

    def growth(q: float) -> float:
        return length_map(known, q, w, b) - q

    return _settled(growth)


def _settled(growth: Callable[[float], float]) -> float:
    """Where a variance that starts at 1 and changes by `growth` rests, 0 and infinity included."""
    upwards = growth(1.0) > _EQUAL
    inner = outer = 1.0
    while _SMALLEST <= outer <= _LARGEST:
        try:
            there = growth(outer)
        except ArgumentError:
            if upwards:
                return math.inf  # it grew beyond where φ is finite
            raise
        if upwards and there < -_EQUAL * outer:
            return _root(growth, inner, outer)
        if not upwards and there > _EQUAL * outer:
            return _root(growth, outer, inner)
        if not upwards and there >= -_EQUAL * outer and outer >= _LINEAR:
            return outer
        inner, outer = outer, outer * _RATIO if upwards else outer / _RATIO
    return math.inf if upwards else 0.0


def _resolved(activation: str | Function) -> str | Function:
    """Names stay names, for they are remembered."""
    return activation if isinstance(activation, str) else activation_of(activation)


def _root(growth: Callable[[float], float], low: float, high: float) -> float:
    """Where growth between two variances turns from positive to negative, by bisection."""
    for _ in range(_STEPS):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        low, high = (middle, high) if growth(middle) > 0 else (low, middle)
    return high


def correlation_map(
    activation: str | Function,
    c: float,
    q: float,
    weight_variance: float,
    bias_variance: float = 0.0,
) -> float:
    """Correlation of two inputs after the next layer (Poole 2016, eq. 5).

    ``(σw² E[φ(u) φ(v)] + σb²) / (σw² E[φ(u)²] + σb²)`` for u, v ~ N(0, q) with correlation c.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        c: correlation of this layer's pre-activations, from −1 to 1.
        q: their variance.
        weight_variance: σw²: fan_in times the variance of one weight.
        bias_variance: σb²: the variance of one bias.

    Raises:
        ArgumentError: as `length_map`; c is not from −1 to 1; or no signal is left.

    >>> round(correlation_map("relu", 0.0, 1.0, 2.0), 6)
    0.31831
    """
    c = number("c", c, low=-1.0, high=1.0)
    q, w, b = _layer(q, weight_variance, bias_variance)
    return _correlations(activation_of(activation), c, q, w, b)[0]


def _correlations(
    activation: Activation, c: float, q: float, weight_variance: float, bias_variance: float
) -> tuple[float, float]:
    """The correlation map at c, and its derivative."""
    length = length_map(activation, q, weight_variance, bias_variance)
    if length == 0:
        raise ArgumentError(
            f"weight_variance: nothing comes through {activation.name!r} with q = {q:g}, weight "
            f"variance {weight_variance:g} and bias variance {bias_variance:g}: no correlation"
        )
    product, slope = pair(activation, q, c)
    mapped = (weight_variance * product + bias_variance) / length
    return min(1.0, max(-1.0, mapped)), weight_variance * q * slope / length


def chi(activation: str | Function, q: float, weight_variance: float) -> float:
    """χ = σw² E[φ'(√q z)²]: growth of a gradient's variance, and of a small difference, per layer.

    Above 1 gradients explode and near inputs part (chaos); below 1 they vanish and all inputs
    become alike (order); Schoenholz 2017, eq. 5.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        q: variance of the pre-activations.
        weight_variance: σw²: fan_in times the variance of one weight.

    Raises:
        ArgumentError: as `length_map`.

    >>> round(chi("relu", 1.0, 2.0), 12)
    1.0
    """
    q, w, _ = _layer(q, weight_variance, 0.0)
    return w * moments(activation, 0.0, q).slope


def fixed_correlation(
    activation: str | Function, weight_variance: float, bias_variance: float = 0.0
) -> float:
    """The correlation c* that any two inputs tend to with depth, at the fixed point q*.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        weight_variance: σw²: fan_in times the variance of one weight.
        bias_variance: σb²: the variance of one bias.

    Returns:
        c*, from 0 to 1: 1 where χ is at most 1.

    Raises:
        ArgumentError: as `length_map`; or the signal grows without bound.

    >>> round(fixed_correlation("tanh", 2.0, 0.05), 3)
    0.744
    """
    return _fixed_correlation(activation, weight_variance, bias_variance)[0]


def _fixed_correlation(
    activation: str | Function, weight_variance: float, bias_variance: float
) -> tuple[float, float]:
    """c* and the derivative χ of the correlation map there.

    The map is a power series in c with coefficients that are not negative, so it is convex on
    [0, 1]; Newton's method from 0 climbs to its first fixed point without stepping over it.
    """
    known = activation_of(activation)
    q = fixed_point(_resolved(activation), weight_variance, bias_variance)
    if q == math.inf:
        raise ArgumentError(
            f"weight_variance: the signal through {known.name!r} grows without bound with weight "
            f"variance {weight_variance:g} and bias variance {bias_variance:g}: no fixed point"
        )
    at_one = chi(activation, q, weight_variance)
    if at_one <= 1 + _EQUAL:
        return 1.0, at_one
    c = 0.0
    for _ in range(_STEPS):
        mapped, slope = _correlations(known, c, q, weight_variance, bias_variance)
        if mapped - c <= _EQUAL or slope >= 1:
            break
        c = min(1.0, c + (mapped - c) / (1 - slope))
    return c, slope


def depth_scale(
    activation: str | Function, weight_variance: float, bias_variance: float = 0.0
) -> float:
    """Layers over which the distance from c* shrinks by e: ξ = −1/ln χ at c* (Schoenholz 2017).

    Networks train to a depth of about 6 ξ.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        weight_variance: σw²: fan_in times the variance of one weight.
        bias_variance: σb²: the variance of one bias.

    Returns:
        ξ in layers; infinity at the critical point.

    Raises:
        ArgumentError: as `fixed_correlation`.

    >>> round(6 * depth_scale("tanh", 1.5, 0.05), 1)
    94.7
    """
    _, slope = _fixed_correlation(activation, weight_variance, bias_variance)
    if slope <= 0:
        return 0.0
    return math.inf if abs(math.log(slope)) <= _EQUAL else -1 / math.log(slope)


def critical(activation: str | Function, bias_variance: float = 0.0) -> tuple[float, float]:
    """The edge of chaos: the weight variance for which χ = 1 at a fixed point q of the length map.

    Both together are ``q = E[φ²]/E[φ'²] + σb²`` and ``σw² = 1/E[φ'²]``.  Signals must come to rest
    at that q: through gelu, silu and mish with little bias, and softplus with any, none does.

    Args:
        activation: a name, or a function of float64 arrays (see `moments`).
        bias_variance: σb²: the variance of one bias.

    Returns:
        (σw², q): q is 0 where critical signals die out, if slowly; where any q is kept, the first
        found from 1.

    Raises:
        ArgumentError: as `length_map`; or no weight variance is critical.

    >>> w, q = critical("tanh", 0.05)
    >>> round(w, 5), round(q, 5)
    (1.76095, 0.57005)
    >>> w, q = critical("relu")
    >>> round(w, 12), q
    (2.0, 1.0)
    """
    b = number("bias_variance", bias_variance, low=0.0)
    known = _resolved(activation)

    def growth(q: float) -> float:
        here = moments(known, 0.0, q)
        return here.second / here.slope + b - q if here.slope > 0 else math.inf

    q = _settled(growth)
    slope = moments(known, 0.0, q).slope if q < math.inf else 0.0
    if slope > 0:
        w = 1 / slope
        reached = fixed_point(known, w, b)
        larger = q * (1 + _BESIDE)
        stays = length_map(known, larger, w, b) <= larger * (1 + _EQUAL)
        if stays and math.isclose(reached, q, rel_tol=_REACHED, abs_tol=_REACHED):
            return w, q
    raise ArgumentError(
        f"bias_variance: with {b:g}, no weight variance brings signals through "
        f"{activation_of(activation).name!r} to a fixed point where chi is 1"
    )
