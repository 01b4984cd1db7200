"""The pages: whole without a network and without scripts, every name as text, light at any size."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch
from page_reader import Page
from sample_reports import HOSTILE, SAMPLES, finding, hundred, layer, report, start
from torch import nn

import fanin
from fanin.branches import ResidualBranch
from fanin.errors import ArgumentError
from fanin.findings import RULES
from fanin.repair import Repair
from fanin.report import Report
from fanin.report.cards import Proof, cards
from fanin.report.html import to_fragment, to_page
from fanin.report.outline import Line, outline
from fanin.report.page import explanation, render, write
from fanin.symmetry import Deadlock, Identity, Symmetry, UnitClass
from fanin.wording import visible

PAGE = 2_000_000  # bytes that a page may have, its script included
FRAGMENT = 100_000  # bytes that a notebook gets, without the figure
every_sample = pytest.mark.parametrize("name", SAMPLES)


def large(layers: int = 2_000) -> Report:
    """No two paths alike but for their indices, so that nothing folds; every figure is there."""
    letters = "abcdefgh"
    words = ["".join(letters[at // 8**place % 8] for place in range(4)) for at in range(layers)]
    return report(
        [
            layer(
                f"backbone.stage.{word}.conv", "conv2d", 576 + at, 64, rms=1 + at / 7,
                token_variation=at / 9, predicted_rms=at / 11, dead=at / layers,
                saturated=at / layers, activation="relu", predicted_correlation=0.5,
            )
            for at, word in enumerate(words)
        ],
        findings=(finding("S104", "warning", *(f"backbone.stage.{w}.conv" for w in words[::2])),),
        starts=tuple(
            start(f"backbone.stage.{word}.conv.{each}", 0.1 + at / 1e4, 0.2 + at / 1e4)
            for at, word in enumerate(words)
            for each in ("weight", "bias")
        ),
    )  # fmt: skip


def repaired(model: nn.Module) -> Repair:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 8, generator=draws), torch.randint(3, (32,), generator=draws)
    return fanin.repair_(model, x, lambda out: nn.functional.cross_entropy(out, y))


def net(first: str = "first") -> nn.Sequential:
    """A sound network; ``first`` is the name of its first layer."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, module in ((first, nn.Linear(8, 16)), ("act", nn.ReLU()), ("head", nn.Linear(16, 3))):
        model.add_module(name, module)
    return model


@pytest.fixture(scope="module")
def mended() -> Repair:
    """A network that started at zero."""
    model = net()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return repaired(model)


