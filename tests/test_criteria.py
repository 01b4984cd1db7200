"""What known losses make of a model that guesses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin
from fanin.criteria import FAR, guessing, targets


def output(*shape: int) -> Tensor:
    return torch.zeros(*shape, requires_grad=True)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_the_target_is_what_has_no_gradient(name: str, first: bool):
    wanted = torch.randn(64) * 5
    given = (wanted, output(64)) if first else (output(64), wanted)
    found = targets(name, given, {})
    assert found is not None
    assert found.guess is not None
    loss = getattr(F, name)
    assert found.rms == pytest.approx(float(wanted.square().mean().sqrt()))
    assert found.guess == pytest.approx(
        (float(loss(torch.zeros(64), wanted)), float(loss(torch.zeros(64), FAR * wanted)))
    )


def test_guesses_are_summed_as_the_loss_sums_them():
    wanted = torch.randn(32) * 3
    found = targets("mse_loss", (output(32, 1), wanted), {"reduction": "sum"})
    assert found is not None
    assert found.guess is not None
    assert found.guess[0] == pytest.approx(32 * float(wanted.square().sum()), rel=1e-5)


def test_what_is_no_single_known_loss_has_no_guess():
    two = (torch.ones(4), torch.ones(4))
    assert targets("mse_loss", two, {}) is None  # which of them is the target?
    assert targets("mse_loss", (output(4), output(4)), {}) is None
    assert targets("cross_entropy", (output(4, 3), torch.zeros(4)), {}) is None
    for given in ({"reduction": "none"}, {"reduction": "no such"}):
        found = targets("mse_loss", (output(4), torch.ones(4)), given)
        assert found is not None
        assert found.guess is None
    assert targets("mse_loss", (output(4), torch.ones(5)), {}) == (1.0, None)
    assert guessing("mse_loss", (output(4), torch.ones(4)), {}) is None
    known = guessing("cross_entropy", (output(4, 3), torch.zeros(4)), {})
    assert known is not None
    assert known.result == known.unit == pytest.approx(math.log(3))


def network(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, outputs))


@pytest.mark.parametrize(
    "loss",
    [
        lambda wanted: lambda out: F.mse_loss(wanted, out),
        lambda wanted: lambda out: F.l1_loss(wanted, out),
        lambda wanted: lambda out: F.mse_loss(input=wanted, target=out),
        lambda wanted: lambda out: F.mse_loss(out, wanted),
    ],
)
def test_targets_in_raw_units_are_no_large_outputs(loss: Callable):
    wanted = torch.rand(32, 1) * 2e5
    assert not fanin.check(network(), torch.randn(32, 8), loss(wanted)).findings


class Scaled(nn.Module):
    """Scales its raw inputs by itself; its outputs are too large by a factor."""

    def __init__(self, inputs: float, outputs: float) -> None:
        super().__init__()
        self.body, self.inputs, self.outputs = network(), inputs, outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs * self.body(x.flatten(1).float() / self.inputs)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("inputs", "outputs"), [(255.0, 400.0), (1.0, 400.0)])
def test_raw_inputs_are_named_where_they_reach_the_first_layer(
    kind: torch.dtype, inputs: float, outputs: float
):
    x, wanted = torch.randint(0, 256, (64, 2, 2, 2)).to(kind), torch.randn(64, 1)
    report = fanin.check(Scaled(inputs, outputs), x, lambda out: F.mse_loss(out, wanted))
    [found] = [f for f in report.findings if f.code == "O301"]
    assert ("Normalize the inputs" in found.fix) == (inputs == 1.0)


TWO, FIVE = math.log(2), math.log(5)
LABELS, ONES = torch.arange(64) % 5, (torch.arange(64) % 10 == 0).float()
HOT = F.one_hot(LABELS, 5).float()
MASK = (torch.arange(64) % 4 == 0).float()


def first(out: Tensor) -> Tensor:
    return out[:, 0]


def apart(out: Tensor) -> Tensor:
    return out[:, 0] - out[:, 1]


@pytest.mark.parametrize(
    ("loss", "guess"),
    [
        (lambda out: F.cross_entropy(out, LABELS), FIVE),
        (lambda out: F.cross_entropy(out, LABELS, reduction="sum"), 64 * FIVE),
        (lambda out: F.cross_entropy(out, LABELS, torch.arange(1.0, 6.0)), FIVE),
        (lambda out: (F.cross_entropy(out, LABELS, reduction="none") * MASK).sum() / 16, FIVE),
        (lambda out: F.cross_entropy(out, LABELS) + F.cross_entropy(-out, LABELS) / 2, 1.5 * FIVE),
        (lambda out: F.nll_loss(F.log_softmax(out, 1), LABELS, reduction="sum"), 64 * FIVE),
        (lambda out: -(F.log_softmax(out, 1) * HOT).sum(1).mean(), FIVE),
        (lambda out: -torch.log_softmax(out, -1)[torch.arange(64), LABELS].mean(), FIVE),
        (lambda out: -(out.softmax(1).gather(1, LABELS[:, None]) + 1e-30).log().mean(), FIVE),
        (lambda out: (out.logsumexp(1) - out[torch.arange(64), LABELS]).mean(), FIVE),
        (lambda out: (torch.logsumexp(out, 1, keepdim=True) - out).mean(), FIVE),
        (lambda out: F.binary_cross_entropy_with_logits(first(out), ONES), TWO),
        (lambda out: F.binary_cross_entropy(first(out).sigmoid(), ONES, reduction="sum"), 64 * TWO),
        (lambda out: (F.softplus(first(out)) - first(out) * ONES).mean(), TWO),
        (lambda out: F.softplus(first(out)).mean() - (first(out) * ONES).mean(), TWO),
        (lambda out: (ONES * F.softplus(-first(out)) + (1 - ONES) * F.softplus(first(out))).sum(),
         64 * TWO),
        (lambda out: -F.logsigmoid(apart(out)).mean(), TWO),
        # One step, one label: a fifth of the ways.
        (lambda out: F.ctc_loss(out.log_softmax(1)[None], LABELS[:, None] % 4 + 1, (1,) * 64,
                                (1,) * 64), FIVE),
        (lambda out: nn.LogSigmoid()(apart(out)).neg().sum(), 64 * TWO),
        (lambda out: F.softplus(-apart(out)).mean() / 2, TWO / 2),
        (lambda out: -torch.log(torch.sigmoid(apart(out)) + 1e-10).mean(), TWO),
        (lambda out: -F.logsigmoid(first(out)).mean() - F.logsigmoid(-out[:, 1:]).sum(1).mean(),
         5 * TWO),
    ],
)  # fmt: skip
def test_the_loss_of_guessing_is_known_of_losses_written_by_hand(loss: Callable, guess: float):
    for scale, sound in ((1.0, True), (300.0, False)):
        model = network(5)
        with torch.no_grad():
            model[2].weight *= scale
        report = fanin.check(model, torch.randn(64, 8), loss)
        assert report.chance == pytest.approx(guess, rel=1e-3)
        assert ("O301" not in {f.code for f in report.findings}) == sound


def test_a_rare_class_that_weighs_more_is_no_large_loss():
    weight = torch.tensor(100.0)
    report = fanin.check(
        network(),
        torch.randn(64, 8),
        lambda out: F.binary_cross_entropy_with_logits(out[:, 0], ONES, pos_weight=weight),
    )
    assert report.chance == pytest.approx(TWO * (0.9 * 57 + 7 * 100) / 64, rel=0.1)
    assert not report.findings


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: F.softplus(apart(out)).mean() ** 2,
        lambda out: (F.softplus(first(out)) * out[:, 1]).mean(),
        lambda out: (F.softplus(first(out)) - ONES * F.softplus(first(out)).log()).mean(),
        lambda out: F.softplus(first(out), beta=2.0).mean(),
        lambda out: (out.log_softmax(1).exp() * out.log_softmax(1)).sum(1).mean(),
        lambda out: F.cross_entropy(out, LABELS) + 1e3 * (1 + out.square().mean()),
    ],
)
def test_what_is_no_sum_of_known_parts_has_no_loss_of_guessing(loss: Callable):
    assert fanin.check(network(5), torch.randn(64, 8), loss).chance is None


WANTED = torch.linspace(-2, 2, 64)[:, None].expand(64, 5)
MEAN, SIZE = float(WANTED.square().mean()), float(WANTED.abs().mean())


@pytest.mark.parametrize(
    ("loss", "guess"),
    [
        (lambda out: F.mse_loss(out, WANTED), MEAN),
        (lambda out: (out - WANTED).pow(2).mean(), MEAN),
        (lambda out: (WANTED - out).square().mean(), MEAN),
        (lambda out: 0.5 * ((out - WANTED) ** 2).sum(), 160 * MEAN),
        (lambda out: ((d := out - WANTED) * d).mean() / 2, MEAN / 2),
        (lambda out: (out - WANTED).abs().mean(), SIZE),
        (lambda out: F.mse_loss(out, WANTED) + 3 * F.l1_loss(out, WANTED), MEAN + 3 * SIZE),
        (lambda out: ((out - WANTED) ** 2).mean() + F.mse_loss(out, WANTED), 2 * MEAN),
        (lambda out: sum([F.mse_loss(out, WANTED), F.mse_loss(out, WANTED)]), 2 * MEAN),
        (lambda out: F.mse_loss(out, WANTED) + 5000.0, MEAN + 5000),
        (lambda out: F.mse_loss(out, WANTED).add_(F.mse_loss(out, WANTED)), 2 * MEAN),
    ],
)
def test_a_regression_is_known_by_hand_and_as_a_sum(loss: Callable, guess: float):
    """A critic of two heads (TD3, SAC) has a loss of each."""
    for scale, sound in ((1.0, True), (3000.0, False)):
        model = network(5)
        with torch.no_grad():
            model[2].weight *= scale
        report = fanin.check(model, torch.randn(64, 8), loss)
        told = [f for f in report.findings if f.code == "O301"]
        assert (not told) == sound
        for finding in told:
            assert float(finding.expected.split()[1].rstrip(",")) == pytest.approx(guess, rel=1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: F.mse_loss(out, WANTED) + out.square().mean(),
        lambda out: F.mse_loss(out, WANTED) - 2 * F.l1_loss(out, WANTED),
        lambda out: (2 * (out - WANTED)).mean().square(),
        lambda out: (out - WANTED).pow(2).mean().sqrt(),
        lambda out: (out - out.roll(1, 0)).square().mean(),
    ],
)
def test_what_is_no_sum_of_regressions_is_not_held_against_a_guess(loss: Callable):
    model = network(5)
    with torch.no_grad():
        model[2].weight *= 3000.0
    report = fanin.check(model, torch.randn(64, 8), loss)
    told = [f.expected for f in report.findings if f.code == "O301"]
    assert all("of the same outputs at a size of 1" in expected for expected in told)


class Ranked(nn.Module):
    """Scores of users and items, and of items that they did not choose, as their products."""

    def __init__(self, std: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(50, 32), nn.Embedding(90, 32)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=std)

    def forward(self, users: Tensor, chosen: Tensor, other: Tensor) -> dict[str, Tensor]:
        user = self.users(users)
        margin = (user * self.items(chosen)).sum(1) - (user * self.items(other)).sum(1)
        penalty = 1e-4 * self.users(users).square().sum(1).mean()
        return {"loss": -F.logsigmoid(margin).mean() + penalty}


# A rank-4 truth, 800 steps of Adam: std 0.01 to 0.3 end at 0.08 to 0.09, 1 at 0.25, 3 at 12.
@pytest.mark.parametrize(("std", "sound"), [(0.01, True), (0.1, True), (0.3, True), (1.5, False)])
def test_tables_too_large_for_a_ranking_loss_are_named(std: float, sound: bool):
    given = (torch.arange(64) % 50, torch.arange(64) % 90, (torch.arange(64) * 7) % 90)
    report = fanin.check(Ranked(std), given)
    assert report.chance == pytest.approx(TWO, abs=0.02)
    found = [f for f in report.findings if f.code == "O301"]
    assert bool(found) != sound
    if found:
        assert set(found[0].layers) == {"users", "items"}
        assert "tables" in found[0].fix


@pytest.mark.parametrize(
    ("scale", "raw", "severity"),
    [(300.0, 1.0, "warning"), (1e7, 1.0, "error"), (1.0, 1e8, "warning")],
)
@pytest.mark.parametrize("regression", [False, True])
def test_a_loss_beyond_all_that_learned_is_an_error(
    scale: float, raw: float, severity: str, regression: bool
):
    """Raw inputs make it large too, and are the batch's."""
    model, wanted = network(5), torch.randn(64, 5)
    with torch.no_grad():
        model[2].weight *= scale
    report = fanin.check(
        model,
        raw * torch.randn(64, 8),
        lambda out: F.mse_loss(out, wanted) if regression else F.cross_entropy(out, LABELS),
    )
    [found] = [f for f in report.findings if f.code == "O301"]
    assert found.severity == severity
