"""What holds for any network, tried on random ones."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import nn
from zoo import blocks, seeded
from zoo.checks import unchanged

import fanin

FEW = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "none": nn.Identity,
}


# ── random networks over [samples, tokens, width] ────────────────────────────────────────────


class Convolution(nn.Module):
    """Over the tokens."""

    def __init__(self, n: int, m: int, size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n, m, size, padding=size // 2, groups=groups)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class ChannelNorm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], n: int, m: int) -> None:
        super().__init__()
        self.rnn = kind(n, m, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def part(kind: str, n: int, m: int, act: str) -> tuple[list[nn.Module], int]:
    """Modules that take width `n`, and the width they give."""
    activation = ACTIVATIONS[act]
    match kind:
        case "linear":
            return [nn.Linear(n, m), activation()], m
        case "bare":
            return [nn.Linear(n, m, bias=False), activation()], m
        case "convolution":
            return [Convolution(n, m, 3, 1), activation()], m
        case "depthwise":
            return [Convolution(n, n, 3, n), activation()], n
        case "residual":
            return [blocks.Residual(nn.Linear(n, m), activation(), nn.Linear(m, n))], n
        case "scaled":
            return [blocks.Scaled(nn.Linear(n, m), activation(), nn.Linear(m, n))], n
        case "attention":
            return [blocks.Residual(nn.LayerNorm(n), blocks.Attention(n, 1))], n
        case "heads":
            return [nn.Linear(n, 2 * m), blocks.EinsumAttention(2 * m, 2)], 2 * m
        case "multihead":
            layer = nn.TransformerEncoderLayer(n, 1, m, dropout=0.0, batch_first=True)
            return [layer], n
        case "gru":
            return [Recurrent(nn.GRU, n, m)], m
        case "lstm":
            return [Recurrent(nn.LSTM, n, m)], m
        case "shared":
            cell = nn.Sequential(nn.Linear(n, n), activation())
            return [cell, cell, cell], n
        case "layer-norm":
            return [nn.LayerNorm(n)], n
        case "batch-norm":
            return [ChannelNorm(n)], n
        case "dropout":
            return [nn.Dropout(0.3)], n
    raise AssertionError(kind)


KINDS = [
    "linear",
    "bare",
    "convolution",
    "depthwise",
    "residual",
    "scaled",
    "attention",
    "heads",
    "multihead",
    "gru",
    "lstm",
    "shared",
    "layer-norm",
    "batch-norm",
    "dropout",
]


def change(model: nn.Module, start: str, victim: int) -> None:
    """Spoils the start: all of it, or one parameter."""
    parameters = list(model.parameters())
    one = parameters[victim % len(parameters)]
    with torch.no_grad():
        match start:
            case "zeros":
                for parameter in parameters:
                    parameter.zero_()
            case "constant":
                for parameter in parameters:
                    parameter.fill_(0.1)
            case "one-zero":
                one.zero_()
            case "one-constant":
                one.fill_(0.3)
            case "one-huge":
                one.mul_(1e6)
            case "one-nan":
                one.view(-1)[0] = float("nan")
            case "one-frozen":
                one.requires_grad_(len(parameters) == 1)


STARTS = [
    "default",
    "default",
    "zeros",
    "constant",
    "one-zero",
    "one-constant",
    "one-huge",
    "one-nan",
    "one-frozen",
]


@st.composite
def networks(draw: st.DrawFn, starts: list[str] = STARTS) -> tuple[nn.Module, Any, Any]:
    """(model, batch, loss): a random stack, at a random start, on a random batch."""
    seed = draw(st.integers(0, 2**16))
    sizes = st.integers(1, 7)
    width, outputs = draw(sizes), draw(sizes)
    specification = draw(
        st.lists(
            st.tuples(st.sampled_from(KINDS), sizes, st.sampled_from(sorted(ACTIVATIONS))),
            max_size=5,
        )
    )
    samples, tokens = draw(st.integers(2, 9)), draw(st.integers(1, 5))
    goal = draw(st.sampled_from(["none", "classes", "values"]))
    start, victim = draw(st.sampled_from(starts)), draw(st.integers(0, 99))
    evaluating, functional = draw(st.booleans()), draw(st.booleans())
    with seeded(seed):
        modules, n = [], width
        for kind, m, act in specification:
            more, n = part(kind, n, m, act)
            modules += more
        pool = (
            blocks.Lambda(lambda x: x.mean(1)) if functional else blocks.Lambda(lambda x: x[:, -1])
        )
        model = nn.Sequential(*modules, pool, nn.Linear(n, outputs))
        change(model, start, victim)
        batch = torch.randn(samples, tokens, width)
        loss = {
            "none": lambda: None,
            "classes": lambda: blocks.classify(samples, outputs),
            "values": lambda: blocks.regress(samples, outputs),
        }[goal]()
    return model.train(not evaluating), batch, loss


def told(report: fanin.Report) -> dict[str, Any]:
    """The report, less the one field that a clock decides."""
    return {key: value for key, value in report.to_dict().items() if key != "seconds"}


@FEW
@given(networks(), st.integers(0, 2**32))
def test_a_check_never_crashes_never_changes_the_model_and_repeats_itself(network, seed):
    model, batch, loss = network
    with unchanged(model, batch):
        first = fanin.check(model, batch, loss, seed=seed)
    second = fanin.check(model, batch, loss, seed=seed)
    assert told(first) == told(second)
    assert str(first).strip()
    assert json.loads(first.to_json())["seed"] == seed
    assert first.ok is not any(finding.severity == "error" for finding in first.findings)


@FEW
@given(networks(starts=["default", "zeros", "one-zero", "one-constant"]))
def test_every_name_in_a_report_is_one_of_the_model(network):
    model, batch, loss = network
    report = fanin.check(model, batch, loss)
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for layer in report.layers:
        assert layer.name in modules | parameters
        assert set(layer.parameters) <= parameters
        if layer.units is not None and layer.distinct_units is not None:
            assert 0 <= layer.distinct_units <= layer.units
    for finding in report.findings:
        assert {finding.layer, *finding.layers} <= modules | parameters
    for found in report.symmetry.classes:
        assert found.layer in modules | parameters
        assert len(set(found.units)) == len(found.units) >= (1 if found.kind == "mirrored" else 2)
    seen = {name for layer in report.layers for name in layer.parameters}
    seen |= {name for name, _ in report.unnamed}
    tied = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {tied[id(model.get_parameter(name))] for name in seen} == set(tied.values())


# ── permutations ─────────────────────────────────────────────────────────────────────────────


def stack(kind: str, n: int, widths: list[int], outputs: int, act: str) -> nn.Sequential:
    """Linear or convolution layers with norms between some: the places where units can move."""
    layers: list[nn.Module] = []
    for m in widths:
        if kind == "linear":
            layers += [nn.Linear(n, m), ACTIVATIONS[act]()]
        else:
            layers += [nn.Conv1d(n, m, 3, padding=1), nn.BatchNorm1d(m), ACTIVATIONS[act]()]
        n = m
    if kind != "linear":
        layers.append(blocks.Lambda(lambda x: x.mean(-1)))
    return nn.Sequential(*layers, nn.Linear(n, outputs))


def units_of(model: nn.Sequential, hidden: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What belongs to the units of a hidden layer: rows, and the columns of the next layer."""
    weighted = [i for i, m in enumerate(model) if isinstance(m, nn.Linear | nn.Conv1d)]
    here, after = weighted[hidden], weighted[hidden + 1]
    rows = [model[here].weight, model[here].bias]
    if isinstance(model[here + 1], nn.BatchNorm1d):
        norm = model[here + 1]
        rows += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return rows, model[after].weight


