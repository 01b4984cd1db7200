"""Fans as a check reports them are the true ones: real layers keep the variance with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import seeded

import fanin

INNER = slice(4, -4)  # positions that no padding reaches


class Apply(nn.Module):
    """function(weight, bias, *inputs) of a bare weight."""

    def __init__(self, function: Callable[..., Tensor], *shape: int, bias: int = 1) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(*shape) * 0.1)
        self.bias = nn.Parameter(torch.zeros(bias))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.weight, self.bias, *inputs)


@dataclass(frozen=True)
class Row:
    """A layer with the fans that it truly has.

    `outputs` and `inputs` pick the part of the output, or of the gradient at the first input, where
    the variance is 1 when the weight has the variance 1 / fan.
    """

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    fan_in: int
    fan_out: int | None
    outputs: Callable[[Any], Tensor] = lambda out: out
    inputs: Callable[[Tensor], Tensor] | None = lambda gradient: gradient
    weight: str = "weight"

    def __str__(self) -> str:
        return self.name


def inner(dims: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[(..., *[INNER] * dims)]


def bare(function: Callable[..., Tensor], *shape: int, bias: int = 1) -> Callable[[], nn.Module]:
    return lambda: Apply(function, *shape, bias=bias)


def gpt2(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Conv1D of GPT-2: weight [in, out]."""
    size = (*x.shape[:-1], weight.shape[1])
    return torch.addmm(bias, x.view(-1, x.shape[-1]), weight).view(size)


ROWS = [
    Row("linear", lambda: nn.Linear(60, 90), ((400, 60),), 60, 90),
    Row("linear-sequence", lambda: nn.Linear(60, 90), ((40, 10, 60),), 60, 90),
    Row("linear-one-output", lambda: nn.Linear(2000, 1), ((800, 2000),), 2000, 1),
    Row("x@W", bare(lambda w, b, x: x @ w + b, 60, 90), ((400, 60),), 60, 90),
    Row("x@W-sequence", bare(lambda w, b, x: x @ w + b, 60, 90), ((40, 10, 60),), 60, 90),
    Row("x@W.T", bare(lambda w, b, x: x @ w.T + b, 90, 60), ((400, 60),), 60, 90),
    Row("W@x", bare(lambda w, b, x: w @ x + b, 90, 60), ((8, 60, 50),), 60, 90),
    Row("mm", bare(lambda w, b, x: torch.mm(x, w) + b, 60, 90), ((400, 60),), 60, 90),
    Row("addmm-gpt2", bare(gpt2, 60, 90, bias=90), ((20, 20, 60),), 60, 90),
    Row(
        "einsum-heads",
        bare(lambda w, b, x: torch.einsum("bti,ihd->bhtd", x, w) + b, 60, 5, 16),
        ((20, 20, 60),),
        60,
        80,
    ),
    Row(
        "einsum-out-of-heads",
        bare(lambda w, b, x: torch.einsum("bthd,hdo->bto", x, w) + b, 5, 12, 70),
        ((20, 20, 5, 12),),
        60,
        70,
    ),
    Row(
        "einsum-implicit",
        bare(lambda w, b, x: torch.einsum("ij,jk", x, w) + b, 60, 90),
        ((400, 60),),
        60,
        90,
    ),
    Row(
        "conv1d",
        lambda: nn.Conv1d(20, 30, 5, padding=2),
        ((10, 20, 60),),
        100,
        150,
        inner(1),
        inner(1),
    ),
    Row(
        "conv1d-strided",  # its fan_out is that of the shape: out/g · ∏k
        lambda: nn.Conv1d(20, 30, 6, stride=3),
        ((10, 20, 90),),
        120,
        180,
        inputs=None,
    ),
    Row(
        "conv2d",
        lambda: nn.Conv2d(12, 16, 3, padding=1),
        ((6, 12, 20, 20),),
        108,
        144,
        inner(2),
        inner(2),
    ),
    Row(
        "conv2d-grouped",
        lambda: nn.Conv2d(24, 32, 3, padding=1, groups=4),
        ((6, 24, 20, 20),),
        54,
        72,
        inner(2),
        inner(2),
    ),
    Row(
        "conv2d-dilated",
        lambda: nn.Conv2d(12, 16, 3, padding=2, dilation=2),
        ((6, 12, 22, 22),),
        108,
        144,
        inner(2),
        inner(2),
    ),
    Row(
        "conv2d-depthwise",
        lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128),
        ((6, 128, 14, 14),),
        9,
        9,
        inner(2),
        inner(2),
    ),
    Row(
        "conv2d-depthwise-multiplier",
        lambda: nn.Conv2d(128, 256, 3, padding=1, groups=128),
        ((6, 128, 14, 14),),
        9,
        18,
        inner(2),
        inner(2),
    ),
    Row(
        "conv2d-patches",
        lambda: nn.Conv2d(3, 48, 8, stride=8),
        ((12, 3, 40, 40),),
        192,
        3072,
        inputs=None,
    ),
    Row(
        "conv3d",
        lambda: nn.Conv3d(16, 24, (3, 3, 1), padding=(1, 1, 0), groups=2),
        ((3, 16, 12, 12, 12),),
        72,
        108,
        inner(3),
        inner(3),
    ),
    Row(
        "conv-transpose1d",
        lambda: nn.ConvTranspose1d(30, 20, 5),
        ((10, 30, 60),),
        150,
        100,
        inner(1),
    ),
    Row(
        "conv-transpose1d-strided",
        lambda: nn.ConvTranspose1d(40, 20, 6, stride=3, padding=1),
        ((10, 40, 40),),
        80,
        120,
        inner(1),
        inner(1),
    ),
    Row(  # the example of the truth table
        "conv-transpose2d-k4-s2",
        lambda: nn.ConvTranspose2d(64, 256, 4, stride=2, padding=1),
        ((4, 64, 12, 12),),
        256,
        4096,
        inner(2),
        inner(2),
    ),
    Row(
        "conv-transpose2d-grouped",
        lambda: nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, groups=4),
        ((4, 64, 14, 14),),
        64,
        128,
        inner(2),
        inner(2),
    ),
    Row(
        "conv-transpose2d-depthwise",
        lambda: nn.ConvTranspose2d(256, 256, 4, stride=2, padding=1, groups=256),
        ((4, 256, 14, 14),),
        4,
        16,
        inner(2),
        inner(2),
    ),
    Row(  # kernel = stride: every output has one input position
        "conv-transpose2d-k2-s2",
        lambda: nn.ConvTranspose2d(48, 24, 2, stride=2),
        ((4, 48, 12, 12),),
        48,
        96,
    ),
    Row(
        "conv-transpose2d-uneven-stride",
        lambda: nn.ConvTranspose2d(32, 24, (4, 3), stride=(2, 1)),
        ((4, 32, 14, 24),),
        192,
        288,
        inner(2),
        None,
    ),
    Row(
        "conv-transpose3d",
        lambda: nn.ConvTranspose3d(24, 10, 4, stride=2),
        ((2, 24, 8, 8, 8),),
        192,
        640,
        inner(3),
        None,
    ),
    Row(  # functional, with every option given by place
        "conv-transpose2d-functional",
        bare(lambda w, b, x: F.conv_transpose2d(x, w, None, 2, 1, 0, 2) + b, 32, 12, 4, 4),
        ((4, 32, 14, 14),),
        64,
        192,
        inner(2),
        inner(2),
    ),
    Row("bilinear", lambda: nn.Bilinear(12, 11, 40), ((900, 12), (900, 11)), 132, 40, inputs=None),
    Row(
        "experts-bmm",
        bare(lambda w, b, x: torch.bmm(x, w) + b, 6, 40, 50),
        ((6, 80, 40),),
        40,
        50,
    ),
    Row(
        "experts-matmul",
        bare(lambda w, b, x: x.unsqueeze(0) @ w + b, 6, 40, 50),
        ((200, 40),),
        40,
        None,
        inputs=None,
    ),
    Row(
        "experts-einsum",
        bare(lambda w, b, x: torch.einsum("ebi,eoi->ebo", x, w) + b, 6, 50, 40),
        ((6, 80, 40),),
        40,
        50,
    ),
    Row(  # every expert sees every input
        "experts-einsum-all",
        bare(lambda w, b, x: torch.einsum("bi,eoi->beo", x, w) + b, 6, 50, 40),
        ((300, 40),),
        40,
        300,
    ),
    Row("packed-qkv-linear", lambda: nn.Linear(48, 3 * 48), ((300, 48),), 48, None),
]


