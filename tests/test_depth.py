"""What docs/depth.md says of deep plain networks, against `moments` and against real layers."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin import moments
from fanin.policies.deep import PARTING
from fanin.policies.signal import odd_part, operating_point, shifted_point, spread

ROOT = Path(__file__).parents[1]
EXACT = {"relu": 1.0, "gelu": 1.0, "silu": 1.0, "softplus": 1.0, "leaky_relu": 1.01}
MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "selu": nn.SELU,
}


def stack(
    name: str, depth: int, width: int = 64, inputs: int = 64, bias: bool = True
) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width, bias), MODULES[name]()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def data(count: int = 64, inputs: int = 64) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def gained(net: nn.Sequential, name: str) -> nn.Sequential:
    """Gaussian weights with the right gain, no biases."""
    for i, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
        gain = fanin.gain(name) if i else 1.0
        layer.weight.normal_(0, gain / math.sqrt(layer.in_features))
        layer.bias.zero_()
    return net


@torch.no_grad()
def preactivations(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    found = []
    for module in net:
        x = module(x)
        if isinstance(module, nn.Linear | nn.Conv2d):
            found.append(x)
    return found[:-1]


def similarity(x: Tensor) -> float:
    """Mean cosine of two different inputs."""
    x = nn.functional.normalize(x.double(), dim=1)
    n = len(x)
    return float(((x @ x.T).sum() - n) / (n * (n - 1)))


# ---- what depth does -----------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "correlation"), [(10, 0.872), (30, 0.972), (100, 0.996)])
def test_relu_at_the_right_gain_makes_unrelated_inputs_alike(depth: int, correlation: float):
    c = 0.0
    for _ in range(depth):
        c = moments.correlation_map("relu", c, 1.0, 2.0)
    assert c == pytest.approx(correlation, abs=5e-4)


def test_real_relu_layers_follow_the_correlation_map():
    outs = preactivations(gained(stack("relu", 12, width=512), "relu"), data())
    c = similarity(outs[0])
    for out in outs[1:]:
        c = moments.correlation_map("relu", c, 1.0, 2.0)
        assert similarity(out) == pytest.approx(c, abs=0.06)
    assert similarity(outs[-1]) > 0.8


@pytest.mark.parametrize(
    ("name", "chi"),
    [("sigmoid", 0.15), ("softplus", 0.32), ("relu", 1.0), ("gelu", 1.07), ("tanh", 1.18)],
)
def test_chi_is_the_slope_of_the_correlation_map_at_one(name: str, chi: float):
    w = fanin.gain(name) ** 2
    found = moments.chi(name, 1.0, w)
    assert found == pytest.approx(chi, abs=5e-3)
    if name != "relu":  # whose slope approaches its limit as the root of the distance
        near = 1e-5
        fell = 1.0 - moments.correlation_map(name, 1.0 - near, 1.0, w)
        assert fell / near == pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "sigmoid", "softplus"])
def test_auto_keeps_inputs_apart_where_scale_alone_does_not(name: str):
    x, depth = data(), 100
    net = stack(name, depth)
    fanin.init_(net, x)
    outs = [out - out.mean() for out in preactivations(net, x)]  # without the bias of sigmoids
    sizes = [float(out.square().mean().sqrt()) for out in outs]
    assert max(sizes) / min(sizes) < 1.5
    # offsets of the first layer are common to all inputs, so some likeness is meant
    assert similarity(outs[-1]) < similarity(outs[0]) + 0.1 < 0.5
    if name in ("relu", "sigmoid", "softplus"):
        assert similarity(preactivations(gained(stack(name, depth), name), x)[-1]) > 0.95


# ---- the operating point -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tanh", "sin", "sigmoid", "hardtanh"])
@pytest.mark.parametrize("depth", [30, 100, 1000])
def test_the_operating_point_is_where_inputs_part_so_slowly(name: str, depth: int):
    growth = PARTING ** (1 / depth)
    s = operating_point(name, growth)
    assert s is not None
    chi = moments.moments(name, variance=s * s).centred_chi
    assert chi == pytest.approx(growth, rel=1e-6) if s < 1 else chi <= growth


@pytest.mark.parametrize(("name", "cubic"), [("tanh", -1 / 3), ("sin", -1 / 6)])
def test_without_an_even_part_chi_grows_as_the_fourth_power(name: str, cubic: float):
    s = 0.05
    chi = moments.moments(name, variance=s * s).centred_chi
    assert chi - 1 == pytest.approx(12 * cubic**2 * s**4, rel=0.03)
    depth = 10**5
    found = operating_point(name, PARTING ** (1 / depth))
    assert found == pytest.approx((1 / (6 * cubic**2 * depth)) ** 0.25, rel=0.02)


def test_with_an_even_part_chi_grows_as_the_square():
    s, even = 0.01, (1 / 8) / (1 / 2)  # softplus = ln 2 + x/2 + x²/8 + …
    chi = moments.moments("softplus", variance=s * s).centred_chi
    assert chi - 1 == pytest.approx(2 * even**2 * s**2, rel=0.01)


@pytest.mark.parametrize(("depth", "size"), [(100, 0.42), (1000, 0.21)])
def test_the_operating_point_of_tanh_that_the_page_names(depth: int, size: float):
    assert operating_point("tanh", PARTING ** (1 / depth)) == pytest.approx(size, abs=5e-3)


def test_near_inputs_part_in_real_layers_by_no_more_than_planned():
    x = data()
    net = stack("tanh", 100, width=256).double()
    fanin.init_(net, x.double())
    near = x.double() + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    pairs = zip(preactivations(net, x.double()), preactivations(net, near), strict=True)
    apart = [float((a - b).square().mean() / a.square().mean()) for a, b in pairs]
    assert 1.0 < apart[-1] / apart[0] < 1.5 * PARTING


@torch.no_grad()
def test_without_biases_rows_that_sum_to_zero_take_the_mean_of_sigmoid_away():
    net = stack("sigmoid", 30, bias=False)
    plan = fanin.init_(net, data())
    assert plan["28.weight"].arguments["centred"]
    layer = net[28]
    assert float(layer.weight.sum(1).abs().max()) < 1e-4
    shifted = layer(torch.rand(8, 64) + 0.5) - layer(torch.zeros(8, 64) + 0.5)
    assert float(shifted.abs().max()) > 0.1  # what is not common is seen
    common = layer(torch.full((8, 64), 0.9)) - layer(torch.full((8, 64), 0.5))
    assert float(common.abs().max()) < 1e-4


# ---- mirrored pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slope"), EXACT.items())
def test_a_mirrored_pair_passes_the_signal(name: str, slope: float):
    x = np.linspace(-6, 6, 101)
    phi = odd_part(name)
    assert phi is not None
    np.testing.assert_allclose(phi(x), slope * x, atol=1e-12)
    assert spread(phi, 0.7) == pytest.approx(0.7 * slope)
    assert operating_point(phi, PARTING ** (1 / 1000)) == 1.0


@pytest.mark.parametrize(("depth", "size"), [(100, 0.63), (1000, 0.16)])
def test_a_pair_of_selu_is_nearly_linear_where_it_is_small(depth: int, size: float):
    phi = odd_part("selu")
    assert phi is not None
    assert operating_point(phi, PARTING ** (1 / depth)) == pytest.approx(size, abs=5e-3)


@pytest.mark.parametrize(("size", "middle"), [(0.05, -1.319), (0.996, -1.75), (2.0, -2.55)])
def test_a_pair_of_sigmoid_is_straightest_where_its_cubic_part_is_gone(size: float, middle: float):
    found = shifted_point("sigmoid", 10.0, size)
    assert found == (size, pytest.approx(middle, abs=5e-3))

    def chi(shift: float) -> float:
        phi = odd_part("sigmoid", shift)
        assert phi is not None
        return moments.moments(phi, variance=max(size, 0.5) ** 2).centred_chi

    assert chi(middle) < min(chi(0.0), chi(-0.7), chi(2 * middle))


@pytest.mark.parametrize(("depth", "size", "middle"), [(100, 1.59, -2.21), (1000, 1.0, -1.75)])
def test_the_point_of_sigmoid_that_the_page_names(depth: int, size: float, middle: float):
    growth = PARTING ** (1 / depth)
    found = shifted_point("sigmoid", growth, 2.0)
    assert found == pytest.approx((size, middle), abs=7e-3)
    phi = odd_part("sigmoid", found[1])
    assert phi is not None
    chi = moments.moments(phi, variance=found[0] ** 2).centred_chi
    assert chi - 1 == pytest.approx(growth - 1, rel=5e-3)
    assert operating_point("sigmoid", growth) < size  # about 0, without a pair


@torch.no_grad()
def test_layers_of_sigmoid_are_pairs_about_one_bias():
    x = data()
    net = stack("sigmoid", 100)
    plan = fanin.init_(net, x)
    point = shifted_point("sigmoid", PARTING ** (1 / 101), 2.0)
    assert point is not None
    assert {plan[f"{2 * i}.bias"].gain for i in range(100)} == {point[1]}
    assert plan["200.bias"].scheme == "zeros"
    for out in preactivations(net, x):
        signal = out - point[1]
        torch.testing.assert_close(signal[:, :32], -signal[:, 32:], rtol=0, atol=1e-4)
        assert float(signal.std()) == pytest.approx(point[0], rel=0.25)


class Gates(nn.Module):
    """value(x) · sigmoid(gate(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = stack("sigmoid", 8)[:-1]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(*(Gates() for _ in range(8)), nn.Linear(64, 5)),
        nn.Sequential(nn.Linear(64, 64), Branch(), Branch(), nn.Linear(64, 5)),
        nn.Sequential(*stack("sigmoid", 8)[:-1], *stack("tanh", 8)),
        nn.Sequential(*stack("sigmoid", 8)[:-1], *stack("sigmoid", 8, bias=False)),
        nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 5)),
    ],
    ids=["gates", "branches", "two activations", "layers without biases", "shallow"],
)
def test_biases_shift_no_unit_elsewhere(net: nn.Module):
    plan = fanin.plan(net, data())
    assert all(a.std == 0 for a in plan if a.parameter.endswith("bias"))


