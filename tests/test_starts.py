"""What the report says of each parameter: its values now, and what fanin would draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from zoo.healthy import HEALTHY

import fanin


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 5))


def test_each_parameter_has_its_values_and_its_plan():
    net, batch = model(), torch.randn(16, 32)
    report = fanin.check(net, batch)
    plan = fanin.plan(net, batch)
    assert [s.parameter for s in report.starts] == [name for name, _ in net.named_parameters()]
    for start, (name, values) in zip(report.starts, net.named_parameters(), strict=True):
        flat = values.detach().numpy()
        assert start.shape == tuple(values.shape)
        assert start.mean == pytest.approx(flat.mean(), abs=1e-6)
        assert start.std == pytest.approx(flat.std(), abs=1e-6)
        assert (start.low, start.high) == (flat.min(), flat.max())
        assert start.scheme == plan[name].scheme
        assert start.planned_std == plan[name].std
        assert start.fan == plan[name].fan
        assert start.because


def test_a_histogram_counts_what_numpy_counts():
    net = model()
    found = fanin.check(net, torch.randn(16, 32)).starts[0]
    values = net[0].weight.detach().double().numpy()
    counts, _ = np.histogram(values, bins=len(found.counts), range=(found.low, found.high))
    assert sum(found.counts) == 32 * 64
    assert max(abs(np.array(found.counts) - counts)) <= 1  # a value on the edge of two bins


@pytest.mark.filterwarnings("ignore")  # of the models themselves
@pytest.mark.parametrize("case", HEALTHY[::9], ids=lambda case: case.name)
def test_the_choice_is_that_of_a_plan(case):
    """Also where the loss is part of what was watched."""
    torch.manual_seed(0)
    net, batch, *_ = case.build()
    loss = _[0] if _ else None
    report = fanin.check(net, batch, loss)
    plan = fanin.plan(net, batch)
    for start in report.starts:
        told = plan.untouched.get(start.parameter)
        if told is not None:
            assert (start.scheme, start.because) == (None, told)
        elif "measured" not in plan[start.parameter].because:
            assert start.planned_std == plan[start.parameter].std


def test_frozen_parameters_are_left_for_that_reason():
    net = model()
    net[0].weight.requires_grad_(False)
    first = fanin.check(net, torch.randn(16, 32)).starts[0]
    assert (first.scheme, first.trainable) == (None, False)
    assert "frozen" in first.because


def test_what_is_not_finite_is_left_out_of_the_figures():
    net = model()
    with torch.no_grad():
        net[0].weight[0, 0] = math.inf
        net[3].weight.fill_(math.nan)
    report = fanin.check(net, torch.randn(16, 32))
    first, last = report.starts[0], report.starts[4]
    assert first.high == pytest.approx(float(net[0].weight.detach()[1:].max()), abs=0.01)
    assert sum(first.counts) == 32 * 64 - 1
    assert (last.mean, last.std, last.low, last.high, last.counts) == (None, None, None, None, ())
    assert fanin.Report.from_dict(report.to_dict()).to_json() == report.to_json()


def test_large_and_constant_values_have_exact_figures():
    net = model()
    with torch.no_grad():
        net[0].weight.mul_(1e30)
        net[3].weight.fill_(0.5)
    first, *_, last, _ = fanin.check(net, torch.randn(16, 32)).starts
    exact = net[0].weight.detach().double().std(correction=0)
    assert first.std == pytest.approx(float(exact), rel=1e-4)
    assert (last.mean, last.std, last.counts) == (0.5, 0.0, ())


def test_the_batch_is_told_in_a_line_a_tensor():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.table(tokens) + x)

    batch = {"tokens": torch.randint(9, (3, 5)), "x": torch.randn(3, 5, 4)}
    report = fanin.check(Two(), batch, dtype="bfloat16")
    assert report.batch == ("int64 [3, 5]", "float32 [3, 5, 4]")
    assert report.compute_dtype == "bfloat16"
    assert fanin.check(Two(), batch).compute_dtype == "float32"


def test_a_norm_that_starts_as_planned_has_the_planned_size():
    norm = fanin.check(model(), torch.randn(16, 32)).starts[2]
    assert (norm.parameter, norm.std) == ("2.weight", 0.0)
    assert norm.size == norm.planned_std == 1.0
