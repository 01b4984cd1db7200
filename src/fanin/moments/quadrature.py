"""Integrals against a Gaussian, by adaptive Gauss–Legendre quadrature.

The line is split at known kinks, and any piece whose two halves do not add up to it is halved
again, so that a kink nobody told of costs some forty rounds on two small pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fanin.errors import ArgumentError

__all__ = ["CORE", "NODES", "Integrand", "adaptive", "density", "edges", "integrate", "weights"]

# From points z [pieces, nodes] to values [outputs, pieces, nodes], and the size of the rounding
# errors in them (anything that broadcasts to the same shape).
Integrand = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | float]]

# A piece is [−1, 1]: Gauss–Legendre nodes, exact to rounding for a Gaussian times a smooth function
# over 3 σ, and just inside its ends two more, of no weight, for a kink behind the last node.
_GAUSS, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(16)
_INSIDE = 1 - 1e-10
NODES = np.array([-_INSIDE, *_GAUSS, _INSIDE])
_WEIGHTS = np.array([0.0, *_GAUSS_WEIGHTS, 0.0])
# Where pieces start, in σ: the mass beyond 12 is 2e-33.  The outermost pieces tell whether the
# function grows so fast, or starts so late, that the far ones are needed too.  Odd numbers, for a
# kink or a steep step that falls on the border of two pieces stays unseen by both.
CORE = (-12.0, -11.02, -9.07, -6.11, -3.07, -0.03, 2.81, 5.77, 8.93, 10.98, 12.0)
_FAR = (12.0, 15.04, 20.06, 27.03, 35.0)
_NOTHING = 1e-290  # beyond 35 σ, or below this, float64 has no digits left to integrate with
_OUTERMOST = 1e-15  # share of the whole in an outermost piece above which the far ones count
# Activations have their features about zero at the scale of one, however wide the Gaussian: pieces
# start at these z, and at 2, 4, 8 … times them.
_FEATURES = (-0.6180, 0.7309)
# A piece is good when its halves agree with it to this share of the whole; the halves, which are
# kept, are better by orders of magnitude.
_TOLERANCE = 1e-12
# The whole is first estimated from the first pieces; where that was this much too large (a jump
# and its slope), the refinement is repeated with the better estimate.
_INFLATED = 10.0
# What is narrower, in σ, holds a jump (of the function, or of its derivative) and weighs nothing.
_NARROW = 1e-13
_MOST_PIECES = 20_000  # beyond it the function is noise to us: random, or far too rough
_SETTLED = 1e-6  # the share of the whole that this noise may be (float32 inside a callable)


def _signs_of_roughness() -> np.ndarray:
    """What is zero for a polynomial, from values at the nodes: [nodes, 4].

    The highest two Legendre coefficients, and by how much the values at both ends miss the
    interpolant.
    """
    order = len(_GAUSS)
    legendre = np.polynomial.legendre.legvander(NODES, order - 1)
    coefficients = _WEIGHTS[:, None] * legendre
    interpolant = coefficients * (np.arange(order) + 0.5) @ legendre[[0, -1]].T
    missed = np.eye(len(NODES))[:, [0, -1]] - interpolant
    return np.hstack([coefficients[:, -2:], missed])


# Halves may agree by chance over a jump.  Where these signs are ε of a piece, Gauss–Legendre
# quadrature, exact to twice the degree, is off by some ε².
_ROUGHNESS = _signs_of_roughness()


def density(t: np.ndarray) -> np.ndarray:
    """Of N(0, 1)."""
    found = np.asarray(-0.5 * t * t)
    np.exp(found, out=found)
    found /= math.sqrt(2 * math.pi)
    return found


def weights(t: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Quadrature weights at nodes t [..., nodes] of pieces of the given half width, in σ."""
    found = density(t)
    found *= half
    found *= _WEIGHTS
    return found


