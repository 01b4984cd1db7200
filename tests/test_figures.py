"""The figures: what they show is what the report says, and nothing breaks them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
import vl_convert
from sample_reports import HOSTILE, SAMPLES, finding, layer, report, start
from torch import nn
from torch.nn import functional as F

import fanin
from fanin.branches import ResidualBranch
from fanin.comparing import Comparison, Outcome, Run
from fanin.comparing.figures import KINDS as CURVES
from fanin.comparing.figures import figures as curves
from fanin.errors import ArgumentError
from fanin.report import Report
from fanin.report.chart import POINTS
from fanin.report.figure import THEMES, Figure, config
from fanin.report.figures import KINDS, before_after, figures
from fanin.report.ridges import ROWS, TOP

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
LARGEST_PAGE = 250_000  # characters of all figures of a page, beside a script of 0.9 MB
LARGEST_SVG = 100_000  # characters of a figure in a notebook


def mlp(depth: int, std: float | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential()
    for at in range(depth):
        model.append(nn.Linear(32, 32 if at < depth - 1 else 2))
        if at < depth - 1:
            model.append(nn.Tanh() if std else nn.ReLU())
    for parameter in model.parameters() if std is not None else ():
        nn.init.normal_(parameter, std=std) if std else nn.init.zeros_(parameter)
    return model


def checked(model: nn.Module, **options: Any) -> Report:
    return fanin.check(model, X, lambda output: F.cross_entropy(output, Y), **options)


def wild() -> Report:
    model = mlp(4)
    with torch.no_grad():
        model[2].weight[0, 0] = inf
    return checked(model)


def deep(layers: int, guilty: tuple[int, ...] = ()) -> Report:
    """Layers of a plain net, made by hand."""
    made = [
        layer(
            f"model.layers.{at // 8}.block.{at % 8}.self_attn.projection", "linear", 64, 64,
            rms=0.999**at, cotangent_rms=1e-5 * 1.001**at, gradient_rms=1e-3 + 1e-4 * (at % 7),
            correlation=at / layers, distinct_units=64 if at % 11 else 9,
            predicted_rms=1.1 * 0.999**at if at else None,
            predicted_correlation=at / layers if at else None,
        )
        for at in range(layers)
    ]  # fmt: skip
    return report(
        made,
        starts=tuple(
            start(f"{each.name}.weight", 0.1 + 0.01 * (at % 13), 0.125)
            for at, each in enumerate(made)
        ),
        findings=(finding("P201", "error", *(made[at].name for at in guilty)),) if guilty else (),
        compute_dtype="float32",
    )


REPORTS = {
    **SAMPLES,
    "healthy": lambda: checked(mlp(3)),
    "zeros": lambda: checked(mlp(3, 0.0)),
    "vanishing": lambda: checked(mlp(20, 0.06)),
    "not finite": wild,
    "one layer": lambda: checked(nn.Linear(32, 2)),
    "no layer": lambda: report([]),
    "no cotangent": lambda: report([layer("0", "linear", 3, 4, cotangent_rms=None)]),
    "nothing measured": lambda: report([
        layer("0", "linear", None, None, rms=None, cotangent_rms=None, gradient_rms=None,
              correlation=None, distinct_units=None)
    ]),
    "extremes": lambda: report(
        [layer(str(at), "linear", 3, 4, rms=rms, cotangent_rms=rms, correlation=correlation,
               predicted_rms=rms, predicted_correlation=correlation)
         for at, (rms, correlation) in enumerate(
             [(5e-324, -1.0), (1.7976931348623157e308, 1.0), (0.0, 0.0), (inf, nan), (nan, -0.5)])],
        compute_dtype="float64",
    ),
    "2,000 layers": lambda: deep(2000, tuple(range(700, 900))),
}  # fmt: skip


@pytest.fixture(scope="module")
def made() -> dict[str, Report]:
    return {name: make() for name, make in REPORTS.items()}


def rows(figure: Figure, **of: object) -> list[dict[str, Any]]:
    """The data of a figure, or of those with these values."""
    return [row for row in figure.spec["data"]["values"]
            if all(row.get(key) == value for key, value in of.items())]  # fmt: skip


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def inside(spec: object) -> Iterator[tuple[str, object]]:
    """Every (key, value) of a specification, data left out."""
    pairs = spec.items() if isinstance(spec, dict) else enumerate(spec)  # type: ignore[arg-type]
    for key, value in pairs:
        if key != "values":
            yield str(key), value
            if isinstance(value, (dict, list)):
                yield from inside(value)


class TestEveryFigure:
    @pytest.mark.parametrize("name", REPORTS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_compiles_without_a_warning(
        self, made: dict[str, Report], name: str, kind: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        figure = made[name].plot(kind)
        json.dumps(figure.spec, allow_nan=False)
        for spec in (figure.spec, figure.responsive()):
            vl_convert.vegalite_to_vega(spec, show_warnings=True)
        said = capfd.readouterr()
        assert "WARN" not in said.out + said.err
        assert figure.kind == kind
        assert figure.description.endswith((".", "…"))

    @pytest.mark.parametrize("name", REPORTS)
    def test_it_renders(self, made: dict[str, Report], name: str) -> None:
        for figure in figures(made[name]):
            svg = figure.to_svg()
            assert svg.startswith("<svg")
            assert "NaN" not in re.sub(r"<text.*?</text>", "", svg)  # no mark at no place

    def test_a_warning_of_the_compiler_would_be_seen(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        x = {"field": "a", "type": "nominal"}
        spec = {"mark": "bar", "data": {"values": [{"a": 1}]}, "encoding": {"shape": x, "x": x}}
        vl_convert.vegalite_to_vega(spec, show_warnings=True)
        assert "WARN" in "".join(capfd.readouterr())

    def test_without_data_it_says_so(self, made: dict[str, Report]) -> None:
        assert figures(made["no layer"]) == ()
        assert made["no layer"].plot("units").description == "Nothing of this was measured."

    def test_the_page_gets_those_that_show_something(self, made: dict[str, Report]) -> None:
        assert [figure.kind for figure in figures(made["healthy"])] == list(KINDS)
        kinds = {figure.kind for figure in figures(made["no cotangent"])}
        assert kinds == {"signal", "correlation", "units"}

    def test_an_unknown_kind_is_answered_with_those_there_are(
        self, made: dict[str, Report]
    ) -> None:
        with pytest.raises(
            ArgumentError, match=r"kind: 'singal'; signal, correlation.*; did you mean signal\?"
        ):
            made["healthy"].plot("singal")
        with pytest.raises(ArgumentError, match="kind: None; signal"):
            made["healthy"].plot(None)  # type: ignore[arg-type]

    def test_the_signal_is_the_default(self, made: dict[str, Report]) -> None:
        assert made["healthy"].plot() == made["healthy"].plot("signal")


class TestNames:
    """A layer's name is data: text wherever it shows, and never part of an expression."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_name_is_in_an_expression_or_a_field(
        self, made: dict[str, Report], kind: str
    ) -> None:
        spec = made["hostile"].plot(kind).spec
        for key, value in inside({**spec, "title": "", "description": ""}):
            if isinstance(value, str):
                assert not any(mark in value for mark in ("script", "xxxx", "quotes")), key

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_picture_holds_no_markup_of_a_name(
        self, made: dict[str, Report], kind: str
    ) -> None:
        svg = made["hostile"].plot(kind).to_svg()
        assert "<script" not in svg
        assert "\x1b" not in svg
        assert "\u202e" not in svg

    def test_the_tooltip_has_the_whole_name(self, made: dict[str, Report]) -> None:
        layers = {row["layer"] for row in rows(made["hostile"].plot("signal"))}
        assert {HOSTILE[0], HOSTILE[5]} <= layers

    def test_a_long_name_is_shortened_in_words(self, made: dict[str, Report]) -> None:
        assert "x" * 40 not in made["hostile"].plot("signal").description


