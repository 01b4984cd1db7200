"""What is under way, on a terminal, once the work has taken a second."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

__all__ = ["ByteBar", "Progress", "ShareBar"]

PATIENCE = 1.0  # seconds of silence before the spinner appears


class Progress:
    """A spinner on stderr; nothing at all when stderr is not a terminal.

    It also is the callable that the work reports to:

        >>> with Progress() as progress:
        ...     progress("measuring")
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, patience: float = PATIENCE
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._status = self._console.status("starting")
        self._timer = threading.Timer(patience, self._status.start)
        self._timer.daemon = True

    def __call__(self, text: str) -> None:
        """Say what is under way."""
        self._status.update(escape(text))

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._quiet:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()
        self._status.stop()


class _Bar:
    """A bar on stderr; nothing at all when stderr is not a terminal."""

    def __init__(
        self,
        text: str,
        total: float | None,
        columns: tuple[ProgressColumn, ...],
        console: Console | None,
        *,
        quiet: bool,
        redirect: bool,
    ) -> None:
        console = console or Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
            redirect_stdout=redirect,
            redirect_stderr=redirect,
        )
        self._task = self._bars.add_task(escape(text), total=total)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._bars.disable:  # rich before 14.3 would end a line that was never begun
            self._bars.stop()


class ShareBar(_Bar):
    """What is under way and the share of the work that is done, on stderr if it is a terminal.

    It also is the callable that the work reports to:

        >>> with ShareBar() as bar:
        ...     bar("auto, rate 0.1: loss 0.31", 0.5)
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        columns = (TaskProgressColumn(),)
        super().__init__("starting", 1.0, columns, console, quiet=quiet, redirect=False)

    def __call__(self, text: str, done: float) -> None:
        """Say what is under way, and the share of it that is done (0 to 1)."""
        self._bars.update(self._task, description=escape(text), completed=done)


class ByteBar(_Bar):
    """Bytes, rate and time left on stderr; nothing at all when stderr is not a terminal.

    It is the callable that is told (bytes done, bytes in all), from any thread:

        >>> with ByteBar("writing") as bar:
        ...     bar(10, 100)
    """

    def __init__(self, text: str, console: Console | None = None, *, quiet: bool = False) -> None:
        columns = (DownloadColumn(), TransferSpeedColumn())
        super().__init__(text, None, columns, console, quiet=quiet, redirect=True)

    def __call__(self, done: int, total: int) -> None:
        """Say how far it is."""
        self._bars.update(self._task, completed=done, total=total)
