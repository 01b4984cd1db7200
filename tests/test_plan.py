"""What is planned for each parameter, why, and that planning leaves no trace."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_properties import networks
from test_roles import HandNorm, Hyper, Separate, attended, eager
from torch import Tensor, nn
from zoo import Case, blocks, seeded
from zoo.bad_input import BAD
from zoo.blocks import Lambda, Residual, Scaled, mlp
from zoo.checks import QUIET, parametrize, unchanged
from zoo.healthy import HEALTHY
from zoo.traps import TRAPS

import fanin
from fanin import moments
from fanin.assignment import Assignment, Recipe
from fanin.errors import ArgumentError, BatchError, FaninError, ModelError
from fanin.planning import Plan, init_, plan
from fanin.policies import decide
from fanin.policies.auto import HEAD_GAIN, MODULATION, TABLE, auto, target_size
from fanin.policies.choice import blueprint
from fanin.policies.deep import DEEP, DEEP_HEAD
from fanin.policies.published import PUBLISHED
from fanin.policies.signal import DIRECT_STD, READ_STD, bending, keeps_scale
from fanin.reading import reading
from fanin.roles import roles

pytestmark = QUIET

BY_NAME = {case.name: case for case in [*HEALTHY, *TRAPS]}
QUICK = [case for case in HEALTHY if not case.slow]


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


def planned(name: str, scheme: str = "auto", **options: Any) -> Plan:
    """The plan of a model of the zoo."""
    model, batch, _ = BY_NAME[name].build()
    return plan(model, batch, scheme, **options)


# ── each rule of the table: a model that it is for, and one that only looks so ───────────────


@dataclass(frozen=True)
class Rule:
    """A model with a parameter for which a rule decides, and one with a look-alike.

    `told` stands in the reason where the rule decided; `holds` is what it decides.
    """

    model: Callable[[], tuple[nn.Module, Any]]
    parameter: str
    other: Callable[[], tuple[nn.Module, Any]]
    lookalike: str
    told: str
    holds: Callable[[Assignment], bool] = lambda a: True


def chain(
    depth: int, act: Callable[[], nn.Module], width: int = 16
) -> Callable[[], tuple[nn.Module, Any]]:
    def build():
        widths = (width, *[width] * (depth - 1), 4)
        return mlp(*widths, act=act), torch.randn(64, width)

    return build


def stream(
    count: int, *body: Callable[[], nn.Module], after: Callable[[], nn.Module] = nn.Identity
) -> Callable[[], tuple[nn.Module, Any]]:
    """A layer, `count` residual blocks, a layer: "1.body.0" is the first of the first block."""

    def build():
        steps = [m for _ in range(count) for m in (Residual(*(b() for b in body)), after())]
        return nn.Sequential(nn.Linear(6, 8), *steps, nn.Linear(8, 3)), torch.randn(64, 6)

    return build


def zoo(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: BY_NAME[name].build()[:2]


def line() -> nn.Module:
    return nn.Linear(8, 8)


def square() -> nn.Module:
    return nn.Sequential(line(), nn.ReLU(), line())


def lora(bent: bool) -> Callable[[], tuple[nn.Module, Any]]:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(12, 10)
            self.down, self.up = nn.Linear(12, 3), nn.Linear(3, 10)

        def forward(self, x):
            h = self.down(x)
            return self.base(x) + self.up(h.relu() if bent else h)

    return lambda: (Net(), torch.randn(32, 12))


def sines(omega: float) -> Callable[[], tuple[nn.Module, Any]]:
    def build():
        body = [m for _ in range(2) for m in (nn.Linear(8, 8), Lambda(lambda x: (omega * x).sin()))]
        return nn.Sequential(*body, nn.Linear(8, 2)), torch.rand(64, 8) * 2 - 1

    return build


def looked_up(*after: nn.Module, padding: int | None = None) -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Embedding(20, 8, padding_idx=padding), *after, nn.Linear(8, 3))
    return model, torch.arange(20)[None]


def scaled(start: float, channels: int, *first: nn.Module) -> tuple[nn.Module, Any]:
    body = Scaled(*first, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), start=start)
    body.gamma = nn.Parameter(torch.full((channels,), start))
    return nn.Sequential(nn.Linear(6, 8), body, nn.Linear(8, 3)), torch.randn(64, 6)


@pytest.mark.parametrize(("size", "shift"), [(1e-3, 0.0), (1.0, 3.0), (100.0, 0.0)])
def test_offsets_of_a_layer_that_reads_few_numbers_are_as_large_as_what_it_makes(size, shift):
    model, batch = mlp(2, 64, 64, 1), size * (torch.randn(256, 2) + shift)
    plan(model, batch).apply_(model)
    with torch.no_grad():
        made = F.linear(batch, model[0].weight).square().mean().sqrt()
        assert 0.7 < float(model[0].bias.std() / made) < 1.4
        assert 0.7 < float(model[:3](batch).square().mean().sqrt()) < 1.4


def few(*, normed: bool = False, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8) if normed else act(), nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("model", "bias"),
    [
        (few(normed=True), "0.bias"),
        (few(act=nn.Identity), "0.bias"),
        (nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1)), "0.bias"),
        (few(), "2.bias"),
        (mlp(4, 8, 1), "0.bias"),
    ],
    ids=["norm", "straight", "output", "behind", "many"],
)
def test_other_biases_beside_few_numbers_are_zero(model: nn.Module, bias: str):
    width = model[0].in_features
    assert plan(model, torch.randn(64, width))[bias].scheme == "zeros"


def temperature() -> tuple[nn.Module, Any]:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = mlp(6, 8, 3), nn.Parameter(torch.tensor(14.0))

        def forward(self, x):
            return self.net(x) * self.scale

    return Net(), torch.randn(32, 6)


def normed_between(act: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Any]]:
    def build():
        first, second = mlp(16, 16), mlp(16, 16, 4)
        return nn.Sequential(*first, act(), nn.LayerNorm(16), *second), torch.randn(64, 16)

    return build


def normed_chain(depth: int) -> tuple[nn.Module, Any]:
    steps = [m for _ in range(depth) for m in (nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU())]
    return nn.Sequential(*steps, nn.Linear(16, 4)), torch.randn(64, 16)


class Prefix(nn.Module):
    """A learned prefix, made longer by an MLP, and a learned first state."""

    def __init__(self):
        super().__init__()
        self.prefix, self.first = nn.Parameter(torch.zeros(5, 8)), nn.Parameter(torch.zeros(1, 16))
        self.grow = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16))
        self.cell, self.head = nn.GRUCell(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        tokens = torch.cat([self.grow(self.prefix).expand(len(x), -1, -1), x], 1)
        return self.head(self.cell(tokens.mean(1), self.first.expand(len(x), -1)))


class Factored(nn.Module):
    """Rows of two tables, multiplied: the output, or the input of a layer."""

    def __init__(self, deep=False):
        super().__init__()
        self.users, self.items = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.shift, self.head = nn.Embedding(20, 1), nn.Linear(8, 1) if deep else None

    def forward(self, user, item):
        both = self.users(user) * self.items(item)
        return self.shift(user) + (self.head(both) if self.head else both.sum(-1, keepdim=True))


class Token(nn.Module):
    """A learned token beside those of the batch."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.body, self.head = mlp(16, 16, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class Columns(nn.Module):
    """Each number of a row makes a token of its own, before a branch with a norm."""

    def __init__(self, wave=False):
        super().__init__()
        self.wave, self.weight = wave, nn.Parameter(torch.randn(8, 16) / 4)
        self.places = nn.Parameter(torch.randn(8, 16) / 4)
        self.norm, self.body, self.head = nn.LayerNorm(16), mlp(16, 16, 16), nn.Linear(16, 1)

    def forward(self, x):
        h = self.weight * x[..., None]
        h = (h.sin() if self.wave else h) + self.places
        return self.head((h + self.body(self.norm(h))).mean(1))


def bags(words: int) -> Callable[[], tuple[nn.Module, Any]]:
    """Two hidden layers over bags of 100 words."""

    def build():
        chosen = torch.rand(64, 100).argsort(1)[:, :words]
        return mlp(100, 16, 16, 4), torch.zeros(64, 100).scatter(1, chosen, 1 / words)

    return build


class Placed(nn.Module):
    """Tokens, and positions that are fixed or learned, before a branch with a norm."""

    def __init__(self, fixed=True):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.body, self.head = mlp(16, 16, 16), nn.Linear(16, 20)
        places = torch.randn(9, 16)
        if fixed:
            self.register_buffer("places", places)
        else:
            self.places = nn.Parameter(places)

    def forward(self, x):
        h = 4 * self.tokens(x) + self.places[: x.shape[1]]
        return self.head(h + self.body(self.norm(h)))


class Typed(nn.Module):
    """Rows of a table added to features, or to rows of another table, before a branch with a norm.

    Or to the output, where nothing brings the sum to one size.
    """

    def __init__(self, beside="features"):
        super().__init__()
        self.features, self.places, self.beside = nn.Linear(5, 16), nn.Embedding(9, 16), beside
        self.kinds = nn.Embedding(4, 3 if beside == "output" else 16)
        self.norm, self.body, self.head = nn.LayerNorm(16), mlp(16, 16, 16), nn.Linear(16, 3)

    def forward(self, x, kind):
        first, rows = self.features(x), self.kinds(kind)
        if self.beside == "table":
            first = self.places(torch.arange(x.shape[1])) * x[..., :1].gt(0).float()
        h = first if self.beside == "output" else first + 2 * rows
        h = self.head(h + self.body(self.norm(h)))
        return h + rows if self.beside == "output" else h


def typed(beside: str = "features") -> tuple[nn.Module, Any]:
    return Typed(beside), (torch.randn(8, 9, 5), torch.randint(0, 4, (8, 9)))


class Axes(Placed):
    """Positions that are made of one parameter for each of two axes."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(size * torch.randn(3, 8)) for _ in range(2))

    def forward(self, x):
        rows, columns = self.rows[:, None].expand(3, 3, 8), self.columns.expand(3, 3, 8)
        self.places = torch.cat([rows, columns], -1).flatten(0, 1)
        return super().forward(x)


@pytest.mark.parametrize(("size", "std"), [(1.0, 0.25), (0.02, 0.02)])
def test_rows_beside_positions_that_keep_their_values_are_no_smaller(size: float, std: float):
    found = plan(Axes(size), torch.randint(0, 20, (8, 9)))
    assert {"rows", "columns"} <= {*found.untouched}
    assert found["tokens.weight"].std == std


def test_positions_beside_what_a_layer_makes_are_as_large():
    """The index is the same for every batch.  ViTs publish 0.02, and learn it late."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.places = nn.Linear(12, 16), nn.Embedding(9, 16)
            self.norm, self.mix, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.patch(x) + self.places(torch.arange(9))
            return self.head((h + self.mix(self.norm(h))).mean(1))

    assert plan(Patches(), torch.randn(8, 9, 12))["places.weight"].std == 1.0


def test_a_table_beside_the_output_is_small():
    assert plan(*typed("output"))["kinds.weight"].std == 0.02


class Coupled(nn.Module):
    """The layer in the middle gives a scale's logarithm and a shift; or noise is what it scales.

    The signal is scaled and then shifted (RealNVP), or shifted first (Glow).
    """

    def __init__(self, noise=False, first=False):
        super().__init__()
        self.net, self.noise, self.first = mlp(4, 16, 8), noise, first
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        a, b = x.chunk(2, -1)
        scale, shift = self.net(a).chunk(2, -1)
        other, scale = torch.ones_like(b) if self.noise else b, (0.5 * scale.tanh()).exp()
        moved = (other + shift) * scale if self.first else other * scale + shift
        return self.head(torch.cat([a, moved], -1))


@pytest.mark.parametrize("noise", [False, True])
def test_a_coupling_may_shift_before_it_scales(noise: bool):
    found = plan(Coupled(noise, first=True), torch.randn(32, 8))["net.2.weight"]
    assert (found.scheme == "zeros") != noise