class TestSignal:
    def test_the_figures_are_those_of_the_report(self, made: dict[str, Report]) -> None:
        whole = made["vanishing"]
        figure = whole.plot("signal")
        for curve, read in (
            ("signal", lambda each: each.rms),
            ("cotangent", lambda each: each.cotangent_rms),
        ):
            shown = {row["at"]: row["value"] for row in rows(figure, series=curve)}
            assert shown == pytest.approx(
                {at: read(each) for at, each in enumerate(whole.layers, 1)}, rel=1e-3
            )
        told = {row["at"]: row["value"] for row in rows(figure, series="signal, predicted")}
        predicted = {
            at: each.predicted_rms
            for at, each in enumerate(whole.layers, 1)
            if each.predicted_rms is not None
        }
        assert len(predicted) > 15
        assert {at: told[at] for at in predicted} == pytest.approx(predicted, rel=1e-3)

    def test_the_prediction_starts_at_what_was_measured(self) -> None:
        told = (None, 0.9, None, 0.7, 0.6)
        layers = [layer(str(at), "linear", 4, 4, rms=1.0 + at, predicted_rms=value)
                  for at, value in enumerate(told)]  # fmt: skip
        line = rows(report(layers).plot("signal"), series="signal, predicted")
        assert [row["value"] for row in line] == [1.0, 0.9, 3.0, 0.7, 0.6]
        runs = [row["run"] for row in line]
        assert runs[0] == runs[1] != runs[2] == runs[3] == runs[4]

    def test_the_words_hold_the_figures_that_matter(self, made: dict[str, Report]) -> None:
        figure = made["vanishing"].plot("signal")
        first, last = made["vanishing"].layers[0], made["vanishing"].layers[-1]
        assert f"Signal falls from {first.rms:.3g}" in figure.description
        assert f"({last.name}" not in figure.description.replace(f"(layer {last.name})", "")
        assert "a layer towards the input" in figure.description
        assert "layers marked: P203 vanishing-gradient" in figure.description

    def test_zero_stands_at_the_foot_with_its_label(self, made: dict[str, Report]) -> None:
        figure = made["zero_mlp"].plot("signal")
        assert "Signal is exactly 0 in 3 layers." in figure.description
        assert "0" in texts(figure.to_svg())
        assert rows(figure, series="signal") == []  # a logarithm has no place for it

    def test_what_is_not_finite_stands_at_the_top_with_its_label(
        self, made: dict[str, Report]
    ) -> None:
        figure = made["not finite"].plot("signal")
        assert "not finite in" in figure.description
        assert "not finite" in texts(figure.to_svg())

    def test_a_sound_model_has_neither(self, made: dict[str, Report]) -> None:
        figure = made["healthy"].plot("signal")
        shown = texts(figure.to_svg())
        assert "0" not in shown
        assert "not finite" not in shown
        assert "marked" not in figure.description

    def test_layers_with_errors_or_warnings_are_marked_and_no_others(self) -> None:
        layers = [layer(name, "linear", 4, 4) for name in "abcd"]
        found = (finding("P201", "error", "a"), finding("S104", "warning", "b"),
                 finding("S103", "info", "c"))  # fmt: skip
        figure = report(layers, findings=found).plot("signal")
        marks = {row["layer"]: row.get("severity") for row in rows(figure, series="signal")}
        assert marks == {"a": "error", "b": "warning", "c": None, "d": None}
        assert {"error found", "warning found"} <= set(texts(figure.to_svg()))

    def test_the_legend_speaks_of_no_severity_that_is_not_there(
        self, made: dict[str, Report]
    ) -> None:
        assert not any("found" in text for text in texts(made["healthy"].plot().to_svg()))

    def test_beside_a_residual_stream_lines_join_the_same_layer_of_blocks(self) -> None:
        layers = [
            layer(f"h.{block}.{name}", "linear", 4, 4, rms=rms)
            for block in range(3)
            for name, rms in (("up", 1.0), ("down", 0.01))
        ]
        names = tuple(each.name for each in layers)
        branch = ResidualBranch(0, 1, "before", names, names[-1:])
        joined = rows(report(layers, branches=(branch,)).plot("signal"), series="signal")
        plain = rows(report(layers).plot("signal"), series="signal")
        assert [row["run"] for row in joined] == [0, 1, 0, 1, 0, 1]
        assert [row["run"] for row in plain] == [0] * 6


