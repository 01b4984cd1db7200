"""Distributions of weights, one above the other, each beside the one that is planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fanin.catalogue import SCHEMES
from fanin.report.chart import BLUE, GREY, SEVERITIES, Json, Place, rounded
from fanin.report.wording import number
from fanin.starts import Start
from fanin.wording import visible

__all__ = ["ROWS", "chosen", "outlined", "ridges", "shown"]

ROWS = 12  # distributions in one figure
MARKED = 8  # of them of layers that a finding names, where there are more; the others compare
SPAN = 4.0  # planned std to either side: all but 1 in 16,000 of a normal distribution
BELL = 1 / math.sqrt(2 * math.pi)  # density at the middle of a normal distribution of std 1
TALL = 0.42  # share of a row that the planned bell fills
TOP = 0.7  # share that a distribution may fill; its name stands above
ROW = 52  # pixels of each
NARROW = 0.05  # planned std that a distribution needs for its shape to be seen: 4 of 640 pixels
STEP = 0.25  # planned std between two points of an outline
# A normal distribution cut at two of its std has this std of its own.
CUT, INSIDE = 0.87962566103423978, 0.9544997361036416
# The density of an entry of a random rotation of n rows is √(1 − 1.5/n) of a normal one in the
# middle: from 16 on that is one of the 22 pixels of a bell.  looks_linear is made of halves.
BELLS = {"orthogonal": 16, "looks_linear": 32}
FIGURES = 165  # pixels that the figures at the end of a row take


@dataclass(frozen=True)
class _Ridge:
    """A parameter, the height at which its row stands, and the std that its row is drawn in."""

    start: Start
    place: Place | None
    foot: int
    unit: float


def shown(start: Start) -> bool:
    """Tell whether a parameter has a distribution to show: a matrix with finite values."""
    return len(start.shape) > 1 and start.mean is not None and start.std is not None


def chosen(starts: Sequence[Start], places: Mapping[str, Place]) -> list[Start]:
    """Return up to ``ROWS`` parameters in the model's order: guilty ones first, over all depth."""
    able = [start for start in starts if shown(start)]
    marked = [s for s in able if s.parameter in places and places[s.parameter].severity]
    others = [s for s in able if all(s is not each for each in marked)]
    few = _spread(marked, max(MARKED, ROWS - len(others)))
    taken = few + _spread(others, ROWS - len(few))
    return [start for start in able if any(start is each for each in taken)]


def _spread(starts: Sequence[Start], amount: int) -> list[Start]:
    """Some of them at equal distances, the first and the last among them."""
    if len(starts) <= amount:
        return list(starts)
    last = len(starts) - 1
    return [starts[round(at * last / (amount - 1))] for at in range(amount)]


def outlined(start: Start) -> bool:
    """Tell whether the planned distribution has a shape to draw."""
    return _form(start) is not None


def _form(start: Start) -> str | None:
    """Name the shape of the planned distribution; None where it has none to draw."""
    scheme = start.scheme or ""
    if not start.planned_std:
        return None
    if scheme in BELLS:
        inputs, taps = math.prod(start.shape[1:]), math.prod(start.shape[2:])
        zeros = scheme == "looks_linear" and taps > 1  # all taps but the one at the centre
        return None if zeros or inputs < BELLS[scheme] else "normal"
    form = SCHEMES[scheme].form if scheme in SCHEMES else ""
    return form if form in DENSITIES else None


def _standing(start: Start) -> str:
    """Write how a distribution stands to the planned one: ``std 0.02 · ×0.2 of planned``."""
    std, planned = start.std or 0.0, start.planned_std
    now = f"all {number(start.mean)}" if std == 0 else f"std {number(std)}"
    if start.scheme is None or planned is None:
        return f"{now} · left as it is"
    if planned == 0 or std == 0:
        return f"{now} · planned {number(planned)}"
    return f"{now} · ×{number(std / planned)} of planned"


def ridges(starts: Sequence[Start], places: Mapping[str, Place]) -> tuple[Json, int]:
    """Return the body of the figure and its height in pixels."""
    rows = [
        _Ridge(start, places.get(start.parameter), len(starts) - at, _unit(start))
        for at, start in enumerate(starts, 1)
    ]
    x = {
        "field": "x",
        "type": "quantitative",
        "title": "weight, in planned std",
        "scale": {"domain": [-SPAN, SPAN], "nice": False},
        "axis": {"grid": True, "values": list(range(-int(SPAN), int(SPAN) + 1))},
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [0, len(rows)], "nice": False, "zero": True},
    }
    labels = [_label(ridge) for ridge in rows]
    layers = [*_shapes(rows, x, y), *_names(labels, y), _pointer(labels, y)]
    return {"layer": [layer for layer in layers if layer["data"]["values"]]}, ROW * len(rows)


def _shapes(rows: Sequence[_Ridge], x: Json, y: Json) -> Iterator[Json]:
    """Histograms as areas, constants as lines, planned distributions as outlines."""
    colours = [BLUE, *(colour for colour, _ in SEVERITIES.values())]
    fill = {
        "field": "kind",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["now", *SEVERITIES], "range": colours},
    }
    from_foot = {"x": x, "y": y, "y2": {"field": "foot"}, "color": fill}
    detail = {"field": "foot", "type": "nominal"}
    yield {
        "data": {"values": [row for ridge in rows for row in _bars(ridge)]},
        "mark": {"type": "area", "interpolate": "step-after", "opacity": 0.55},
        "encoding": {**from_foot, "detail": detail},
    }
    yield {
        "data": {"values": [row for ridge in rows for row in _spike(ridge)]},
        "mark": {"type": "rule", "strokeWidth": 3},
        "encoding": from_foot,
    }
    yield {
        "data": {"values": [row for ridge in rows for row in _outline(ridge)]},
        "mark": {"type": "line", "strokeWidth": 1.5, "color": GREY},
        "encoding": {"x": x, "y": y, "detail": detail},
    }


