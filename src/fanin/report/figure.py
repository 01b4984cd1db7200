"""One figure: a Vega-Lite specification with its words, and the ways to look at it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import vl_convert

from fanin.errors import ArgumentError
from fanin.files import replacing
from fanin.wording import did_you_mean

__all__ = ["HEIGHT", "THEMES", "Figure", "complete", "config", "known", "nothing"]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
WIDTH, HEIGHT = 640, 300  # pixels, where no page decides on the width
FONT = "Arial, Helvetica, sans-serif"  # as wide as what the renderer measures
LINE = 128  # characters of the description that fill the width
LARGEST = 8  # scale of a picture: beyond it one takes hundreds of megabytes to draw
SUFFIXES = (".svg", ".png", ".json")

# Ink (text), dim (axes, legends) and line (grid) of each theme.  "neutral" is read on any paper:
# 4.3 : 1 on white, 4.4 : 1 on a nearly black page; no colour stands farther from both.
THEMES: Mapping[str, tuple[str, str, str]] = {
    "light": ("#1b1f24", "#59636e", "#d1d9e0"),
    "dark": ("#e6edf3", "#9198a1", "#30363d"),
    "neutral": ("#757b82", "#757b82", "#757b8240"),
}


def config(theme: str) -> dict[str, Any]:
    """Return the Vega config of a theme: its text and grid; marks keep their own colours.

    The background is transparent, so that the page's paper shows.

    Args:
        theme: "light", "dark" or "neutral" (readable on both).

    Raises:
        ArgumentError: there is no such theme.

    >>> config("dark")["axis"]["labelColor"]
    '#9198a1'
    """
    if theme not in THEMES:
        raise ArgumentError(f"theme: {theme!r:.40}; {', '.join(THEMES)} are known")
    ink, dim, line = THEMES[theme]
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "axis": {
            **{f"{part}Color": dim for part in ("label", "title")},
            **{f"{part}Color": line for part in ("grid", "domain", "tick")},
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
        },
        "legend": {
            "labelColor": ink,
            "labelFontSize": 12,
            "labelLimit": 220,
            "orient": "top",
            "columns": 2,
            "columnPadding": 20,
            "layout": {"margin": 24},
            "symbolOpacity": 1,
        },
        "title": {
            "color": ink,
            "subtitleColor": dim,
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 11,
            "subtitlePadding": 6,
            "offset": 12,
        },
        # One label for the whole figure, in its description; not one for each of its marks.
        "mark": {"aria": False},
        "text": {"color": dim, "fontSize": 11},
        "rule": {"color": dim},
        "view": {"stroke": None},
    }


@dataclass(frozen=True, repr=False)
class Figure:
    """A figure of a report or a comparison.

    In a notebook it shows itself.  ``str()`` gives the title and the description.

    Attributes:
        kind: its name, as ``report.plot(kind)`` takes it.
        title: a few words on what it shows.
        description: what there is to see, with the figures that matter, in plain sentences.
        spec: the Vega-Lite specification with its data, JSON-ready and complete.

    Example::

        figure = report.plot("signal")
        print(figure.description)
        figure.save("signal.svg")
    """

    kind: str
    title: str
    description: str
    spec: dict[str, Any]

    def responsive(self) -> dict[str, Any]:
        """Return the specification as wide as its container, without a title: for a page.

        The page gives it a theme by `config`, and shows title and description itself.

        Example::

            json.dumps(figure.responsive())
        """
        return {**self.spec, "width": "container", "title": None}

    def to_svg(self, theme: str = "neutral") -> str:
        """Return the figure as SVG text on a transparent background.

        Raises:
            ArgumentError: there is no such theme.

        Example::

            pathlib.Path("signal.svg").write_text(report.plot("signal").to_svg())
        """
        plain = {**config(theme), "font": FONT}
        svg: str = vl_convert.vegalite_to_svg(self.spec, config=plain, allowed_base_urls=[])
        return svg

    def to_png(self, scale: float = 2.0, theme: str = "light") -> bytes:
        """Return the figure as PNG; ``scale`` is in pixels of the picture per pixel of the figure.

        Raises:
            ArgumentError: the scale is not above 0 and at most 8, or there is no such theme.

        Example::

            pathlib.Path("signal.png").write_bytes(report.plot("signal").to_png())
        """
        paper = {**config(theme), "background": "#0d1117" if theme == "dark" else "white"}
        png: bytes = vl_convert.vegalite_to_png(
            self.spec, scale=_scale(scale), config=paper, allowed_base_urls=[]
        )
        return png

    def save(self, path: str | Path) -> Path:
        """Write the figure as its suffix says (.svg, .png or .json) and return the path.

        A file that is there stays as it was until the new one is whole.

        Raises:
            ArgumentError: another suffix, or the file cannot be written.

        Example::

            report.plot("units").save("units.png")
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix not in SUFFIXES:
            raise ArgumentError(f"path: {str(path)!r}; it must end in {', '.join(SUFFIXES)}")
        if suffix == ".png":
            content = self.to_png()
        else:
            text = self.to_svg() if suffix == ".svg" else json.dumps(self.spec, allow_nan=False)
            content = text.encode()
        try:
            with replacing(target) as whole:
                whole.write_bytes(content)
        except OSError as error:
            raise ArgumentError(f"path: {path} cannot be written: {error.strerror}") from error
        return target

    def __str__(self) -> str:
        return f"{self.title}\n{self.description}"

    def __repr__(self) -> str:
        return f"<fanin figure {self.kind!r}: {self.title}>"

    def _repr_html_(self) -> str:
        return self.to_svg()


def _scale(given: Any) -> float:
    counts = isinstance(given, Real) and not isinstance(given, bool)
    if not counts or not 0 < given <= LARGEST:
        raise ArgumentError(
            f"scale: {given!r:.40}; a number above 0 and at most {LARGEST} is needed"
        )
    return float(given)


def complete(
    kind: str, title: str, description: str, body: Mapping[str, Any], height: int = HEIGHT
) -> Figure:
    """Make a figure of the layers and data of a specification: its words, size and schema."""
    spec = {
        "$schema": SCHEMA,
        "description": f"{title}. {description}",
        "title": {"text": title, "subtitle": textwrap.wrap(description, LINE)},
        "width": WIDTH,
        "height": height,
        **body,
    }
    return Figure(kind, title, description, spec)


def known(kind: object, kinds: Mapping[str, str]) -> str:
    """Return a kind of figure that there is.

    Raises:
        ArgumentError: there is no such kind; the message lists them and names the nearest.
    """
    if isinstance(kind, str) and kind in kinds:
        return kind
    hint = did_you_mean(str(kind), kinds, 1)
    raise ArgumentError(f"kind: {kind!r:.40}; {', '.join(kinds)} are known{hint}")


def nothing(kind: str, title: str, said: str) -> Figure:
    """Make the figure that says that there is nothing to show."""
    body = {
        "data": {"values": [{}]},
        "mark": {"type": "text", "fontSize": 14},
        "encoding": {"text": {"value": said}},
    }
    return complete(kind, title, said, body, height=60)