class TestLimits:
    """Limits of dtypes are drawn where values come near them."""

    @pytest.mark.parametrize(
        ("dtype", "rms", "labels"),
        [
            ("float16", 2e4, {"float16: largest 65504"}),
            ("float16", 1e-5, {"float16: smallest normal 6.10e-5"}),
            ("float32", 1e36, {"float16: largest 65504", "float32: largest 3.40e38"}),
            ("float32", 1e-37, {"float16: smallest normal 6.10e-5",
                                "float32: smallest normal 1.18e-38"}),
            ("float32", 1e4, {"float16: largest 65504"}),
            ("bfloat16", 1e37, {"bfloat16: largest 3.39e38", "float16: largest 65504"}),
            ("float32", 1.0, set()),
            ("bfloat16", 0.01, set()),
            ("float64", 1.0, set()),
            ("", 1e37, set()),  # a report of an earlier version does not say
        ],
    )  # fmt: skip
    def test_they_are_labelled(self, dtype: str, rms: float, labels: set[str]) -> None:
        layers = [layer(name, "linear", 4, 4, rms=rms, cotangent_rms=rms) for name in "abc"]
        figure = report(layers, compute_dtype=dtype).plot("signal")
        assert {text for text in texts(figure.to_svg()) if "float" in text} == labels
        near = any(label.startswith(f"{dtype}:") for label in labels)
        assert (f"near the limits of {dtype}." in figure.description) is (not near and dtype != "")


class TestCorrelation:
    def test_the_figures_are_those_of_the_report(self, made: dict[str, Report]) -> None:
        whole = made["vanishing"]
        shown = {r["at"]: r["value"] for r in rows(whole.plot("correlation"), series="measured")}
        measured = {at: each.correlation for at, each in enumerate(whole.layers, 1)}
        assert shown == pytest.approx(measured, rel=1e-3)

    def test_samples_that_can_no_longer_be_told_apart_are_written_from_one(self) -> None:
        layers = [layer(str(at), "linear", 4, 4, correlation=value)
                  for at, value in enumerate((0.2, 0.9, 1 - 3e-7))]  # fmt: skip
        assert "1 − 3.0e-7 in layer 2" in report(layers).plot("correlation").description

    def test_negative_ones_have_room(self) -> None:
        layers = [layer(name, "linear", 4, 4, correlation=-0.4) for name in "ab"]
        figure = report(layers).plot("correlation")
        assert "−1.0" in texts(figure.to_svg())
        assert "−1.0" not in texts(deep(5).plot("correlation").to_svg())


