"""Keys and words: Philox4x32-10, addressed by (key, index).

**Key.**  A stream is named by a seed, a parameter's name, a stream ("normal") and a version:

    message  length of the name in bytes, 8 bytes little endian; then the name in UTF-8, as given
    key      the seed, 8 bytes little endian
    person   the stream, "/" and the version in ASCII, filled with zero bytes to 16: b"normal/1"
    digest   blake2b of these, 16 bytes: low = bytes 0–7, high = bytes 8–15, both little endian

**Words.**  Word `index` (0 ≤ index < 2⁶⁴) of a stream is lane index mod 4 of the Philox block with
key words (low mod 2³², low >> 32) and counter words (block mod 2³², block >> 32, high mod 2³²,
high >> 32), block = index >> 2.  Two streams share words only where all 128 bits agree.

Sources: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as
1, 2, 3", SC 2011 (Philox); RFC 7693 (BLAKE2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fanin.errors import ArgumentError

__all__ = ["CHUNK", "Key", "blocks", "integer", "key", "pieces", "round_keys", "words"]

# Elements drawn at once: a dozen arrays of 8-byte words this long stay in a core's second cache;
# from 2^16 on the time of one element doubles.
CHUNK = 1 << 15
_PERSON = 16  # bytes that BLAKE2b keeps for the person
_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key words from round to round
_MASK = 0xFFFFFFFF
_LOWER, _HALF = np.uint64(_MASK), np.uint64(32)


@dataclass(frozen=True)
class Key:
    """The name of one stream of words: Philox's key, and the upper half of its counter.

    >>> key(0, "layer.weight")
    Key(low=12684049496310696259, high=2479384275062027937)
    """

    low: int
    high: int


def integer(argument: str, value: object, least: int, limit: int) -> int:
    """`value` as an int, least ≤ value < limit; else an ArgumentError that names `argument`.

    >>> integer("seed", np.int64(7), 0, 2**64)
    7
    """
    if (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and least <= value < limit
    ):
        return int(value)
    most = "2**64 - 1" if limit == 2**64 else limit - 1
    raise ArgumentError(f"{argument}: {value!r:.40}; an integer from {least} to {most} is needed")


def key(seed: int, name: str, stream: str = "normal", version: int = 1) -> Key:
    """The key of a parameter's stream; different arguments give unrelated words.

    `name` is taken as it is: no Unicode normalization, and tied parameters use one of their names.

    Raises ArgumentError for a seed outside 0 … 2⁶⁴ − 1, a name that is no text, or a stream that
    does not fit in 16 ASCII bytes with its version.

    >>> key(0, "a") == key(0, "a", stream="uniform")
    False

    Source: the module's docstring has the exact bytes.
    """
    seed = integer("seed", seed, 0, 2**64)
    version = integer("version", version, 1, 2**31)
    for argument, value in (("name", name), ("stream", stream)):
        if not isinstance(value, str):
            raise ArgumentError(f"{argument}: {value!r}; a str is needed")
    try:
        text = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"name: {name!r} cannot be written as UTF-8") from error
    person = f"{stream}/{version}"
    if not (stream and person.isascii() and len(person) <= _PERSON):
        raise ArgumentError(
            f"stream: {stream!r}; with the version ({person!r}) it has to fit in {_PERSON} "
            "ASCII characters"
        )
    digest = hashlib.blake2b(
        len(text).to_bytes(8, "little") + text,
        digest_size=16,
        key=seed.to_bytes(8, "little"),
        person=person.encode("ascii"),
    ).digest()
    return Key(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))


def words(key: Key, start: int, count: int) -> NDArray[np.uint32]:
    """Words `start` … `start + count − 1` of a stream, uint32 [count].

    Raises ArgumentError for a range outside 0 … 2⁶⁴ − 1.

    >>> all(words(key(0, "a"), 0, 6)[2:] == words(key(0, "a"), 2, 4))
    True

    Source: Salmon et al. 2011, section 4; counter and lane as in the module's docstring.
    """
    start = integer("start", start, 0, 2**64)
    count = integer("count", count, 0, 2**64 - start + 1)
    drawn = np.empty(count, np.uint32)
    for offset, size in pieces(count):
        first = start + offset
        lane = first % 4
        whole = blocks(key, first // 4, (lane + size + 3) // 4)
        drawn[offset : offset + size] = whole[lane : lane + size]
    return drawn


def pieces(count: int, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """(offset, length) of consecutive pieces of at most `size` elements.

    >>> list(pieces(10, 4))
    [(0, 4), (4, 4), (8, 2)]
    """
    return ((offset, min(size, count - offset)) for offset in range(0, count, size))


def round_keys(key: Key) -> tuple[int, ...]:
    """The two key words of each round, the first in the lower half of 64 bits.

    >>> [f"{pair:016x}" for pair in round_keys(Key(1, 0))[:2]]
    ['0000000000000001', 'bb67ae859e3779ba']

    Source: Salmon et al. 2011, section 4.3: a Weyl sequence.
    """
    k0, k1 = key.low & _MASK, key.low >> 32
    return tuple(
        (k0 + turn * _WEYL[0] & _MASK) + ((k1 + turn * _WEYL[1] & _MASK) << 32)
        for turn in range(_ROUNDS)
    )


def blocks(key: Key, first: int, count: int) -> NDArray[np.uint32]:
    """Philox blocks `first` … `first + count − 1` (< 2⁶⁴), uint32 [4 · count].

    >>> [f"{word:08x}" for word in blocks(Key(0, 0), 0, 1)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    Source: Salmon et al. 2011, section 4.3; this example is the first of Random123's known answers.
    """
    # Each of the four words stands in 64 bits: products are whole, their upper half is a shift.
    block = np.arange(count, dtype=np.uint64)
    block += np.uint64(first)
    c0, c1 = block & _LOWER, block >> _HALF
    c2 = np.full(count, key.high & _MASK, np.uint64)
    c3 = np.full(count, key.high >> 32, np.uint64)
    for round_key in round_keys(key):
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0 = p1 >> _HALF
        c0 ^= c1
        c0 ^= np.uint64(round_key & _MASK)
        c2 = p0 >> _HALF
        c2 ^= c3
        c2 ^= np.uint64(round_key >> 32)
        p1 &= _LOWER
        p0 &= _LOWER
        c1, c3 = p1, p0
    drawn = np.empty((count, 4), np.uint32)
    for lane, word in enumerate((c0, c1, c2, c3)):
        drawn[:, lane] = word
    return drawn.reshape(-1)