def drawn(row: Row, fan: float) -> nn.Module:
    """The layer with weights from N(0, 1 / fan) and without biases."""
    model = row.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter(row.weight).normal_(0, fan**-0.5)
    return model


def tolerance(*tensors: Tensor) -> float:
    """Five standard deviations of a variance that is estimated from normal draws."""
    bound = 5 * math.sqrt(sum(2 / t.numel() for t in tensors))
    assert bound < 0.3, "too few draws to tell a fan from its double"
    return bound


def reported(model: nn.Module, inputs: Any, weight: str = "weight"):
    """What a check says of the layer that owns `weight`."""
    layers = [y for y in fanin.check(model, inputs).layers if y.parameters[0] == weight]
    assert len(layers) == 1
    return layers[0]


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_reported_fans_are_those_of_the_table(row: Row):
    layer = reported(row.build(), tuple(torch.randn(*s) for s in row.shapes), row.weight)
    assert layer.fan_in == row.fan_in
    if row.fan_out is not None:
        assert layer.fan_out == row.fan_out


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_weights_drawn_with_the_reported_fan_in_keep_the_variance(row: Row):
    inputs = tuple(torch.randn(*s) for s in row.shapes)
    model = drawn(row, reported(row.build(), inputs, row.weight).fan_in)
    with torch.no_grad():
        out = row.outputs(model(*inputs))
    bound = tolerance(model.get_parameter(row.weight), *inputs)
    assert float(out.square().mean()) == pytest.approx(1.0, abs=bound)


