"""The table of the normal quantile, computed anew.

    python tests/draw_table.py > src/fanin/draw/normal_table.py

In a row of width 2ˢ words z(r) = −Φ⁻¹((r + ½)/2³²) is replaced by the cubic in t = (r mod 2ˢ)/2ˢ
that equals it at four nodes: those of Chebyshev, stretched so that the last one is t = 1.  The
error is a sixth above the least possible ((2/(1 + cos π/8))⁴ = 1.17), zero at the end of a row,
and at its beginning the cubic lies below z: from row to row it steps down, as z does.
"""

from __future__ import annotations

from mpmath import mp
from scipy.special import ndtri

Row = tuple[int, int, int, int]

DIGITS = 30  # of which 12 are needed
HEAD = '''"""The normal quantile as 448 cubics with integer coefficients, for `fanin.draw.gaussian`.

Row (c0, c1, c2, c3): z·2²⁸ = c0 − (t·(c1 − t·(c2 − t·c3)))·2⁻⁷, t in [0, 1); c0 is in units of
2⁻²⁸, the others of 2⁻³⁵.  Made by tests/draw_table.py; a test computes it anew and compares.
Changing one number changes weights: that takes new versions of the streams.
"""

from __future__ import annotations

__all__ = ["ROWS"]

ROWS: tuple[tuple[int, int, int, int], ...] = (
'''


def magnitude(r: mp.mpf) -> mp.mpf:
    """|z| of the words at distance r from either end."""
    p = (r + mp.mpf(1) / 2) / 2**32
    z = mp.mpf(-float(ndtri(float(p))))
    for _ in range(2):  # Newton's steps: from 15 digits to all
        z += (mp.erfc(z / mp.sqrt(2)) / 2 - p) / mp.npdf(z)
    return z


def row(index: int) -> Row:
    if index < 32:  # one word per row
        return (int(mp.nint(mp.ldexp(magnitude(mp.mpf(index)), 28))), 0, 0, 0)
    shift, first = index // 16 - 1, 16 + index % 16
    roots = [mp.cos((2 * k + 1) * mp.pi / 8) for k in range(4)]
    nodes = [(x + 1) / (roots[0] + 1) for x in roots]
    powers = mp.matrix([[t**j for j in range(4)] for t in nodes])
    values = mp.matrix([magnitude(mp.ldexp(first + t, shift)) for t in nodes])
    a0, a1, a2, a3 = mp.lu_solve(powers, values)
    # what is taken from c0 is rounded down: half a unit less balances it
    c0 = int(mp.nint(mp.ldexp(a0, 28) - mp.mpf(1) / 2))
    c1, c2, c3 = (int(mp.nint(mp.ldexp(a, 35))) for a in (-a1, a2, -a3))
    return (c0, c1, c2, c3)


def rows() -> tuple[Row, ...]:
    with mp.workdps(DIGITS):
        return tuple(row(index) for index in range(448))


if __name__ == "__main__":
    print(HEAD + "".join(f"    {r},\n" for r in rows()) + ")")  # noqa: T201 - it is the file
