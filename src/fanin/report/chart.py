"""The parts figures along depth are made of: places, curves, thinning, axes and marks.

Names of layers are data, never part of an expression, and go through `visible`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fanin.findings import Finding
from fanin.report.record import Record
from fanin.report.rows import guilty, stem
from fanin.wording import visible

__all__ = ["BLUE", "COLOURS", "GREEN", "GREY", "ORANGE", "PURPLE", "SEVERITIES", "SKY", "Axis",
           "Json", "Place", "Point", "Series", "along_depth", "depth_axis", "joints", "log_axis",
           "places_of", "positive", "rounded", "series", "shortened", "thin",
           "thinned"]  # fmt: skip

# Okabe and Ito's colours, told apart with any kind of colour vision.  Orange and purple are darker
# here, so that each stands 3 : 1 from white and from the dark page.
BLUE, GREEN, ORANGE, PURPLE, GREY = "#0072b2", "#009e73", "#c28100", "#bf6a97", "#7d858d"
SKY = "#3d94d1"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#8a6d00")
SEVERITIES = {"error": ("#d55e00", "diamond"), "warning": (ORANGE, "square")}

POINTS = 120  # of one curve: more can hardly be told apart on 640 pixels
LINES = 10  # of one curve that are thinned one by one; more are thinned together
DIGITS = 4  # significant, of a figure in the data
NAME = 32  # characters of a layer's name beside an axis; the tooltip has all of it
TICKS = 7  # labelled decades of a logarithmic axis, at most
FEW = 12  # places that each have a label on the axis
END = 0.4  # share of the width that the label of a rule takes
ROOM = 0.1  # decades between a point and the edge of a logarithmic axis
HIGHEST = 308  # decade of the largest float
LABEL = "format(datum.value, datum.value < 1e-3 || datum.value >= 1e5 ? '~e' : '~g')"
SIZES = ((40, 60), (100, 36), (math.inf, 18))  # (points, square pixels of each)

Json = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A layer's place along depth, as figures show it.

    Attributes:
        at: 1 for the first layer that runs.
        layer: its name, safe to show.
        op: what it does.
        finding: codes and names of the errors and warnings that name it.
        severity: the gravest of these, or None.
    """

    at: int
    layer: str
    op: str
    finding: str
    severity: str | None


@dataclass(frozen=True)
class Point:
    """A figure at a place, which may be 0 or not finite.

    Attributes:
        place: where.
        value: the figure.
        run: number of the unbroken line it belongs to.
    """

    place: Place
    value: float
    run: int = 0


@dataclass(frozen=True)
class Series:
    """One curve along depth.

    Attributes:
        name: for the legend.
        points: in order of depth.
        colour: of line and points.
        dashes: of the line; empty for a full one.
        dots: whether each point is drawn, or the line alone.
        line: opacity of the line; 0 for points alone.
    """

    name: str
    points: tuple[Point, ...]
    colour: str
    dashes: tuple[int, ...] = ()
    dots: bool = True
    line: float = 0.45


@dataclass(frozen=True)
class Axis:
    """A vertical axis: its encoding, and what is drawn across the figure at some of its values."""

    encoding: Json
    rules: tuple[tuple[float, str], ...] = ()


# ---- the data ------------------------------------------------------------------------------------


def places_of(record: Record) -> tuple[Place, ...]:
    """Return the place of each layer, in order of execution."""
    blame = guilty(record)
    return tuple(
        _place(at, layer.name, layer.op, blame.get(layer.name, ()))
        for at, layer in enumerate(record.layers, 1)
    )


def _place(at: int, name: str, op: str, found: Sequence[Finding]) -> Place:
    said = dict.fromkeys(f"{finding.code} {finding.name}" for finding in found)
    grave = next((s for s in SEVERITIES if any(finding.severity == s for finding in found)), None)
    shown = visible(name) or "(the whole model)"
    return Place(at, shown, visible(op), visible(", ".join(said)), grave)


def positive(value: float | None) -> bool:
    """Tell whether a logarithmic axis can show a figure."""
    return value is not None and math.isfinite(value) and value > 0


def joints(record: Record) -> list[str] | None:
    """Return what joins layers into lines: None for one line through all of them.

    Beside a residual stream the scales of a block's layers have nothing to do with one another;
    lines then join the same layer of successive blocks.
    """
    if not record.branches:
        return None
    return [f"{layer.op} {'#'.join(stem(layer.name))}" for layer in record.layers]


