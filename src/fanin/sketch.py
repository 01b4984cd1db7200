"""Short fingerprints of units, and the classes of units whose fingerprints agree.

The output of a layer is projected over (samples × positions) onto a few fixed random directions:
one short vector per unit.  Two units give the same values exactly when their vectors agree (with
probability one), so comparing 50,000 units costs one small matrix product.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = ["DIRECTIONS", "Directions", "classes", "joint", "labels", "project"]

# Four numbers per unit and pass; a chance agreement of two different units needs all eight of
# forward and backward to agree to the tolerance.
DIRECTIONS = 4
_PERIOD = 65_521  # random numbers really drawn per direction; a prime, so no grid has this period


class Directions:
    """The fixed random directions, drawn from a seed and from no other random state."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def rows(self, count: int, occurrence: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Directions [DIRECTIONS, count] for the `occurrence`-th call of a layer."""
        key = (count, occurrence, device, dtype)
        if key not in self._kept:
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + occurrence) % 2**63)
            shape = min(count, _PERIOD), DIRECTIONS
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            tiled = drawn if count <= _PERIOD else drawn.repeat(-(-count // _PERIOD), 1)[:count]
            self._kept[key] = tiled.T.to(device=device, dtype=dtype).contiguous()
        return self._kept[key]


def project(
    values: Tensor, unit_dims: tuple[int, ...], directions: Directions, occurrence: int
) -> Tensor:
    """Fingerprints [units, DIRECTIONS] of `values`, divided by √(samples × positions).

    Computed in the dtype of the values, or float32 where that is shorter.
    """
    values = values.detach()
    if values.is_complex():
        values = values.real + 0.7320508 * values.imag  # any generic real combination
    dtype = values.dtype if values.dtype == torch.float64 else torch.float32
    dims = tuple(d % values.dim() for d in unit_dims)
    units = 1
    for d in dims:
        units *= values.shape[d]
    count = values.numel() // max(units, 1)
    rows = directions.rows(count, occurrence, values.device, dtype)
    drawn: Tensor
    if dims == (values.dim() - 1,):
        drawn = (rows @ values.reshape(count, units).to(dtype)).T
    elif dims == (1,) and values.dim() > 2:
        flat = values.flatten(2).to(dtype)
        parts = rows.reshape(DIRECTIONS, len(flat), -1).transpose(0, 1)
        drawn = torch.matmul(parts, flat.transpose(1, 2)).sum(0).T
    else:
        moved = values.movedim(dims, tuple(range(len(dims)))).reshape(units, count).to(dtype)
        drawn = moved @ rows.T
    return drawn.to(torch.float64).div(math.sqrt(max(count, 1)))


def labels(vectors: np.ndarray, tolerance: float) -> np.ndarray:
    """A class number for every row of `vectors`; rows that agree to `tolerance` share one.

    Rows are sorted and split at gaps, column by column, so that two equal values are never parted
    by the border of a grid.  A gap is measured against the larger of the two rows it parts, and
    never against less than the noise that a product of the whole layer's scale carries.

    >>> labels(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0 + 1e-12]]), 1e-9).tolist()
    [0, 1, 0]
    """
    count = len(vectors)
    if count == 0 or not np.isfinite(vectors).all():
        return np.arange(count)
    norms = np.linalg.norm(vectors, axis=1)
    floor = tolerance * 0.1 * float(np.sqrt(np.mean(norms**2)))
    current = np.zeros(count, dtype=np.int64)
    for column in range(vectors.shape[1]):
        sizes = np.bincount(current)
        rows = np.flatnonzero(sizes[current] > 1)
        if len(rows) == 0:
            break
        rows = rows[np.lexsort((vectors[rows, column], current[rows]))]
        value, old, norm = vectors[rows, column], current[rows], norms[rows]
        gap = np.diff(value) > tolerance * np.maximum(norm[1:], norm[:-1]) + floor
        first = np.concatenate([[True], gap | (np.diff(old) != 0)])
        current[rows] = len(sizes) + np.cumsum(first)
    if len(rows) == 0:
        return np.arange(count)
    # numbered by first member: of several writes to one place the last one stays, the first row's
    leader = np.zeros(current.max() + 1, dtype=np.int64)
    leader[current[::-1]] = np.arange(count)[::-1]
    leads = leader[current] == np.arange(count)
    return np.asarray((np.cumsum(leads) - 1)[leader[current]])


def joint(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A class number for every row; rows that share one in both of two numberings share one.

    >>> joint(np.array([0, 0, 1]), np.array([0, 1, 1])).tolist()
    [0, 1, 2]
    """
    return np.unique(one * (other.max(initial=0) + 1) + other, return_inverse=True)[1]


def classes(numbers: np.ndarray) -> list[tuple[int, ...]]:
    """Classes with more than one member, as tuples of row numbers.

    >>> classes(np.array([0, 1, 0, 2]))
    [(0, 2)]
    """
    rows = np.flatnonzero(np.bincount(numbers)[numbers] > 1)
    if len(rows) == 0:
        return []
    rows = rows[np.argsort(numbers[rows], kind="stable")]
    edges = [0, *(np.flatnonzero(np.diff(numbers[rows])) + 1).tolist(), len(rows)]
    members = rows.tolist()
    return [tuple(members[a:b]) for a, b in pairwise(edges)]
