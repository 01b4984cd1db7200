"""What the README says is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fanin.findings import RULES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_ends_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, scope)
    assert not scope["report"].ok
    assert (tmp_path / "start.html").stat().st_size > 0


def test_every_rule_stands_in_the_table():
    named = dict(re.findall(r"^\| ([A-Z]\d{3}) \| ([a-z-]+) \|", README, flags=re.MULTILINE))
    assert named == {code: rule.name for code, rule in RULES.items()}
