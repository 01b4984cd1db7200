# mypy: ignore-errors
# Triton compiles what stands here for the GPU: it is no Python that a type checker knows.
"""The kernels of the CUDA draw in Triton: philox.py and gaussian.py again, in 32 bits.

Only `fanin.draw.cuda` imports this, where Triton is installed.  One block of Philox gives four
neighbouring values, so one thread computes, maps and writes them together.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

__all__ = ["draw", "numbers"]


@triton.jit
def _philox(block, low, high):
    """The four words of each block: `philox.blocks`."""
    k0 = low.to(tl.uint32)
    k1 = (low >> 32).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = high.to(tl.uint32)
    c3 = (high >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _normal(word, table, ROWS: tl.constexpr):
    """z·2²⁸ of each word: `gaussian.fixed_point`."""
    upper = word.to(tl.int32, bitcast=True) >> 31  # all bits set where z is not negative
    r = word ^ upper.to(tl.uint32, bitcast=True)
    # Cut to 24 bits, never rounded up to the next row: exponent and four bits are the row.
    rough = libdevice.int2float_rz(r.to(tl.int32, bitcast=True)).to(tl.uint32, bitcast=True)
    # The bits after these five, from bit 31 down; below 32, where none are left, t is not used.
    t = r << ((36 + 127 - (rough >> 23)) & 31)
    place = table + (rough >> 19)
    c01 = tl.load(place)
    c23 = tl.load(place + ROWS)
    s = tl.umulhi((c23 >> 32).to(tl.uint32), t)
    s = tl.umulhi(c23.to(tl.uint32) - s, t)
    s = tl.umulhi((c01 >> 32).to(tl.uint32) - s, t)
    minus = (c01.to(tl.uint32) + (s >> 7)).to(tl.int32, bitcast=True)  # −|z|: c0 is negated
    return (minus ^ upper) - upper  # |z| where all bits are set: two's complement


@triton.jit
def _number(word, table, first, width, KIND: tl.constexpr, ROWS: tl.constexpr):
    """The number of each word, before it is scaled: `Values`."""
    if KIND == "uniform":
        number = (word >> 8).to(tl.int32, bitcast=True) * 2 + (1 - (1 << 24))
    elif KIND == "between":
        number = _normal(first + tl.umulhi(word, width), table, ROWS)
    else:
        number = _normal(word, table, ROWS)
    return number


_SCALARS = (
    "low", "high", "start", "stride", "count", "per_row", "repeats", "first", "width", "scale",
    "shift",
)  # fmt: skip


# Without the types of the annotations, and with special code for 1 and for multiples of 16, each
# size of a number would be compiled anew.
@triton.jit(do_not_specialize=_SCALARS)
def draw(
    out,
    table,
    low: tl.uint64,
    high: tl.uint64,
    start: tl.uint64,
    stride: tl.uint64,
    count: tl.int64,
    per_row: tl.int64,
    repeats: tl.int64,
    first: tl.uint32,
    width: tl.uint32,
    scale: tl.float32,
    shift: tl.float32,
    KIND: tl.constexpr,
    SHIFTED: tl.constexpr,
    STRIDED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Write `repeats` rows of `count` values, whose words begin `stride` after one another.

    A row is `per_row` blocks.  ALIGNED: all rows begin with a whole block and end with one.
    STRIDED: there is more than one row; then per_row < 2³⁰.
    """
    word0 = start.to(tl.uint64)  # of a row
    before = tl.program_id(0).to(tl.int64) * BLOCKS
    if STRIDED:
        row = before // per_row
        near = (before - row * per_row).to(tl.int32) + tl.arange(0, BLOCKS)
        further = near // per_row.to(tl.int32)
        block = (near - further * per_row.to(tl.int32)).to(tl.int64)
        row += further
        word0 += row.to(tl.uint64) * stride.to(tl.uint64)
        at_block = row * count + block * 4
        there = row < repeats
    else:
        block = before + tl.arange(0, BLOCKS)
        at_block = block * 4
        there = block < per_row
    w0, w1, w2, w3 = _philox(
        (word0 >> 2) + block.to(tl.uint64), low.to(tl.uint64), high.to(tl.uint64)
    )
    word = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCKS, 4))
    number = _number(word, table, first.to(tl.uint32), width.to(tl.uint32), KIND, ROWS)
    value = number.to(tl.float32) * scale
    if SHIFTED:
        value += shift
    lanes = tl.arange(0, 4)[None, :]
    if ALIGNED:
        at = tl.multiple_of(at_block, 4)[:, None] + lanes
        mask = there[:, None]
    else:
        lane0 = (word0 & 3).to(tl.int64)
        column = (block * 4 - lane0)[:, None] + lanes
        at = (at_block - lane0)[:, None] + lanes
        mask = there[:, None] & (column >= 0) & (column < count)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first", "width"])
def numbers(
    words,
    out,
    table,
    first: tl.uint32,
    width: tl.uint32,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the number of each of a multiple of BLOCK words: for the check of the whole table."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + at).to(tl.uint32, bitcast=True)
    number = _number(word, table, first.to(tl.uint32), width.to(tl.uint32), KIND, ROWS)
    tl.store(out + at, number)
