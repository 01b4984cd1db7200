"""The report says what was found, in one screen, and shows any name as plain text."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import pytest
from rich.cells import cell_len
from rich.console import Console
from sample_reports import HOSTILE, SAMPLES, finding, hundred, layer, report

from fanin.errors import ArgumentError
from fanin.layers import Depth
from fanin.report import Report
from fanin.report.document import schema
from fanin.report.text import render, to_text
from fanin.report.wording import growth, verdict
from fanin.wording import visible

SCREEN = 45
Golden = Callable[[str, str], None]
every_sample = pytest.mark.parametrize("name", SAMPLES)


@every_sample
@pytest.mark.parametrize("width", [80, 120])
def test_text_is_as_reviewed(name: str, width: int, golden: Golden) -> None:
    golden(f"{name}_{width}.txt", to_text(SAMPLES[name](), width=width) + "\n")


@every_sample
def test_full_text_is_as_reviewed(name: str, golden: Golden) -> None:
    golden(f"{name}_full.txt", to_text(SAMPLES[name](), full=True, width=120) + "\n")


@every_sample
def test_json_is_as_reviewed(name: str, golden: Golden) -> None:
    golden(f"{name}.json", SAMPLES[name]().to_json() + "\n")


@every_sample
@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 120, 200])
@pytest.mark.parametrize("full", [False, True])
def test_no_line_is_wider_than_the_terminal(name: str, width: int, full: bool) -> None:
    text = to_text(SAMPLES[name](), full=full, width=width)
    assert max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_a_healthy_deep_model_fits_one_screen(width: int) -> None:
    infos = tuple(finding("S103", "info", f"stage.{at}") for at in range(40))
    unnamed = tuple((f"table.{at}", f"torch.op{at}") for at in range(40))
    for sound in (SAMPLES["gpt2"](), hundred()):
        crowded = replace(sound, findings=infos, unnamed=unnamed)
        assert len(to_text(crowded, width=width).splitlines()) <= SCREEN


def test_the_verdict_is_the_first_line() -> None:
    first = to_text(SAMPLES["zero_mlp"](), width=100).splitlines()[0]
    assert first == "✗ Net will not train as it should: 2 errors, 1 note"
    assert verdict(report([layer("0", "linear", 2, 3)], parameters=9)) == (
        "✓ Net starts sound: 1 layer, 9 parameters, nothing found"
    )


def test_a_guilty_layer_is_never_folded_away() -> None:
    text = to_text(SAMPLES["repeated"](), width=120)
    rows = [line for line in text.splitlines() if re.match(r"[✗!] blocks", line)]
    assert [row.split()[1] for row in rows] == [
        "blocks.{0..6,8..49}.up", "blocks.7.up", "blocks.31.down",
    ]  # fmt: skip
    assert "blocks.{0..30,32..49}.down ×49" in text
    assert re.search(r"^! stage\.lea .* P202$", to_text(hundred(), width=80), re.MULTILINE)


def test_a_finding_about_a_module_marks_the_layers_inside() -> None:
    layers = [layer(name, "linear", 2, 2) for name in ("block.a", "block.b", "blocks", "head")]
    text = to_text(report(layers, findings=(finding("S104", "warning", "block"),)), width=80)
    marked = [line.split()[1] for line in text.splitlines() if line.endswith("S104")]
    assert marked == ["block.a", "block.b"]


def test_every_guilty_layer_is_shown_however_many() -> None:
    layers = [
        layer(f"w{chr(97 + at // 26)}{chr(97 + at % 26)}", "linear", at, 2) for at in range(99)
    ]
    names = [found.name for found in layers[::2]]
    text = to_text(report(layers, findings=(finding("P205", "error", *names),)), width=80)
    assert all(re.search(f"^✗ {name} ", text, re.MULTILINE) for name in names)


def test_numbered_names_fold_only_when_the_table_is_too_long() -> None:
    few = report([layer(f"conv{at}", "conv2d", 9, 4) for at in range(4)])
    many = report([layer(f"conv{at}", "conv2d", 9, 4) for at in range(80)])
    assert "conv2 " in to_text(few, width=80)
    assert "conv{0..79} ×80" in to_text(many, width=80)


def test_long_lists_of_layers_fold_and_full_shows_all() -> None:
    names = [str(2 * at) for at in range(26)]
    found = finding("S101", "error", *names)
    text = to_text(report([], findings=(found,)), width=100)
    assert "S101 locked-units  0, 2, 4 … (+23)" in text
    full = to_text(report([], findings=(found,)), full=True, width=300)
    assert f"S101 locked-units  {', '.join(names)}" in full
    blocks = finding("S104", "warning", "head", *(f"h.{at}.mlp" for at in range(12)))
    assert "head, h.{0..11}.mlp ×12" in to_text(report([], findings=(blocks,)), width=100)


def test_what_is_the_same_for_a_code_is_explained_once() -> None:
    twice = report([], findings=(finding("P205", "error", "a"), finding("P205", "error", "b")))
    assert to_text(twice, width=80).count("says why it hurts") == 1
    assert to_text(twice, full=True, width=80).count("says why it hurts") == 2


def test_no_colour_outside_a_terminal_and_colour_inside() -> None:
    assert "\x1b" not in "".join(str(sample()) for sample in SAMPLES.values())
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, color_system="standard", width=80)
    console.print(render(SAMPLES["zero_mlp"]()))
    assert "\x1b[1;31m✗ Net" in page.getvalue()


@every_sample
def test_a_terminal_without_unicode_still_gets_the_text(name: str) -> None:
    page = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=page, width=80).print(render(SAMPLES[name]()))
    page.flush()
    assert page.buffer.getvalue()[:2] in (b"x ", b"v ")  # type: ignore[attr-defined]


@every_sample
def test_the_text_is_the_same_whatever_stdout_can_write(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = to_text(SAMPLES[name](), width=80)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert to_text(SAMPLES[name](), width=80) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_show_as_one_line_of_text(name: str) -> None:
    assert visible(name).isprintable()
    if name.isprintable():
        assert visible(name) == name
    full = to_text(SAMPLES["hostile"](), full=True, width=400)
    assert f"✗ {visible(name)}" in full
    visible(name).encode("utf-8")


@every_sample
def test_json_follows_the_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(SAMPLES[name]().to_json()), schema())


def test_the_schema_describes_every_field_and_allows_no_other() -> None:
    def objects(node: object) -> list[dict[str, object]]:
        if isinstance(node, list):
            return [found for item in node for found in objects(item)]
        if not isinstance(node, dict):
            return []
        inner = [found for item in node.values() for found in objects(item)]
        return [node, *inner] if "properties" in node and "type" in node else inner

    forms = objects(schema())
    assert len(forms) == 11
    for form in forms:
        fields = form["properties"]
        assert isinstance(fields, dict)
        assert form["additionalProperties"] is False
        assert form["required"] == list(fields)
        assert all(field["description"] for field in fields.values())


@every_sample
def test_a_document_reads_back_as_the_same_report(name: str) -> None:
    written = SAMPLES[name]()
    read = Report.from_dict(json.loads(written.to_json()))
    assert read.to_json() == written.to_json()
    assert str(read) == str(written)
    if name != "hostile":  # nan is not equal to itself
        assert read == written


def test_figures_that_are_not_finite_are_strings_in_json() -> None:
    plain = json.loads(SAMPLES["hostile"]().to_json(indent=None))
    assert (plain["loss"], plain["chance"]) == ("nan", "inf")
    assert plain["layers"][1]["mean"] == "-inf"
    read = Report.from_dict(plain)
    assert read.loss is not None
    assert math.isnan(read.loss)
    assert read.layers[1].mean == -math.inf


def test_a_model_named_nan_stays_a_name() -> None:
    named = report([layer("inf", "nan", 1, 1)], model="nan")
    assert Report.from_dict(named.to_dict()) == named


def test_another_schema_version_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^plain: its schema_version is 99; 1 is needed$"):
        Report.from_dict({**SAMPLES["gpt2"]().to_dict(), "schema_version": 99})


def test_what_is_no_report_is_refused() -> None:
    whole = SAMPLES["gpt2"]().to_dict()
    for plain, told in (
        ([], "list; what to_dict returned"),
        ({}, "its schema_version is None"),
        ({"schema_version": 1}, "it has no field 'unnamed'"),
        ({**whole, "layers": [{"name": "0"}]}, "it has no field 'op'"),
    ):
        with pytest.raises(ArgumentError, match=f"^plain: {told}"):
            Report.from_dict(plain)  # type: ignore[arg-type]


def test_ok_depends_on_errors_alone() -> None:
    levels = ("warning", "info")
    assert report([], findings=tuple(finding("P205", level, "a") for level in levels)).ok
    assert not report([], findings=(finding("P205", "error", "a"),)).ok


def test_repr_is_the_verdict() -> None:
    assert repr(SAMPLES["gpt2"]()).startswith("<fanin.Report: ✓ GPT2LMHeadModel starts sound")


def test_rules_that_were_left_out_are_told() -> None:
    """A clean verdict says that it is one of some rules alone."""
    told = " ".join(str(report([layer("0", "linear", 3, 4)], ignored=("S101", "S102"))).split())
    assert "nothing found by the rules that were asked" in told
    assert "rules left out: S101, S102" in told
    everything = str(report([layer("0", "linear", 3, 4)]))
    assert "nothing found" in everything
    assert "left out" not in everything


def test_a_path_is_no_indent() -> None:
    with pytest.raises(ArgumentError, match=r"indent: 'report.json'; .*write_text"):
        SAMPLES["gpt2"]().to_json("report.json")  # type: ignore[arg-type]


def test_a_turn_at_a_sum_of_the_model_itself_has_a_name():
    told = growth(Depth(cotangent_growth=2.0, cotangent_turn=""))
    assert told == "along depth: cotangent ×2 a layer towards the input, from the model itself on"