class TestUnits:
    def test_the_figures_are_those_of_the_report(self, made: dict[str, Report]) -> None:
        figure = made["zero_mlp"].plot("units")
        assert [(row["distinct"], row["share"]) for row in rows(figure)] == [
            ("1/32", 0.03125), ("1/32", 0.03125), ("10/10", 1.0)
        ]  # fmt: skip
        assert "2 of 3 layers have fewer" in figure.description
        assert texts(figure.to_svg()).count("1/32") == 2

    def test_only_copies_are_marked(self, made: dict[str, Report]) -> None:
        states = [row["state"] for row in rows(made["zero_mlp"].plot("units"))]
        assert states == ["copies, error found", "copies, error found", "all distinct"]

    def test_layers_without_units_have_no_bar(self, made: dict[str, Report]) -> None:
        ops = {row["op"] for row in rows(made["gpt2"].plot("units"))}
        assert "layer_norm" not in ops
        assert "matmul" in ops

    def test_a_bar_of_many_layers_shows_the_worst(self) -> None:
        whole = deep(2000)
        layers = list(whole.layers)
        layers[1234] = replace(layers[1234], distinct_units=1)
        bars = rows(replace(whole, layers=tuple(layers)).plot("units"))
        assert {"at": 1235, "distinct": "1/64"}.items() <= min(
            bars, key=lambda row: row["share"]
        ).items()
        assert bars[0]["from"] == 0.5
        assert bars[-1]["to"] == 2000.5


class TestStd:
    def test_each_point_is_the_measured_over_the_planned(self, made: dict[str, Report]) -> None:
        whole = made["healthy"]
        shown = {row["layer"]: row["value"] for row in rows(whole.plot("std"))}
        assert shown == pytest.approx(
            {each.parameter: each.std / each.planned_std for each in whole.starts
             if each.planned_std and each.std},
            rel=1e-3,
        )  # fmt: skip
        assert len(shown) == 3

    def test_a_norm_of_ones_is_as_planned(self) -> None:
        ones = start("n.weight", 0.0, 1.0, shape=(8,), mean=1.0, scheme="ones", low=1.0, high=1.0)
        norm = layer("n", "layer_norm", None, None)
        assert [r["value"] for r in rows(report([norm], starts=(ones,)).plot("std"))] == [1.0]

    def test_a_constant_matrix_has_no_std(self) -> None:
        flat = start("0.weight", 0.0, 0.1, mean=0.5, low=0.5, high=0.5)
        figure = report([layer("0", "linear", 64, 64)], starts=(flat,)).plot("std")
        assert "farthest is ×0, at 0.weight" in figure.description
        assert "0" in texts(figure.to_svg())


