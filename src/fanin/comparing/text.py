"""A comparison in the terminal: a table of the starts, and their loss curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fanin.comparing.record import Curve, Outcome, Record
from fanin.report import Report
from fanin.report.wording import MARKS, interval, listing, number
from fanin.summary import count
from fanin.wording import visible

__all__ = ["Scale", "conclusion", "divergence", "final", "plot", "render", "setting", "verdict"]

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 12  # cells of a sparkline
COLUMNS, ROWS = 64, 12  # cells of the plot; with its axis it fills under 80 columns
SERIES = "●○◆◇▲△"  # more than six curves cannot be told apart
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
TONES = {"error": "red", "warning": "yellow", "ok": "green"}
CODES = 3  # of a start's findings, before the rest fold into a number
FAR = 9.0  # times the usual loss at the start that another may stand above it, and still be drawn
LOGARITHMIC = 20.0  # losses that differ by a larger factor are drawn on a logarithmic axis


@dataclass(frozen=True)
class Scale:
    """Where a loss stands between the lowest (0) and the highest (1) that is drawn.

    The highest is the largest loss that a start begins with, among those not far above the
    others: one that begins or blows up far above does not press the rest flat.
    """

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Scale:
        """The scale of several curves together."""
        finite = [[loss for _, loss in curve if math.isfinite(loss)] for curve in curves]
        known = [losses for losses in finite if losses]
        low = min((min(losses) for losses in known), default=0.0)
        firsts = [losses[0] for losses in known] or [1.0]
        usual = statistics.median_low(firsts)
        high = max(first for first in firsts if first <= usual + FAR * abs(usual))
        return cls(low, high, low > 0 and high > LOGARITHMIC * low)

    def place(self, loss: float) -> float | None:
        """From 0 to 1, cut off above; None for a loss that is not a number.

        >>> Scale(1.0, 3.0, False).place(2.0), Scale(1.0, 100.0, True).place(10.0)
        (0.5, 0.5)
        """
        if math.isnan(loss):
            return None
        loss = min(max(loss, self.low), self.high)
        if self.high <= self.low:
            return 0.5
        if self.logarithmic:
            return math.log(loss / self.low) / math.log(self.high / self.low)
        return (loss - self.low) / (self.high - self.low)

    def at(self, place: float) -> float:
        """The loss at a place from 0 to 1."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + (self.high - self.low) * place


def render(record: Record) -> RenderableType:
    """Return the comparison as a rich renderable.

    Example::

        rich.console.Console().print(render(comparison))
    """
    return Group(
        Text(conclusion(record), "bold green" if record.best else "bold red"),
        Text(f"  {setting(record)}", "dim"),
        _table(record),
        plot(record),
    )


def setting(record: Record) -> str:
    """Say in one line what was trained, and how."""
    rates = ", ".join(f"{rate:g}" for rate in record.rates)
    seeds = ", ".join(str(seed) for seed in record.seeds)
    return (
        f"{visible(record.model)}, {count(record.parameters, 'parameter')}: "
        f"{count(record.steps, 'step')} of {visible(record.optimizer)}, "
        f"rate{'s' * (len(record.rates) > 1)} {rates}, seed{'s' * (len(record.seeds) > 1)} {seeds}"
    )


def conclusion(record: Record) -> str:
    """Say in one line which start came furthest."""
    best = record.best
    if best is None:
        return f"{MARKS['error']} every start diverged"
    reached = [f"loss {number(best.final)}"]
    if best.accuracy is not None:
        reached.append(f"accuracy {best.accuracy:.1%}")
    if len(record.rates) > 1:
        reached.append(f"rate {best.best_rate:g}")
    return f"{MARKS['ok']} {visible(best.scheme)} came furthest: {', '.join(reached)}"


def verdict(report: Report) -> tuple[str, str]:
    """Return the tone and the verdict on a start in a few words: ``("error", "✗ S101, S102")``."""
    for severity in ("error", "warning"):
        codes = list(dict.fromkeys(f.code for f in report.findings if f.severity == severity))
        if codes:
            return severity, f"{MARKS[severity]} {listing(codes, CODES)}"
    return "ok", f"{MARKS['ok']} sound"


def divergence(outcome: Outcome) -> str:
    """Say how many of the runs at the best rate diverged, or at which step the only one did."""
    if not outcome.diverged:
        return "–"
    runs = outcome.best_runs
    return f"step {runs[0].at[-1]:,}" if len(runs) == 1 else f"{outcome.diverged} of {len(runs)}"


def final(outcome: Outcome) -> str:
    """Write the loss at the end, with its range over the seeds where there are several."""
    if not math.isfinite(outcome.final):
        return "–"
    values = [run.final for run in outcome.best_runs]
    ends = interval(values)
    return number(outcome.final) + (f" ({ends})" if len(values) > 1 and "–" in ends else "")