def _names(labels: list[Json], y: Json) -> Iterator[Json]:
    """Above each row its name, and how it stands to the planned one."""
    # A name that would run into the figures beside it loses its beginning.
    room = {"limit": {"expr": f"width - {FIGURES}"}, "dir": "rtl"}
    for field, side in (("parameter", {"align": "left", **room}), ("said", {"align": "right"})):
        at = {"value": 0 if field == "parameter" else "width"}
        yield {
            "data": {"values": labels},
            "mark": {"type": "text", "baseline": "top", "fontSize": 10, **side},
            "encoding": {"x": at, "y": y, "text": {"field": field}},
        }


def _unit(start: Start) -> float:
    """What one step of the axis is worth: the planned std, or its own where nothing is planned."""
    own = start.std or abs(start.mean or 0.0) or 1.0
    return start.planned_std or own


def _kind(ridge: _Ridge) -> str:
    return (ridge.place.severity if ridge.place else None) or "now"


def _bars(ridge: _Ridge) -> Iterator[Json]:
    """The histogram as a stepped outline from its lowest to its highest value, within the span."""
    start, total = ridge.start, sum(ridge.start.counts)
    if not total or start.low is None or start.high is None or _shapeless(ridge):
        return
    width = (start.high - start.low) / len(start.counts) / ridge.unit
    edges = [start.low / ridge.unit + bar * width for bar in range(len(start.counts) + 1)]
    shares = [amount / total / width for amount in start.counts]
    tall = 0.0
    for (left, right), share in zip(pairwise(edges), shares, strict=True):
        if right > -SPAN and left < SPAN:
            tall = min(TOP, TALL * share / BELL)
            yield _corner(ridge, max(left, -SPAN), tall)
    yield _corner(ridge, min(edges[-1], SPAN), tall)


def _corner(ridge: _Ridge, x: float, tall: float) -> Json:
    return {
        "x": rounded(x),
        "y": rounded(ridge.foot + tall),
        "foot": ridge.foot,
        "kind": _kind(ridge),
    }


def _shapeless(ridge: _Ridge) -> bool:
    """Whether the values are too near one another, or all of them outside of the span."""
    low, high = ((ridge.start.low or 0.0) / ridge.unit, (ridge.start.high or 0.0) / ridge.unit)
    return high - low < NARROW or low >= SPAN or high <= -SPAN


def _spike(ridge: _Ridge) -> Iterator[Json]:
    """Values without a shape to show: a line where they are, or at the edge."""
    if _shapeless(ridge):
        at = min(max((ridge.start.mean or 0.0) / ridge.unit, -SPAN), SPAN)
        yield {"x": rounded(at), "y": ridge.foot + TOP, "foot": ridge.foot, "kind": _kind(ridge)}


def _outline(ridge: _Ridge) -> Iterator[Json]:
    """The planned density, where there is one to draw."""
    form = _form(ridge.start)
    if form is not None:
        for at in range(-round(SPAN / STEP), round(SPAN / STEP) + 1):
            y = rounded(ridge.foot + TALL * DENSITIES[form](at * STEP) / BELL)
            yield {"x": at * STEP, "y": y, "foot": ridge.foot}


def _normal(x: float) -> float:
    return BELL * math.exp(-(x**2) / 2)


def _uniform(x: float) -> float:
    return 1 / math.sqrt(12) if abs(x) <= math.sqrt(3) else 0.0


def _trunc_normal(x: float) -> float:
    return CUT / INSIDE * _normal(x * CUT) if abs(x) * CUT <= 2 else 0.0


def _label(ridge: _Ridge) -> Json:
    start = ridge.start
    name = visible(start.parameter)
    planned = "–" if start.planned_std is None else number(start.planned_std)
    return {
        "said": _standing(start),
        "parameter": name,
        "shape": "×".join(map(str, start.shape)),
        "planned": f"{visible(start.scheme or 'left as it is')}, std {planned}",
        "finding": ridge.place.finding if ridge.place else "",
        "foot": ridge.foot,
        "y": rounded(ridge.foot + 0.96),
    }


def _pointer(labels: list[Json], y: Json) -> Json:
    """What the pointer shows anywhere in a row."""
    fields = ("parameter", "shape", "said", "planned", "finding")
    return {
        "data": {"values": labels},
        "mark": {"type": "rect", "opacity": 0.001},
        "encoding": {
            "x": {"value": 0},
            "x2": {"value": "width"},
            "y": y,
            "y2": {"field": "foot"},
            "tooltip": [{"field": field, "type": "nominal", "title": field} for field in fields],
        },
    }


# Densities of std 1, by the form of a scheme.
DENSITIES: Mapping[str, Callable[[float], float]] = {
    "normal": _normal,
    "uniform": _uniform,
    "trunc_normal": _trunc_normal,
}