def batch_for(kind: str, samples: int, n: int) -> torch.Tensor:
    return torch.randn(samples, n) if kind == "linear" else torch.randn(samples, n, 5)


@st.composite
def stacks(
    draw: st.DrawFn, smallest: int = 2, acts: tuple[str, ...] = ("relu", "tanh", "gelu", "sigmoid")
) -> tuple[str, nn.Sequential, torch.Tensor, Any, list[int]]:
    kind = draw(st.sampled_from(["linear", "convolution"]))
    n, outputs = draw(st.integers(2, 6)), draw(st.integers(2, 4))
    widths = draw(st.lists(st.integers(smallest, 9), min_size=1, max_size=3))
    act = draw(st.sampled_from(acts))
    samples, seed = draw(st.integers(8, 20)), draw(st.integers(0, 2**16))
    classes = draw(st.booleans())
    with seeded(seed):
        model = stack(kind, n, widths, outputs, act)
        for module in model:
            if isinstance(module, nn.BatchNorm1d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
        batch = batch_for(kind, samples, n)
        loss = blocks.classify(samples, outputs) if classes else blocks.regress(samples, outputs)
    return kind, model, batch, loss, widths


@FEW
@given(stacks(), st.data())
def test_permuting_the_units_of_a_layer_changes_no_verdict(example, data):
    _, model, batch, loss, widths = example
    hidden = data.draw(st.integers(0, len(widths) - 1))
    start = data.draw(st.sampled_from(["default", "equal-rows", "zero-layer", "zeros", "huge"]))
    rows, columns = units_of(model, hidden)
    with torch.no_grad():
        match start:
            case "equal-rows":
                rows[0][:2], rows[1][:2] = rows[0][:1].clone(), rows[1][:1].clone()
            case "zero-layer":
                rows[0].zero_(), rows[1].zero_()
            case "zeros":
                for parameter in model.parameters():
                    parameter.zero_()
            case "huge":
                rows[0].mul_(1e4)
    before = fanin.check(model, batch, loss)
    order = torch.tensor(data.draw(st.permutations(range(widths[hidden]))))
    with torch.no_grad():
        for row in rows:
            row.copy_(row[order])
        columns.copy_(columns[:, order])
    after = fanin.check(model, batch, loss)
    assert after.ok is before.ok
    assert [f.code for f in after.findings] == [f.code for f in before.findings]
    distinct = [[layer.distinct_units for layer in report.layers] for report in (before, after)]
    assert distinct[0] == distinct[1]


# ── planted copies ───────────────────────────────────────────────────────────────────────────


def plant(model: nn.Sequential, hidden: int, groups: list[list[int]], halve: bool) -> None:
    """Makes the units of each group copies of its first, and their outgoing columns as well."""
    rows, columns = units_of(model, hidden)
    with torch.no_grad():
        for first, *others in groups:
            if halve:
                columns[:, first] /= 1 + len(others)
            for other in others:
                for row in rows:
                    row[other] = row[first]
                columns[:, other] = columns[:, first]


@st.composite
def grouped(draw: st.DrawFn, width: int) -> list[list[int]]:
    """Disjoint groups of two or more units; none, possibly."""
    order = draw(st.permutations(range(width)))
    groups, place = [], 0
    for size in draw(st.lists(st.integers(2, 4), max_size=3)):
        if place + size <= width:
            groups.append(sorted(order[place : place + size]))
            place += size
    return groups


@FEW
@given(stacks(smallest=3), st.data(), st.booleans())
def test_planted_copies_are_found_exactly(example, data, halve):
    _, model, batch, loss, widths = example
    planted: dict[str, set[tuple[int, ...]]] = {}
    weighted = [str(i) for i, m in enumerate(model) if isinstance(m, nn.Linear | nn.Conv1d)]
    for hidden, width in enumerate(widths):
        groups = data.draw(grouped(width), label=f"copies in layer {weighted[hidden]}")
        plant(model, hidden, groups, halve)
        planted[weighted[hidden]] = {tuple(group) for group in groups}
    with unchanged(model, batch):
        report = fanin.check(model, batch, loss)
    found: dict[str, set[tuple[int, ...]]] = {name: set() for name in planted}
    for kind in report.symmetry.classes:
        if kind.kind == "locked" and kind.layer in weighted:
            found.setdefault(kind.layer, set()).add(tuple(sorted(kind.units)))
    assert found == planted
    assert any(f.code == "S101" for f in report.findings) is any(planted.values())
    for name, width in zip(weighted, widths, strict=False):
        layer = next(layer for layer in report.layers if layer.name == name)
        assert layer.units == width
        assert layer.distinct_units == width - sum(len(group) - 1 for group in planted[name])


@FEW
@given(stacks(smallest=3, acts=("tanh", "gelu", "sigmoid")), st.data())
def test_copies_with_distinct_columns_are_never_called_locked(example, data):
    """Under ReLU a pair that is dead on the batch would stay one."""
    _, model, batch, loss, widths = example
    hidden = data.draw(st.integers(0, len(widths) - 1))
    rows, _ = units_of(model, hidden)
    with torch.no_grad():
        for row in rows:
            row[1] = row[0]
    report = fanin.check(model, batch, loss)
    assert not any(found.kind == "locked" for found in report.symmetry.classes)
    assert "S101" not in {finding.code for finding in report.findings}


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_planted_hidden_units_of_a_recurrent_layer_are_found(kind: type[nn.RNNBase]):
    """A hidden unit is its rows in every gate, its recurrent column, and what reads it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(5, 7, batch_first=True), nn.Linear(7, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0].mean(1))

    with seeded(0):
        model, batch = Net(), torch.randn(9, 6, 5)
        labels = torch.randint(0, 3, (9,))
    gates = model.rnn.weight_ih_l0.shape[0] // 7
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            blocks_of_gates = parameter.view(gates, 7, *parameter.shape[1:])
            blocks_of_gates[:, 4] = blocks_of_gates[:, 2].clone()
            if name.startswith("weight_hh"):
                parameter[:, 4] = parameter[:, 2].clone()
        model.head.weight[:, 4] = model.head.weight[:, 2].clone()
    with unchanged(model, batch):
        report = fanin.check(model, batch, lambda out: F.cross_entropy(out, labels))
    locked = [found for found in report.symmetry.classes if found.kind == "locked"]
    assert {found.layer.split(".")[0] for found in locked} == {"rnn"}
    assert {tuple(unit % 7 for unit in found.units) for found in locked} == {(2, 4)}


@pytest.mark.parametrize("batched", [False, True])
def test_planted_heads_are_found_among_their_units(batched: bool):
    """Head 2 of 3 is a copy of head 0: in q, k and v, and in the columns of the output."""
    with seeded(0):
        attention = blocks.EinsumAttention(12, 3) if batched else blocks.Attention(12, 3)
        pool = blocks.Lambda(lambda x: x.mean(1))
        model = nn.Sequential(nn.Linear(5, 12), blocks.Residual(attention), pool, nn.Linear(12, 3))
        batch, loss = torch.randn(8, 6, 5), blocks.classify(8, 3)
    with torch.no_grad():
        if batched:
            for weight in (attention.wq, attention.wk, attention.wv):
                weight[:, 2] = weight[:, 0]
            attention.wo[2] = attention.wo[0]
        else:
            for tensor in (attention.qkv.weight, attention.qkv.bias):
                for packed in tensor.chunk(3):
                    packed[8:12] = packed[:4].clone()
            attention.proj.weight[:, 8:12] = attention.proj.weight[:, :4].clone()
    report = fanin.check(model, batch, loss)
    names = {"1.body.0.wq", "1.body.0.wk", "1.body.0.wv"} if batched else {"1.body.0.qkv"}
    locked = [found for found in report.symmetry.classes if found.kind == "locked"]
    assert {found.layer for found in locked} == names
    width = 12
    pairs = {tuple(sorted(unit % width for unit in found.units)) for found in locked}
    assert pairs == {(unit, unit + 8) for unit in range(4)}
