"""Values that no scheme draws are counted, and the operation that is not finite is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import seeded
from zoo.checks import QUIET

import fanin
from fanin.numbers import Audit, audit

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _seed():
    with seeded(5):
        yield


def look(values: Tensor) -> Audit:
    (found,) = audit(nn.ParameterDict({"w": nn.Parameter(values)}))
    assert (found.name, found.count) == ("w", values.numel())
    return found


# ── audit ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_counted_and_left_out_of_the_size(dtype: torch.dtype):
    values = torch.full((10, 10), 2.0, dtype=dtype)
    values[0, :3], values[5, 5], values[7, 7] = math.nan, math.inf, -math.inf
    values[9, 9] = -4.0
    found = look(values)
    assert found.nonfinite == 5
    assert found.max_abs == 4.0
    assert found.rms == pytest.approx(math.sqrt((94 * 4 + 16) / 95))


def test_values_whose_square_overflows_are_finite():
    found = look(torch.full((4, 4), 1e30))
    assert found.nonfinite == 0
    assert found.rms == pytest.approx(1e30)


@pytest.mark.parametrize("values", [torch.full((3, 3), math.nan), torch.empty(0, 3)])
def test_nothing_finite_has_no_size(values: Tensor):
    found = look(values)
    assert (found.rms, found.max_abs, found.tiny, found.outliers) == (0, 0, 0, 0)
    assert found.nonfinite == values.numel()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_tiny_is_the_share_of_leftover_integers(share: float):
    """Integers read as floats are denormal; true zeros are not."""
    values = torch.randn(40, 100)
    values.view(-1)[: int(share * 4000)] = torch.tensor([1, 77, 4000], dtype=torch.int32).view(
        torch.float32
    )[torch.arange(int(share * 4000)) % 3]
    assert look(values).tiny == pytest.approx(share)
    assert look(values * (values.abs() > 1e-30)).tiny == 0.0


@pytest.mark.parametrize("bound", [2.0, 2.5, 3.0])
def test_clamped_normals_show_how_many_lie_on_the_bound(bound: float):
    values = torch.randn(200, 300)
    clamped = values.clamp(-bound, bound) * 0.02
    found = look(clamped)
    assert found.outliers == int((values.abs() >= bound).sum())
    assert found.bound == pytest.approx(0.02 * bound)


def test_a_truncation_that_is_written_far_out_is_found_by_its_entries():
    values = torch.randn(200, 300) * 0.02
    values[3, :5] = 2.0
    found = look(values)
    assert (found.outliers, found.bound) == (5, 2.0)


@pytest.mark.parametrize(
    "draw",
    [
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.xavier_uniform_,
        nn.init.kaiming_normal_,
        nn.init.orthogonal_,
        nn.init.zeros_,
        nn.init.ones_,
        nn.init.eye_,
        lambda w: nn.init.sparse_(w, 0.9),
        lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
    ],
)
def test_schemes_leave_no_outliers_and_nothing_tiny(draw: Callable[[Tensor], Tensor]):
    found = look(draw(torch.empty(200, 300)))
    assert (found.outliers, found.bound, found.tiny, found.nonfinite) == (0, 0.0, 0.0, 0)


def test_uniform_draws_are_told_from_others():
    assert look(nn.init.uniform_(torch.empty(200, 300), -0.1, 0.1)).uniform
    assert not look(torch.randn(200, 300)).uniform
    assert not look(torch.zeros(200, 300)).uniform


def test_a_signal_near_the_end_of_float32_is_checked_without_warnings():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight[3:9], model[0].bias[3:9] = 0, 0
        model[0].weight[:2, 0] = 1e38
    assert not fanin.check(model, torch.randn(64, 16)).ok


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda h: h.pow(2).sqrt(), "sqrt"),
        (lambda h: torch.acos(h + 1), "acos"),
        (lambda h: torch.log(h.abs()), "log"),
        (lambda h: 1 / h, "rdiv"),
    ],
    ids=["sqrt", "acos", "log", "quotient"],
)
def test_the_operation_that_is_infinite_at_zero_is_named(function, op: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(20, 32), nn.Linear(32, 10)
            nn.init.zeros_(self.a.weight)
            nn.init.zeros_(self.a.bias)

        def forward(self, x):
            return self.b(function(self.a(x)))

    report = fanin.check(Net(), torch.randn(64, 20), lambda out: out.square().mean())
    (found,) = [f for f in report.findings if f.code == "N403"]
    assert f"first in {op} " in found.measured


class Spare(nn.Module):
    """A network with a parameter that its forward uses, or leaves alone."""

    def __init__(self, used: bool, trainable: bool):
        super().__init__()
        self.body, self.used = nn.Linear(6, 3), used
        self.spare = nn.Parameter(torch.full((3,), math.nan), requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.spare if self.used else self.body(x)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_nan_that_nothing_reads_is_a_warning(used: bool, trainable: bool):
    report = fanin.check(Spare(used, trainable), torch.randn(12, 6))
    [found] = [f for f in report.findings if f.code == "N401"]
    assert found.layer == "spare"
    assert found.severity == ("error" if used else "warning")
    assert ("Nothing reads it" in found.why) != used


def test_nan_that_nothing_reads_hides_no_other():
    model = Spare(False, False)
    with torch.no_grad():
        model.body.weight[0, 0] = math.nan
    found = fanin.check(model, torch.randn(12, 6)).findings
    assert {(f.layer, f.severity) for f in found if f.code == "N401"} == {
        ("body.weight", "error"),
        ("spare", "warning"),
    }


@pytest.mark.parametrize("width", [-100.0, 0.0])
def test_a_loss_is_the_models_fault_where_other_weights_make_it_finite(width: float):
    model, target = nn.Linear(8, 2), torch.randn(32)
    nn.init.constant_(model.bias, width)

    def density(out):
        mean, width = out[:, 0], out[:, 1].exp()
        return ((target - mean) / width).square().mean() + out[:, 1].mean()

    report = fanin.check(model, torch.randn(32, 8), density)
    found = [f for f in report.findings if f.code == "N403"]
    assert [("of the loss" in f.measured, f.severity) for f in found] == (
        [(True, "error")] if width else []
    )


def test_a_weight_that_is_not_finite_before_it_meets_a_signal_is_named_by_its_parameters():
    class OfLengthOne(nn.Linear):
        def forward(self, x):
            return x @ (self.weight / self.weight.norm(dim=1, keepdim=True)).T + self.bias

    model = nn.Sequential(OfLengthOne(8, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.zeros_(model[0].weight)
    (found,) = fanin.check(model, torch.randn(32, 8)).findings
    assert found.code == "N403"
    assert "computed from 0.weight" in found.message
    assert "0.weight" in found.layers


@pytest.mark.parametrize("turned", [False, True])
def test_a_unit_with_a_constant_of_its_own_was_not_clamped(turned: bool):
    """As repair leaves one of many copies as it was."""
    weight = 0.03 * torch.randn(64, 4)
    weight = weight.clamp(-0.09, 0.09)
    weight[7] = 0.1
    assert look(weight.T.contiguous() if turned else weight).outliers == 0
    weight = 0.03 * torch.randn(64, 4)
    weight[7, 1] = weight[20, 3] = weight[40, 0] = weight[41, 2] = 0.5
    assert look(weight.T.contiguous() if turned else weight).outliers == 4