def test_an_output_layer_with_a_sigmoid_is_not_shifted():
    plan = fanin.plan(nn.Sequential(*stack("sigmoid", 8), nn.Sigmoid()), data())
    assert plan["14.bias"].scheme == "constant"
    assert plan["16.bias"].scheme == "zeros"
    assert plan["16.weight"].arguments == {"first": False, "last": True}


@pytest.mark.parametrize("name", list(EXACT))
def test_a_mirrored_stretch_of_120_layers_is_an_isometry(name: str):
    x = data(16).double()
    net = stack(name, 120, width=32, inputs=16).double()
    fanin.init_(net, x[:, :16])
    first, *_, last = preactivations(net, x[:, :16])
    # halves mirror one another, so one of them tells all
    half = first.shape[1] // 2
    before = torch.cdist(first[:, :half], first[:, :half])
    after = torch.cdist(last[:, :half], last[:, :half])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


# ---- what the first convolution sees -------------------------------------------------------------


def convolutions(name: str, channels: int, depth: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(16 if i else channels, 16, 3, padding=1), MODULES[name]()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 36, 5))


def images(channels: int) -> Tensor:
    return torch.randn(64, channels, 6, 6, generator=torch.Generator().manual_seed(1))


def directions(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Conv2d)
    return int(torch.linalg.matrix_rank(layer.weight.detach().flatten(1)))