class Bell(nn.Module):
    """exp(−(z / width)² / 2), written out."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = width

    def forward(self, x):
        return torch.exp(-0.5 * (x / self.width) ** 2)


class Centred(nn.Module):
    """Radial units by hand; or rows that are positions of what is there."""

    def __init__(self, copies: bool = True) -> None:
        super().__init__()
        self.rows, self.head, self.copies = nn.Parameter(torch.randn(5, 8)), nn.Linear(5, 3), copies

    def forward(self, x):
        given = x[:, None] if self.copies else torch.stack([x * (i + 1) for i in range(5)], 1)
        return self.head(torch.exp(-(given - self.rows).square().mean(-1)))


class Spoken(nn.Module):
    """Scores of frames, and the loss of a sequence, or of each frame."""

    def __init__(self, aligned=True):
        super().__init__()
        self.body, self.head, self.aligned = (
            nn.GRU(8, 16, batch_first=True),
            nn.Linear(16, 5),
            aligned,
        )

    def forward(self, x, target):
        scores = self.head(self.body(x)[0])
        if not self.aligned:
            return F.cross_entropy(scores.flatten(0, 1), target.flatten())
        lengths = [torch.full((len(x),), t.shape[1]) for t in (x, target)]
        return F.ctc_loss(scores.log_softmax(-1).transpose(0, 1), target, *lengths)


class Quantized(nn.Module):
    """An autoencoder whose code is the nearest row of a table; or a mixture of all rows."""

    def __init__(self, how: str = "distance", read: str = "row") -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(8, 16, 4), mlp(4, 16, 8)
        self.codes = nn.Parameter(0.03 * torch.randn(12, 4))
        self.how, self.read = how, read

    def forward(self, x):
        z = self.encoder(x)
        if self.how == "product":
            far = -2 * z @ self.codes.T + self.codes.square().sum(1)
        elif self.how == "copies":
            far = (z[:, None] - self.codes).square().sum(-1)
        else:
            far = torch.cdist(z, self.codes)
        if self.read == "shares":
            return self.decoder((-far).softmax(-1) @ self.codes)
        picked = far.argmin(1)
        row = self.codes[picked] if self.read == "row" else F.one_hot(picked, 12) * 1.0 @ self.codes
        return self.decoder(z + (row - z).detach())


@pytest.mark.parametrize("how", ["distance", "product", "copies"])
@pytest.mark.parametrize("read", ["row", "one"])
def test_codes_that_the_signal_is_compared_with_are_left_as_they_are(how: str, read: str):
    """What reads them does not make up for their size, which they will not keep."""
    found = plan(Quantized(how, read), torch.randn(32, 8))
    assert "compared with" in found.untouched["codes"]
    assert found["decoder.0.weight"].std == 0.5
    assert "it reads codes" in found["decoder.0.weight"].because
    nothing = plan(Quantized(how, read).to("meta"), torch.randn(32, 8, device="meta"))
    assert nothing["codes"].std == 1.0


@pytest.mark.parametrize("how", ["distance", "copies"])
def test_rows_that_shares_are_taken_of_are_drawn(how: str):
    """They are no codes, and no biases on scores either, which zeros would make alike."""
    assert plan(Quantized(how, "shares"), torch.randn(32, 8))["codes"].std > 0.3


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-6)


NORMED = stream(4, lambda: nn.LayerNorm(8), line, nn.ReLU, line)
BARE = stream(4, line, nn.ReLU, line)


class Words(nn.Module):
    """A small language model with learned positions."""

    def __init__(self, factor=1.0, tied=False, norm=nn.LayerNorm, read=None) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(20, 16), nn.Parameter(torch.zeros(9, 16))
        self.start = nn.Parameter(torch.zeros(1, 1, 16))
        self.read = read or nn.Identity()
        self.body = nn.ModuleList(Residual(norm(16), *mlp(16, 32, 16)) for _ in range(2))
        self.norm, self.head, self.factor = norm(16), nn.Linear(16, 20, bias=False), factor
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.read(self.table(tokens) * self.factor + self.places)
        x = torch.cat([self.start.expand(len(x), 1, 16), x], 1)
        for block in self.body:
            x = block(x)
        return self.head(self.norm(x))


class Conditioned(nn.Module):
    """A signal that a layer scales and shifts by a condition."""

    def __init__(self, used=None) -> None:
        super().__init__()
        self.read, self.made, self.body = nn.Linear(10, 12), nn.Linear(8, 24), mlp(12, 24, 12)
        self.head, self.used = nn.Linear(12, 3), used or film

    def forward(self, x, condition):
        return self.head(self.body(self.used(self, self.read(x), condition)).relu())


def film(model: Conditioned, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    scale, shift = model.made(condition).chunk(2, -1)
    return x * (1 + scale) + shift


def conditions() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, 10), torch.randn(32, 8)


RULES: dict[str, Rule] = {
    "output layer": Rule(
        chain(3, nn.ReLU),
        "4.weight",
        chain(3, nn.ReLU),
        "2.weight",
        "output layer",
        lambda a: a.std == pytest.approx(HEAD_GAIN * math.sqrt(2 / 16), rel=0.4),
    ),
    "second of a low-rank pair": Rule(
        lora(False), "up.weight", lora(True), "up.weight", "low-rank", lambda a: a.scheme == "zeros"
    ),
    "logarithm of a scale": Rule(
        lambda: (Coupled(), torch.randn(32, 8)),
        "net.2.weight",
        lambda: (Coupled(noise=True), torch.randn(32, 8)),
        "net.2.weight",
        "exponential of its output",
        lambda a: a.scheme == "zeros",
    ),
    "last of a residual branch, no norms": Rule(
        BARE,
        "1.body.2.weight",
        NORMED,
        "1.body.3.weight",
        "start as the identity",
        lambda a: a.scheme == "zeros",
    ),
    "inside a residual branch, no norms": Rule(
        BARE,
        "3.body.0.weight",
        NORMED,
        "3.body.1.weight",
        "(Fixup)",
        # L^(−1/(2m − 2)) for 4 branches of 2 layers, and what was measured on the batch
        lambda a: a.std == pytest.approx(4**-0.5 / math.sqrt(8), rel=0.35),
    ),
    "last of a residual branch, normed": Rule(
        NORMED,
        "1.body.3.weight",
        stream(4, line, nn.ReLU, line, lambda: nn.LayerNorm(8)),
        "1.body.2.weight",
        "1/√4",
        lambda a: a.std == pytest.approx(math.sqrt(2 / 8) / 2, rel=0.35),
    ),
    "before a sine of ω times its output": Rule(
        sines(30.0),
        "2.weight",
        sines(1.0),
        "2.weight",
        "SIREN",
        lambda a: a.scheme == "siren" and a.std == near(math.sqrt(6 / 8) / 30 / math.sqrt(3)),
    ),
    "recurrent matrix": Rule(
        zoo("lstm-classifier"),
        "rnn.weight_hh_l0",
        zoo("lstm-classifier"),
        "rnn.weight_ih_l0",
        "orthogonal in each of its 4 gates",
        lambda a: (a.scheme, a.blocks, a.std) == ("orthogonal", 4, near(24**-0.5)),
    ),
    "deep stretch without norms, φ(x) − φ(−x) ≈ x": Rule(
        chain(DEEP, nn.ReLU),
        "10.weight",
        chain(DEEP - 1, nn.ReLU),
        "10.weight",
        "mirrored pairs",
        lambda a: a.scheme == "looks_linear",
    ),
    "deep stretch without norms, odd φ": Rule(
        chain(DEEP, nn.Tanh),
        "10.weight",
        chain(DEEP - 1, nn.Tanh),
        "10.weight",
        "near inputs part",
        lambda a: a.scheme == "orthogonal",
    ),
    "deep stretch without norms, elu or selu": Rule(
        chain(DEEP, nn.SELU),
        "10.weight",
        chain(DEEP, nn.ReLU),
        "10.weight",
        "keeps inputs apart by itself",
        lambda a: a.scheme == "orthogonal",
    ),
    "these, 9 or more in a row with norms between": Rule(
        lambda: normed_chain(DEEP),
        "12.weight",
        lambda: normed_chain(DEEP - 2),
        "12.weight",
        "follow one another without a sum",
        lambda a: a.scheme == "orthogonal" and a.std == near(math.sqrt(2 / 16)),
    ),
    "bias of the first layer of a mirrored stretch": Rule(
        chain(DEEP, nn.ReLU),
        "0.bias",
        chain(DEEP, nn.ReLU),
        "2.bias",
        "opposite pairs",
        lambda a: a.scheme == "mirrored_bias",
    ),
    "behind relu or leaky relu": Rule(
        chain(3, nn.ReLU),
        "2.weight",
        normed_between(nn.ReLU),
        "3.weight",
        "halves the second moment",
        lambda a: a.scheme == "he_normal",
    ),
    "behind another activation": Rule(
        chain(3, nn.GELU),
        "2.weight",
        normed_between(nn.GELU),
        "3.weight",
        "gelu before it has E[φ²] = 0.4252",
        lambda a: a.scheme == "lecun_normal" and a.gain == pytest.approx(1.5335, rel=0.35),
    ),
    "behind an activation with a large mean": Rule(
        chain(3, nn.Sigmoid),
        "2.weight",
        chain(3, nn.Tanh),
        "2.weight",
        "sum to zero",
        lambda a: a.arguments.get("centred") is True,
    ),
    "behind a softmax": Rule(
        chain(3, lambda: nn.Softmax(-1)),
        "2.weight",
        chain(3, lambda: nn.LayerNorm(16)),
        "2.weight",
        "shares of one",
        lambda a: (a.scheme, a.gain >= 4) == ("lecun_normal", True),
    ),
    "any other weight": Rule(
        chain(3, nn.ReLU),
        "0.weight",
        chain(3, nn.ReLU),
        "2.weight",
        "variance of 1/fan_in",
        lambda a: (a.scheme, a.std) == ("lecun_normal", near(0.25)),
    ),
    "table that is the output layer too": Rule(
        zoo("language-model-tied"),
        "tokens.weight",
        zoo("language-model-untied"),
        "tokens.weight",
        "output layer too",
        lambda a: a.scheme == "lecun_normal" and a.fan == 32,
    ),
    "what makes several features of one number of the data, in such a stream": Rule(
        lambda: (Columns(), torch.randn(32, 8)),
        "weight",
        lambda: (Columns(wave=True), torch.randn(32, 8)),
        "weight",
        "features of a number",
        lambda a: (a.scheme, a.std) == ("normal", 1.0),
    ),
    "that reads data of which nine in ten numbers are zero, and layers read what it makes": Rule(
        bags(5),
        "0.weight",
        bags(30),
        "0.weight",
        "mostly zeros",
    ),
    "table whose rows reach the output past every layer, no norms": Rule(
        lambda: (Factored(), (torch.arange(20), torch.arange(20))),
        "users.weight",
        lambda: (Factored(deep=True), (torch.arange(20), torch.arange(20))),
        "users.weight",
        "past every layer",
        lambda a: (a.scheme, a.std) == ("normal", DIRECT_STD),
    ),
    "table to whose rows fixed positions are added, before norms": Rule(
        lambda: (Placed(), torch.randint(0, 20, (8, 9))),
        "tokens.weight",
        lambda: (Placed(fixed=False), torch.randint(0, 20, (8, 9))),
        "tokens.weight",
        "fixed positions",
        lambda a: (a.scheme, a.std) == ("normal", 0.25),
    ),
    "table to whose rows what a layer makes is added, before norms": Rule(
        typed,
        "kinds.weight",
        partial(typed, "table"),
        "kinds.weight",
        "what a layer makes is added",
        lambda a: (a.scheme, a.std) == ("normal", 0.5),
    ),
    "table whose rows layers read, and nothing else takes, no norms": Rule(
        lambda: looked_up(nn.Linear(8, 8), nn.Tanh()),
        "0.weight",
        lambda: looked_up(Residual(*square()), nn.Linear(8, 8)),
        "0.weight",
        "a table whose rows layers read",
        lambda a: (a.scheme, a.std) == ("normal", 0.1),
    ),
    "other tables": Rule(
        lambda: looked_up(Residual(*square()), nn.Linear(8, 8)),
        "0.weight",
        zoo("language-model-tied"),
        "tokens.weight",
        "one row is looked up",
        lambda a: (a.scheme, a.std) == ("normal", 1.0),
    ),
    "its output is the weights of another layer": Rule(
        lambda: (Hyper("bmm"), (torch.randn(7, 4), torch.randn(7, 6))),
        "maker.weight",
        lambda: attended("linear heads"),
        "k.weight",
        "the weights of another layer",
        lambda a: a.std == pytest.approx(math.sqrt(2 / 8) / math.sqrt(6), rel=0.5),
    ),
    "learned input of a layer": Rule(
        lambda: (Prefix(), torch.randn(12, 6, 16)),
        "prefix",
        lambda: (Token(), torch.randn(12, 6, 16)),
        "token",
        "learned input",
        lambda a: (a.scheme, a.std) == ("normal", 1.0),
    ),
    "tables, learned tokens and positions in a residual stream, norms being first to read it": Rule(
        lambda: (Words(), torch.randint(0, 20, (8, 9))),
        "table.weight",
        lambda: (Words(tied=True), torch.randint(0, 20, (8, 9))),
        "places",
        "in a stream that norms read",
        lambda a: (a.scheme, a.std) == ("normal", 1.0),
    ),
    "other learned tokens and positions": Rule(
        lambda: (Token(), torch.randn(12, 6, 16)),
        "token",
        lambda: (Prefix(), torch.randn(12, 6, 16)),
        "prefix",
        "small beside the signal",
        lambda a: (a.scheme, a.std) == ("normal", 0.02),
    ),
    "biases, norm shifts, score biases, first states": Rule(
        zoo("gru-classifier"),
        "rnn.bias_ih_l0",
        zoo("lstm-classifier"),
        "rnn.bias_ih_l0",
        "bias",
        lambda a: a.scheme == "zeros",
    ),
    "forget gate bias of an LSTM": Rule(
        zoo("lstm-classifier"),
        "rnn.bias_ih_l0",
        zoo("lstm-classifier"),
        "rnn.bias_hh_l0",
        "forget gate",
        lambda a: a.scheme == "forget_gate_bias",
    ),
    "norm scales": Rule(
        zoo("mlp-batch-norm"),
        "1.weight",
        temperature,
        "scale",
        "a fresh norm scales by one",
        lambda a: (a.scheme, a.std) == ("ones", 1.0),
    ),
    "before an activation written out that is steep (χ > 8, less in long stretches)": Rule(
        chain(3, lambda: Bell(0.1)),
        "0.weight",
        chain(3, Bell),
        "0.weight",
        "is steep",
        lambda a: 0.2 / 4 < a.std < 0.4 / 4,
    ),
    "bias of the first layer before a steep one, φ(−x) = φ(x)": Rule(
        chain(3, lambda: Bell(0.1)),
        "0.bias",
        chain(3, Bell),
        "0.bias",
        "the same for x and −x",
        lambda a: a.scheme == "normal" and 0.2 < a.std < 0.4,
    ),
    "bias of a layer that reads up to 3 numbers of the data, before an activation": Rule(
        lambda: (mlp(3, 16, 1), torch.rand(64, 3) / 100),
        "0.bias",
        lambda: (nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 1)), torch.rand(64, 3)),
        "0.bias",
        "reads 3 numbers of the data",
        lambda a: a.scheme == "normal" and a.std == 1.0,
    ),
    "output layer before a CTC loss that the model computes": Rule(
        lambda: (Spoken(), (torch.randn(4, 12, 8), torch.randint(1, 5, (4, 3)))),
        "head.weight",
        lambda: (Spoken(aligned=False), (torch.randn(4, 12, 8), torch.randint(1, 5, (4, 12)))),
        "head.weight",
        "before a CTC loss",
        lambda a: 0.5 / 4 < a.std < 4 / 4,
    ),
    "rows that a signal is copied for (centres, tasks)": Rule(
        lambda: (Centred(), torch.randn(64, 8)),
        "rows",
        lambda: (Centred(copies=False), torch.randn(64, 8)),
        "rows",
        "each copy of the signal",
        lambda a: (a.scheme, a.std) == ("normal", 1.0),
    ),
    "scales, shifts and gates other signals: FiLM, adaptive norms": Rule(
        lambda: (Conditioned(), conditions()),
        "made.weight",
        lambda: (Conditioned(lambda m, x, c: x * m.made(c)[:, :12]), conditions()),
        "made.weight",
        "it scales and shifts other signals",
        lambda a: a.std == pytest.approx(MODULATION / math.sqrt(8)),
    ),
    "gates on branches without norms": Rule(
        lambda: scaled(0.3, 1),
        "1.gamma",
        lambda: scaled(0.3, 1, nn.LayerNorm(8)),
        "1.gamma",
        "gate",
        lambda a: a.scheme == "zeros",
    ),
}


def test_every_rule_of_the_table_is_tested():
    left_alone = {what for what, how, _ in TABLE if how == "left alone"}
    assert left_alone == {
        "what new values would make NaN or infinite, and its own do not",
        "weights that are all zero, under a bias with a pattern, and that bias",
        "table of points whose distances are hyperbolic (acosh, atanh)",
        "weights that are all zero, whose output is only joined with a signal from around them",
        "rotations of which more is computed, as the determinant",
        "LayerScale, other scales",
        "adapter beside frozen weights that is zero, if it is no low-rank pair",
        "codes that the signal is compared with (vector quantization)",
        "single numbers that the model's own code uses",
        "zeros and ones in front of a product with another signal",
        "biases of one number: −1 to −15 at outputs, ±1 to ±4 at gates, above zero under a root",
        "biases of one sign, of mean size 1 to 8, whose sigmoid or exponential multiplies a state; "
        "such ones at the gate of an LSTM or a GRU that keeps its state",
        "step sizes of state-space models",
        "what is added or looked up, with one number below −1000 among ordinary ones",
    }
    assert {what for what, _, _ in TABLE} == {*RULES, *left_alone}


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_decides_where_it_is_meant_to(name: str):
    rule = RULES[name]
    found = plan(*rule.model())[rule.parameter]
    assert rule.told in found.because
    assert rule.holds(found), found


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_leaves_alone_what_only_looks_so(name: str):
    rule = RULES[name]
    found = plan(*rule.other())
    if rule.lookalike in found.untouched:
        assert rule.told not in found.untouched[rule.lookalike]
        return
    other = found[rule.lookalike]
    assert rule.told not in other.because or not rule.holds(other), other


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: scaled(1e-6, 8), "1.gamma"),
        (lambda: scaled(0.1, 1, nn.LayerNorm(8)), "1.gamma"),
        (temperature, "scale"),
    ],
    ids=["layer-scale", "gate-of-a-normed-branch", "temperature"],
)
def test_scales_that_an_author_chose_are_left_alone(build, name: str):
    found = plan(*build())
    assert "author" in found.untouched[name]


class Routed(nn.Module):
    """A mixture of two experts behind a norm; the router's shares pass through a reshape."""

    def __init__(self, shares) -> None:
        super().__init__()
        self.norm, self.gate, self.shares = nn.LayerNorm(16), nn.Linear(16, 2), shares
        self.up, self.down = (nn.ModuleList(nn.Linear(16, 16) for _ in "ab") for _ in "ud")

    def forward(self, x):
        h = self.norm(x)
        shares = self.shares(self.gate(h))
        experts = zip(self.up, self.down, strict=True)
        mixed = [
            down(up(h).relu()) * shares[..., k : k + 1] for k, (up, down) in enumerate(experts)
        ]
        return x + sum(mixed[1:], mixed[0])


