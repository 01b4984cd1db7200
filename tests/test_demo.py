"""The article's experiment comes back: its numbers, and the verdict beside each."""

from __future__ import annotations

import functools
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fanin.comparing import Run
from fanin.demo import (
    Certificate,
    Cost,
    Demo,
    Published,
    Row,
    circles,
    demo,
    network,
    starts,
    train,
)
from fanin.errors import ArgumentError

# start, cost at iteration 14,000, its tolerance, train and test accuracy, their tolerance.
# randn×10 saturates the sigmoid: its path hangs on the last bits of exp and of the products.
REFERENCE = [
    ("zeros", 0.6931471805599453, 1e-9, 0.5, 0.5, 0.0),
    ("randn×0.01", 0.6931473065831707, 1e-9, 139 / 300, 0.48, 0.0),
    ("randn×10", 0.38276694641706693, 1e-3, 0.83, 0.86, 0.01),
    ("He", 0.07357895962677363, 1e-9, 298 / 300, 0.96, 0.0),
    ("Xavier", 0.10850689140892147, 1e-9, 0.99, 0.93, 0.0),
    ("Glorot", 0.17480851671162975, 1e-9, 0.99, 0.95, 0.0),
]
EXACT = [start for start, _, near, *_ in REFERENCE if near < 1e-6]
SHORT = 1_001  # iterations that every start is trained for here; only He goes all the way


