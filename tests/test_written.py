"""Activations written out in several calls: what they are taken for, and what is none."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fanin
from fanin import moments
from fanin.errors import ArgumentError
from fanin.neighbours import Input
from fanin.policies.signal import quick_chi, unit_size
from fanin.reading import reading
from fanin.roles import roles
from fanin.written import written_before


class Between(nn.Module):
    """Linear, something, Linear."""

    def __init__(self, function, made=8):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(6, made), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.function(self.first(x)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def read(model):
    """What the second layer reads, and the role of the first."""
    found = {r.parameter: r for r in roles(reading(model, torch.randn(5, 6)), model)}
    return found["second.weight"].input, found["first.weight"]


def twice(function, x):
    y = function(x)
    return y * torch.sigmoid(y)


def in_double(x):
    y = x.double()
    return (y * y.sigmoid()).float()


def changed_in_place(x):
    return x.clone().neg_().exp_().add_(1).reciprocal_()


# Function → the name torch has for it, and the curve.
NAMED = {
    "silu": (lambda x: x * torch.sigmoid(x), "silu", "silu"),
    "silu, swapped": (lambda x: x.sigmoid() * x, "silu", "silu"),
    "silu in another dtype": (in_double, "silu", "silu"),
    "silu with dropout": (lambda x: F.dropout(x * x.sigmoid(), 0.1), "silu", "silu"),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu", "quick_gelu"),
    "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), "gelu", "gelu"),
    "gelu by tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "gelu",
        "gelu_tanh",
    ),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), "mish", "mish"),
    "softsign": (lambda x: x / (1 + x.abs()), "softsign", "softsign"),
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), "softplus", "softplus"),
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid", "sigmoid"),
    "sigmoid in place": (changed_in_place, "sigmoid", "sigmoid"),
    "elu": (lambda x: torch.where(x > 0, x, torch.exp(x) - 1), "elu", "elu"),
    "relu by a mask": (lambda x: x * (x > 0), "relu", "relu"),
    "leaky relu by the method": (
        lambda x: x.where(x > 0, 0.1 * x), "leaky_relu", "leaky_relu(0.1)"
    ),
    "silu of a constant on the left": (
        lambda x: x * torch.sigmoid(torch.tensor(1.0) * x), "silu", "silu"
    ),
    "relu by a mask of floats": (lambda x: x * (x > 0).float(), "relu", "relu"),
    "leaky relu": (lambda x: torch.maximum(x, 0.1 * x), "leaky_relu", "leaky_relu(0.1)"),
    "squared relu": (lambda x: F.relu(x) ** 2, "relu_squared", "relu_squared"),
    "squared relu by square": (lambda x: x.clamp(min=0).square(), "relu_squared", "relu_squared"),
    "square": (lambda x: x * x, "square", "square"),
}  # fmt: skip

# Function → the formula.
FORMULAS = {
    "gaussian": (lambda x: torch.exp(-x * x / 2), "exp(-z * z / 2)"),
    "scaled tanh": (lambda x: 1.7159 * torch.tanh(x * 2 / 3), "tanh(z * 2 / 3) * 1.7159"),
    "snake": (lambda x: x + torch.sin(2 * x) ** 2 / 2, "z + sin(z * 2) ** 2 / 2"),
    "rational": (lambda x: torch.rsqrt(1 + x * x), "rsqrt(z * z + 1)"),
    "clamped": (lambda x: 2 * x.clamp(min=-1, max=1), "minimum(maximum(z, -1), 1) * 2"),
    "leaky with another bend": (lambda x: F.leaky_relu(x, 0.2) ** 2, "leaky_relu(z, 0.2) ** 2"),
    "reversed": (lambda x: 2 - (1 - x.abs()) ** 2, "2 - (1 - abs(z)) ** 2"),
    "inverse root": (lambda x: x / torch.sqrt(1 + x * x), "z / sqrt(z * z + 1)"),
    "around it": (lambda x: x + torch.tanh(x), "z + tanh(z)"),
}


@pytest.mark.parametrize("name", list(NAMED))
def test_a_named_activation_is_known_however_it_is_written(name: str):
    function, called, curve = NAMED[name]
    before, first = read(Between(function))
    assert before == Input("activation", called, curve)
    assert (first.activation, first.curve) == (called, curve)


@pytest.mark.parametrize("name", list(FORMULAS))
def test_any_other_is_a_formula(name: str):
    function, formula = FORMULAS[name]
    before, first = read(Between(function))
    assert before == Input("activation", formula, formula)
    assert (first.activation, first.curve) == (formula, formula)
    points = torch.linspace(-4, 4, 101, dtype=torch.float64)
    np.testing.assert_allclose(moments.function(formula)(points.numpy()), function(points))


def normed(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_behind_a_norm_written_out_the_activation_is_one_of_what_it_gives():
    before, first = read(Between(lambda x: twice(normed, x)))
    assert before == Input("activation", "silu", "silu")
    assert first.norm_after


def halves(x):
    a, b = x.chunk(2, -1)
    return a * torch.sigmoid(b)


def unbound(x):
    a, b = x.view(len(x), 2, 8).unbind(1)
    return a * torch.sigmoid(b)


LOOK_ALIKES = {
    "halves": (halves, 16, "product"),
    "slices": (lambda x: x[:, :8] * torch.sigmoid(x[:, 8:]), 16, "product"),
    "unbound": (unbound, 16, "product"),
    "straight through": (lambda x: x + (x.sign() - x).detach(), 8, "sum"),
    "two halves": (lambda x: torch.mul(*x.chunk(2, -1)), 16, "product"),
    "largest of two": (lambda x: x.view(-1, 8, 2).amax(-1), 16, "other"),
    "bends nothing": (lambda x: (3 * x + 1) / 2, 8, "layer"),
    "over all units": (lambda x: x * x.mean(-1, keepdim=True), 8, "product"),
    "of noise": (lambda x: x * torch.sigmoid(torch.randn_like(x)), 8, "layer"),
    "of whole numbers": (lambda x: x * x.to(torch.int32), 8, "product"),
    "both signs": (lambda x: torch.cat([F.relu(x), F.relu(-x)], -1)[:, ::2], 8, "activation"),
    "divided by its neighbours": (
        lambda x: x * torch.rsqrt(1 + F.avg_pool1d(x.square()[:, None], 3, 1, 1)[:, 0]), 8, "norm"
    ),
    "one call": (torch.tanh, 8, "activation"),
    "of a number before it": (lambda x: torch.sin(30 * x), 8, "activation"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LOOK_ALIKES))
def test_what_is_no_function_of_one_value_is_no_activation(name: str):
    function, made, kind = LOOK_ALIKES[name]
    before, _ = read(Between(function, made))
    assert before.kind == kind
    assert before.activation is None or before.activation in ("tanh", "sin", "sigmoid", "relu")


class Data(nn.Module):
    """What is made of the data before the first layer is data."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.second(F.relu(self.first(x * (1 + x) / 255)))


