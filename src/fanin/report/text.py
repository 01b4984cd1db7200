"""The report as terminal text: a verdict, what was found, and one screen of layers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fanin.findings import Finding
from fanin.report.record import Record
from fanin.report.rows import folded_names
from fanin.report.table import layer_table, shorten
from fanin.report.wording import MARKS, copies, facts, listing, number, places, verdict
from fanin.summary import count
from fanin.summary import to_text as plain_text
from fanin.symmetry import Identity, UnitClass
from fanin.wording import visible

__all__ = ["render", "to_text"]

STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan", "ok": "bold green"}
INFOS = 6  # notes shown before the rest fold into one line
GROUPS = 3  # certificates, or reasons, shown before the rest fold into one line
PLACES = 3  # names in a list before the rest fold into a number
UNITS = 8  # copies in a list before the rest fold into a number
NAME = 60  # cells a name may fill in a line of names
PLAIN = str.maketrans("✗✓→–…×·─", "xv>-~x--")  # one cell each, so that columns stay in line


class Rendering:
    """A report as a rich renderable, at the width of the console or at a fixed one."""

    def __init__(self, record: Record, full: bool, width: int | None) -> None:
        self._record = record
        self._full = full
        self._width = width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self._width or options.max_width, options.max_width)
        inner = options.update(width=width, max_width=width)
        for part in _parts(self._record, self._full, width):
            for segment in console.render(part, inner):
                yield _encodable(segment, options.encoding)


def render(record: Record, full: bool = False, width: int | None = None) -> Rendering:
    """Return the report as a rich renderable.

    ``full`` shows every layer, finding and certificate instead of one screen of them; ``width``
    fixes the number of columns, which otherwise is the console's.

    Example::

        rich.console.Console().print(fanin.report.text.render(report, full=True))
    """
    return Rendering(record, full, width)


def to_text(record: Record, full: bool = False, width: int | None = None) -> str:
    """Return the report as plain text without colour; no line is longer than ``width``.

    Without ``width``, that of the terminal is used (100 columns when there is none, 120 at most).

    Example::

        pathlib.Path("start.txt").write_text(to_text(report, full=True, width=120))
    """
    width = width or min(120, shutil.get_terminal_size((100, 24)).columns)
    return plain_text(render(record, full), width, every_character=True)


def _encodable(segment: Segment, encoding: str) -> Segment:
    """Replace what the terminal's encoding cannot write."""
    try:
        segment.text.encode(encoding)
    except UnicodeEncodeError:
        plain = segment.text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        return Segment(plain, segment.style, segment.control)
    return segment


def _parts(record: Record, full: bool, width: int) -> Iterator[Text | Padding | Table]:
    yield Text(verdict(record), STYLES["ok" if record.ok else "error"], overflow="fold")
    yield Padding(Text(_packed(facts(record), width - 2), "dim", overflow="fold"), (0, 0, 0, 2))
    yield from _findings(record.findings, full)
    yield from _symmetry(record, full)
    if record.layers:
        yield Text()
        yield from layer_table(record, full, width)
    yield from _unnamed(record, full)


def _packed(words: Iterable[str], width: int) -> str:
    """Join the words by dots and break lines only between them."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f"{lines[-1]} · {word}") <= width:
            lines[-1] = f"{lines[-1]} · {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _names(names: Sequence[str], full: bool) -> str:
    if full:
        return listing(names, None)
    return listing([shorten(name, NAME) for name in folded_names(names, PLACES)], PLACES)


def _hanging(head: str, text: Text) -> Table:
    """A paragraph whose lines all start behind ``head``."""
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(head, text.style), text)
    return grid


def _findings(findings: Sequence[Finding], full: bool) -> Iterator[Text | Padding | Table]:
    explained: set[tuple[str, str, str]] = set()
    for finding in findings:
        if finding.severity == "info":
            continue
        yield Text()
        yield _hanging(f"{MARKS[finding.severity]} ", _title(finding, full))
        lesson = (finding.code, finding.why, finding.fix)
        yield Padding(Text(visible(finding.message), overflow="fold"), (0, 0, 0, 2))
        yield Padding(_body(finding, lesson not in explained or full), (0, 0, 0, 2))
        explained.add(lesson)
    infos = [finding for finding in findings if finding.severity == "info"]
    shown = infos if full or len(infos) <= INFOS else infos[: INFOS - 1]
    if infos:
        yield Text()
    for finding in shown:
        line = _title(finding, full)
        line.append(f"  {visible(finding.measured)}", "not bold dim")
        if not full:
            line.no_wrap, line.overflow = True, "ellipsis"
        yield _hanging(f"{MARKS['info']} ", line)
    if len(shown) < len(infos):
        yield Text(f"  … {count(len(infos) - len(shown), 'more note')} (--full)", "dim")


def _title(finding: Finding, full: bool) -> Text:
    title = Text(f"{finding.code} {finding.name}", STYLES[finding.severity], overflow="fold")
    return title.append(f"  {_names(places(finding), full)}")


def _body(finding: Finding, explain: bool) -> Table:
    """The lines under a finding's title; ``why`` and ``fix`` only where they are news."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    lines = [("measured", finding.measured), ("expected", finding.expected)]
    if explain:
        lines += [("why", finding.why), ("fix", finding.fix)]
    for label, text in lines:
        if text:
            grid.add_row(Text(label), Text(visible(text)))
    return grid


