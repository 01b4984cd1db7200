"""Torch activations get the gain of what they compute, and are left as they were."""

from __future__ import annotations

import copy
import functools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin import moments
from fanin.activations import _FUNCTIONS, _MODULES, as_function, gain
from fanin.errors import ArgumentError

X = torch.linspace(-6, 6, 257, dtype=torch.float64)


class Swish(nn.Module):
    """A user's activation with a parameter, a buffer that counts, and an attribute that changes."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta))
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x.numel())
        return x * torch.sigmoid(self.beta * x)


class Short(nn.Module):
    """Computes in float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x.float()).type_as(x)


# ── known modules and functions ──────────────────────────────────────────────────────────────

NAMED = [
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.LeakyReLU(0.2), "leaky_relu(0.2)"),
    (nn.PReLU(), "prelu(0.25)"),
    (nn.PReLU(init=0.5), "prelu(0.5)"),
    (nn.RReLU(0.1, 0.3).eval(), "rrelu(0.1, 0.3)"),
    (nn.GELU(), "gelu"),
    (nn.GELU(approximate="tanh"), "gelu_tanh"),
    (nn.ELU(0.5), "elu(0.5)"),
    (nn.CELU(2.0), "celu(2.0)"),
    (nn.Softplus(2.0), "softplus(2.0)"),
    (nn.Hardtanh(-0.5, 2.0), "hardtanh(-0.5, 2.0)"),
    (nn.Softshrink(0.3), "softshrink(0.3)"),
    (nn.Hardshrink(0.3), "hardshrink(0.3)"),
    (nn.Threshold(0.1, 2.0), "threshold(0.1, 2.0)"),
    (nn.Identity(), "identity"),
    (torch.relu, "relu"),
    (F.relu, "relu"),
    (torch.tanh, "tanh"),
    (F.silu, "silu"),
    (F.logsigmoid, "logsigmoid"),
    (torch.special.expit, "sigmoid"),
    (torch.sin, "sin"),
    ("LeakyReLU(0.2)", "LeakyReLU(0.2)"),
]


@pytest.mark.parametrize(("activation", "name"), NAMED)
def test_known_activations_are_named_with_their_arguments(activation, name: str):
    assert as_function(activation) == name
    assert gain(activation) == moments.gain(name)


