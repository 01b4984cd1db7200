"""Files that are never half written: a new one takes the place of the old one when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["beside", "is_stream", "replacing"]


@contextlib.contextmanager
def replacing(place: str | Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of ``place`` in one step when the block ends.

    What is there stays as it was when the block raises; its permissions stay in any case.  A device
    or a pipe is written directly.

    Raises:
        OSError: the file cannot be replaced.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     place = Path(folder) / "report.txt"
    ...     with replacing(place) as path:
    ...         _ = path.write_text("sound", encoding="utf-8")
    ...     place.read_text(encoding="utf-8")
    'sound'
    """
    if is_stream(place):
        yield Path(place)
        return
    target = Path(place).resolve()  # a symbolic link stays one
    path = beside(target)
    try:
        yield path
        if target.exists():
            shutil.copymode(target, path)
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)


def is_stream(place: str | Path) -> bool:
    """Whether it is a device or a pipe; `resolve` gives names such as /dev/fd/63 no real path."""
    return Path(place).exists() and not Path(place).is_file()


def beside(target: Path) -> Path:
    """Return a name for a temporary file in the same folder, so that a rename suffices."""
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")