def normed(x):
    shares = x.sigmoid()
    return shares / shares.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("shares", "adders"),
    [(lambda x: x.softmax(-1), 2), (normed, 2), (torch.sigmoid, 4)],
    ids=["softmax", "normed-sigmoid", "sigmoid"],
)
def test_a_router_is_not_what_is_added_to_the_stream(shares, adders: int):
    """What it takes shares of that sum to one adds no more than one of them."""
    model = nn.Sequential(nn.Linear(8, 16), Routed(shares), Routed(shares), nn.Linear(16, 4))
    found = fanin.plan(model, torch.randn(32, 8))
    assert f"last layer of one of {adders}" in found["1.down.0.weight"].because
    assert "last layer" not in found["1.gate.weight"].because
    assert found["1.gate.weight"].std == pytest.approx(16**-0.5)


class TopFirst(nn.Module):
    """Four experts, two for each sample: top-k before the softmax (GPT-OSS, JetMoE)."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.norm, self.gate = flat, nn.LayerNorm(16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(blocks.mlp(16, 32, 16) for _ in range(4))
        self.shift = nn.Embedding(4, 16)

    def forward(self, x):
        h = self.norm(x)
        best, chosen = self.gate(h).topk(2)
        shares, out = best.softmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            share = shares.flatten()[row * 2 + place] if self.flat else shares[row, place]
            mixed = expert(h[row]) + self.shift(chosen[row, place])
            out = out.index_add(0, row, mixed * share[:, None])
        return x + out


@pytest.mark.parametrize("flat", [False, True])
def test_a_router_that_picks_before_its_softmax_is_not_what_is_added(flat: bool):
    model = nn.Sequential(nn.Linear(8, 16), TopFirst(flat), TopFirst(flat), nn.Linear(16, 4))
    found = fanin.plan(model, torch.randn(32, 8))
    assert "last layer of one of 2" in found["1.experts.0.2.weight"].because
    assert "last layer" not in found["1.gate.weight"].because
    assert found["1.gate.weight"].std == pytest.approx(16**-0.5)


class Mixture(nn.Module):
    """Four experts as people write them; two of them for each sample."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm, self.gate = way, nn.LayerNorm(16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(blocks.mlp(16, 32, 16) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        shares = self.gate(h).softmax(-1)
        top, chosen = shares.topk(2, -1)
        if self.way == "einsum":
            each = torch.stack([expert(h) for expert in self.experts], 1)
            return x + torch.einsum("be,bed->bd", shares, each)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            mixed = expert(h[row]) * top[row, place, None]
            if self.way == "index_add_":
                out.index_add_(0, row, mixed)
            else:
                out[row] += mixed
        return x + out


@pytest.mark.parametrize("way", ["einsum", "index_add_", "+="])
def test_experts_are_one_branch_however_they_are_summed(way: str):
    model = nn.Sequential(nn.Linear(8, 16), Mixture(way), Mixture(way), nn.Linear(16, 4))
    found = fanin.plan(model, torch.randn(64, 8))
    for block in (1, 2):
        assert found[f"{block}.gate.weight"].std == pytest.approx(16**-0.5)
        for number in range(4):
            last = found[f"{block}.experts.{number}.2.weight"]
            assert "last layer of one of 2" in last.because
            assert last.std == pytest.approx((2 / 32 / 2) ** 0.5, rel=0.02)


def test_a_branch_of_another_kind_is_no_residual_branch_without_norms():
    """Zeros at the end of a gate, a projection or a plain layer would be a fault."""
    for name in ("highway", "unet", "nerf", "siamese"):
        assert not any(
            a.scheme == "zeros" and len(a.shape) > 1 for a in planned(name).assignments
        ), name


@pytest.mark.parametrize("norm", ["none", "before", "after", "last"])
@pytest.mark.parametrize("of", [0, 1, 4])
@pytest.mark.parametrize("depth", [1, 2, 12])
@pytest.mark.parametrize("source", ["layer", "activation"])
def test_a_layer_in_a_branch_is_measured_against_what_was_planned(
    norm: str, of: int, depth: int, source: str
):
    """Also in a branch as long as a deep stretch, and where nothing is added to its stream."""
    model, batch = BARE()
    found = roles(reading(model, batch), model)
    role = next(r for r in found if r.parameter == "3.body.2.weight")
    assert role.branch is not None
    branch = replace(role.branch, norm=norm, of=of, depth=depth)
    role = replace(role, branch=branch, run=depth, input=replace(role.input, kind=source))
    for last, gated in itertools.product([False, True], repeat=2):
        here = replace(role, last=last, gated_branch=gated, activation="tanh", curve="tanh")
        chosen, base = auto(here, blueprint(found, meta=False)), keeps_scale(here)
        if not of:
            assert "branch" not in chosen.because
            continue
        wanted = 1.0
        if last and not gated and norm != "last":
            wanted = of**-0.5
        elif not last and not gated and norm == "none" and depth > 1:
            wanted = max(of ** (-1 / (2 * depth - 2)), bending("tanh", 1.0))
        assert target_size(here) == pytest.approx(wanted)
        assert chosen.gain == base.gain * target_size(here)


def test_the_scale_of_a_norm_that_adds_one_is_zero():
    model = nn.Sequential(nn.Linear(6, 8), HandNorm("rsqrt", 1.0), nn.Linear(8, 3))
    found = plan(model, torch.randn(16, 6))["1.scale"]
    assert (found.scheme, found.gain, found.std) == ("constant", 0.0, 0.0)


def test_a_head_of_several_parts_is_small_in_each():
    found = planned("nerf")
    for name in ("density.weight", "colour.2.weight"):
        assert "output layer" in found[name].because
        assert found[name].std < 0.6 * DEEP_HEAD


@pytest.mark.parametrize(
    ("act", "name"),
    [(nn.Tanh, "tanh"), (nn.SiLU, "silu"), (nn.Mish, "mish"), (nn.ELU, "elu"), (nn.SELU, "selu")],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_gain_is_that_of_the_activation(act, name: str):
    architecture = reading(*chain(4, act, 64)())
    found = decide(roles(architecture, chain(4, act, 64)()[0]))
    weight = next(a for a in found.assignments if a.parameter == "2.weight")
    assert weight.std == near(moments.gain(name) / 8)
    assert weight.fan == 64


def test_a_slope_is_part_of_the_gain():
    found = plan(*chain(4, lambda: nn.LeakyReLU(0.5), 128)())["2.weight"]
    assert found.arguments["negative_slope"] == 0.5
    assert found.std == pytest.approx(math.sqrt(2 / 1.25 / 128), rel=0.25)


@pytest.mark.parametrize(
    ("module", "gain"),
    [
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(-20.0, 20.0), "identity"),
        (nn.Softplus(beta=5.0), "softplus(5)"),
        (nn.Softshrink(0.1), "softshrink(0.1)"),
        (nn.Threshold(0.5, 0.0), "threshold(0.5, 0)"),
    ],
    ids=str,
)
def test_all_arguments_of_an_activation_are_part_of_the_gain(module: nn.Module, gain: str):
    found = plan(*chain(4, lambda: module, 64)())["2.weight"]
    seen = moments.moments(gain)
    of_interest = seen.variance if found.arguments.get("centred") else seen.second
    assert found.std == near(1 / math.sqrt(64 * of_interest))


def test_an_activation_that_passes_next_to_nothing_asks_for_no_huge_weights():
    found = plan(*chain(4, lambda: nn.Threshold(8.0, 0.0), 64)())["2.weight"]
    assert found.std == near(1 / 8)
    assert "next to nothing" in found.because


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.5, 2.0)])
def test_a_hardtanh_that_is_not_odd_gets_no_start_of_odd_ones(bounds: tuple[float, float]):
    odd, other = (
        plan(*chain(12, partial(nn.Hardtanh, *b), 64)())["4.weight"] for b in ((-1, 1), bounds)
    )
    assert "part by no more than" in odd.because
    assert "part by no more than" not in other.because


def test_the_biases_of_a_deep_residual_branch_are_those_of_its_weights():
    """In a branch the weights are in no mirrored pairs, and no more are the biases."""
    body = [m for _ in range(10) for m in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Linear(16, 16), Residual(nn.Sequential(*body)), nn.Linear(16, 4))
    found = plan(model, torch.randn(32, 16))
    assert {a.scheme for a in found if a.parameter.endswith("bias")} == {"zeros"}


def test_the_fan_of_a_transposed_convolution_is_divided_by_its_stride():
    model = nn.Sequential(nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))
    found = plan(model, torch.randn(4, 16, 6, 6))["0.weight"]
    assert (found.fan, found.std) == (16 * 16 / 4, near(1 / 8))


def test_packed_matrices_and_gates_are_planned_one_by_one():
    assert planned("language-model-tied")["blocks.0.mixer.qkv.weight"].blocks == 3
    assert planned("gru-classifier")["rnn.weight_hh_l1_reverse"].blocks == 3


