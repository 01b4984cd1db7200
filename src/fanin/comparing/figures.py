"""The figures of a comparison: loss and accuracy of every start by updates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from fanin.comparing.record import Curve, Outcome, Record, Run
from fanin.comparing.text import Scale, divergence
from fanin.report.chart import COLOURS, Json, log_axis, rounded, shortened
from fanin.report.figure import Figure, complete, known, nothing
from fanin.report.wording import number
from fanin.wording import visible

__all__ = ["KINDS", "figures", "plot"]

KINDS: Mapping[str, str] = {
    "loss": "loss of every start by updates",
    "accuracy": "accuracy of every start by updates",
}
DASHES = ((1, 0), (7, 3), (2, 2), (8, 3, 2, 3), (12, 4), (4, 4))  # with the colour, one for each
CROSS = "M-1,-1L1,1M-1,1L1,-1"  # a path, in units of the point's size
NOTHING = "The accuracy is not known."


def plot(record: Record, kind: str) -> Figure:
    """Return the figure of a kind; one without data says so.

    Raises:
        ArgumentError: there is no such kind.

    Example::

        plot(comparison, "loss").save("loss.svg")
    """
    kind = known(kind, KINDS)
    return MAKERS[kind](record) or nothing(kind, "Accuracy by updates", NOTHING)


def figures(record: Record) -> tuple[Figure, ...]:
    """Return every figure that has something to show, in the order of ``KINDS``.

    Example::

        [figure.kind for figure in figures(comparison)]
    """
    return tuple(figure for make in MAKERS.values() if (figure := make(record)) is not None)


def _loss(record: Record) -> Figure:
    scale = Scale.of([outcome.curve for outcome in record.outcomes])
    kind = "loss (logarithmic)" if scale.logarithmic else "loss"
    if scale.logarithmic:
        y = log_axis(kind, (scale.low, scale.high)).encoding
        y["scale"]["domain"] = [scale.low, scale.high]
    else:
        room = 0.05 * abs(scale.high - scale.low) or 1.0
        y = {
            "field": "value",
            "type": "quantitative",
            "title": kind,
            "scale": {"domain": [scale.low - room, scale.high + room], "zero": False},
        }
    curves = [outcome.curve for outcome in record.outcomes]
    body = _lines(record, curves, y, scale.high, "loss", _bands(record, scale.high))
    said = [_end(outcome, record) for outcome in record.outcomes]
    if any(loss > scale.high for curve in curves for _, loss in curve):
        said.append(f"Losses above {number(scale.high)} stand at the top.")
    return complete("loss", "Loss by updates", " ".join(said), body)


def _accuracy(record: Record) -> Figure | None:
    curves = [_accuracies(outcome) for outcome in record.outcomes]
    if not any(curves):
        return None
    y = {
        "field": "value",
        "type": "quantitative",
        "title": "accuracy",
        "scale": {"domain": [0, 1], "nice": False},
        "axis": {"format": "%", "tickCount": 5},
    }
    said = [
        f"{_name(outcome)} ends at {outcome.accuracy:.1%}."
        for outcome in record.outcomes
        if outcome.accuracy is not None
    ]
    body = _lines(record, curves, y, 1.0, "accuracy", [])
    return complete("accuracy", "Accuracy by updates", " ".join(said), body)


def _accuracies(outcome: Outcome) -> Curve:
    """(updates made, accuracy): the median over the seeds at the best rate."""
    points = _by_step(outcome, lambda run: run.accuracies)
    return tuple((at, statistics.median(values)) for at, values in points.items())


def _by_step(outcome: Outcome, read: Callable[[Run], Sequence[float]]) -> dict[int, list[float]]:
    """What the runs at the best rate had after so many updates; a run may know none of it."""
    points: dict[int, list[float]] = {}
    for run in outcome.best_runs:
        for at, value in zip(run.at, read(run), strict=False):
            points.setdefault(at, []).append(value)
    return dict(sorted(points.items()))


def _name(outcome: Outcome) -> str:
    return shortened(visible(outcome.scheme))


def _end(outcome: Outcome, record: Record) -> str:
    rate = f" with rate {outcome.best_rate:g}" if len(record.rates) > 1 else ""
    if not math.isfinite(outcome.final):
        return f"{_name(outcome)} diverged ({divergence(outcome)}){rate}."
    return f"{_name(outcome)} goes from {number(outcome.start)} to {number(outcome.final)}{rate}."


def _lines(
    record: Record, curves: Sequence[Curve], y: Json, top: float, value: str, bands: list[Json]
) -> Json:
    """The body: a line for each start, a cross where a training was stopped, bands over seeds."""
    rows = [
        row
        for outcome, curve in zip(record.outcomes, curves, strict=True)
        for row in _rows(outcome, curve, top)
    ]
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "updates",
        "scale": {"domain": [0, max((row["step"] for row in rows), default=1) or 1], "nice": False},
        "axis": {"grid": False, "tickMinStep": 1, "labelFlush": False},
    }
    names = [visible(outcome.scheme) for outcome in record.outcomes]
    colour = _by_start(names, [COLOURS[at % len(COLOURS)] for at in range(len(names))])
    dash = _by_start(names, [list(DASHES[at % len(DASHES)]) for at in range(len(names))])
    shared = {"x": x, "y": y, "color": colour}
    tips = [
        {"field": field, "type": "nominal", "title": title}
        for field, title in (("start", "start"), ("step", "updates"), ("shown", value))
    ]
    layers = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {**shared, "strokeDash": dash}},
        {  # for the pointer
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.001},
            "encoding": {**shared, "tooltip": tips},
        },
    ]
    if bands:
        area = {**shared, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        band = {"type": "area", "opacity": 0.15}
        layers.insert(0, {"data": {"values": bands}, "mark": band, "encoding": area})
    stopped = [row for row in rows if row["stopped"]]
    if stopped:
        why = {"field": "stopped", "type": "nominal", "title": "stopped"}
        layers.append({
            "data": {"values": stopped},
            "mark": {"type": "point", "shape": CROSS, "size": 60, "strokeWidth": 3, "opacity": 1},
            "encoding": {**shared, "tooltip": [*tips, why]},
        })  # fmt: skip
    return {"data": {"values": rows}, "layer": layers}


def _by_start(names: Sequence[str], looks: Sequence[object]) -> Json:
    legend = {"title": None, "symbolType": "stroke", "symbolStrokeWidth": 2.5, "symbolSize": 500}
    scale = {"domain": list(names), "range": list(looks)}
    return {"field": "start", "type": "nominal", "legend": legend, "scale": scale}


def _rows(outcome: Outcome, curve: Curve, top: float) -> Iterator[Json]:
    """The points of a curve; what lies above the top, or is no number, stands there."""
    whys = [run.diverged for run in outcome.best_runs if run.diverged is not None]
    for step, value in curve:
        last = step == curve[-1][0]
        yield {
            "start": visible(outcome.scheme),
            "step": step,
            "value": rounded(value) if value <= top else top,
            "shown": number(value, 4),
            "stopped": visible(whys[0]) if last and whys else "",
        }


def _bands(record: Record, top: float) -> list[Json]:
    """From the lowest to the highest loss over the seeds, where there are several."""
    rows = []
    for outcome in record.outcomes:
        for step, losses in _by_step(outcome, lambda run: run.losses).items():
            if len(losses) > 1 and all(map(math.isfinite, losses)):
                low, high = (rounded(min(f(losses), top)) for f in (min, max))
                rows.append(
                    {"start": visible(outcome.scheme), "step": step, "low": low, "high": high}
                )
    return rows


MAKERS: Mapping[str, Callable[[Record], Figure | None]] = {"loss": _loss, "accuracy": _accuracy}
