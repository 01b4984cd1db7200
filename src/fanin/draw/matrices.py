"""Matrices with orthonormal rows or columns.

`orthogonal` is Haar-distributed, of any size, and as reproducible as the QR decomposition of the
linear algebra library in use: to round-off.  `hadamard` is a product of signs, permutation and
Hadamard matrices in integers: the same bits everywhere, any row by itself, for the sizes 2ᵏ,
12·2ᵏ and 20·2ᵏ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fanin.draw.philox import Key, integer, pieces
from fanin.draw.values import normal, words
from fanin.errors import ArgumentError

__all__ = ["hadamard", "hadamard_rows", "has_hadamard", "orthogonal"]

# Orders of the small factors; the last two are of Paley's first kind, of the primes 11 and 19.
_FACTORS = (1, 12, 20)
_BLOCK = 1 << 16  # elements of the rows transformed together: they stay in the second cache
_SIDE = 2**30  # a matrix has fewer rows and columns, and so its integers fit in 32 bits


def orthogonal(key: Key, rows: int, cols: int) -> NDArray[np.float64]:
    """A Haar-distributed matrix, float64 [rows, cols]: orthonormal rows, or columns if rows > cols.

    The std of one entry is 1/√max(rows, cols).  From the standard normals of the stream as the
    elements of a [rows, cols] matrix, by QR with the signs that make the diagonal of R positive.

    Raises ArgumentError for a size that is no positive integer.

    >>> from fanin.draw import key
    >>> q = orthogonal(key(0, "layer.weight", "orthogonal"), 2, 3)
    >>> np.allclose(q @ q.T, np.eye(2), atol=1e-14)
    True

    Source: F. Mezzadri, "How to generate random matrices from the classical compact groups",
    Notices of the AMS 54 (2007), section 5.
    """
    rows, cols = integer("rows", rows, 1, _SIDE), integer("cols", cols, 1, _SIDE)
    drawn = normal(key, rows * cols).astype(np.float64).reshape(rows, cols)
    q, r = np.linalg.qr(drawn if rows > cols else drawn.T)
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(q if rows > cols else q.T)


def hadamard(
    key: Key, rows: int, cols: int, *, first: int = 0, count: int | None = None
) -> NDArray[np.float64]:
    """A randomized Hadamard product, float64 [rows, cols]: orthonormal rows, or columns.

    Of its rows, `count` from the `first` on are computed; all by default.

    The first rows and columns of `hadamard_rows`, divided by n = max(rows, cols), which has to be
    2ᵏ, 12·2ᵏ or 20·2ᵏ.  Not Haar-distributed: an entry is the sum of n random signs over n, so it
    has mean 0, variance 1/n and a nearly normal distribution on the multiples of 2/n, and two
    entries are uncorrelated.  Good for large layers, where it costs n·log n per row instead of n²,
    and wherever the bits must not depend on a linear algebra library.

    Raises ArgumentError for a size there is no such matrix of; it names the nearest ones.

    >>> from fanin.draw import key
    >>> (8 * hadamard(key(0, "layer.weight", "hadamard"), 2, 8)).astype(int)
    array([[ 2, -2, -2, -6, -2,  2, -2,  2],
           [ 2,  2,  2,  2, -6,  2, -2, -2]])

    Source: N. Ailon, B. Chazelle, "The fast Johnson–Lindenstrauss transform", SIAM J. Comput. 39
    (2009); two transforms as in F. X. Yu et al., "Orthogonal random features", NeurIPS 2016.
    """
    rows, cols = integer("rows", rows, 1, _SIDE), integer("cols", cols, 1, _SIDE)
    n = max(rows, cols)
    small = _small_factor("rows, cols", n)
    first = integer("first", first, 0, rows + 1)
    count = rows - first if count is None else integer("count", count, 0, rows - first + 1)
    chosen = _choices(key, n)
    matrix = np.empty((count, cols))
    for at, some in pieces(count, max(1, _BLOCK // n)):
        matrix[at : at + some] = _rows(chosen, small, first + at, some)[:, :cols]
    matrix /= n
    return matrix


def hadamard_rows(key: Key, n: int, start: int, count: int) -> NDArray[np.int64]:
    """Rows `start` … `start + count − 1` of an n × n product M in integers, int64 [count, n].

    M = S·H·D·P·H·T with H Hadamard (Sylvester's of order 2ᵏ times Paley's of order 1, 12 or 20), S,
    D, T random signs and P a random permutation: M·Mᵀ = n²·1 exactly.  A single H would leave all
    entries of one size; without P the entry (i, j) would depend on i xor j alone.

    P sorts words 0 … n − 1 of the stream; of words n … 2n − 1 bit 0 gives D, bit 1 S, bit 2 T.

    Raises ArgumentError for a size n there is no such matrix of, and for rows outside of it.

    >>> from fanin.draw import key
    >>> m = hadamard_rows(key(0, "layer.weight", "hadamard"), 12, 0, 12)
    >>> bool((m @ m.T == 144 * np.eye(12)).all())
    True

    Source: J. J. Sylvester 1867; R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12
    (1933).
    """
    n = integer("n", n, 1, _SIDE)
    small = _small_factor("n", n)
    start = integer("start", start, 0, n + 1)
    count = integer("count", count, 0, n - start + 1)
    return _rows(_choices(key, n), small, start, count).astype(np.int64)


class _Choices(NamedTuple):
    """What is random in a product: the permutation P and the signs D, S and T, each [n]."""

    order: NDArray[np.int64]
    middle: NDArray[np.int32]
    row: NDArray[np.int32]
    column: NDArray[np.int32]


def _choices(key: Key, n: int) -> _Choices:
    bits = words(key, n, n)
    middle, row, column = (1 - 2 * (bits >> place & 1).astype(np.int32) for place in range(3))
    return _Choices(np.argsort(words(key, 0, n), kind="stable"), middle, row, column)


def _rows(chosen: _Choices, small: int, start: int, count: int) -> NDArray[np.int32]:
    place = np.arange(start, start + count)
    unit = np.zeros((count, len(chosen.order)), np.int32)
    unit[np.arange(count), place] = chosen.row[place]
    drawn = _transform(unit, small) * chosen.middle
    return _transform(drawn[:, chosen.order], small) * chosen.column


def has_hadamard(n: int) -> bool:
    """Whether n is 2ᵏ, 12·2ᵏ or 20·2ᵏ, the sizes that `hadamard` draws.

    >>> [n for n in range(1, 50) if has_hadamard(n)]
    [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48]
    """
    return any(n > 0 and _is_power(n, small) for small in _FACTORS)


def _is_power(n: int, small: int) -> bool:
    """Whether n is small·2ᵏ."""
    power, rest = divmod(n, small)
    return rest == 0 and power & (power - 1) == 0


def _small_factor(argument: str, n: int) -> int:
    """The order of the factor that is not Sylvester's."""
    for small in _FACTORS:
        if _is_power(n, small):
            return small
    sizes = sorted(small << k for small in _FACTORS for k in range(n.bit_length() + 1))
    below, above = max(s for s in sizes if s < n), min(s for s in sizes if s > n)
    raise ArgumentError(
        f"{argument}: there is no Hadamard matrix of size {n} here; sizes are 2ᵏ, 12·2ᵏ and 20·2ᵏ, "
        f"the nearest {below} and {above}"
    )


def _transform(x: NDArray[np.int32], small: int) -> NDArray[np.int32]:
    """x·H for each row of x [count, n]; no entry of it is larger than a sum of n of x."""
    count, n = x.shape
    x = (x.reshape(-1, small) @ _paley(small)).reshape(count, n)
    width = small
    while width < n:
        first, second = np.moveaxis(x.reshape(count, n // (2 * width), 2, width), 2, 0)
        x = np.stack([first + second, first - second], axis=2).reshape(count, n)
        width *= 2
    return x


def _paley(order: int) -> NDArray[np.int32]:
    """The Hadamard matrix of order 1, or of q + 1 for a prime q = 3 mod 4."""
    if order == 1:
        return np.ones((1, 1), np.int32)
    q = order - 1
    character = np.full(q, -1, np.int32)  # of Legendre: 1 for squares mod q, −1 for others
    character[np.arange(q) ** 2 % q] = 1
    character[0] = 0
    matrix = np.ones((order, order), np.int32)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)) % q] + np.eye(
        q, dtype=np.int32
    )
    return matrix