def test_the_data_are_no_unit_signal():
    model = Data()
    found = {r.parameter: r for r in roles(reading(model, torch.randn(5, 6)), model)}
    assert found["first.weight"].input.curve is None


@pytest.mark.parametrize("name", ["mish", "gelu by tanh", "silu", "quick gelu", "softplus"])
def test_a_plan_is_the_same_however_an_activation_is_written(name: str):
    modules = {
        "mish": nn.Mish(), "gelu by tanh": nn.GELU("tanh"), "silu": nn.SiLU(),
        "softplus": nn.Softplus(),
    }  # fmt: skip
    written = Function(NAMED[name][0])
    known = modules.get(name, Function(lambda x: x * torch.sigmoid(x * 1.702)))
    for depth in (3, 20):
        plans = []
        for activation in (written, known):
            layers = [m for _ in range(depth) for m in (nn.Linear(16, 16), activation)]
            torch.manual_seed(0)
            model = nn.Sequential(*layers, nn.Linear(16, 3))
            plans.append(fanin.plan(model, torch.randn(64, 16)))
        for name, _ in model.named_parameters():
            assert plans[0][name] == plans[1][name]


def train(model, batch, targets, steps=200):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        loss = F.mse_loss(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_steep_activation_gets_a_signal_that_it_can_bear():
    def gauss(x):
        return torch.exp(-0.5 * (x / 0.1) ** 2)

    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(256, 2, generator=generator) * 2 - 1
    targets = torch.stack([(batch * f).sum(1).sin() for f in (2, 5)], 1)
    layers = [m for _ in range(6) for m in (nn.Linear(32, 32), Function(gauss))]
    layers[0] = nn.Linear(2, 32)
    model = nn.Sequential(*layers, nn.Linear(32, 2))
    fanin.init_(model, batch, seed=0)
    assert fanin.check(model, batch).ok
    assert train(model, batch, targets) < 0.05  # guessing: 0.5; unit signals: 0.5
    unit = nn.Sequential(*layers, nn.Linear(32, 2))
    fanin.init_(unit, batch, seed=0)
    with torch.no_grad():
        for layer in unit[:-1:2]:
            layer.weight /= 0.3
    assert not fanin.check(unit, batch).ok


def test_an_even_network_without_offsets_cannot_tell_x_from_minus_x():
    batch = torch.randn(128, 4)
    model = nn.Sequential(
        nn.Linear(4, 32), Function(lambda x: torch.exp(-100 * x * x)), nn.Linear(32, 2)
    )
    plan = fanin.init_(model, batch, seed=0)
    assert plan["0.bias"].scheme == "normal"
    assert not torch.allclose(model(batch), model(-batch), rtol=0.1)
    nn.init.zeros_(model[0].bias)
    assert torch.allclose(model(batch), model(-batch), atol=1e-6)
    odd = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    assert fanin.plan(odd, batch)["0.bias"].scheme == "zeros"


# ---- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("relu(z)", "relu"),
        ("z * sigmoid(z)", "silu"),
        ("maximum(z, 0) ** 2", "relu_squared"),
        ("where(z > 0, z, 0.2 * z)", "leaky_relu(0.2)"),
        ("leaky_relu(z, 0.2)", "leaky_relu(0.2)"),
        ("logaddexp(z, 0)", "softplus"),
        ("0.5 * z * (1 + erf(z / sqrt(2 + 0 * z)))", "gelu"),
        ("-softplus(-z)", "logsigmoid"),
        ("clamp(z + 3, 0, 6) / 6", "hardsigmoid"),
    ],
)
def test_a_formula_has_the_moments_of_its_name(formula: str, name: str):
    written, known = moments.moments(formula), moments.moments(name)
    assert written.second == pytest.approx(known.second, rel=1e-9)
    assert written.slope == pytest.approx(known.slope, rel=1e-6)
    assert fanin.gain(formula) == pytest.approx(fanin.gain(name), rel=1e-9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("foo(z)", "'foo' is not known"),
        ("rely(z)", "did you mean relu"),
        ("z.real", "'z.real' has no place"),
        ("(lambda z: z)(z)", "has no place"),
        ("__import__('os').system(z)", "has no place"),
        ("z if z else 1", "has no place"),
        ("[z]", "has no place"),
        ("z +", "cannot be read"),
        ("exp(z", "cannot be read"),
        ("leaky_relu(z, z)", "'z' must be a finite number"),
        ("1e999 * z", "must be a finite number"),
        ("z * True", "must be a finite number"),
        ("z * 1j", "must be a finite number"),
        ("tanh(z, 3)", "takes no arguments"),
        ("sqrt(z, 3)", "takes the signal alone"),
        ("celu(z, -1)", "alpha must be positive"),
        ("where(z, 1)", "takes 3 arguments, not 2"),
        ("exp() + z", "takes the signal"),
        ("z" + " + z" * 200, "400 characters"),
    ],
)
def test_what_is_no_formula_is_told_why(text: str, told: str):
    with pytest.raises(ArgumentError, match="activation") as error:
        fanin.gain(text)
    assert told in str(error.value)


