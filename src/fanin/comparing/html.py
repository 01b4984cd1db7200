"""A comparison as one HTML page, and as what a notebook shows; every name is shown as text."""

from __future__ import annotations

from typing import Any

from fanin.comparing.figures import figures
from fanin.comparing.record import Outcome, Record
from fanin.comparing.text import conclusion, divergence, final, setting, verdict
from fanin.report.cards import cards
from fanin.report.page import Head, Row, render, render_page
from fanin.report.wording import facts, number

__all__ = ["to_fragment", "to_page"]

HEADS = (
    Head("start", look="text"),
    Head("verdict", "what the check says before any training", "text"),
    Head("start loss", "before the first update"),
    Head("final loss", "at the best rate, in the median over the seeds"),
    Head("accuracy", "at the end"),
    Head("rate", "the learning rate that gave the smallest final loss"),
    Head("diverged", "runs at the best rate that did", "text"),
)


def to_page(record: Record) -> str:
    """Return a whole HTML page that needs no network.

    Example::

        pathlib.Path("starts.html").write_text(to_page(comparison), encoding="utf-8")
    """
    starts = [_start(outcome) for outcome in record.outcomes]
    codes = (card.finding.code for start in starts for card in start["cards"])
    return render_page(
        "comparison.html",
        figures(record),
        command="compare",
        title=f"{record.model}: fanin compare",
        sections=[("starts", "Starts"), ("figures", "Training"), ("findings", "Findings")],
        starts=starts,
        codes=sorted(set(codes)),
        **_shared(record),
    )


def to_fragment(record: Record) -> str:
    """Return what a notebook shows: the table of the starts, and the loss along the training.

    Example::

        IPython.display.HTML(to_fragment(comparison))
    """
    loss = next((figure for figure in figures(record) if figure.kind == "loss"), None)
    return render("comparison_fragment.html", figure=loss, **_shared(record))


def _shared(record: Record) -> dict[str, Any]:
    """What page and notebook both show."""
    return {
        "tone": "ok" if record.best else "error",
        "verdict": conclusion(record),
        "facts": [setting(record)],
        "heads": HEADS,
        "rows": [_row(outcome) for outcome in record.outcomes],
    }


def _row(outcome: Outcome) -> Row:
    tone, said = verdict(outcome.report)
    accuracy = outcome.accuracy
    return Row(
        outcome.scheme,
        (
            said,
            number(outcome.start),
            final(outcome),
            "–" if accuracy is None else f"{accuracy:.1%}",
            f"{outcome.best_rate:g}",
            divergence(outcome),
        ),
        None if tone == "ok" else tone,
    )


def _start(outcome: Outcome) -> dict[str, Any]:
    """A start with what the check says of it."""
    tone, said = verdict(outcome.report)
    shown, rest = cards(outcome.report)
    return {
        "name": outcome.scheme,
        "tone": tone,
        "said": said,
        "facts": facts(outcome.report),
        "cards": shown,
        "rest": rest,
    }