class TestReport:
    @every_sample
    def test_it_is_whole_loads_nothing_and_runs_its_own_scripts_alone(self, name: str) -> None:
        page = Page(to_page(SAMPLES[name]()))
        page.assert_sound()
        assert len(page.scripts) == 2
        assert not re.search(r"\beval\b|new Function|innerHTML|fetch\(", page.scripts[0])

    @pytest.mark.parametrize("name", HOSTILE)
    def test_every_name_is_text(self, name: str) -> None:
        text = Page(to_page(SAMPLES["hostile"]())).text
        assert text.count(visible(name)) >= 2  # in the table and in the outline

    def test_what_the_figures_hold_cannot_end_its_script(self) -> None:
        evil = replace(SAMPLES["hostile"](), layers=(layer("</script><b>", "linear", 2, 3),))
        page = Page(to_page(evil))
        page.assert_sound()
        (held,) = page.held
        assert "<" not in held
        assert "</script><b>" in json.dumps(json.loads(held))
        assert "b" not in page.tags

    def test_without_scripts_the_text_is_all_there(self) -> None:
        text = Page(to_page(SAMPLES["zero_mlp"]())).text
        for part in (
            "Net will not train as it should: 2 errors, 1 note", "S101 locked-units",
            "5 of 6 parameters never move", "each path at zero", "26,506 in 6 tensors",
            "Signal is exactly 0", "linear 784→32 → relu", "torch 2.13.0",
            "fanin.check(model, batch, loss, seed=0)",
        ):  # fmt: skip
            assert part in text, part

    def test_a_sound_report_says_that_nothing_was_found(self) -> None:
        page = Page(to_page(SAMPLES["gpt2"]()))
        assert "Nothing found." in page.text
        assert "article" not in page.tags

    def test_the_table_has_every_layer_and_no_silent_column(self) -> None:
        page = Page(to_page(hundred()))
        assert page.rows("Layers with weights") == 100
        heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', page.source)
        assert {"layer", "findings", "rms", "distinct"} <= set(heads)
        assert not {"non-finite", "tokens", "saturated %"} & set(heads)
        assert "non-finite" in Page(to_page(SAMPLES["hostile"]())).text

    def test_the_recipe_folds_repeated_blocks_and_says_why(self) -> None:
        page = Page(to_page(SAMPLES["gpt2"]()))
        assert page.rows("Parameters in the model’s order") == 10
        assert "transformer.h.{0..11}.mlp.c_fc.weight ×12" in page.text
        assert "its input is normalized" in page.text

    def test_parameters_that_differ_in_their_reason_do_not_fold(self) -> None:
        starts = (
            start("h.0.w", 0.1, 0.1),
            start("h.1.w", 0.1, 0.1, because="another reason"),
            start("h.2.w", 0.1, None, trainable=False),
        )
        page = Page(to_page(report([layer("h.0", "linear", 2, 2)], starts=starts)))
        assert page.rows("Parameters in the model’s order") == 3
        assert "left as it is" in page.text
        assert "(frozen)" in page.text

    def test_the_call_to_repeat_it_names_another_dtype(self) -> None:
        half = replace(SAMPLES["gpt2"](), compute_dtype="float16")
        assert "checked for training in float16" in Page(to_page(half)).text
        assert 'seed=0, dtype="float16")' in Page(to_page(half)).text
        assert "checked for training" not in Page(to_page(SAMPLES["gpt2"]())).text

    @pytest.mark.parametrize("layers", [0, 1])
    def test_a_model_with_next_to_no_layers_has_a_page(self, layers: int) -> None:
        page = Page(to_page(report([layer("", "linear", 2, 2)][:layers])))
        page.assert_sound()
        assert ("(the whole model)" in page.text) == bool(layers)

    def test_a_page_of_two_thousand_layers_is_light(self) -> None:
        page = Page(to_page(large()))
        assert len(page.source.encode()) <= PAGE
        assert page.rows("Layers with weights") == 2_000
        assert "more row" in page.text  # the recipe, which is cut, says so

    def test_many_findings_fold_and_none_is_lost(self) -> None:
        many = report(
            [layer("a", "linear", 2, 2)],
            findings=tuple(finding("N401", "error", f"p{at}") for at in range(60)),
        )
        page = Page(to_page(many))
        assert page.tags.count("article") == 60
        assert "20 more findings" in page.text


class TestNotebook:
    @every_sample
    def test_it_runs_nothing_and_keeps_its_style_to_itself(self, name: str) -> None:
        fragment = SAMPLES[name]()._repr_html_()
        page = Page(fragment)
        assert not page.open
        assert not {"script", "html", "body", "link"} & set(page.tags)
        (style,) = re.findall(r"<style>(.*?)</style>", fragment, re.DOTALL)[:1]
        rules = re.sub(r"@media[^{]*\{(.*?\})\s*\}", r"\1", style, flags=re.DOTALL)
        for selectors in re.findall(r"([^{}]+)\{", rules):
            assert all(".fanin" in each for each in selectors.split(",")), selectors

    def test_it_shows_verdict_findings_and_signal(self) -> None:
        page = Page(SAMPLES["zero_mlp"]()._repr_html_())
        assert "will not train as it should" in page.text
        assert page.tags.count("article") == 3
        assert "svg" in page.tags
        assert page.rows("Layers with weights") == 3

    @pytest.mark.parametrize("guilty", [False, True])
    def test_it_is_light_for_a_model_of_any_size(self, guilty: bool) -> None:
        model = large()
        if guilty:
            names = [each.name for each in model.layers]
            found = tuple(finding("P205", "error", name) for name in names)
            model = replace(model, findings=found)
        fragment = to_fragment(model)
        bare = re.sub(r"<svg.*?</svg>", "", fragment, flags=re.DOTALL)
        assert len(bare.encode()) <= FRAGMENT
        assert ("more findings" in bare) == guilty


