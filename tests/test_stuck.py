"""Queries that have picked their key, and gates that are stuck, are told; look-alikes are not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo.blocks import classify, mlp, regress
from zoo.checks import unchanged

import fanin

WAYS = ("fused", "causal", "written", "masked", "biased", "einsum")


class Reader(nn.Module):
    """Tokens, one attention with a residual, and a head that reads the mean of all.

    Args:
        way: how the attention is computed.
        times: size of the weights of queries and keys, over the usual one.
        packed: queries, keys and values from one layer.
    """

    def __init__(self, way: str = "fused", times: float = 1.0, packed: bool = False) -> None:
        super().__init__()
        self.way, self.packed = way, packed
        self.inlet, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
        self.positions = nn.Embedding(12, 4)
        if packed:
            self.qkv = nn.Linear(32, 96)
        else:
            self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 3)
        with torch.no_grad():
            for weight in (self.qkv.weight[:64],) if packed else (self.q.weight, self.k.weight):
                weight.mul_(times)

    def forward(self, x):
        x = self.inlet(x)
        h = self.norm(x)
        three = self.qkv(h).chunk(3, -1) if self.packed else (self.q(h), self.k(h), self.v(h))
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in three)
        return self.head((x + self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))).mean(1))

    def mix(self, q, k, v):
        tokens = q.shape[-2]
        if self.way in ("fused", "causal"):
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.way == "causal")
        if self.way == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(8)
            return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        scores = q @ k.mT / math.sqrt(8)
        if self.way == "masked":
            scores = scores + -1e4 * torch.ones(tokens, tokens).triu(1)
        if self.way == "biased":  # made before the scores are
            place = torch.arange(tokens)
            bias = self.positions((place[:, None] - place).abs())
            scores = bias.movedim(-1, 0) + scores
        return F.dropout(scores.softmax(-1), 0.1, self.training) @ v


TOKENS = torch.randn(16, 12, 8, generator=torch.Generator().manual_seed(0))


def told(model: nn.Module, batch=TOKENS, loss=None) -> list[fanin.Finding]:
    """The findings of P206, of a model that is left as it was."""
    loss = loss or classify(len(batch), 3)
    with unchanged(model, batch):
        report = fanin.check(model, batch, loss)
    return [f for f in report.findings if f.code == "P206"]


@pytest.mark.parametrize("packed", [False, True], ids=["three", "packed"])
@pytest.mark.parametrize("way", WAYS)
def test_queries_that_all_pick_one_key_are_told_with_what_makes_them(way: str, packed: bool):
    torch.manual_seed(0)
    assert not told(Reader(way, packed=packed))
    assert not told(Reader(way, 5.0, packed))
    model = Reader(way, 100.0, packed)
    (found,) = told(model)
    assert found.severity == "warning"
    assert found.layers == (("qkv",) if packed else ("q", "k"))
    assert "√(head size)" in found.fix
    done = fanin.repair_(model, TOKENS, classify(16, 3), warnings=True)
    assert "P206" not in {f.code for f in done.after.findings}


@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention_is_looked_at_whether_it_gives_its_weights_or_not(weights: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.head = nn.Linear(8, 32), nn.Linear(32, 3)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            x = self.inlet(x)
            padding = torch.arange(12).expand(16, 12) > 8
            y = self.attention(x, x, x, key_padding_mask=padding, need_weights=weights)[0]
            return self.head((x + y).mean(1))

    torch.manual_seed(0)
    model = Net()
    assert not told(model)
    with torch.no_grad():
        model.attention.in_proj_weight[:64].mul_(100)
    (found,) = told(model)
    assert found.layers == ("attention.in_proj_weight",)


class Asking(Reader):
    """A `Reader` whose queries and keys are 300 times too large, and one thing of its own."""

    def __init__(self, what) -> None:
        super().__init__(times=300.0)
        self.what = what
        self.temperature = nn.Parameter(torch.tensor(3.0))
        if what == "frozen":
            self.q.requires_grad_(False)
            self.k.requires_grad_(False)
        elif "times" in what:
            with torch.no_grad():
                self.q.weight.div_(300)
                self.k.weight.div_(300)

    def mix(self, q, k, v):
        scores = q @ k.mT / math.sqrt(8)
        if self.what == "three keys":
            return (q @ k[..., :3, :].mT).softmax(-1) @ v[..., :3, :]
        if self.what == "a hundred times":
            return (100 * scores).softmax(-1) @ v
        if self.what == "over a temperature of 0.01 times":
            return (scores / 0.01).softmax(-1) @ v
        if self.what == "fused, a hundred times":
            return F.scaled_dot_product_attention(q, k, v, scale=100.0)
        if self.what == "queries a hundred times":
            return F.scaled_dot_product_attention(q / 0.001, k, v)
        if self.what == "a learned temperature":
            return (scores * self.temperature).softmax(-1) @ v
        if self.what == "what nothing is mixed with":
            return scores.softmax(-1).mean(-1, keepdim=True) * v
        if self.what == "queries that are keys":
            return (k @ k.mT).softmax(-1) @ v
        if self.what == "other keys than tokens":
            return scores.softmax(-2) @ v
        own = torch.eye(q.shape[-2], dtype=torch.bool)
        if self.what == "a mask of one key, fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=own)
        if self.what == "a mask of one key":
            return scores.masked_fill(~own, -math.inf).softmax(-1) @ v
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    "what",
    [
        "frozen",
        "three keys",
        "a hundred times",
        "over a temperature of 0.01 times",
        "fused, a hundred times",
        "a learned temperature",
        "queries a hundred times",
        "what nothing is mixed with",
        "queries that are keys",
        "other keys than tokens",
        "a mask of one key, fused",
        "a mask of one key",
    ],
)
def test_an_attention_that_is_sharp_on_purpose_is_left_alone(what: str):
    torch.manual_seed(0)
    assert not told(Asking(what))


@pytest.mark.parametrize("shut", [-100.0, -1e4, -1e9, torch.finfo(torch.float32).min, -math.inf])
def test_a_mask_that_leaves_one_key_is_no_choice(shut: float):
    class Net(Reader):
        def mix(self, q, k, v):
            own = torch.eye(q.shape[-2], dtype=torch.bool)
            return (q @ k.mT + torch.zeros(own.shape).masked_fill(~own, shut)).softmax(-1) @ v

    torch.manual_seed(0)
    assert not told(Net())


def test_grouped_keys_and_a_mask_over_all_heads_are_followed():
    class Net(Reader):
        def mix(self, q, k, v):
            mask = torch.zeros(q.shape[0], 1, 1, q.shape[2]).masked_fill(torch.arange(12) > 8, -1e9)
            k, v = k[:, :2], v[:, :2]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    torch.manual_seed(0)
    assert not told(Net())
    (found,) = told(Net(times=100.0))
    assert found.layers == ("q", "k")


def test_equal_tokens_are_one_key():
    """Without positions a query cannot tell them apart: it picks both."""
    torch.manual_seed(0)
    twice = TOKENS[:, :6].repeat(1, 2, 1)
    assert not told(Reader(), twice)
    assert told(Reader(times=300.0), twice)
    assert not told(Reader(times=300.0), TOKENS[:, :1].expand(16, 12, 8).clone())


class _Experts(nn.Module):
    """A router that is sure of itself, and a classifier that is."""

    def __init__(self):
        super().__init__()
        self.router, self.head = nn.Linear(8, 6), nn.Linear(16, 3)
        self.experts = nn.Parameter(torch.randn(6, 8, 16) / 3)
        nn.init.normal_(self.router.weight, std=50.0)

    def forward(self, x):
        made = torch.einsum("bi,eio->beo", x, self.experts)
        return self.head(torch.einsum("be,beo->bo", self.router(x).softmax(-1), made))


def test_routers_and_contrasts_are_no_attention():
    torch.manual_seed(0)
    assert not told(_Experts(), torch.randn(32, 8))
    tower = mlp(8, 64, 16)
    label = torch.arange(32)

    def contrast(z):
        return F.nll_loss((z @ z.mT / 0.001 + -1e9 * torch.eye(32)).log_softmax(-1), label.roll(1))

    assert "P206" not in {f.code for f in fanin.check(tower, torch.randn(32, 8), contrast).findings}


GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}


class Reading(nn.Module):
    """A recurrent layer, or a cell that is called step by step, and a head at every step."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        whole = {} if kind.endswith("Cell") else {"batch_first": True}
        self.rnn = getattr(nn, kind)(6, 24, **whole, **options)
        self.head = nn.Linear(48 if options.get("bidirectional") else 24, 3)

    def forward(self, x):
        if isinstance(self.rnn, nn.RNNBase):
            return self.head(self.rnn(x)[0])
        state, states = None, []
        for step in x.unbind(1):
            state = self.rnn(step, state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(states, 1))

    def set_gate(self, place: int, value, where: str = "bias_ih") -> nn.Module:
        with torch.no_grad():
            for name, bias in self.rnn.named_parameters():
                if name.startswith(where):
                    bias[24 * place : 24 * (place + 1)] = value
        return self