LEAVES = st.sampled_from([lambda x: x, lambda x: 0.5 * x, lambda x: x - 1, lambda x: 2 - x])
ONE = st.sampled_from([
    torch.tanh, torch.sigmoid, torch.abs, F.softplus, torch.sin, torch.neg, F.gelu,
    lambda x: x**2, lambda x: torch.exp(-x.abs()), lambda x: x.clamp(-1, 2),
    lambda x: F.leaky_relu(x, 0.3), lambda x: 1 / (2 + x.abs()),
])  # fmt: skip
TWO = st.sampled_from([
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    lambda a, b: torch.where(a > b, a, b / 3),
])  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(ONE, inner).map(lambda t: lambda x: t[0](t[1](x))),
        st.tuples(TWO, inner, inner).map(lambda t: lambda x: t[0](t[1](x), t[2](x))),
    ),
    max_leaves=6,
)


@given(TREES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_formula_of_a_random_function_is_that_function(function):
    model = Between(function)
    architecture = reading(model, torch.randn(5, 6))
    layer, last = (c for c in architecture.trace.calls if c.units is not None)
    written = written_before(architecture, last.sources[0])
    if written is not None:
        assert written.start == layer.index
        points = torch.linspace(-3, 3, 61, dtype=torch.float64)
        found = moments.function(written.curve)(points.numpy())
        np.testing.assert_allclose(found, function(points).numpy(), rtol=1e-5, atol=1e-5)


# ---- what a check says ---------------------------------------------------------------------------

AS_MODULES = {
    "relu by a mask": nn.ReLU(),
    "relu by where": nn.ReLU(),
    "relu by maximum": nn.ReLU(),
    "relu by abs": nn.ReLU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "elu of what is below": nn.ELU(),
    "clamped": nn.Hardtanh(),
}
BY_HAND = {
    "relu by where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "relu by maximum": lambda x: torch.maximum(x, x.new_zeros(())),
    "relu by abs": lambda x: (x + x.abs()) / 2,
    "elu of what is below": lambda x: torch.where(x > 0, x, torch.expm1(x.clamp(max=0.0))),
    "clamped": lambda x: torch.minimum(x.clamp(min=-1.0), torch.ones(())),
}  # fmt: skip


def checked(activation, change):
    torch.manual_seed(0)
    layers = [m for _ in range(3) for m in (nn.Linear(16, 16), activation)]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    with torch.no_grad():
        change(model)
    labels = torch.arange(128) % 4
    report = fanin.check(model, torch.randn(128, 16), lambda out: F.cross_entropy(out, labels))
    return {(f.code, f.severity) for f in report.findings if f.code != "P206"}, report


@pytest.mark.parametrize("name", list(AS_MODULES))
@pytest.mark.parametrize("fault", ["none", "dead", "large"])
def test_a_check_finds_the_same_however_an_activation_is_written(name: str, fault: str):
    change = {
        "none": lambda m: None,
        "dead": lambda m: m[2].bias.fill_(-30.0),
        "large": lambda m: m[0].weight.mul_(60),
    }[fault]
    function = BY_HAND[name] if name in BY_HAND else NAMED[name][0]
    written, _ = checked(Function(function), change)
    known, report = checked(AS_MODULES[name], change)
    assert written == known
    assert ("P205" in {f.code for f in report.findings}) == (fault == "dead")


def test_the_steps_of_an_activation_are_not_saturated():
    """The sigmoid inside of x·sigmoid(x) is flat for large x, and silu is not."""
    _, report = checked(Function(NAMED["silu"][0]), lambda m: m[0].weight.mul_(60))
    assert "P206" not in {f.code for f in report.findings}


def test_behind_a_norm_units_are_dead_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = (
                nn.Linear(8, 16),
                nn.LayerNorm(16),
                nn.Linear(16, 3),
            )
            nn.init.constant_(self.norm.bias, -20.0)

        def forward(self, x):
            h = self.norm(self.first(x))
            return self.second(h * (h > 0))

    report = fanin.check(Net(), torch.randn(64, 8))
    assert any(f.code == "P205" and "first" in f.layers for f in report.findings)


def test_a_slope_that_is_learned_is_no_comparison():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
            self.slope = nn.Parameter(torch.full((8,), 0.2))

        def forward(self, x):
            h = self.first(x)
            return self.second(torch.where(h > 0, h, self.slope * h))

    before, _ = read(Net())
    assert (before.kind, before.curve) == ("layer", None)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.sigmoid(torch.tensor(10.0) * x),
        lambda x: torch.tensor(1.0) - x,
        lambda x: torch.maximum(torch.tensor(0.0), x),
        lambda x: torch.sigmoid(torch.full_like(x, 20.0) * x) * 2 - 1,
        lambda x: torch.pow(torch.tensor(2.0), x),
    ],
)
def test_a_constant_that_stands_on_the_left_is_not_the_signal(function):
    model = nn.Sequential(nn.Linear(8, 16), Function(function), nn.Linear(16, 3))
    report = fanin.check(model, torch.randn(32, 8))
    assert report.ok
    assert "P205" not in {f.code for f in report.findings}