def test_the_row_of_padding_is_zero_and_said():
    found = plan(*looked_up(padding=3))["0.weight"]
    assert found.arguments["padding"] == 3
    assert "row 3 is padding" in found.because


# ── published recipes, against their formulas ────────────────────────────────────────────────


def encoder_weights(found: Plan, part: str) -> list[Assignment]:
    return [a for a in found if part in a.parameter and a.parameter.endswith("weight")]


def test_residual_scaling_is_gpt2s():
    found = planned("language-model-12-layers", "residual_scaling")
    for a in found:
        last = a.parameter.endswith(("proj.weight", "mlp.2.weight"))
        if len(a.shape) > 1:
            assert a.std == near(0.02 / math.sqrt(24) if last else 0.02), a
    other = planned("language-model-12-layers", "gpt2", layers=3, base=0.1)
    assert other["blocks.7.mixer.proj.weight"].std == near(0.1 / math.sqrt(6))
    scheme = fanin.schemes["residual_scaling"]
    assert other["blocks.7.mlp.2.weight"].std == near(scheme.std(layers=3, base=0.1))


def test_small_init_is_two_over_five_widths():
    found = planned("language-model-tied", "small_init")
    std = fanin.schemes["small_init"].std(32)
    assert [a.std for a in found if len(a.shape) > 1] == [near(std)] * 10


def test_depthwise_scaling_counts_the_blocks():
    scheme = fanin.schemes["depthwise_trunc_normal"]
    found = planned("language-model-12-layers", "depthwise_trunc_normal")
    for block in range(12):
        for name, fan in (("mixer.proj", 32), ("mlp.2", 128)):
            a = found[f"blocks.{block}.{name}.weight"]
            assert a.std == near(scheme.std(fan, layer=block)), a
        assert found[f"blocks.{block}.mlp.0.weight"].std == near(32**-0.5)
    assert found["tokens.weight"].std == near(32**-0.5)
    assert found["tokens.weight"].arguments["high"] == 3.0


@pytest.mark.parametrize(
    ("activation", "least"),
    [(nn.ReLU, 0.0), (nn.LeakyReLU, 0.0), (nn.GELU, 0.73), (nn.Tanh, 0.9), (nn.Softsign, 0.84)],
)
@pytest.mark.parametrize("count", [1, 4, 100])
def test_no_branch_gets_so_small_a_signal_that_its_activation_is_a_line(
    activation: type[nn.Module], least: float, count: int
):
    """Fixup is for relu, which has one shape at all scales."""
    model, batch = stream(count, line, activation, line)()
    found = plan(model.to("meta"), batch.to("meta"))["1.body.0.weight"]
    assert found.std == pytest.approx(max(count**-0.5, least) / math.sqrt(8), rel=0.02)
    name = activation.__name__.lower()
    assert (f"would leave {name} next to linear" in found.because) == (count**-0.5 < least)


@pytest.mark.parametrize(("curve", "straight"), [("tanh", 0.2), ("elu", 0.2), ("gelu", 0.1)])
def test_what_a_signal_may_be_multiplied_with_keeps_most_of_the_bend(curve: str, straight: float):
    """The share of variance that no line through the signal gives, by quadrature."""

    def bent(size: float) -> float:
        shape = lambda z: moments.function(curve)(size * z)  # noqa: E731
        mean, square = (moments.expectation(f) for f in (shape, lambda z: shape(z) ** 2))
        line = moments.expectation(lambda z: z * shape(z))
        return 1 - line**2 / (square - mean**2)

    assert 0.7 < bent(bending(curve, 1.0)) / bent(1.0) < 0.9
    assert bent(straight) / bent(1.0) < 0.2
    assert bending("relu", 1.0) == bending("0.5 * z", 1.0) == bending(None, 1.0) == 0.0


def test_fixup_scales_by_branches_and_layers():
    found = plan(*stream(9, line, nn.ReLU, line, nn.ReLU, line)(), "fixup")
    scheme = fanin.schemes["fixup"]
    inner, middle, last = (found[f"5.body.{i}.weight"] for i in (0, 2, 4))
    assert middle.std == near(scheme.std(8, branches=9, layers=3))
    assert inner.std == near(scheme.std(8, branches=9, layers=3) / math.sqrt(2))  # no relu before
    assert last.std == 0
    assert found["19.weight"].std == 0
    told = plan(*stream(9, line, nn.ReLU, line)(), "fixup", branches=4, layers=5)
    assert told["5.body.0.weight"].gain == near(4 ** (-1 / 8))


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
def test_every_block_starts_as_the_identity(scheme: str):
    found = plan(*scaled(1.0, 1), scheme)
    assert found["1.gamma"].std == 0
    assert found["1.body.2.weight"].std > 0
    bare = plan(*BARE(), scheme)
    assert bare["3.body.2.weight"].std == 0
    assert bare["3.body.0.weight"].std == near(8**-0.5)
    model, batch = BARE()
    bare.apply_(model)
    hidden = model[0](batch)
    torch.testing.assert_close(model[:-1](batch), hidden)


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Separate(8, 2, eager), mlp(8, 16, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


def test_deepnorm_and_t_fixup_scale_values_outputs_and_feed_forward():
    model = nn.Sequential(nn.Embedding(20, 8), *(PostNorm() for _ in range(5)), nn.Linear(8, 3))
    batch = torch.randint(0, 20, (4, 6))
    for scheme, options, factor in (
        ("deepnorm", {}, (8 * 5) ** -0.25),
        ("deepnorm", {"layers": 3, "part": "decoder"}, (12 * 3) ** -0.25),
        (
            "deepnorm",
            {"layers": 3, "part": "encoder", "decoder_layers": 4},
            0.87 * (81 * 4) ** (-1 / 16),
        ),
        ("t_fixup", {}, 0.67 * 5**-0.25),
        ("t_fixup", {"layers": 4, "part": "decoder"}, (9 * 4) ** -0.25),
    ):
        found = plan(model, batch, scheme, **options)
        given = {"layers": 5, **options}
        if scheme == "deepnorm" and options.get("part") != "encoder":
            given.pop("decoder_layers", None)
        for block in range(1, 6):
            weights = {n: found[f"{block}.attention.{n}.weight"] for n in "abcd"}
            assert [weights[n].std * 8**0.5 for n in "ab"] == [near(1), near(1)]
            assert [weights[n].std * 8**0.5 for n in "cd"] == [near(factor), near(factor)]
            up = found[f"{block}.mlp.0.weight"]
            assert up.std == near(fanin.schemes[scheme].std((8, 16), **given)), (scheme, options)
            assert up.std == near(factor * math.sqrt(2 / 24))
        if scheme == "t_fixup":
            assert found["0.weight"].std == near(factor * 8**-0.5)


def test_mup_and_spectral_go_by_the_fans():
    model, batch = mlp(10, 32, 8, 4), torch.randn(16, 10)
    found = plan(model, batch, "mup")
    stds = [found[f"{i}.weight"].std for i in (0, 2, 4)]
    assert stds == [near(10**-0.5), near(32**-0.5), near(1 / 8)]
    found = plan(model, batch, "spectral")
    scheme = fanin.schemes["spectral"]
    for i, sizes in ((0, (10, 32)), (2, (32, 8)), (4, (8, 4))):
        assert found[f"{i}.weight"].std == near(scheme.std(sizes))
    assert planned("language-model-untied", "mup")["tokens.weight"].std == 1.0


def test_recurrent_layers_are_orthogonal_in_each_gate():
    found = planned("lstm-classifier", "recurrent", forget_bias=2.0)
    hidden, weight = found["rnn.weight_hh_l0"], found["rnn.weight_ih_l0"]
    assert (hidden.scheme, hidden.blocks) == ("orthogonal", 4)
    assert weight.std == near(math.sqrt(2 / (16 + 24)))
    assert found["rnn.bias_ih_l0"].arguments["value"] == 2.0
    assert found["rnn.bias_hh_l0"].std == 0
    irnn = planned("rnn-classifier", "irnn")
    assert irnn["rnn.weight_hh_l0"].scheme == "irnn"
    assert irnn["rnn.weight_ih_l0"].std == near(0.001)


def test_lora_touches_adapters_alone():
    model, batch = blocks.LoRA(nn.Linear(12, 10)), torch.randn(16, 12)
    found = plan(model, batch, "lora")
    assert (found["A"].std, found["B"].std) == (near(math.sqrt(1 / 36)), 0.0)
    assert set(found.untouched) == {"base.weight", "base.bias"}
    assert found["A"].std == near(fanin.schemes["lora"].std(12))


def test_siren_knows_the_first_layer():
    found = plan(*sines(1.0)(), "siren", omega=20.0)
    scheme = fanin.schemes["siren"]
    assert found["0.weight"].std == near(scheme.std(8, omega=20.0, first=True))
    assert found["2.weight"].std == near(scheme.std(8, omega=20.0))


def test_looks_linear_mirrors_hidden_layers():
    found = plan(*chain(4, nn.ReLU)(), "looks_linear")
    sides = [dict(found[f"{i}.weight"].options) for i in (0, 2, 4, 6)]
    assert [(s["first"], s["last"]) for s in sides] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
    ]


def test_mimetic_attention_pairs_query_with_key_and_value_with_output():
    model = nn.Sequential(nn.LayerNorm(24), Separate(24, 3, eager), nn.Linear(24, 2))
    found = plan(model, torch.randn(2, 5, 24), "mimetic")
    parts = {n: dict(found[f"1.{n}.weight"].options) for n in "abcd"}
    assert [parts[n]["part"] for n in "abcd"] == list("qkvo")
    assert [parts[n]["partner"] for n in "abcd"] == [f"1.{n}.weight" for n in "aacc"]
    assert {parts[n]["heads"] for n in "abcd"} == {3}


def test_mimetic_attention_needs_partners_of_one_size():
    """Grouped keys, widths of their own, adapters: these keep their scale instead."""
    for name in ("attention-scaled-dot-product", "multihead-attention", "lora"):
        found = planned(name, "mimetic")
        for a in found:
            if a.scheme == "mimetic":
                assert a.arguments["part"] in ("v", "o", "qkv"), (name, a)


def test_every_published_policy_is_tested_here():
    tested = (
        "residual_scaling small_init depthwise_trunc_normal fixup skipinit rezero deepnorm t_fixup "
        "mup spectral recurrent irnn lora siren looks_linear mimetic"
    )
    assert set(PUBLISHED) == set(tested.split())


@pytest.mark.parametrize(
    "scheme",
    ["he_normal", "xavier_uniform", "lecun_trunc_normal", "orthogonal", "sparse", "normal"],
)
def test_a_scheme_for_one_tensor_goes_to_every_weight_and_the_rest_is_conventional(scheme: str):
    found = planned("mlp-batch-norm", scheme, gain=0.5)
    weights = [a for a in found if len(a.shape) == 2]
    assert {a.scheme for a in weights} == {scheme}
    assert {a.gain for a in weights} == {0.5}
    assert {a.std for a in found if a.parameter.endswith("bias")} == {0.0}
    assert found["1.weight"].std == 1.0


def test_kernels_alone_are_filled_by_schemes_for_kernels():
    found = planned("cnn-relu", "dirac")
    assert {a.scheme for a in found if len(a.shape) == 4} == {"dirac"}
    assert found["8.weight"].scheme != "dirac"


# ── every healthy model ──────────────────────────────────────────────────────────────────────


def reads_well(sentence: str) -> None:
    """A reason is one line without broken words, and ends without a period."""
    assert sentence.strip() == sentence != ""
    assert not sentence.endswith((".", ";", ",", ":"))
    assert sentence.isprintable()
    for broken in ("  ", " ;", " ,", "None", "nan", "inf ", "()", "{", "}", "; ;", "torch.scale"):
        assert broken not in sentence, sentence
    assert not re.search(r"torch\.(shift|scale|select|token|clamp|attention)\b", sentence), sentence
    assert sentence.count("(") == sentence.count(")")
    assert not re.search(r"\d\.\d{7}", sentence), sentence  # a number to its last digit
    many = "branches|layers|gates|experts|heads|entries|blocks"
    assert not re.search(rf"\b1 (\w+ )?({many})\b", sentence), sentence
    assert not re.search(r"one of 1\b|√1\b|each of (the|its) 1\b", sentence), sentence
    assert re.match(r"[a-z√×q]|[A-Zμ][\w-]*[:'’\s~=]|W504 ", sentence), sentence


def state(model: nn.Module) -> list[tuple[str, bytes]]:
    """What a plan could disturb: bits, gradients, modes, hooks, the random state."""

    def bits(tensor: Tensor | None) -> bytes:
        if tensor is None:
            return b""
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    named = [*model.named_parameters(), *model.named_buffers()]
    seen = [(name, bits(t) + bits(t.grad) + bytes([t.requires_grad])) for name, t in named]
    for name, m in model.named_modules():
        hooks = len(m._forward_pre_hooks), len(m._forward_hooks), len(m._backward_hooks)
        seen.append((name, bytes([m.training, *hooks])))
    return [*seen, ("torch", bits(torch.get_rng_state()))]


@parametrize(QUICK)
def test_a_plan_covers_a_model_is_a_recipe_and_leaves_no_trace(case: Case):
    if case.needs:
        pytest.importorskip(case.needs)
    model, batch, _ = case.build()
    for number, parameter in enumerate(model.parameters()):
        if number % 3 == 0 and parameter.is_leaf:
            parameter.grad = torch.full_like(parameter, float(number))
    before = state(model)
    found = plan(model, batch)
    assert [name for name, _ in set(state(model)) ^ set(before)] == []
    names = [name for name, _ in model.named_parameters()]
    planned = {a.parameter for a in found}
    assert [n for n in names if n in planned] == [a.parameter for a in found]
    assert planned | set(found.untouched) == set(names)
    assert not found.check(model)
    for a in found:
        reads_well(a.because)
        assert math.isfinite(a.std)
    for reason in found.untouched.values():
        reads_well(reason)
    read = Plan.from_toml(found.to_toml())
    assert read == found
    assert list(read.untouched) == list(found.untouched)
    assert not found.diff(read)


