"""What one tensor of a batch goes through alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from zoo.blocks import mlp

from fanin.reading import reading
from fanin.sides import Side, sides


class Net(nn.Module):
    """Two encoders, a small embedding, and a head, joined by a function."""

    def __init__(self, join: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.other = mlp(8, 24, 16), mlp(6, 24, 16)
        self.time, self.head = mlp(2, 4, 16), mlp(16, 8, 3)
        self.join = join

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.join(self, *given, **named)


X, Y, T = torch.randn(5, 8), torch.randn(5, 6), torch.randn(5, 2)


def found(join: Callable[..., Any], batch: Any) -> list[list[str]]:
    """The layers of each side, by name."""
    return [[layer.name for layer in side.layers] for side in sides(reading(Net(join), batch))]


ONE, OTHER = ["one.0", "one.2"], ["other.0", "other.2"]


def test_two_encoders_are_two_sides_and_what_lies_behind_belongs_to_none():
    assert found(lambda m, x, y: m.head(m.one(x) * m.other(y)), (X, Y)) == [ONE, OTHER]


def test_tensors_given_by_name_or_in_a_structure_are_told_apart():
    named = found(lambda m, x, more: m.head(m.one(x) + m.other(more[0])), {"x": X, "more": [Y]})
    assert named == [ONE, OTHER]


def test_views_and_what_is_made_of_a_tensor_belong_to_it():
    made = found(lambda m, x, y: m.one(x.view(5, 8) * 2) + m.other(y[:, torch.arange(6)]), (X, Y))
    assert made == [ONE, OTHER]


def test_tokens_that_are_looked_up_have_a_side():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.read, self.other = nn.Embedding(9, 8), mlp(8, 16), mlp(6, 16)

        def forward(self, tokens, y):
            return self.read(self.table(tokens).mean(1)) * self.other(y)

    parts = sides(reading(Words(), (torch.randint(0, 9, (5, 3)), Y)))
    assert [[y.name for y in s.layers] for s in parts] == [["table", "read.0"], ["other.0"]]


@pytest.mark.parametrize(
    "join",
    [
        lambda m, x, y: m.head(m.one(x)),  # the other is not used
        lambda m, x, y: m.head(m.one(x + torch.cat([y, y[:, :2]], 1))),  # met before any layer
        lambda m, x, y: m.head(m.one(x)) * y.mean(),  # the other has no layer
    ],
    ids=["unused", "met-at-once", "no-layer"],
)
def test_what_has_no_layer_of_its_own_has_no_side(join: Callable[..., Any]):
    assert OTHER not in found(join, (X, Y))


def test_one_tensor_has_no_sides_however_it_is_cut():
    assert found(lambda m, x: m.one(x) * m.other(x[:, :6]), X) == []


def test_a_small_part_beside_the_network_is_no_side():
    parts = found(lambda m, x, y, t: m.head(m.one(x) * m.other(y) + m.time(t)), (X, Y, T))
    assert parts == [ONE, OTHER]


def test_what_every_path_from_its_tensor_passes():
    def join(m: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        half = m.one[0](x)
        return m.head(m.one[2](m.one[1](half)) + half[:, :16] + m.other(y))

    architecture = reading(Net(join), (X, Y))
    owner = {i: layer.name for layer in architecture.layers for i in layer.calls}

    def passed(side: Side) -> list[str]:
        return [owner[i] for i in side.passed if i in owner]

    one, other = sides(architecture)
    assert passed(one) == ["one.0", "head.0", "head.2"]  # a way goes around one.2
    assert passed(other) == [*OTHER, "head.0", "head.2"]


def test_a_generator_is_a_side_and_a_discriminator_that_reads_two_things_is_none():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.judge = mlp(8, 16, 6), mlp(6, 16, 1)

        def forward(self, noise, real):
            return self.judge(self.make(noise)), self.judge(real)

    (side,) = sides(reading(Pair(), (X, Y)))
    assert [layer.name for layer in side.layers] == ["make.0", "make.2"]
