"""What the README says is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fanin
from fanin.findings import RULES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"__name__": "example"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, scope)
    return scope


def test_there_is_an_example_of_every_verb():
    assert [re.findall(r"fanin\.(\w+)", block)[0] for block in BLOCKS] == [
        "check",
        "plan",
        "repair_",
        "compare",
    ]


def test_the_example_of_check_ends_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scope = run(BLOCKS[0], tmp_path, monkeypatch)
    assert not scope["report"].ok
    assert (tmp_path / "start.html").stat().st_size > 0


def test_the_example_of_init_ends_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planned = BLOCKS[1].partition("fanin.init_")[0]
    scope = run(planned, tmp_path, monkeypatch)
    assert fanin.check(scope["model"], scope["batch"]).ok
    for module in scope["model"]:
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    assert not fanin.check(scope["model"], scope["batch"]).ok, "at torch's default it is no example"
    run(BLOCKS[1], tmp_path, monkeypatch)


def test_the_example_of_repair_ends_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repair = run(BLOCKS[2], tmp_path, monkeypatch)["repair"]
    assert not repair.before.ok
    assert repair.after.ok
    assert repair.changed == ("0.weight", "0.bias", "2.weight")


def test_the_example_of_compare_ends_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    comparison = run(BLOCKS[3], tmp_path, monkeypatch)["comparison"]
    assert comparison.best.scheme == "auto"


def test_every_rule_stands_in_the_table():
    named = dict(re.findall(r"^\| ([A-Z]\d{3}) \| ([a-z-]+) \|", README, flags=re.MULTILINE))
    assert named == {code: rule.name for code, rule in RULES.items()}