class TestWeights:
    def test_a_constant_is_a_line_and_a_distribution_an_area(self) -> None:
        held = (start("a.weight", 0.0, 0.1, mean=0.05, low=0.05, high=0.05),
                start("b.weight", 0.1, 0.1))  # fmt: skip
        layers = [layer("a", "linear", 64, 64), layer("b", "linear", 64, 64)]
        area, spikes, outlines, *_ = report(layers, starts=held).plot("weights").spec["layer"]
        assert {row["foot"] for row in area["data"]["values"]} == {0}
        assert spikes["data"]["values"] == [{"x": 0.5, "y": 1 + TOP, "foot": 1, "kind": "now"}]
        assert {row["foot"] for row in outlines["data"]["values"]} == {0, 1}

    def test_the_area_is_the_histogram_in_planned_std(self) -> None:
        held = start("a.weight", 0.2, 0.1, low=-0.3, high=0.3, counts=(1, 2, 3))
        figure = report([layer("a", "linear", 64, 64)], starts=(held,)).plot("weights")
        area = figure.spec["layer"][0]["data"]["values"]
        assert [row["x"] for row in area] == pytest.approx([-3.0, -1.0, 1.0, 3.0])
        heights = [row["y"] for row in area]
        assert heights[1] / heights[0] == pytest.approx(2, rel=1e-3)
        assert heights[2] / heights[0] == pytest.approx(3, rel=1e-3)

    def test_planned_and_measured_are_of_one_scale(self) -> None:
        """A histogram of the planned distribution lies on its outline."""
        edges = [-4 + 0.1 * at for at in range(81)]
        counts = tuple(round(1e6 * 0.1 * math.exp(-((x + 0.05) ** 2) / 2)) for x in edges[:-1])
        held = start("a.weight", 1.0, 1.0, low=-4.0, high=4.0, counts=counts)
        area, outline, *_ = (
            report([layer("a", "linear", 4, 4)], starts=(held,)).plot("weights").spec["layer"]
        )
        top = max(row["y"] for row in area["data"]["values"])
        assert top == pytest.approx(max(row["y"] for row in outline["data"]["values"]), rel=0.01)

    @pytest.mark.parametrize(
        ("scheme", "shape"),
        [
            ("he_normal", (16, 16)),
            ("he_uniform", (16, 16)),
            ("he_trunc_normal", (16, 16)),
            ("orthogonal", (16, 16)),
            ("orthogonal", (8, 4, 3, 3)),
            ("looks_linear", (32, 32)),
            ("looks_linear", (32, 32, 1, 1)),
        ],
    )
    def test_the_outline_is_what_the_scheme_draws(
        self, scheme: str, shape: tuple[int, ...]
    ) -> None:
        """To a pixel and a half of the 22 of a bell, in the middle, where the forms differ most."""
        layout = "oi" + "k" * (len(shape) - 2)
        drawn = torch.stack([
            fanin.fill_(torch.empty(shape), scheme, seed=seed, layout=layout)
            for seed in range(200)
        ])  # fmt: skip
        planned = float(drawn.std())
        held = start("a.weight", 0.1, planned, scheme=scheme, shape=shape)
        figure = report([layer("a", "linear", 64, 64)], starts=(held,)).plot("weights")
        (line,) = [each for each in figure.spec["layer"] if each["mark"]["type"] == "line"]
        heights = {row["x"]: row["y"] for row in line["data"]["values"] if abs(row["x"]) <= 1.25}
        assert len(heights) == 11
        bell = 0.42 * math.sqrt(2 * math.pi)  # of a row, for a density of 1
        for x, height in heights.items():
            share = ((drawn / planned - x).abs() < 0.125).double().mean()
            assert height == pytest.approx(float(bell * share / 0.25), abs=1.5 / 52), x

    @pytest.mark.parametrize(
        ("scheme", "shape"),
        [
            ("delta_orthogonal", (64, 64, 3, 3)),
            ("orthogonal", (32, 8)),  # four gates of eight units
            ("looks_linear", (64, 64, 3, 3)),
            ("looks_linear", (16, 16)),
            ("zeros", (64, 64)),
        ],
    )
    def test_what_has_no_outline_is_named(self, scheme: str, shape: tuple[int, ...]) -> None:
        planned = 0.0 if scheme == "zeros" else 0.1
        bare = start("a.weight", 0.1, planned, scheme=scheme, shape=shape)
        layers = [layer("a", "linear", 64, 64), layer("b", "linear", 64, 64)]
        figure = report(layers, starts=(bare, start("b.weight", 0.1, 0.1))).plot("weights")
        (line,) = [each for each in figure.spec["layer"] if each["mark"]["type"] == "line"]
        assert {row["foot"] for row in line["data"]["values"]} == {0}
        assert figure.description.endswith(f"Without an outline: a.weight ({scheme}).")
        alone = report(layers, starts=(bare,)).plot("weights")
        assert "the grey outline" in figure.description
        assert "the grey outline" not in alone.description

    def test_what_is_left_as_it_is_has_no_outline(self) -> None:
        held = start("a.weight", 0.2, None)
        figure = report([layer("a", "linear", 64, 64)], starts=(held,)).plot("weights")
        assert not any(each["mark"]["type"] == "line" for each in figure.spec["layer"])
        assert "left as it is" in " ".join(texts(figure.to_svg()))
        assert "Without an outline: a.weight (left as it is)." in figure.description

    def test_values_far_outside_end_at_the_edge(self) -> None:
        held = start("a.weight", 30.0, 0.1)
        figure = report([layer("a", "linear", 64, 64)], starts=(held,)).plot("weights")
        area = figure.spec["layer"][0]["data"]["values"]
        assert {min(row["x"] for row in area), max(row["x"] for row in area)} == {-4.0, 4.0}

    def test_values_that_all_lie_outside_are_a_line_at_the_edge(self) -> None:
        held = start("a.weight", 0.1, 0.1, mean=5.0, low=4.0, high=6.0)
        spike, *_ = (
            report([layer("a", "linear", 4, 4)], starts=(held,)).plot("weights").spec["layer"]
        )
        assert [row["x"] for row in spike["data"]["values"]] == [4.0]

    def test_guilty_layers_come_first_and_some_others_beside_them(self) -> None:
        figure = deep(300, guilty=tuple(range(100, 120))).plot("weights")
        kinds = [row["finding"] for row in figure.spec["layer"][-1]["data"]["values"]]
        assert len(kinds) == ROWS
        assert 0 < kinds.count("") < ROWS / 2
        few = deep(300, guilty=(77,)).plot("weights").spec["layer"][-1]["data"]["values"]
        assert [row["parameter"] for row in few if row["finding"]] == [
            "model.layers.9.block.5.self_attn.projection.weight"
        ]
        assert len(few) == ROWS


