"""Where results go: the terminal, stdout as JSON, or files that are never half written."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console, RenderableType

from fanin.errors import ArgumentError

__all__ = ["STDOUT", "Out", "replacing", "require_writable", "show", "write_json", "write_text"]

STDOUT = "-"


class Out(Console):
    """The console on stdout; a reader who leaves early does not change the exit status."""

    def on_broken_pipe(self) -> None:
        """Write the rest nowhere."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(renderable: RenderableType) -> None:
    """Print on stdout, in the width of the terminal (100 columns where there is none)."""
    console = Out()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100
    console.print(renderable)


def write_json(text: str, place: str) -> None:
    """Write a JSON document to a file, or to stdout for ``-``; always in UTF-8.

    Raises:
        ArgumentError: the file cannot be written.
    """
    write_text("--json", f"{text}\n", place)


def write_text(option: str, text: str, place: str) -> None:
    """Write a text to a file, or to stdout for ``-``; always in UTF-8.

    Raises:
        ArgumentError: the file cannot be written.
    """
    if place == STDOUT:
        click.echo(text.encode(), nl=False)
        return
    with replacing(option, place) as path:
        path.write_bytes(text.encode())


def require_writable(option: str, place: str | None) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        ArgumentError: ``place`` is a folder, or a file in it cannot be made.
    """
    if place is None or place == STDOUT:
        return
    target = Path(place).resolve()
    if target.is_dir():
        raise ArgumentError(f"{option} {place}: cannot be written: it is a folder")
    if target.exists() and not target.is_file():
        return
    probe = _beside(target)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ArgumentError(f"{option} {place}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def replacing(option: str, place: str) -> Iterator[Path]:
    """Give a path to write to, which then takes the place of ``place`` in one step.

    What is there stays as it was when the writing fails.  A device or pipe is written directly.

    Raises:
        ArgumentError: the file cannot be written.
    """
    target = Path(place).resolve()  # a symbolic link stays one
    direct = target.exists() and not target.is_file()
    path = target if direct else _beside(target)
    try:
        yield path
        if not direct:
            if target.exists():
                shutil.copymode(target, path)
            path.replace(target)
    except OSError as error:
        raise ArgumentError(f"{option} {place}: cannot be written: {error.strerror}") from error
    finally:
        if not direct:
            path.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """Return a name for a temporary file in the same folder, so that a rename suffices."""
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")
