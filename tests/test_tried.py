"""No plan makes numbers that are not finite where the model's own start makes none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_roles import HandNorm
from torch import Tensor, nn
from zoo import seeded
from zoo.blocks import Lambda, mlp
from zoo.checks import QUIET

from fanin.planning import _finite, init_, plan
from fanin.policies import decide
from fanin.reading import reading
from fanin.roles import roles
from fanin.tried import at_risk

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


class Rates(nn.Module):
    """A table of positive numbers, of which a function is taken that knows no others."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rates, self.net, self.function = nn.Embedding(20, 6), mlp(6, 16, 3), function
        nn.init.uniform_(self.rates.weight, 0.1, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.function(self.rates(x)))


class Ball(nn.Module):
    """Distances of points in the Poincaré ball, which have to stay inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Embedding(20, 100)  # drawn with std 0.1, about half are outside
        nn.init.uniform_(self.points.weight, -1e-3, 1e-3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        u, v = self.points(a), self.points(b)
        inside = (1 - u.square().sum(-1)) * (1 - v.square().sum(-1))
        ratio = 1 + 2 * (u - v).square().sum(-1) / inside
        return (ratio + (ratio * ratio - 1).sqrt()).log()


class Divisive(nn.Module):
    """Divisive normalization of images (GDN): the root of a positive mixture of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.beta, self.gamma = nn.Parameter(torch.ones(16)), nn.Parameter(0.1 * torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(h / nn.functional.linear(h**2, self.gamma, self.beta).sqrt())


class Parted(nn.Module):
    """Rows that hold centres and, in one column, variances; what is computed of a parameter alone
    is not watched."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(5, 9) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        centres, variances = self.rows[:, :8], self.rows[:, 8]
        far = (x[:, None] - centres).square().sum(-1)
        return far / variances + variances.log()


TOKENS = torch.arange(20)
BROKEN: dict[str, tuple[Callable[[], nn.Module], Any, set[str]]] = {
    "log": (lambda: Rates(torch.log), TOKENS, {"rates.weight"}),
    "root": (lambda: Rates(torch.sqrt), TOKENS, {"rates.weight"}),
    "power": (lambda: Rates(lambda r: (1 - r) ** 0.3), TOKENS, {"rates.weight"}),
    "ball": (Ball, (TOKENS, TOKENS.flip(0)), {"points.weight"}),
    "divisive": (Divisive, torch.randn(32, 6), {"gamma"}),
    "computed": (Parted, torch.randn(32, 8), {"rows"}),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_would_make_numbers_that_are_not_finite_is_left(name: str):
    build, batch, parameters = BROKEN[name]
    model = build()
    own = {n: model.get_parameter(n).detach().clone() for n in parameters}
    found = init_(model, batch)
    assert {n for n, told in found.untouched.items() if "not finite" in told} == parameters
    assert all(torch.equal(model.get_parameter(n), own[n]) for n in parameters)
    assert model(*batch if isinstance(batch, tuple) else (batch,)).isfinite().all()


def test_what_own_values_spoil_too_is_drawn():
    model = Rates(torch.log)
    nn.init.normal_(model.rates.weight)
    assert "rates.weight" in plan(model, TOKENS)


def test_what_is_infinite_by_design_is_no_fault():
    """Scores behind a mask, beside a logarithm that is finite."""

    def masked(x: Tensor) -> Tensor:
        scores = x.masked_fill(torch.eye(6) > 0, -torch.inf).softmax(-1)
        return (scores + 1).log()

    model = nn.Sequential(nn.Linear(6, 6), Lambda(masked), nn.Linear(6, 3))
    left = plan(model, torch.randn(6, 6)).untouched
    assert not any("not finite" in told for told in left.values())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(6, 8), HandNorm("rsqrt"), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(6, 8), Lambda(lambda x: (x * x).sum(-1, True).sqrt())),
        nn.Sequential(nn.Linear(6, 8), Lambda(lambda x: (1 + x.exp()).log() + x**3)),
        mlp(6, 16, 3),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)),
    ],
    ids=["norm", "length", "softplus", "plain", "weight-norm"],
)
def test_ordinary_models_are_not_run_again(model: nn.Module):
    batch = torch.randn(32, 6)
    assert not at_risk(reading(model, batch), plan(model, batch), model)


def test_processes_leave_what_goes_wrong_on_any_of_their_batches():
    model, batch = mlp(6, 16, 3), torch.randn(32, 6)
    recipe = decide(roles(reading(model, batch), model))
    elsewhere = [torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.zeros(3)]  # the second time nowhere

    def total(flags: Tensor) -> Tensor:
        return flags + elsewhere.pop(0)

    left = _finite(recipe, model, batch, total, seed=0, frozen=False).untouched
    assert left == {"0.bias": "new values would not give finite numbers everywhere"}
