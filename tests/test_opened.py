"""Opened torch functions; for recurrent calls cuDNN is off on a GPU, and only for so long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_the_last_states_have_the_bits_that_torch_gives(options: dict[str, bool], packed: bool):
    torch.manual_seed(0)
    layer = nn.LSTM(8, 12, **options)
    x = torch.randn(5, 4, 8)
    batch = nn.utils.rnn.pack_sequence([x[:, i] for i in range(4)]) if packed else x
    seen: list[tuple[Tensor, Tensor | None]] = []

    class Opened(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if getattr(func, "__name__", "") != "lstm":
                return func(*args, **(kwargs or {}))
            return open_recurrent(
                "lstm", func, args, lambda w, out: seen.append((out[0], w.memory))
            )

    with Opened():
        output, (hidden, cells) = layer(batch)
    plain, (plain_hidden, plain_cells) = layer(batch)
    assert torch.equal(hidden, plain_hidden)
    assert torch.equal(cells, plain_cells)
    if not packed:
        assert torch.equal(output, plain)
    ((states, memory),) = seen
    assert memory is not None
    assert memory.shape[-1] == states.shape[-1]
    assert torch.equal(memory[..., :12], plain_cells[0])
    (gradient,) = torch.autograd.grad(cells.sum(), memory)
    assert bool((gradient == 1).all())


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_projected_state_is_not_that_of_the_cells():
    layer, seen = nn.LSTM(8, 12, proj_size=6), []
    states = (torch.zeros(1, 4, 6), torch.zeros(1, 4, 12))
    args = (torch.randn(5, 4, 8), states, layer._flat_weights, True, 1, 0.0, False, False, False)
    open_recurrent("lstm", torch.lstm, args, lambda w, _: seen.append(w.memory))
    assert seen == [None]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "read",
    [lambda o: o[1][1], lambda o: o[1][0], lambda o: o[0]],
    ids=["cells", "hidden", "states"],
)
def test_a_check_reads_any_part_of_what_an_lstm_gives(batch_first: bool, read):
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 5, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            return read(self.layer(x))

    torch.manual_seed(0)
    assert fanin.check(Reads(), torch.randn(6, 3, 4), lambda out: out.square().mean()).ok


@pytest.mark.parametrize("listed", [False, True])
def test_tensors_that_are_broadcast_together_stay_apart(listed: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.other = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x):
            pair = [self.used(x), self.other(x)]
            used, other = (
                torch.broadcast_tensors(pair) if listed else torch.broadcast_tensors(*pair)
            )
            assert used.shape == other.shape == (5, 3)
            return used

    report = fanin.check(Net(), torch.randn(5, 4))
    assert [f.layer for f in report.findings if f.code == "W501"] == ["other.weight"]
