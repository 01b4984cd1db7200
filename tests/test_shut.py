"""A mask inside of a parameter stays; memory and accidents that look like one do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from zoo import seeded
from zoo.checks import QUIET

import fanin

pytestmark = QUIET

TAGS, START, STOP = 6, 4, 5


class Chain(nn.Module):
    """A linear-chain CRF behind an embedding: transitions[i, j] from tag j to tag i."""

    def __init__(self, closed: float) -> None:
        super().__init__()
        self.scores = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, TAGS))
        self.transitions = nn.Parameter(torch.randn(TAGS, TAGS))
        self.transitions.data[START, :] = closed
        self.transitions.data[:, STOP] = closed

    def forward(self, tokens: Tensor, tags: Tensor) -> Tensor:
        scores = self.scores(tokens)
        ahead = scores.new_full((len(tokens), TAGS), -1e4)
        ahead[:, START] = 0.0
        for t in range(tokens.shape[1]):
            step = ahead[:, None, :] + self.transitions[None] + scores[:, t][:, :, None]
            ahead = torch.logsumexp(step, 2)
        total = torch.logsumexp(ahead + self.transitions[STOP], 1)
        path = self.transitions[tags[:, 1:], tags[:, :-1]].sum(1)
        return (total - path - scores.gather(2, tags[..., None])[..., 0].sum(1)).mean()


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 50, (16, 8))
    return tokens, tokens % 4


@pytest.mark.parametrize("scheme", ["auto", "xavier_normal"])
@pytest.mark.parametrize("closed", [-1e4, -1e9])
def test_forbidden_transitions_stay_forbidden(closed: float, scheme: str):
    model, given = Chain(closed), batch()
    before = model.transitions.detach().clone()
    plan = fanin.init_(model, given, scheme)
    assert torch.equal(model.transitions, before)
    assert (
        plan.untouched["transitions"] == f"11 of its 36 numbers are {closed:g}: a mask, by design"
    )
    assert "scores.1.weight" in {a.parameter for a in plan}


class Biased(nn.Module):
    """Attention scores with a learned bias that hides what comes later."""

    def __init__(self, later: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.bias = nn.Parameter(torch.full((8, 8), later).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4 + self.bias
        return torch.softmax(scores, -1) @ self.value(x)


def test_a_causal_bias_on_scores_stays():
    model = Biased(0.0)
    with torch.no_grad():
        model.bias.masked_fill_(torch.ones(8, 8).triu(1).bool(), -math.inf)
    plan = fanin.init_(model, torch.randn(4, 8, 16))
    assert plan.untouched["bias"] == "28 of its 64 numbers are -inf: a mask, by design"
    assert fanin.plan(Biased(-3.0), torch.randn(4, 8, 16))["bias"].scheme == "zeros"


def test_what_is_no_mask_is_drawn():
    given = batch()
    once = Chain(0.0)  # one number alone
    once.transitions.data[2, 2] = -1e4
    garbage = Chain(0.0)  # memory that nobody wrote
    garbage.transitions.data[:, STOP] = torch.tensor([-1e38, -4e12, 1e9, -1e38, 3e-40, 7.0])
    low = Chain(-50.0)  # unlikely, and possible
    every = Chain(-1e4)  # nothing but −10000
    every.transitions.data.fill_(-1e4)
    for model in (once, garbage, low, every):
        assert "transitions" in {a.parameter for a in fanin.plan(model, given)}


def test_a_weight_with_such_numbers_is_drawn():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    model[0].weight.data[2:4] = -1e4
    assert "0.weight" in {a.parameter for a in fanin.plan(model, torch.randn(8, 16))}