def series(
    name: str,
    places: Sequence[Place],
    values: Iterable[float | None],
    colour: str,
    *,
    joined: Sequence[str] | None = None,
    anchors: Iterable[float | None] | None = None,
    **look: Any,
) -> Series:
    """Make a curve of the value at each place.

    Its line breaks where there is no value, or one that is 0 or not finite.

    Args:
        name: for the legend.
        places: where.
        values: the figure there.
        colour: of line and points.
        joined: lines join the places that have the same of these; all of them by default.
        anchors: where a line starts anew, it starts from these: the place before its first value.
        look: see `Series`.
    """
    values = list(values)
    held = [None] * len(values) if anchors is None else list(anchors)
    keys = joined or [""] * len(values)
    points: list[Point] = []
    breaks: dict[str, int] = {}
    runs: dict[tuple[str, int], int] = {}
    for at, (place, value, key) in enumerate(zip(places, values, keys, strict=True)):
        if value is None or not math.isfinite(value) or value == 0:
            breaks[key] = breaks.get(key, 0) + 1
        if value is None and values[at + 1 : at + 2] not in ([], [None]):
            value = held[at]
        if value is not None:
            run = runs.setdefault((key, breaks.get(key, 0)), len(runs))
            points.append(Point(place, value, run))
    return Series(name, tuple(points), colour, **look)


