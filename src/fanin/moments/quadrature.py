"""Gaussian expectations in one and two dimensions, by adaptive Gauss–Legendre quadrature.

The line is split at known kinks, and any piece whose two halves do not add up to it is halved
again, so that a kink nobody told of costs some forty evaluations of the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fanin.errors import ArgumentError
from fanin.moments.functions import Activation, Function, find

__all__ = [
    "activation_of",
    "expectation",
    "integrate",
    "mean_square_slope",
    "number",
    "pair",
    "values",
]

# A function of points z [pieces, nodes] that gives [outputs, pieces, nodes].
Integrand = Callable[[np.ndarray], np.ndarray]

# Nodes of a piece: exact to rounding for a Gaussian times a smooth function over 3 σ.
_NODES = 16
_X, _W = np.polynomial.legendre.leggauss(_NODES)
# Where pieces start, in σ: the mass beyond 12 is 2e-33.  The outermost pieces tell whether the
# function grows so fast, or starts so late, that the far ones are needed too.  Odd numbers, for a
# kink or a steep step that falls on the border of two pieces stays unseen by both.
_CORE = (-12.0, -11.02, -9.07, -6.11, -3.07, -0.03, 2.93, 5.89, 8.93, 10.98, 12.0)
_FAR = (12.0, 15.04, 20.06, 27.03, 35.0)
_NOTHING = 1e-290  # beyond 35 σ, or below this, float64 has no digits left to integrate with
_OUTERMOST = 1e-15  # share of the whole in an outermost piece above which the far ones count
# Activations have their features about zero at the scale of one, however wide the Gaussian: pieces
# start at these z, and at 2, 4, 8 … times them.
_FEATURES = (-0.6180, 0.7309)
# A piece is good when its halves agree with it to this share of the whole; the halves, which are
# kept, are better by orders of magnitude.
_TOLERANCE = 1e-12
_PAIR_TOLERANCE = 1e-10  # the inner integral of a pair carries noise of up to 1e-11
# What is narrower, in σ, holds a jump (of the function, or of its derivative) and weighs nothing.
_NARROW = 1e-13
_MOST_PIECES = 20_000  # beyond it the function is noise to us: random, or far too rough
_SETTLED = 1e-6  # the share of the whole that this noise may be (float32 inside a callable)
_TOGETHER = 1 << 18  # points evaluated at once in two dimensions: 2 MiB an array
# A correlation this near to 1 is 1: the maps differ by less, and φ' would be a 0/0.
_SAME = 1e-12
# A kink averaged over a Gaussian of width s is smooth, and straight beyond this many s: e^-18.
_SOFT = 6.0
# Stand in for a variance of zero where slopes are asked: E[φ'²] is off by as much at a kink, by
# their square elsewhere.  Numerical slopes have no digits left over a narrower range.
_NO_SIGMA, _NO_SIGMA_NUMERICAL = 1e-12, 1e-6


def _differentiation() -> np.ndarray:
    """The matrix that takes values at the nodes to slopes of their interpolant (barycentric)."""
    gaps = _X[:, None] - _X[None, :] + np.eye(_NODES)
    weights = 1 / gaps.prod(1)
    matrix = weights[None, :] / weights[:, None] / gaps
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(1))
    return np.asarray(matrix)


_D = _differentiation()


def number(name: str, value: float, *, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float; an ArgumentError unless it is finite and within [low, high]."""
    try:
        real = float(value)
    except (TypeError, ValueError):
        real = math.nan
    if not (math.isfinite(real) and low <= real <= high):
        least = f" of at least {low:g}" if math.isfinite(low) else ""
        bounds = f" from {low:g} to {high:g}" if math.isfinite(high) else least
        raise ArgumentError(f"{name} must be a finite number{bounds}, not {value!r}")
    return real


def activation_of(activation: str | Function, kinks: Sequence[float] = ()) -> Activation:
    """A name or a callable as an `Activation`."""
    if isinstance(activation, str):
        activation = find(activation)
    if isinstance(activation, Activation):
        return activation
    if not callable(activation):
        raise ArgumentError(f"activation must be a name or a function, not {activation!r}")
    name = getattr(activation, "__qualname__", type(activation).__qualname__)
    return Activation(name, activation, kinks=tuple(number("kinks", k) for k in kinks))


def values(activation: Activation, z: np.ndarray) -> np.ndarray:
    """φ(z), in the shape of z, checked."""
    flat = z.ravel()
    try:
        with np.errstate(all="ignore"):
            given = np.asarray(activation.function(flat.copy()))
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"activation {activation.name!r} must take a float64 array; it raised {cause}"
        ) from error
    if given.shape != flat.shape or given.dtype.kind not in "fiub":
        raise ArgumentError(
            f"activation {activation.name!r} must give a real array of its input's shape "
            f"{flat.shape}, not {given.dtype} {given.shape}"
        )
    given = given.astype(np.float64, copy=False)
    bad = ~np.isfinite(given)
    if bad.any():
        where = int(bad.argmax())
        raise ArgumentError(
            f"activation {activation.name!r} must be finite, but is {given[where]} "
            f"at {flat[where]:.6g}"
        )
    return given.reshape(z.shape)


