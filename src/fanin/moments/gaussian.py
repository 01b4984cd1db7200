"""Expectations of an activation of one Gaussian, or of two that are correlated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fanin.errors import ArgumentError
from fanin.moments.functions import Activation, Function, find
from fanin.moments.quadrature import CORE, NODES, adaptive, edges, integrate, weights

__all__ = [
    "activation_of",
    "expectation",
    "mean_and_square",
    "mean_square_slope",
    "number",
    "pair",
    "spread",
]

_OPERATIONS = 4  # roundings that a value of an activation is taken to carry
# Values at these points tell a function that computes in float32: they fit in it, and need it.
_PROBE = 3 * np.sin(np.arange(1.0, 65.0))
_LAST_BITS = 0b11111  # of the 23 of a float32; steps of 1/16, say, leave them empty
# Stand in for a variance of zero where slopes are asked: E[φ'²] is off by as much at a kink, by
# their square elsewhere.  Numerical slopes have no digits left over a narrower range.
_NO_SIGMA, _NO_SIGMA_NUMERICAL = 1e-12, 1e-6
_PAIR_TOLERANCE = 1e-10  # the inner integral of a pair carries noise of up to 1e-11
# A correlation this near to ±1 is ±1: the maps differ by less, and φ' would be a 0/0.
_ALIGNED = 1e-12
# A kink averaged over a Gaussian of width s is smooth, and straight beyond this many s: e^-18.
_SOFT = 6.0
_MISSED = 0.5  # nodes of a piece of 3 σ are at most this far apart
_MESH_TOLERANCE = 1e-15  # so that a kink is closed in on to about 1e-6 σ
_CLOSE = 1e-2  # ends of pieces this near, in σ, close in on a kink
_TOGETHER = 1 << 18  # points evaluated at once in two dimensions: 2 MiB an array


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


def _checked(name: str, function: Function, z: np.ndarray) -> np.ndarray:
    """function(z), in the shape of z."""
    flat = z.ravel()
    try:
        with np.errstate(all="ignore"):
            given = np.asarray(function(flat.copy()))
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"activation {name!r} must take a float64 array, but raised {cause}"
        ) from error
    if given.shape != flat.shape or given.dtype.kind not in "fiub":
        raise ArgumentError(
            f"activation {name!r} must give a real array of its input's shape {flat.shape}, "
            f"not {given.dtype} {given.shape}"
        )
    given = given.astype(np.float64, copy=False)
    bad = ~np.isfinite(given)
    if bad.any():
        where = int(bad.argmax())
        raise ArgumentError(
            f"activation {name!r} must be finite, but is {given[where]} at {flat[where]:.6g}"
        )
    return given.reshape(z.shape)


def activation_of(activation: str | Function, kinks: Sequence[float] = ()) -> Activation:
    """A name or a callable as an `Activation`, with further kinks."""
    more = tuple(number("kinks", k) for k in kinks)
    if isinstance(activation, str):
        activation = find(activation)
    if isinstance(activation, Activation):
        return replace(activation, kinks=(*activation.kinks, *more)) if more else activation
    if not callable(activation):
        raise ArgumentError(f"activation must be a name or a function, not {activation!r}")
    name = getattr(activation, "__qualname__", type(activation).__qualname__)
    known = Activation(name, activation, kinks=more)
    try:
        values, _ = _values(known, _PROBE)
    except ArgumentError:  # not defined there; where it matters, it will raise again
        return known
    short = values.astype(np.float32)
    if (short != values).any() or not (short.view(np.uint32) & _LAST_BITS).any():
        return known
    return replace(known, rounding=float(np.finfo(np.float32).eps))


def _plain(activation: Activation, z: np.ndarray) -> np.ndarray:
    return _checked(activation.name, activation.function, z)


def _values(activation: Activation, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ(z), and its rounding errors."""
    values = _plain(activation, z)
    return values, _OPERATIONS * activation.rounding * np.abs(values)


# ── slopes ───────────────────────────────────────────────────────────────────────────────────


def _differentiation() -> np.ndarray:
    """The matrix from values at the nodes to the slopes of their interpolant (barycentric)."""
    gaps = NODES[:, None] - NODES[None, :] + np.eye(len(NODES))
    barycentric = 1 / gaps.prod(1)
    matrix = barycentric[None, :] / barycentric[:, None] / gaps
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(1))
    return np.asarray(matrix)