def _symmetry(record: Record, full: bool) -> Iterator[Text | Table]:
    symmetry = record.symmetry
    locked = [found for found in symmetry.classes if found.kind == "locked"]
    classes = list(symmetry.classes) if full else locked
    shown = classes if full else classes[:GROUPS]
    if shown:
        yield Text()
        yield Text("Copies: the largest difference within a class", "bold")
        steps = f"{count(symmetry.steps, 'virtual step')} in {symmetry.dtype}"
        yield from _certificates(shown, steps, full)
    if len(shown) < len(classes):
        yield Text(
            f"  … {count(len(classes) - len(shown), 'more class', 'more classes')} (--full)", "dim"
        )
    yield from _deadlocks(record, full)
    if full:
        for group in symmetry.clones:
            yield _hanging("Bit-identical: ", Text(_names(group, full), overflow="fold"))


def _certificates(classes: Iterable[UnitClass], steps: str, full: bool) -> Iterator[Text | Table]:
    """One block a class: the four identities at each virtual step."""
    heads = ("step", "inputs", "outputs", "gradients", "updates")
    for found in classes:
        units = copies(found, None if full else UNITS)
        title = f"{_names([found.layer], full)}  {found.kind}: {units}, {steps}"
        yield _hanging("  ", Text(title, overflow="fold"))
        if found.certificate:
            yield Text("    " + "".join(f"{head:>11}" for head in heads), "dim", no_wrap=True)
        for identity in _steps(found.certificate, full):
            cells = (identity.inputs, identity.outputs, identity.gradients, identity.updates)
            figures = "".join(f"{number(cell, 2):>11}" for cell in cells)
            yield Text(f"    {identity.step:>11}{figures}", no_wrap=True)


def _steps(certificate: Sequence[Identity], full: bool) -> Sequence[Identity]:
    """All steps, or the first two and the last."""
    if full or len(certificate) <= 3:
        return certificate
    return (*certificate[:2], certificate[-1])


def _deadlocks(record: Record, full: bool) -> Iterator[Text | Table]:
    """One line for each reason that holds parameters still."""
    held: dict[str, list[str]] = {}
    for deadlock in record.symmetry.deadlocks:
        holders = f", held by {_names(deadlock.because, full)}" if deadlock.because else ""
        held.setdefault(f"{visible(deadlock.cause)}{holders}", []).append(deadlock.parameter)
    yield from _grouped("Never moved in a virtual step", held, full)


def _unnamed(record: Record, full: bool) -> Iterator[Text | Table]:
    """One line for each thing that was seen and not understood."""
    seen: dict[str, list[str]] = {}
    for parameter, what in record.unnamed:
        seen.setdefault(visible(what), []).append(parameter)
    yield from _grouped("Parameters whose use could not be named", seen, full)


def _grouped(title: str, groups: dict[str, list[str]], full: bool) -> Iterator[Text | Table]:
    """A title, then for each group its parameters and what is said of them."""
    shown = list(groups.items()) if full else list(groups.items())[:GROUPS]
    if shown:
        yield Text()
        yield Text(title, "bold")
    for what, parameters in shown:
        yield _hanging("  ", Text(f"{_names(parameters, full)}: {what}", overflow="fold"))
    hidden = sum(map(len, groups.values())) - sum(len(parameters) for _, parameters in shown)
    if hidden:
        yield Text(f"  … {count(hidden, 'more parameter')} (--full)", "dim")
