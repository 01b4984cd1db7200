"""Weights that were drawn once and used twice are found; tied ones and designs are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from zoo import seeded

import fanin
from fanin.clones import clones, repeated_rows, shared


@pytest.fixture(autouse=True)
def _seed():
    with seeded(7):
        yield


def copies(layer: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(layer) for _ in range(count))


def test_copied_layers_are_one_group_of_modules():
    assert clones(copies(nn.Linear(5, 6), 3)) == (("0", "1", "2"),)


def test_a_copied_block_is_named_for_the_block():
    block = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5, bias=False))
    found = clones(nn.ModuleDict({"a": block, "b": copy.deepcopy(block)}))
    assert found == (("a", "b"),)


def test_torchs_own_encoder_starts_with_copied_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert clones(encoder) == (("layers.0", "layers.1"),)


def test_layers_drawn_with_one_seed_are_clones_of_their_shape_and_dtype():
    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
        torch.manual_seed(0)
        return nn.Parameter(torch.randn(*shape).to(dtype))

    model = nn.ParameterDict({
        "a": drawn(6, 8), "b": drawn(6, 8), "c": drawn(8, 6), "d": drawn(6, 8, dtype=torch.float64),
    })  # fmt: skip
    assert clones(model) == (("a", "b"),)


def test_tied_parameters_are_one_and_no_clones():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    shared = nn.Linear(6, 6)
    assert clones(nn.ModuleList([first, second, shared, shared])) == ()


@pytest.mark.parametrize(
    "draw",
    [
        nn.init.zeros_,
        nn.init.ones_,
        nn.init.eye_,
        lambda w: w.copy_(torch.randn(1, 8).expand(8, 8)),
        lambda w: w.copy_(torch.randn(8, 8).sign()),
    ],
    ids=["zeros", "ones", "identity", "one-row", "signs"],
)
@torch.no_grad()
def test_a_design_is_no_clone(draw):
    layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))
    draw(layers[0].weight)
    layers[1].weight.copy_(layers[0].weight)
    assert clones(layers) == ()


@pytest.mark.parametrize("turned", [False, True])
def test_two_tables_of_sines_are_no_clones(turned: bool):
    places = torch.arange(40.0)[:, None] / 1e4 ** (torch.arange(8) / 8)
    table = torch.cat([places.sin(), places.cos()], 1)
    table = table.T.contiguous() if turned else table
    assert clones(nn.ParameterList([nn.Parameter(table), nn.Parameter(table.clone())])) == ()


def test_one_copy_in_two_modules_does_not_make_copies_of_them():
    one, other = (nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)) for _ in range(2))
    model = nn.ModuleDict({"a": one, "b": other})
    other[2] = copy.deepcopy(one[2])
    assert clones(model) == (("a.2", "b.2"),)
    other[0] = copy.deepcopy(one[0])
    assert clones(model) == (("a", "b"),)


def test_what_does_not_train_or_is_no_matrix_does_not_count():
    assert clones(copies(nn.Linear(5, 6), 2).requires_grad_(False)) == ()
    assert clones(copies(nn.Linear(5, 1), 2)) == ()
    bias = nn.Parameter(torch.randn(40))
    assert clones(nn.ParameterList([bias, nn.Parameter(bias.detach().clone())])) == ()


def test_one_bit_of_difference_is_enough():
    layers = copies(nn.Linear(5, 6), 2)
    with torch.no_grad():
        last = layers[1].weight.view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    assert clones(layers) == ()


# ── rows of one parameter ────────────────────────────────────────────────────────────────────


def matrix(values: torch.Tensor) -> nn.Module:
    return nn.ParameterDict({"w": nn.Parameter(values)})


def test_a_slice_that_was_drawn_twice_is_counted():
    shard = torch.randn(10, 16)
    assert repeated_rows(matrix(torch.cat([shard, shard]))) == (("w", 10, 20),)
    assert repeated_rows(matrix(torch.cat([shard, shard], 1))) == (("w", 16, 32),)
    assert repeated_rows(matrix(torch.cat([shard, shard, torch.randn(20, 16)]))) == (("w", 10, 40),)


@pytest.mark.parametrize("repeats", [0, 2, 9])
def test_a_few_equal_rows_are_left_to_the_units(repeats: int):
    values = torch.randn(40, 16)
    values[1 : 1 + repeats] = values[0]
    assert repeated_rows(matrix(values)) == ()
    values[1:12] = values[0]
    assert repeated_rows(matrix(values)) == (("w", 11, 40),)


def test_rows_that_agree_in_their_first_entries_alone_are_different():
    values = torch.randn(40, 16)
    values[:, :8] = values[0, :8]
    assert repeated_rows(matrix(values)) == ()


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(20, 16),
        torch.eye(16),
        torch.eye(16).repeat(2, 1),
        torch.ones(1, 16).expand(20, 16),
        torch.arange(16.0).expand(20, 16),
        torch.full((20, 16), 0.1),
    ],
    ids=["zeros", "identity", "two-identities", "ones", "one-row", "constant"],
)
def test_repetition_by_design_is_not_counted(values: torch.Tensor):
    assert repeated_rows(matrix(values.clone())) == ()


def test_a_frozen_matrix_is_not_looked_at():
    shard = torch.randn(10, 16)
    assert repeated_rows(matrix(torch.cat([shard, shard])).requires_grad_(False)) == ()


class Views(nn.Module):
    """Two layers, each of whose weights is a view of one memory."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor):
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(torch.relu(x @ self.first) @ self.second))


def memory(rows: int = 16) -> torch.Tensor:
    return torch.randn(rows, 8) / 8**0.5


@pytest.mark.parametrize(
    ("of", "met"),
    [
        (lambda m: (m[:8], m[:8]), True),
        (lambda m: (m[:8], m[:8].T), True),
        (lambda m: (m[:8], m[4:12]), True),
        (lambda m: (m[::2], m[:8]), True),
        (lambda m: (m[:8], m[8:]), False),  # a flat buffer in parts
        (lambda m: (m[::2], m[1::2]), False),
        (lambda m: (m[:8], m[:8].clone()), False),
    ],
)
def test_different_parameters_in_one_memory_are_told_from_clones(of, met: bool):
    model = Views(*of(memory()))
    assert shared(model) == ((("first", "second"),) if met else ())
    found = [f for f in fanin.check(model, torch.randn(32, 8)).findings if f.code == "S104"]
    assert ("lie in the same memory" in "".join(f.message for f in found)) == met
    assert len(found) == (met or torch.equal(model.first, model.second))


def test_a_tied_parameter_is_one_and_empty_ones_share_nothing():
    model = Views(memory(8), memory(8))
    model.second = model.first
    model.none, model.nothing = nn.Parameter(torch.empty(0, 8)), nn.Parameter(torch.empty(0, 8))
    assert shared(model) == ()
    assert shared(nn.Linear(3, 3, device="meta")) == ()
