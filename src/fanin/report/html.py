"""The report as one HTML page, and as what a notebook shows; every name is shown as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fanin.layers import LayerStats
from fanin.report.cards import cards
from fanin.report.columns import COLUMNS, filled
from fanin.report.figures import figures, plot
from fanin.report.outline import outline
from fanin.report.page import Head, Row, render, render_page
from fanin.report.record import Record
from fanin.report.rows import Gap, all_rows, folded_names, folded_rows, stem
from fanin.report.wording import facts, interval, number, verdict
from fanin.starts import Start
from fanin.summary import count

__all__ = ["folded_table", "to_fragment", "to_page"]

STARTS = 600  # rows of the recipe: with more, no two parameters are alike, and the page gets heavy
CARDS = 12  # findings that a notebook shows
ROWS = 30  # folded layers that a notebook shows


@dataclass(frozen=True)
class Column:
    """A column of the table of layers."""

    head: Head
    read: Callable[[LayerStats], float | str | None]

    def cell(self, layer: LayerStats) -> str:
        """Write the figure of a layer; counts are exact."""
        value = self.read(layer)
        return number(value) if value is None or isinstance(value, float) else str(value)


LAYERS = (
    Column(Head("op", "what the layer does", "text"), lambda layer: layer.op),
    Column(Head("fan in", "inputs summed into one output value"), lambda layer: layer.fan_in),
    Column(Head("fan out", "outputs that one input value reaches"), lambda layer: layer.fan_out),
    Column(
        Head("activation", "what follows the layer", "text"), lambda layer: layer.activation or "–"
    ),
    Column(Head("units", "output channels"), lambda layer: layer.units),
    Column(
        Head("distinct", "units that can be told apart at the start"),
        lambda layer: layer.distinct_units,
    ),
    Column(Head("rms", "root mean square of the pre-activation"), lambda layer: layer.rms),
    Column(
        Head("predicted", "rms as the mean-field maps say it for these weights"),
        lambda layer: layer.predicted_rms,
    ),
    Column(
        Head("variation", "rms deviation across samples over rms; 0: all samples look the same"),
        lambda layer: layer.variation,
    ),
    Column(
        Head("tokens", "the same across the positions within a sample"),
        lambda layer: layer.token_variation,
    ),
    Column(
        Head("correlation", "mean cosine between the pre-activations of two samples, −1 to 1"),
        lambda layer: layer.correlation,
    ),
    Column(
        Head("cotangent", "rms of the gradient of the loss at the pre-activation"),
        lambda layer: layer.cotangent_rms,
    ),
    Column(
        Head("gradient", "rms of the gradient of the loss with respect to the weight"),
        lambda layer: layer.gradient_rms,
    ),
    Column(
        Head("dead %", "units whose activation has slope zero on the whole batch"),
        lambda layer: _percent(layer.dead),
    ),
    Column(
        Head("saturated %", "values in the flat part of the activation"),
        lambda layer: _percent(layer.saturated),
    ),
    Column(
        Head("non-finite", "values of the pre-activation that are NaN or infinite"),
        lambda layer: layer.nonfinite,
    ),
)
START_HEADS = (
    Head("parameter", "", "text"),
    Head("scheme", "what the automatic choice draws it with", "text"),
    Head("planned std", "standard deviation of one weight then; of a vector, root mean square"),
    Head("std now", "the same of its values now"),
    Head("fan", "the fan that the scheme divides by"),
    Head("shape", "of the parameter", "text"),
    Head("because", "the reason", "prose"),
)
UNNAMED_HEADS = (Head("parameter", "", "text"), Head("seen", "", "prose"))


def to_page(record: Record) -> str:
    """Return a whole HTML page that needs no network.

    Example::

        pathlib.Path("start.html").write_text(to_page(report), encoding="utf-8")
    """
    drawn = figures(record)
    shown, rest = cards(record, (figure.kind for figure in drawn))
    heads, rows = _layers(record)
    starts = _starts(record.starts)
    sections = (
        ("findings", "Findings", True),
        ("figures", "Along depth", bool(drawn)),
        ("outline", "Architecture", bool(rows)),
        ("layers", "Layers", bool(rows)),
        ("recipe", "Recipe", bool(starts)),
        ("run", "What was run", True),
    )
    return render_page(
        "report.html",
        drawn,
        command="check",
        title=f"{record.model}: fanin check",
        sections=[(place, name) for place, name, there in sections if there],
        tone="ok" if record.ok else "error",
        verdict=verdict(record),
        facts=facts(record),
        cards=shown,
        rest=rest,
        outline=outline(record),
        heads=heads,
        rows=rows,
        starts=starts[:STARTS],
        start_heads=START_HEADS,
        more_starts=max(0, len(starts) - STARTS),
        unnamed=[Row(name, (seen,)) for name, seen in record.unnamed],
        unnamed_heads=UNNAMED_HEADS,
        run=_run(record),
        again=_call(record),
    )


def to_fragment(record: Record) -> str:
    """Return what a notebook shows: verdict, findings, the signal along depth, folded layers.

    It holds no script and stays light for a model of any size.

    Example::

        IPython.display.HTML(to_fragment(report))
    """
    shown, _ = cards(record)
    heads, rows = folded_table(record, ROWS)
    return render(
        "fragment.html",
        tone="ok" if record.ok else "error",
        verdict=verdict(record),
        facts=facts(record),
        cards=shown[:CARDS],
        more=max(0, len(shown) - CARDS),
        figure=plot(record, "signal") if rows else None,
        heads=heads,
        rows=rows,
    )


def folded_table(record: Record, limit: int) -> tuple[list[Head], list[Row]]:
    """Return heads and rows of the layers in brief: repeated blocks as one, ``limit`` rows at most.

    Example::

        heads, rows = folded_table(report, 30)
    """
    rows = folded_rows(record, limit)[:limit]
    full = [row for row in rows if not isinstance(row, Gap)]
    written = {column: [column.cell(row.members) for row in full] for column in COLUMNS}
    columns = [column for column in COLUMNS if filled(column, written[column])]
    heads = [Head("layer", look="text"), *(Head(c.title, c.legend) for c in columns)]
    cells = dict(zip(full, zip(*(written[column] for column in columns), strict=True), strict=True))
    left = len(record.layers) - sum(len(row.members) for row in full)
    shown = [Row(row.name, (*cells[row], ", ".join(row.codes)), row.severity) for row in full]
    more = [Row(f"… {count(left, 'more layer')}", ("",) * (len(columns) + 1))] if left else []
    return [*heads, Head("findings", look="text")], shown + more


def _layers(record: Record) -> tuple[list[Head], list[Row]]:
    """Heads and rows of the table of layers; a column that says nothing is left out."""
    rows = all_rows(record)
    columns = [(column.head, [column.cell(row.members[0]) for row in rows]) for column in LAYERS]
    found = Head("findings", "codes of the errors and warnings that name the layer", "text")
    columns = [(found, [", ".join(row.codes) for row in rows]), *columns]
    shown = [(head, cells) for head, cells in columns if not {"", "–", "0"}.issuperset(cells)]
    cells = zip(*(cells for _, cells in shown), strict=True)
    return (
        [Head("layer", look="text"), *(head for head, _ in shown)],
        [Row(row.name, line, row.severity) for row, line in zip(rows, cells, strict=True)],
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _starts(starts: Iterable[Start]) -> list[Row]:
    """One row for parameters that differ in the numbers of their path alone."""
    groups: dict[object, list[Start]] = {}
    for start in starts:
        told = re.sub(r"[0-9.]+", "", start.because)
        key = (stem(start.parameter), start.scheme, start.shape, start.trainable, told)
        groups.setdefault(key, []).append(start)
    return [_start(group) for group in groups.values()]


def _start(group: Sequence[Start]) -> Row:
    first = group[0]
    return Row(
        folded_names([start.parameter for start in group], 0)[0],
        (
            first.scheme or "left as it is",
            interval(start.planned_std for start in group),
            interval(start.size for start in group),
            interval(start.fan for start in group),
            " × ".join(map(str, first.shape)) or "scalar",
            first.because + ("" if first.trainable else " (frozen)"),
        ),
    )


def _call(record: Record) -> str:
    """The call that repeats the check."""
    dtype = f', dtype="{record.compute_dtype}"' if _other_dtype(record) else ""
    return f"fanin.check(model, batch, loss, seed={record.seed}{dtype})"


def _other_dtype(record: Record) -> bool:
    """Whether training is to compute in another dtype than the parameters have."""
    return record.compute_dtype not in ("", record.dtype)


def _run(record: Record) -> list[tuple[str, str]]:
    """What was run, as label and text."""
    other = _other_dtype(record)
    computes = f", checked for training in {record.compute_dtype}" if other else ""
    said = [
        ("model", record.model),
        ("parameters", f"{record.parameters:,} in {count(record.tensors, 'tensor')}, "
                       f"{record.trainable:,} trainable"),
        ("batch", " · ".join(record.batch)),
        ("dtype", record.dtype + computes),
        ("device", record.device),
        ("mode", record.mode),
        ("seed", str(record.seed)),
        ("time", f"{record.seconds:.1f} s"),
        ("versions", ", ".join(" ".join(pair) for pair in record.versions)),
    ]  # fmt: skip
    return [(label, text) for label, text in said if text]