def _slopes(activation: Activation, z: np.ndarray) -> np.ndarray:
    """φ'(z) at the nodes z [pieces, nodes]; without a derivative, that of the interpolant."""
    if activation.derivative is None:
        half_width = (z[:, -1:] - z[:, :1]) / (_X[-1] - _X[0])
        return np.asarray(values(activation, z) @ _D.T / half_width)
    return values(Activation(f"{activation.name}'", activation.derivative), z)


def _density(t: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-0.5 * t * t) / math.sqrt(2 * math.pi))


def _pieces(
    integrand: Integrand, mean: float, sigma: float, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Integrals [outputs, pieces] over each of [low, high], and those of the absolute value."""
    half = (high - low)[:, None] / 2
    t = (high + low)[:, None] / 2 + half * _X
    with np.errstate(all="ignore"):
        weighted = integrand(mean + sigma * t) * (_density(t) * half * _W)
    return weighted.sum(-1), np.abs(weighted).sum(-1)


def _adaptive(
    integrand: Integrand,
    mean: float,
    sigma: float,
    edges: np.ndarray,
    scale: np.ndarray | None = None,
    tolerance: float = _TOLERANCE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals [outputs] over the pieces between edges; their size piece by piece; all edges."""
    low, high = edges[:-1], edges[1:]
    whole, sizes = _pieces(integrand, mean, sigma, low, high)
    if not np.isfinite(sizes).all():
        raise ArgumentError("activation: its moments are beyond the range of float64")
    if scale is None:
        scale = np.maximum(sizes.sum(1), _NOTHING)
    total = np.zeros(len(whole))
    while True:
        middle = (low + high) / 2
        count = len(low)
        lows, highs = np.concatenate([low, middle]), np.concatenate([middle, high])
        halves, _ = _pieces(integrand, mean, sigma, lows, highs)
        left, right = halves[:, :count], halves[:, count:]
        error = np.abs(left + right - whole)
        good = (error <= tolerance * scale[:, None]).all(0)
        total += (left + right)[:, good].sum(1)
        bad = ~good & (high - low > _NARROW)
        if not bad.any():
            return total, sizes, edges
        edges = np.concatenate([edges, middle[bad]])
        twice = np.concatenate([bad, bad])
        low, high, whole = lows[twice], highs[twice], halves[:, twice]
        if len(low) > _MOST_PIECES:
            break
    if (error[:, bad].sum(1) > _SETTLED * scale).any():
        raise ArgumentError(
            f"activation: its expectation does not settle within {_MOST_PIECES} pieces; it must "
            "not be random, nor swing so often within the range of its inputs"
        )
    return total + whole.sum(1), sizes, edges


def _edges(mean: float, sigma: float, kinks: Sequence[float], grid: Sequence[float]) -> np.ndarray:
    """Sorted ends of the first pieces, in σ: of the grid, the kinks and the features."""
    reach = abs(mean) + max(-grid[0], grid[-1]) * sigma
    scales = [2.0**k for k in range(max(0, math.ceil(math.log2(max(reach, 1.0)))) + 1)]
    points = np.array([*kinks, *(f * scale for f in _FEATURES for scale in scales)])
    with np.errstate(all="ignore"):
        t = (points - mean) / sigma
    inside = t[(t > grid[0]) & (t < grid[-1])]
    return np.unique(np.concatenate([grid, inside]))


def integrate(
    integrand: Integrand, mean: float, sigma: float, kinks: Sequence[float] = ()
) -> np.ndarray:
    """E[integrand(z)] for z ~ N(mean, sigma²), to about 1e-12 of E|integrand|.

    Args:
        integrand: from points z [pieces, nodes] to values [outputs, pieces, nodes].
        mean: of z.
        sigma: its standard deviation.
        kinks: where the integrand or its derivative jumps, as far as known.

    Returns:
        One value an output.
    """
    total, sizes, _ = _adaptive(integrand, mean, sigma, _edges(mean, sigma, kinks, _CORE))
    scale = sizes.sum(1)
    outermost = np.maximum(sizes[:, 0], sizes[:, -1])
    if (outermost > _OUTERMOST * scale).any() or not scale.all():
        for grid in (_FAR, tuple(-t for t in reversed(_FAR))):
            edges = _edges(mean, sigma, kinks, grid)
            total = total + _adaptive(integrand, mean, sigma, edges)[0]
    return total


def mean_square_slope(activation: Activation, mean: float, variance: float) -> float:
    """E[φ'(z)²] for z ~ N(mean, variance); at variance 0 the limit from above."""
    sigma = math.sqrt(variance) or _no_sigma(activation) * max(1.0, abs(mean))
    kinks = activation.kinks
    (slope,) = integrate(lambda z: _slopes(activation, z)[None] ** 2, mean, sigma, kinks)
    return float(slope)


def _no_sigma(activation: Activation) -> float:
    return _NO_SIGMA_NUMERICAL if activation.derivative is None else _NO_SIGMA


def expectation(
    f: str | Function, mean: float = 0.0, variance: float = 1.0, kinks: Sequence[float] = ()
) -> float:
    """E[f(z)] for z ~ N(mean, variance).

    Accurate to about 1e-12 of E|f(z)|, at any mean and variance, also where f has kinks or jumps
    that nobody told of.

    Args:
        f: a name (`fanin.moments.NAMES`), or a function from a float64 array to one of the same
            shape.
        mean: of z.
        variance: of z; 0 gives f(mean).
        kinks: points where f or its derivative jumps; known ones save time.

    Raises:
        ArgumentError: f is unknown, gives values that are not finite or not in the shape of its
            input, or is random; the variance is negative; a number is not finite.

    >>> round(expectation(lambda z: abs(z - 1)), 6)
    1.166636
    """
    known = activation_of(f, kinks)
    mean, variance = number("mean", mean), number("variance", variance, low=0.0)
    (result,) = integrate(lambda z: values(known, z)[None], mean, math.sqrt(variance), known.kinks)
    return float(result)


# ── two correlated inputs ────────────────────────────────────────────────────────────────────


def _smoothed(
    activation: Activation, sigma: float, share: float, mesh: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """E φ(σ(√share·x + √(1 − share)·y)) over y ~ N(0, 1), and the same of φ': [2, *x.shape].

    φ' comes by Stein's identity from φ: E φ'(m + s·y) = E[φ(m + s·y)·y]/s.
    """
    known, rest = math.sqrt(share), math.sqrt(1 - share)
    result = np.empty((2, x.size))
    grid = np.array(_CORE)
    step = max(1, _TOGETHER // ((len(grid) + len(mesh)) * _NODES))
    for start in range(0, x.size, step):
        centre = known * x.ravel()[start : start + step, None]
        cuts = np.clip((mesh / sigma - centre) / rest, grid[0], grid[-1])
        cuts = np.concatenate([cuts, np.broadcast_to(grid, (len(cuts), len(grid)))], axis=1)
        cuts.sort(axis=1)
        low, high = cuts[:, :-1, None], cuts[:, 1:, None]
        half = (high - low) / 2
        y = (high + low) / 2 + half * _X
        weights = _density(y) * half * _W
        middle = values(activation, sigma * centre)[:, :, None]
        change = values(activation, sigma * (centre[:, :, None] + rest * y)) - middle
        place = slice(start, start + step)
        result[0, place] = middle[:, 0, 0] + (change * weights).sum((1, 2))
        result[1, place] = (change * weights * y).sum((1, 2)) / (rest * sigma)
    return result.reshape(2, *x.shape)


def pair(activation: Activation, variance: float, correlation: float) -> tuple[float, float]:
    """E[φ(u)φ(v)] and E[φ'(u)φ'(v)] for u, v ~ N(0, variance) with the given correlation.

    u and v share a part x and have parts y of their own, so that with h(x) = E φ over y the first
    is E[h(x)²], or E[h(x)h(−x)] for a negative correlation: smooth integrals, for any φ.  Errors
    are about 1e-10 of E[φ²] and E[φ'²].
    """
    sigma = math.sqrt(variance)
    sign = math.copysign(1.0, correlation)
    share = abs(correlation)
    if sigma == 0.0 or share > 1 - _SAME:
        return _aligned(activation, sigma, sign)

    def squares(z: np.ndarray) -> np.ndarray:
        v = values(activation, z)
        return np.stack([v * v, v])

    first = _edges(0.0, sigma, activation.kinks, _CORE)
    (second, _), _, mesh = _adaptive(squares, 0.0, sigma, first)
    mesh = np.unique(mesh) * sigma
    slope = second / variance

    def product(x: np.ndarray) -> np.ndarray:
        here = _smoothed(activation, sigma, share, mesh, x)
        there = here if sign > 0 else _smoothed(activation, sigma, share, mesh, -x)
        return np.asarray(here * there)

    reach = _SOFT * sigma * math.sqrt(1 - share)
    soft = [k + side * reach for k in activation.kinks for side in (-1, 0, 1)]
    outer = _edges(0.0, sigma * math.sqrt(share), soft, _CORE)
    scale = np.array([second, slope])
    total, _, _ = _adaptive(product, 0.0, 1.0, outer, scale, _PAIR_TOLERANCE)
    return float(total[0]), float(total[1])


def _aligned(activation: Activation, sigma: float, sign: float) -> tuple[float, float]:
    """The same for v = ±u."""
    kinks = (*activation.kinks, *(-k for k in activation.kinks))

    def of(part: Callable[[Activation, np.ndarray], np.ndarray], width: float) -> float:
        def product(z: np.ndarray) -> np.ndarray:
            # mirrored, nodes stay in ascending order
            other = part(activation, -z[:, ::-1])[:, ::-1] if sign < 0 else part(activation, z)
            return np.asarray(part(activation, z) * other)[None]

        return float(integrate(product, 0.0, width, kinks)[0])

    return of(values, sigma), of(_slopes, sigma or _no_sigma(activation))
