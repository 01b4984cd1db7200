"""Words of the draw on standard output, for batteries of statistical tests.

    python benchmarks/draw_statistics.py elements | RNG_test stdin32 -tlmax 64GB
    python benchmarks/draw_statistics.py names | RNG_test stdin32 -tlmax 1GB
    python benchmarks/draw_statistics.py elements | ./draw_crush small

RNG_test is PractRand's (https://pracrand.sourceforge.net), draw_crush.c beside this file calls
TestU01.  One order of the words for each way in which weights lie beside one another:

    elements     words 0, 1, 2, … of one name: one tensor
    interleaved  word 0 of 64 names, then word 1 of each of them, …: tensors beside one another
    names        word 0 of layer.0.weight, of layer.1.weight, …: the first entry of every tensor
    diagonal     word i of name i
    seeds        word 0 of one name under the seeds 0, 1, 2, …

The last three make a key for every word, and so are slow: about a million words a second.
``--bytes`` ends the stream; else it goes on until nobody reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fanin.draw import key, words

Words = NDArray[np.uint32]
Hash = hashlib.blake2b

BLOCK = 1 << 20  # words that are written at once
FEW = 1 << 16  # words that need a key each
BESIDE = 64  # names of which words are taken in turn


def elements(seed: int) -> Iterator[Words]:
    own = key(seed, "layer.0.weight")
    first = 0
    while True:
        yield words(own, first, BLOCK)
        first += BLOCK


def interleaved(seed: int) -> Iterator[Words]:
    keys = [key(seed, f"layer.{i}.weight") for i in range(BESIDE)]
    first, count = 0, BLOCK // BESIDE
    while True:
        yield np.stack([words(own, first, count) for own in keys], axis=1).reshape(-1)
        first += count


def names(seed: int) -> Iterator[Words]:
    start = _started(seed)
    for first in _firsts():
        yield word_of_each(b"".join(_named(start, i) for i in range(first, first + FEW)))


def diagonal(seed: int) -> Iterator[Words]:
    start = _started(seed)
    for first in _firsts():
        index = np.arange(first, first + FEW, dtype=np.uint64)
        yield word_of_each(b"".join(_named(start, i) for i in range(first, first + FEW)), index)


def seeds(seed: int) -> Iterator[Words]:
    for first in _firsts():
        own = range(seed + first, seed + first + FEW)
        yield word_of_each(b"".join(_named(_started(s), 0) for s in own))


def _firsts() -> Iterator[int]:
    first = 0
    while True:
        yield first
        first += FEW


def _started(seed: int) -> Hash:
    """The hash of a key before it has seen a name, as in `fanin.draw.philox`, but quicker."""
    return hashlib.blake2b(digest_size=16, key=seed.to_bytes(8, "little"), person=b"normal/1")


def _named(started: Hash, number: int) -> bytes:
    name = b"layer.%d.weight" % number
    own = started.copy()
    own.update(len(name).to_bytes(8, "little") + name)
    return own.digest()


def word_of_each(digests: bytes, index: NDArray[np.uint64] | None = None) -> Words:
    """Word `index[i]` of the stream of digest i: Philox4x32-10 with a key for every block.

    The package draws many words of one key; here are many keys, of one word each.
    """
    low, high = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    at = np.zeros(len(low), np.uint64) if index is None else index
    half, lower = np.uint64(32), np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = at >> np.uint64(2) & lower, at >> np.uint64(34), high & lower, high >> half
    k0, k1 = low & lower, low >> half
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = p1 >> half ^ c1 ^ k0, p0 >> half ^ c3 ^ k1
        c1, c3 = p1 & lower, p0 & lower
        k0, k1 = k0 + np.uint64(0x9E3779B9) & lower, k1 + np.uint64(0xBB67AE85) & lower
    block = np.stack([c0, c1, c2, c3], axis=1)
    lane = (at & np.uint64(3)).astype(np.intp)
    drawn: Words = block[np.arange(len(low)), lane].astype(np.uint32)
    return drawn


ORDERS = {
    "elements": elements,
    "interleaved": interleaved,
    "names": names,
    "diagonal": diagonal,
    "seeds": seeds,
}


def agrees(seed: int) -> bool:
    """Whether the words of many keys are those that the package draws."""
    index = np.array([0, 1, 2, 3, 4, 5, 2**34 - 1, 2**34, 2**64 - 1], np.uint64)
    digests = b"".join(_named(_started(seed), i) for i in range(len(index)))
    keys = [key(seed, f"layer.{i}.weight") for i in range(len(index))]
    own = [words(one, int(at), 1)[0] for one, at in zip(keys, index, strict=True)]
    return bool(word_of_each(digests, index).tolist() == own)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("order", choices=ORDERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=0, help="how many to write; 0: no end")
    options = parser.parse_args()
    if not agrees(options.seed):
        sys.exit("the words of many keys are not those of the package")
    left = options.bytes
    try:
        for some in ORDERS[options.order](options.seed):
            data = some.tobytes()
            sys.stdout.buffer.write(data[:left] if options.bytes else data)
            left -= len(data)
            if options.bytes and left <= 0:
                break
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        sys.stderr.close()  # the reader has seen enough
    return 0


if __name__ == "__main__":
    sys.exit(main())
