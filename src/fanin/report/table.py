"""The per-layer table of the terminal report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, chop_cells
from rich.padding import Padding
from rich.text import Text

from fanin.layers import Depth
from fanin.report.columns import COLUMNS, Column, filled
from fanin.report.record import Record
from fanin.report.rows import Gap, Row, all_rows, folded_rows
from fanin.report.wording import MARKS, growth
from fanin.summary import count
from fanin.wording import visible

__all__ = ["layer_table", "shorten"]

ROWS = 22  # with verdict, facts, captions and notes this stays under a screen of 45 lines
NAME = 0.4  # share of the width the layer column keeps before a figure is given up for it
TURN = 40  # cells a layer may fill in the line on depth
STYLES = {"error": "red", "warning": "yellow"}


def layer_table(record: Record, full: bool, width: int) -> Iterator[Text | Padding]:
    """Yield the table's lines, none wider than ``width``."""
    rows: list[Row | Gap] = list(all_rows(record)) if full else folded_rows(record, ROWS)
    layers = [row for row in rows if isinstance(row, Row)]
    cells = {column.title: [column.cell(row.members) for row in layers] for column in COLUMNS}
    marks = [",".join(row.codes) for row in layers]
    last = max(map(cell_len, marks)) + 2 if any(marks) else 0
    columns = [column for column in COLUMNS if filled(column, cells[column.title])]
    longest = max(cell_len(row.name) for row in layers)
    rooms = {column: max(map(cell_len, (column.title, *cells[column.title]))) for column in columns}
    room = width - 2 - last - min(int(NAME * width), longest)
    gap = 2 if sum(rooms.values()) + 2 * len(rooms) <= room else 1
    rooms = _fitting({column: cells_ + gap for column, cells_ in rooms.items()}, room)
    kept = list(rooms)
    name = max(5, min(longest, width - 2 - last - sum(rooms.values())))
    yield _line(
        "  ", "layer", name, [(column.title, space) for column, space in rooms.items()], "", "bold"
    )
    at = 0
    for row in rows:
        if isinstance(row, Gap):
            yield Text(f"  … {count(row.layers, 'more layer')} (--full)", "dim", no_wrap=True)
            continue
        figures = [(cells[column.title][at], space) for column, space in rooms.items()]
        mark = f"{MARKS[row.severity]} " if row.severity else "  "
        yield from _lines(mark, row, name, figures, marks[at], full)
        at += 1
    yield from _captions(record.depth, columns, kept, width)


def _fitting(rooms: dict[Column, int], room: int) -> dict[Column, int]:
    """Give up the least important columns until the others fit."""
    kept = sorted(rooms, key=lambda column: -column.keep)
    while kept and sum(rooms[column] for column in kept) > room:
        kept.pop()
    return {column: space for column, space in rooms.items() if column in kept}


def _lines(
    mark: str, row: Row, name: int, figures: Sequence[tuple[str, int]], codes: str, full: bool
) -> Iterator[Text]:
    """One row; in full, a name longer than its column goes on below."""
    style = STYLES.get(row.severity or "", "")
    pieces = chop_cells(row.name, name) or [""]
    first = pieces[0] if full else shorten(row.name, name)
    yield _line(mark, first, name, figures, codes, style)
    if full:
        for piece in pieces[1:]:
            yield Text(f"  {piece}", style, no_wrap=True)


def _line(
    mark: str, name: str, width: int, figures: Sequence[tuple[str, int]], codes: str, style: str
) -> Text:
    padded = name + " " * (width - cell_len(name))
    right = "".join(" " * (room - cell_len(text)) + text for text, room in figures)
    return Text(f"{mark}{padded}{right}  {codes}".rstrip(), style, no_wrap=True, overflow="crop")


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a name that fills more than ``width`` cells.

    >>> shorten("encoder.layers.11.attention", 15)
    'enc…1.attention'
    """
    if cell_len(text) <= width:
        return text
    head = width // 4
    tail = chop_cells(text[::-1], width - 1 - head)[0][::-1]
    return f"{chop_cells(text, head)[0]}…{tail}" if head else f"…{tail}"


def _captions(
    depth: Depth, columns: Sequence[Column], kept: Sequence[Column], width: int
) -> Iterator[Padding]:
    """What the table cannot say in a row: what its columns are, and growth along depth."""
    hidden = [column.title for column in columns if column not in kept]
    captions = (
        " · ".join(column.legend for column in kept if column.legend),
        growth(depth, lambda name: shorten(visible(name), TURN)),
        f"no room in {width} columns: {', '.join(hidden)}" if hidden else "",
    )
    for caption in filter(None, captions):
        yield Padding(Text(caption, "dim", overflow="fold"), (0, 0, 0, 2))