STEPS = torch.randn(16, 9, 6, generator=torch.Generator().manual_seed(1))


def of_steps(model: nn.Module) -> list[fanin.Finding]:
    return told(model, STEPS, regress(16, 9, 3))


@pytest.mark.parametrize("value", [20.0, -20.0])
@pytest.mark.parametrize(
    ("kind", "place"),
    [(kind + cell, i) for kind in GATES for cell in ("", "Cell") for i in range(len(GATES[kind]))],
)
def test_a_gate_that_is_stuck_is_told_with_its_bias(kind: str, place: int, value: float):
    torch.manual_seed(0)
    model = Reading(kind).set_gate(place, value)
    (found,) = of_steps(model)
    gate, bias = GATES[kind.removesuffix("Cell")][place], found.layers[1]
    assert found.severity == "warning"
    assert found.layer == "rnn"
    assert bias in ("rnn.bias_ih", "rnn.bias_ih_l0")
    assert f"the {gate} gate is stuck" in found.message
    assert f"{bias}[{24 * place}:{24 * (place + 1)}]" in found.measured
    done = fanin.repair_(model, STEPS, regress(16, 9, 3), warnings=True)
    assert "P206" not in {f.code for f in done.after.findings}


def test_the_layer_that_runs_backwards_is_looked_at_too():
    torch.manual_seed(0)
    model = Reading("LSTM", bidirectional=True).set_gate(1, 30.0, "bias_ih_l0_reverse")
    (found,) = of_steps(model)
    assert found.layers == ("rnn", "rnn.bias_ih_l0_reverse")


