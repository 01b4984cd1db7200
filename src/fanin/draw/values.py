"""Elements of a stream as values: what is drawn, by compiled code or by the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fanin.draw import native, philox
from fanin.draw.gaussian import UNIT, fixed_point
from fanin.draw.philox import Key, integer, pieces
from fanin.draw.truncation import Interval
from fanin.window import Rows

__all__ = ["Values", "draw", "normal", "words"]


_NONE = np.float32(0)


@dataclass(frozen=True)
class Values:
    """The map from words to values: number × scale + shift, in float32.

    Attributes:
        kind: of the number: "normal" (z·2²⁸), "uniform" (an odd integer below 2²⁴) or "between"
            (z·2²⁸ of the words between two bounds).
        scale: what the number is multiplied with.
        shift: what is added where it is not 0.
        bounds: the words between the bounds.
    """

    kind: str
    scale: np.float32
    shift: np.float32 = _NONE
    bounds: Interval | None = None

    @property
    def shifted(self) -> bool:
        """Whether anything is added: a scale of zero leaves −0, and adding zero makes it +0."""
        return bool(self.shift != 0 or self.scale == 0)

    def of(self, words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The values of these words: the reference."""
        drawn = self._numbers(words).astype(np.float32)
        drawn *= self.scale
        if self.shifted:
            drawn += self.shift
        return drawn

    def _numbers(self, words: NDArray[np.uint32]) -> NDArray[np.int32]:
        if self.kind == "uniform":
            odd = (words >> 8).view(np.int32)
            odd *= 2
            odd += 1 - 2**24
            return odd
        if self.bounds is not None:
            place = words.astype(np.uint64)
            place *= self.bounds.width
            place >>= 32
            place += self.bounds.first
            words = place.astype(np.uint32)
        return fixed_point(words)

    def put(
        self, queue: native.Queue, address: int, form: str, key: Key, rows: Rows, owner: object
    ) -> None:
        """Ask for the values of some words, to be written to memory and rounded once."""
        bounds = self.bounds
        if bounds is not None and bounds.width == 2**32:  # all words, in their order
            bounds = None
        queue.put(
            address,
            key,
            rows,
            "normal" if self.kind == "between" and bounds is None else self.kind,
            form,
            scale=float(self.scale),
            shift=float(self.shift),
            shifted=self.shifted,
            first=0 if bounds is None else bounds.first,
            width=0 if bounds is None else bounds.width,
            owner=owner,
        )


def draw(values: Values, key: Key, start: int, count: int) -> NDArray[np.float32]:
    """Values of the words `start` … `start + count − 1` of a stream, float32 [count]."""
    drawn = np.empty(count, np.float32)
    if native.backend().compiled:
        queue = native.Queue()
        values.put(queue, drawn.ctypes.data, "float32", key, Rows(start, count), drawn)
        queue.run()
        return drawn
    for offset, size in pieces(count):
        drawn[offset : offset + size] = values.of(philox.words(key, start + offset, size))
    return drawn


def words(key: Key, start: int, count: int) -> NDArray[np.uint32]:
    """Words `start` … `start + count − 1` of a stream, uint32 [count].

    Raises ArgumentError for a range outside 0 … 2⁶⁴ − 1.

    >>> from fanin.draw import key
    >>> all(words(key(0, "a"), 0, 6)[2:] == words(key(0, "a"), 2, 4))
    True

    Source: `fanin.draw.philox`.
    """
    if not native.backend().compiled:
        return philox.words(key, start, count)
    start, count = _range(start, count)
    drawn = np.empty(count, np.uint32)
    queue = native.Queue()
    queue.put(drawn.ctypes.data, key, Rows(start, count), "words", "integer", owner=drawn)
    queue.run()
    return drawn


def normal(key: Key, count: int, start: int = 0) -> NDArray[np.float32]:
    """Standard normals `start` … `start + count − 1` of a stream, float32 [count].

    The values that `normal_` writes to a float32 tensor.  Raises ArgumentError for a range outside
    0 … 2⁶⁴ − 1.

    >>> from fanin.draw import key
    >>> normal(key(0, "a"), 3)
    array([ 0.39319146, -0.3771951 ,  1.2235694 ], dtype=float32)
    """
    start, count = _range(start, count)
    return draw(Values("normal", np.float32(UNIT)), key, start, count)


def _range(start: object, count: object) -> tuple[int, int]:
    first = integer("start", start, 0, 2**64)
    return first, integer("count", count, 0, 2**64 - first + 1)
