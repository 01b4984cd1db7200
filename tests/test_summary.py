"""Plans as text: what a narrow terminal makes of long names."""

from __future__ import annotations

import pytest
import torch
from page_reader import Page
from torch import nn

import fanin
from fanin.recipe import Mismatch
from fanin.report.wording import listing
from fanin.summary import _Path, table, to_text
from fanin.verifying.result import Checked, Verification
from fanin.wording import did_you_mean, listed

LONG = "model.layers.{0..11}.self_attn.q_proj.weight (12×)"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, [LONG]),
        (35, ["model.layers.{0..11}.self_attn.", "q_proj.weight (12×)"]),
        (20, ["model.layers.", "{0..11}.self_attn.", "q_proj.weight (12×)"]),
        (8, ["model.", "layers.", "{0..11}.", "self_att", "n.", "q_proj.", "weight", "(12×)"]),
    ],
)
def test_a_path_is_broken_behind_dots(width: int, lines: list[str]):
    assert to_text(_Path(LONG), width).splitlines() == lines


@pytest.mark.parametrize("text", ["weight", "0.weight", "", "ä.日本語.weight"])
def test_a_short_path_stays_as_it_is(text: str):
    assert to_text(_Path(text), 40).strip() == text


def test_the_table_of_a_plan_holds_whole_parts_of_names():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_rather_long_name = nn.ModuleDict(
                {"of_a_block": nn.ModuleDict({"with_a_projection": nn.Linear(4, 4)})}
            )

        def forward(self, x):
            return self.a_rather_long_name["of_a_block"]["with_a_projection"](x)

    text = to_text(table(fanin.plan(Deep(), torch.randn(8, 4))), 80)
    for part in ("a_rather_long_name.", "of_a_block.", "with_a_projection.", "weight"):
        assert part in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_name_reads_the_same_wherever_it_is_shown():
    name = "a\\b'\"\n"
    written = r"""a\b'"\n"""
    plan = fanin.Plan((), {name: "frozen"})
    calibration = fanin.Calibration((), {name: "frozen"})
    mismatch = Mismatch(name, "missing", None, (2,))
    checked = Verification("file", "auto", 0, (Checked(name, "missing", shape=(2,)),))
    for shown in (plan, calibration, mismatch, checked, listing([name])):
        assert written in str(shown)


def test_the_nearest_name_is_offered_as_it_is_written_and_on_one_line():
    known = ["Head.weight", "body\x1b[31m.weight", "S101"]
    assert did_you_mean("head.wieght", known, 1) == "; did you mean Head.weight?"
    assert did_you_mean("body.weight", known, 1) == r"; did you mean body\x1b[31m.weight?"
    assert did_you_mean("s101", known) == "; did you mean S101?"
    assert did_you_mean("nothing like it", known) == ""


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a; b"),
        (["a", "b", "c"], "a; b; and 1 more group"),
        (["a", "b", "c", "d"], "a; b; and 2 more groups"),
    ],
    ids=len,
)
def test_a_list_says_how_much_it_leaves_out(items: list[str], told: str):
    assert listed(iter(items), 2, apart="; ", what="group") == told


def test_a_notebook_shows_a_plan_as_its_text_and_runs_nothing_of_its_names():
    plan = fanin.Plan((), {"<script>alert(1)</script>&": "frozen"})
    page = Page(plan._repr_html_())
    assert set(page.tags) == {"pre"}
    assert not page.open
    assert page.text.strip() == str(plan)


def test_a_plan_that_draws_nothing_has_no_table():
    layer = torch.nn.Linear(4, 3).requires_grad_(False)
    model = torch.nn.Sequential(layer, torch.nn.PReLU())
    model[1].weight.requires_grad_(False)
    told = str(fanin.plan(model, torch.randn(5, 4)))
    assert "0 parameters drawn" in told
    assert "because" not in told
    assert "frozen" in told
