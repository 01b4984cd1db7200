"""What the maps predict of each layer, against what was measured on real ones."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fanin
from fanin import moments
from fanin.prediction import _bent, _Signal, between_samples
from fanin.report import Report

# One network of width 256 differs from the mean over all by a few hundredths a layer.
NEAR = 0.1


def deep(activation: nn.Module, depth: int = 20, width: int = 256) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def close(report: Report, layers: int, near: float = NEAR) -> None:
    """At least so many layers are predicted, each near what was measured."""
    told = [layer for layer in report.layers if layer.predicted_rms is not None]
    assert len(told) >= layers
    for layer in told:
        assert layer.predicted_rms == pytest.approx(layer.rms, rel=2 * near), layer.name
        assert layer.predicted_correlation == pytest.approx(layer.correlation, abs=near), layer.name


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.LeakyReLU(0.2)]
)
def test_the_line_stays_near_what_is_measured_over_twelve_layers(activation: nn.Module):
    torch.manual_seed(0)
    report = fanin.check(deep(activation, 12), torch.randn(64, 256))
    close(report, 12)
    assert report.layers[0].predicted_rms is None  # the batch is no layer: here the line starts


def test_a_line_that_starts_again_is_not_fitted_to_what_it_predicts():
    """The prediction looks at the layers before only: breaking a later layer changes none."""
    torch.manual_seed(0)
    model, batch = deep(nn.ReLU(), 6), torch.randn(64, 256)
    before = fanin.check(model, batch)
    with torch.no_grad():
        model[8].weight.mul_(30)
    after = fanin.check(model, batch)
    for old, new in zip(before.layers[:4], after.layers[:4], strict=True):
        assert (old.predicted_rms, old.predicted_correlation) == (
            new.predicted_rms, new.predicted_correlation,
        )  # fmt: skip
    assert after.layers[4].predicted_rms > 10 * before.layers[4].predicted_rms


def test_zero_padding_takes_its_share_of_a_convolution():
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in model[2::2]:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    report = fanin.check(model, torch.randn(16, 3, 6, 6))
    close(report, 6, near=2 * NEAR)  # few channels, and places at the border unlike those inside
    # on 6 × 6 places, 1 − (16/18)² = 21 % of all taps lie outside: without that the line is off
    last = report.layers[-1]
    assert last.predicted_rms < 0.8 * report.layers[1].predicted_rms


def test_residual_branches_and_norms_are_followed():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(256)
            self.up, self.down = nn.Linear(256, 512), nn.Linear(512, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), *[Block() for _ in range(6)], nn.Linear(256, 5))
    report = fanin.check(model, torch.randn(64, 32))
    close(report, 19)
    assert [layer.branch for layer in report.layers] == [
        None, *[i for i in range(6) for _ in range(3)], None,
    ]  # fmt: skip
    assert report.branches[3].number == 3
    assert report.branches[3].of == 6
    assert report.branches[3].norm == "before"
    assert report.branches[3].last == ("4.down",)


def test_what_is_not_understood_ends_the_line():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.one(x) * self.two(x))

    report = fanin.check(Gate(), torch.randn(32, 64))
    assert [layer.predicted_rms for layer in report.layers] == [None, None, None]
    assert all(layer.correlation is not None for layer in report.layers)


def test_a_layer_of_zeros_is_predicted_as_silent_and_breaks_nothing():
    model = deep(nn.ReLU(), 3, 16)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    report = fanin.check(model, torch.randn(16, 16))
    assert report.layers[1].predicted_rms == 0.0
    assert report.layers[1].predicted_correlation is None


def test_values_that_are_not_finite_are_not_predicted_from():
    model = deep(nn.ReLU(), 3, 16)
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    report = fanin.check(model, torch.randn(16, 16))
    assert [layer.predicted_rms for layer in report.layers[1:]] == [None, None, None]


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "hardtanh", "softplus", "sigmoid"])
@pytest.mark.parametrize("c", [-0.5, 0.0, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("q", [0.05, 1.0, 4.0])
def test_the_quick_map_agrees_with_quadrature(activation: str, c: float, q: float):
    made = _bent(SimpleNamespace(curve=activation), _Signal(q, c * q))  # type: ignore[arg-type]
    assert made is not None
    assert made.second == pytest.approx(moments.moments(activation, 0.0, q).second, rel=1e-4)
    exact = moments.correlation_map(activation, c, q, 1.0)
    assert made.correlation == pytest.approx(exact, abs=4e-4)


@pytest.mark.parametrize("samples", [2, 5, 64])
def test_the_correlation_follows_from_the_variation(samples: int):
    torch.manual_seed(0)
    values = torch.randn(samples, 300, dtype=torch.float64) + torch.randn(300, dtype=torch.float64)
    pairs = values @ values.T
    between = (pairs.sum() - pairs.trace()) / (samples * (samples - 1))
    spread = values - values.mean(0)
    variation = float((spread.square().mean() / values.square().mean()).sqrt())
    expected = float(between / (pairs.trace() / samples))
    assert between_samples(variation, samples) == pytest.approx(expected, abs=1e-12)


def test_one_sample_has_no_correlation():
    assert between_samples(0.5, 1) is None
    assert between_samples(None, 8) is None
    report = fanin.check(deep(nn.ReLU(), 2, 16), torch.randn(1, 16))
    assert [layer.correlation for layer in report.layers] == [None, None, None]
    assert report.layers[1].predicted_rms is not None
