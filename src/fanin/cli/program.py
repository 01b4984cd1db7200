"""How the program ends: its exit status, and one line on stderr when it could not run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import sys
import traceback
from typing import Any, NoReturn

import click
import torch

from fanin import __version__
from fanin.cli.output import drop_stdout
from fanin.draw import backend, native
from fanin.errors import FaninError
from fanin.targets.source import first_line

__all__ = ["COULD_NOT_RUN", "INTERRUPTED", "Program", "debug_option", "version_option"]

COULD_NOT_RUN = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
DEBUG = "fanin.debug"


def debug_option(command: Any) -> Any:
    """Add ``--debug``, which is understood before and after the name of a command."""

    def remember(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        ctx.meta[DEBUG] = value or ctx.meta.get(DEBUG, False)

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback when something fails.",
    )(command)


def version_option(command: Any) -> Any:
    """Add ``--version``, which says what draws on this machine too."""

    def tell(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if not value or ctx.resilient_parsing:
            return
        try:
            click.echo("\n".join((f"fanin, version {__version__}", _cpu_draw(), _cuda_draw())))
        except FaninError as error:  # FANIN_DRAW names what is not there
            _say(_reason(error))
            ctx.exit(COULD_NOT_RUN)
        ctx.exit()

    return click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=tell,
        help="Show the version, and what draws on this machine.",
    )(command)


def _cpu_draw() -> str:
    """What draws on the CPU; of compiled code also what else could, and the threads."""
    chosen = backend()
    if not chosen.compiled:
        return f"draw: {chosen}"
    others = ", ".join(name for name in native.present() if name != chosen.name)
    also = f" (also {others})" if others else ""
    threads = torch.get_num_threads()
    return f"draw: {chosen}{also}, {threads} thread{'s' if threads > 1 else ''}"


def _cuda_draw() -> str:
    """What draws on CUDA; Triton is not imported to say so, and CUDA not initialized."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "CUDA draw: none (Triton is not installed)"
    if not torch.cuda.is_available():
        return "CUDA draw: none (no CUDA device)"
    return f"CUDA draw: Triton {triton}"


class Program(click.Group):
    """A group of commands whose every failure is one line on stderr.

    A command returns its exit status.  Whatever keeps it from finishing ends the program with
    status 2, Ctrl-C with status 130; the traceback is shown with ``--debug`` only.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program and exit with its status."""
        extra["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that cannot write "→"
        try:
            status = super().main(*args, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            _leave(COULD_NOT_RUN)
        except click.ClickException as error:
            _say(_usage(error))
            _leave(COULD_NOT_RUN)
        _leave(status or 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; end the program when it fails."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except BrokenPipeError:
            drop_stdout()  # the reader has gone: `fanin check … | head -1`
            ctx.exit(COULD_NOT_RUN)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last to catch it
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            _say(_reason(error))
            ctx.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else COULD_NOT_RUN)


def _leave(status: int) -> NoReturn:
    """Exit, without a second complaint when stdout cannot be flushed any more."""
    try:
        if sys.stdout is not None:  # closed by the caller: `fanin check … >&-`
            sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        if not isinstance(error, BrokenPipeError):
            _say(f"fanin: stdout cannot be written: {error.strerror}")
            status = COULD_NOT_RUN
    sys.exit(status)


def _usage(error: click.ClickException) -> str:
    """The message of a wrong command line, with the way to the right one."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "fanin"
    return f"{path}: {error.format_message().rstrip('.')} ({path} --help shows what is allowed)"


def _reason(error: BaseException) -> str:
    """One line for whatever ended a command."""
    if isinstance(error, KeyboardInterrupt):
        return "fanin: interrupted"
    if isinstance(error, FaninError):
        return f"fanin: {error}"
    return f"fanin: could not run: {first_line(error)} (--debug shows where)"


def _say(message: str) -> None:
    """Write one line to stderr, whatever a message from elsewhere holds."""
    line = " ".join(message.split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in line)
    with contextlib.suppress(OSError):
        click.echo(printable, err=True)
