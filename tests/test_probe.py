"""Sizes that float32 holds and whose squares it does not are measured as they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fanin


class Scaled(nn.Module):
    """Two layers with a constant factor between them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(8, 16), nn.Linear(16, 4), factor

    def forward(self, x):
        return self.last(self.factor * self.first(x))


def first_layer(factor: float) -> fanin.LayerStats:
    torch.manual_seed(0)
    model, batch = Scaled(factor), torch.randn(32, 8)
    return fanin.check(model, batch).layers[0]


@pytest.mark.parametrize("factor", [1e-30, 1e-24, 1e-20, 1e20, 1e25, 1e30])
def test_the_cotangent_and_the_gradient_scale_with_a_factor_behind_the_layer(factor: float):
    plain, scaled = first_layer(1.0), first_layer(factor)
    assert scaled.cotangent_rms == pytest.approx(factor * plain.cotangent_rms, rel=1e-4)
    assert scaled.gradient_rms == pytest.approx(factor * plain.gradient_rms, rel=1e-4)


def test_what_is_zero_is_zero_and_what_is_not_finite_is_not():
    assert first_layer(0.0).cotangent_rms == 0.0
    assert not math.isfinite(first_layer(math.inf).cotangent_rms)


def test_a_layer_without_a_finite_value_has_no_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    first, last = fanin.check(model, torch.randn(32, 8)).layers
    assert first.rms > 0
    assert first.nonfinite == 32
    assert math.isnan(last.rms)
    assert last.nonfinite == 32 * 4
