"""What is changed for the whole process while blocks last, in whatever thread they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Lasting"]


class Lasting:
    """A change that the first block makes and the last one that is left takes back.

    Blocks of several threads overlap as they like, so none can put back what it found.

    Args:
        begin: makes the change.
        end: takes it back.

    >>> told = []
    >>> change = Lasting(lambda: told.append("begin"), lambda: told.append("end"))
    >>> with change.block(), change.block():
    ...     pass
    >>> told
    ['begin', 'end']
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.blocks = 0  # that last
        self._begin, self._end = begin, end

    @contextmanager
    def block(self) -> Iterator[None]:
        """A block for which the change lasts."""
        with self.lock:
            if not self.blocks:
                self._begin()
            self.blocks += 1
        try:
            yield
        finally:
            with self.lock:
                self.blocks -= 1
                if not self.blocks:
                    self._end()
