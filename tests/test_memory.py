"""New memory: large pages are asked for where they help, and nothing else changes."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fanin
from fanin import memory

LARGE = memory.LEAST // 4  # elements of float32


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The calls of madvise."""
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *call: calls.append(call))
    return calls


def test_large_pages_are_asked_for_all_of_a_large_tensor(asked: list[tuple[int, int, int]]):
    made = memory.empty_like(torch.empty(2 * LARGE))
    [(start, size, advice)] = asked
    first, last = made.data_ptr(), made.data_ptr() + made.numel() * 4
    assert start % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
    assert start <= first < start + mmap.PAGESIZE
    assert last <= start + size < last + mmap.PAGESIZE
    assert advice == 14


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_small_ones_and_those_without_memory_are_left_alone(
    asked: list[tuple[int, int, int]], device: str
):
    memory.empty_like(torch.empty(LARGE - 1024 if device == "cpu" else 4 * LARGE, device=device))
    assert not asked


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4),
        torch.zeros(4, 3).T,
        torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
        torch.zeros(0),
        torch.zeros(2 * LARGE),
    ],
    ids=lambda tensor: str(tuple(tensor.shape)),
)
def test_it_is_what_torch_makes(tensor: torch.Tensor):
    made, torchs = memory.empty_like(tensor), torch.empty_like(tensor)
    assert (made.shape, made.stride(), made.dtype) == (torchs.shape, torchs.stride(), torchs.dtype)
    made.fill_(1)
    assert not tensor.any()
    assert memory.empty_like(tensor, "meta").is_meta


class Wrapped(torch.Tensor):
    """As DTensor: what it says of its memory is not true."""


def test_a_subclass_is_left_alone(asked: list[tuple[int, int, int]]):
    made = memory.empty_like(torch.empty(2 * LARGE).as_subclass(Wrapped))
    assert type(made) is Wrapped
    assert not asked


def test_another_system_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    memory._madvise.cache_clear()
    assert memory._madvise() is None
    memory.empty_like(torch.empty(2 * LARGE)).fill_(1)
    memory._madvise.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="large pages on request are of Linux")
def test_the_system_takes_the_request():
    made = memory.empty_like(torch.empty(1 << 23))
    start = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    given = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert memory._madvise()(start, mmap.PAGESIZE, 14) == (0 if given else -1)
    assert torch.equal(made.fill_(2), torch.full_like(made, 2))


def test_parameters_from_meta_are_made_so(asked: list[tuple[int, int, int]]):
    with torch.device("meta"):
        model = nn.Linear(1024, LARGE // 512)
    fanin.plan(model, torch.empty(2, 1024, device="meta")).apply_(model)
    assert len(asked) == 1
    assert model.weight.std() > 0
