"""Values that no scheme draws are counted, and a construction tells what values do not show."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_ as imported_by_name
from torch.nn.utils import parametrizations
from zoo import seeded
from zoo.checks import QUIET

import fanin
from fanin.numbers import Audit, audit, recording

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _seed():
    with seeded(5):
        yield


def look(values: Tensor) -> Audit:
    (found,) = audit(nn.ParameterDict({"w": nn.Parameter(values)}))
    assert (found.name, found.count) == ("w", values.numel())
    return found


# ── audit ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_counted_and_left_out_of_the_size(dtype: torch.dtype):
    values = torch.full((10, 10), 2.0, dtype=dtype)
    values[0, :3], values[5, 5], values[7, 7] = math.nan, math.inf, -math.inf
    values[9, 9] = -4.0
    found = look(values)
    assert found.nonfinite == 5
    assert found.max_abs == 4.0
    assert found.rms == pytest.approx(math.sqrt((94 * 4 + 16) / 95))


def test_values_whose_square_overflows_are_finite():
    found = look(torch.full((4, 4), 1e30))
    assert found.nonfinite == 0
    assert found.rms == pytest.approx(1e30)


@pytest.mark.parametrize("values", [torch.full((3, 3), math.nan), torch.empty(0, 3)])
def test_nothing_finite_has_no_size(values: Tensor):
    found = look(values)
    assert (found.rms, found.max_abs, found.tiny, found.outliers) == (0, 0, 0, 0)
    assert found.nonfinite == values.numel()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_tiny_is_the_share_of_leftover_integers(share: float):
    """Integers read as floats are denormal; true zeros are not."""
    values = torch.randn(40, 100)
    values.view(-1)[: int(share * 4000)] = torch.tensor([1, 77, 4000], dtype=torch.int32).view(
        torch.float32
    )[torch.arange(int(share * 4000)) % 3]
    assert look(values).tiny == pytest.approx(share)
    assert look(values * (values.abs() > 1e-30)).tiny == 0.0


@pytest.mark.parametrize("bound", [2.0, 2.5, 3.0])
def test_clamped_normals_show_how_many_lie_on_the_bound(bound: float):
    values = torch.randn(200, 300)
    clamped = values.clamp(-bound, bound) * 0.02
    found = look(clamped)
    assert found.outliers == int((values.abs() >= bound).sum())
    assert found.bound == pytest.approx(0.02 * bound)


def test_a_truncation_that_is_written_far_out_is_found_by_its_entries():
    values = torch.randn(200, 300) * 0.02
    values[3, :5] = 2.0
    found = look(values)
    assert (found.outliers, found.bound) == (5, 2.0)


@pytest.mark.parametrize(
    "draw",
    [
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.xavier_uniform_,
        nn.init.kaiming_normal_,
        nn.init.orthogonal_,
        nn.init.zeros_,
        nn.init.ones_,
        nn.init.eye_,
        lambda w: nn.init.sparse_(w, 0.9),
        lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
    ],
)
def test_schemes_leave_no_outliers_and_nothing_tiny(draw: Callable[[Tensor], Tensor]):
    found = look(draw(torch.empty(200, 300)))
    assert (found.outliers, found.bound, found.tiny, found.nonfinite) == (0, 0.0, 0.0, 0)


def test_uniform_draws_are_told_from_others():
    assert look(nn.init.uniform_(torch.empty(200, 300), -0.1, 0.1)).uniform
    assert not look(torch.randn(200, 300)).uniform
    assert not look(torch.zeros(200, 300)).uniform


# ── recording ────────────────────────────────────────────────────────────────────────────────


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
    "storage": lambda w: w.untyped_storage().copy_(torch.randn(32, 16).untyped_storage()),
}


def codes(build: Callable[[], nn.Module]) -> set[str]:
    return {f.code for f in fanin.check(build, torch.randn(64, 16)).findings}


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_a_weight_that_nobody_wrote_is_named(name: str):
    with recording() as record:
        model = Net(ALLOCATIONS[name], lambda w: None)
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
@pytest.mark.parametrize("name", ["empty", "empty_like", "new_empty"])
def test_a_weight_that_was_written_is_not(name: str, write: str):
    with recording() as record:
        model = Net(ALLOCATIONS[name], WRITES[write])
    assert record.unwritten(model) == ()


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

    with recording():
        watched = build()
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
    with recording() as record:
        model = getattr(nn, name)(*ARGUMENTS[name])
    assert next(model.parameters(), None) is not None
    assert record.unwritten(model) == ()
    assert record.idle(model) == ()
    for found in audit(model):
        assert (found.nonfinite, found.tiny, found.outliers) == (0, 0.0, 0), found.name


def test_a_signal_near_the_end_of_float32_is_checked_without_warnings():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight[3:9], model[0].bias[3:9] = 0, 0
        model[0].weight[:2, 0] = 1e38
    assert not fanin.check(model, torch.randn(64, 16)).ok


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda h: h.pow(2).sqrt(), "sqrt"),
        (lambda h: torch.acos(h + 1), "acos"),
        (lambda h: torch.log(h.abs()), "log"),
        (lambda h: 1 / h, "rdiv"),
    ],
    ids=["sqrt", "acos", "log", "quotient"],
)
def test_the_operation_that_is_infinite_at_zero_is_named(function, op: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(20, 32), nn.Linear(32, 10)
            nn.init.zeros_(self.a.weight)
            nn.init.zeros_(self.a.bias)

        def forward(self, x):
            return self.b(function(self.a(x)))

    report = fanin.check(Net(), torch.randn(64, 20), lambda out: out.square().mean())
    (found,) = [f for f in report.findings if f.code == "N403"]
    assert f"first in {op} " in found.measured