class TestGradient:
    def test_each_point_is_the_gradient_over_the_weight(self, made: dict[str, Report]) -> None:
        whole = made["healthy"]
        sizes = {each.parameter: math.hypot(each.std, each.mean) for each in whole.starts}
        shown = [row["value"] for row in rows(whole.plot("gradient"))]
        assert shown == pytest.approx(
            [each.gradient_rms / sizes[each.parameters[0]] for each in whole.layers], rel=1e-3
        )

    def test_a_weight_of_zero_has_no_ratio(self) -> None:
        held = start("a.weight", 0.0, 0.1, low=0.0, high=0.0), start("b.weight", 0.1, 0.1)
        layers = [layer(name, "linear", 64, 64, gradient_rms=0.2) for name in "ab"]
        figure = report(layers, starts=held).plot("gradient")
        assert [row["value"] for row in rows(figure)] == [2.0]
        assert "1 weight with a gradient but all zero: no ratio." in figure.description


class TestWords:
    """What a description says is what the data is."""

    def test_a_course_follows_its_signal(self) -> None:
        sizes = {"a": (1.0, 8.0), "b": (0.5, 4.0), "c": (0.1, 2.0)}
        layers = [
            layer(name, "linear", 4, 4, rms=rms, cotangent_rms=back)
            for name, (rms, back) in sizes.items()
        ]
        said = report(layers).plot("signal").description
        assert "Signal falls from 1 (layer a) to 0.1 (layer c)." in said
        gradient = "(the gradient of the loss at the output of a layer)"  # said before the chart
        assert f"Cotangent {gradient} rises from 2 (layer c) to 8 (layer a)." in said

    def test_predictions_that_fit_are_counted(self) -> None:
        layers = [
            layer(name, "linear", 4, 4, rms=1.0, predicted_rms=rms, correlation=0.5,
                  predicted_correlation=correlation)
            for name, rms, correlation in (("a", 1.9, 0.5), ("b", 2.1, 0.59), ("c", None, 0.61))
        ]  # fmt: skip
        whole = report(layers)
        assert "1 of 2 predictions within a factor of 2." in whole.plot("signal").description
        assert "2 of 3 predictions within 0.1." in whole.plot("correlation").description

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ((0.5,), "of 0.5 in layer 0."),
            ((0.5, 0.25), "of 0.5 in layer 0 and 0.25 in layer 1."),
            ((0.5, 0.75, 0.25), "0.25 in layer 2; the largest is 0.75, in layer 1."),
        ],
    )
    def test_a_correlation_is_told_once(self, values: tuple[float, ...], said: str) -> None:
        layers = [layer(str(at), "linear", 4, 4, correlation=value)
                  for at, value in enumerate(values)]  # fmt: skip
        assert said in report(layers).plot("correlation").description

    def test_stds_near_the_planned_one_are_counted(self) -> None:
        layers = [layer(name, "linear", 64, 64) for name in "abc"]
        held = tuple(start(f"{name}.weight", size, 0.1)
                     for name, size in (("a", 0.19), ("b", 0.21), ("c", 0.01)))  # fmt: skip
        said = report(layers, starts=held).plot("std").description
        assert "The std of 1 of 3 parameters" in said
        assert "farthest is ×0.1, at c.weight." in said
        left = start("d.weight", 0.1, None)
        assert (
            "Not shown: 1 parameter" in report(layers, starts=(*held, left)).plot("std").description
        )

    def test_the_spread_of_gradients_is_told(self) -> None:
        held = tuple(start(f"{name}.weight", 0.1, 0.1) for name in "ab")
        layers = [layer(name, "linear", 64, 64, gradient_rms=size, parameters=(f"{name}.weight",))
                  for name, size in (("a", 0.1), ("b", 0.4))]  # fmt: skip
        said = report(layers, starts=held).plot("gradient").description
        assert "Largest over smallest: 4 (layer b over layer a)." in said

    def test_what_is_left_out_of_a_picture_is_told(self) -> None:
        many, few = deep(POINTS + 1), deep(POINTS)
        assert f"Of {POINTS + 1} points the extremes" in many.plot("signal").description
        assert "worst layer of its stretch" in many.plot("units").description
        assert "worst layer of its stretch" not in few.plot("units").description

    def test_of_two_layers_as_bad_a_bar_shows_the_guilty_one(self) -> None:
        whole = deep(240, guilty=(1,))  # two layers a bar
        layers = [replace(each, distinct_units=9) for each in whole.layers]
        bars = rows(replace(whole, layers=tuple(layers)).plot("units"))
        assert (bars[0]["at"], bars[0]["state"]) == (2, "copies, error found")


