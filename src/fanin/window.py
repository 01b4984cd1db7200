"""Parts of a tensor: of each dimension the runs of indices that a process, or a piece, holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Rows", "Runs", "Window", "chunk"]

#: Consecutive runs (start, stop) of indices, ascending.
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rows:
    """Equal runs of consecutive elements, at equal distances.

    Attributes:
        start: row-major index of the first element in the whole tensor.
        count: elements of one run.
        repeats: how many runs.
        stride: from the start of one run to that of the next, in the whole tensor.
        place: row-major index of the first element in the part.
        step: from the start of one run to that of the next, in the part.
    """

    start: int
    count: int
    repeats: int = 1
    stride: int = 0
    place: int = 0
    step: int = 0

    def adjoining(self) -> Iterator[Rows]:
        """The same as runs that follow one another in the part.

        >>> list(Rows(0, 2, repeats=2, stride=9, place=0, step=5).adjoining())
        [Rows(start=0, count=2, repeats=1, stride=0, place=0, step=0),
         Rows(start=9, count=2, repeats=1, stride=0, place=5, step=0)]
        """
        if self.repeats == 1 or self.step == self.count:
            yield self
            return
        for k in range(self.repeats):
            yield Rows(self.start + k * self.stride, self.count, place=self.place + k * self.step)


@dataclass(frozen=True)
class Window:
    """A part of a tensor: the product of some indices of each dimension.

    Attributes:
        shape: of the whole, logical tensor.
        runs: for each dimension the runs of indices that the part holds, ascending.

    >>> part = Window.box((4, 6), (2, 0), (2, 3))
    >>> part.sizes, list(part.rows())
    ((2, 3), [Rows(start=12, count=3, repeats=2, stride=6, place=0, step=3)])
    """

    shape: tuple[int, ...]
    runs: tuple[Runs, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Window:
        """All of a tensor."""
        return cls.box(shape, (0,) * len(shape), shape)

    @classmethod
    def box(cls, shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> Window:
        """One range of each dimension."""
        runs = (((a, a + n),) if n else () for a, n in zip(starts, sizes, strict=True))
        return cls(tuple(shape), tuple(runs))

    @classmethod
    def pieces(cls, shape: Sequence[int], most: int) -> Iterator[Window]:
        """All of a tensor in runs of at most `most` consecutive elements, in order.

        One dimension is cut; those before it are taken one index at a time.

        >>> [part.runs for part in Window.pieces((2, 3), 2)]
        [(((0, 1),), ((0, 2),)), (((0, 1),), ((2, 3),)),
         (((1, 2),), ((0, 2),)), (((1, 2),), ((2, 3),))]
        """
        if math.prod(shape) <= most:
            yield cls.whole(shape)
            return
        cut = next(d for d in range(len(shape)) if math.prod(shape[d + 1 :]) <= most)
        rest = tuple(shape[cut + 1 :])
        step = most // math.prod(rest)
        for lead in itertools.product(*map(range, shape[:cut])):
            for first in range(0, shape[cut], step):
                sizes = (*(1 for _ in lead), min(step, shape[cut] - first), *rest)
                yield cls.box(shape, (*lead, first, *(0 for _ in rest)), sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of each dimension of the part."""
        return tuple(sum(b - a for a, b in runs) for runs in self.runs)

    @property
    def count(self) -> int:
        """Number of elements of the part."""
        return math.prod(self.sizes)

    @property
    def is_whole(self) -> bool:
        """Whether the part is the tensor."""
        return self.sizes == self.shape

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where a part that is one range of each dimension stands in the tensor."""
        assert all(len(runs) < 2 for runs in self.runs)
        return tuple(slice(*runs[0]) if runs else slice(0) for runs in self.runs)

    def indices(self, dim: int) -> list[int]:
        """The indices of a dimension, in order."""
        return [i for a, b in self.runs[dim] for i in range(a, b)]

    def narrow(self, dim: int, first: int, count: int) -> Window:
        """`count` of the part's own indices of a dimension, from its `first` on.

        >>> Window.box((8,), (4,), (4,)).narrow(0, 1, 2).runs
        (((5, 7),),)
        """
        return self.with_runs(dim, _slice(self.runs[dim], first, first + count))

    def with_runs(self, dim: int, runs: Runs) -> Window:
        """The part that has other indices of one dimension.

        >>> Window.box((8, 2), (4, 0), (4, 2)).with_runs(0, ((0, 1), (6, 8))).sizes
        (3, 2)
        """
        return Window(self.shape, (*self.runs[:dim], runs, *self.runs[dim + 1 :]))

    def within(
        self, starts: Sequence[int], sizes: Sequence[int]
    ) -> tuple[Window, tuple[slice, ...]]:
        """What the part has of a box: as a part of that box, and where it stands in the part.

        >>> Window.box((8, 3), (2, 0), (4, 3)).within((4, 0), (4, 3))
        (Window(shape=(4, 3), runs=(((0, 2),), ((0, 3),))), (slice(2, 4, None), slice(0, 3, None)))
        """
        found, slices = [], []
        for runs, start, size in zip(self.runs, starts, sizes, strict=True):
            stop = start + size
            before = sum(max(0, min(b, start) - a) for a, b in runs)
            both = [(max(a, start), min(b, stop)) for a, b in runs]
            inside = tuple((a - start, b - start) for a, b in both if a < b)
            found.append(inside)
            slices.append(slice(before, before + sum(b - a for a, b in inside)))
        return Window(tuple(sizes), tuple(found)), tuple(slices)

    def rows(self) -> Iterator[Rows]:
        """The part as runs of consecutive elements, in its own row-major order."""
        sizes, shape = self.sizes, self.shape
        if 0 in sizes:
            return
        cut = [d for d, (n, size) in enumerate(zip(shape, sizes, strict=True)) if n != size]
        if not cut:
            yield Rows(0, math.prod(shape))
            return
        inner, outer = cut[-1], cut[-2] if len(cut) > 1 else -1
        tail = math.prod(shape[inner + 1 :])
        stride, step = shape[inner] * tail, sizes[inner] * tail
        between = math.prod(shape[outer + 1 : inner])  # rows of one index of `outer`
        for start, place, repeats in self._leading(outer, between):
            at = 0
            for first, stop in self.runs[inner]:
                count = (stop - first) * tail
                begin, to = start * stride + first * tail, place * step + at
                if repeats == 1:
                    yield Rows(begin, count, place=to)
                else:
                    yield Rows(begin, count, repeats, stride, to, step)
                at += count

    def _leading(self, outer: int, between: int) -> Iterator[tuple[int, int, int]]:
        """(first row of the whole, first row of the part, rows) of all before the inner cut."""
        if outer < 0:
            yield 0, 0, between
            return
        place = 0
        for lead in itertools.product(*(self.indices(d) for d in range(outer))):
            row = 0
            for index, size in zip(lead, self.shape, strict=False):
                row = row * size + index
            for first, stop in self.runs[outer]:
                repeats = (stop - first) * between
                yield (row * self.shape[outer] + first) * between, place, repeats
                place += repeats


def chunk(runs: Runs, chunks: int, index: int, factor: int = 1) -> Runs:
    """The indices that are left to one of several processes, cut as `torch.chunk` cuts.

    Args:
        runs: indices before the cut.
        chunks: number of processes.
        index: which of them.
        factor: parts that were cut before, of each of which every process has its share
            (`_StridedShard`); 1 for `Shard`.

    >>> chunk(((0, 10),), 4, 3), chunk(((0, 8),), 2, 0, factor=2)
    (((9, 10),), ((0, 2), (4, 6)))
    """
    found: list[tuple[int, int]] = []
    for part in (_chunk(runs, factor, k) for k in range(factor)):
        found += _chunk(part, chunks, index)
    return _joined(found)


def _chunk(runs: Runs, chunks: int, index: int) -> Runs:
    count = sum(b - a for a, b in runs)
    size = -(-count // chunks)
    return _slice(runs, min(index * size, count), min((index + 1) * size, count))


def _slice(runs: Runs, first: int, stop: int) -> Runs:
    """Those of the indices from the `first`-th on, before the `stop`-th."""
    found, at = [], 0
    for a, b in runs:
        low, high = a + max(first - at, 0), a + min(stop - at, b - a)
        if low < high:
            found.append((low, high))
        at += b - a
    return tuple(found)


def _joined(runs: Sequence[tuple[int, int]]) -> Runs:
    found: list[tuple[int, int]] = []
    for a, b in runs:
        if found and found[-1][1] == a:
            found[-1] = (found[-1][0], b)
        else:
            found.append((a, b))
    return tuple(found)
