"""The figures of a report: what there is to see along depth, as Vega-Lite specifications."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch

from fanin.report.chart import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SEVERITIES,
    SKY,
    Axis,
    Json,
    Place,
    Point,
    Series,
    along_depth,
    depth_axis,
    joints,
    log_axis,
    places_of,
    positive,
    rounded,
    series,
    shortened,
    thinned,
)
from fanin.report.figure import HEIGHT, Figure, complete, config, known, nothing
from fanin.report.record import Record
from fanin.report.ridges import chosen, outlined, ridges, shown
from fanin.report.rows import folded_names
from fanin.report.wording import growth, listing, number
from fanin.summary import count
from fanin.wording import visible

__all__ = ["KINDS", "before_after", "config", "figures", "plot"]

T = TypeVar("T")

KINDS: Mapping[str, str] = {
    "signal": "signal and cotangent along depth (rms), measured and predicted",
    "correlation": "correlation between samples along depth, measured and predicted",
    "units": "distinct units of each layer, as a share of all its units",
    "std": "each parameter's std over the planned one",
    "weights": "distribution of the weights, beside the planned one",
    "gradient": "each weight's gradient over the weight's own size",
}

NEAR = 1e3  # a limit of the compute dtype this far from a value is drawn: a step can cross it
NEAR_OTHER = 10.0  # the same for float16 where the model computes in another dtype
DASHES = (5, 4)
BARS = 120  # of layers: more cannot be told apart on 640 pixels
LETTERS = 48  # of all labels of the bars side by side, which fit on the width of a phone
STATES = {  # of the units of a layer
    "all distinct": BLUE,
    "copies, no finding": SKY,
    **{f"copies, {name} found": colour for name, (colour, _) in SEVERITIES.items()},
}
NAMED = 3  # weights without an outline that the description names before it folds them
FALLS = 0.5  # a curve that ends below this share of its start is said to fall
TENTH = 0.1  # of correlation: a prediction this near is said to fit
NOTHING = "Nothing of this was measured."
COTANGENT = "the gradient of the loss at the output of a layer"
JOINED = "Lines join the same layer of successive blocks."


def plot(record: Record, kind: str) -> Figure:
    """Return the figure of a kind; one without data says that nothing was measured.

    Raises:
        ArgumentError: there is no such kind.

    Example::

        plot(report, "signal").save("signal.svg")
    """
    kind = known(kind, KINDS)
    return MAKERS[kind](record) or nothing(kind, _capital(KINDS[kind]), NOTHING)


def figures(record: Record) -> tuple[Figure, ...]:
    """Return every figure that has something to show, in the order of ``KINDS``.

    Example::

        [figure.kind for figure in figures(report)]
    """
    return tuple(figure for make in MAKERS.values() if (figure := make(record)) is not None)


# ---- signal and cotangent ------------------------------------------------------------------------


def _signal(record: Record) -> Figure | None:
    places, layers, joined = places_of(record), record.layers, joints(record)
    rms = [layer.rms for layer in layers]
    told = [layer.predicted_rms for layer in layers]
    curves = _drawn(
        series("signal", places, rms, BLUE, joined=joined),
        _predicted("signal, predicted", places, rms, told, BLUE, joined),
        series("cotangent", places, (y.cotangent_rms for y in layers), PURPLE, joined=joined),
    )
    if not curves:
        return None
    values = _values(curves)
    limits, far = _limits(record.compute_dtype, values)
    grown = growth(record.depth, lambda name: shortened(visible(name)))
    said = [
        *(_course(curve, back=curve.name == "cotangent") for curve in curves if curve.dots),
        *([f"{_capital(grown)}."] if grown else []),
        *_agreement(rms, told, 2.0),
        *([JOINED] if joined else []),
        *thinned(curves),
        *_marked(places),
        *([far] if far else []),
    ]
    body = along_depth(curves, log_axis("rms", values, limits), len(places), "rms")
    return _complete("signal", said, body)


def _predicted(
    name: str,
    places: Sequence[Place],
    measured: Sequence[float | None],
    told: Sequence[float | None],
    colour: str,
    joined: Sequence[str] | None,
) -> Series:
    """The curve of a prediction: a dashed line, which starts from what was measured."""
    anchors = None if joined else measured
    look = {"dashes": DASHES, "dots": False, "line": 0.9}
    return series(name, places, told, colour, joined=joined, anchors=anchors, **look)


def before_after(before: Record, after: Record) -> Figure:
    """Return signal and cotangent along depth of two reports in one figure.

    Example::

        before_after(repair.before, repair.after).save("repair.svg")
    """
    curves = []
    for record, when, colour in ((before, "before", ORANGE), (after, "after", BLUE)):
        places, joined = places_of(record), joints(record)
        rms = [layer.rms for layer in record.layers]
        back = [layer.cotangent_rms for layer in record.layers]
        curves += [
            series(f"signal {when}", places, rms, colour, joined=joined),
            series(f"cotangent {when}", places, back, colour, joined=joined, dashes=DASHES),
        ]
    curves = _drawn(*curves)
    values = _values(curves)
    limits, _ = _limits(after.compute_dtype, values)
    said = [_course(curve, back=curve.name.startswith("cotangent")) for curve in curves]
    said += thinned(curves)
    last = max(len(before.layers), len(after.layers))
    body = along_depth(curves, log_axis("rms", values, limits), last, "rms")
    title = "Signal and cotangent along depth, before and after"
    return complete("before_after", title, " ".join(said) or NOTHING, body)


def _limits(dtype: str, values: Sequence[float]) -> tuple[list[tuple[float, str]], str]:
    """The limits of dtypes that values come near, and a sentence where none does."""
    shown = [value for value in values if positive(value)]
    kinds = [k for k in dict.fromkeys((dtype, "float16")) if k]
    if not shown or not dtype:
        return [], ""
    drawn = []
    for name in kinds:
        kind = getattr(torch, name, None)
        if isinstance(kind, torch.dtype) and kind.is_floating_point:
            limits, near = torch.finfo(kind), NEAR if name == dtype else NEAR_OTHER
            if min(shown) < near * limits.tiny:
                drawn.append((limits.tiny, f"{name}: smallest normal {number(limits.tiny)}"))
            if max(shown) > limits.max / near:
                drawn.append((limits.max, f"{name}: largest {number(limits.max)}"))
    own = any(text.startswith(f"{dtype}:") for _, text in drawn)
    return drawn, "" if own else f"No value comes near the limits of {dtype}."


# ---- correlation ---------------------------------------------------------------------------------


def _correlation(record: Record) -> Figure | None:
    places, layers, joined = places_of(record), record.layers, joints(record)
    measured = [layer.correlation for layer in layers]
    told = [layer.predicted_correlation for layer in layers]
    curves = _drawn(
        series("measured", places, measured, BLUE, joined=joined),
        _predicted("predicted", places, measured, told, GREEN, joined),
    )
    points = [p for p in curves[0].points if math.isfinite(p.value)] if curves else []
    if not points:
        return None
    ends = tuple(dict.fromkeys((points[0], points[-1])))
    most = max(points, key=lambda point: point.value)
    told_ends = " and ".join(f"{_near_one(end.value)} in {_layer(end)}" for end in ends)
    largest = "" if most in ends else f"; the largest is {_near_one(most.value)}, in {_layer(most)}"
    said = [
        f"Two samples have a correlation of {told_ends}{largest}.",
        "At 1 they can no longer be told apart.",
        *_agreement(measured, told, None),
        *([JOINED] if joined else []),
        *thinned(curves),
        *_marked(places),
    ]
    low = min(point.value for point in points)
    axis = Axis({
        "field": "value",
        "type": "quantitative",
        "title": "correlation",
        "scale": {"domain": [-1 if low < -0.05 else 0, 1.02], "nice": False},
        "axis": {"tickCount": 5},
    })  # fmt: skip
    return _complete("correlation", said, along_depth(curves, axis, len(places), "correlation"))


def _near_one(value: float) -> str:
    """Write a correlation so that it shows how far from 1 it is."""
    return f"1 − {number(1 - value, 2)}" if 0.995 <= value < 1 else number(value)


# ---- distinct units ------------------------------------------------------------------------------


def _units(record: Record) -> Figure | None:
    bars = [
        (place, layer.distinct_units, layer.units)
        for place, layer in zip(places_of(record), record.layers, strict=True)
        if layer.units and layer.distinct_units is not None
    ]
    if not bars:
        return None
    few = [bar for bar in bars if bar[1] < bar[2]]
    said = [f"All units can be told apart in each of {count(len(bars), 'layer')}."]
    if few:
        place, distinct, units = min(few, key=lambda bar: bar[1] / bar[2])
        said = [
            f"{len(few):,} of {count(len(bars), 'layer')} have fewer distinct units than units; "
            f"the fewest are {distinct:,} of {units:,}, in layer {shortened(place.layer)}."
        ]
    if len(bars) > BARS:
        said.append("Each bar shows the worst layer of its stretch.")
    said += _marked(place for place, _, _ in few)
    rows = [_bar(part) for part in _stretches(bars, BARS)]
    return _complete("units", said, _bars(rows, len(record.layers)))


def _bars(rows: Sequence[Json], last: int) -> Json:
    """A bar for each row, with its amounts where units are copies and there is room."""
    few = any(row["share"] < 1 for row in rows)
    states = {state: STATES[state] for state in STATES if any(r["state"] == state for r in rows)}
    share = {
        "field": "share",
        "type": "quantitative",
        "title": "distinct units",
        "scale": {"domain": [0, 1], "nice": False},
        "axis": {"format": "%", "tickCount": 5},
    }
    colour = {
        "field": "state",
        "type": "nominal",
        "legend": {"title": None, "symbolType": "square"} if few else None,
        "scale": {"domain": list(states), "range": list(states.values())},
    }
    told = ("layer", "op", "distinct", "finding")
    encoding = {
        "x": {**depth_axis(last), "field": "from"},
        "x2": {"field": "to"},
        "y": share,
        "y2": {"datum": 0},
        "color": colour,
        "tooltip": [{"field": field, "type": "nominal", "title": field} for field in told],
    }
    layers: list[Json] = [{"mark": {"type": "rect"}, "encoding": encoding}]
    widest = max(len(row["distinct"]) for row in rows)
    if few and len(rows) * widest <= LETTERS:
        middle = {"field": "at", "type": "quantitative"}
        layers.append({
            "transform": [{"filter": {"field": "share", "lt": 1}}],
            "mark": {"type": "text", "dy": -8},
            "encoding": {"x": middle, "y": share, "text": {"field": "distinct"}},
        })  # fmt: skip
    return {"data": {"values": list(rows)}, "layer": layers}


def _stretches(bars: Sequence[T], most: int) -> list[Sequence[T]]:
    """Neighbours that share one bar, so that there are no more than ``most``."""
    amount = min(len(bars), most)
    cuts = [len(bars) * each // amount for each in range(amount + 1)]
    return [bars[start:end] for start, end in pairwise(cuts)]


def _bar(part: Sequence[tuple[Place, int, int]]) -> Json:
    """The worst layer of a stretch, as wide as the stretch."""
    place, distinct, units = min(part, key=lambda bar: (bar[1] / bar[2], bar[0].severity is None))
    gap = 0.1 if len(part) == 1 else 0.0
    return {
        "at": place.at,
        "from": part[0][0].at - 0.5 + gap,
        "to": part[-1][0].at + 0.5 - gap,
        "layer": place.layer,
        "op": place.op,
        "distinct": f"{distinct}/{units}",
        "share": rounded(distinct / units),
        "state": _state(place, distinct, units),
        "finding": place.finding,
    }


def _state(place: Place, distinct: int, units: int) -> str:
    if distinct >= units:
        return "all distinct"
    return f"copies, {place.severity} found" if place.severity else "copies, no finding"


# ---- parameters ----------------------------------------------------------------------------------


def _by_parameter(record: Record) -> dict[str, Place]:
    """The place of the first layer that uses each parameter."""
    found: dict[str, Place] = {}
    for place, layer in zip(places_of(record), record.layers, strict=True):
        for parameter in layer.parameters:
            found.setdefault(parameter, place)
    return found


def _std(record: Record) -> Figure | None:
    places = _by_parameter(record)
    held: list[tuple[Place, float]] = []
    for start in record.starts:
        place, size = places.get(start.parameter), start.size
        if place is not None and size is not None and start.planned_std:
            named = replace(
                place,
                layer=visible(start.parameter),
                op=f"{visible(start.scheme or '')}, std {number(start.planned_std)}",
            )
            held.append((named, size / start.planned_std))
    if not held:
        return None
    held.sort(key=lambda pair: pair[0].at)
    curve = series("std", [p for p, _ in held], [ratio for _, ratio in held], BLUE, line=0.0)
    near = sum(0.5 <= ratio <= 2 for _, ratio in held)
    far, ratio = max(held, key=lambda pair: abs(math.log(max(pair[1], 1e-300))))
    left = len(record.starts) - len(held)
    said = [
        f"The std of {near:,} of {count(len(held), 'parameter')} is within a factor of 2 of the "
        f"planned one; the farthest is ×{number(ratio)}, at {shortened(far.layer)}.",
        *([f"Not shown: {count(left, 'parameter')} planned as zero or left as they are."]
          if left else []),
        *thinned([curve]),
    ]  # fmt: skip
    values = [ratio for _, ratio in held]
    axis = log_axis("std over planned std", [*values, 0.5, 2.0], [(1.0, "")])
    body = along_depth([curve], axis, len(record.layers), "times planned", ("parameter", "planned"))
    return _complete("std", said, body)


def _weights(record: Record) -> Figure | None:
    places = _by_parameter(record)
    taken = chosen(record.starts, places)
    if not taken:
        return None
    body, height = ridges(taken, places)
    lead = f"{len(taken)} of {count(sum(map(shown, record.starts)), 'weight')}"
    if any(map(outlined, taken)):
        lead += "; the grey outline is the planned distribution"
    bare: dict[str, list[str]] = {}
    for start in taken:
        if not outlined(start):
            bare.setdefault(start.scheme or "left as it is", []).append(start.parameter)
    said = [f"{lead}."]
    if bare:
        told = (f"{_names(names)} ({visible(scheme)})" for scheme, names in bare.items())
        said.append(f"Without an outline: {'; '.join(told)}.")
    return _complete("weights", said, body, height)


def _names(names: Sequence[str]) -> str:
    return listing([shortened(name) for name in folded_names(names, NAMED)], NAMED)


def _gradient(record: Record) -> Figure | None:
    places = places_of(record)
    sizes = {start.parameter: start for start in record.starts}
    values: list[float | None] = []
    zero = 0
    for layer in record.layers:
        start = next((sizes[name] for name in layer.parameters if name in sizes), None)
        if start is None or start.std is None or start.mean is None or layer.gradient_rms is None:
            values.append(None)
            continue
        size = math.hypot(start.std, start.mean)
        zero += size == 0 and layer.gradient_rms > 0
        values.append(
            layer.gradient_rms / size if size else 0.0 if layer.gradient_rms == 0 else None
        )
    curve = series("gradient over weight", places, values, GREEN, joined=joints(record))
    if not curve.points:
        return None
    alive = [p for p in curve.points if positive(p.value)]
    said = [_course(curve, back=True)]
    if len(alive) > 1:
        top, low = (f(alive, key=lambda p: p.value) for f in (max, min))
        ratio = number(top.value / low.value)
        said.append(f"Largest over smallest: {ratio} ({_layer(top)} over {_layer(low)}).")
    if zero:
        said.append(f"{count(zero, 'weight')} with a gradient but all zero: no ratio.")
    said += [*thinned([curve]), *_marked(places)]
    axis = log_axis("gradient rms / weight rms", _values([curve]))
    body = along_depth([curve], axis, len(record.layers), "ratio")
    return _complete("gradient", said, body)


# ---- words ---------------------------------------------------------------------------------------


def _complete(kind: str, said: Iterable[str], body: Json, height: int = HEIGHT) -> Figure:
    return complete(kind, _capital(KINDS[kind]), " ".join(said), body, height)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _drawn(*curves: Series) -> list[Series]:
    return [curve for curve in curves if curve.points]


def _values(curves: Iterable[Series]) -> list[float]:
    return [point.value for curve in curves for point in curve.points]


def _layer(point: Point) -> str:
    return f"layer {shortened(point.place.layer)}"


def _course(curve: Series, *, back: bool) -> str:
    """One sentence: where a curve starts and ends, and what the axis cannot show."""
    alive = [p for p in curve.points if positive(p.value)]
    zeros = sum(p.value == 0 for p in curve.points)
    wild = sum(not math.isfinite(p.value) for p in curve.points)
    parts = []
    if len(alive) > 1:
        first, last = (alive[-1], alive[0]) if back else (alive[0], alive[-1])
        ratio = last.value / first.value
        verb = "falls" if ratio < FALLS else "rises" if ratio > 1 / FALLS else "goes"
        parts.append(
            f"{verb} from {number(first.value)} ({_layer(first)}) "
            f"to {number(last.value)} ({_layer(last)})"
        )
    elif alive:
        parts.append(f"is {number(alive[0].value)} in {_layer(alive[0])}")
    if zeros:
        parts.append(f"is exactly 0 in {count(zeros, 'layer')}")
    if wild:
        parts.append(f"is not finite in {count(wild, 'layer')}")
    what = f" ({COTANGENT})" if curve.name in ("cotangent", "cotangent before") else ""
    return f"{_capital(curve.name)}{what} {'; '.join(parts)}."


def _agreement(
    measured: Sequence[float | None], told: Sequence[float | None], factor: float | None
) -> Iterator[str]:
    """How well the prediction fits: within a factor, or within a tenth where that is None."""
    pairs = [(m, t) for m, t in zip(measured, told, strict=True) if m is not None and t is not None]
    pairs = [(m, t) for m, t in pairs if math.isfinite(m) and math.isfinite(t)]
    if pairs:
        near = sum(
            abs(m - t) <= TENTH if factor is None else t / factor <= m <= t * factor
            for m, t in pairs
        )
        within = f"{TENTH:g}" if factor is None else f"a factor of {factor:g}"
        yield f"{near:,} of {count(len(pairs), 'prediction')} within {within}."


def _marked(places: Iterable[Place]) -> Iterator[str]:
    """A sentence on the layers that are marked, where there are any."""
    blamed = [place for place in places if place.severity is not None]
    if blamed:
        found = dict.fromkeys(code for place in blamed for code in place.finding.split(", "))
        yield f"{count(len(blamed), 'layer')} marked: {', '.join(found)}."


MAKERS: Mapping[str, Callable[[Record], Figure | None]] = {
    "signal": _signal,
    "correlation": _correlation,
    "units": _units,
    "std": _std,
    "weights": _weights,
    "gradient": _gradient,
}
