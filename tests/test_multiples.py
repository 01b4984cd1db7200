"""Weights that the model multiplies with constants: masks, equalized learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import seeded
from zoo.checks import QUIET

import fanin
from fanin.assignment import Assignment
from fanin.policies import decide
from fanin.reading import reading
from fanin.roles import Role, roles

pytestmark = QUIET

WIDTH = 96
Make = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _seed():
    with seeded(7):
        yield


class Net(nn.Module):
    """A layer whose weight is made of a parameter, between two plain ones."""

    def __init__(self, make: Make, use: Callable[[Tensor, Tensor], Tensor] = F.linear) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.other = nn.Parameter(torch.rand(WIDTH, WIDTH) + 0.5)
        self.register_buffer("mask", torch.ones(WIDTH, WIDTH).tril())
        self.make, self.use = make, use
        self.made = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.made = self.use(self.first(x).relu(), self.make(self.weight, self.mask))
        return self.last(self.made.relu() + self.other.sum() * 0)


def batch() -> Tensor:
    return torch.randn(256, WIDTH)


def role(model: nn.Module, name: str = "weight", x: Tensor | None = None) -> Role:
    found = roles(reading(model, batch() if x is None else x), model)
    return next(r for r in found if r.parameter == name)


TRIL = (WIDTH + 1) / (2 * WIDTH)  # mean share that a row of the mask keeps
MULTIPLES: dict[str, tuple[Make, float, float]] = {
    "number": (lambda w, m: w * 0.05, 0.05, 1.0),
    "number in front": (lambda w, m: 0.05 * w, 0.05, 1.0),
    "negative number": (lambda w, m: -(w * -3), 3.0, 1.0),
    "quotient": (lambda w, m: w / 8, 1 / 8, 1.0),
    "two numbers": (lambda w, m: w * 4 * 0.25**2, 0.25, 1.0),
    "constant tensor": (lambda w, m: w * torch.tensor(0.05), 0.05, 1.0),
    "a size for each row": (lambda w, m: w * torch.arange(1.0, 97).sqrt()[:, None], 48.5**0.5, 1.0),
    "mask": (lambda w, m: w * m, 1.0, TRIL),
    "mask first": (lambda w, m: torch.mul(m, w), 1.0, TRIL),
    "mask of bools": (lambda w, m: w * m.bool(), 1.0, TRIL),
    "mask of columns": (lambda w, m: w * (torch.arange(WIDTH) < 24), 1.0, 0.25),
    "rows without inputs do not count": (lambda w, m: w * (m - torch.eye(WIDTH)), 1.0, 0.5),
    "mask and number": (lambda w, m: (w * m).float() * 0.1, 0.1, TRIL),
    "two masks": (lambda w, m: w * m * m.flip(1), 1.0, 0.0),
}


@pytest.mark.parametrize("name", MULTIPLES)
def test_a_weight_times_constants_is_a_weight(name: str):
    make, times, kept = MULTIPLES[name]
    if name == "two masks":
        on = torch.ones(WIDTH, WIDTH).tril() * torch.ones(WIDTH, WIDTH).tril().flip(1)
        kept = float(on.mean(1)[on.any(1)].mean())
    found = role(Net(make))
    assert found.kind == "weight"
    assert found.times == pytest.approx(times)
    assert found.kept == pytest.approx(kept)
    assert found.fan_in == pytest.approx(WIDTH * kept)
    assert found.features == WIDTH


@pytest.mark.parametrize("name", MULTIPLES)
def test_its_plan_keeps_the_scale(name: str):
    model, x = Net(MULTIPLES[name][0]), batch()
    plan = fanin.init_(model, x)
    with torch.no_grad():
        model(x)
    assert float(model.made.square().mean().sqrt()) == pytest.approx(1.0, rel=0.25)
    assert plan["last.weight"].std < 0.1


@pytest.mark.parametrize("name", ["number", "mask", "mask and number"])
@pytest.mark.parametrize(
    "turned",
    [
        lambda x, w: x @ w.t(),
        lambda x, w: (w @ x.t()).t(),
        lambda x, w: torch.einsum("bi,oi->bo", x, w),
        lambda x, w: F.linear(x, w.contiguous().view(4, 24, WIDTH).flatten(0, 1)),
        lambda x, w: F.conv1d(x[..., None], w[..., None])[..., 0],
    ],
    ids=["turned", "in front", "einsum", "reshaped", "convolution"],
)
def test_a_mask_is_followed_to_where_the_weight_is_used(name: str, turned):
    make, times, kept = MULTIPLES[name]
    found = role(Net(make, turned))
    assert (found.kind, found.times, found.kept) == ("weight", times, pytest.approx(kept))


def test_a_mask_that_is_turned_before_the_product_is_followed():
    model = Net(lambda w, m: w.t() * m.t() * 1.0, lambda x, w: x @ w)
    assert role(model).kept == pytest.approx(TRIL)
    model = Net(lambda w, m: w.t() * (torch.arange(WIDTH) < 24)[:, None], lambda x, w: x @ w)
    assert role(model).kept == pytest.approx(0.25)


def test_a_masked_kernel_counts_the_taps_that_are_left():
    class Masked(nn.Conv2d):
        def forward(self, x):
            mask = torch.ones(7, 7)
            mask[4:], mask[3, 3:] = 0, 0
            return self._conv_forward(x, self.weight * mask, self.bias)

    x = torch.randn(4, 3, 12, 12)
    model = nn.Sequential(Masked(3, 32, 7, padding=3), nn.ReLU(), nn.Conv2d(32, 4, 1))
    found = role(model, "0.weight", x)
    assert (found.fan_in, found.fan_out) == (72, 32 * 24)
    assert role(model, "2.weight", x).fan_in == 32
    assert "a mask leaves 49 % of its inputs" in fanin.plan(model, x)["0.weight"].because


def test_the_meta_device_knows_numbers_and_no_masks():
    with torch.device("meta"):
        number, mask = Net(lambda w, m: w * 0.05), Net(lambda w, m: w * m)
    x = torch.empty(4, WIDTH, device="meta")
    assert fanin.plan(number, x)["weight"].std == pytest.approx((2 / WIDTH) ** 0.5 / 0.05)
    assert "weight" in fanin.plan(mask, x).untouched


LOOK_ALIKES: dict[str, Make] = {
    "normalized": lambda w, m: w / w.norm(dim=1, keepdim=True),
    "normalized without gradients": lambda w, m: w / w.detach().norm(),
    "standardized": lambda w, m: (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True),
    "bent afterwards": lambda w, m: torch.tanh(w * 0.05),
    "bent before": lambda w, m: torch.tanh(w) * 0.05,
    "something added": lambda w, m: w * 0.05 + m,
    "a number added": lambda w, m: w * 0.05 + 1.0,
    "quantized": lambda w, m: torch.round(w / 0.1) * 0.1,
    "times itself": lambda w, m: w * w,
    "all masked": lambda w, m: w * torch.zeros(WIDTH, WIDTH),
    "divided by a mask": lambda w, m: w.clone() / (m + 1e-30 * (1 - m)).log(),
    "a number divided by it": lambda w, m: 0.05 / w,
    "infinite": lambda w, m: w * math.inf,
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_weight_that_more_is_done_to_is_computed(name: str):
    found = role(Net(LOOK_ALIKES[name]))
    assert (found.kind, found.times, found.kept) == ("computed", 1.0, 1.0)


def test_a_weight_times_another_parameter_is_computed():
    class Product(Net):
        def forward(self, x):
            return self.last(F.linear(self.first(x).relu(), self.weight * self.other).relu())

    model = Product(lambda w, m: w)
    assert role(model).kind == role(model, "other").kind == "computed"


def test_a_weight_times_what_depends_on_the_batch_is_no_plain_weight():
    class Gated(Net):
        def forward(self, x):
            return self.last(F.linear(self.first(x).relu(), self.weight * x.mean()).relu())

    assert role(Gated(lambda w, m: w)).kind == "scale"


def test_a_weight_times_two_different_constants_is_computed():
    class Twice(Net):
        def forward(self, x):
            hidden = F.linear(self.first(x).relu(), self.weight * 0.5).relu()
            return self.last(F.linear(hidden, self.weight * 0.25).relu())

    assert role(Twice(lambda w, m: w)).kind == "computed"


def test_a_bias_and_a_scale_times_constants_stay_computed():
    class Rates(Net):
        def __init__(self):
            super().__init__(lambda w, m: w)
            self.bias, self.scale = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.ones(5))

        def forward(self, x):
            hidden = F.linear(self.first(x).relu(), self.last.weight, self.bias * 0.01)
            return hidden * (self.scale * 0.1)

    model = Rates()
    assert role(model, "bias").kind == role(model, "scale").kind == "computed"


def test_structured_starts_are_not_drawn_where_a_mask_would_part_them():
    """A deep stretch of tanh starts orthogonal; half of an orthogonal matrix is none."""

    class Deep(nn.Module):
        def __init__(self, masked: bool) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(64, 64) / 8 for _ in range(24))
            self.head = nn.Linear(64, 5)
            self.register_buffer("mask", torch.ones(64, 64).tril() if masked else torch.ones(1))

        def forward(self, x):
            for weight in self.weights:
                x = torch.tanh(F.linear(x, weight * self.mask))
            return self.head(x)

    def planned(model: nn.Module) -> Assignment:
        recipe = decide(roles(reading(model, torch.randn(32, 64)), model))
        return next(a for a in recipe.assignments if a.parameter == "weights.3")

    whole, masked = planned(Deep(False)), planned(Deep(True))
    assert (whole.scheme, masked.scheme) == ("orthogonal", "lecun_normal")
    assert masked.std == pytest.approx(whole.std * (128 / 65) ** 0.5)  # 65 of 128 are left


@pytest.mark.parametrize("name", ["number", "mask", "mask and number", "a size for each row"])
def test_it_is_calibrated(name: str):
    model, x = Net(MULTIPLES[name][0]), batch()
    done = fanin.calibrate_(model, x, std=0.5)
    with torch.no_grad():
        model(x)
    assert float(model.made.square().mean().sqrt()) == pytest.approx(0.5, rel=1e-3)
    assert done["weight"].after == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("scheme", ["lsuv", "within_layer"])
def test_it_is_measured_on_the_batch(scheme: str):
    model, x = Net(MULTIPLES["mask and number"][0]), batch()
    fanin.init_(model, x, scheme)
    with torch.no_grad():
        model(x)
    size = model.made.std() if scheme == "lsuv" else model.made.std(0).square().mean().sqrt()
    assert float(size) == pytest.approx(1.0, rel=0.1)


def test_a_zero_weight_is_mended_at_the_size_that_its_factor_asks_for():
    model, x = Net(MULTIPLES["number"][0]), batch()
    with torch.no_grad():
        model.weight.zero_()
        model.first.bias.zero_()
    labels = torch.randint(0, 5, (256,))
    done = fanin.repair_(model, x, lambda out: F.cross_entropy(out, labels))
    assert done.after.ok
    assert float(model.weight.detach().std()) == pytest.approx((2 / WIDTH) ** 0.5 / 0.05, rel=0.2)