SOME = [
    "mlp-batch-norm",
    "vae",
    "resnet-basic",
    "weight-norm-old",
    "weight-norm",
    "spectral-norm",
    "lstm-packed",
    "unet",
    "lstm-cells",
    "language-model-tied",
    "transformer-encoder",
    "lora",
    "siren",
    "experts-routed",
]


@pytest.mark.parametrize("name", SOME)
def test_model_batch_and_process_are_left_to_the_last_bit(name: str):
    model, batch, _ = BY_NAME[name].build()
    with unchanged(model, batch):
        found = plan(model, batch)
    assert str(found).strip()
    json.dumps(found.to_dict())


@pytest.mark.parametrize("scheme", ["he_normal", "orthogonal", "mup", "small_init", "spectral"])
@pytest.mark.parametrize(
    "name", ["language-model-tied", "unet", "lstm-classifier", "transformer", "weight-norm"]
)
def test_other_schemes_are_recipes_too_and_read_well(name: str, scheme: str):
    found = planned(name, scheme)
    for reason in (*(a.because for a in found), *found.untouched.values()):
        reads_well(reason)
    assert Plan.from_toml(found.to_toml()) == found


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "deepnorm", "t_fixup", "residual_scaling"])
@pytest.mark.parametrize("count", [1, 2])
def test_reasons_read_well_for_one_branch_and_for_several(scheme: str, count: int):
    for first in ((), (lambda: nn.LayerNorm(8),)):
        build = stream(count, *first, line, nn.ReLU, line)
        for chosen in (scheme, "auto"):
            for a in plan(*build(), chosen):
                reads_well(a.because)


# ── learned inputs ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_learned_input_has_the_variance_that_layers_expect(device):
    found = plan(Prefix().to(device), torch.randn(12, 6, 16))
    assert not found.untouched
    assert (found["prefix"].scheme, found["prefix"].std) == ("normal", 1.0)
    assert "learned input" in found["prefix"].because
    assert "its input is learned" in found["grow.0.weight"].because
    assert found["grow.0.weight"].std == pytest.approx(8**-0.5)
    assert found["first"].scheme == "zeros"


def test_what_else_is_computed_of_a_learned_input_is_left_with_that_reason():
    class Net(Prefix):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            made = self.grow(self.norm(self.prefix)).expand(len(x), -1, -1)
            return self.head(torch.cat([made, x], 1).mean(1))

    told = plan(Net(), torch.randn(12, 6, 16)).untouched
    assert told["norm.weight"].startswith("the input of a layer is computed from it")
    assert "no call that was watched on this batch reads it" in told["first"]


def test_a_bias_that_is_multiplied_is_left_and_told_as_a_bias():
    class Slow(nn.Linear):  # an equalized learning rate of the mapping network in StyleGAN
        def forward(self, x):
            return nn.functional.linear(x, self.weight * 0.01, self.bias * 0.01)

    told = plan(nn.Sequential(Slow(6, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(4, 6)).untouched
    assert told["0.bias"].startswith("the bias of a layer is computed from it")


# ── tables ───────────────────────────────────────────────────────────────────────────────────


class Fields(nn.Module):
    """A factorization machine beside an MLP (DeepFM), or the MLP alone."""

    def __init__(self, products):
        super().__init__()
        self.products, self.table, self.weights = products, nn.Embedding(40, 8), nn.Embedding(40, 1)
        self.net = mlp(32, 16, 1)

    def forward(self, x):
        rows = self.table(x)
        out = self.net(rows.flatten(1))
        if not self.products:
            return out
        pairs = (rows.sum(1) ** 2 - (rows**2).sum(1)).sum(1, keepdim=True) / 2
        return out + pairs + self.weights(x).sum(1)


def test_rows_that_are_multiplied_into_the_output_are_small():
    torch.manual_seed(0)
    model, batch = Fields(True), torch.randint(40, (128, 4))
    found = init_(model, batch)
    assert [found[n].std for n in ("table.weight", "weights.weight")] == [DIRECT_STD] * 2
    logits = model(batch).detach()
    assert float(F.binary_cross_entropy_with_logits(logits, (logits < 0).float())) < 0.8
    assert "past every layer" in found["table.weight"].because
    alone = plan(Fields(False), batch)["table.weight"]
    assert alone.std == READ_STD
    assert "past every layer" not in alone.because


@pytest.mark.parametrize("end", [nn.Linear(8, 3), nn.Conv1d(6, 3, 1), nn.GRU(8, 8)])
def test_rows_that_every_layer_of_a_stream_adds_to_have_unit_size(end):
    model = nn.Sequential(nn.Embedding(20, 8), Residual(*square()), end)
    assert plan(model, torch.randint(20, (5, 6)))["0.weight"].std == 1.0


# ── hypernetworks ────────────────────────────────────────────────────────────────────────────


class TwoMade(nn.Module):
    """Two layers whose weights are made, relu between them."""

    def __init__(self):
        super().__init__()
        self.code = nn.Sequential(nn.Linear(4, 64), nn.ReLU())
        self.first, self.second = nn.Linear(64, 40 * 10), nn.Linear(64, 5 * 40)

    def forward(self, z, x):
        code = self.code(z)
        h = torch.bmm(self.first(code).view(-1, 40, 10), x[:, :, None]).relu()
        return torch.bmm(self.second(code).view(-1, 5, 40), h)


def test_generated_weights_start_like_any_other():
    """Chang et al. 2020: the variance of what is made is 1/fan_in, 2/fan_in behind relu.

    The made output layer is small, as any other: the loss starts at that of guessing.
    """
    model, batch = TwoMade(), (torch.randn(256, 4), torch.randn(256, 10))
    init_(model, batch)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    code = model.code(batch[0])
    assert float(model.first(code).std()) == pytest.approx(10**-0.5, rel=0.3)
    assert float(model.second(code).std()) == pytest.approx(0.05 * (2 / 40) ** 0.5, rel=0.3)
    assert float(model(*batch).std()) == pytest.approx(0.05, rel=0.4)


class Mixed(nn.Module):
    """A convolution whose kernel is a mixture, of its own for each picture (CondConv)."""

    def __init__(self, how: str, shares) -> None:
        super().__init__()
        self.how, self.shares, self.router = how, shares, nn.Linear(8, 4)
        self.kernels = nn.Parameter(torch.randn(4, 16, 8, 3, 3))

    def forward(self, x):
        shares = self.shares(self.router(x.mean((2, 3))))
        if self.how == "einsum":
            made = torch.einsum("nk,koihw->noihw", shares, self.kernels)
        else:
            made = (shares @ self.kernels.flatten(1)).view(-1, 16, 8, 3, 3)
        count, _, *size = x.shape
        out = F.conv2d(x.reshape(1, -1, *size), made.flatten(0, 1), padding=1, groups=count)
        return out.view(count, 16, *size)


@pytest.mark.parametrize("how", ["einsum", "matmul"])
@pytest.mark.parametrize("shares", [torch.sigmoid, lambda z: z.softmax(-1)], ids=["own", "softmax"])
def test_mixed_kernels_have_the_fan_of_the_convolution(how: str, shares):
    torch.manual_seed(0)
    front, back = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 5, 3)
    model = nn.Sequential(front, nn.ReLU(), Mixed(how, shares), nn.ReLU(), back)
    images = torch.randn(16, 3, 8, 8)
    init_(model, images)
    assert 0.7 < float(model[:3](images).detach().std()) < 1.4


def test_a_made_matrix_that_makes_the_output_is_an_output_layer():
    """A rotation of points: the last layer's output times the input is what the model returns."""

    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = nn.Sequential(nn.Flatten(), nn.Linear(60, 32), nn.ReLU(), nn.Linear(32, 9))

        def forward(self, points):
            return torch.bmm(points, self.made(points).view(-1, 3, 3))

    model, points = Turning(), torch.randn(64, 20, 3)
    found = init_(model, points)
    assert "output layer" in found["made.3.weight"].because
    assert float(model(points).detach().std()) == pytest.approx(0.05, rel=0.4)


def test_a_made_matrix_whose_product_is_normalized_keeps_the_scale():
    """Its size changes nothing of the output, so there is nothing to make small."""

    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = nn.Sequential(nn.Flatten(), nn.Linear(60, 32), nn.ReLU(), nn.Linear(32, 9))

        def forward(self, points):
            return 5 * F.normalize(torch.bmm(points, self.made(points).view(-1, 3, 3)), dim=-1)

    found = plan(Turning(), torch.randn(64, 20, 3))
    assert "output layer" not in found["made.3.weight"].because


# ── tables whose rows reach the output ───────────────────────────────────────────────────────


class Rows(nn.Module):
    """A layer reads the rows of a table, and what `beside` makes of them is returned too."""

    def __init__(self, beside):
        super().__init__()
        self.beside, self.table = beside, nn.Embedding(20, 16)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, index):
        rows = self.table(index)
        return self.beside(self.layers(rows), rows)


@pytest.mark.parametrize(
    ("beside", "size", "direct"),
    [
        (lambda y, rows: y + (rows[:, :8] * rows[:, 8:]).sum(-1, keepdim=True), DIRECT_STD, True),
        (lambda y, rows: (y, rows.flatten(1)), READ_STD, False),
        (lambda y, rows: y, READ_STD, False),
        (lambda y, rows: y * rows.mean(1, keepdim=True).exp(), DIRECT_STD, True),
        (lambda y, rows: (y, rows.pow(2).mean()), 1.0, False),
        (lambda y, rows: y.square().mean() + rows.pow(2).mean(), 1.0, False),
    ],
    ids=["product", "returned", "read", "taken", "penalty", "penalty-in-the-loss"],
)
def test_the_layer_that_reads_a_table_knows_its_size(beside, size: float, direct: bool):
    model = Rows(beside).to("meta")
    found = fanin.plan(model, torch.arange(20, device="meta"))
    assert found["table.weight"].std == size
    assert ("past every layer" in found["table.weight"].because) == direct
    assert found["layers.0.weight"].std == pytest.approx(0.25 / size)


class Crossed(nn.Module):
    """Rows of several tables that are multiplied with one another before layers read them."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.tables = how, nn.ModuleList(nn.Embedding(20, 8) for _ in range(4))
        self.cross = nn.Linear(32, 32)
        width = {"products": 16, "squares": 8, "cross": 32, "pairs": 16}[how]
        self.top = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, index):
        rows = torch.stack([t(index[:, i]) for i, t in enumerate(self.tables)], 1)
        if self.how == "products":  # DLRM
            return self.top((rows @ rows.mT).flatten(1))
        if self.how == "squares":  # neural factorization machine
            return self.top((rows.sum(1).pow(2) - rows.pow(2).sum(1)) / 2)
        flat = rows.flatten(1)
        if self.how == "cross":  # DCN
            return self.top(flat * self.cross(flat) + flat)
        return self.top(torch.cat([rows[:, 0] * rows[:, 1], rows[:, 2]], 1))


@pytest.mark.parametrize("how", ["products", "squares", "cross", "pairs"])
def test_rows_that_are_multiplied_before_layers_read_them_start_small(how: str):
    found = fanin.plan(Crossed(how), torch.randint(0, 20, (64, 4)))
    assert {found[f"tables.{i}.weight"].std for i in range(3)} == {0.1}


# ── what is left as it is ────────────────────────────────────────────────────────────────────


class Odd(nn.Module):
    """One parameter of each kind that is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.odd = nn.Parameter(torch.ones(8))
        self.made = nn.Parameter(torch.randn(8, 8) * 0.1)
        self.held = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
        self.empty = nn.Parameter(torch.ones(0))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.wave = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, x):
        h = self.held(self.frozen(self.inlet(x)))
        h = F.linear(torch.atan2(h, self.odd), self.made.tanh() - self.made.mean())
        h = h + (self.wave * 0).real + self.empty.sum()
        return self.head(h) * self.temperature


def test_what_is_left_as_it_is_has_its_reason():
    found = plan(Odd(), torch.randn(16, 6))
    told = found.untouched
    assert {*told} == {
        *("unused", "odd", "made", "empty", "temperature", "wave"),
        *("frozen.weight", "frozen.bias", "held.parametrizations.weight.original"),
    }
    assert "requires_grad=False" in told["frozen.weight"]
    assert "no call that was watched on this batch reads it" in told["unused"]
    assert "atan2" in told["odd"]
    assert "computed" in told["made"]
    assert told["held.parametrizations.weight.original"].startswith("W504")
    assert "orthogonal" in told["held.parametrizations.weight.original"].lower()
    assert "empty" in told["empty"]
    assert "author" in told["temperature"]
    assert "complex64" in told["wave"]
    for reason in told.values():
        reads_well(reason)


class Halved(torch.autograd.Function):
    """The half of a signal and of a parameter."""

    @staticmethod
    def forward(ctx, x, w):
        return x / 2 + w / 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2, gradient.sum(0) / 2


