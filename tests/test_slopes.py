"""The flat parts of activations are those that autograd finds in torch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fanin.slopes import Flat, flat, flat_parts

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "relu_squared": lambda x: F.relu(x).square(),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "threshold(0.5, -1)": lambda x: F.threshold(x, 0.5, -1.0),
    "hardtanh": F.hardtanh,
    "hardtanh(-3, 3)": lambda x: F.hardtanh(x, -3.0, 3.0),
    "hardtanh(-0.5, 2)": lambda x: F.hardtanh(x, -0.5, 2.0),
    "hardtanh(0, 1)": lambda x: F.hardtanh(x, 0.0, 1.0),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "erf": torch.erf,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus(5)": lambda x: F.softplus(x, 5.0),
}
KNOWN: dict[str, Flat] = {name: flat(name) for name in FUNCTIONS}
ZERO_BELOW = [op for op, known in KNOWN.items() if known.zero_below is not None]
ZERO_ABOVE = [op for op, known in KNOWN.items() if known.zero_above is not None]
WEAK = [op for op, known in KNOWN.items() if known.weak is not None]
FAINT = [op for op, known in KNOWN.items() if known.faint_below is not None]
FAINTEST = 1e-7
STEP = 1e-6


def slope(op: str, x: Tensor | list[float]) -> Tensor:
    x = torch.as_tensor(x, dtype=torch.float64).requires_grad_()
    return torch.autograd.grad(FUNCTIONS[op](x).sum(), x)[0]


def largest(op: str) -> float:
    return float(slope(op, torch.linspace(-8, 8, 16_001, dtype=torch.float64)).abs().max())


def test_what_is_known_of_each():
    assert {"relu", "relu6", "hardtanh", "hardsigmoid", "hardswish"} <= set(ZERO_BELOW)
    assert {"sigmoid", "tanh", "softsign", "erf"} <= set(WEAK)
    assert {"gelu", "silu", "mish", "softplus"} <= set(FAINT)


@pytest.mark.parametrize("op", ZERO_BELOW)
def test_the_slope_is_zero_at_and_below_the_lower_border_alone(op: str):
    border = KNOWN[op].zero_below
    at = [] if op == "hardswish" and torch.__version__ < (2, 8) else [border]  # -0.5 there
    assert not slope(op, [*at, border - STEP, border - 1, border - 100]).any()
    assert slope(op, [border + STEP]).all()


@pytest.mark.parametrize("op", ZERO_ABOVE)
def test_the_slope_is_zero_at_and_above_the_upper_border_alone(op: str):
    border = KNOWN[op].zero_above
    assert not slope(op, [border, border + STEP, border + 1, border + 100]).any()
    assert slope(op, [border - STEP]).all()


@pytest.mark.parametrize("op", [op for op in FUNCTIONS if op not in ZERO_BELOW])
def test_the_others_are_flat_on_neither_side_of_their_middle(op: str):
    assert slope(op, torch.linspace(-4, 4, 801, dtype=torch.float64)).all()


@pytest.mark.parametrize("op", WEAK)
def test_the_slope_is_weak_beyond_the_border_and_not_inside(op: str):
    (low, high), limit = KNOWN[op].weak, 0.05 * largest(op)
    above = torch.linspace(high + 1e-3, 60, 1000, dtype=torch.float64)
    below = torch.linspace(-60, low - 1e-3, 1000, dtype=torch.float64)
    inside = torch.linspace(low + 1e-3, high - 1e-3, 1001, dtype=torch.float64)
    assert (slope(op, torch.cat([above, below])).abs() < limit).all()
    assert (slope(op, inside).abs() > limit).all()


@pytest.mark.parametrize("op", FAINT)
def test_slope_and_output_are_faint_below_the_border_and_not_above(op: str):
    border = KNOWN[op].faint_below
    below = torch.linspace(border - 100, border, 10_001, dtype=torch.float64)
    assert (slope(op, below).abs() < FAINTEST).all()
    assert (FUNCTIONS[op](below).abs() < FAINTEST).all()
    above = torch.tensor([border + 0.02], dtype=torch.float64)
    output = FUNCTIONS[op](above)
    assert max(output.abs(), slope(op, above).abs()) > FAINTEST


def test_the_tanh_form_of_gelu_falls_faster():
    x = torch.linspace(-50, KNOWN["gelu"].faint_below, 1001, dtype=torch.float64).requires_grad_()
    found = torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)[0]
    assert (found.abs() < FAINTEST).all()


@pytest.mark.parametrize("op", FAINT)
def test_a_smooth_activation_has_a_dead_share_where_units_are_faint_on_the_whole_batch(op: str):
    x = torch.full((4, 3), -30.0)
    x[0, 1], x[:, 2] = 1.0, KNOWN[op].faint_below / 2
    assert flat_parts(op, x, (-1,))[0] == pytest.approx(1 / 3)
    assert flat_parts(op, x[:, 1:], (-1,)) == (None, None)


# ── shares ───────────────────────────────────────────────────────────────────────────────────


def batch(op: str, dims: tuple[int, ...]) -> Tensor:
    """Inputs [6, 8, 5, 7] of which units are far below, far above, around zero, or everywhere."""
    torch.manual_seed(4)
    x = 2 * torch.randn(6, 8, 5, 7, dtype=torch.float64)
    moved = x.movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)
    shifts = torch.tensor([0.0, -30.0, 30.0, 0.0, -30.0])
    moved += shifts[torch.arange(len(moved)) % 5].reshape(-1, *[1] * (moved.dim() - 1))
    shape = [x.shape[d] for d in dims]
    return moved.unflatten(0, shape).movedim(tuple(range(len(dims))), dims).clone()


@pytest.mark.parametrize("dims", [(-1,), (1,), (0,), (-3, -1), (0, 2)])
@pytest.mark.parametrize("op", ZERO_BELOW)
def test_a_unit_is_dead_when_autograd_finds_no_slope_on_the_batch(op: str, dims: tuple[int, ...]):
    x = batch(op, dims)
    others = tuple(d for d in range(4) if d not in {d % 4 for d in dims})
    alive = slope(op, x).abs().amax(others) > 0
    dead, _ = flat_parts(op, x, dims)
    assert dead == pytest.approx(1 - float(alive.double().mean()))
    assert 0 < dead < 1


@pytest.mark.parametrize("op", WEAK)
def test_a_pair_is_saturated_when_autograd_finds_a_weak_slope(op: str):
    x = batch(op, (-1,))
    weak = slope(op, x).abs() < 0.05 * largest(op)
    _, saturated = flat_parts(op, x, (-1,))
    assert saturated == pytest.approx(float(weak.double().mean()), abs=2e-3)
    assert 0 < saturated < 1


@pytest.mark.parametrize("op", ZERO_ABOVE)
def test_a_unit_that_is_flat_on_either_side_is_dead_too(op: str):
    x = torch.tensor([[-9.0, 0.5], [9.0, 0.5]])
    assert not slope(op, x)[:, 0].any()
    assert flat_parts(op, x, (-1,))[0] == 0.5


def test_a_border_belongs_to_the_dead_side():
    assert flat_parts("relu", torch.tensor([[0.0, 1e-30], [-1.0, -1.0]]), (-1,)) == (0.5, None)
    assert flat_parts("relu6", torch.tensor([[6.0, 5.9]]), (-1,)) == (0.5, None)


def test_what_does_not_apply_is_none():
    x = torch.full((4, 3), -5.0)
    assert flat_parts("gelu", x, (-1,)) == (None, None)
    assert flat_parts("relu", torch.cat([x, -x]), ()) == (None, None)
    assert flat_parts("relu", x, ()) == (1.0, None)  # all units, whichever they are
    assert flat_parts("relu", x[:0], (-1,)) == (None, None)
    assert flat_parts("tanh", x, (-1,)) == (None, 1.0)
