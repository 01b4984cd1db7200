"""Where results go: the terminal, stdout as JSON, or files that are never half written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import click
from rich.console import Console, RenderableType

from fanin import files
from fanin.errors import ArgumentError

__all__ = [
    "STDOUT",
    "Out",
    "Result",
    "deliver",
    "destination",
    "drop_stdout",
    "replacing",
    "require_writable",
    "show",
    "write_json",
    "write_text",
]

STDOUT = "-"
_STDOUT = (STDOUT, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def destination(value: str) -> str:
    """The type of an option for a file or stdout, which has several names.

    Opened by another name stdout would be written from its start again.
    """
    return STDOUT if value in _STDOUT else value


class Out(Console):
    """The console on stdout; a reader who leaves early does not change the exit status."""

    def on_broken_pipe(self) -> None:
        """Write the rest nowhere."""
        self.quiet = True
        drop_stdout()


def drop_stdout() -> None:
    """Let what is still to be written to a closed stdout go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(renderable: RenderableType) -> None:
    """Print on stdout, in the width of the terminal (100 columns where there is none)."""
    console = Out()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100
    console.print(renderable)


class Result(Protocol):
    """What can be written as JSON and as a page."""

    def to_json(self) -> str:
        """The JSON text."""
        ...

    def to_html(self, path: Path) -> Path:
        """Write the page."""
        ...


def deliver(
    result: Result,
    shown: RenderableType,
    json_to: str | None,
    html_to: str | None,
    *,
    quiet: bool,
) -> None:
    """Write the files that were asked for, and show the text where stdout is left for it.

    Raises:
        ArgumentError: a file cannot be written.
    """
    if html_to is not None:
        with replacing("--html", html_to) as path:
            result.to_html(path)
    if json_to is not None:
        write_json(result.to_json(), json_to)
    if not quiet and json_to != STDOUT:
        show(shown)


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
        try:
            click.echo(text.encode(), nl=False)
        except BrokenPipeError:
            drop_stdout()
        return
    with replacing(option, place) as path:
        path.write_bytes(text.encode())


def require_writable(option: str, place: str | None, *, file: bool = False) -> None:
    """Find out before the work whether its result can be written.

    Args:
        option: that names the place.
        place: the file, or what stands for one.
        file: whether a pipe or device will not do, since the writer replaces it or comes back to
            its beginning.

    Raises:
        ArgumentError: ``place`` is a folder, or a file in it cannot be made, or is no file.
    """
    if place is None or place == STDOUT:
        return
    if Path(place).is_dir():
        raise ArgumentError(f"{option} {place}: cannot be written: it is a folder")
    if files.is_stream(place):
        if file:
            raise ArgumentError(f"{option} {place}: a checkpoint needs a file; this is none")
        return
    probe = files.beside(Path(place).resolve())
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ArgumentError(f"{option} {place}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def replacing(option: str, place: str) -> Iterator[Path]:
    """Give a path to write to, which then takes the place of ``place`` in one step.

    What is there stays as it was when the writing fails.  A device or pipe is written directly; a
    reader of it who leaves early is no failure.

    Raises:
        ArgumentError: the file cannot be written.
    """
    try:
        with files.replacing(place) as path:
            yield path
    except (OSError, ArgumentError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # a page names its path
        if isinstance(cause, BrokenPipeError):
            return
        if not isinstance(cause, OSError):
            raise
        raise ArgumentError(f"{option} {place}: cannot be written: {cause.strerror}") from error
