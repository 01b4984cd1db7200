"""The generated pages and figures of docs/ say what the code does."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_imports import ORDER

from fanin.catalogue import SCHEMES
from fanin.findings import RULES

DOCS = Path(__file__).parent.parent / "docs"
GENERATED = ("auto.md", "findings.md", "schemes.md")
FIGURES = ("theory_correlation", "theory_depth", "theory_length", "theory_map")
NEAR = 0.5  # pixels


def of_docs(name: str) -> ModuleType:
    """A module that stands among the pages."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_what_the_code_says(name: str, request: pytest.FixtureRequest):
    """After a wanted change: ``pytest tests/test_docs.py --update-golden``."""
    path, text = DOCS / name, of_docs("made").committed()[name]
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.read_text(encoding="utf-8") == text


def test_no_other_page_is_generated_and_committed():
    assert set(of_docs("made").committed()) == set(GENERATED)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_layout_names_every_module_in_the_order_of_imports():
    layout = (DOCS / "source.md").read_text(encoding="utf-8").partition("## Layout")[2]
    cells = re.findall(r"^\| (`.+?) \|", layout, flags=re.MULTILINE)
    named = [name.rstrip("/") for cell in cells for name in re.findall(r"`([\w/]+)`", cell)]
    assert named == [name for name in ORDER if name.isidentifier() and name != "__main__"]


def test_the_guide_links_the_page_of_every_rule_and_scheme():
    made = of_docs("made")
    findings = made.adapted("findings", made.committed()["findings.md"])
    assert [code for code in RULES if f"](findings/{code}.md)" not in findings] == []
    assert made.DOCUMENTS not in findings
    schemes = made.adapted("schemes", made.committed()["schemes.md"])
    assert [name for name in SCHEMES if f"[`{name}`](schemes/{name}.md)" not in schemes] == []


def test_only_the_tables_are_changed_for_the_guide():
    made = of_docs("made")
    plain = "# A page\n\n| a | b |\n|-|-|\n| `he_normal` | 1 |\n"
    assert made.adapted("tour", plain) == plain


def lines(drawing: str) -> list[list[float]]:
    """The coordinates of every line that is drawn."""
    marks = re.findall(r'aria-roledescription="line mark"[^>]* d="([^"]+)"', drawing)
    return [[float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", mark)] for mark in marks]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_theory_is_computed(name: str):
    """After a wanted change: ``python docs/figures.py``."""
    drawn = lines((DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8"))
    assert len(drawn) >= 3
    for old, new in zip(drawn, lines(of_docs("figures").svg(name)), strict=True):
        assert old == pytest.approx(new, abs=NEAR)


def test_all_figures_of_the_theory_are_tested_and_used():
    assert set(of_docs("figures").FIGURES) == set(FIGURES)
    theory = (DOCS / "theory.md").read_text(encoding="utf-8")
    assert all(f"(figures/{name}.svg)" in theory for name in FIGURES)
