# mypy: ignore-errors
# Triton compiles what stands here for the GPU: it is no Python that a type checker knows.
"""The kernels of the CUDA draw in Triton: philox.py and gaussian.py again, in 32 bits.

Only `fanin.draw.cuda` imports this, where Triton is installed.  One block of Philox gives four
neighbouring values, so one thread computes, maps and writes them together.

What takes the time is arithmetic, not memory.  On an H100, of two units that work side by side, the
one multiplies 32 × 32 bits once a cycle for a warp, and the other does two logical operations,
shifts or conversions in a cycle, or one beside each such product.  A normal takes 4.5 products for
its word and three for its map.  So some things are said in PTX, for which the compiler does not
find the one instruction, or chooses one for the busier unit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

__all__ = ["draw", "draw_rows", "numbers"]


@triton.jit
def _product(x, FACTOR: tl.constexpr):
    """The lower and the upper half of a product of 32 × 32 bits."""
    return tl.inline_asm_elementwise(
        "{ .reg .b64 p; mul.wide.u32 p, $2, " + FACTOR + "; mov.b64 {$0, $1}, p; }",
        constraints="=r,=r,r",
        args=[x],
        dtype=(tl.uint32, tl.uint32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _row(table, offset):
    """The four numbers at each offset in bytes of a table that begins at a multiple of its span."""
    return tl.inline_asm_elementwise(
        """{
            .reg .b32 lower, upper;
            .reg .b64 place;
            mov.b64 {lower, upper}, $5;
            or.b32 lower, lower, $4;
            mov.b64 place, {lower, upper};
            ld.global.v4.b32 {$0, $1, $2, $3}, [place];
        }""",
        constraints="=r,=r,=r,=r,r,l",
        args=[offset, table.to(tl.uint64)],
        dtype=(tl.uint32, tl.uint32, tl.uint32, tl.uint32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _round(c0, c1, c2, c3, key):
    """One round of Philox; `key` is the two words of `philox.round_keys`."""
    lower0, upper0 = _product(c0, "0xD2511F53")
    lower1, upper1 = _product(c2, "0xCD9E8D57")
    k0 = key.to(tl.uint32)
    k1 = (key.to(tl.uint64) >> 32).to(tl.uint32)
    return upper1 ^ c1 ^ k0, lower1, upper0 ^ c3 ^ k1, lower0


@triton.jit
def _folded(word, two):
    """r, the word or its complement, below 2³¹; and −1 or 1, whether it is the complement or not.

    By products, for which there is room.  `two` is 2, which the compiler must not know: it would
    make a shift and an addition of it.
    """
    return tl.inline_asm_elementwise(
        """{
            .reg .s32 upper;
            shr.s32 upper, $2, 31;
            mad.lo.s32 $1, upper, $3, 1;
            mad.lo.s32 $0, $2, $1, upper;
        }""",
        constraints="=r,=r,r,r",
        args=[word, two],
        dtype=(tl.uint32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _shifted(r, exponent):
    """r << 163 − exponent, of 32 bits."""
    return tl.inline_asm_elementwise(
        "shf.r.wrap.b32 $0, 0, $1, $2;",
        constraints="=r,r,r",
        args=[r, exponent + 29],  # the other way by 32 − (163 − exponent), modulo 32
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _normal(word, table, two):
    """z·2²⁸ of each word: `gaussian.fixed_point`."""
    r, sign = _folded(word, two)
    # Cut to 24 bits, never rounded up to the next row: exponent and four bits are the row.
    rough = libdevice.int2float_rz(r.to(tl.int32, bitcast=True)).to(tl.uint32, bitcast=True)
    # The bits after these five, from bit 31 down; below 32, where none are left, t is not used.
    t = _shifted(r, rough >> 23)
    c0, c1, c2, c3 = _row(table, (rough >> 15) & 0xFFF0)
    s = tl.umulhi(c3, t)
    s = tl.umulhi(c2 - s, t)
    s = tl.umulhi(c1 - s, t)
    return (c0 + (s >> 7)).to(tl.int32, bitcast=True) * sign  # c0 is negated: −|z|


@triton.jit
def _words(c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9):
    """The four words of each block: `philox.blocks`.  k0 … k9 are the keys of the rounds."""
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k2)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k3)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k4)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k5)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k6)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k7)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k8)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k9)
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (c0.shape[0], 4))


@triton.jit
def _value(word, table, two, first, width, scale, shift, KIND: tl.constexpr, SHIFTED: tl.constexpr):
    """The value of each word, a float32: `Values`."""
    if KIND == "uniform":
        number = (word >> 8).to(tl.int32, bitcast=True) * 2 + (1 - (1 << 24))
    elif KIND == "between":
        number = _normal(first.to(tl.uint32) + tl.umulhi(word, width.to(tl.uint32)), table, two)
    else:
        number = _normal(word, table, two)
    value = number.to(tl.float32) * scale
    if SHIFTED:
        value += shift
    return value


@triton.jit
def _quotient(number, divisor, inverse, LONG: tl.constexpr):
    """How many rows of `divisor` blocks lie before a block; `inverse`: 2²⁰/divisor, rounded up."""
    quotient = (number >= divisor).to(tl.int32)  # LONG: a row is no shorter than a tile
    if not LONG:  # exact, as number < 2·BLOCKS and divisor < BLOCKS: their product is below 2²⁰
        quotient = (number * inverse) >> 20
    return quotient


_SCALARS = (
    "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "high", "two", "start",
    "count", "tiles", "first", "width", "scale", "shift",
)  # fmt: skip


# Without the types of the annotations, and with special code for 1 and for multiples of 16, each
# size of a number would be compiled anew.
@triton.jit(do_not_specialize=(*_SCALARS, "skipped"))
def draw(
    out,
    table,
    k0: tl.uint64,
    k1: tl.uint64,
    k2: tl.uint64,
    k3: tl.uint64,
    k4: tl.uint64,
    k5: tl.uint64,
    k6: tl.uint64,
    k7: tl.uint64,
    k8: tl.uint64,
    k9: tl.uint64,
    high: tl.uint64,
    two: tl.int32,
    start: tl.uint64,
    count: tl.int64,
    tiles: tl.int32,
    first: tl.uint32,
    width: tl.uint32,
    scale: tl.float32,
    shift: tl.float32,
    skipped: tl.int32,
    KIND: tl.constexpr,
    SHIFTED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Write `count` values, the words of which follow one another.

    A program draws `tiles` tiles of BLOCKS blocks in a loop: long code without a loop is fetched
    more slowly.  It begins at a multiple of what it draws, which is a power of 2: so the upper half
    of the number of a block is one for all.  ALIGNED: a whole block is first, and one is last.
    """
    before = tl.program_id(0).to(tl.int64) * tiles * BLOCKS - skipped  # blocks
    block = (start.to(tl.uint64) >> 2) + before.to(tl.uint64)
    c0 = block.to(tl.uint32) + tl.arange(0, BLOCKS).to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = high.to(tl.uint32)
    c3 = (high.to(tl.uint64) >> 32).to(tl.uint32)
    near = tl.arange(0, BLOCKS)
    at = near[:, None] * 4 + tl.arange(0, 4)[None, :]
    column = before * 4
    if not ALIGNED:
        column -= (start.to(tl.uint64) & 3).to(tl.int64)
    out += column
    if column >= 0 and column + 4 * tiles * BLOCKS <= count:
        for _ in range(tiles):
            word = _words(c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9)
            value = _value(word, table, two, first, width, scale, shift, KIND, SHIFTED)
            tl.store(out + at, value.to(out.dtype.element_ty))
            c0 += BLOCKS
            out += BLOCKS * 4
    else:
        for _ in range(tiles):
            word = _words(c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9)
            value = _value(word, table, two, first, width, scale, shift, KIND, SHIFTED)
            lower = tl.maximum(-column, 0).to(tl.int32)
            upper = tl.minimum(count - column, BLOCKS * 4).to(tl.int32)
            there = near[:, None] * 4 if ALIGNED else at
            mask = (there >= lower) & (there < upper)
            tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
            c0 += BLOCKS
            out += BLOCKS * 4
            column += BLOCKS * 4


