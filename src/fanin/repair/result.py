"""What a repair did, as text and as data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console, ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from fanin.planning import Plan
from fanin.repair.changes import Change
from fanin.report import Report
from fanin.summary import pattern, starred, visible

__all__ = ["Repair"]


@dataclass(frozen=True, repr=False)
class Repair:
    """What was changed in a model, and what the check said before and after.

    Attributes:
        changed: paths of the parameters that were changed; all others are bit for bit as before.
        before: the report on the model as it was given.
        after: the report on the model as it is now.
        plan: does the same to another copy of the model.
        changes: how many entries of each parameter, from what to what, and why.
        undone: whether the model was put back because a fault remained.
        frozen: where a fault is left, the parameters that require no gradient: a repair never
            changes them, and the fault may lie there.
        preserved: whether only what keeps the output was allowed.
        met: codes of what was to be cleared, those that showed only on the way too.
    """

    changed: tuple[str, ...]
    before: Report
    after: Report
    plan: Plan
    changes: tuple[Change, ...] = ()
    undone: bool = False
    frozen: tuple[str, ...] = ()
    preserved: bool = False
    met: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no error is left, of the rules that were selected."""
        return self.after.ok

    def to_dict(self) -> dict[str, Any]:
        """The repair as plain data, for JSON."""
        return {
            "schema_version": 1,
            "ok": self.ok,
            "undone": self.undone,
            "frozen": list(self.frozen),
            "met": list(self.met),
            "changed": list(self.changed),
            "changes": [c.to_dict() for c in self.changes],
            "plan": self.plan.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }

    def to_json(self) -> str:
        """The repair as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __rich__(self) -> ConsoleRenderable:
        parts: list[ConsoleRenderable] = [Text(line) for line in _verdict(self)]
        if self.changes:
            parts.append(_table(self.changes))
        left = [f for f in self.after.findings if f.severity != "info"]
        if self.frozen:
            count = f"{len(self.frozen)} of {self.before.tensors}"
            told = f"{count} parameters are frozen and were left alone; the fault may lie there"
            parts.append(Text(told))
        parts += [Text(f"{f.severity} {f.code} {f.layer}: {visible(f.message)}") for f in left]
        return Group(*parts)

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=100, color_system=None, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def __repr__(self) -> str:
        state = "sound" if self.ok else "errors left"
        return f"<fanin.Repair: {len(self.changed)} parameters changed, {state}>"


def _verdict(repair: Repair) -> list[str]:
    before = [f for f in repair.before.findings if f.severity == "error"]
    after = [f for f in repair.after.findings if f.severity == "error"]
    codes = ", ".join(dict.fromkeys(f.code for f in before))
    if repair.undone:
        return [f"nothing changed: an error would have remained (before: {codes})"]
    if not repair.changes:
        if not before:
            return ["nothing to mend: no error"]
        told = " that keeps the output" if repair.preserved else ""
        return [f"nothing changed: no remedy{told} for {codes}"]
    entries = sum(c.entries for c in repair.changes)
    total = repair.before.parameters
    lead = (
        f"{len(repair.changes)} of {repair.before.tensors} parameters changed, "
        f"{entries:,} of {total:,} entries; every other entry is bit for bit what it was"
    )
    behind = [c for c in repair.met if c not in {f.code for f in repair.before.findings}]
    then = f", then {', '.join(behind)} behind it" if behind else ""
    loss = ""
    if repair.before.loss is not None and repair.after.loss is not None:
        loss = f"; loss {repair.before.loss:.4g} → {repair.after.loss:.4g}"
    if after:
        left = ", ".join(dict.fromkeys(f.code for f in after))
        return [lead, f"errors left: {left}{loss}"]
    return [lead, f"{codes or 'warnings'} before{then}, no error after{loss}"]


def _table(changes: tuple[Change, ...]) -> Table:
    """One row for each kind of change: what differs in the numbers alone is folded."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("parameter", overflow="fold", ratio=3)
    shown.add_column("entries", justify="right", no_wrap=True)
    shown.add_column("rms", no_wrap=True)
    shown.add_column("because", overflow="fold", ratio=5)
    folded: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        told = re.sub(r"[\d.]+", "*", change.because)
        folded.setdefault((starred(change.parameter), told), []).append(change)
    for members in folded.values():
        shown.add_row(
            Text(visible(pattern([c.parameter for c in members]))),
            f"{sum(c.entries for c in members):,} of {sum(c.total for c in members):,}",
            f"{_span(c.before for c in members)} → {_span(c.after for c in members)}",
            Text(visible(members[0].because)),
        )
    return shown


def _span(values: Iterable[float]) -> str:
    found = sorted(values)
    low, high = f"{found[0]:.3g}", f"{found[-1]:.3g}"
    return low if low == high else f"{low}–{high}"
