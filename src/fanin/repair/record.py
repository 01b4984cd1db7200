"""What a repair did, as plain values, and the words that every way to show it shares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fanin.planning import Plan
from fanin.repair.changes import Change
from fanin.report import Report
from fanin.summary import count, starred

__all__ = ["Record", "kinds", "outcome", "span", "untouched"]


@dataclass(frozen=True, repr=False)
class Record:
    """The fields of a `fanin.Repair`, without the ways to show them.

    Attributes:
        changed: paths of the parameters that were changed; all others are bit for bit as before.
        before: the report on the model as it was given.
        after: the report on the model as it is now.
        plan: does the same to another copy of the model.
        changes: how many entries of each parameter, from what to what, and why.
        undone: whether the model was put back because a fault remained.
        frozen: where a fault is left, the parameters that require no gradient: a repair changes
            them with `frozen=True` alone, and the fault may lie there.
        preserved: whether only what keeps the output was allowed.
        met: codes of what was to be cleared, those that showed only on the way too.
        causes: where no weight can mend what is left: why, a line for each cause.
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
    causes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no error is left, of the rules that were selected."""
        return self.after.ok


def outcome(repair: Record) -> list[str]:
    """Say in a line or two what was changed, and what is left."""
    before = [f for f in repair.before.findings if f.severity == "error"]
    after = [f for f in repair.after.findings if f.severity == "error"]
    codes = ", ".join(dict.fromkeys(f.code for f in before))
    if repair.undone:
        return [f"nothing changed: an error would have remained (before: {codes})"]
    if not repair.changes:
        if not before:
            return [f"nothing to mend: no error{_unasked(repair)}"]
        if repair.causes:
            return [*repair.causes, f"nothing changed: the weights are not the cause of {codes}"]
        told = " that keeps the output" if repair.preserved else ""
        return [f"nothing changed: no remedy{told} for {codes}"]
    entries = sum(c.entries for c in repair.changes)
    total = repair.before.parameters
    lead = (
        f"{len(repair.changes)} of {repair.before.tensors} parameters changed, "
        f"{entries:,} of {total:,} entries"
    )
    if entries < total:
        lead += "; every other entry is bit for bit what it was"
    behind = [c for c in repair.met if c not in {f.code for f in repair.before.findings}]
    then = f", then {', '.join(behind)} behind it" if behind else ""
    loss = ""
    if repair.before.loss is not None and repair.after.loss is not None:
        loss = f"; loss {repair.before.loss:.4g} → {repair.after.loss:.4g}"
    if after:
        left = ", ".join(dict.fromkeys(f.code for f in after))
        causes = [f"the weights are not the cause of what is left: {c}" for c in repair.causes]
        return [lead, *causes, f"errors left: {left}{loss}"]
    return [lead, f"{codes or 'warnings'} before{then}, no error after{loss}"]


def _unasked(repair: Record) -> str:
    """What else is there, that a repair looks at only where it is asked to."""
    warnings = sum(f.severity == "warning" for f in repair.before.findings)
    return f" ({count(warnings, 'warning')}, mended on request)" if warnings else ""


def untouched(repair: Record) -> list[str]:
    """Say that a fault may lie in what a repair never changes, where it may."""
    if not repair.frozen:
        return []
    held = f"{len(repair.frozen)} of {count(repair.before.tensors, 'parameter')}"
    told = "the fault may lie there: --frozen (frozen=True) may change them"
    return [f"{held} frozen and left alone; {told}"]


def kinds(changes: Iterable[Change]) -> list[list[Change]]:
    """Group changes that differ in the numbers of their paths and reasons alone."""
    folded: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        told = re.sub(r"[\d.]+", "*", change.because)
        folded.setdefault((starred(change.parameter), told), []).append(change)
    return list(folded.values())


def span(values: Iterable[float]) -> str:
    """Write the smallest and the largest of some figures.

    >>> span([0.5, 0.25])
    '0.25–0.5'
    """
    found = sorted(values)
    low, high = f"{found[0]:.3g}", f"{found[-1]:.3g}"
    return low if low == high else f"{low}–{high}"