@pytest.mark.parametrize("value", [1.0, 5.0, 9.0, -10.0])
@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell", "GRU"])
def test_a_memory_that_starts_long_or_short_is_a_design(kind: str, value: float):
    torch.manual_seed(0)
    assert not of_steps(Reading(kind).set_gate(1, value))


@pytest.mark.parametrize("steps", [1e2, 1e3, 1e4])
def test_chrono_initialization_is_a_design(steps: float):
    """Tallec, Ollivier (2018): forget gates that remember up to T steps, and input gates."""
    torch.manual_seed(0)
    model, spread = Reading("LSTM"), (1 + torch.rand(24) * (steps - 2)).log()
    assert not of_steps(model.set_gate(1, spread).set_gate(0, -spread))


def test_a_gate_that_is_frozen_or_is_one_of_a_few_is_left_alone():
    torch.manual_seed(0)
    model = Reading("LSTM").set_gate(1, 20.0)
    model.rnn.bias_ih_l0.requires_grad_(False)
    assert not of_steps(model)
    some = torch.where(torch.arange(24) < 20, 20.0, 0.0)
    assert not of_steps(Reading("LSTM").set_gate(1, some))


class Near(nn.Module):
    """Attention that distances make local, by a number for each step that is added to scores."""

    def __init__(self, steep: float, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(16, 16) for _ in range(4))
        place = torch.arange(10.0)
        self.bias = nn.Parameter(-steep * (place[:, None] - place).abs())
        self.fused = fused

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias))
        return self.head((q @ k.mT / 4 + self.bias).softmax(-1) @ v)


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_added_to_scores_is_not_laid_to_queries_and_keys(fused: bool):
    report = fanin.check(Near(20.0, fused), torch.randn(16, 10, 16), regress(16, 10, 16))
    assert "P206" not in {f.code for f in report.findings}


@pytest.mark.parametrize("factor", [1.0, 16.0])
def test_what_an_attention_is_given_is_named_where_it_is_what_is_large(factor: float):
    """An embedding of std 1 times √d, as beside sinusoids, and no norm in front of it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 256), nn.Linear(256, 4)
            self.block = nn.TransformerEncoderLayer(256, 4, 256, 0.0, batch_first=True)

        def forward(self, x):
            return self.head(self.block(self.embed(x) * factor).mean(1))

    torch.manual_seed(0)
    report = fanin.check(Net(), torch.randint(0, 50, (16, 24)), classify(16, 4))
    told = [f for f in report.findings if f.code == "P206"]
    assert len(told) == (factor > 1)
    for finding in told:
        assert finding.message.startswith("What an attention is given is so large")
        assert "smaller embeddings" in finding.fix


def test_a_gate_that_shuts_everything_out_is_the_reason_that_inputs_look_alike():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(6, 16, batch_first=True), nn.Linear(16, 3)
            self.places, self.norm = nn.Embedding(9, 16), nn.LayerNorm(16)
            with torch.no_grad():
                self.gru.bias_ih_l0[16:32] = 25.0  # the update gate: the state stays at zero

        def forward(self, x):
            h = self.gru(x)[0] + self.places(torch.arange(9))
            return self.head(torch.tanh(self.norm(h)).mean(1))

    report = fanin.check(Last(), torch.randn(16, 9, 6), classify(16, 3))
    (found,) = [f for f in report.findings if f.code == "P207"]
    assert found.why.startswith("The update gate of gru is stuck")
