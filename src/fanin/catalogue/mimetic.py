"""Attention that starts as trained attention looks: W_q W_kᵀ near the identity, W_v W_o near −I."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fanin.catalogue.scheme import Argument, Fan, Scheme, among, integer, is_number, sizes
from fanin.errors import ArgumentError

__all__ = ["MIMETIC", "mixture"]

# (α, β) as published, for W_q W_kᵀ and for W_v W_o.
_PUBLISHED = {"q": (0.7, 0.7), "k": (0.7, 0.7), "v": (0.4, 0.4), "o": (0.4, 0.4)}
_GRID = 4001  # points of the density; its mean is then right to 1e-4


_MIXED = "a number from −1000 to 1000, or None for the published one"


def _is_mixed(value: Any) -> bool:
    return value is None or (is_number(value) and abs(value) <= 1000)


def mixture(part: str, arguments: Mapping[str, Any]) -> tuple[float, float]:
    """(α, β) of the product that `part` is a factor of: given, or as published."""
    alpha, beta = _PUBLISHED[part]
    given = arguments["alpha"], arguments["beta"]
    return (
        alpha if given[0] is None else float(given[0]),
        beta if given[1] is None else float(given[1]),
    )


def _top_mean(alpha: float, beta: float, share: float) -> float:
    """Mean of the largest `share` of the singular values of αZ + βI, Z ~ N(0, 1/n), n large.

    The resolvent m of (αZ + βI)(αZ + βI)ᵀ solves m = 1/(β²/u − u x) with u = 1 + α² m (Dozier,
    Silverstein 2007, eq. 1.1), a cubic in u; its imaginary part is π α² times the density.
    """
    if alpha == 0:
        return abs(beta)
    largest = 2 * abs(alpha) + abs(beta)
    s = np.linspace(0, largest, _GRID)[1:]
    companion = np.zeros((len(s), 3, 3))
    companion[:, 1, 0] = companion[:, 2, 1] = 1
    # u³ − u² + (α² − β²)/x u + β²/x = 0 at x = s²
    companion[:, 0] = np.stack(
        [np.ones_like(s), (beta**2 - alpha**2) / s**2, -(beta**2) / s**2], axis=1
    )
    density = np.linalg.eigvals(companion).imag.max(axis=1) * s
    weight = np.cumsum(density[::-1])[::-1] / density.sum()
    top = np.where(weight <= share, density, 0.0)
    if not top.any():
        return largest
    return float((top * s).sum() / top.sum())


def _spread(fan: Fan, arguments: Mapping[str, Any]) -> float:
    inputs, outputs, kernel = sizes("mimetic", fan)
    if kernel:
        raise ArgumentError(f"fan: {fan!r}; mimetic needs a matrix: (inputs, outputs)")
    parts = "qkv" if arguments["part"] == "qkv" else (arguments["part"],)
    squares = []
    for part in parts:
        width, inner = (outputs, inputs) if part == "o" else (inputs, outputs)
        rank = inner // arguments["heads"] if part in "qk" else inner
        mean = _top_mean(*mixture(part, arguments), min(rank, width) / width)
        squares.append(mean / width)
    return math.sqrt(sum(squares) / len(squares))


MIMETIC = (
    Scheme(
        "mimetic",
        "attention that starts as trained attention looks",
        "for each head W_q W_kᵀ ≈ αZ + βI, W_v W_o ≈ αZ − βI, Z ~ N(0, 1/d); each product is "
        "factored as U√Σ and √ΣVᵀ by its singular values, of which a head keeps the "
        "largest d/heads; α = β = 0.7 for q and k, 0.4 for v and o",
        "Transformers on small data, vision above all. q and k of a pair name the same partner "
        "(the parameter of q), v and o likewise (that of v): each is drawn alone, and the two fit.",
        "Trockman, Kolter (2023), Mimetic Initialization of Self-Attention Layers, section 4: "
        "arXiv:2305.09828",
        "matrix",
        _spread,
        arguments=(
            among("part", "q", ("q", "k", "v", "o", "qkv")),
            Argument(
                "partner",
                "",
                "the name of the pair's first parameter",
                lambda v: isinstance(v, str),
            ),
            integer("heads", 1, "a positive integer", 1),
            Argument("alpha", None, _MIXED, _is_mixed),
            Argument("beta", None, _MIXED, _is_mixed),
        ),
        needs="a matrix [heads·head_dim, width] (q, k, v), [width, width] (o), or q, k, v packed",
        example="""\
q, k = torch.empty(64, 64), torch.empty(64, 64)  # one head
fanin.fill_(q, "mimetic", part="q", name="q.weight", partner="q.weight")
fanin.fill_(k, "mimetic", part="k", name="k.weight", partner="q.weight")
assert abs((q.T @ k).diagonal().mean() - 0.7) < 0.1
""",
    ),
)