class Hidden(nn.Module):
    """A parameter whose call torch shows nobody."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inlet, self.head, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function
        self.odd = nn.Parameter(torch.ones(8))

    def forward(self, x):
        h = self.inlet(x)
        with torch._C.DisableTorchFunction():
            made = self.function(h, self.odd)
        return self.head(made)


@pytest.mark.parametrize(
    ("function", "name"),
    [(torch.logaddexp2, "torch.logaddexp2"), (Halved.apply, "Halved (a function of its own)")],
)
def test_what_is_seen_by_its_derivative_alone_has_the_name_that_users_know(function, name: str):
    told = plan(Hidden(function), torch.randn(16, 6)).untouched["odd"]
    assert told == f"its role is not known: it is used in {name}"


def test_frozen_parameters_are_planned_when_asked():
    model, batch, _ = BY_NAME["frozen-backbone"].build()
    assert plan(model, batch).untouched
    found = plan(model, batch, frozen=True)
    assert not found.untouched
    assert found["backbone.stem.0.weight"].std > 0


def test_a_model_of_tables_alone_has_the_fan_of_a_one_hot_input():
    table = nn.Embedding(1000, 64)
    found = fanin.init_(table, torch.arange(1000), "lecun_normal")["weight"]
    assert (found.fan, found.std) == (1, 1)
    assert float(table.weight.detach().var()) == pytest.approx(1, rel=0.02)
    assert plan(*looked_up(), "lecun_normal")["0.weight"].std < 1  # layers that read it are scaled


def test_weight_norm_plans_the_length_of_a_row():
    found = planned("weight-norm")
    direction = found["0.parametrizations.weight.original1"]
    magnitude = found["0.parametrizations.weight.original0"]
    assert magnitude.std == near(direction.std * math.sqrt(4 * 3))
    assert magnitude.shape == (16, 1, 1)


# ── nothing else decides ─────────────────────────────────────────────────────────────────────


class Noisy(nn.Module):
    """Draws from every generator in its forward."""

    def __init__(self):
        super().__init__()
        self.net = mlp(6, 16, 16, 3)

    def forward(self, x):
        import random

        more = float(np.random.rand()) + random.random()
        return self.net((x + torch.randn_like(x)) * more * 5)


def test_the_random_state_decides_nothing():
    model, batch = Noisy(), torch.randn(16, 6)
    first = plan(model, batch)
    for _ in range(2):
        torch.rand(3), np.random.rand(3)
        assert plan(model, batch) == first


def test_the_values_that_are_there_decide_nothing():
    model, batch, _ = BY_NAME["vgg"].build()
    first = plan(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert plan(model, batch) == first


def test_modes_around_the_plan_decide_nothing():
    model, batch, _ = BY_NAME["mlp-batch-norm"].build()
    first = plan(model, batch)
    with torch.no_grad(), unchanged(model, batch):
        assert plan(model, batch) == first
    with torch.inference_mode(), unchanged(model, batch):
        assert plan(model, batch) == first
    torch.set_default_dtype(torch.float64)
    try:
        assert plan(model, batch) == first
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_forward_that_takes_gradients_itself_is_planned():
    model, batch, _ = BY_NAME["functional-call-inside-the-forward"].build()
    with unchanged(model, batch):
        assert plan(model, batch)["net.0.weight"].std > 0


def test_a_graph_that_was_there_can_still_be_walked():
    model, batch = mlp(6, 16, 16, 3), torch.randn(16, 6)
    loss = model(batch).square().mean()
    plan(model, batch)
    loss.backward()
    assert model[0].weight.grad is not None


def test_hooks_see_the_model_and_stay():
    model, batch = mlp(6, 16, 16, 3), torch.randn(16, 6)
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model[2].register_full_backward_hook(lambda *_: None)
    with unchanged(model, batch):
        plan(model, batch)
    assert seen


META = [
    "language-model-tied",
    "language-model-untied",
    "attention-by-einsum",
    "transformer-encoder-pre-norm",
    "mlp-mixer",
    "gpt2",
    "llama",
    "attention-scaled-dot-product",
]


def on_meta(case: Case) -> tuple[nn.Module, Any]:
    """The model made without memory (moving one there unties its parameters), the batch as ever."""
    with torch.device("meta"):
        model = case.build()[0]
    return model, case.build()[1]


@pytest.mark.parametrize("name", META)
def test_a_plan_on_meta_is_that_on_real_memory_where_nothing_is_measured(name: str):
    case = BY_NAME[name]
    pytest.importorskip(case.needs or "torch")
    real, meta = plan(*case.build()[:2]), plan(*on_meta(case))
    told = [a.parameter for a in real if "measured" in a.because]
    assert meta.untouched == real.untouched
    assert len(told) < len(real) / 4
    assert [a for a in meta if a.parameter not in told] == [
        a for a in real if a.parameter not in told
    ]


@pytest.mark.parametrize("name", META)
def test_closed_forms_are_the_same_on_meta_to_the_bit(name: str):
    case = BY_NAME[name]
    pytest.importorskip(case.needs or "torch")
    (model, batch, _), (empty, same) = case.build(), on_meta(case)
    recipe = decide(roles(reading(model, batch), model))
    assert decide(roles(reading(empty, same), empty), meta=True) == recipe
    assert plan(empty, same) == Plan.of(recipe)


def test_on_meta_what_could_be_left_as_it_is_gets_a_value():
    model, batch = scaled(1e-6, 8, nn.LayerNorm(8))
    assert "1.gamma" in plan(model, batch).untouched
    found = plan(model.to("meta"), batch)
    assert found["1.gamma"].std == 0.1  # CaiT, for so few branches
    assert plan(temperature()[0].to("meta"), torch.randn(4, 6))["scale"].std == 1.0


# ── measured scales ──────────────────────────────────────────────────────────────────────────


def outputs(model: nn.Module, batch: Any, names: list[str]) -> dict[str, Tensor]:
    """Output of each named module."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, out: found.setdefault(name, out.detach())

    hooks = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("size", [1e-3, 1.0, 200.0])
def test_data_of_any_size_gives_signals_of_unit_size(size: float):
    model, batch = mlp(6, 64, 64, 64, 3), torch.randn(256, 6) * size
    found = init_(model, batch)
    for name, out in outputs(model, batch, ["0", "2", "4", "6"]).items():
        wanted = HEAD_GAIN if name == "6" else 1.0
        assert float(out.square().mean().sqrt()) == pytest.approx(wanted, rel=0.26), name
    assert ("measured" in found["0.weight"].because) is (size != 1.0)


def test_what_was_measured_is_part_of_the_plan_and_its_reason():
    model, batch = mlp(6, 32, 3), torch.randn(64, 6) * 50
    found = plan(model, batch)
    assert re.search(r"× 0\.\d+, measured on the batch$", found["0.weight"].because)
    assert found["0.weight"].std == near(found["0.weight"].gain / math.sqrt(6))
    assert Plan.from_toml(found.to_toml()) == found


# ── the plan as a value ──────────────────────────────────────────────────────────────────────


