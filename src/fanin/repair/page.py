"""A repair as one HTML page: before, what was changed, after; every name is shown as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fanin.repair.changes import Change
from fanin.repair.record import Record, kinds, outcome, span, untouched
from fanin.report import Report
from fanin.report.cards import Card, cards
from fanin.report.figures import before_after
from fanin.report.html import folded_table
from fanin.report.page import Head, Row, render, render_page
from fanin.report.wording import MARKS, facts, verdict
from fanin.summary import pattern

__all__ = ["to_fragment", "to_page"]

LAYERS = 60  # folded rows of a report; ``repair.after.to_html`` shows all
HEADS = (
    Head("parameter", look="text"),
    Head("entries", "that have another value now"),
    Head("of"),
    Head("rms before", "root mean square of the changed entries as they were"),
    Head("rms after", "the same now"),
    Head("because", look="prose"),
)


def to_page(repair: Record) -> str:
    """Return a whole HTML page that needs no network.

    Example::

        pathlib.Path("repair.html").write_text(to_page(repair), encoding="utf-8")
    """
    changed = bool(repair.changes)
    sections = (
        ("changes", "Changes", changed),
        ("findings", "Findings", True),
        ("figures", "Along depth", changed),
        ("recipe", "Recipe", changed),
        ("reports", "Reports", True),
    )
    return render_page(
        "repair.html",
        [before_after(repair.before, repair.after)] if changed else (),
        command="repair",
        title=f"{repair.before.model}: fanin repair",
        sections=[(place, name) for place, name, there in sections if there],
        recipe=repair.plan.to_toml().splitlines() if changed else [],
        reports=[("before", _report(repair.before)), ("after", _report(repair.after))],
        **_shared(repair),
    )


def to_fragment(repair: Record) -> str:
    """Return what a notebook shows: what was changed, and what was found before and after.

    Example::

        IPython.display.HTML(to_fragment(repair))
    """
    return render("repair_fragment.html", **_shared(repair))


def _shared(repair: Record) -> dict[str, Any]:
    """What page and notebook both show."""
    *said, last = outcome(repair)
    tone = "ok" if repair.ok else "error"
    left = {finding.code for finding in repair.after.findings}
    before, after = _cards(repair.before), _cards(repair.after)
    return {
        "tone": tone,
        "verdict": f"{MARKS[tone]} {repair.before.model}: {last}",
        "facts": [*said, *untouched(repair)],
        "heads": HEADS,
        "changes": [_change(members) for members in kinds(repair.changes)],
        "before": before,
        "gone": {card.finding.code for card in before} - left,
        "after": after,
        "codes": list(dict.fromkeys(card.finding.code for card in (*before, *after))),
    }


def _cards(report: Report) -> list[Card]:
    """Errors and warnings: notes ask for no repair."""
    return [card for card in cards(report)[0] if card.tone != "info"]


def _change(members: Sequence[Change]) -> Row:
    entries, total = sum(c.entries for c in members), sum(c.total for c in members)
    return Row(
        pattern([c.parameter for c in members]),
        (
            f"{entries:,}",
            f"{total:,}",
            span(c.before for c in members),
            span(c.after for c in members),
            members[0].because,
        ),
    )


def _report(report: Report) -> dict[str, Any]:
    heads, rows = folded_table(report, LAYERS)
    return {"verdict": verdict(report), "facts": facts(report), "heads": heads, "rows": rows}