class TestManyLayers:
    def test_a_page_and_a_notebook_stay_light(self, made: dict[str, Report]) -> None:
        shown = figures(made["2,000 layers"])
        assert [figure.kind for figure in shown] == list(KINDS)
        sizes = [len(json.dumps(f.responsive(), separators=(",", ":"))) for f in shown]
        assert sum(sizes) < LARGEST_PAGE
        assert max(len(figure.to_svg()) for figure in shown) < LARGEST_SVG

    def test_extremes_and_guilty_layers_are_kept(self) -> None:
        whole = deep(2000, guilty=(1500,))
        layers = list(whole.layers)
        layers[611] = replace(layers[611], rms=77.0)
        layers[1013] = replace(layers[1013], rms=1e-9)
        figure = replace(whole, layers=tuple(layers)).plot("signal")
        shown = {row["at"]: row for row in rows(figure, series="signal")}
        assert shown[612]["value"] == 77.0
        assert shown[1014]["value"] == 1e-9
        assert shown[1501]["severity"] == "error"
        assert len(shown) <= POINTS
        assert "the extremes of each stretch are drawn" in figure.description

    def test_few_layers_are_all_drawn(self) -> None:
        figure = deep(POINTS).plot("signal")
        assert len(rows(figure, series="signal")) == POINTS
        assert "extremes" not in figure.description


@pytest.fixture
def figure() -> Figure:
    return deep(4).plot("signal")


class TestOutput:
    @pytest.mark.parametrize(
        ("name", "begins"),
        [("a.svg", b"<svg"), ("a.PNG", b"\x89PNG\r\n"), ("a.json", b'{"$schema"')],
    )
    def test_the_suffix_says_what_is_written(
        self, figure: Figure, tmp_path: Path, name: str, begins: bytes
    ) -> None:
        path = figure.save(tmp_path / name)
        assert path.read_bytes().startswith(begins)
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["a.pdf", "a", "a.svg.gz", ".svg"])
    def test_another_suffix_is_refused(self, figure: Figure, tmp_path: Path, name: str) -> None:
        with pytest.raises(ArgumentError, match=r"must end in \.svg, \.png, \.json"):
            figure.save(tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_a_file_that_cannot_be_written_is_named(self, figure: Figure, tmp_path: Path) -> None:
        (tmp_path / "folder.svg").mkdir()
        for name in ("no/folder/x.svg", "folder.svg"):
            path = tmp_path / name
            with pytest.raises(ArgumentError, match=rf"^path: {re.escape(str(path))} cannot be wr"):
                figure.save(path)
        assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]

    def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(
        self, figure: Figure, tmp_path: Path
    ) -> None:
        path = tmp_path / "old.svg"
        path.write_text("old")
        with pytest.raises(ValueError, match="conversion failed"):
            replace(figure, spec={"mark": "no such mark"}).save(path)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_picture_has_the_pixels_asked_for(self, figure: Figure) -> None:
        def width(png: bytes) -> int:
            return int.from_bytes(png[16:20], "big")

        assert width(figure.to_png(scale=2)) == pytest.approx(2 * width(figure.to_png(1)), abs=2)

    @pytest.mark.parametrize("scale", [0, -1, nan, inf, 1000, "2", True, None])
    def test_a_scale_is_a_positive_number(self, figure: Figure, scale: Any) -> None:
        with pytest.raises(ArgumentError, match="scale:"):
            figure.to_png(scale=scale)

    def test_an_unknown_theme_is_refused(self, figure: Figure) -> None:
        with pytest.raises(ArgumentError, match="theme: 'blue'; light, dark, neutral"):
            figure.to_svg("blue")

    @pytest.mark.parametrize("theme", THEMES)
    def test_a_theme_colours_text_and_leaves_the_paper(self, figure: Figure, theme: str) -> None:
        svg = figure.to_svg(theme)
        assert config(theme)["axis"]["labelColor"] in svg
        assert not re.search(r'<rect[^>]*fill="(white|#fff)', svg)

    def test_a_page_decides_on_width_and_title(self, figure: Figure) -> None:
        spec = figure.responsive()
        assert spec["width"] == "container"
        assert spec["title"] is None
        assert figure.spec["title"]["text"] == figure.title

    def test_it_shows_itself_in_a_notebook_and_in_words(self, figure: Figure) -> None:
        assert figure._repr_html_().startswith("<svg")
        assert str(figure) == f"{figure.title}\n{figure.description}"
        assert figure.description in figure._repr_html_().replace("&#39;", "'")
        assert repr(figure) == f"<fanin figure 'signal': {figure.title}>"

    def test_nothing_is_loaded_from_anywhere(self, figure: Figure) -> None:
        spec = {**figure.spec, "data": {"url": "https://example.org/data.json"}}
        with pytest.raises(ValueError, match=r"(?i)not allowed"):
            replace(figure, spec=spec).to_svg()