def test_a_plan_is_iterated_looked_up_and_printed():
    model, batch = mlp(6, 16, 3), torch.randn(16, 6)
    model[2].bias.requires_grad_(False)
    found = plan(model, batch)
    assert len(found) == len(list(found)) == 3
    assert [a.parameter for a in found] == ["0.weight", "0.bias", "2.weight"]
    assert "0.weight" in found
    assert "2.bias" not in found
    assert "nothing" not in found
    assert found["0.weight"] is found.assignments[0]
    with pytest.raises(KeyError, match="left as it is: frozen"):
        found["2.bias"]
    with pytest.raises(KeyError, match="not in this plan"):
        found["3.weight"]
    assert repr(found) == "<fanin.Plan: auto, 3 parameters>"
    text = str(found)
    for part in ("0.weight", "lecun_normal", "2.bias", "frozen", "left as they are"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_plan_is_plain_data():
    found = planned("lstm-classifier")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["schema_version"] == 1
    assert data["scheme"] == "auto"
    assert [row["parameter"] for row in data["assignments"]] == [a.parameter for a in found]
    assert data["untouched"] == dict(found.untouched)
    assert found.to_json() == json.dumps(data, indent=2)
    assert found.to_json(None) == json.dumps(data)


def test_a_number_of_a_plan_that_is_not_finite_is_a_string():
    odd = Assignment("w", "uniform", 1.0, math.nan, math.inf, "", arguments={"low": -math.inf})
    (row,) = json.loads(Plan((odd,)).to_json())["assignments"]
    assert (row["std"], row["fan"], row["arguments"]) == ("nan", "inf", {"low": "-inf"})


def test_repeated_blocks_are_one_row_of_the_table():
    text = str(planned("language-model-12-layers"))
    assert text.count("blocks.{0..11}.mixer.qkv.weight") == 1
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_is_refused(value: float):
    model, batch = mlp(6, 16, 3), torch.randn(8, 6)
    batch[3, 2] = value
    with unchanged(model, batch), pytest.raises(BatchError, match="input 0 holds 1 NaN or inf"):
        plan(model, batch)


class HandLSTM(nn.Module):
    def __init__(self, inputs: int = 6, hidden: int = 15) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(inputs, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        h = c = torch.zeros(len(x), self.h.in_features)
        for step in x.unbind(1):
            i, f, g, o = (self.x(step) + self.h(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


def test_gates_written_by_hand_are_drawn_one_by_one():
    model, batch = HandLSTM(), torch.randn(8, 12, 6)
    found = init_(model, batch)
    assert (found["h.weight"].scheme, found["h.weight"].blocks) == ("orthogonal", 4)
    for gate in model.h.weight.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(15))
    assert "silu" not in found["head.weight"].because


def test_a_weight_that_is_encoder_and_output_layer_keeps_its_size():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(50, 20)

        def forward(self, x):
            return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.T)

    found = plan(Tied(), torch.randn(64, 50))
    assert "output layer" not in found["encoder.weight"].because


def test_matrices_that_an_index_picks_are_left_and_said():
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(4, 6, 5))
            self.router, self.head = nn.Linear(6, 4), nn.Linear(5, 3)

        def forward(self, x):
            best = self.router(x).argmax(-1)
            return self.head(torch.einsum("bi,bio->bo", x, self.experts[best]))

    assert "picked" in plan(Picked(), torch.randn(8, 6)).untouched["experts"]


def test_hostile_names_are_shown_and_written():
    model, batch, _ = next(c for c in HEALTHY if c.name == "mlp-relu-2").build()
    model = nn.Sequential(model)
    inner = model._modules.pop("0")
    model._modules["[red]größe\n\x1b[31m"] = inner
    found = plan(model, batch)
    assert "\x1b[31m" not in str(found)
    assert Plan.from_toml(found.to_toml()) == found


def test_a_difference_names_what_changed():
    model, batch = mlp(6, 16, 3), torch.randn(64, 6)
    one, two = plan(model, batch, "he_normal"), plan(model, batch, "he_normal", gain=0.5)
    assert {change.parameter for change in one.diff(two).changed} == {"0.weight", "2.weight"}
    assert {change.field for change in one.diff(two).changed} == {"gain", "std"}


def test_a_plan_is_held_against_a_model():
    found = plan(mlp(6, 16, 3), torch.randn(64, 6))
    assert not found.check(mlp(6, 16, 3))
    wrong = {m.parameter: m.kind for m in found.check(mlp(6, 17, 3, bias=False))}
    assert wrong == {
        "0.weight": "shape",
        "2.weight": "shape",
        "0.bias": "extra",
        "2.bias": "extra",
    }


def test_plan_of_a_recipe_is_a_plan():
    found = plan(mlp(6, 16, 3), torch.randn(64, 6))
    recipe = Recipe(found.assignments, found.untouched, found.scheme)
    assert Plan.of(recipe) == found
    assert isinstance(Plan.of(recipe), Plan)


# ── bad input ────────────────────────────────────────────────────────────────────────────────


MODEL_BATCH = (mlp(6, 16, 3), torch.randn(16, 6))


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("hee_normal", {}, ["hee_normal", "he_normal"]),
        ("zzzz", {}, ["zzzz"]),
        (None, {}, ["None"]),
        ("he_normal", {"gain": math.nan}, ["gain", "nan"]),
        ("he_normal", {"gain": math.inf}, ["gain", "inf"]),
        ("he_normal", {"gain": -1.0}, ["gain", "-1"]),
        ("he_normal", {"gain": "big"}, ["gain", "big"]),
        ("auto", {"gain": 2.0}, ["gain", "auto"]),
        ("auto", {"gain": math.nan}, ["gain", "nan"]),
        ("he_normal", {"slope": 0.1}, ["slope", "negative_slope"]),
        ("he_normal", {"negative_slope": math.nan}, ["negative_slope"]),
        ("auto", {"layers": 3}, ["layers", "auto"]),
        ("residual_scaling", {"layers": 0}, ["layers", "0"]),
        ("residual_scaling", {"layers": 2.5}, ["layers", "2.5"]),
        ("residual_scaling", {"base": -1.0}, ["base", "-1"]),
        ("deepnorm", {"part": "middle"}, ["part", "middle"]),
        ("fixup", {}, ["fixup", "residual"]),
        ("deepnorm", {}, ["deepnorm", "residual"]),
        ("lora", {}, ["lora", "low-rank"]),
        ("mimetic", {}, ["mimetic", "attention"]),
        ("recurrent", {}, ["recurrent"]),
        ("irnn", {}, ["irnn"]),
        ("dirac", {}, ["dirac", "kernel"]),
        ("icnr", {}, ["icnr"]),
        ("forget_gate_bias", {}, ["forget_gate_bias", "LSTM"]),
        ("prior_bias", {}, ["priors"]),
        ("he_normal", {"seed": -1}, ["seed", "-1"]),
        ("he_normal", {"seed": 2**64}, ["seed"]),
        ("he_normal", {"seed": 1.5}, ["seed", "1.5"]),
        ("he_normal", {"seed": True}, ["seed", "True"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("do", [plan, init_], ids=["plan", "init"])
def test_a_bad_argument_is_one_clear_line_and_changes_nothing(do, scheme, options, words):
    model, batch = MODEL_BATCH
    with unchanged(model, batch), pytest.raises(ArgumentError) as caught:
        do(model, batch, scheme, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@parametrize([c for c in BAD if not c.slow])
def test_what_cannot_be_checked_is_planned_or_refused_in_one_line_and_left_alone(case: Case):
    if case.needs:
        pytest.importorskip(case.needs)
    model, batch, _ = case.build()
    refusal = ""
    with unchanged(model, batch):
        try:
            plan(model, batch)
        except FaninError as error:
            refusal = str(error)
    assert "\n" not in refusal.strip()
    if refusal:
        with unchanged(model, batch), pytest.raises(FaninError):
            init_(model, batch)


def test_priors_for_another_number_of_classes_are_refused_and_nothing_changes():
    model, batch = MODEL_BATCH
    with unchanged(model, batch), pytest.raises(ArgumentError, match="priors: 2 given"):
        init_(model, batch, "prior_bias", priors=(1, 1))


def test_what_is_no_model_or_has_nothing_to_plan_is_refused():
    with pytest.raises(ArgumentError, match="model: function"):
        plan(lambda x: x, torch.randn(4))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no parameters"):
        plan(nn.ReLU(), torch.randn(4))
    with pytest.raises(ModelError, match="lazy"):
        plan(nn.LazyLinear(3), torch.randn(4, 5))


def test_schemes_that_measure_need_values():
    model, batch = mlp(6, 16, 3).to("meta"), torch.randn(16, 6)
    for scheme in ("lsuv", "within_layer"):
        with pytest.raises(ModelError, match="meta"):
            plan(model, batch, scheme)


# ── random networks ──────────────────────────────────────────────────────────────────────────

FEW = settings(
    max_examples=36,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
ANY = st.sampled_from(["auto", "auto", "he_normal", "orthogonal", "lsuv", "within_layer", "mup"])


def bits(model: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in model.parameters()]


@FEW
@given(networks(), ANY, st.integers(0, 2**64 - 1))
def test_any_network_is_planned_started_and_checked_and_twice_the_same(network, scheme, seed):
    model, batch, loss = network
    with unchanged(model, batch):
        found = plan(model, batch, scheme, seed=seed)
    assert Plan.from_toml(found.to_toml()) == found
    for a in found:
        reads_well(a.because)
    assert init_(model, batch, scheme, seed=seed) == found
    first = bits(model)
    for a in found:
        assert bool(torch.isfinite(model.get_parameter(a.parameter)).all())
    assert plan(model, batch, scheme, seed=seed) == found
    found.apply_(model, seed)
    assert bits(model) == first
    report = fanin.check(model, batch, loss)
    widths = [p.shape[0] for p in model.parameters()]
    trains = all(p.requires_grad for p in model.parameters())
    if scheme == "auto" and trains and min(widths) >= 3:  # a thin layer may be all dead
        assert report.ok, report


# ── numbers that an author chose ─────────────────────────────────────────────────────────────


class Numbers(nn.Module):
    """Single numbers that a model's own code uses, beside those of layers with one channel."""

    ADDED = ("shift", "joined", "filled", "least", "score")

    def __init__(self, shape: tuple[int, ...] = ()):
        super().__init__()
        self.body, self.one, self.norm = nn.Linear(8, 16), nn.Linear(16, 1), nn.LayerNorm(1)
        for name in (*self.ADDED, "cosine"):
            self.register_parameter(name, nn.Parameter(torch.full(shape, -10.0)))

    def forward(self, x):
        h = self.body(x)
        joined = torch.cat([h, self.joined.expand(len(x), 1)], 1)
        cosines = F.normalize(h, dim=1) * self.cosine
        filled = torch.where(h > 0, h, self.filled)
        shares = (h + self.score).softmax(-1)
        least = torch.maximum(h, self.least)
        return h @ h.T + self.shift, joined, cosines, filled, shares, least, self.norm(self.one(h))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_single_number_that_an_author_chose_is_left_alone(shape: tuple[int, ...]):
    model = Numbers(shape)
    found = init_(model, torch.randn(32, 8))
    for name in (*Numbers.ADDED, "cosine"):
        assert found.untouched[name] == "a single number whose value the model's author chose"
        assert model.get_parameter(name).item() == -10.0
    layers = ("one.bias", "norm.weight", "norm.bias")
    assert [found[name].scheme for name in layers] == ["zeros", "ones", "zeros"]


def test_a_single_number_without_a_value_starts_where_it_changes_nothing():
    found = plan(Numbers().to("meta"), torch.randn(32, 8))
    assert {found[name].scheme for name in Numbers.ADDED} == {"zeros"}
    assert found["cosine"].scheme == "ones"


def test_a_number_that_only_the_loss_reads_is_not_called_unused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = nn.Linear(8, 4), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.body(x), self.scale

    told = plan(Net(), torch.randn(32, 8)).untouched["scale"]
    assert told == "no call that was watched on this batch reads it, so its role is not known"


# ── frozen copies ────────────────────────────────────────────────────────────────────────────


class Taught(nn.Module):
    """A student beside its frozen copy, as MoCo, BYOL and the target network of Q-learning."""

    def __init__(self):
        super().__init__()
        self.student = mlp(8, 16, 4)
        nn.init.zeros_(self.student[2].bias)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.other = nn.Linear(8, 16).requires_grad_(False)

    def forward(self, x):
        return self.student(x) - self.teacher(x), self.other(x)


def test_a_frozen_copy_of_what_is_drawn_is_told_to_be_copied_again():
    torch.manual_seed(0)
    model, batch = Taught(), torch.randn(32, 8)
    told = plan(model, batch).untouched
    frozen = "frozen (requires_grad=False)"
    for name in ("0.weight", "0.bias", "2.weight"):
        again = f", and a copy of student.{name}, which is drawn anew: copy it again"
        assert told[f"teacher.{name}"] == frozen + again
    for name in ("teacher.2.bias", "other.weight", "other.bias"):  # zeros are no copy
        assert told[name] == frozen
    assert init_(model, batch).untouched == told


def test_copies_without_values_are_only_frozen():
    told = plan(Taught().to("meta"), torch.randn(32, 8)).untouched
    assert set(told.values()) == {"frozen (requires_grad=False)"}


# ── offsets that are meant ───────────────────────────────────────────────────────────────────


class Gated(nn.Module):
    """A highway layer: what passes is weighed by a gate with an offset of its own."""

    def __init__(self, offset: float, act=torch.sigmoid) -> None:
        super().__init__()
        self.first, self.gate, self.body = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head, self.act = nn.Linear(16, 3), act
        nn.init.constant_(self.gate.bias, offset)

    def forward(self, x):
        x = self.first(x).tanh()
        gate = self.act(self.gate(x))
        return self.head(gate * self.body(x).tanh() + (1 - gate) * x)


@pytest.mark.parametrize("offset", [-2.0, 1.0, -3.0])
def test_the_offset_of_a_gate_stays(offset: float):
    model = Gated(offset)
    found = init_(model, torch.randn(32, 6))
    assert "a gate that starts" in found.untouched["gate.bias"]
    assert (model.gate.bias == offset).all()


@pytest.mark.parametrize(("offset", "stays"), [(-4.595, True), (-1.2, True), (-40.0, False)])
def test_the_prior_of_a_rare_class_stays(offset: float, stays: bool):
    model, batch = chain(3, nn.ReLU)()
    nn.init.constant_(model[-1].bias, offset)
    assert ("4.bias" in plan(model, batch).untouched) == stays


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: Gated(-20.0), "gate.bias"),
        (lambda: Gated(0.0), "gate.bias"),
        (lambda: Gated(0.1), "gate.bias"),
        (lambda: Gated(-2.0, act=torch.relu), "gate.bias"),
        (lambda: Gated(-2.0), "head.bias"),
    ],
    ids=["shut", "none", "small", "hidden-units", "drawn"],
)
def test_other_offsets_start_at_zero(build, name: str):
    assert plan(build(), torch.randn(32, 6))[name].scheme == "zeros"


@pytest.mark.parametrize("root", [True, False])
def test_what_keeps_a_root_from_zero_stays(root: bool):
    """Divisive normalization: with zero, each number would be divided by its own size."""

    class Divisive(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            self.beta, self.gamma = nn.Parameter(torch.ones(8)), nn.Parameter(0.1 * torch.eye(8))

        def forward(self, x):
            h = self.first(x)
            size = F.linear(h**2, self.gamma.clamp_min(0), self.beta)
            return self.head(h * size.rsqrt() if root else h + size)

    assert ("beta" in plan(Divisive(), torch.randn(32, 6)).untouched) == root


@pytest.mark.parametrize("layers", [False, True])
def test_points_of_a_hyperbolic_space_stay(layers: bool):
    """Those that a layer reads before are no points."""

    class Ball(nn.Module):
        def __init__(self):
            super().__init__()
            self.points, self.layer = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, a, b):
            a, b = self.points(a), self.points(b)
            a, b = (self.layer(a), self.layer(b)) if layers else (a, b)
            return torch.acosh((1 + (a - b).square().sum(-1)).clamp_min(1 + 1e-6))

    index = torch.arange(20)
    found = plan(Ball(), (index, index.flip(0)))
    assert ("points.weight" in found.untouched) != layers


@pytest.mark.parametrize("bags_of", ["words", "zeros", "words, in front of the output layer"])
def test_rows_that_few_samples_pick_start_small_where_layers_make_up_for_it(bags_of: str):
    model, batch = bags(5)()
    if bags_of == "zeros":
        batch = torch.zeros_like(batch)
    elif bags_of != "words":
        del model[2:4]
    found = init_(model, batch)
    small = "mostly zeros" in found["0.weight"].because
    assert small == (bags_of == "words")
    if small:
        first, second = model[0](batch).detach(), model[:3](batch).detach()
        assert float(first.square().mean().sqrt()) == pytest.approx(READ_STD, rel=0.3)
        assert float(second.square().mean().sqrt()) == pytest.approx(1.0, rel=0.3)


def test_sparse_data_in_an_object_is_seen():
    model, batch = bags(5)()
    whole = Lambda(lambda graph: model(graph.x))
    whole.model = model
    found = plan(whole, SimpleNamespace(edges=torch.ones(2, 9), x=batch))
    assert "mostly zeros" in found["model.0.weight"].because


class Graph(nn.Module):
    """Two layers of a graph attention: a layer scores what another one makes, and it is mixed."""

    def __init__(self):
        super().__init__()
        self.first, self.score = nn.Linear(12, 8), nn.Linear(8, 2)
        self.last, self.last_score = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x):
        for layer, score in ((self.first, self.score), (self.last, self.last_score)):
            x = layer(x)
            to, of = score(x).unbind(1)
            x = F.elu(F.leaky_relu(to[:, None] + of[None]).softmax(1) @ x)
        return x


def test_the_values_that_their_own_scores_mix_are_the_output():
    found = plan(Graph(), torch.randn(20, 12))
    assert "output layer" in found["last.weight"].because
    assert "output layer" not in found["first.weight"].because


class Coupling(nn.Module):
    """Half of the signal is scaled and shifted by what a network makes of the other (Glow)."""

    def __init__(self, bent=False, around=True, drawn=True):
        super().__init__()
        self.bent, self.around = bent, around
        self.turn, self.net = nn.Parameter(torch.linalg.qr(torch.randn(8, 8))[0]), mlp(4, 16, 8)
        self.gain, self.head = nn.Parameter(torch.zeros(8)), nn.Linear(8, 3)
        nn.init.zeros_(self.net[-1].weight)
        if not drawn:
            nn.init.zeros_(self.net[0].weight)

    def forward(self, x):
        kept, moved = (x @ self.turn).chunk(2, 1)
        made = self.net(kept) * self.gain.exp()
        scale, shift = (made.relu() if self.bent else made).chunk(2, 1)
        if not self.around:
            moved = kept = torch.zeros_like(moved)
        moved = (moved + shift) * (scale + 2).sigmoid()
        return self.head(torch.cat([kept, moved], 1)) + torch.linalg.slogdet(self.turn)[1]


@pytest.mark.parametrize(
    ("options", "stays"),
    [({}, True), ({"bent": True}, False), ({"around": False}, False), ({"drawn": False}, False)],
    ids=["coupling", "bent", "alone", "over-another-zero"],
)
def test_zeros_that_let_another_signal_pass_stay(options: dict[str, bool], stays: bool):
    found = plan(Coupling(**options), torch.randn(32, 8))
    told = found.untouched.get("net.2.weight", "")
    assert ("passes as it is" in told) == stays


def test_a_rotation_whose_determinant_is_taken_stays():
    model, batch = Coupling(), torch.randn(32, 8)
    assert "rotation" in plan(model, batch).untouched["turn"]
    model.turn.data.mul_(1.1)
    assert "turn" in plan(model, batch)


def turned(bias: Tensor, weight: float = 0.0) -> tuple[nn.Module, Any]:
    """Points that a matrix turns, which a layer makes of them all (PointNet's small network)."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.maker, self.head = mlp(3, 16), nn.Linear(16, 9), mlp(3, 16, 4)

        def forward(self, x):
            return self.head(x @ self.maker(self.first(x).relu().amax(1)).view(-1, 3, 3))

    model = Turned()
    nn.init.normal_(model.maker.weight, std=weight)
    model.maker.bias.data.copy_(bias)
    return model, torch.randn(16, 9, 3)


def test_a_transform_that_changes_nothing_at_first_stays():
    model, batch = turned(torch.eye(3).flatten())
    found = init_(model, batch)
    assert "zero by design" in found.untouched["maker.weight"]
    assert "pattern" in found.untouched["maker.bias"]
    assert torch.equal(model.maker.bias.view(3, 3), torch.eye(3))
    assert not model.maker.weight.count_nonzero()


@pytest.mark.parametrize(
    ("bias", "weight"),
    [
        (torch.linspace(-0.3, 0.4, 9), 0.0),
        (torch.full((9,), 0.5), 0.0),
        (torch.eye(3).view(9) / 2, 0.1),
    ],
    ids=["no pattern", "one number", "weights"],
)
def test_zero_weights_and_patterns_of_other_kinds_are_drawn(bias: Tensor, weight: float):
    found = plan(*turned(bias, weight))
    assert found["maker.weight"].std > 0
    assert found["maker.bias"].std == 0


class Streams(nn.Module):
    """Two streams that a layer mixes by numbers of its own, and writes back to (Zhu 2024)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.dynamic = nn.LayerNorm(width), nn.LayerNorm(width)
        self.body = mlp(width, 2 * width, width)
        self.mix = nn.Parameter(torch.tensor([[1.0, 1, 0], [0, 0, 1]]))
        self.back = nn.Parameter(torch.ones(2))
        self.mixing, self.giving = (nn.Linear(width, n, bias=False) for n in (3, 1))

    def forward(self, h):
        x = self.dynamic(h)
        mix = 0.01 * self.mixing(x).tanh() + self.mix
        back = 0.01 * self.giving(x).tanh() + self.back[:, None]
        mixed = mix.transpose(-1, -2) @ h
        return self.body(self.norm(mixed[..., 0, :]))[..., None, :] * back + mixed[..., 1:, :]


class HyperConnected(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 1)
        self.blocks = nn.Sequential(*(Streams(16) for _ in range(4)))

    def forward(self, x):
        return self.head(self.blocks(self.first(x)[:, None].expand(-1, 2, -1)).sum(1))


def test_what_mixes_streams_by_an_identity_stays():
    model, batch = HyperConnected(), torch.randn(64, 8)
    found = init_(model, batch)
    told = {n.rpartition(".")[2]: why for n, why in found.untouched.items()}
    assert told == {
        "mix": "zeros and ones of its author: they scale another signal",
        "back": "ones of its author: they scale another signal",
    }
    assert fanin.check(model, batch, lambda o: o.square().mean()).ok


class Film(nn.Module):
    """Scales and shifts made of a condition; ones stand at the scales, or before a sigmoid."""

    def __init__(self, act: nn.Module, place: str):
        super().__init__()
        self.body, self.maker, self.head = nn.Linear(10, 24), nn.Linear(6, 48), nn.Linear(24, 4)
        self.act = act
        with torch.no_grad():
            self.get_parameter(place).zero_()[:4].fill_(1.0)

    def forward(self, x, condition):
        scale, shift = self.act(self.maker(condition)).chunk(2, -1)
        return self.head((scale * self.body(x) + shift).relu())


@pytest.mark.parametrize(
    ("act", "place", "kept"),
    [
        (nn.Identity(), "maker.bias", ["maker.bias"]),
        (nn.Identity(), "head.bias", []),  # nothing is multiplied with it
        (nn.Sigmoid(), "maker.bias", []),  # a gate is told by one number
    ],
)
def test_ones_at_scales_that_are_made_of_a_condition_stay(act: nn.Module, place: str, kept: list):
    found = plan(Film(act, place), (torch.randn(32, 10), torch.randn(32, 6)))
    assert list(found.untouched) == kept


def test_zeros_under_a_pattern_that_a_nonlinearity_follows_are_a_layer_that_nobody_drew():
    model = mlp(6, 16, 16, 3)
    nn.init.zeros_(model[2].weight)
    model[2].bias.data.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).repeat(4))
    assert plan(model, torch.randn(32, 6))["2.weight"].std > 0


