"""Every rule has a document with the same sections, and its example shows what it says."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from fanin.findings import RULES, document

SECTIONS = [
    "What it finds",
    "Why it hurts",
    "What it does not mean",
    "Example",
    "Fix",
    "Source",
]
LINE = 100
every_rule = pytest.mark.parametrize("code", RULES)


def sections(code: str) -> dict[str, str]:
    """The text under each second-level heading."""
    parts = re.split(r"^## (.+)$", document(code), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def example(code: str) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", sections(code)["Example"], re.DOTALL | re.M)
    assert len(blocks) == 1
    return str(blocks[0])


def test_there_is_one_document_a_rule_and_no_other() -> None:
    folder = files("fanin.findings") / "documents"
    assert {place.name for place in folder.iterdir()} == {f"{code}.md" for code in RULES}


@every_rule
def test_a_document_has_all_sections_in_order(code: str) -> None:
    text = document(code)
    assert text.startswith(f"# {code} {RULES[code].name}\n\n## {SECTIONS[0]}\n")
    assert list(sections(code)) == SECTIONS
    assert all(body.strip() for body in sections(code).values())


@every_rule
def test_a_document_reads_well_in_a_terminal(code: str) -> None:
    links = re.compile(r"\]\(https://\S+\)")
    for line in document(code).splitlines():
        assert len(links.sub("]", line)) <= LINE
        assert line.isprintable()


@every_rule
def test_a_source_is_a_public_paper_or_thread(code: str) -> None:
    links = re.findall(r"\]\((\S+)\)", sections(code)["Source"])
    known = re.compile(
        r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|proceedings\.mlr\.press/\S+"
        r"|github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+)"
    )
    assert links
    assert all(known.fullmatch(link) for link in links)


@every_rule
def test_the_example_ends_by_finding_its_code(code: str) -> None:
    last = example(code).strip().splitlines()[-1]
    assert last == f'assert any(f.code == "{code}" for f in report.findings)'


@every_rule
def test_the_example_runs(code: str) -> None:
    pytest.importorskip("fanin.checking")
    exec(compile(example(code), f"{code}.md", "exec"), {"__name__": "example"})