_D = _differentiation()
_D_NORMS = np.linalg.norm(_D, axis=1)


def _slopes(activation: Activation, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ'(z) at the nodes z [pieces, nodes], and its rounding errors.

    Without a derivative, the slope of the interpolant: as good as the pieces are smooth.
    """
    if activation.derivative is not None:
        known = _checked(f"{activation.name}'", activation.derivative, z)
        return known, _OPERATIONS * activation.rounding * np.abs(known)
    half = (z[:, -1:] - z[:, :1]) / (NODES[-1] - NODES[0])
    values, errors = _values(activation, z)
    return values @ _D.T / half, errors.max(1, keepdims=True) * _D_NORMS / half


def mean_square_slope(activation: Activation, mean: float, variance: float) -> float:
    """E[φ'(z)²] for z ~ N(mean, variance); at variance 0 the limit from above."""
    sigma = math.sqrt(variance) or _no_sigma(activation) * max(1.0, abs(mean))

    def squares(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slopes, errors = _slopes(activation, z)
        return (slopes**2)[None], 2 * np.abs(slopes) * errors + errors**2

    return float(integrate(squares, mean, sigma, activation.kinks)[0])


def _no_sigma(activation: Activation) -> float:
    return _NO_SIGMA_NUMERICAL if activation.derivative is None else _NO_SIGMA


# ── one Gaussian ─────────────────────────────────────────────────────────────────────────────


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
    1.166631
    """
    known = activation_of(f, kinks)
    mean, variance = number("mean", mean), number("variance", variance, low=0.0)
    sigma = math.sqrt(variance)

    def once(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, error = _values(known, z)
        return values[None], error

    return float(integrate(once, mean, sigma, known.kinks)[0])


def _both(activation: Activation, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, errors = _values(activation, z)
    return np.stack([values, values * values]), np.stack([errors, 2 * np.abs(values) * errors])


def mean_and_square(activation: Activation, mean: float, variance: float) -> tuple[float, float]:
    """E[φ(z)] and E[φ(z)²] for z ~ N(mean, variance)."""
    sigma = math.sqrt(variance)
    first, second = integrate(lambda z: _both(activation, z), mean, sigma, activation.kinks)
    return float(first), float(second)


def spread(activation: Activation, mean: float, variance: float, centre: float) -> float:
    """E[(φ(z) − centre)²] for z ~ N(mean, variance)."""

    def squares(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, errors = _values(activation, z)
        apart, errors = values - centre, errors + _OPERATIONS * activation.rounding * abs(centre)
        return (apart**2)[None], 2 * np.abs(apart) * errors + errors**2

    return float(integrate(squares, mean, math.sqrt(variance), activation.kinks)[0])


# ── two correlated Gaussians ─────────────────────────────────────────────────────────────────


def pair(activation: Activation, variance: float, correlation: float) -> tuple[float, float]:
    """E[φ(u)φ(v)] and E[φ'(u)φ'(v)] for u, v ~ N(0, variance) with the given correlation.

    u and v share a part x and have parts y of their own, so that with h(x) = E φ over y the first
    is E[h(x)²], or E[h(x)h(−x)] for a negative correlation: smooth integrals, for any φ.  Errors
    are about 1e-10 of E[φ²] and E[φ'²].
    """
    sigma = math.sqrt(variance)
    share = abs(correlation)
    if sigma == 0.0 or share > 1 - _ALIGNED:
        return _aligned(activation, sigma, correlation < 0)
    mesh, kinks, second = _mesh(activation, sigma)
    soft = _SOFT * math.sqrt(1 - share)
    hints = np.empty(0)  # where the outer integral has features that are easily missed
    if soft < _MISSED:
        narrow = np.flatnonzero(np.diff(mesh) < _CLOSE)
        steep = mesh[np.union1d(narrow, narrow + 1)]
        hints = np.concatenate([kinks - soft, kinks, kinks + soft, steep])
    outer = edges(0.0, sigma * math.sqrt(share), list(sigma * hints))
    sizes = np.sqrt([second, second / variance])  # of h and of the same of φ'
    noise = _OPERATIONS * activation.rounding * sizes * np.array([1.0, 1 / math.sqrt(1 - share)])

    def product(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        here = _smoothed(activation, sigma, share, mesh, x)
        there = here if correlation >= 0 else _smoothed(activation, sigma, share, mesh, -x)
        error = noise[:, None, None] * (np.abs(here) + np.abs(there) + noise[:, None, None])
        return here * there, error

    total, _, _ = adaptive(product, 0.0, 1.0, outer, _PAIR_TOLERANCE * sizes**2)
    return float(total[0]), float(total[1])


def _mesh(activation: Activation, sigma: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Ends of pieces over which φ is smooth, and its kinks, both in σ; E[φ²].

    Of the many pieces that close in on a kink nobody told of, only the last is kept, if it serves.
    """

    def squares(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _both(activation, z)

    _, second = mean_and_square(activation, 0.0, sigma**2)
    allowed = _MESH_TOLERANCE * np.array([math.sqrt(second), second])
    first = edges(0.0, sigma, activation.kinks)
    kinks = np.array(activation.kinks) / sigma
    needed = np.unique(adaptive(squares, 0.0, sigma, first, allowed)[2])
    if len(needed) == len(first):
        return first, kinks, second
    gaps = np.concatenate([[np.inf], np.diff(needed), [np.inf]])
    last = (gaps < _CLOSE) & (gaps <= np.roll(gaps, 1)) & (gaps < np.roll(gaps, -1))
    found = needed[last[:-1] | last[1:]]
    needed = adaptive(squares, 0.0, sigma, np.union1d(first, found), allowed)[2]
    return np.unique(needed), np.union1d(kinks, found), second


def _smoothed(
    activation: Activation, sigma: float, share: float, mesh: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """h(x) = E φ(σ(√share·x + √(1 − share)·y)) over y ~ N(0, 1), and the same of φ'.

    φ' comes by Stein's identity from φ: E φ'(m + s·y) = E[φ(m + s·y)·y]/s.  The integral over y is
    split where φ needed it (`mesh`, in σ).  Shape [2, *x.shape].
    """
    known, rest = math.sqrt(share), math.sqrt(1 - share)
    result = np.empty((2, x.size))
    grid = np.array(CORE)
    step = max(1, _TOGETHER // ((len(grid) + len(mesh)) * len(NODES)))
    for start in range(0, x.size, step):
        centre = known * x.ravel()[start : start + step, None]
        low, high = centre.min() + rest * grid[0], centre.max() + rest * grid[-1]
        near = mesh[(mesh > low) & (mesh < high)]
        cuts = np.clip((near - centre) / rest, grid[0], grid[-1])
        cuts = np.concatenate([cuts, np.broadcast_to(grid, (len(cuts), len(grid)))], axis=1)
        cuts.sort(axis=1)
        half = np.diff(cuts)[:, :, None] / 2
        y = half * (1 + NODES)  # large arrays: each more of them takes as long as its arithmetic
        y += cuts[:, :-1, None]
        middle = _plain(activation, sigma * centre)[:, :, None]
        points = rest * y
        points += centre[:, :, None]
        points *= sigma
        change = _plain(activation, points) - middle
        change *= weights(y, half)
        place = slice(start, start + step)
        result[0, place] = middle[:, 0, 0] + change.sum((1, 2))
        change *= y
        result[1, place] = change.sum((1, 2)) / (rest * sigma)
    return result.reshape(2, *x.shape)


def _aligned(activation: Activation, sigma: float, opposed: bool) -> tuple[float, float]:
    """The same for v = u, or v = −u."""
    kinks = (*activation.kinks, *(-k for k in activation.kinks))

    def of(part: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], width: float) -> float:
        def product(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            here, error = part(z)
            there, other = part(-z[:, ::-1]) if opposed else (here, error)
            if opposed:  # mirrored, so that nodes stay in ascending order
                there, other = there[:, ::-1], other[:, ::-1]
            return (here * there)[None], np.abs(here) * other + (np.abs(there) + other) * error

        return float(integrate(product, 0.0, width, kinks)[0])

    slope = of(lambda z: _slopes(activation, z), sigma or _no_sigma(activation))
    return of(lambda z: _values(activation, z), sigma), slope