class TestCards:
    """Each finding shows the part of the proof that it rests on, and no other."""

    zero = (Identity(0, 0.0, 0.0, 0.0, 0.0),)
    symmetry = Symmetry(
        steps=4,
        dtype="float64",
        classes=(
            UnitClass("a", (0, 1, 2, 3), "locked", 4, zero),
            UnitClass("b", (0, 5), "locked", 4, zero),
            UnitClass("a", (7, 8), "self-breaking", 1, zero),
            UnitClass("c", (1, 2), "mirrored", 4, zero),
        ),
        deadlocks=(
            Deadlock("a.weight", "a", "two zero factors", ("b.weight",)),
            Deadlock("a.bias", "a", "two zero factors", ("b.weight",)),
            Deadlock("c.weight", "c", "unused"),
        ),
        clones=(("a", "b"), ("d", "e")),
    )

    def proofs(self, *codes: str, place: Iterable[str] = ("a",)) -> tuple[list[Proof], Proof]:
        found = tuple(finding(code, RULES[code].severities[0], *place) for code in codes)
        shown, rest = cards(report([], findings=found, symmetry=self.symmetry))
        return [card.proof for card in shown], rest

    def test_copies_belong_to_the_rule_of_what_became_of_them(self) -> None:
        (locked, breaking), rest = self.proofs("S101", "S103")
        assert [each.told for each in locked.classes] == ["locked: units 0–3 (4 copies)"]
        assert [each.told for each in breaking.classes] == ["self-breaking: units 7, 8 (2 copies)"]
        assert [each.layer for each in rest.classes] == ["b", "c"]

    def test_parameters_that_never_move_belong_to_the_deadlock(self) -> None:
        (held, other), rest = self.proofs("S102", "P203", place=("a.weight", "a.bias"))
        (only,) = held.held
        assert (only.parameters, only.cause) == ("a.weight, a.bias", "two zero factors")
        assert only.holders == "b.weight"
        assert not other
        assert [each.cause for each in rest.held] == ["unused"]

    def test_clones_belong_to_the_finding_that_names_them_all(self) -> None:
        (clones,), rest = self.proofs("S104", place=("a", "b", "d"))
        assert clones.clones == ("a, b",)
        assert rest.clones == ("d, e",)

    def test_many_classes_are_cut_and_counted(self) -> None:
        many = tuple(UnitClass(f"l{at}", (0, 1), "locked", 4, self.zero) for at in range(100))
        found = finding("S101", "error", *(each.layer for each in many))
        shown, rest = cards(report([], findings=(found,), symmetry=Symmetry(classes=many)))
        assert len(shown[0].proof.classes) + shown[0].proof.more == 100
        assert shown[0].proof.more
        assert not rest

    def test_rows_are_called_rows_and_have_no_figure_of_units(self) -> None:
        rows = (UnitClass("latents", (0, 1, 2, 3), "locked", 4, self.zero, rows=8),)
        found = (finding("S101", "error", "latents"),)
        (card,), _ = cards(report([], findings=found, symmetry=Symmetry(classes=rows)), ["units"])
        assert [each.told for each in card.proof.classes] == ["locked: rows 0–3 (4 copies)"]
        assert card.figure == ""

    def test_a_rule_is_explained_once(self) -> None:
        found = tuple(finding("P205", "error", each) for each in "ab")
        page = Page(to_page(report([layer("a", "linear", 2, 2)], findings=found)))
        page.assert_sound()
        assert page.text.count("What P205 means") == 1

    @pytest.mark.parametrize("code", RULES)
    def test_every_rule_has_an_explanation_for_pages(self, code: str) -> None:
        page = Page(explanation(code))
        assert not page.open
        assert not {"h1", "h2", "h3", "script"} & set(page.tags)
        assert "Fix" in page.text

    def test_a_figure_is_linked_where_there_is_one(self) -> None:
        found = (finding("P203", "error", "a"), finding("W501", "warning", "a"))
        with_figure, without = cards(report([], findings=found), ["signal"])[0]
        assert (with_figure.figure, without.figure) == ("signal", "")
        assert cards(report([], findings=found))[0][0].figure == ""


def told(lines: Iterable[Line], depth: int = 0) -> list[str]:
    """The outline as text."""
    found = []
    for line in lines:
        name = f"⊕ {line.branches}" if line.kind == "branch" else line.name
        times = f" ×{line.times}" if line.times > 1 else ""
        found.append("  " * depth + f"{name}{times} {line.told}".rstrip())
        found += told(line.inner, depth + 1)
    return found


