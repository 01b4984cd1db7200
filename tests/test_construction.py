"""A watched construction tells what the values of a model do not show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.init import trunc_normal_ as imported_by_name
from torch.nn.utils import parametrizations
from zoo import seeded
from zoo.checks import QUIET

import fanin
from fanin.construction import recorded, recording
from fanin.numbers import audit

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _seed():
    with seeded(5):
        yield


class Net(nn.Module):
    """Two linear layers, whose first weight `make` makes and `write` writes."""

    def __init__(self, make: Callable[[], Tensor], write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)
        self.first.weight = nn.Parameter(make())
        with torch.no_grad():
            write(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


ALLOCATIONS = {
    "empty": lambda: torch.empty(32, 16),
    "empty_like": lambda: torch.empty_like(torch.zeros(32, 16)),
    "new_empty": lambda: torch.zeros(3).new_empty(32, 16),
    "tensor.new_empty": lambda: torch.zeros(3).new_empty((32, 16)),
    "empty_strided": lambda: torch.empty_strided((32, 16), (16, 1)),
    "new": lambda: torch.zeros(3).new(32, 16),
    "resize_": lambda: torch.tensor(()).resize_(32, 16),
    "resize_as_": lambda: torch.tensor(()).resize_as_(torch.zeros(32, 16)),
    "Tensor": lambda: torch.Tensor(32, 16),
    "Tensor(size)": lambda: torch.Tensor(torch.Size([32, 16])),
    "FloatTensor": lambda: torch.FloatTensor(32, 16),
}
WRITES = {
    "normal_": lambda w: w.normal_(0, 0.1),
    "init": lambda w: nn.init.xavier_uniform_(w),
    "trunc_normal_": lambda w: nn.init.trunc_normal_(w, std=0.1, a=-0.2, b=0.2),
    "data": lambda w: w.data.uniform_(-0.1, 0.1),
    "copy_": lambda w: w.copy_(torch.randn(32, 16)),
    "setitem": lambda w: w.__setitem__(slice(None), torch.randn(32, 16)),
    "view": lambda w: w.view(-1).normal_(),
    "rows": lambda w: [row.normal_() for row in w],
    "out": lambda w: torch.randn(32, 16, out=w.data),
    "numpy": lambda w: w.detach().numpy().__setitem__(..., 0.1),
    "array": lambda w: np.asarray(w.detach()).__setitem__(..., 0.1),
    "foreach": lambda w: torch._foreach_zero_([w.data]),
    "operator": lambda w: torch.ops.aten.fill_.Scalar(w, 1.0),
    "assignment": lambda w: setattr(w, "data", torch.randn(32, 16)),
    "vector": lambda w: nn.utils.vector_to_parameters(torch.randn(512), [w]),
    "storage": lambda w: w.untyped_storage().copy_(torch.randn(32, 16).untyped_storage()),
}


def codes(build: Callable[[], nn.Module]) -> set[str]:
    return {f.code for f in fanin.check(build, torch.randn(64, 16)).findings}


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_weight_that_nobody_wrote_is_named(name: str):
    model, record = recorded(lambda: Net(ALLOCATIONS[name], lambda w: None))
    assert record.unwritten(model) == ("first.weight",)


def test_a_check_of_the_construction_reports_the_unwritten_weight():
    """Its values look innocent, like those of memory that was freed a moment ago."""

    def left_over(weight: Tensor) -> None:
        values = torch.randn(32, 16).numpy() * 0.2
        with torch._C.DisableTorchFunction():  # behind the back of the record
            weight.detach().numpy()[...] = values

    def build() -> nn.Module:
        return Net(lambda: torch.empty(32, 16), left_over)

    report = fanin.check(build, torch.randn(64, 16))
    findings = [f for f in report.findings if f.code == "N402"]
    assert len(findings) == 1
    assert "first" in findings[0].layer
    assert findings[0].severity == "error"


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", ["empty", "empty_like", "new_empty", "new", "resize_", "Tensor"])
def test_a_weight_that_was_written_is_not(name: str, write: str):
    model, record = recorded(lambda: Net(ALLOCATIONS[name], WRITES[write]))
    assert record.unwritten(model) == ()


GIVEN = {
    "values": lambda: torch.Tensor([[0.1] * 16] * 32),
    "array": lambda: torch.Tensor(np.ones((32, 16))),
    "typed": lambda: torch.FloatTensor([[0.1] * 16] * 32),
    "new": lambda: torch.zeros(3).new([[0.1] * 16] * 32),
    "tensor": lambda: torch.Tensor(torch.randn(32, 16)),
    "shared": lambda: torch.from_numpy(np.ones((32, 16), dtype=np.float32)),
    "regrown": lambda: torch.randn(32, 16).resize_(0).resize_(32, 16),
}


@pytest.mark.parametrize("name", GIVEN)
def test_memory_that_came_with_values_is_not_unwritten(name: str):
    model, record = recorded(lambda: Net(GIVEN[name], lambda w: None))
    assert record.unwritten(model) == ()


def test_memory_that_was_given_back_is_not_taken_for_what_lies_there_later():
    def build() -> nn.Module:
        weights = nn.ParameterList()
        for _ in range(100):
            weights.append(nn.Parameter(torch.Tensor(5, 7)))
            weights[-1].data = torch.randn(5, 7)
            weights.append(nn.Parameter(torch.ones(5, 7)))
        return weights

    model, record = recorded(build)
    assert record.unwritten(model) == ()


class Marked(Tensor):
    """A subclass of Tensor that torch makes with its old constructor."""


def test_a_subclass_of_tensor_can_be_built_and_draws_the_same():
    """Under the closest watch torch cannot; the second try begins with the same random state."""

    def build() -> nn.Module:
        model = nn.Linear(4, 5)
        model.mark = Marked(2, 3)
        model.token = nn.Parameter(torch.empty(3))
        return model

    with seeded(3):
        model, record = recorded(build)
    with seeded(3):
        assert torch.equal(model.weight, build().weight)
    assert record.unwritten(model) == ("token",)


def fake() -> nn.Module:
    with FakeTensorMode():
        return Net(lambda: torch.Tensor(32, 16), lambda w: None)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 4)


def branching() -> nn.Module:
    one = torch.ones(3)
    made = torch.cond(one.sum() > 1, lambda x: x + 1, lambda x: x - 1, (one,))
    return nn.ParameterList([made])


def trained() -> nn.Module:
    model = nn.Linear(3, 4)
    model(torch.ones(2, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return model


@pytest.mark.parametrize("build", [fake, on_meta, branching, trained])
def test_a_construction_may_use_modes_of_its_own(build: Callable[[], nn.Module]):
    model, record = recorded(build)
    assert record.unwritten(model) == ()


def test_a_construction_that_fails_fails_with_its_own_error():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4)(torch.ones(2, 5)))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recorded(build)
    assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0


def test_a_checkpoint_that_is_loaded_writes():
    state = nn.Linear(16, 32).state_dict()
    with recording() as record:
        model = nn.Linear(16, 32, device="meta").to_empty(device="cpu")
        assert record.unwritten(model) == ("weight", "bias")
        model.load_state_dict(state)
    assert record.unwritten(model) == ()


@pytest.mark.parametrize("function", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_power_iteration_keeps_one_record_of_each_weight(function):
    """Fifteen steps, each of which reads the two vectors that the last one made of the weight."""
    with recording() as record:
        model = function(nn.Linear(16, 32), n_power_iterations=20)
        model(torch.randn(3, 16))
    assert max(map(len, record._made.values()), default=0) <= 1
    assert record.unwritten(model) == record.lost(model) == ()


@pytest.mark.parametrize("function", [nn.init.trunc_normal_, imported_by_name])
def test_a_truncation_that_cuts_nothing_is_a_w503(function: Callable[..., Tensor]):
    def build(bound: float) -> Callable[[], nn.Module]:
        return lambda: Net(
            lambda: torch.zeros(32, 16), lambda w: function(w, std=0.02, a=-bound, b=bound)
        )

    assert "W503" in codes(build(2.0))
    assert "W503" not in codes(build(0.04))
    with recording() as record:
        model = build(2.0)()
    ((name, std, ratio),) = record.idle(model)
    assert (name, std) == ("first.weight", 0.02)
    assert ratio == pytest.approx(100)


def test_a_check_without_the_construction_cannot_tell_and_says_nothing():
    model = Net(lambda: torch.zeros(32, 16), lambda w: nn.init.trunc_normal_(w, std=0.1))
    assert "W503" not in {f.code for f in fanin.check(model, torch.randn(64, 16)).findings}


def test_a_recording_leaves_torch_as_it_was_also_when_the_construction_fails():
    before = {name: getattr(nn.init, name) for name in dir(nn.init)}
    with pytest.raises(ZeroDivisionError), recording():
        Net(lambda: torch.zeros(32, 16), lambda w: 1 / 0)
    assert {name: getattr(nn.init, name) for name in dir(nn.init)} == before
    assert torch._C._len_torch_function_stack() == 0


def test_a_recorded_construction_draws_the_same_weights():
    def build() -> list[Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.LSTM(5, 6), nn.Embedding(7, 8))
        nn.init.trunc_normal_(model[0].weight, std=0.02)
        return list(model.parameters())

    watched, _ = recorded(build)
    assert all(map(torch.equal, watched, build()))


# ── every layer of torch.nn ──────────────────────────────────────────────────────────────────

ARGUMENTS: dict[str, tuple] = {
    "AdaptiveLogSoftmaxWithLoss": (32, 20, [5, 10]),
    "Bilinear": (3, 4, 5),
    "Embedding": (10, 4, 0),
    "EmbeddingBag": (10, 4),
    "GroupNorm": (2, 4),
    "MultiheadAttention": (8, 2, 0.0, True, True, False, 6, 7),
    "PReLU": (4,),
    "RMSNorm": (4,),
    "LayerNorm": ((3, 4),),
    "Transformer": (8, 2, 1, 1, 16, 0.1, "relu", None, None, 1e-5, True),
    "TransformerDecoderLayer": (8, 2, 16),
    "TransformerEncoderLayer": (8, 2, 16),
    **{f"{kind}{d}d": (4, 6, 3) for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"BatchNorm{d}d": (4,) for d in (1, 2, 3)},
    **{f"InstanceNorm{d}d": (4, 1e-5, 0.1, True, True) for d in (1, 2, 3)},
    "SyncBatchNorm": (4,),
    "Linear": (4, 5),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (4, 5, 2)),
    **dict.fromkeys(("LSTMCell", "GRUCell", "RNNCell"), (4, 5)),
}
BASES = {"RNNBase", "RNNCellBase"}


def test_every_layer_of_torch_that_draws_weights_is_tried():
    kinds = {n: k for n in dir(nn) if isinstance(k := getattr(nn, n), type)}
    drawing = {
        name
        for name, kind in kinds.items()
        if "Lazy" not in name
        and (hasattr(kind, "reset_parameters") or hasattr(kind, "_reset_parameters"))
    }
    assert len(drawing) > 20
    assert drawing - BASES <= set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_torchs_own_constructions_are_silent(name: str):
    model, record = recorded(lambda: getattr(nn, name)(*ARGUMENTS[name]))
    assert next(model.parameters(), None) is not None
    assert record.unwritten(model) == ()
    assert record.idle(model) == ()
    for found in audit(model):
        assert (found.nonfinite, found.tiny, found.outliers) == (0, 0.0, 0), found.name


class Drawn(nn.Module):
    """A table, a parameter of zeros and a layer, drawn by a function."""

    def __init__(self, draw: Callable[[nn.Module], object]):
        super().__init__()
        self.table, self.matrix = nn.Embedding(30, 6), nn.Parameter(torch.zeros(6, 8))
        self.head = nn.Linear(8, 3)
        self.kept = draw(self)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(words) @ self.matrix))


def _assigned(model: nn.Module) -> None:
    model.matrix = nn.Parameter(torch.normal(0.0, 0.1, size=(6, 8)))


def _by_data(model: nn.Module) -> None:
    model.matrix.data = torch.normal(0.0, 0.1, model.matrix.shape)


def _copied(model: nn.Module) -> None:
    with torch.no_grad():
        drawn = torch.normal(model.matrix, 0.1)
        other = torch.zeros(3).sum()
        model.matrix.copy_(drawn + other)


def _kept(model: nn.Module) -> Tensor:
    return torch.normal(0.0, 1.0, size=(6, 8))


def _outward(model: nn.Module) -> None:
    torch.normal(0.0, 0.1, size=(6, 8), out=model.matrix.detach())


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda m: [torch.normal(m.matrix, 0.02), None][1], ("matrix",)),
        (lambda m: [torch.normal(m.table.weight.data, 0.02), None][1], ("table.weight",)),
        (lambda m: [torch.normal(0.0, 0.02, size=(6, 8)), None][1], ("matrix",)),
        (lambda m: [torch.normal(0.0, 0.02, size=(7, 8)), None][1], ()),
        (_assigned, ()),
        (_by_data, ()),
        (_copied, ()),
        (_kept, ()),
        (_outward, ()),
        (lambda m: nn.init.normal_(m.matrix), ()),
        (lambda m: [torch.distributions.Normal(m.matrix, 0.1).sample().std(), None][1], ()),
    ],
)
def test_a_draw_that_went_nowhere_names_the_parameter(draw: Callable, named: tuple[str, ...]):
    model, record = recorded(lambda: Drawn(draw))
    assert record.thrown(model) == named
    report = fanin.check(model, torch.arange(12) % 30, record=record)
    assert [f.layers[: len(named)] for f in report.findings if f.code == "W504"] == (
        [named] if named else []
    )