def thin(points: Sequence[Point]) -> list[Point]:
    """Return about `POINTS` points: extremes and guilty ones of each stretch of each line.

    Where there are no more, all of them.
    """
    if len(points) <= POINTS:
        return list(points)
    runs: dict[int, list[Point]] = {}
    for point in points:
        runs.setdefault(point.run, []).append(point)
    lines = list(runs.values()) if len(runs) <= LINES else [list(points)]
    each = 3 if any(point.place.severity for point in points) else 2
    kept = [point for line in lines for point in _extremes(line, POINTS // each // len(lines))]
    return sorted(kept, key=lambda point: point.place.at)


def thinned(curves: Iterable[Series]) -> Iterator[str]:
    """A sentence where a figure does not draw every point."""
    most = max((len(curve.points) for curve in curves), default=0)
    if most > POINTS:
        yield f"Of {most:,} points the extremes of each stretch are drawn."


def _extremes(points: Sequence[Point], stretches: int) -> Iterator[Point]:
    """The lowest, the highest and one of the gravest of each stretch, in their order."""
    grades = [*SEVERITIES, None]
    for stretch in range(stretches):
        start, end = (len(points) * each // stretches for each in (stretch, stretch + 1))
        part = points[start:end]
        if part:
            low, high = (f(part, key=lambda point: _rank(point.value)) for f in (min, max))
            grave = min(part, key=lambda point: grades.index(point.place.severity))
            chosen = (low, high, *([grave] if grave.place.severity else []))
            yield from (point for point in part if any(point is each for each in chosen))


def _rank(value: float) -> float:
    """NaN stands above all, as infinity does."""
    return math.inf if math.isnan(value) else value


def rounded(value: float) -> float:
    """Return a figure with the digits that a tooltip shows: the data stays small."""
    short = float(f"{value:.{DIGITS}g}")
    return short if math.isfinite(short) else value  # the largest float would round up


def shortened(name: str, limit: int = NAME) -> str:
    """Return a name that fits beside an axis, with its end, which tells layers apart.

    >>> shortened("transformer.h.11.attn.c_attn.weight", 20)
    '…1.attn.c_attn.weight'
    """
    return name if len(name) <= limit else f"…{name[-limit:]}"


def _row(point: Point, curve: Series) -> Json:
    place = point.place
    row: Json = {
        "at": place.at,
        "series": curve.name,
        "value": rounded(point.value) if math.isfinite(point.value) else str(point.value),
        "run": point.run,
    }
    if curve.dots:  # what the tooltip says
        row |= {"layer": place.layer, "op": place.op}
        if place.severity is not None:
            row |= {"finding": place.finding, "severity": place.severity}
    return row


# ---- the axes ------------------------------------------------------------------------------------


def depth_axis(last: int) -> Json:
    """The horizontal axis: places from 1 to ``last``."""
    axis: Json = {"grid": False, "tickMinStep": 1, "format": "d"}
    if last <= FEW:
        axis["values"] = list(range(1, last + 1))
    return {
        "field": "at",
        "type": "quantitative",
        "title": "layer, in order of execution",
        "scale": {"domain": [0.5, max(last, 1) + 0.5], "nice": False, "zero": False},
        "axis": axis,
    }


def log_axis(
    title: str, values: Iterable[float | None], rules: Iterable[tuple[float, str]] = ()
) -> Axis:
    """A logarithmic axis of whole decades, two at least, around the values and the rules."""
    rules, known = tuple(rules), [value for value in values if value is not None]
    shown = [value for value in (*known, *(at for at, _ in rules)) if positive(value)]
    # A little room, so that no point lies on the edge, where 0 and what is not finite are drawn.
    low = min(math.floor(math.log10(min(shown, default=1.0)) - ROOM), HIGHEST - 2)
    high = max(math.ceil(math.log10(max(shown, default=1.0)) + ROOM), low + 2)
    low -= 0 in known  # and the label there
    high += not all(map(math.isfinite, known))
    step = max(1, math.ceil((high - low) / TICKS))
    encoding = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "domain": [_power(low), _power(high)], "nice": False},
        "axis": {
            "values": [_power(at) for at in range(low, high + 1) if at % step == 0],
            "labelExpr": LABEL,
        },
    }
    return Axis(encoding, rules)


def _power(exponent: int) -> float:
    """A power of ten, within what a float can hold."""
    return 10.0 ** max(min(exponent, HIGHEST), -323)


# ---- the marks -----------------------------------------------------------------------------------


def along_depth(
    curves: Sequence[Series],
    axis: Axis,
    last: int,
    value: str,
    names: tuple[str, str] = ("layer", "op"),
) -> Json:
    """The body of a figure: curves along depth; guilty layers are marked by colour and shape.

    On a logarithmic axis 0 stands at the foot and what is not finite at the top, with a label.

    Args:
        curves: in the order of the legend.
        axis: the vertical one.
        last: number of places.
        value: what the tooltip calls a figure.
        names: what it calls the name and the operation of a place.
    """
    log = axis.encoding["scale"].get("type") == "log"
    drawn: list[Json] = []
    edge: list[Json] = []
    for curve in curves:
        for row in map(_row, thin(curve.points), itertools.repeat(curve)):
            (drawn if _fits(row["value"], log) else edge).append(row)
    most = max((len(thin(curve.points)) for curve in curves if curve.dots), default=0)
    size = next(area for upto, area in SIZES if most <= upto)
    shared = {"x": depth_axis(last), "color": _scale(curves)}
    tips = [_tooltip(value, names, guilty=guilty) for guilty in (False, True)]
    layers = [layer for at, text in axis.rules for layer in _rule(at, text, drawn, last)]
    encoding = {**shared, "y": axis.encoding}
    layers += [layer for curve in curves if curve.line for layer in _line(curve, curves, encoding)]
    dotted = [curve.name for curve in curves if curve.dots]
    blame = _severities((*drawn, *edge))
    layers += _dots(dotted, encoding, blame, tips, size)
    for foot in (True, False):
        held = [row for row in edge if (row["value"] == 0) is foot and row["series"] in dotted]
        layers += _edge(held, shared, blame, tips, foot=foot)
    return {"data": {"values": drawn}, "layer": layers}


def _fits(value: object, log: bool) -> bool:
    return isinstance(value, float) and (value > 0 or not log)


def _scale(curves: Sequence[Series]) -> Json:
    legend = {"title": None, "symbolType": "stroke", "symbolStrokeWidth": 2.5, "symbolSize": 200}
    scale = {"domain": [c.name for c in curves], "range": [c.colour for c in curves]}
    return {"field": "series", "type": "nominal", "legend": legend if len(curves) > 1 else None,
            "scale": scale}  # fmt: skip


def _line(curve: Series, curves: Sequence[Series], encoding: Json) -> Iterator[Json]:
    dashes = {
        "domain": [c.name for c in curves],
        "range": [list(c.dashes) or [1, 0] for c in curves],
    }
    legend = encoding["color"]["legend"]
    yield {
        "transform": [{"filter": {"field": "series", "equal": curve.name}}],
        "mark": {"type": "line", "strokeWidth": 1.5, "opacity": curve.line},
        "encoding": {
            **encoding,
            "detail": {"field": "run", "type": "nominal"},
            "strokeDash": {"field": "series", "type": "nominal", "legend": legend, "scale": dashes},
        },
    }


def _dots(
    dotted: Sequence[str], encoding: Json, blame: Json, tips: Sequence[list[Json]], size: int
) -> Iterator[Json]:
    own = {"filter": {"field": "series", "oneOf": list(dotted)}}
    blamed = {"field": "severity", "oneOf": list(SEVERITIES)}
    yield {
        "transform": [own, {"filter": {"not": blamed}}],
        "mark": {"type": "point", "filled": True, "size": size, "opacity": 0.9},
        "encoding": {**encoding, "tooltip": tips[0]},
    }
    if blame:
        # One curve shows the severity in the point; of several, the fill tells which it is.
        look = {**encoding, **blame, "tooltip": tips[1]}
        if len(dotted) == 1:
            look["fill"] = blame["stroke"]
            del look["color"]
        yield {
            "transform": [own, {"filter": blamed}],
            "mark": {"type": "point", "filled": True, "size": 1.7 * size, "opacity": 1,
                     "strokeWidth": 1.5},
            "encoding": look,
        }  # fmt: skip


def _severities(rows: Iterable[Json]) -> Json:
    """Encodings that mark the guilty ones of the rows by colour and shape, where there are any."""
    present = {row.get("severity") for row in rows}
    looks = {name: look for name, look in SEVERITIES.items() if name in present}
    legend = {
        "title": None,
        "orient": "bottom",  # beside the other one it would be cut off on a phone
        "symbolFillColor": "transparent",
        "symbolStrokeWidth": 2,
        "symbolSize": 120,
        "labelExpr": "datum.label + ' found'",
    }
    return {
        channel: {
            "field": "severity",
            "type": "nominal",
            "legend": legend,
            "scale": {"domain": list(looks), "range": [look[which] for look in looks.values()]},
        }
        for which, channel in enumerate(("stroke", "shape"))
        if looks
    }


def _tooltip(
    value: str, names: tuple[str, str] = ("layer", "op"), *, guilty: bool = False
) -> list[Json]:
    """What the pointer shows at a layer."""
    fields = [("layer", names[0]), ("op", names[1]), ("series", "curve"), ("value", value)]
    if guilty:
        fields.append(("finding", "finding"))
    tips: list[Json] = [{"field": f, "type": "nominal", "title": title} for f, title in fields]
    tips[3] |= {"type": "quantitative", "format": f".{DIGITS}~g"}
    return tips


def _edge(
    rows: list[Json], shared: Json, blame: Json, tips: Sequence[list[Json]], *, foot: bool
) -> list[Json]:
    """Marks for what the axis cannot show: 0 at the foot, not finite at the top."""
    y = {"value": "height"} if foot else {"value": 0}
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 1, "strokeWidth": 1.5,
            "shape": "triangle-down" if foot else "triangle-up"}  # fmt: skip
    layers: list[Json] = []
    for blamed in (False, True):
        held = [row for row in rows if ("severity" in row) is blamed]
        if held:
            told = [{**tip, "type": "nominal"} for tip in tips[blamed]]
            told[3].pop("format", None)
            encoding = {**shared, "y": y, "tooltip": told}
            if blamed:
                encoding["stroke"] = blame["stroke"]
            layers.append({"data": {"values": held}, "mark": mark, "encoding": encoding})
    if layers:
        word = {"value": "0" if foot else "not finite"}
        layers.append({
            "data": {"values": rows[:1]},
            "mark": {"type": "text", "align": "left", "dx": 7, "dy": -8 if foot else 12},
            "encoding": {"x": shared["x"], "y": y, "text": word},
        })  # fmt: skip
    return layers


def _rule(at: float, text: str, rows: Sequence[Json] = (), last: int = 1) -> Iterator[Json]:
    """A line across the figure, labelled at the end where the points of ``rows`` are farther."""
    y = {"y": {"datum": at, "type": "quantitative"}}
    yield {
        "data": {"values": [{}]},
        "mark": {"type": "rule", "strokeDash": [2, 3]},
        "encoding": y,
    }
    if text:
        left = _room(at, (row for row in rows if row["at"] <= END * last))
        right = _room(at, (row for row in rows if row["at"] >= (1 - END) * last))
        side = {"align": "left", "dx": 4} if left > right else {"align": "right", "dx": -4}
        yield {
            "data": {"values": [{}]},
            "mark": {"type": "text", "dy": -6, **side},
            "encoding": {
                "x": {"value": 0 if left > right else "width"},
                **y,
                "text": {"value": text},
            },
        }


def _room(at: float, rows: Iterable[Json]) -> float:
    """Decades from a rule to the nearest point."""
    return min((abs(math.log10(row["value"]) - math.log10(at)) for row in rows), default=math.inf)
