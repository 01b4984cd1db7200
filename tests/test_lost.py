"""A collapse names what shuts the difference out; one that fades says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import seeded
from zoo.blocks import Routed
from zoo.checks import QUIET
from zoo.faults import FAULTS

import fanin
from fanin.findings import RULES, Finding

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _seed():
    with seeded(1):
        yield


def collapse(model: nn.Module, batch: Tensor) -> Finding:
    labels = torch.randint(0, 5, (len(batch),))
    found = fanin.check(model, batch, lambda output: F.cross_entropy(output, labels)).findings
    return next(f for f in found if f.code == "P207")


class Quantized(nn.Module):
    """A learned step (LSQ): weights are whole numbers of steps."""

    def __init__(self, inputs: int, outputs: int, step: float) -> None:
        super().__init__()
        self.layer, self.step = nn.Linear(inputs, outputs), nn.Parameter(torch.tensor(step))

    def forward(self, x: Tensor) -> Tensor:
        steps = self.layer.weight / self.step
        whole = steps + (steps.round() - steps).detach()
        return F.linear(x, whole * self.step, self.layer.bias)


def normed(norm: Callable[[], nn.Module], depth: int = 8) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(20, 32)]
    for _ in range(depth):
        layers += [norm(), nn.ReLU(), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 5))


def scaled(scale: float) -> nn.Module:
    norm = nn.LayerNorm(32)
    nn.init.constant_(norm.weight, scale)
    return norm


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    nn.init.constant_(model[2].bias, -20.0)
    return nn.Sequential(*model, nn.Linear(32, 5))


def saturated() -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    nn.init.constant_(model[0].bias, 30.0)
    return nn.Sequential(*model, nn.Linear(32, 5))


class Gated(nn.Module):
    """tanh(a) σ(b) of one layer, as in a WaveNet."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(20, 64), nn.Linear(32, 5)
        nn.init.constant_(self.wide.bias[32:].data, shift)

    def forward(self, x: Tensor) -> Tensor:
        signal, gate = self.wide(x).chunk(2, -1)
        return self.head(signal.tanh() * gate.sigmoid())


CAUSES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a step above the weights": (
        lambda: nn.Sequential(Quantized(20, 32, 1.0), nn.ReLU(), Quantized(32, 5, 1.0)),
        "weight that is computed from 0.layer.weight, 0.step",
        "quantization",
    ),
    "gates that are shut": (
        lambda: Routed(-1.0, 32, 2),
        "between them (gates.0, blocks.0",
        "a gate",
    ),
    "gates beside units that are bent first": (
        lambda: Gated(-30.0),
        "units of wide that are gates are shut",
        "P206",
    ),
    "eps that is the width": (
        lambda: normed(lambda: nn.BatchNorm1d(32, 32)),
        "0.1 at layer 1, 0.006",
        "eps",
    ),
    "scales next to zero": (lambda: normed(lambda: scaled(1e-3)), "0.001 at layer 1", "at one"),
    "dead units": (dead, "units of layer 2 are in the flat part", "P205"),
    "saturated units": (saturated, "units of layer 0 are in the flat part", "P206"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_what_shuts_the_difference_out_is_named(name: str):
    build, why, fix = CAUSES[name]
    found = collapse(build(), torch.randn(64, 20))
    assert why in found.why
    assert fix in found.fix
    assert "biases at zero" not in found.fix


@pytest.mark.parametrize(
    "build",
    [
        lambda: Routed(1.5, 32, 2),
        lambda: Gated(-3.0),
        lambda: normed(lambda: nn.BatchNorm1d(32)),
        lambda: normed(lambda: scaled(1.0)),
        lambda: nn.Sequential(Quantized(20, 32, 0.01), nn.ReLU(), Quantized(32, 5, 0.01)),
    ],
    ids=["open gates", "gates that are nearly shut", "usual eps", "usual scales", "small steps"],
)
def test_the_same_models_as_they_are_meant_collapse_nowhere(build):
    found = fanin.check(build(), torch.randn(64, 20)).findings
    assert "P207" not in {f.code for f in found}


def test_a_difference_that_fades_is_told_of_weights_and_biases():
    layers = [module for _ in range(40) for module in (nn.Linear(64, 64), nn.ReLU())]
    found = collapse(nn.Sequential(*layers, nn.Linear(64, 5)), torch.randn(64, 64))
    assert (found.why, found.fix) == (RULES["P207"].why, RULES["P207"].fix)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_norms_behind_a_collapse_are_not_to_blame(norm):
    """Nothing that differs reaches them, so eps is all that a batch norm divides by."""
    layers = [module for _ in range(24) for module in (nn.Linear(20, 20), nn.ReLU())]
    model = nn.Sequential(*layers, norm(20), nn.Linear(20, 5))
    assert collapse(model, torch.randn(64, 20)).why == RULES["P207"].why


def test_what_a_recurrent_layer_shuts_out_is_named():
    case = next(c for c in FAULTS if c.name == "lstm-whose-input-gates-are-shut")
    found = next(f for f in fanin.check(*case.build()).findings if f.code == "P207")
    assert "what head reads does not: what stands between them (rnn)" in found.why
