"""The report as one HTML page: no script, no network, every name shown as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from fanin.findings import Finding
from fanin.report.columns import COLUMNS
from fanin.report.record import Record
from fanin.report.rows import Gap, Row, all_rows, folded_names, folded_rows
from fanin.report.wording import (
    MARKS,
    count,
    facts,
    growth,
    listing,
    number,
    places,
    verdict,
    visible,
)
from fanin.symmetry import Deadlock, Identity, UnitClass

__all__ = ["to_fragment", "to_page"]

ROWS = 60  # folded rows; all layers follow behind a disclosure
PLACES = 12  # names in a list before the rest fold into a number
CLASSES = 20  # certificates

STYLE = """
.fanin{--ink:#1b1f24;--dim:#59636e;--paper:#fff;--card:#f6f8fa;--line:#d1d9e0;
--error:#c4162a;--warning:#8a5a00;--info:#0a5ec2;--ok:#157a35;
color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,sans-serif;
max-width:76rem;margin:0 auto;padding:1.5rem 1rem}
@media (prefers-color-scheme:dark){.fanin{--ink:#e6edf3;--dim:#9198a1;--paper:#0d1117;
--card:#161b22;--line:#30363d;--error:#ff7b72;--warning:#e3b341;--info:#79b8ff;--ok:#56d364}}
.fanin h1{font-size:1.35rem;margin:0 0 .25rem}
.fanin h2{font-size:1.1rem;margin:1.75rem 0 .5rem}
.fanin .error{color:var(--error)}.fanin .warning{color:var(--warning)}
.fanin .info{color:var(--info)}.fanin .ok{color:var(--ok)}
.fanin p.dim,.fanin .dim{color:var(--dim)}
.fanin article{background:var(--card);border:1px solid var(--line);
border-left:4px solid currentColor;border-radius:6px;padding:.75rem 1rem;margin:.75rem 0}
.fanin article>*{color:var(--ink)}
.fanin article h3{font-size:1rem;margin:0;color:inherit}
.fanin article p{margin:.35rem 0}
.fanin dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.5rem 0 0}
.fanin dt{color:var(--dim)}.fanin dd{margin:0;overflow-wrap:anywhere}
.fanin code{font-family:ui-monospace,monospace;font-size:.92em;overflow-wrap:anywhere}
.fanin .scroll{overflow-x:auto}
.fanin table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem}
.fanin th,.fanin td{padding:.2rem .6rem;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--line)}
.fanin th{color:var(--dim);font-weight:600}
.fanin th:first-child,.fanin td:first-child{text-align:left;white-space:normal;min-width:14rem}
.fanin summary{cursor:pointer}
"""
PAGE_STYLE = """
:root{color-scheme:light dark}body{margin:0;background:#fff}
@media (prefers-color-scheme:dark){body{background:#0d1117}}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def to_page(record: Record) -> str:
    """Return a whole HTML page with nothing to load and nothing to run.

    Example::

        pathlib.Path("start.html").write_text(to_page(report), encoding="utf-8")
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(record.model)}: fanin check</title>\n<style>{PAGE_STYLE}</style>"
        f"</head>\n<body>\n{to_fragment(record)}\n</body></html>\n"
    )


def to_fragment(record: Record) -> str:
    """Return the body of the page alone, as a notebook shows it.

    Example::

        IPython.display.HTML(to_fragment(report))
    """
    tone = "ok" if record.ok else "error"
    parts = [
        f'<section class="fanin"><style>{STYLE}</style>',
        f'<h1 class="{tone}">{_text(verdict(record))}</h1>',
        f'<p class="dim">{_text(" · ".join(facts(record)))}</p>',
        *_findings(record.findings),
        *_symmetry(record),
        *_layers(record),
        *_unnamed(record),
        f'<p class="dim">{_text(", ".join(" ".join(pair) for pair in record.versions))}</p>',
        "</section>",
    ]
    return "\n".join(parts)


def _text(text: str) -> str:
    """Any text as text: control characters written out, markup escaped."""
    return escape(visible(text), quote=True)


def _names(names: Sequence[str]) -> str:
    return f"<code>{escape(listing(folded_names(names, PLACES), PLACES))}</code>"


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _findings(findings: Sequence[Finding]) -> Iterable[str]:
    if findings:
        yield "<h2>Findings</h2>"
    for finding in findings:
        tone = finding.severity if finding.severity in MARKS else "info"
        lines = (
            ("where", _names(places(finding))),
            ("measured", _text(finding.measured)),
            ("expected", _text(finding.expected)),
            ("why", _text(finding.why)),
            ("fix", _text(finding.fix)),
        )
        entries = "".join(f"<dt>{label}</dt><dd>{text}</dd>" for label, text in lines if text)
        yield (
            f'<article class="{tone}"><h3>{MARKS[tone]} {_text(finding.code)} '
            f"{_text(finding.name)}</h3><p>{_text(finding.message)}</p><dl>{entries}</dl></article>"
        )


def _symmetry(record: Record) -> Iterable[str]:
    symmetry = record.symmetry
    if symmetry.steps == 0 and not symmetry.deadlocks:
        return
    yield "<h2>Symmetry</h2>"
    yield (
        f'<p class="dim">{count(symmetry.steps, "virtual step")} in {_text(symmetry.dtype or "–")}'
        "; every figure is the largest difference within a class of copies.</p>"
    )
    for found in symmetry.classes[:CLASSES]:
        yield from _certificate(found)
    if len(symmetry.classes) > CLASSES:
        yield f"<p>… {count(len(symmetry.classes) - CLASSES, 'more class', 'more classes')}</p>"
    if symmetry.deadlocks:
        yield "<p>Never moved in a virtual step:</p>"
        yield _table(("parameter", "cause", "held by"), map(_deadlock, symmetry.deadlocks))


def _certificate(found: UnitClass) -> Iterable[str]:
    units = listing([str(unit) for unit in found.units], 12)
    yield (
        f"<p>{_names([found.layer])} {_text(found.kind)}: "
        f"{count(len(found.units), 'copy', 'copies')} (units {units})</p>"
    )
    rows = (f"<tr>{_cells(_identity(each))}</tr>" for each in found.certificate)
    if found.certificate:
        yield _table(("step", "inputs", "outputs", "gradients", "updates"), rows)


def _identity(each: Identity) -> tuple[str, ...]:
    figures = (each.inputs, each.outputs, each.gradients, each.updates)
    return (str(each.step), *map(number, figures))


def _deadlock(deadlock: Deadlock) -> str:
    held = _names(deadlock.because) if deadlock.because else "–"
    return f"<tr>{_cells([_names([deadlock.parameter]), _text(deadlock.cause), held])}</tr>"


def _layers(record: Record) -> Iterable[str]:
    if not record.layers:
        return
    yield "<h2>Layers</h2>"
    folded = folded_rows(record, ROWS)
    heads = ("layer", *(column.title for column in COLUMNS), "findings")
    yield _table(heads, map(_layer, folded))
    if len(folded) < len(record.layers):
        yield f"<details><summary>All {count(len(record.layers), 'layer')}</summary>"
        yield _table(heads, map(_layer, all_rows(record)))
        yield "</details>"
    yield f'<p class="dim">{escape(growth(record.depth))}</p>'


def _layer(row: Row | Gap) -> str:
    if isinstance(row, Gap):
        left_out = count(row.layers, "more layer")
        return f'<tr><td class="dim" colspan="{len(COLUMNS) + 2}">… {left_out}</td></tr>'
    cells = [escape(column.cell(row.members)) for column in COLUMNS]
    tone = f' class="{escape(row.severity)}"' if row.severity else ""
    mark = f"{MARKS[row.severity]} " if row.severity else ""
    name = f"{mark}<code>{escape(row.name)}</code>"
    return f"<tr{tone}>{_cells([name, *cells, _text(', '.join(row.codes))])}</tr>"


def _unnamed(record: Record) -> Iterable[str]:
    if record.unnamed:
        yield "<h2>Parameters whose use could not be named</h2>"
        rows = (
            f"<tr>{_cells([_names([name]), _text(seen)])}</tr>" for name, seen in record.unnamed
        )
        yield _table(("parameter", "seen"), rows)