def plot(record: Record) -> RenderableType:
    """Return the loss curves of the first starts as a small plot of characters.

    Where several curves meet, their marks take turns.
    """
    chosen = _plotted(record)
    curves = [outcome.curve for outcome in chosen]
    scale = Scale.of(curves)
    last = max(curve[-1][0] for curve in curves) or 1
    cells: dict[tuple[int, int], int] = {}
    for index, curve in enumerate(curves):
        for column in range(COLUMNS):
            place = scale.place(_interpolated(curve, last * column / (COLUMNS - 1)))
            if place is None:
                continue
            cell = (round((1 - place) * (ROWS - 1)), column)
            if cell not in cells or column % len(curves) == index:
                cells[cell] = index
    labels = _labels(scale)
    lines = [_line(row, labels.get(row), cells) for row in range(ROWS)]
    axis = f"{'':8}└{'─' * COLUMNS}"
    foot = f"{'':9}0{'updates':^{COLUMNS - 1 - len(f'{last:,}')}}{last:,}"
    legend = Text(" " * 9)
    for index, outcome in enumerate(chosen):
        legend.append(f"{SERIES[index]} ", COLOURS[index]).append(f"{visible(outcome.scheme)}  ")
    left = len(record.outcomes) - len(chosen)
    if left:
        legend.append(f"({count(left, 'more start')} not drawn)", "dim")
    kind = "loss, logarithmic" if scale.logarithmic else "loss"
    return Group(Text(f"{kind:>8}", "dim"), *lines, Text(axis, "dim"), Text(foot, "dim"), legend)


def _plotted(record: Record) -> tuple[Outcome, ...]:
    """All starts, or the best six of them, in their order."""
    ranked = sorted(record.outcomes, key=lambda outcome: outcome.final)[: len(SERIES)]
    return tuple(outcome for outcome in record.outcomes if any(outcome is best for best in ranked))


def _labels(scale: Scale) -> dict[int, str]:
    """The losses at the top, the middle and the bottom row, in as few digits as tell them apart."""
    losses = {row: scale.at(1 - row / (ROWS - 1)) for row in (0, (ROWS - 1) // 2, ROWS - 1)}
    for digits in (2, 3):  # more than three do not fit beside the axis
        labels = {row: number(loss, digits) for row, loss in losses.items()}
        if len(set(labels.values())) == len(labels):
            break
    return labels


def _line(row: int, label: str | None, cells: dict[tuple[int, int], int]) -> Text:
    """One row of the plot, with its loss where it has a label."""
    line = Text(no_wrap=True)
    line.append(f"{label or '':>7} {'│' if label is None else '┤'}", "dim")
    for column in range(COLUMNS):
        index = cells.get((row, column))
        line.append(" " if index is None else SERIES[index], COLOURS[index or 0])
    line.rstrip()
    return line


def _interpolated(curve: Curve, at: float) -> float:
    """The loss between two records; NaN after the last."""
    for (before, low), (after, high) in pairwise(curve):
        if before <= at <= after:
            share = (at - before) / (after - before)
            if not (math.isfinite(low) and math.isfinite(high)):
                return high if share > 0.5 else low
            return low + share * (high - low)
    return curve[0][1] if at == curve[0][0] else math.nan


def _table(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("start", no_wrap=True, min_width=8, overflow="ellipsis")
    table.add_column("verdict", min_width=8, overflow="fold")
    figures = list(_figures(record))
    for name, *_ in figures:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("loss curve", no_wrap=True)
    curves = [outcome.curve for outcome in record.outcomes]
    scale, last = Scale.of(curves), max(curve[-1][0] for curve in curves)
    for index, outcome in enumerate(record.outcomes):
        tone, said = verdict(outcome.report)
        table.add_row(
            Text(visible(outcome.scheme), "bold" if outcome is record.best else ""),
            Text(said, TONES[tone]),
            *(cells[index] for _, *cells in figures),
            _sparkline(curves[index], scale, last),
        )
    return table


def _figures(record: Record) -> Iterator[list[str]]:
    """The columns of figures: a title, and a cell for each start; those that say something."""
    outcomes = record.outcomes
    yield ["start loss", *(number(o.start) for o in outcomes)]
    yield ["final loss", *map(final, outcomes)]
    if any(o.accuracy is not None for o in outcomes):
        shares = ("–" if o.accuracy is None else f"{o.accuracy:.1%}" for o in outcomes)
        yield ["accuracy", *shares]
    if len(record.rates) > 1:
        yield ["rate", *(f"{o.best_rate:g}" for o in outcomes)]
    if any(o.diverged for o in outcomes):
        yield ["diverged", *map(divergence, outcomes)]


def _sparkline(curve: Curve, scale: Scale, last: int) -> str:
    """A curve in one line; a cross where its training was stopped early."""
    cells = ""
    for cell in range(SPARKS):
        at = last * cell / (SPARKS - 1)
        place = scale.place(_interpolated(curve, at))
        if at > curve[-1][0] or place is None:
            return cells + "×"
        cells += BARS[round(place * (len(BARS) - 1))]
    return cells