@pytest.mark.parametrize("name", ["silu", "gelu", "relu by a mask"])
def test_small_signals_are_alive(name: str):
    _, report = checked(Function(NAMED[name][0]), lambda m: m[0].weight.mul_(1e-9))
    assert "P205" not in {f.code for f in report.findings}


def test_a_scaled_curve_is_as_flat_as_the_curve():
    for function in (lambda x: 2 * torch.tanh(x), lambda x: 2 * torch.sigmoid(x) - 1):
        _, report = checked(Function(function), lambda m: m[2].weight.mul_(300))
        assert "P206" in {f.code for f in report.findings}


@pytest.mark.parametrize("run", [3, 8, 12, 40])
def test_a_steep_activation_gets_no_larger_signal_in_a_longer_stretch(run: int):
    curve = "exp(-(z / 0.1) ** 2)"
    assert unit_size(curve, run) <= unit_size(curve, 2) < 0.5
    assert unit_size("tanh", run) == unit_size("relu", run) == 1.0


@pytest.mark.parametrize(
    "curve",
    ["tanh", "relu", "abs", "exp(-50 * z ** 2)", "where(z > 0.5, z, exp(-3 * z))", "z * (z > 1)"],
)
def test_the_quick_growth_is_that_of_quadrature(curve: str):
    """Also with jumps, in which there is no slope."""
    exact = moments.moments(curve).centred_chi
    assert quick_chi(curve, 1.0) == pytest.approx(exact, rel=0.01)