@pytest.mark.parametrize("kind", _MODULES, ids=lambda kind: kind.__name__)
def test_every_known_module_computes_what_its_name_says(kind: type[nn.Module]):
    module = (kind(0.1, 2.0) if kind is nn.Threshold else kind()).eval()
    name = as_function(module)
    assert isinstance(name, str)
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(X).numpy()
    np.testing.assert_allclose(moments.function(name)(X.numpy()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", _FUNCTIONS, ids=lambda f: f.__name__)
def test_every_known_function_computes_what_its_name_says(function):
    name = _FUNCTIONS[function]
    expected = function(X).numpy()
    np.testing.assert_allclose(moments.function(name)(X.numpy()), expected, rtol=1e-9, atol=1e-9)


def test_names_cover_torch():
    """Every activation module of torch that is elementwise is known."""
    odd = {"GLU", "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "MultiheadAttention"}
    theirs = set(nn.modules.activation.__all__) - odd
    assert theirs <= {kind.__name__ for kind in _MODULES}


def test_a_slope_per_channel_has_their_common_second_moment():
    module = nn.PReLU(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 0.3, 0.6]))
    each = [moments.moments(f"leaky_relu({a})").second for a in (0.0, 0.3, 0.6)]
    assert gain(module) == pytest.approx(np.mean(each) ** -0.5, rel=1e-6)


def test_a_slope_that_has_no_value_yet_is_the_one_torch_starts_with():
    assert as_function(nn.PReLU(device="meta")) == as_function(nn.PReLU())


def test_a_subclass_is_evaluated():
    class Twice(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert gain(Twice()) == pytest.approx(gain("relu") / 2, rel=1e-9)
    assert gain(nn.Softplus(1.0, threshold=1.0)) != gain("softplus")  # it jumps at 1


# ── anything else ────────────────────────────────────────────────────────────────────────────

SAME = [
    (lambda x: x * torch.sigmoid(x), "silu"),
    (nn.Sequential(nn.ReLU()), "relu"),
    (nn.Sequential(nn.ReLU(), nn.Dropout(0.5)).eval(), "relu"),
    (nn.Sequential(nn.ReLU(), nn.Dropout(0.0)).train(), "relu"),
    (nn.Dropout(0.5).eval(), "identity"),
    (functools.partial(F.leaky_relu, negative_slope=0.2), "leaky_relu(0.2)"),
    (functools.partial(F.gelu, approximate="tanh"), "gelu_tanh"),
    (Swish(), "silu"),
    (Swish(2.0), "silu(2)"),
    (lambda x: x.relu_(), "relu"),
    (torch.relu_, "relu"),
    (Tensor.tanh, "tanh"),
    (np.tanh, "tanh"),
    (lambda x: np.where(x > 0, x, 0.0), "relu"),
    (lambda x: torch.where(x.abs() > 0.5, x, torch.zeros_like(x)), "hardshrink"),
    (lambda x: F.hardtanh(x, -1.7, 1.7), "hardtanh(-1.7, 1.7)"),
]


@pytest.mark.parametrize(("activation", "name"), SAME)
def test_modules_and_callables_have_the_gain_of_what_they_compute(activation, name: str):
    assert gain(activation) == pytest.approx(moments.gain(name), rel=1e-9)
    function = as_function(activation)
    assert callable(function)
    z = np.linspace(-4, 4, 12).reshape(3, 4)
    np.testing.assert_allclose(function(z.ravel()), moments.function(name)(z.ravel()), atol=1e-9)


def test_a_chain_is_the_function_of_a_function():
    expected = moments.gain(lambda z: np.tanh(np.maximum(z, 0)))
    assert gain(nn.Sequential(nn.ReLU(), nn.Tanh())) == pytest.approx(expected, rel=1e-9)


def test_slopes_come_from_modules_too():
    m = moments.moments(as_function(Swish(2.0)))
    assert m.slope == pytest.approx(moments.moments("silu(2)").slope, rel=1e-9)


def test_float32_inside_costs_digits_and_no_more():
    assert gain(Short()) == pytest.approx(gain("silu"), rel=1e-6)
    weight = torch.tensor([0.2])
    assert gain(lambda x: F.prelu(x, weight)) == pytest.approx(gain("leaky_relu(0.2)"), rel=1e-6)


def test_a_moments_activation_passes_through():
    told = moments.Activation("clip", lambda z: np.clip(z, -1, 1), None, (-1.0, 1.0))
    assert as_function(told) is told
    assert gain(told) == pytest.approx(gain("hardtanh"), rel=1e-12)


def test_parameters_are_read_once():
    module = Swish(2.0)
    function = as_function(module)
    with torch.no_grad():
        module.beta.fill_(0.0)
    assert moments.gain(function) == pytest.approx(gain("silu(2)"), rel=1e-9)


# ── nothing is changed ───────────────────────────────────────────────────────────────────────


def test_a_module_is_left_as_it_was():
    module = nn.Sequential(Swish(), nn.Dropout(0.5)).train()
    module[1].eval()
    module[0].beta.grad = torch.tensor(3.0)
    hooked: list[str] = []
    module.register_forward_hook(lambda *_: hooked.append("after"))
    module[0].register_forward_pre_hook(lambda *_: hooked.append("before"))
    before = copy.deepcopy(module.state_dict())
    gain(module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    assert module[0].beta.dtype == torch.float32
    assert module[0].beta.requires_grad
    assert module[0].beta.grad == 3.0
    assert module[0].seen == []
    assert hooked == []


def test_no_random_state_is_read_or_advanced():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    expected = gain(Swish())
    for activation in (nn.Dropout(0.5), lambda x: x * random.random(), lambda x: x + torch.rand(1)):
        with pytest.raises(ArgumentError, match="random"):
            gain(activation)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.manual_seed(4)
    assert gain(Swish()) == expected


def test_the_surroundings_do_not_matter():
    expected = gain(Swish())
    with torch.device("meta"):
        assert gain(lambda x: x * torch.sigmoid(x * torch.ones(()))) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert gain(Short()) == pytest.approx(expected, rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert gain(Swish()) == expected
    assert torch.is_grad_enabled()


# ── what is no activation ────────────────────────────────────────────────────────────────────


def raises(x: Tensor) -> Tensor:
    raise ValueError("no such\nactivation")


BAD = [
    (nn.Softmax(-1), "elementwise"),
    (functools.partial(F.softmax, dim=0), "elementwise"),
    (nn.GLU(-1), "elementwise"),
    (lambda x: x - x.mean(), "elementwise"),
    (lambda x: x.cumsum(0), "elementwise"),
    (lambda x: x.sort().values, "elementwise"),
    (lambda x: x.flip(0), "elementwise"),
    (lambda x: x[None], "elementwise"),
    (lambda x: x.sum(), "elementwise"),
    (lambda x: (x, x), "tuple"),
    (lambda x: None, "NoneType"),
    (lambda x: x + 0j, "complex"),
    (nn.Dropout(0.5), r"random.*eval"),
    (nn.Dropout(0.001), "random"),
    (nn.RReLU(), "random"),
    (nn.AlphaDropout(0.1), "random"),
    (lambda x: x + torch.randn_like(x), "random"),
    (nn.BatchNorm1d(3), "BatchNorm1d.*raised"),
    (nn.LayerNorm(5), "LayerNorm.*raised"),
    (nn.Linear(3, 3), "Linear.*raised"),
    (raises, "raises.*ValueError: no such activation"),
    (lambda x: x / 0, "finite"),
    (torch.log, "finite"),
    (lambda x: 0 * x, "zero"),
    (nn.ReLU, "ReLU: pass an instance"),
    (nn.Sequential(nn.PReLU(device="meta")), "meta"),
    ("reul", "relu"),
    (3, "not 3"),
    (None, "not None"),
]


@pytest.mark.parametrize(("activation", "words"), BAD)
def test_what_is_no_activation_is_refused_in_one_line(activation, words: str):
    with pytest.raises(ArgumentError, match=words) as caught:
        gain(activation)
    assert "activation" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cause_is_chained():
    with pytest.raises(ArgumentError) as caught:
        as_function(raises)
    assert isinstance(caught.value.__cause__, ValueError)