def test_before_and_after_stand_in_one_figure() -> None:
    before = report([layer(name, "linear", 4, 4, rms=1e-6) for name in "ab"],
                    findings=(finding("P201", "error", "b"),))  # fmt: skip
    after = report([layer(name, "linear", 4, 4, rms=0.7) for name in "ab"])
    figure = before_after(before, after)
    assert [row["value"] for row in rows(figure, series="signal before")] == [1e-6, 1e-6]
    assert [row["value"] for row in rows(figure, series="signal after")] == [0.7, 0.7]
    assert [row["layer"] for row in rows(figure) if "severity" in row] == ["b", "b"]
    assert "Signal after goes from 0.7 (layer a) to 0.7 (layer b)." in figure.description


def compared(**curves: tuple[float, ...]) -> Comparison:
    """A comparison made by hand: a loss at every update."""
    outcomes = []
    for name, losses in curves.items():
        gone = None if math.isfinite(losses[-1]) else "its loss is NaN"
        run = Run(0.1, 0, tuple(range(len(losses))), losses, (), gone)
        outcomes.append(Outcome(name, report([]), (run,)))
    return Comparison("Net", 10, 3, (0.1,), (0,), "sgd", tuple(outcomes))


class TestComparison:
    def test_curves_are_those_of_the_comparison(self) -> None:
        figure = compared(one=(2.0, 1.0, 0.5), two=(2.0, 1.9, 1.8)).plot()
        for name, losses in (("one", [2.0, 1.0, 0.5]), ("two", [2.0, 1.9, 1.8])):
            assert [row["value"] for row in rows(figure, start=name)] == losses
        assert "one goes from 2 to 0.5." in figure.description

    def test_what_blows_up_does_not_press_the_others_flat(self) -> None:
        figure = compared(one=(2.0, 1.0, 0.5), two=(2.0, 500.0, inf)).plot("loss")
        assert [row["value"] for row in rows(figure, start="two")] == [2.0, 2.0, 2.0]
        assert [row["shown"] for row in rows(figure, start="two")] == ["2", "500", "inf"]
        assert "Losses above 2 stand at the top." in figure.description
        assert "two diverged (step 2)." in figure.description

    def test_only_a_training_that_was_stopped_has_a_cross(self) -> None:
        sound = compared(one=(2.0, 1.0)).plot()
        gone = compared(one=(2.0, 1.0), two=(2.0, nan)).plot()
        assert not any("shape" in str(each["mark"]) for each in sound.spec["layer"])
        assert [r["start"] for r in gone.spec["layer"][-1]["data"]["values"]] == ["two"]

    def test_the_axis_is_logarithmic_where_losses_differ_much(self) -> None:
        def kind(figure: Figure) -> str:
            return str(figure.spec["layer"][0]["encoding"]["y"]["scale"].get("type", "linear"))

        assert kind(compared(one=(2.0, 1e-3)).plot()) == "log"
        assert kind(compared(one=(2.0, 1.0)).plot()) == "linear"

    def test_accuracy_is_shown_where_it_is_known(self) -> None:
        plain = compared(one=(2.0, 1.0))
        assert [figure.kind for figure in curves(plain)] == ["loss"]
        assert plain.plot("accuracy").description == "The accuracy is not known."
        run = replace(plain.outcomes[0].runs[0], accuracies=(0.25, 0.75))
        known = replace(plain, outcomes=(replace(plain.outcomes[0], runs=(run,)),))
        assert [figure.kind for figure in curves(known)] == list(CURVES)
        assert [row["value"] for row in rows(known.plot("accuracy"))] == [0.25, 0.75]

    def test_several_seeds_show_their_range(self) -> None:
        plain = compared(one=(2.0, 1.0))
        first = plain.outcomes[0].runs[0]
        runs = (first, replace(first, seed=1, losses=(3.0, 0.5)))
        figure = replace(plain, outcomes=(replace(plain.outcomes[0], runs=runs),)).plot()
        band = figure.spec["layer"][0]
        assert band["mark"]["type"] == "area"
        assert [(r["low"], r["high"]) for r in band["data"]["values"]] == [(2.0, 2.5), (0.5, 1.0)]

    def test_names_of_starts_are_text(self) -> None:
        figure = compared(**{HOSTILE[0]: (2.0, 1.0), HOSTILE[1]: (2.0, 1.5)}).plot()
        assert "<script" not in figure.to_svg()

    def test_a_training_without_numbers_still_draws(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        figure = compared(one=(nan,), two=(0.0, 0.0)).plot()
        vl_convert.vegalite_to_vega(figure.spec, show_warnings=True)
        assert "WARN" not in "".join(capfd.readouterr())
        assert figure.to_svg().startswith("<svg")

    def test_an_unknown_kind_is_answered_with_those_there_are(self) -> None:
        with pytest.raises(
            ArgumentError, match=r"kind: 'los'; loss, accuracy.*; did you mean loss\?"
        ):
            compared(one=(1.0,)).plot("los")
