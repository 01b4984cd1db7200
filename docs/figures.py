"""The figures of theory.md, computed by `fanin.moments` and drawn by Vega-Lite.

``python docs/figures.py`` writes them again; a test holds them against what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import vl_convert

from fanin.errors import ArgumentError
from fanin.moments import correlation_map, critical, depth_scale, gain, length_map

__all__ = ["FIGURES", "svg"]

ACTIVATIONS = ("relu", "gelu", "selu", "tanh", "sigmoid")
START = 0.5  # correlation of the two inputs at depth 0
DEPTH = 40
TRAINABLE = 6  # depth scales that a network can be deep and still train (arXiv:1611.01232)
LONGEST = 1000.0  # layers; the depth scale has no bound at the edge of chaos
DIGITS = 5  # of what is drawn: the same file on every machine

# Colours of Okabe and Ito, which colour-blind readers can tell apart; dashes tell them apart in
# grey.  Grey text is readable on light and on dark pages.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
DASHES = ([1, 0], [8, 3], [2, 2], [8, 3, 2, 3], [4, 4])
INK = "#808080"
CONFIG = {
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": INK,
        "gridOpacity": 0.25,
        "domainColor": INK,
        "tickColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "symbolSize": 400},
}


def svg(name: str) -> str:
    """One of FIGURES, drawn."""
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", **FIGURES[name]()}
    return vl_convert.vegalite_to_svg(spec)


def lengths() -> dict[str, Any]:
    """The size of a signal along depth, behind relu, for five weight variances."""
    rows = []
    for weight_variance in (0.5, 1.0, 2.0, 3.0, 4.0):
        q = 1.0
        for depth in range(DEPTH + 1):
            rows.append(_row(f"{weight_variance:g}", depth, q**0.5))
            q = length_map("relu", q, weight_variance)
    return _lines(rows, "layer", "rms of the pre-activations", "σw²", y={"scale": {"type": "log"}})


def correlations() -> dict[str, Any]:
    """The correlation of two inputs along depth, at the gain that keeps their size."""
    rows = []
    for name in ACTIVATIONS:
        c = START
        for depth in range(DEPTH + 1):
            rows.append(_row(name, depth, c))
            c = correlation_map(name, c, 1.0, gain(name) ** 2)
    return _lines(rows, "layer", "correlation of two inputs", "activation")


def maps() -> dict[str, Any]:
    """What one layer makes of a correlation, at the gain that keeps the size."""
    grid = [step / 25 for step in range(26)]
    rows = [
        _row(name, c, correlation_map(name, c, 1.0, gain(name) ** 2))
        for name in ACTIVATIONS
        for c in grid
    ]
    drawn = _lines(rows, "correlation before the layer", "and behind it", "activation", width=330)
    same = {
        "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
        "mark": {"type": "line", "color": INK, "strokeWidth": 1},
        "encoding": {
            "x": {"field": "x", "type": "quantitative"},
            "y": {"field": "y", "type": "quantitative"},
        },
    }
    layer = {key: drawn.pop(key) for key in ("data", "mark", "encoding")}
    return {**drawn, "layer": [same, layer]}


def depths() -> dict[str, Any]:
    """How deep a plain tanh network can be, by weight and bias variance."""
    rows = []
    for bias_variance in (0.01, 0.05, 0.2):
        grid = [1 + step / 10 for step in range(31)]
        for weight_variance in sorted([*grid, critical("tanh", bias_variance)[0]]):
            deep = _trainable(weight_variance, bias_variance)
            rows.append(_row(f"{bias_variance:g}", weight_variance, deep))
    axis = {"scale": {"type": "log", "domain": [5, LONGEST], "clamp": True}}
    return _lines(rows, "σw²", "trainable depth 6 ξ, layers", "σb²", x={"scale": {"zero": False}},
                  y=axis)  # fmt: skip


def _trainable(weight_variance: float, bias_variance: float) -> float:
    try:
        return min(TRAINABLE * depth_scale("tanh", weight_variance, bias_variance), LONGEST)
    except ArgumentError:
        return LONGEST


def _row(line: str, x: float, y: float) -> dict[str, Any]:
    return {"line": line, "x": x, "y": float(f"{y:.{DIGITS}g}")}


def _lines(
    rows: list[dict[str, Any]],
    x_title: str,
    y_title: str,
    legend: str,
    x: dict[str, Any] | None = None,
    y: dict[str, Any] | None = None,
    width: int = 480,
) -> dict[str, Any]:
    """One line for each value of "line", told apart by colour and by dashes."""
    order = list(dict.fromkeys(row["line"] for row in rows))
    shared = {"field": "line", "type": "nominal", "title": legend}
    return {
        "width": width,
        "height": 300,
        "config": CONFIG,
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": x_title, **(x or {})},
            "y": {"field": "y", "type": "quantitative", "title": y_title, **(y or {})},
            "color": {**shared, "scale": {"domain": order, "range": COLOURS[: len(order)]}},
            "strokeDash": {**shared, "scale": {"domain": order, "range": DASHES[: len(order)]}},
        },
    }


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "theory_length": lengths,
    "theory_correlation": correlations,
    "theory_map": maps,
    "theory_depth": depths,
}


if __name__ == "__main__":
    for figure in FIGURES:
        path = Path(__file__).parent / "figures" / f"{figure}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg(figure) + "\n", encoding="utf-8")