def _pieces(
    integrand: Integrand, mean: float, sigma: float, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Over each of [low, high]: integral, that of the absolute value, rounding error, roughness.

    Shape [4, outputs, pieces].
    """
    half = (high - low)[:, None] / 2
    t = (high + low)[:, None] / 2 + half * NODES
    with np.errstate(all="ignore"):
        values, noise = integrand(mean + sigma * t)
        here = density(t) * half
        values, noise = values * here, np.broadcast_to(noise * here, values.shape)
        size, error = np.abs(values) @ _WEIGHTS, noise @ _WEIGHTS
        signs = np.maximum(np.abs(values @ _ROUGHNESS) - noise @ np.abs(_ROUGHNESS), 0)
        sign = np.linalg.norm(signs, axis=-1)
        rough = sign * np.minimum(sign / np.maximum(size, _NOTHING), 1.0)
        found = np.stack([values @ _WEIGHTS, size, error, rough])
    if not np.isfinite(found).all():
        raise ArgumentError("activation: its moments are beyond the range of float64")
    return np.asarray(found)


def _refine(
    integrand: Integrand,
    mean: float,
    sigma: float,
    ends: np.ndarray,
    first: np.ndarray,
    allowed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals [outputs], those of the absolute value, and the ends of all pieces made.

    `first` is what `_pieces` gives for the pieces between `ends`; `allowed` the error of a piece.
    """
    low, high, whole = ends[:-1], ends[1:], first
    total = np.zeros(whole.shape[:2])
    while True:
        middle = (low + high) / 2
        lows, highs = np.concatenate([low, middle]), np.concatenate([middle, high])
        halves = _pieces(integrand, mean, sigma, lows, highs)
        both = halves[..., : len(low)] + halves[..., len(low) :]
        error = np.maximum(np.abs(both[0] - whole[0]), whole[3])
        good = (error <= np.maximum(allowed[:, None], whole[2])).all(0)
        total += both[..., good].sum(-1)
        bad = ~good & (high - low > _NARROW)
        if not bad.any():
            return total[0], total[1], ends
        ends = np.concatenate([ends, middle[bad]])
        twice = np.concatenate([bad, bad])
        low, high, whole = lows[twice], highs[twice], halves[..., twice]
        if len(low) > _MOST_PIECES:
            break
    total += whole.sum(-1)
    if (error[:, bad].sum(-1) > _SETTLED * total[1]).any():
        raise ArgumentError(
            f"activation: its expectation does not settle within {_MOST_PIECES} pieces; it must "
            "not be random, nor swing so often within the range of its inputs"
        )
    return total[0], total[1], ends


def adaptive(
    integrand: Integrand,
    mean: float,
    sigma: float,
    ends: np.ndarray,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals over the pieces between `ends`, halved until each is good.

    Args:
        integrand: see `Integrand`.
        mean: of z.
        sigma: its standard deviation.
        ends: of the first pieces, in σ, sorted.
        allowed: error [outputs] of one piece; by default 1e-12 of E|integrand|.

    Returns:
        Integrals [outputs], those of the absolute value over each first piece [outputs, pieces],
        and the ends of all pieces that were needed, in no order.
    """
    first = _pieces(integrand, mean, sigma, ends[:-1], ends[1:])
    sizes = first[1]
    if allowed is not None:
        total, _, needed = _refine(integrand, mean, sigma, ends, first, allowed)
        return total, sizes, needed
    scale = np.maximum(sizes.sum(-1), _NOTHING)
    while True:
        total, size, needed = _refine(integrand, mean, sigma, ends, first, _TOLERANCE * scale)
        size = np.maximum(size, _NOTHING)
        if (size * _INFLATED >= scale).all():
            return total, sizes, needed
        scale = np.minimum(size, scale)


def edges(
    mean: float, sigma: float, kinks: Sequence[float], grid: Sequence[float] = CORE
) -> np.ndarray:
    """Sorted ends of the first pieces, in σ: of the grid, the kinks and the features."""
    reach = abs(mean) + max(-grid[0], grid[-1]) * sigma
    scales = [2.0**k for k in range(math.ceil(math.log2(max(reach, 1.0))) + 1)]
    points = np.array([*kinks, *(f * scale for f in _FEATURES for scale in scales)])
    with np.errstate(all="ignore"):
        t = (points - mean) / sigma
    inside = t[(t > grid[0]) & (t < grid[-1])]
    return np.unique(np.concatenate([grid, inside]))


def integrate(
    integrand: Integrand, mean: float, sigma: float, kinks: Sequence[float] = ()
) -> np.ndarray:
    """E[integrand(z)] for z ~ N(mean, sigma²) [outputs], to about 1e-12 of E|integrand|.

    Args:
        integrand: see `Integrand`.
        mean: of z.
        sigma: its standard deviation.
        kinks: where the integrand or its derivative jumps, as far as known.
    """
    total, sizes, _ = adaptive(integrand, mean, sigma, edges(mean, sigma, kinks))
    scale = sizes.sum(-1)
    outermost = np.maximum(sizes[:, 0], sizes[:, -1])
    if (outermost > _OUTERMOST * scale).any() or not scale.all():
        for grid in (_FAR, tuple(-t for t in reversed(_FAR))):
            total = total + adaptive(integrand, mean, sigma, edges(mean, sigma, kinks, grid))[0]
    return total
