"""Files as pieces of bounded size, each drawn, written and read by itself."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fanin.fill import assign_, by_parts
from fanin.streaming.entries import Entry
from fanin.streaming.shards import Shard
from fanin.window import Window

__all__ = ["PIECE", "Piece", "Worker", "digest", "pieces", "rehearse"]

#: Bytes drawn at once: enough that a call costs nothing beside them, few enough for the cache.
PIECE = 4 << 20
_SIDE = 1024  # words in a row of the square whose rows and columns are summed


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of bytes of a file.

    Attributes:
        number: among the pieces of its file.
        offset: of its first byte.
        entry: whose values it holds; None for the header.
        window: which of them.
        alone: whether it takes more memory than its own bytes, so that only one is made at a time.
        header: its bytes, where it is the header.
    """

    number: int
    offset: int
    entry: Entry | None
    window: Window
    alone: bool = False
    header: bytes = b""

    @property
    def size(self) -> int:
        """Number of bytes."""
        if self.entry is None:
            return len(self.header)
        return self.window.count * self.entry.dtype.itemsize


def pieces(shard: Shard) -> Iterator[Piece]:
    """A file from its first byte to its last."""
    yield Piece(0, 0, None, Window.whole(()), header=shard.header)
    number = itertools.count(1)
    for entry, offset in shard.places():
        alone = _alone(entry)
        for window in _windows(entry, alone):
            yield Piece(next(number), offset, entry, window, alone)
            offset += window.count * entry.dtype.itemsize


def _alone(entry: Entry) -> bool:
    """Whether the values of a part need those of the rest."""
    assignment = entry.assignment
    return assignment is not None and (assignment.keeps_values or not by_parts(assignment))


def _windows(entry: Entry, alone: bool) -> Iterator[Window]:
    """Parts of a tensor that follow one another in its memory."""
    shape = entry.shape
    if not math.prod(shape):
        return
    if alone:
        yield Window.whole(shape)
        return
    yield from Window.pieces(shape, max(1, PIECE // entry.dtype.itemsize))


def rehearse(entry: Entry, seed: int) -> None:
    """Draw one element, so that what cannot be drawn is known before anything is written.

    Raises:
        ArgumentError: the assignment, or its values in this dtype, are not possible.
    """
    if entry.assignment is None or _alone(entry) or not math.prod(entry.shape):
        return
    ones = (1,) * len(entry.shape)
    window = Window.box(entry.shape, (0,) * len(ones), ones)
    tensor = torch.empty(ones, dtype=entry.dtype, device="cpu")
    assign_(tensor, entry.assignment, seed, entry.parameter, window)


class Worker(threading.local):
    """Draws pieces, writes them and reads them again; every thread in memory of its own."""

    _alone = threading.Lock()

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._buffer = torch.empty(PIECE, dtype=torch.uint8, device="cpu")

    def write(self, path: Path, piece: Piece) -> bytes:
        """Write a piece into a file that is there; returns the sum of its bytes."""
        if not piece.alone:
            return self._write(path, piece)
        with Worker._alone:
            return self._write(path, piece)

    def read(self, path: Path, piece: Piece) -> bytes:
        """The sum of a piece as it stands in a file; b"" where the file ends before it."""
        total = hashlib.sha256()
        buffer = self._buffer.numpy()
        with path.open("rb", buffering=0) as file:
            file.seek(piece.offset)
            for size in _sizes(piece.size):
                part = buffer[:size]
                at = 0
                while at < size:
                    count = file.readinto(part.data[at:])
                    if not count:
                        return b""
                    at += count
                total.update(_sums(part))
        return total.digest()

    def _write(self, path: Path, piece: Piece) -> bytes:
        data = self._bytes(piece)
        total, at = hashlib.sha256(), 0
        with path.open("r+b", buffering=0) as file:
            file.seek(piece.offset)
            for size in _sizes(len(data)):
                part = data[at : at + size]
                view = part.data
                while view:
                    view = view[file.write(view) :]
                total.update(_sums(part))
                at += size
        return total.digest()

    def _bytes(self, piece: Piece) -> NDArray[np.uint8]:
        """The values of a piece as they stand in the file."""
        entry = piece.entry
        if entry is None:
            return np.frombuffer(piece.header, np.uint8)
        buffer = self._buffer
        if piece.size > len(buffer):
            buffer = torch.empty(piece.size, dtype=torch.uint8, device="cpu")
        flat = buffer[: piece.size]
        self._fill(flat.view(entry.dtype).view(piece.window.sizes), entry, piece.window)
        values: NDArray[np.uint8] = flat.numpy()
        return values

    def _fill(self, tensor: Tensor, entry: Entry, window: Window) -> None:
        assignment, given = entry.assignment, entry.given
        with torch.no_grad():
            if given is not None and (assignment is None or assignment.keeps_values):
                tensor.copy_(given.detach()[window.slices])
            if assignment is not None:
                assign_(tensor, assignment, self._seed, entry.parameter, window)


def digest(sums: Sequence[bytes]) -> str:
    """One sum of a file from those of its pieces."""
    return hashlib.sha256(b"".join(sums)).hexdigest()


def _sizes(count: int) -> Iterator[int]:
    """A number of bytes in parts of at most one piece."""
    for at in range(0, count, PIECE):
        yield min(PIECE, count - at)


def _sums(data: NDArray[np.uint8]) -> bytes:
    """Sums along the rows and the columns of the bytes as a table of 64-bit words, and the rest.

    A cryptographic sum of everything would take longer than drawing it.  These find what a disk or
    an interrupted write does: any single word, any zeroed or exchanged block.
    """
    whole = data.size // (8 * _SIDE) * (8 * _SIDE)
    table = data[:whole].view(np.uint64).reshape(-1, _SIDE)
    found = hashlib.sha256(data.size.to_bytes(8, "little"))
    for axis in (0, 1):
        found.update(table.sum(axis, dtype=np.uint64).tobytes())
    found.update(data[whole:].tobytes())
    return found.digest()
