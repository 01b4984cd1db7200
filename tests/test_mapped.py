"""What runs inside of torch.vmap is watched as if it ran outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo.blocks import classify, mlp

import fanin


class Mapped(nn.Module):
    """A network that is written for one sample, and mapped over the batch."""

    def __init__(self, body: nn.Module, *dims: int):
        super().__init__()
        self.body, self.dims = body, dims or (0,)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.body, in_dims=self.dims)(x)


def start(body: nn.Module, value: float | None) -> nn.Module:
    torch.manual_seed(0)
    for parameter in body.parameters():
        if value is None:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.constant_(parameter, value if parameter.dim() > 1 else 0.0)
    return body


@pytest.mark.parametrize("value", [None, 0.0, 0.1])
def test_findings_are_those_of_the_same_network_outside(value: float | None):
    body, x, loss = (
        start(mlp(20, 32, 32, 5, act=nn.Tanh), value),
        torch.randn(40, 20),
        classify(40, 5),
    )
    mapped, plain = fanin.check(Mapped(body), x, loss), fanin.check(body, x, loss)
    assert [(f.code, f.severity) for f in mapped.findings] == [
        (f.code, f.severity) for f in plain.findings
    ]
    sizes = [[(y.rms, y.correlation or 0.0) for y in r.layers] for r in (mapped, plain)]
    assert torch.allclose(*(torch.tensor(s, dtype=torch.float64) for s in sizes), equal_nan=True)
    assert mapped.ok == (value is None)
    assert mapped.chance == plain.chance


def test_a_convolution_without_a_batch_is_one_with_a_batch():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(8 * 36, 5))
    start(body, 0.1)
    report = fanin.check(Mapped(body), torch.randn(16, 3, 8, 8), classify(16, 5))
    assert "S101" in {f.code for f in report.findings}
    assert [y.units for y in report.layers] == [8, 5]


def test_another_dimension_than_the_first_is_left_unmeasured():
    body = start(mlp(20, 32, 5, act=nn.Tanh), None)
    report = fanin.check(Mapped(body, 1), torch.randn(20, 40), classify(40, 5))
    assert report.ok


class Ensemble(nn.Module):
    """Four networks in one, whose weights are mapped over: their dimensions have no known role."""

    def __init__(self, std: float):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = (
            nn.Parameter(torch.empty(4, 20, 32)),
            nn.Parameter(torch.empty(4, 32, 5)),
        )
        for weight in (self.first, self.last):
            nn.init.normal_(weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda a, b: torch.tanh(x @ a) @ b)(self.first, self.last).mean(0)


def test_mapped_parameters_are_told_to_be_of_an_unknown_role():
    report = fanin.check(Ensemble(0.2), torch.randn(40, 20), classify(40, 5))
    assert dict(report.unnamed) == {"first": "torch.matmul", "last": "torch.matmul"}
    assert not report.findings


def test_a_mapped_parameter_of_zeros_that_trains_is_no_collapse():
    """Zero behind a tanh, before weights that are drawn: one step is enough."""
    model = Ensemble(0.2)
    nn.init.zeros_(model.first)
    assert fanin.check(model, torch.randn(40, 20), classify(40, 5)).ok


def test_a_mapped_model_is_planned_like_any_other():
    x = torch.randn(40, 20)
    body = mlp(20, 32, 5)
    mapped, plain = fanin.plan(Mapped(body), x), fanin.plan(body, x)
    assert [a.std for a in mapped] == [a.std for a in plain]


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.cross_entropy])
def test_a_loss_inside_of_vmap_is_no_loss_of_the_model(loss):
    """Steps of the inner loop of meta-learning: one for each task, before the loss that counts."""

    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = start(mlp(4, 16, 3, act=nn.Tanh), None)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            weights = dict(self.body.named_parameters())

            def task(x: Tensor, y: Tensor) -> Tensor:
                def inner(weights):
                    return loss(torch.func.functional_call(self.body, weights, (x,)), y)

                slopes = torch.func.grad(inner)(weights)
                moved = {name: w - 0.1 * slopes[name] for name, w in weights.items()}
                return torch.func.functional_call(self.body, moved, (x,))

            return torch.vmap(task)(x, y)

    x, y = torch.randn(4, 10, 4), torch.randn(4, 10, 3).softmax(-1)
    report = fanin.check(Learner(), (x, y), lambda out: (out - y).square().mean())
    assert report.ok, str(report)
    compared = fanin.compare(
        Learner, (x, y), lambda out: nn.functional.mse_loss(out, y), schemes=["default"], steps=2
    )
    assert compared["default"].final < compared["default"].start
