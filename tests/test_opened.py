"""Opened recurrent calls: cuDNN is off for them on a GPU, and only there, and only for so long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.opened import open_recurrent

# An older torch has one precision for all of them.
KINDS = [
    getattr(torch.backends.cudnn, kind)
    for kind in ("conv", "rnn")
    if hasattr(torch.backends.cudnn, kind)
]


def flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    precisions = (kind.fp32_precision for kind in KINDS)
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, *precisions


def set_flags(enabled: bool, benchmark: bool, deterministic: bool, *precisions: str) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = enabled, benchmark, deterministic
    for kind, precision in zip(KINDS, precisions, strict=True):
        kind.fp32_precision = precision


@pytest.fixture(autouse=True, params=[True, False], ids=["on", "off"])
def enabled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """cuDNN as a user has set it, on or off; every flag comes out as it went in.

    With two precisions `torch.backends.cudnn.flags` would raise.
    """
    ours = (bool(request.param), True, True, *("ieee", "tf32")[: len(KINDS)])
    before = flags()
    set_flags(*ours)
    try:
        yield ours[0]
        assert flags() == ours
    finally:
        set_flags(*before)


class OnGpu(Tensor):
    """Says that it is on a GPU, where none need be."""

    is_cuda = True


def opened(kind: type[Tensor], func: Any, packed: bool = False) -> None:
    """A call as `nn.LSTM` makes it, of two layers."""
    layer = nn.LSTM(8, 8, 2)
    x, states = torch.zeros(5, 4, 8).as_subclass(kind), [torch.zeros(2, 4, 8)] * 2
    rest = (states, layer._flat_weights, True, 2, 0.0, False, False)
    args = (x.flatten(0, 1), torch.full((5,), 4), *rest) if packed else (x, *rest, False)
    open_recurrent("lstm", func, args, lambda *_: None)


def spied(seen: list[bool]) -> Any:
    def lstm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        seen.append(torch.backends.cudnn.enabled)
        state = next(each for each in rest if isinstance(each, tuple))
        return x, *state

    return lstm


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_is_off_inside_of_every_layer_on_a_gpu(packed: bool):
    seen: list[bool] = []
    opened(OnGpu, spied(seen), packed)
    assert seen == [False, False]


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_is_left_alone_on_the_cpu(enabled: bool, packed: bool):
    seen: list[bool] = []
    opened(Tensor, spied(seen), packed)
    assert seen == [enabled, enabled]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_cudnn_is_as_before_after_what_interrupts_the_call(error: type[BaseException]):
    def lstm(*_: Any) -> Any:
        assert not torch.backends.cudnn.enabled
        raise error

    with pytest.raises(error):
        opened(OnGpu, lstm)


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.layers = kind(8, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("work", [fanin.check, fanin.init_, fanin.calibrate_])
def test_on_the_cpu_the_flag_is_never_written(
    kind: Any, work: Any, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_: bool) -> None:
        raise AssertionError("written on the CPU")

    torch.manual_seed(0)
    monkeypatch.setattr(torch._C, "_set_cudnn_enabled", refuse)
    assert work(Recurrent(kind).eval(), torch.randn(8, 5, 8)) is not None
