"""A comparison as one HTML page: no script, no network, every name shown as text."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from fanin.comparing.record import Outcome, Record
from fanin.comparing.text import Scale, conclusion, divergence, final, setting, verdict
from fanin.report.wording import number, visible

__all__ = ["to_page"]

WIDTH, HEIGHT, EDGE = 720, 320, 48  # of the drawing; the edge holds the labels
HUES = 8  # colours before they come again, then dashed

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--paper:#fff;--line:#d1d9e0;
--error:#c4162a;--warning:#8a5a00;--ok:#157a35;--light:40%}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;--paper:#0d1117;
--line:#30363d;--error:#ff7b72;--warning:#e3b341;--ok:#56d364;--light:65%}}
body{color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,sans-serif;
max-width:64rem;margin:0 auto;padding:1.5rem 1rem}
h1{font-size:1.35rem}.dim{color:var(--dim)}
.error{color:var(--error)}.warning{color:var(--warning)}.ok{color:var(--ok)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
th{color:var(--dim)}th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
svg{width:100%;height:auto}svg text{fill:var(--dim);font-size:12px}
svg polyline{fill:none;stroke-width:2}svg .axis{stroke:var(--line)}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def to_page(record: Record) -> str:
    """Return a whole HTML page with nothing to load and nothing to run.

    Example::

        pathlib.Path("starts.html").write_text(to_page(comparison), encoding="utf-8")
    """
    name = _text(f"{record.model}: fanin compare")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}{''.join(_hues())}</style></head>\n<body>\n"
        f'<h1>{_text(conclusion(record))}</h1><p class="dim">{_text(setting(record))}</p>\n'
        f"{_table(record)}\n{_drawing(record)}\n</body></html>\n"
    )


def _text(text: str) -> str:
    """Any text as text: control characters written out, markup escaped."""
    return escape(visible(text), quote=True)


def _hues() -> Iterator[str]:
    for hue in range(HUES):
        colour = f"hsl({hue * 360 // HUES + 200} 65% var(--light))"
        yield f".c{hue}{{stroke:{colour};color:{colour}}}\n"


def _table(record: Record) -> str:
    heads = ("start", "verdict", "start loss", "final loss", "accuracy", "rate", "diverged")
    head = "".join(f'<th scope="col">{title}</th>' for title in heads)
    rows = "\n".join(_row(index, outcome) for index, outcome in enumerate(record.outcomes))
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(index: int, outcome: Outcome) -> str:
    tone, said = verdict(outcome.report)
    found = "; ".join(f"{f.code} {f.name}: {f.message}" for f in outcome.report.findings)
    figures = (
        number(outcome.start),
        final(outcome),
        "–" if outcome.accuracy is None else f"{outcome.accuracy:.1%}",
        f"{outcome.best_rate:g}",
        divergence(outcome),
    )
    cells = "".join(f"<td>{_text(figure)}</td>" for figure in figures)
    return (
        f'<tr><td><span class="c{index % HUES}">■</span> {_text(outcome.scheme)}</td>'
        f'<td class="{tone}" title="{_text(found)}">{_text(said)}</td>{cells}</tr>'
    )


def _drawing(record: Record) -> str:
    """The loss curves as one inline SVG; the name of each shows under the pointer."""
    curves = [outcome.curve for outcome in record.outcomes]
    scale = Scale.of(curves)
    last = max(curve[-1][0] for curve in curves) or 1
    bottom, right = HEIGHT - EDGE, WIDTH - EDGE
    lines = []
    for index, outcome in enumerate(record.outcomes):
        placed = ((at, scale.place(loss)) for at, loss in outcome.curve)
        points = " ".join(
            f"{EDGE + (right - EDGE) * at / last:.1f},{bottom - (bottom - EDGE / 2) * place:.1f}"
            for at, place in placed
            if place is not None
        )
        dashes = ' stroke-dasharray="6 4"' if index >= HUES else ""
        lines.append(
            f'<polyline class="c{index % HUES}"{dashes} points="{points}">'
            f"<title>{_text(outcome.scheme)}</title></polyline>"
        )
    kind = "loss (logarithmic)" if scale.logarithmic else "loss"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{kind} by updates">\n'
        f'<line class="axis" x1="{EDGE}" y1="{bottom}" x2="{right}" y2="{bottom}"/>\n'
        f'<text x="{EDGE}" y="{EDGE / 2 - 8}">{kind}</text>\n'
        f'<text x="{EDGE - 6}" y="{EDGE / 2 + 4}" text-anchor="end">{number(scale.high)}</text>\n'
        f'<text x="{EDGE - 6}" y="{bottom}" text-anchor="end">{number(scale.low)}</text>\n'
        f'<text x="{right}" y="{bottom + 18}" text-anchor="end">{last:,} updates</text>\n'
        f"{chr(10).join(lines)}\n</svg>"
    )