@pytest.mark.parametrize("row", [r for r in ROWS if r.inputs and r.fan_out], ids=str)
def test_weights_drawn_with_the_reported_fan_out_keep_the_gradient(row: Row):
    inputs = tuple(torch.randn(*s, requires_grad=True) for s in row.shapes)
    detached = tuple(x.detach() for x in inputs)
    model = drawn(row, reported(row.build(), detached, row.weight).fan_out)
    out = model(*inputs)
    cotangent = torch.randn_like(out)
    gradient = torch.autograd.grad(out, inputs[0], cotangent)[0]
    bound = tolerance(model.get_parameter(row.weight), cotangent)
    assert float(row.inputs(gradient).square().mean()) == pytest.approx(1.0, abs=bound)


# ── rows whose output is not the weighted sum itself ─────────────────────────────────────────


@pytest.mark.parametrize("kind", ["module", "functional", "indexed"])
def test_an_embedding_has_one_input(kind: str):
    tokens = torch.randint(0, 300, (40, 25))
    model = {
        "module": lambda: nn.Embedding(300, 40),
        "functional": lambda: Apply(lambda w, b, t: F.embedding(t, w) + b, 300, 40),
        "indexed": lambda: Apply(lambda w, b, t: w[t] + b, 300, 40),
    }[kind]()
    layer = reported(model, tokens)
    assert (layer.op, layer.fan_in, layer.fan_out) == ("embedding", 1, 40)
    with torch.no_grad():
        model.weight.normal_(0, layer.fan_in**-0.5)
        assert float(model(tokens).square().mean()) == pytest.approx(1, abs=tolerance(model.weight))


def test_packed_query_key_value_have_the_fan_of_one_block():
    """A single position attends to itself alone, so the values come out as they are."""
    E = 64
    attention = nn.MultiheadAttention(E, 4, batch_first=True)
    x = torch.randn(200, 1, E)
    layer = reported(attention, (x, x, x), "in_proj_weight")
    assert layer.fan_in == E

    def variance(draw: Callable[[Tensor], Any]) -> float:
        with torch.no_grad():
            draw(attention.in_proj_weight)
            attention.in_proj_bias.zero_()
            attention.out_proj.bias.zero_()
            nn.init.eye_(attention.out_proj.weight)
            return float(attention(x, x, x)[0].square().mean())

    bound = tolerance(attention.in_proj_weight[:E], x)
    assert variance(lambda w: w.normal_(0, layer.fan_in**-0.5)) == pytest.approx(1, abs=bound)
    # torch's shape rule takes three blocks for one and halves the variance
    assert variance(nn.init.xavier_normal_) == pytest.approx(0.5, abs=bound / 2)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_has_the_fans_of_one_gate(kind: type[nn.RNNBase]):
    """One step from a zero state with open gates shows the candidate, which is inverted."""
    n, hidden = 50, 70
    gates = {"LSTM": 4, "GRU": 3}.get(kind.__name__, 1)
    x = torch.randn(400, 1, n, dtype=torch.float64)
    rnn = kind(n, hidden, batch_first=True).double()
    layer = reported(rnn, x, "weight_ih_l0")
    assert (layer.fan_in, layer.fan_out, layer.units) == (n, hidden, hidden)
    assert rnn.weight_ih_l0.shape[0] == gates * hidden  # so the shape alone would say another
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
        rnn.weight_ih_l0.normal_(0, layer.fan_in**-0.5)
        bias = rnn.bias_ih_l0.view(gates, hidden)
        if kind is nn.LSTM:  # input, forget, candidate, output
            bias[0], bias[3] = 40.0, 40.0
        elif kind is nn.GRU:  # reset, update, candidate
            bias[1] = -40.0
        out = rnn(x)[0].atanh()
        candidate = out.atanh() if kind is nn.LSTM else out
    bound = tolerance(rnn.weight_ih_l0[:hidden], x)
    assert float(candidate.square().mean()) == pytest.approx(1, abs=bound)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_recurrent_cell_has_the_fans_of_one_gate(cell: type[nn.RNNCellBase]):
    layer = reported(cell(50, 70), torch.randn(20, 50), "weight_ih")
    assert (layer.fan_in, layer.fan_out, layer.units) == (50, 70, 70)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_every_depth_of_a_bidirectional_lstm_has_its_own_fan(depth: int):
    rnn = nn.LSTM(20, 30, 3, bidirectional=True, batch_first=True)
    layer = reported(rnn, torch.randn(8, 5, 20), f"weight_ih_l{depth}")
    assert (layer.fan_in, layer.fan_out) == (60 if depth else 20, 30)


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(16), nn.BatchNorm1d(16), nn.GroupNorm(4, 16), nn.RMSNorm(16)],
    ids=lambda m: type(m).__name__,
)
def test_a_norm_sums_nothing_and_has_no_fans(norm: nn.Module):
    model = nn.Sequential(nn.Linear(16, 16), norm, nn.Linear(16, 3))
    layers = {y.name: y for y in fanin.check(model, torch.randn(32, 16)).layers}
    assert (layers["1"].fan_in, layers["1"].fan_out, layers["1"].units) == (None, None, None)
    assert (layers["2"].fan_in, layers["2"].fan_out) == (16, 3)
