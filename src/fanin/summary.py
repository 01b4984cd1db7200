"""A plan as a table for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from fanin.assignment import Assignment, Recipe

__all__ = ["table"]


def table(recipe: Recipe) -> ConsoleRenderable:
    """One row for each kind of parameter: repeated blocks are folded."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("parameter", overflow="fold", ratio=3)
    shown.add_column("scheme", no_wrap=True)
    shown.add_column("std", justify="right", no_wrap=True)
    shown.add_column("because", overflow="fold", ratio=5)
    for name, scheme, std, because in _rows(recipe):
        shown.add_row(Text(_visible(name)), scheme, std, Text(_visible(because)))
    numbers = sum(math.prod(a.shape) for a in recipe.assignments)
    head = Text(
        f"{recipe.scheme}: {len(recipe.assignments):,} parameters drawn ({numbers:,} numbers), "
        f"{len(recipe.untouched)} left as they are"
    )
    parts: list[ConsoleRenderable] = [head, shown]
    if recipe.untouched:
        parts.append(Text("left as they are"))
        grouped: dict[str, list[str]] = {}
        for name, told in recipe.untouched.items():
            grouped.setdefault(told, []).append(name)
        for told, names in grouped.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(Text(_visible(f"  {', '.join(names[:3])}{more}: {told}")))
    return Group(*parts)


def _visible(text: str) -> str:
    """A name on one line, with nothing in it that a terminal would obey."""
    return text if text.isprintable() else repr(text)[1:-1]


def _rows(recipe: Recipe) -> Iterator[tuple[str, str, str, str]]:
    """Fold what differs in the numbers of its path alone."""
    folded: dict[tuple[str, str, str], list[Assignment]] = {}
    for assignment in recipe.assignments:
        told = re.sub(r"\d+(\.\d+)?", "*", assignment.because)
        key = (re.sub(r"\b\d+\b", "*", assignment.parameter), assignment.scheme, told)
        folded.setdefault(key, []).append(assignment)
    for (name, scheme, _), members in folded.items():
        low, high = min(a.std for a in members), max(a.std for a in members)
        std = f"{low:.3g}" if high - low <= 1e-3 * high else f"{low:.3g}–{high:.3g}"
        reasons = [told for told, _ in groupby(a.because for a in members)]
        because = (
            reasons[0] if len(set(reasons)) == 1 else f"{reasons[0]} (first of {len(members)})"
        )
        path = members[0].parameter if len(members) == 1 else f"{name} ({len(members)}×)"
        yield path, scheme, std, because