def test_zeros_under_the_offsets_of_gates_are_a_layer_that_nobody_drew():
    """Of a cell written by hand, whose sum with what the state gives is cut before its gates."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.given, self.state, self.head = nn.Linear(6, 32), nn.Linear(8, 32), nn.Linear(8, 3)
            nn.init.zeros_(self.given.weight)
            self.given.bias.data = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(8)

        def forward(self, x):
            state = memory = x.new_zeros(len(x), 8)
            for step in x.unbind(1):
                i, f, g, o = (self.given(step) + self.state(state)).chunk(4, -1)
                memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
                state = o.sigmoid() * memory.tanh()
            return self.head(state)

    assert plan(Cell(), torch.randn(32, 4, 6))["given.weight"].std > 0


class Remembers(nn.Module):
    """A state that decays by what a function makes of some offsets, channel by channel."""

    def __init__(self, decay, offsets, weights: float = 1.0) -> None:
        super().__init__()
        self.read, self.rate, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.rate.weight.data *= weights
        self.rate.bias.data = torch.as_tensor(offsets).expand(16).clone()
        self.decay = decay

    def forward(self, x):
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            state = self.decay(self.rate(step)) * state + self.read(step)
        return self.head(state)


RAMP = torch.linspace(3, 6, 16)
DECAYS = {
    "sigmoid": (torch.sigmoid, RAMP),
    "update": (lambda x: 1 - torch.sigmoid(x), -RAMP),
    "rwkv": (lambda x: torch.exp(-torch.exp(x)), torch.linspace(-6.5, -1.5, 16)),
    "griffin": (lambda x: torch.exp(-F.softplus(x)), -RAMP),
    "gla": (lambda x: torch.exp(F.logsigmoid(x) / 16), RAMP),
}


@pytest.mark.parametrize("name", sorted(DECAYS))
@pytest.mark.parametrize("weights", [1.0, 0.0], ids=["drawn", "zero"])
def test_how_long_each_channel_remembers_stays(name: str, weights: float):
    found = plan(Remembers(*DECAYS[name], weights), torch.randn(8, 5, 6))
    assert "how long each channel remembers" in found.untouched["rate.bias"]
    assert ("rate.weight" in found.untouched) == (weights == 0.0)


@pytest.mark.parametrize(
    ("decay", "offsets"),
    [
        (torch.sigmoid, 2 * torch.randn(16)),  # of both signs: a draw
        (torch.sigmoid, torch.rand(16)),  # small
        (torch.sigmoid, -20 - torch.rand(16)),  # shut
        (torch.sigmoid, 6.0),  # one number
        (torch.relu, RAMP),  # hidden units
        (lambda x: x.tanh().exp(), RAMP),
    ],
    ids=["both-signs", "small", "shut", "one-number", "hidden-units", "bent-before"],
)
def test_other_offsets_of_a_state_start_at_zero(decay, offsets):
    found = plan(Remembers(decay, offsets), torch.randn(8, 5, 6))
    assert found["rate.bias"].scheme == "zeros"


def test_a_spread_of_offsets_that_no_product_follows_starts_at_zero():
    model = mlp(6, 16, 16, 3, act=nn.Sigmoid)
    model[2].bias.data = RAMP.clone()
    assert plan(model, torch.randn(32, 6))["2.bias"].scheme == "zeros"


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU], ids=["lstm", "gru"])
def test_chrono_initialization_of_a_recurrent_layer_stays(layer):
    """Tallec and Ollivier 2018: log U(1, T) at the gate that keeps the state."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = layer(6, 16, 2, batch_first=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.body(x)[0][:, -1])

    model = Net()
    for name, bias in model.body.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(bias)
    spread = (torch.rand(16) * 48 + 1).log() + 0.1
    model.body.bias_ih_l1.data[16:32] = spread
    found = init_(model, torch.randn(8, 5, 6))
    told = {n for n, why in found.untouched.items() if "how long each channel" in why}
    assert told == {"body.bias_ih_l1", "body.bias_hh_l1"}
    assert torch.equal(model.body.bias_ih_l1[16:32], spread)


def test_complex_biases_are_left_alone():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8, dtype=torch.cfloat), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.body(x.to(torch.cfloat)).abs())

    assert "complex64" in plan(Spectral(), torch.randn(16, 6)).untouched["body.bias"]


def test_a_scheme_that_was_asked_for_asks_no_author():
    found = plan(Gated(-2.0), torch.randn(32, 6), "he_normal")
    assert found["gate.bias"].scheme == "zeros"


# ── rows in a stream ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (Words, (1.0, 1.0, 1.0)),
        (partial(Words, factor=4.0), (0.25, 1.0, 1.0)),
        (partial(Words, tied=True), (0.3 / 4, 0.02, 0.02)),
        (partial(Words, norm=lambda _: nn.Identity()), (1.0, 0.02, 0.02)),
        (lambda: Words(read=nn.Linear(16, 16)), (0.02, 0.02, 1.0)),
    ],
    ids=["stream", "factor", "tied", "no-norms", "read-by-a-layer"],
)
def test_rows_that_norms_read_first_have_unit_size(build, sizes: tuple[float, ...]):
    found = plan(build(), torch.randint(0, 20, (8, 9)))
    names = ("table.weight", "places", "start")
    assert tuple(found[n].std for n in names) == pytest.approx(sizes)


# ── scales and shifts of a condition ─────────────────────────────────────────────────────────


MODULATES = {
    "film": film,
    "scales-of-one-and-it": lambda m, x, c: x * (m.made(c)[:, :12] + 1),
    "added-back": lambda m, x, c: x + x * m.made(c)[:, :12],
    "normed": lambda m, x, c: film(m, F.layer_norm(x, (12,)), c),
    "gate-of-a-branch": lambda m, x, c: x + m.made(c)[:, :12] * m.body(x),
    "in-place": lambda m, x, c: x.mul(m.made(c)[:, :12].add_(1.0)),
}


@pytest.mark.parametrize("name", sorted(MODULATES))
def test_what_scales_and_shifts_by_a_condition_starts_small(name: str):
    found = plan(Conditioned(MODULATES[name]), conditions())
    assert "it scales and shifts other signals" in found["made.weight"].because
    assert found["made.weight"].std == pytest.approx(MODULATION / math.sqrt(8), rel=0.2)


@pytest.mark.parametrize(
    "used",
    [
        lambda m, x, c: x * m.made(c)[:, :12],  # zero would leave nothing of x
        lambda m, x, c: x + m.made(c)[:, :12],  # another reading that is added
        lambda m, x, c: x * (1 + m.made(c)[:, :12].tanh()),  # bent
        lambda m, x, c: x * (1 + m.made(c)[:, :12]) + m.body(m.made(c)[:, 12:]),  # read on
        lambda m, x, c: x * m.made(c)[:, :12].sigmoid(),
        lambda m, x, c: m.made(c)[:, :12],
        lambda m, x, c: x * (2 + m.made(c)[:, :12]),
    ],
    ids=["product", "sum", "bent", "read-on", "sigmoid", "signal", "two"],
)
def test_what_only_looks_like_a_modulation_keeps_its_scale(used):
    found = plan(Conditioned(used), conditions())
    assert "scales and shifts" not in found["made.weight"].because


class AdaptiveBlock(nn.Module):
    """A block of a diffusion transformer: scales, shifts and gates are made of a condition."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.mixer, self.made = blocks.Attention(width, 2), nn.Linear(width, 6 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 48), nn.GELU(), nn.Dropout(0.1), nn.Linear(48, width)
        )

    def forward(self, x, condition):
        parts = self.made(F.silu(condition))[:, None].chunk(6, -1)
        size = x.shape[-1:]
        x = x + parts[0] * self.mixer(F.layer_norm(x, size) * (1 + parts[1]) + parts[2])
        return x + parts[3] * self.mlp(F.layer_norm(x, size) * (1 + parts[4]) + parts[5])


def test_the_gates_of_adaptive_norms_are_no_layers_that_add_to_the_stream():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.time = nn.Linear(10, 24), mlp(8, 24, 24, act=nn.SiLU)
            self.blocks = nn.ModuleList(AdaptiveBlock() for _ in range(3))
            self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

        def forward(self, x, time):
            x, condition = self.read(x), self.time(time)
            for block in self.blocks:
                x = block(x, condition)
            return self.head(self.norm(x))

    found = plan(Transformer(), (torch.randn(8, 5, 10), torch.randn(8, 8)))
    for i in range(3):
        assert "it scales and shifts" in found[f"blocks.{i}.made.weight"].because
        for last in ("mixer.proj", "mlp.3"):
            because = found[f"blocks.{i}.{last}.weight"].because
            assert "one of 6 residual branches: × 1/√6" in because
        assert "without norms" not in found[f"blocks.{i}.mixer.qkv.weight"].because


# ── parameters that refuse torch's functions ─────────────────────────────────────────────────


class Shy(nn.Parameter):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("requires_grad_", "__get__", "__set__"):
            return super().__torch_function__(function, types, args, kwargs or {})
        raise TypeError("use .tensor instead")


@pytest.mark.parametrize("verb", [plan, fanin.check])
def test_a_parameter_that_refuses_torch_functions_is_named(verb):
    model = nn.Linear(3, 2, bias=False)
    model.weight = Shy(torch.randn(2, 3))
    with pytest.raises(ModelError, match=r"'weight' \(Shy\) refuses torch's functions"):
        verb(model, torch.randn(4, 3))