class Exercise:
    """The exercise as it stands there: numpy, and a backward pass derived by hand."""

    def __init__(self, start: str) -> None:
        self.weights = [weight for weight, _ in starts()[start]]
        self.biases = [bias for _, bias in starts()[start]]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        (w1, w2, w3), (b1, b2, b3) = self.weights, self.biases
        a1 = np.maximum(0, w1 @ x + b1)
        a2 = np.maximum(0, w2 @ a1 + b2)
        with np.errstate(over="ignore"):
            return a1, a2, 1 / (1 + np.exp(-(w3 @ a2 + b3)))

    def cost(self, x: np.ndarray, y: np.ndarray) -> float:
        outputs = self.forward(x)[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = -np.log(outputs) * y - np.log(1 - outputs) * (1 - y)
        return float(np.nansum(losses) / y.size)

    def step(self, x: np.ndarray, y: np.ndarray) -> None:
        a1, a2, a3 = self.forward(x)
        delta3 = (a3 - y) / y.size
        delta2 = self.weights[2].T @ delta3 * (a2 > 0)
        delta1 = self.weights[1].T @ delta2 * (a1 > 0)
        deltas = zip((delta1, delta2, delta3), (x, a1, a2), strict=True)
        for depth, (delta, inputs) in enumerate(deltas):
            self.weights[depth] = self.weights[depth] - 0.01 * delta @ inputs.T
            self.biases[depth] = self.biases[depth] - 0.01 * delta.sum(1, keepdims=True)

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(((self.forward(x)[-1] > 0.5) == y).mean())


@functools.cache
def short(start: str) -> tuple[Run, float]:
    return train(start, SHORT)


@functools.cache
def by_hand(start: str, iterations: int = SHORT) -> tuple[list[float], float, float]:
    """Costs at every thousandth iteration, and the accuracies after the last."""
    exercise, costs = Exercise(start), []
    points, labels = circles(300, 1)
    for iteration in range(iterations):
        if iteration % 1000 == 0:
            costs.append(exercise.cost(points.T, labels[None]))
        exercise.step(points.T, labels[None])
    points_, labels_ = circles(100, 2)
    test = exercise.accuracy(points_.T, labels_[None])
    return costs, exercise.accuracy(points.T, labels[None]), test


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What the demo below tells of its progress."""
    return []


@pytest.fixture(scope="module")
def checked(told: list[str]) -> Demo:
    return demo(told.append, iterations=1)


@pytest.fixture
def table(checked: Demo) -> Demo:
    copies = Certificate("layer1", 10, 10, 8, 0.0, 0.0, 1.5e-17, 0.0)
    locked = Row(
        start="zeros",
        verdict="error: S101 locked-units, S102 gradient-deadlock",
        ok=False,
        distinct=("1/10", "1/5", "1/1"),
        cost=math.log(2),
        train=0.5,
        test=0.5,
        published=Published(0.6931471805599453, 0.5),
        certificate=(copies,),
    )
    sound = Row(
        "randn×0.01", "sound", True, ("10/10", "5/5", "1/1"), math.inf, 0.993, 0.96, None, ()
    )
    return Demo(15_000, (locked, sound), checked.comparison)


@pytest.mark.parametrize(
    ("start", "cost", "near", "training", "test", "point"),
    [row for row in REFERENCE if row[0] != "He"],  # fanin itself takes He all the way, below
)
def test_the_exercise_gives_the_published_figures(start, cost, near, training, test, point):
    # Zeros stay where they are from the first step on.
    costs, on_train, on_test = by_hand(start, SHORT if start == "zeros" else 15_000)
    assert costs[-1] == pytest.approx(cost, rel=0, abs=near)
    assert on_train == pytest.approx(training, rel=0, abs=point + 1e-12)
    assert on_test == pytest.approx(test, rel=0, abs=point + 1e-12)


@pytest.mark.parametrize("start", EXACT)
def test_training_goes_the_way_of_the_exercise(start):
    costs, on_train, on_test = by_hand(start)
    run, test = short(start)
    assert run.at == (0, 1_000, 1_001)
    assert run.losses[:2] == pytest.approx(costs, rel=0, abs=1e-9)
    assert (run.accuracies[-1], test) == (on_train, on_test)
    assert run.diverged is None


@pytest.mark.slow
def test_training_reproduces_the_published_figure_of_he():
    run, test = train("He")
    assert run.at == (*range(0, 15_000, 1_000), 15_000)
    assert run.losses[14] == pytest.approx(0.07357895962677366, rel=0, abs=1e-9)
    assert (run.accuracies[-1], test) == (298 / 300, 0.96)


def test_zeros_never_learn():
    assert set(short("zeros")[0].losses) == {math.log(2)}


def test_a_saturated_start_costs_infinity_and_learns_nevertheless():
    # A sample of label 0 at which the sigmoid is 1 costs -log 0; only 0·log 0 is missing.
    run, _ = short("randn×10")
    assert run.losses[0] == by_hand("randn×10")[0][0] == math.inf
    assert run.losses[1] == pytest.approx(by_hand("randn×10")[0][1], rel=0.02)
    assert run.diverged is None


def test_the_cost_has_the_gradient_that_the_exercise_derives():
    logits = torch.tensor([[0.3], [-2.0], [800.0], [800.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    logits.requires_grad_()
    cost = Cost.apply(logits, labels)
    cost.backward()
    assert cost.item() == math.inf
    probabilities = logits.detach().sigmoid()
    assert torch.equal(logits.grad, (probabilities - labels) / 4)
    plain = logits.detach()[:2].requires_grad_()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(plain, labels[:2])
    assert Cost.apply(plain, labels[:2]).item() == pytest.approx(expected.item(), rel=1e-14)


def test_the_network_maps_points_to_probabilities():
    points, _ = circles(10, 0)
    outputs = network(starts()["He"])(torch.from_numpy(points))
    expected = Exercise("He").forward(points.T)[-1].T
    assert outputs.detach().numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "seed", "first", "last", "labels"),
    [
        (
            300,
            1,
            [-0.07741354010048114, 0.8526022642742742],
            [-0.061145412565262895, 0.9298264080659127],
            [1, 0, 1, 1, 0, 0, 1, 0, 1, 1],
        ),
        (
            100,
            2,
            [-0.5242373850862546, -0.6091036148461817],
            [0.3438483715909715, -0.9192735912720769],
            [1, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ),
    ],
)
def test_circles_are_those_of_scikit_learn(samples, seed, first, last, labels):
    # Written by sklearn 1.9.1's make_circles; equal but for the last bits of cos and sin.
    points, drawn = circles(samples, seed)
    assert points[0] == pytest.approx(first, rel=1e-14)
    assert points[-1] == pytest.approx(last, rel=1e-14)
    assert drawn[:10].tolist() == labels
    assert drawn.sum() == samples / 2


def test_starts_differ_in_scale_alone():
    drawn = starts()
    assert list(drawn) == [start for start, *_ in REFERENCE]
    for depth, fan_in, fan_out in [(0, 2, 10), (1, 10, 5), (2, 5, 1)]:
        he, bias = drawn["He"][depth]
        normal = he * (fan_in / 2) ** 0.5
        assert he.shape == (fan_out, fan_in)
        assert bias.shape == (fan_out, 1)
        assert not bias.any()
        for start, scale in [
            ("zeros", 0),
            ("randn×0.01", 0.01),
            ("randn×10", 10),
            ("Xavier", fan_in**-0.5),
            ("Glorot", (2 / (fan_in + fan_out)) ** 0.5),
        ]:
            assert drawn[start][depth][0] == pytest.approx(normal * scale, rel=1e-14)
    assert drawn["He"][0][0][0, 0] == pytest.approx(1.7886284734303186)  # randn after seed 3


def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    train("He", iterations=1)
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: train("he"),
        lambda: train("He", iterations=0),
        lambda: demo(iterations=0),
        lambda: circles(5, seed=0),
    ],
)
def test_bad_arguments_are_named(call):
    with pytest.raises(ArgumentError, match="must be"):
        call()


def test_the_table_of_the_readme_is_what_the_checks_say(checked: Demo) -> None:
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    lines = page.partition("| start | before training |")[2].splitlines()[2 : 2 + len(checked.rows)]
    for line, row in zip(lines, checked.rows, strict=True):
        start, verdict, distinct, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        assert start.partition(":")[0].replace(" ", "") == row.start
        assert verdict.partition(":")[0] == row.verdict.partition(":")[0]
        assert re.findall(r"[A-Z]\d{3}", verdict) == re.findall(r"[A-Z]\d{3}", row.verdict)
        assert distinct == " ".join(row.distinct)


def test_check_finds_the_zeros_locked_and_no_other_start(checked):
    verdicts = {row.start: row.verdict for row in checked.rows}
    locked = [start for start, verdict in verdicts.items() if "S101 locked-units" in verdict]
    assert locked == ["zeros"]
    for row in checked.rows:
        expected = ("1/10", "1/5", "1/1") if row.start == "zeros" else ("10/10", "5/5", "1/1")
        assert row.distinct == expected


@pytest.mark.parametrize("start", ["He", "Xavier", "Glorot"])
def test_check_passes_the_starts_that_train(checked, start):
    (row,) = [row for row in checked.rows if row.start == start]
    assert row.ok
    assert row.certificate == ()


def test_zeros_carry_the_certificate_of_both_hidden_layers(checked):
    shown = checked.rows[0].certificate
    assert [(each.layer, each.units, each.of) for each in shown] == [
        ("layer1", 10, 10),
        ("layer2", 5, 5),
    ]
    for each in shown:
        assert each.steps > 0
        assert each.inputs == each.outputs == each.gradients == each.updates == 0


def test_progress_is_told_of_every_start(checked, told):
    named = dict.fromkeys(line.split(":")[0] for line in told)
    assert list(named) == list(starts())
    assert told[:2] == ["zeros: check", "zeros: step 0 of 1, cost 0.693"]


def test_the_comparison_holds_what_the_table_says(checked):
    outcomes = checked.comparison.outcomes
    assert [outcome.scheme for outcome in outcomes] == list(starts())
    for row, outcome in zip(checked.rows, outcomes, strict=True):
        assert outcome.report.ok == row.ok
        assert outcome.start == row.cost
        assert outcome.accuracy == row.train


def test_json_is_strict_and_holds_every_digit(table):
    plain = json.loads(table.to_json(), parse_constant=pytest.fail)
    assert plain == table.to_dict()
    assert plain["schema_version"] == 1
    assert plain["iterations"] == 15_000
    assert len(plain["comparison"]["outcomes"]) == 6
    locked, sound = plain["rows"]
    assert locked["cost"] == math.log(2)
    assert locked["published"] == {"cost": 0.6931471805599453, "test": 0.5}
    assert locked["certificate"][0]["gradients"] == 1.5e-17
    assert sound["cost"] == "inf"
    assert sound["published"] is None


def test_text_shows_each_row_and_the_certificate(table):
    lines = [line.strip() for line in str(table).splitlines()]
    (zeros,) = [line for line in lines if line.startswith("zeros") and "1/10" in line]
    assert "S101 locked-units" in zeros
    assert zeros.split()[-5:] == ["0.693147", "50.0%", "50%", "0.693147,", "50%"]
    (sound,) = [line for line in lines if line.startswith("randn") and "10/10" in line]
    assert sound.split() == [
        "randn×0.01",
        "sound",
        "10/10",
        "5/5",
        "1/1",
        "inf",
        "99.3%",
        "96%",
        "–",
    ]
    (shown,) = [line for line in lines if line.startswith("layer1")]
    assert shown.split() == ["layer1", "10", "of", "10", "8", "0", "0", "1.5e-17", "0"]
    assert "iteration 14,000" in str(table)
    assert "● zeros  ○ randn×0.01  ◆ randn×10  ◇ He  ▲ Xavier  △ Glorot" in lines


def test_text_fits_eighty_columns_without_losing_a_word(table):
    page = io.StringIO()
    Console(file=page, width=80, color_system=None).print(table)
    shown = page.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("S101", "locked-units,", "S102", "gradient-deadlock", "10/10 5/5 1/1"):
        assert word in shown
