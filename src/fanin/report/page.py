"""Pages: templates with what they show, and the policy that lets a page run and load nothing else.

Every page is one file that needs no network.  Two scripts may travel in it: ours, and the bundle
of Vega, Vega-Lite and Vega-Embed that draws the figures.  The page's policy names both by their
hash, so that nothing else runs, and allows no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from fanin.errors import ArgumentError
from fanin.files import replacing
from fanin.findings import document
from fanin.report.figure import Figure, config
from fanin.report.wording import MARKS, number
from fanin.summary import count
from fanin.wording import visible

__all__ = ["Head", "Row", "explanation", "policy", "render", "render_page", "write"]

HEADINGS = 2  # levels that a rule's document sinks by: its "##" stands below a card's <h3>


@dataclass(frozen=True)
class Head:
    """The head of a column.

    Attributes:
        title: what it is called.
        hint: what it means.
        look: of its cells: "number", "text", or "prose" for text of several lines.
    """

    title: str
    hint: str = ""
    look: str = "number"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of what stands in it.
        cells: texts; a column of figures is sorted by the figure that a cell starts with.
        tone: severity of the gravest finding that names it, or None.
    """

    name: str
    cells: tuple[str, ...]
    tone: str | None = None


def render(template: str, **values: Any) -> str:
    """Fill a template.  Markup in values is escaped, control characters are written out.

    >>> print(render("verdict.html", tone="ok", verdict="✓ <b> starts sound"))
    <h1 class="verdict ok">✓ &lt;b&gt; starts sound</h1>
    """
    return _environment().get_template(template).render(**values)


def render_page(template: str, figures: Iterable[Figure], **values: Any) -> str:
    """Fill the template of a whole page that extends ``base.html``, with its scripts and policy."""
    shown = tuple(figures)
    scripts = [_script(), _bundle()] if shown else [_script()]
    return render(
        template,
        figures=shown,
        specs={figure.kind: figure.responsive() for figure in shown},
        themes={theme: config(theme) for theme in ("light", "dark")},
        script=Markup(_script()),
        bundle=Markup(_bundle() if shown else ""),
        policy=policy(scripts),
        **values,
    )


def policy(scripts: Iterable[str]) -> str:
    """The content security policy of a page: these scripts and no other, and no request.

    >>> policy(["run()"]).split("; ")[1]
    "script-src 'sha256-AvyuiL0SD1mVY3NNxR+V2uo+lhk6RMFrytWmRt6CrJQ='"
    """
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def write(page: str, path: str | Path) -> Path:
    """Write a page that is complete to ``path`` and return it.

    A file that is there stays as it was until the new one is whole.

    Raises:
        ArgumentError: ``path`` is no path, or cannot be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"path: {path!r:.40} is {type(path).__name__}; a path is needed")
    target = Path(path)
    try:
        with replacing(target) as whole:
            whole.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"path: {path} cannot be written: {error.strerror}") from error
    return target


@cache
def explanation(code: str) -> Markup:
    """Return the document of a rule as HTML, without its first heading.

    >>> explanation("S101").startswith("<h4>What it finds</h4>")
    True
    """
    parser = MarkdownIt("commonmark", {"html": False})
    tokens = parser.parse(document(code).split("\n", 1)[1])
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1:]) + HEADINGS}"
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # the text is our own


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("fanin.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    found.globals.update(MARKS=MARKS, count=count, number=number, explanation=explanation)
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found


def _shown(value: Any) -> Any:
    """Whatever a template prints: a name cannot bring in a control character or a newline."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _script() -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), "page.js")[0]


@cache
def _bundle() -> str:
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script  # it takes a second or two to make, once in a process


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