class TestOutline:
    def test_blocks_that_differ_in_their_number_are_one(self) -> None:
        assert told(outline(SAMPLES["gpt2"]())) == [
            "transformer",
            "  wte embedding 1→768",
            "  wpe embedding 1→768",
            "  h.{0..11} ×12",
            "    ⊕ branches {1,3..23} of 24, norm before",
            "      ln_1 layer_norm",
            "      attn",
            "        c_attn matmul 768→2304",
            "        c_proj matmul 768→768",
            "    ⊕ branches {2,4..24} of 24, norm before",
            "      ln_2 layer_norm",
            "      mlp",
            "        c_fc matmul 768→3072 → gelu",
            "        c_proj matmul 3072→768",
            "  ln_f layer_norm",
            "lm_head linear 768→50257",
        ]

    def test_a_block_with_a_finding_stands_apart_and_marks_what_holds_it(self) -> None:
        (top,) = outline(SAMPLES["repeated"]())
        assert top.severity == "error"
        assert [line.name for line in top.inner] == ["{0..6}", "7", "{8..30}", "31", "{32..49}"]
        assert [line.severity for line in top.inner] == [
            "warning", "error", "warning", "error", "warning",
        ]  # fmt: skip

    def test_layers_of_other_sizes_do_not_fold(self) -> None:
        layers = [layer(f"net.{at}", "linear", 4, 4 + (at == 2)) for at in range(4)]
        assert told(outline(report(layers))) == [
            "net",
            "  {0..1} ×2 linear 4→4",
            "  2 linear 4→5",
            "  3 linear 4→4",
        ]

    def test_an_index_alone_in_its_module_keeps_its_path(self) -> None:
        layers = [layer(f"h.{at}.mlp.up", "linear", 4, 4) for at in range(3)]
        assert told(outline(report(layers))) == ["h.{0..2}.mlp.up ×3 linear 4→4"]

    def test_a_branch_inside_of_a_branch_is_drawn_inside(self) -> None:
        names = ("block.a", "block.inner.b", "block.inner.c", "block.d")
        layers = [
            layer(name, "linear", 4, 4, branch=branch)
            for name, branch in zip(("stem", *names), (None, 0, 1, 1, 0), strict=True)
        ]
        branches = (
            ResidualBranch(0, 2, "none", names, names[-1:]),
            ResidualBranch(0, 1, "last", names[1:3], names[2:3]),
        )
        assert told(outline(report(layers, branches=branches))) == [
            "stem linear 4→4",
            "block",
            "  ⊕ branch 1 of 2, no norm",
            "    a linear 4→4",
            "    inner",
            "      ⊕ branch 1 of 1, norm last",
            "        b linear 4→4",
            "        c linear 4→4",
            "    d linear 4→4",
        ]

    def test_a_layer_beside_a_branch_is_not_drawn_inside(self) -> None:
        layers = [
            layer("block.conv", "conv2d", 4, 4, branch=0),
            layer("block.shortcut", "conv2d", 4, 4),
        ]
        branches = (ResidualBranch(0, 1, "none", ("block.conv",), ("block.conv",)),)
        assert told(outline(report(layers, branches=branches))) == [
            "block",
            "  ⊕ branch 1 of 1, no norm",
            "    conv conv2d 4→4",
            "  shortcut conv2d 4→4",
        ]

    def test_a_module_that_is_a_layer_and_holds_one(self) -> None:
        layers = [layer("a", "linear", 2, 2), layer("a.b", "scale", None, None, trainable=False)]
        assert told(outline(report(layers))) == [
            "a", "  (itself) linear 2→2", "  b scale · frozen",
        ]  # fmt: skip

    def test_a_long_outline_is_cut_and_says_so(self) -> None:
        lines = told(outline(large(), 50))
        assert len(lines) == 51
        *_, last = outline(large(), 50)
        assert last.kind == "more"
        assert last.times > 0

    @pytest.mark.parametrize("name", ["." * 300, ".".join("ab" * 75), "1" * 300, "a..b"])
    def test_odd_paths_have_a_place(self, name: str) -> None:
        lines = told(outline(report([layer(name, "linear", 2, 2), layer("b", "linear", 2, 2)])))
        assert 2 <= len(lines) <= 14