@triton.jit(do_not_specialize=(*_SCALARS, "stride", "repeats", "per_row", "inverse"))
def draw_rows(
    out,
    table,
    k0: tl.uint64,
    k1: tl.uint64,
    k2: tl.uint64,
    k3: tl.uint64,
    k4: tl.uint64,
    k5: tl.uint64,
    k6: tl.uint64,
    k7: tl.uint64,
    k8: tl.uint64,
    k9: tl.uint64,
    high: tl.uint64,
    two: tl.int32,
    start: tl.uint64,
    count: tl.int64,
    tiles: tl.int32,
    first: tl.uint32,
    width: tl.uint32,
    scale: tl.float32,
    shift: tl.float32,
    stride: tl.uint64,
    repeats: tl.int64,
    per_row: tl.int64,
    inverse: tl.int32,
    KIND: tl.constexpr,
    SHIFTED: tl.constexpr,
    ALIGNED: tl.constexpr,
    LONG: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Write `repeats` rows of `count` values each, whose words begin `stride` after one another.

    A row is `per_row` < 2³⁰ blocks.  ALIGNED: all rows begin with a whole block and end with one.
    """
    c2 = high.to(tl.uint32)
    c3 = (high.to(tl.uint64) >> 32).to(tl.uint32)
    near = tl.arange(0, BLOCKS)
    lanes = tl.arange(0, 4)[None, :]
    before = tl.program_id(0).to(tl.int64) * tiles * BLOCKS
    row0 = before // per_row  # of a tile
    block0 = (before - row0 * per_row).to(tl.int32)
    for _ in range(tiles):
        block = block0 + near
        further = _quotient(block, per_row.to(tl.int32), inverse, LONG)
        row = row0 + further
        block -= further * per_row.to(tl.int32)
        begin = start.to(tl.uint64) + row.to(tl.uint64) * stride.to(tl.uint64)
        number = (begin >> 2) + block.to(tl.uint64)
        c0 = number.to(tl.uint32)
        c1 = (number >> 32).to(tl.uint32)
        word = _words(c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9)
        value = _value(word, table, two, first, width, scale, shift, KIND, SHIFTED)
        column = block.to(tl.int64) * 4
        if ALIGNED:
            at = tl.multiple_of(row * count + column, 4)
            mask = (row < repeats)[:, None]
        else:
            column -= (begin & 3).to(tl.int64)
            at = row * count + column
            columns = column[:, None] + lanes
            mask = (row < repeats)[:, None] & (columns >= 0) & (columns < count)
        tl.store(out + (at[:, None] + lanes), value.to(out.dtype.element_ty), mask=mask)
        block0 += BLOCKS
        further0 = _quotient(block0, per_row.to(tl.int32), inverse, LONG)
        row0 += further0
        block0 -= further0 * per_row.to(tl.int32)


@triton.jit
def numbers(words, out, table, two, BLOCK: tl.constexpr):
    """Write z·2²⁸ of each of a multiple of BLOCK words: for the check of the whole table."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + at).to(tl.uint32, bitcast=True)
    tl.store(out + at, _normal(word, table, two))
