"""A plan as a table for the terminal; amounts, names and tables as text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fanin.assignment import Assignment, Recipe
from fanin.wording import listed, visible

__all__ = ["count", "grouped", "pattern", "starred", "table", "to_text"]

_LISTED = 3  # numbers that are listed one by one in a name
_BREAKS = re.compile(r"(?<=[. ])(?![^{}]*\})")  # not in {0..11}


def to_text(renderable: RenderableType, width: int = 100, *, every_character: bool = False) -> str:
    """A renderable as plain text without colour; no line is longer than ``width``.

    Args:
        renderable: what is to be written.
        width: in columns.
        every_character: whether tables and marks are the same where stdout cannot write them.

    >>> to_text(Text("sound"))
    'sound'
    """
    console = Console(
        file=io.StringIO() if every_character else None,
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def table(recipe: Recipe) -> ConsoleRenderable:
    """One row for each kind of parameter: repeated blocks are folded."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("parameter", overflow="fold", ratio=3)
    shown.add_column("scheme", no_wrap=True)
    shown.add_column("std", justify="right", no_wrap=True)
    shown.add_column("because", overflow="fold", ratio=5)
    for name, scheme, std, because in _rows(recipe):
        shown.add_row(_Path(visible(name)), scheme, std, Text(visible(because)))
    numbers = sum(math.prod(a.shape) for a in recipe.assignments)
    one = len(recipe.assignments) == 1
    head = Text(
        f"{recipe.scheme}: {len(recipe.assignments):,} parameter{'' if one else 's'} drawn "
        f"({numbers:,} numbers), "
        f"{len(recipe.untouched)} left as they are"
    )
    middle = shown if recipe.assignments else Text("")
    return Group(head, middle, *map(Text, grouped(recipe.untouched)))


def grouped(untouched: Mapping[str, str]) -> Iterator[str]:
    """What keeps its values, one line for each reason.

    >>> for line in grouped({"a": "frozen", "b": "frozen"}):
    ...     print(line)
    left as they are
      a, b: frozen
    """
    by_reason: dict[str, list[str]] = {}
    for name, told in untouched.items():
        by_reason.setdefault(told, []).append(name)
    if by_reason:
        yield "left as they are"
    for told, names in by_reason.items():
        yield visible(f"  {listed(names)}: {told}")


@dataclass(frozen=True)
class _Path:
    """A path in a cell: where it does not fit into a line it is broken behind a dot or space."""

    text: str

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [""]
        for part in _BREAKS.split(self.text):
            fits = cell_len(lines[-1]) + cell_len(part) <= options.max_width
            lines[-1:] = [lines[-1] + part] if fits else [*filter(None, lines[-1:]), part]
        yield Text("\n".join(lines), overflow="fold")

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        parts = map(cell_len, _BREAKS.split(self.text))
        whole = Measurement(max(parts), cell_len(self.text))
        return whole.with_maximum(options.max_width)


def _rows(recipe: Recipe) -> Iterator[tuple[str, str, str, str]]:
    """Fold what differs in the numbers of its path alone."""
    folded: dict[tuple[str, str, str], list[Assignment]] = {}
    for assignment in recipe.assignments:
        told = re.sub(r"\d+(\.\d+)?", "*", assignment.because)
        key = (starred(assignment.parameter), assignment.scheme, told)
        folded.setdefault(key, []).append(assignment)
    for (_, scheme, _), members in folded.items():
        low, high = min(a.std for a in members), max(a.std for a in members)
        std = f"{low:.3g}" if high - low <= 1e-3 * high else f"{low:.3g}–{high:.3g}"
        reasons = [told for told, _ in groupby(a.because for a in members)]
        because = (
            reasons[0] if len(set(reasons)) == 1 else f"{reasons[0]} (first of {len(members)})"
        )
        path = pattern([a.parameter for a in members])
        yield path, scheme, std, because


def starred(name: str) -> str:
    """A path without the numbers in it.

    >>> starred("h.11.weight")
    'h.*.weight'
    """
    return re.sub(r"\b\d+\b", "*", name)


def pattern(names: list[str]) -> str:
    """One name for all: the numbers in which they differ in braces, where it is one number.

    >>> pattern(["h.0.w", "h.1.w", "h.3.w"])
    'h.{0,1,3}.w (3×)'
    >>> pattern(["h.0.w", "h.1.w", "h.2.w", "h.3.w"])
    'h.{0..3}.w (4×)'
    """
    if len(names) == 1:
        return names[0]
    split = [name.split(".") for name in names]
    places = [i for i in range(len(split[0])) if len({parts[i] for parts in split}) > 1]
    numbers = [parts[places[0]] for parts in split] if len(places) == 1 else []
    if not numbers or not all(number.isdigit() for number in numbers):
        return f"{starred(names[0])} ({len(names)}×)"
    found = sorted(map(int, numbers))
    run = found == list(range(found[0], found[-1] + 1)) and len(found) > _LISTED
    inner = f"{found[0]}..{found[-1]}" if run else ",".join(map(str, found))
    if not run and len(found) > 2 * _LISTED:
        inner = f"{found[0]},{found[1]},…,{found[-1]}"
    parts = list(split[0])
    parts[places[0]] = f"{{{inner}}}"
    return f"{'.'.join(parts)} ({len(names)}×)"


def count(amount: int, noun: str, plural: str = "") -> str:
    """Write an amount with its noun.

    >>> count(1, "error"), count(1200, "layer"), count(2, "copy", "copies")
    ('1 error', '1,200 layers', '2 copies')
    """
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"