class TestRepair:
    def test_its_page_is_whole(self, mended: Repair, tmp_path: Path) -> None:
        written = mended.to_html(tmp_path / "repair.html")
        assert written == tmp_path / "repair.html"
        page = Page(written.read_text(encoding="utf-8"))
        page.assert_sound()
        assert page.source.startswith("<!doctype html>")
        assert "no error after" in page.text
        assert "No error and no warning is left." in page.text
        assert "error, gone" in page.text
        assert page.rows("Parameters in the model’s order") >= 1

    def test_the_recipe_on_it_reads_back_as_the_plan(self, mended: Repair, tmp_path: Path) -> None:
        text = Page(mended.to_html(tmp_path / "r.html").read_text(encoding="utf-8")).text
        start_, end = text.index("# A fanin recipe"), text.index("Both reports")
        assert fanin.Plan.from_toml(text[start_:end]) == mended.plan

    def test_where_nothing_was_wrong_it_says_so(self, tmp_path: Path) -> None:
        page = Page(repaired(net()).to_html(tmp_path / "r.html").read_text(encoding="utf-8"))
        page.assert_sound()
        assert "nothing to mend: no error" in page.text
        assert "figure" not in page.tags
        assert "error, gone" not in page.text

    def test_hostile_names_are_text(self, tmp_path: Path) -> None:
        name = '</script><script>alert("1")</script>\x1b\u202e'
        model = net(name)
        for parameter in model[0].parameters():
            nn.init.zeros_(parameter)
        done = repaired(model)
        for text in (
            done.to_html(tmp_path / "r.html").read_text(encoding="utf-8"),
            done._repr_html_(),
        ):
            assert visible(name) in Page(text).text
            assert "alert(" not in "".join(Page(text).scripts)
            assert not {"\x1b", "\u202e"} & set(text)
        Page((tmp_path / "r.html").read_text(encoding="utf-8")).assert_sound()

    def test_a_notebook_shows_what_was_changed(self, mended: Repair) -> None:
        page = Page(mended._repr_html_())
        assert not page.scripts
        assert page.rows("What was changed") >= 1
        assert "first.weight" in page.text


class TestWriting:
    def test_the_path_is_returned(self, tmp_path: Path) -> None:
        target = tmp_path / "start.html"
        assert SAMPLES["hostile"]().to_html(str(target)) == target
        assert target.read_text(encoding="utf-8").startswith("<!doctype html>")

    @pytest.mark.parametrize("place", ["", "no/such/folder/page.html"])
    def test_a_place_that_cannot_be_written_is_one_clear_error(
        self, place: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ArgumentError, match=r"^path: .* cannot be written: "):
            SAMPLES["gpt2"]().to_html(tmp_path / place)

    def test_what_is_no_path_is_said(self) -> None:
        with pytest.raises(ArgumentError, match="path: 3 is int; a path is needed"):
            SAMPLES["gpt2"]().to_html(3)  # type: ignore[arg-type]

    def test_an_older_page_survives_one_that_cannot_be_made(self, tmp_path: Path) -> None:
        target = tmp_path / "start.html"
        target.write_text("older")
        broken = replace(SAMPLES["gpt2"](), versions=(("fanin", None),))  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            broken.to_html(target)
        assert target.read_text() == "older"


def test_templates_write_out_what_no_page_may_hold() -> None:
    shown = render("verdict.html", tone="ok", verdict="a\x1b[31m\u202e<i>&\n")
    assert shown == '<h1 class="verdict ok">a\\x1b[31m\\u202e&lt;i&gt;&amp;\\n</h1>'


@pytest.mark.parametrize("make", [to_page, to_fragment])
def test_figures_that_are_not_finite_are_shown(make: Callable[[Report], str]) -> None:
    odd = report([layer("a", "linear", 2, 2, rms=inf, nonfinite=3)])
    assert "inf" in Page(make(odd)).text


def test_a_page_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a full disk: the writing breaks off, and no half of a file is left either."""
    place = tmp_path / "report.html"
    place.write_text("the page of yesterday", encoding="utf-8")
    written = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        written(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArgumentError, match="cannot be written: No space left"):
        write("<html>" * 100, place)
    assert place.read_text(encoding="utf-8") == "the page of yesterday"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
