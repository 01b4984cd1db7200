"""What known losses make of a model that guesses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin
from fanin.criteria import FAR, chance, targets


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
    assert chance("mse_loss", (output(4), torch.ones(4)), {}) is None
    assert chance("cross_entropy", (output(4, 3), torch.zeros(4)), {}) == pytest.approx(math.log(3))


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
