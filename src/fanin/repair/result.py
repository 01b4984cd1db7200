"""What a repair did, as text and as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from fanin.plain import as_json
from fanin.repair import page
from fanin.repair.changes import Change
from fanin.repair.record import Record, kinds, outcome, span, untouched
from fanin.report.page import write
from fanin.summary import pattern, to_text
from fanin.wording import visible

__all__ = ["Repair"]


@dataclass(frozen=True, repr=False)
class Repair(Record):
    """What was changed in a model, and what the check said before and after.

    Example::

        done = fanin.repair_(model, batch)
        print(done)                   # what was changed, and why
        done.to_html("repair.html")   # one page that needs no network
    """

    def to_dict(self) -> dict[str, Any]:
        """The repair as plain data, for JSON."""
        return {
            "schema_version": 1,
            "ok": self.ok,
            "undone": self.undone,
            "preserved": self.preserved,
            "frozen": list(self.frozen),
            "met": list(self.met),
            "causes": list(self.causes),
            "changed": list(self.changed),
            "changes": [c.to_dict() for c in self.changes],
            "plan": self.plan.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The repair as strict JSON text.

        Example::

            pathlib.Path("repair.json").write_text(fanin.repair_(model, batch).to_json())
        """
        return as_json(self.to_dict(), indent)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML page to ``path`` and return it.

        Raises:
            ArgumentError: the file cannot be written.

        Example::

            fanin.repair_(model, batch).to_html("repair.html")
        """
        return write(page.to_page(self), path)

    def __rich__(self) -> ConsoleRenderable:
        parts: list[ConsoleRenderable] = [Text(line) for line in outcome(self)]
        if self.changes:
            parts.append(_table(self.changes))
        left = [f for f in self.after.findings if f.severity != "info"]
        parts += map(Text, untouched(self))
        parts += [Text(f"{f.severity} {f.code} {f.layer}: {visible(f.message)}") for f in left]
        return Group(*parts)

    def __str__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return page.to_fragment(self)

    def __repr__(self) -> str:
        state = "sound" if self.ok else "errors left"
        return f"<fanin.Repair: {len(self.changed)} parameters changed, {state}>"


def _table(changes: tuple[Change, ...]) -> Table:
    """One row for each kind of change: what differs in the numbers alone is folded."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("parameter", overflow="fold", ratio=3)
    shown.add_column("entries", justify="right", no_wrap=True)
    shown.add_column("rms", no_wrap=True)
    shown.add_column("because", overflow="fold", ratio=5)
    for members in kinds(changes):
        shown.add_row(
            Text(visible(pattern([c.parameter for c in members]))),
            f"{sum(c.entries for c in members):,} of {sum(c.total for c in members):,}",
            f"{span(c.before for c in members)} → {span(c.after for c in members)}",
            Text(visible(members[0].because)),
        )
    return shown
