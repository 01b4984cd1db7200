"""Adapters beside frozen weights: what starts by changing nothing stays so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin


class Adapted(nn.Module):
    """A frozen layer and what is trained beside it, each as a library makes it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.base = nn.Linear(32, 32).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(4, 32)), nn.Parameter(torch.zeros(32, 4))
        self.kind = kind
        if kind == "three factors":
            self.b.data.normal_()
            self.e = nn.Parameter(torch.zeros(4, 1))
        if kind == "one block":
            del self.a, self.b
            self.block = nn.Parameter(torch.zeros(4, 32))
        if kind == "scaled":
            self.size = nn.Parameter(self.base.weight.norm(dim=1))
        if kind == "nothing moves":
            self.a.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if self.kind == "one block":
            return out + self.block.repeat(8, 1).mul(x.mean(-1)[:, None, None]).sum(-1)
        if self.kind == "three factors":
            return out + x @ (self.a * self.e).T @ self.b.T
        if self.kind == "scaled":
            weight = self.base.weight + self.b @ self.a
            return F.linear(x, weight * (self.size / weight.norm(dim=1).detach())[:, None])
        return out + F.linear(F.linear(x, self.a), self.b)


def adapted(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(Adapted(kind), nn.Tanh(), nn.Linear(32, 3)), torch.randn(16, 32)


@pytest.mark.parametrize("kind", ["three factors", "one block", "scaled"])
def test_what_changes_nothing_is_left_as_it_is(kind: str):
    model, x = adapted(kind)
    before = model[0](x)
    plan = fanin.init_(model, x)
    assert torch.equal(model[0](x), before)
    trained = [f"0.{n}" for n, p in model[0].named_parameters() if p.requires_grad]
    assert all("changes nothing" in plan.untouched[name] for name in trained)
    assert "2.weight" in plan  # not beside frozen weights


def test_a_low_rank_pair_is_drawn_and_changes_nothing_either():
    model, x = adapted("pair")
    before = model[0](x)
    plan = fanin.init_(model, x)
    assert torch.equal(model[0](x), before)
    assert {"0.a", "0.b"} <= {a.parameter for a in plan.assignments}


def test_where_nothing_could_move_it_is_drawn():
    model, x = adapted("nothing moves")
    fanin.init_(model, x)
    assert model[0].a.any()
    assert fanin.check(model, x).ok


def test_a_part_that_is_trained_beside_a_frozen_one_is_drawn():
    torch.manual_seed(0)
    block = nn.Module()
    block.first, block.second = nn.Linear(32, 32).requires_grad_(False), nn.Linear(32, 32)
    block.third = nn.Linear(32, 32)
    block.forward = lambda x: block.third(block.second(block.first(x).relu()).relu())
    nn.init.zeros_(block.second.weight)
    model, x = nn.Sequential(nn.Linear(32, 32).requires_grad_(False), block), torch.randn(16, 32)
    for layer in (model[0], block.first):
        assert not layer.weight.requires_grad
    fanin.init_(model, x)
    assert block.second.weight.any()


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_trained_behind_a_frozen_table_is_no_adapter(wrapped: bool):
    """However deep the model stands in another."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(2000, 32).requires_grad_(False), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    nn.init.zeros_(model[3].weight)
    nn.init.normal_(model[1].weight, std=30.0)
    whole = nn.Sequential(model) if wrapped else model
    fanin.init_(whole, torch.randint(0, 2000, (16, 5)))
    assert float(model[1].weight.detach().std()) < 1


@pytest.mark.parametrize("broken", [float("nan"), 0.1])
def test_an_adapter_with_a_fault_is_drawn(broken: float):
    model, x = adapted("three factors")
    model[0].b.data.fill_(broken)
    plan = fanin.plan(model, x)
    assert not any("changes nothing" in told for told in plan.untouched.values())


def test_a_head_of_zeros_behind_a_frozen_model_is_drawn():
    model = nn.Sequential(nn.Linear(32, 32).requires_grad_(False), nn.ReLU(), nn.Linear(32, 3))
    nn.init.zeros_(model[2].weight)
    plan = fanin.plan(model, torch.randn(16, 32))
    assert "2.weight" in plan