@pytest.mark.parametrize(("name", "seen"), [("relu", 8), ("sigmoid", 8), ("tanh", 9), ("selu", 9)])
def test_a_first_convolution_of_few_channels_sees_its_patch(name: str, seen: int):
    x = images(1)
    net = convolutions(name, 1)
    plan = fanin.init_(net, x)
    assert directions(net[0]) == seen  # at the centre tap it would be one
    beside = net[2].weight.detach().clone()
    beside[..., 1, 1] = 0
    assert not beside.any()
    assert plan["0.weight"].std == pytest.approx(
        float(net[0].weight.detach().square().mean().sqrt())
    )
    first, *_, last = preactivations(net, x)
    assert float(last.std() / first.std()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(("name", "channels"), [("relu", 8), ("sigmoid", 8), ("tanh", 16)])
def test_a_first_convolution_of_many_channels_sees_its_centre(name: str, channels: int):
    net = convolutions(name, channels)
    fanin.init_(net, images(channels))
    beside = net[0].weight.detach().clone()
    beside[..., 1, 1] = 0
    assert not beside.any()
    assert directions(net[0]) == channels


# ---- training ------------------------------------------------------------------------------------


def trained(net: nn.Sequential, steps: int = 40) -> float:
    """Mean loss of the last ten steps, over that of guessing."""
    x = data(128)
    labels = x[:, :5].argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-10:]) / 10 / math.log(5)


@pytest.mark.parametrize("name", ["softplus", "sigmoid"])
def test_60_layers_learn_from_auto_and_not_from_the_right_gain(name: str):
    net = stack(name, 60)
    fanin.init_(net, data(128))
    assert trained(net) < 0.7
    assert trained(gained(stack(name, 60), name)) > 0.9


# ---- the page ------------------------------------------------------------------------------------


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("depth", ROOT / "benchmarks" / "depth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["depth"] = module  # where its dataclasses look their names up
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_page_is_that_of_the_results():
    depth = benchmark()
    wanted = depth.table([r for r in depth.read() if r.seed == depth.SEED])
    page = (ROOT / "docs" / "depth.md").read_text(encoding="utf-8")
    assert page.partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0] == wanted
