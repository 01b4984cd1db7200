"""The symmetry lab in Python: its arithmetic, its trainings, and the page that is written."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fanin
from fanin import demo, lab, symmetry
from fanin.cli import cli
from fanin.errors import ArgumentError
from fanin.lab import arithmetic, making, running
from fanin.report.wording import MARKS

SAMPLES = torch.from_numpy(demo.circles(300, 1)[0])
LABELS = torch.from_numpy(demo.circles(300, 1)[1])[:, None]


def flat(state: lab.State) -> list[float]:
    return [
        value for layer in state.layers for row in (*layer.weights, layer.biases) for value in row
    ]


# --- arithmetic -----------------------------------------------------------------------------------


def test_the_exponential_is_that_of_the_library_to_two_units_in_the_last_place():
    x = torch.linspace(-707, 707, 100_003, dtype=torch.float64)
    assert torch.all((arithmetic.exponential(x) / x.exp() - 1).abs() <= 2 * 2.0**-52)


@pytest.mark.parametrize(("x", "value"), [(0.0, 1.0), (800.0, math.inf), (-800.0, 0.0)])
def test_the_exponential_at_its_ends(x: float, value: float):
    assert float(arithmetic.exponential(torch.tensor(x, dtype=torch.float64))) == value


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((6, 3), (4, 3), (4,))
    )
    assert torch.autograd.gradcheck(arithmetic.Linear.apply, (x, w, b))
    assert torch.autograd.gradcheck(arithmetic.Sigmoid.apply, (x,))


def test_the_cost_is_that_of_the_demo():
    logits = torch.linspace(-30, 30, 300, dtype=torch.float64)[:, None].requires_grad_()
    costs = [kind.apply(logits, LABELS) for kind in (arithmetic.Cost, demo.Cost)]
    gradients = [torch.autograd.grad(cost, logits)[0] for cost in costs]
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-15)


def test_a_certain_and_wrong_network_costs_infinity_and_still_learns():
    logits = torch.full((300, 1), -800.0, dtype=torch.float64, requires_grad=True)
    cost = arithmetic.Cost.apply(logits, LABELS)
    cost.backward()
    assert cost.item() == math.inf
    assert torch.equal(logits.grad, -LABELS / 300)


# --- starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "name"), [*running.DRAWN.items(), ("He", "He")])
def test_random_starts_are_the_articles(ours: str, name: str):
    for (weight, bias), (w, b) in zip(lab.weights(ours), demo.starts()[name], strict=True):
        assert np.array_equal(weight, w)
        assert np.array_equal(bias, b)


def test_the_orthogonal_start_is_orthogonal_with_the_gain_of_relu():
    for weight, _ in lab.weights("orthogonal"):
        small = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
        np.testing.assert_allclose(small, 2 * np.eye(len(small)), atol=1e-14)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_change_touches_what_it_names_and_nothing_else(layer: int):
    before = lab.weights("He")
    broken, zeroed = lab.weights("He", f"break {layer}"), lab.weights("He", f"zero {layer}")
    for depth, (weight, _) in enumerate(before, 1):
        moved = broken[depth - 1][0] - weight
        assert np.count_nonzero(moved) == (depth == layer)
        if depth == layer:
            assert moved[0, 0] == pytest.approx(1e-3, rel=1e-9)
            assert not zeroed[depth - 1][0].any()
        else:
            assert np.array_equal(zeroed[depth - 1][0], weight)


@pytest.mark.parametrize(
    "arguments",
    [("ones",), ("He", "swish"), ("He", "relu", "break 4"), ("He", "relu", "none", (1.5,))],
)
def test_what_there_is_not_is_named(arguments: tuple):
    with pytest.raises(
        ArgumentError, match=r"^(start|activation|change|steps): .*(ones|swish|4|1.5)"
    ):
        lab.run(*arguments)


# --- trainings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["zeros", "small", "He"])
def test_the_network_is_the_demos_whatever_the_order_of_sums(start: str):
    """Against the library's matrix products, loss and optimizer."""
    by_demo, test = demo.train(running.DRAWN.get(start, start), iterations=200)
    first, last = lab.run(start, steps=(0, 200))
    assert [first.cost, last.cost] == pytest.approx(
        [by_demo.losses[0], by_demo.losses[-1]], abs=1e-12
    )
    assert (last.train, last.test) == (by_demo.accuracies[-1], test)


def test_states_come_in_the_order_of_steps_and_once():
    assert [state.step for state in lab.run("He", steps=(3, 0, 3))] == [0, 3]
    assert lab.run("He", steps=()) == ()


def test_the_model_of_a_start_is_left_alone_by_its_training():
    before = lab.model("He").state_dict()
    lab.run("He", steps=(5,))
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), lab.model("He").state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("activation", lab.ACTIVATIONS)
@pytest.mark.parametrize("start", ["zeros", "constant"])
def test_copies_stay_copies_in_every_bit(start: str, activation: str):
    for state in lab.run(start, activation, steps=(0, 1, 50)):
        for layer in state.layers[:2]:
            assert layer.distinct == 1
            assert {layer.inputs, layer.outputs, layer.gradients, layer.updates} == {0.0}


@pytest.mark.parametrize("activation", lab.ACTIVATIONS)
def test_random_units_differ_from_the_start(activation: str):
    (state,) = lab.run("He", activation, steps=(0,))
    assert [layer.distinct for layer in state.layers] == [10, 5, 1]
    assert min(min(layer.inputs, layer.gradients) for layer in state.layers[:2]) > 0


def test_zeros_behind_relu_move_nothing_that_is_hidden():
    before, after = lab.run("zeros", "relu", steps=(0, 100))
    assert flat(before)[:-1] == flat(after)[:-1]
    assert after.cost == pytest.approx(math.log(2), abs=1e-15)


