"""What the README says is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_guide import Reader, blocks

import fanin
from fanin.findings import RULES

PAGE = Path(__file__).parent.parent / "README.md"
README = PAGE.read_text(encoding="utf-8")
MODEL, *EXAMPLES = (block for block in blocks(PAGE) if block.language == "python")
FIGURES = re.compile(r"\d+\.\d+(?:e-\d+)?|[▁-█]+")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Someone who has written down the model of the first example."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)  # of a page of the guide
    reader = Reader(PAGE)
    reader.read(MODEL)
    return reader


def test_the_first_example_prints_what_is_shown(reader: Reader, monkeypatch: pytest.MonkeyPatch):
    """But for the figures, which depend on the machine."""
    monkeypatch.setenv("COLUMNS", "100")
    shown = [block for block in blocks(PAGE) if block.language == "console"]
    assert [block.code.split()[2] for block in shown] == ["check", "compare"]
    for block in shown:
        reader.read(block._replace(code=FIGURES.sub("...", block.code)))
        reader.status = 0  # of the check: there are errors


def test_there_is_an_example_of_every_verb():
    assert [re.findall(r"fanin\.(\w+)", block.code)[0] for block in EXAMPLES] == [
        "check",
        "plan",
        "repair_",
        "compare",
    ]


def test_the_examples_end_as_they_say(reader: Reader, tmp_path: Path):
    scope: dict[str, Any] = reader.scope
    check, init, repair, compare = EXAMPLES
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader.read(check)
        assert not scope["report"].ok
        assert (tmp_path / "start.html").stat().st_size > 0

        planned, _, applied = init.code.partition("fanin.init_")
        reader.read(init._replace(code=planned))
        assert fanin.check(scope["model"], scope["batch"], scope["loss"]).ok
        reader.read(init._replace(code=f"fanin.init_{applied}"))

        reader.read(repair)
        assert not scope["repair"].before.ok
        assert scope["repair"].after.ok
        assert scope["repair"].changed == ("0.weight", "0.bias", "2.weight")

        reader.read(compare)
        assert scope["comparison"].best.scheme == "auto"


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (PAGE.parent / target).exists(), target


def test_the_two_commands_of_the_set_up_are_the_first_that_stand_there():
    setup = README.partition("## Set-up")[2]
    assert setup.partition("```\n")[2].startswith("make demo\nmake test\n```")


def test_every_rule_stands_in_the_table():
    named = dict(re.findall(r"^\| ([A-Z]\d{3}) \| ([a-z-]+) \|", README, flags=re.MULTILINE))
    assert named == {code: rule.name for code, rule in RULES.items()}
