"""Words to standard normals, by integers alone.

Word v stands for the probability (v + ½)/2³², and z = Φ⁻¹ of it is monotone in v and odd:
z(~v) = −z(v).  With r = v below 2³¹ and r = ~v above, |z| is one of 448 cubics: r < 32 has rows of
its own; above, the position of the highest bit and the four bits after it choose the row, and the
bits that are left are t, a fraction of 32 bits.  The cubic is evaluated by products of 32 × 32 bits
of which the upper half is kept, and gives |z| in units of 2⁻²⁸.

Over all words: |error| ≤ 1.7e-8, |z| ≤ 6.338, Kolmogorov distance to the normal 5.5e-9
(`benchmarks/draw_reference.py` measures them).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fanin.draw.normal_table import ROWS

__all__ = ["COLUMNS", "LARGEST", "UNIT", "fixed_point"]

UNIT = 2.0**-28  # of the fixed point
LARGEST = ROWS[0][0] * UNIT  # no |z| is larger: 6.338

# A double holds r exactly, and its upper bits are the row: the exponent, which is the position of
# the highest bit, and four bits of the fraction.  Doubles tell 16 rows to an octave also below 32,
# so rows of the table are repeated there; r = 0 comes first, where the bits of 1.0 would have
# their predecessor.
_BEFORE_ONE = 1023 * 16 - 1
_ROWS = [ROWS[0]]
_ROWS += [ROWS[(16 + fraction) >> (4 - octave)] for octave in range(4) for fraction in range(16)]
_ROWS += ROWS[16:]
#: c0, c1, c2 and c3 of each row, uint64 [4, 497].
COLUMNS = np.array(_ROWS, dtype=np.uint64).T.copy()
_C0, _C1, _C2, _C3 = COLUMNS


def fixed_point(words: NDArray[np.uint32]) -> NDArray[np.int32]:
    """z·2²⁸ of each word, int32 of the same shape.

    >>> (fixed_point(np.array([0, 2**31, 2**32 - 1], dtype=np.uint32)) * UNIT).round(3).tolist()
    [-6.338, 0.0, 6.338]

    Source: the module's docstring; the table is made by tests/draw_table.py.
    """
    lower = ~(words.view(np.int32) >> 31)  # all bits set where the word is below 2^31
    bits = (words ^ ~lower.view(np.uint32)).astype(np.float64).view(np.uint64)
    row = (bits >> 48).view(np.int64)
    row -= _BEFORE_ONE
    np.maximum(row, 0, out=row)
    t = bits
    t >>= 16
    t &= 0xFFFFFFFF
    # in place, as three arrays less are three visits of memory less; "clip" skips a check
    sum3 = _C3.take(row, mode="clip")
    sum3 *= t
    sum3 >>= 32
    sum2 = _C2.take(row, mode="clip")
    sum2 -= sum3
    sum2 *= t
    sum2 >>= 32
    sum1 = _C1.take(row, mode="clip")
    sum1 -= sum2
    sum1 *= t
    sum1 >>= 32 + 7  # c1, c2, c3 have seven bits more than c0
    sum0 = _C0.take(row, mode="clip")
    sum0 -= sum1
    z: NDArray[np.int32] = sum0.astype(np.int32)
    z ^= lower
    z -= lower  # −z where all bits are set: two's complement
    return z