def test_one_broken_weight_frees_its_own_unit_and_no_other():
    """Nine copies are left in layer 1; layer 2, whose units read the same, is still one unit."""
    state = lab.run("constant", "tanh", "break 1", steps=(200,))[-1]
    assert [layer.distinct for layer in state.layers[:2]] == [2, 1]


def test_one_zero_layer_breaks_by_itself_where_the_others_are_random():
    before, after = lab.run("He", "tanh", "zero 2", steps=(0, 1))
    assert before.layers[1].inputs == 0.0
    assert before.layers[1].distinct == 5  # by what reads them
    assert after.layers[1].inputs > 0.0
    assert after.layers[1].distinct == 5


def test_one_zero_layer_behind_relu_stays_zero():
    state = lab.run("He", "relu", "zero 2", steps=(100,))[-1]
    assert not any(map(any, state.layers[1].weights))


def test_two_units_are_one_by_the_measure_of_the_proof():
    assert running.TOLERANCE == symmetry.LOCK_TOLERANCE


@pytest.mark.parametrize(
    ("start", "distinct"), [("zeros", (1, 1)), ("constant", (1, 1)), ("He", (10, 5))]
)
def test_the_distinct_units_are_those_of_a_check(start: str, distinct: tuple[int, int]):
    report = fanin.check(
        lab.model(start),
        SAMPLES,
        lambda output: torch.nn.functional.binary_cross_entropy(output, LABELS),
    )
    (state,) = lab.run(start, steps=(0,))
    assert tuple(layer.distinct for layer in state.layers[:2]) == distinct
    assert tuple(layer.distinct_units for layer in report.layers[:2]) == distinct


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def html(once: Callable[[str, Callable[[Path], object]], Path]) -> str:
    """What the command writes; the browser tests open the same file."""

    def write(path: Path) -> None:
        done = CliRunner().invoke(cli, ["lab", "-o", str(path)], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    return once("lab.html", write).read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """The scripts, the policy, and every place that could ask for something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self.asked: list[str | None] = []
        self._in: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.asked += [given[name] for name in ("src", "href", "action") if name in given]
        assert not [name for name in given if name.startswith("on")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._in = given if tag == "script" else None

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in is not None:
            self.scripts.append((self._in, data))


def data_of(html: str) -> dict:
    return next(json.loads(text) for given, text in Parsed(html).scripts if "id" in given)


def test_the_page_asks_for_nothing_and_allows_its_own_scripts_alone(html: str):
    parsed = Parsed(html)
    assert all(place.startswith(("#", "data:")) for place in parsed.asked)
    allowed = set(re.findall(r"'sha256-([^']+)'", parsed.policy))
    run = [text for given, text in parsed.scripts if "type" not in given]
    assert {base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in run} == allowed
    assert "default-src 'none'" in parsed.policy
    assert "unsafe-eval" not in parsed.policy
    assert "script-src 'unsafe-inline'" not in parsed.policy


def test_the_page_is_small(html: str):
    assert len(html.encode()) < 2 * 2**20


def test_the_page_carries_weights_and_data_exactly(html: str):
    data = data_of(html)

    def floats(text: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), "<f8")

    points, labels = demo.circles(300, 1)
    assert np.array_equal(floats(data["train"]["points"]), points.ravel())
    assert np.array_equal(floats(data["train"]["labels"]), labels)
    for name in lab.STARTS:
        exact = np.concatenate([part.ravel() for pair in lab.weights(name) for part in pair])
        assert np.array_equal(floats(data["starts"][name]["weights"]), exact)
    directions = floats(data["directions"]).reshape(2, 10)
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-14)


def test_the_page_knows_the_verdict_on_every_start(html: str):
    data = data_of(html)

    def codes(key: str) -> list[str]:
        return [data["findings"][number]["code"] for number in data["verdicts"][key]]

    assert codes("zeros/relu/none") == ["S101", "S102"]
    assert codes("constant/tanh/none") == ["S101"]
    assert "S101" not in codes("He/relu/none")
    for start in lab.STARTS:
        for activation in lab.ACTIVATIONS:
            assert f"{start}/{activation}/none" in data["verdicts"]
            assert f"{start}/{activation}/zero 2" in data["verdicts"]
    assert {found["severity"] for found in data["findings"]} <= set(MARKS)


def test_the_page_is_the_same_twice(html: str, monkeypatch: pytest.MonkeyPatch):
    data = data_of(html)
    monkeypatch.setattr(making, "_verdicts", lambda _: (data["findings"], data["verdicts"]))
    assert lab.page() == html


def test_the_command_writes_the_page_and_replaces_what_is_there(
    html: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lab, "page", lambda progress: html)
    monkeypatch.chdir(tmp_path)
    Path("lab.html").write_text("old")
    done = CliRunner().invoke(cli, ["lab"])
    assert done.exit_code == 0, done.output
    assert "lab.html" in done.output
    assert Path("lab.html").read_text(encoding="utf-8") == html
    assert [path.name for path in tmp_path.iterdir()] == ["lab.html"]


@pytest.mark.parametrize("place", ["-", ".", "missing/lab.html"])
def test_a_place_that_cannot_hold_the_page_is_refused_before_the_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lab, "page", lambda progress: pytest.fail("the work began"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["lab", "-o", place])
    assert done.exit_code == 2
    assert "--output" in done.output
    assert not list(tmp_path.iterdir())


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(making, "_data", lambda _: 1 / 0)
    place = tmp_path / "lab.html"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError):
        lab.write(place)
    assert place.read_text() == "old"
