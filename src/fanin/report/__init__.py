"""The report: everything one check saw, and the ways to read it.

Renderers compute nothing: terminal text (:mod:`fanin.report.text`), a JSON document
(:mod:`fanin.report.document`, described by ``schema.json``) and a page
(:mod:`fanin.report.html`) show the same :class:`Report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanin.report import document, figures, html, text
from fanin.report.figure import Figure
from fanin.report.page import write
from fanin.report.record import Record
from fanin.report.wording import verdict

__all__ = ["Report"]


@dataclass(frozen=True, repr=False)
class Report(Record):
    """What :func:`fanin.check` returns: the layers, the symmetry, the findings, the verdict.

    Example::

        report = fanin.check(model, batch)
        print(report)                 # the text a person reads
        assert report.ok              # no finding of severity "error"
        report.to_html("start.html")  # one page that needs no network
    """

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, as the schema in ``fanin/report/schema.json`` describes them.

        Example::

            [finding["code"] for finding in report.to_dict()["findings"]]
        """
        return document.to_dict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """Read back what :meth:`to_dict` wrote.

        Raises:
            ArgumentError: ``plain`` is nothing that :meth:`to_dict` of this version wrote.

        Example::

            fanin.Report.from_dict(json.loads(report.to_json()))
        """
        return document.read(cls, plain)

    def to_json(self, indent: int | None = 2) -> str:
        """Return the document as strict JSON text; a figure that is not finite is a string.

        Example::

            pathlib.Path("report.json").write_text(report.to_json())
        """
        return document.to_json(self, indent)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML page to ``path`` and return it.

        Raises:
            ArgumentError: the file cannot be written.

        Example::

            report.to_html("start.html")
        """
        return write(html.to_page(self), path)

    def plot(self, kind: str = "signal") -> Figure:
        """Return a figure: it shows itself in a notebook, and saves as SVG, PNG or JSON.

        Args:
            kind: "signal", "correlation", "units", "std", "weights" or "gradient"; what each shows
                stands in ``fanin.report.figures.KINDS``.

        Raises:
            ArgumentError: there is no such kind.

        Example::

            report.plot("units").save("units.svg")
        """
        return figures.plot(self, kind)

    def __str__(self) -> str:
        return text.to_text(self)

    def __repr__(self) -> str:
        return f"<fanin.Report: {verdict(self)}>"

    def _repr_html_(self) -> str:
        return html.to_fragment(self)
