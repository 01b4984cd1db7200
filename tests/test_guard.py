"""Whatever a forward does to its model, and to the random states, is put back."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import seeded
from zoo.checks import unchanged

import fanin
from fanin.errors import ForwardError, LossError, ModelError
from fanin.guard import Guard, untouched


class Naughty(nn.Module):
    """Does something to itself before it computes."""

    def __init__(self, act: Callable[[Naughty], object]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("count", torch.tensor(0))
        self.last.weight.grad = torch.ones_like(self.last.weight)
        self.steps, self.names, self.kept, self.seen = 0, ["a", "b"], {"x": 1}, {1, 2}
        self.cache = torch.zeros(3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        self.act(self)
        return self.last(self.first(x).relu())


@pytest.fixture(autouse=True)
def distributions_refuse_nan():
    """As torch has it; its compiler, in a test before, may have switched that off for good."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(True)
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.fixture(autouse=True)
def _seed():
    with seeded(9):
        yield


@torch.no_grad()
def quietly(function: Callable[[], object]) -> None:
    function()


# ── what a forward may do, and is forgotten ──────────────────────────────────────────────────

HARMLESS: dict[str, Callable[[Naughty], object]] = {
    "buffer in place": lambda m: m.mean.add_(1),
    "buffer by index": lambda m: m.mean.__setitem__(0, 5.0),
    "buffer through a view": lambda m: m.mean.view(2, 3)[0].fill_(2),
    "buffer replaced": lambda m: setattr(m, "mean", torch.ones(6)),
    "buffer deleted": lambda m: delattr(m, "mean"),
    "buffer added": lambda m: m.register_buffer("other", torch.ones(2)),
    "buffer becomes nan": lambda m: m.mean.fill_(float("nan")),
    "integer buffer": lambda m: m.count.add_(1),
    "number": lambda m: setattr(m, "steps", m.steps + 1),
    "attribute added": lambda m: setattr(m, "new", 3),
    "attribute deleted": lambda m: delattr(m, "steps"),
    "list": lambda m: m.names.append("c"),
    "list in place": lambda m: m.names.__setitem__(0, "z"),
    "list emptied": lambda m: m.names.clear(),
    "dict": lambda m: m.kept.update(x=2, y=3),
    "dict emptied": lambda m: m.kept.clear(),
    "dict reordered": lambda m: (m.kept.clear(), m.kept.update(y=1, x=1)),
    "set": lambda m: m.seen.add(3),
    "mode": lambda m: m.eval(),
    "submodule added": lambda m: setattr(m, "third", nn.Linear(2, 2)),
    "submodule replaced": lambda m: setattr(m, "first", nn.Linear(6, 8)),
    "parameter added": lambda m: setattr(m, "w", nn.Parameter(torch.ones(2))),
    "parameter replaced": lambda m: setattr(m.first, "bias", nn.Parameter(torch.ones(8))),
    "frozen": lambda m: m.first.requires_grad_(False),
    "gradient": lambda m: setattr(m.first.weight, "grad", torch.ones(8, 6)),
    "gradient dropped": lambda m: setattr(m.last.weight, "grad", None),
    "hook": lambda m: m.first.register_forward_hook(lambda *_: None),
    "data replaced": lambda m: setattr(m.first.weight, "data", torch.ones(8, 6)),
    "torch's state": lambda m: torch.rand(3),
    "numpy's state": lambda m: np.random.rand(3),
    "python's state": lambda m: random.random(),
    "seeds": lambda m: (torch.manual_seed(1), np.random.seed(1), random.seed(1)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_forward_does_to_its_model_is_put_back(name: str):
    model, x = Naughty(HARMLESS[name]), torch.randn(16, 6)
    with unchanged(model, x), untouched(model):
        model(x)


@pytest.mark.parametrize("name", HARMLESS)
def test_the_act_would_have_left_a_trace(name: str):
    model, x = Naughty(HARMLESS[name]), torch.randn(16, 6)
    with pytest.raises(AssertionError, match="left a trace"), unchanged(model, x):
        model(x)


@pytest.mark.parametrize("name", ["buffer in place", "number", "list", "dict", "seeds", "mode"])
def test_it_is_put_back_also_when_the_block_fails(name: str):
    def act(m: Naughty) -> None:
        HARMLESS[name](m)
        raise ZeroDivisionError

    model, x = Naughty(act), torch.randn(16, 6)
    with unchanged(model, x):
        with pytest.raises(ZeroDivisionError), untouched(model):
            model(x)
        with pytest.raises(fanin.FaninError):
            fanin.check(model, x)


@pytest.mark.parametrize(
    "act",
    [
        lambda m: setattr(m.mean, "data", torch.ones(9)),
        lambda m: m.mean.set_(torch.ones(9)),
    ],
    ids=["data", "set_"],
)
def test_a_buffer_of_another_shape_is_put_back(act: Callable[[Naughty], object]):
    model, x = Naughty(act), torch.randn(16, 6)
    with unchanged(model, x), untouched(model):
        model(x)


def test_a_buffer_that_was_resized_has_its_shape_and_values_again():
    model, x = Naughty(lambda m: m.mean.resize_(9)), torch.randn(16, 6)
    before = model.mean.clone()
    fanin.check(model, x)
    assert torch.equal(model.mean, before)


def test_a_tensor_that_is_no_buffer_is_put_back():
    model, x = Naughty(lambda m: m.cache.add_(1)), torch.randn(16, 6)
    with unchanged(model, x):
        fanin.check(model, x)


# ── frozen parameters that a forward writes ──────────────────────────────────────────────────

FOLLOWS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "in place": lambda t, p: t.mul_(0.9).add_(p, alpha=0.1),
    "operator": lambda t, p: t.__imul__(0.9).__iadd__(0.1 * p),
    "data": lambda t, p: setattr(t, "data", t.data * 0.9 + p.data * 0.1),
    "data in place": lambda t, p: t.data.lerp_(p.data, 0.1),
    "copied": lambda t, p: t.copy_(0.9 * t + 0.1 * p),
    "foreach": lambda t, p: torch._foreach_lerp_([t], [p], 0.1),
    "out": lambda t, p: torch.lerp(t, p, 0.1, out=t),
    "by index": lambda t, p: t.__setitem__(..., t.lerp(p, 0.1)),
}


class Momentum(nn.Module):
    """A teacher follows by an average that the forward takes, as in MoCo; contrast is the loss."""

    def __init__(self, follow: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        made = (nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))
        self.student, self.follow = nn.Sequential(*made), follow
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        with torch.no_grad():
            self.teacher[0].weight.mul_(1.1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for teacher, student in pairs:
                self.follow(teacher, student)
            keys = F.normalize(self.teacher(y), dim=1)
        queries = F.normalize(self.student(x), dim=1)
        return F.cross_entropy(queries @ keys.T / 0.2, torch.arange(len(x)))


def momentum(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    x = torch.randn(16, 6)
    return Momentum(FOLLOWS[name]), (x, x + 0.1 * torch.randn(16, 6))


def _itself(found: Tensor) -> Tensor:
    return found


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_teacher_that_follows_in_the_forward_is_sound_and_put_back(name: str):
    model, batch = momentum(name)
    with unchanged(model, batch):
        report, plan = fanin.check(model, batch, _itself), fanin.plan(model, batch)
        with untouched(model):
            model(*batch)
    assert report.ok
    assert [s.name for s in report.layers if s.gradient_rms] == ["student.0", "student.2"]
    assert plan.untouched.keys() == {n for n, _ in model.named_parameters() if n[0] == "t"}
    teacher = [(p, p.data_ptr(), p.clone()) for p in model.teacher.parameters()]
    fanin.init_(model, batch)
    fanin.calibrate_(model, batch)
    assert all(p.data_ptr() == at and torch.equal(p, was) for p, at, was in teacher)


@pytest.mark.parametrize("name", FOLLOWS)
@pytest.mark.parametrize("preserve", [False, True])
def test_a_teacher_that_follows_is_put_back_by_a_repair(name: str, preserve: bool):
    model, batch = momentum(name)
    first, _, last = model.student
    with torch.no_grad():
        first.weight[16:], first.bias[16:] = first.weight[:16], first.bias[:16]
        last.weight[:, 16:] = last.weight[:, :16]
    teacher = [(p, p.data_ptr(), p.clone()) for p in model.teacher.parameters()]
    repair = fanin.repair_(model, batch, _itself, warnings=True, preserve=preserve)
    assert repair.changed or preserve  # what changes the student shows in the teacher too
    assert all(p.data_ptr() == at and torch.equal(p, was) for p, at, was in teacher)


def test_a_forward_that_sets_its_own_start_is_told_to_be_run_before():
    class Normalized(Naughty):
        def forward(self, x: Tensor) -> Tensor:
            if not self.count:
                self.first.weight.data.div_(x.std())
                self.count.fill_(1)
            return super().forward(x)

    model, x = Normalized(lambda m: None), torch.randn(16, 6)
    model.last.weight.requires_grad_(False)
    for verb in (fanin.check, fanin.plan, fanin.init_):
        with (
            unchanged(model, x),
            pytest.raises(ModelError, match=r"'first.weight' in place; .* run it once before"),
        ):
            verb(model, x)
    model(x)
    assert fanin.check(model, x).ok


def test_a_parameter_that_is_written_from_the_data_keeps_no_hook():
    class Shifted(Naughty):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.first.bias.copy_(x.mean() - self.first.bias)
            return self.last((self.first.weight.mean(1) + self.first.bias) * x.mean(1, True))

    model, x = Shifted(lambda m: None), torch.randn(16, 6)
    with unchanged(model, x), pytest.raises(ModelError, match=r"'first\.bias' in place"):
        fanin.check(model, x)


# ── writing into parameters ──────────────────────────────────────────────────────────────────

WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda w: quietly(lambda: w.mul_(2)),
    "operator": lambda w: quietly(lambda: w.__iadd__(1)),
    "by index": lambda w: quietly(lambda: w.__setitem__(0, 1.0)),
    "data": lambda w: w.data.add_(1),
    "data by index": lambda w: w.data.__setitem__((0, 0), 7.0),
    "detached": lambda w: w.detach().zero_(),
    "view": lambda w: quietly(lambda: w.view(-1)[3:5].fill_(9)),
    "transposed": lambda w: quietly(lambda: w.t().copy_(torch.ones(6, 8))),
    "row of data": lambda w: w.data[1].normal_(),
    "chunk": lambda w: w.detach().chunk(2)[1].zero_(),
    "out": lambda w: torch.add(w.data, 1, out=w.data),
    "overload": lambda w: quietly(lambda: torch.ops.aten.mul_.Scalar(w, 0.9)),
    "init": lambda w: nn.init.orthogonal_(w),
    "nan": lambda w: w.data.fill_(float("nan")),
    "foreach": lambda w: torch._foreach_add_([w.data], 1.0),
    "twice": lambda w: (w.data.add_(1), w.data.mul_(3)),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_parameter_that_the_forward_writes_is_put_back_and_named(name: str):
    model = Naughty(lambda m: WRITES[name](m.first.weight))
    x = torch.randn(16, 6)
    with unchanged(model, x), pytest.raises(fanin.FaninError) as caught:
        fanin.check(model, x)
    assert "first.weight" in str(caught.value)


@pytest.mark.parametrize(
    "write",
    [
        nn.init.normal_,
        nn.init.uniform_,
        lambda w: nn.init.constant_(w, 3.0),
        nn.init.kaiming_uniform_,
        lambda w: quietly(lambda: torch.relu_(input=w)),
    ],
    ids=["normal_", "uniform_", "constant_", "kaiming_uniform_", "relu_(input=)"],
)
def test_a_parameter_that_is_written_by_keyword_is_put_back(write: Callable[[Tensor], object]):
    model, x = Naughty(lambda m: write(m.first.weight)), torch.randn(16, 6)
    with unchanged(model, x), pytest.raises(fanin.FaninError):
        fanin.check(model, x)


@pytest.mark.parametrize(
    "swap",
    [
        lambda w: w.data.set_(torch.ones(8, 6)),
        lambda w: setattr(w, "data", torch.ones(8, 6)),
        lambda w: setattr(w, "data", torch.ones(2, 2)),
        lambda w: quietly(lambda: w.set_(torch.ones(8, 6))),
    ],
    ids=["data.set_", "data", "data of another shape", "set_"],
)
def test_a_parameter_whose_memory_is_swapped_gets_its_own_back(swap: Callable[[Tensor], object]):
    model, x = Naughty(lambda m: None), torch.randn(16, 6)
    with unchanged(model, x), untouched(model):
        swap(model.first.weight)


def test_a_guard_copies_what_it_is_told_of_and_lists_what_changed():
    model = Naughty(lambda m: None)
    guard = Guard(model)
    assert guard.changed() == []
    before = model.first.weight.detach().clone()
    guard.protect(model.first.weight.data[2:4])
    guard.protect(torch.ones(3))
    assert guard.written == ["first.weight"]
    assert guard.changed() == []  # told, but nothing was written
    model.first.weight.data[3].zero_()
    assert guard.changed() == ["first.weight"]
    guard.restore()
    assert torch.equal(model.first.weight, before)


def test_parameters_that_share_memory_are_put_back_together():
    model = Naughty(lambda m: None)
    whole = torch.randn(2, 8, 6)
    model.first.weight = nn.Parameter(whole[0])
    model.other = nn.Parameter(whole[1])
    with unchanged(model, None):
        guard = Guard(model)
        guard.protect(whole)
        whole.zero_()
        assert set(guard.changed()) == {"first.weight", "other"}
        guard.restore()


def test_a_well_behaved_model_is_not_copied():
    model = Naughty(lambda m: None)
    guard = Guard(model)
    model(torch.randn(16, 6))
    assert guard.written == []
    assert guard.changed() == []


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (
        lambda: torch.Generator().manual_seed(3),
        lambda g: torch.rand(3, generator=g).tolist(),
    ),
    "numpy": (lambda: np.random.default_rng(3), lambda g: g.random(3).tolist()),
    "numpy, old": (lambda: np.random.RandomState(3), lambda g: g.rand(3).tolist()),
    "python": (lambda: random.Random(3), lambda g: g.random()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_of_the_models_own_goes_on_as_if_nothing_had_been_drawn(name: str):
    make, draw = GENERATORS[name]
    model, x = Naughty(lambda m: draw(m.generator)), torch.randn(16, 6)
    model.generator, other = make(), make()
    for verb in (fanin.check, fanin.plan, fanin.repair_):
        verb(model, x)
    assert draw(model.generator) == draw(other)


@pytest.mark.parametrize("draw", [lambda: torch.rand(4).tolist(), np.random.rand, random.random])
def test_random_states_go_on_as_if_nothing_had_been_drawn(draw: Callable[[], Any]):
    model, x = Naughty(lambda m: draw()), torch.randn(16, 6)

    def drawn(between: Callable[[], object]) -> list[Any]:
        with seeded(1):
            first = draw()
            between()
            return [first, draw()]

    assert drawn(lambda: fanin.check(model, x)) == drawn(lambda: None)


class Policy(nn.Module):
    """Its distribution refuses NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean = nn.Linear(4, 8), nn.Linear(8, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return torch.distributions.Normal(self.mean(self.body(x).tanh()), self.log_std.exp())


def _likelihood(found):
    return -found.log_prob(torch.zeros(16, 2)).mean()


def test_a_forward_that_refuses_nan_does_not_hide_where_it_is():
    torch.manual_seed(0)
    model, batch = Policy(), torch.randn(16, 4)
    with torch.no_grad():
        model.body.weight[0, 0] = math.nan
    with unchanged(model, batch):
        report = fanin.check(model, batch, _likelihood)
    assert [(f.code, f.layers) for f in report.findings] == [("N401", ("body.weight",))]
    assert "refuses them (ValueError)" in report.findings[0].message
    with unchanged(model, batch):
        planned = fanin.plan(model, batch)
    assert planned["body.weight"].std > 0
    repair = fanin.repair_(model, batch, _likelihood)
    assert repair.after.ok
    assert repair.changed == ("body.weight",)
    assert sum(change.entries for change in repair.changes) == 1


def test_an_error_of_the_forward_that_is_not_for_nan_is_told():
    model, batch = Policy(), torch.randn(16, 5)
    with torch.no_grad():
        model.body.weight[0, 0] = math.nan
    with unchanged(model, batch), pytest.raises(ForwardError, match="shapes cannot be multiplied"):
        fanin.check(model, batch, _likelihood)
    with unchanged(model, batch), pytest.raises(ForwardError, match="shapes cannot be multiplied"):
        fanin.plan(model, batch)


def test_a_loss_that_is_not_finite_by_itself_names_what_made_it_so():
    model, batch = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), torch.randn(16, 4)
    with unchanged(model, batch), pytest.raises(LossError, match="sqrt gives the first"):
        fanin.check(model, batch, lambda out: (out - 2).sqrt().mean())


def test_an_error_that_comes_once_is_not_taken_for_one_of_nan():
    torch.manual_seed(0)
    model, batch, calls = Policy(), torch.randn(16, 4), []
    with torch.no_grad():
        model.log_std[0] = math.nan

    def forward(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")
        return model.mean(model.body(x).tanh()) * model.log_std.exp()

    model.forward = forward
    with unchanged(model, batch), pytest.raises(ForwardError, match="once"):
        fanin.check(model, batch)
    assert len(calls) > 1


@pytest.mark.parametrize("given", [{"select": "S"}, {"ignore": "N401"}])
def test_a_model_that_refuses_nan_is_not_called_sound_by_a_check_for_other_things(given):
    model, batch = Policy(), torch.randn(16, 4)
    with torch.no_grad():
        model.body.weight[0, 0] = math.nan
    with unchanged(model, batch), pytest.raises(ForwardError, match="invalid values"):
        fanin.check(model, batch, _likelihood, **given)


def test_an_error_of_the_loss_names_what_was_not_finite_before_it():
    model, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(6, 4)
    with torch.no_grad():
        model[2].weight.mul_(1e4)

    def likelihood(out):
        width = out.exp()
        return F.binary_cross_entropy((width - width).sigmoid(), torch.ones(6, 3))

    told = r"between 0 and 1; before that, exp behind 2\.weight gave inf$"
    with unchanged(model, batch), pytest.raises(ForwardError, match=told):
        fanin.check(model, batch, likelihood)


def test_the_error_of_a_forward_is_told_beside_a_dtype_that_has_no_nan_test():
    model = nn.Sequential(nn.Linear(4, 3))
    model.kept = nn.Parameter(torch.zeros(4).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ForwardError, match="shapes cannot be multiplied"):
        fanin.plan(model, torch.randn(2, 5))


class Unseen(nn.Module):
    """Writes into a frozen parameter where no watch sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean = nn.Linear(4, 3), nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        with torch._C.DisableTorchFunction():
            self.mean.mul_(0.9)
        return self.layer(x) + self.mean


@pytest.mark.parametrize("verb", [fanin.check, fanin.plan, fanin.init_])
def test_a_frozen_parameter_that_cannot_be_put_back_is_an_error(verb):
    with pytest.raises(ModelError, match="changes the parameter 'mean' in place"):
        verb(Unseen(), torch.randn(16, 4))


# ── contexts around a call ───────────────────────────────────────────────────────────────────


def test_under_autocast_values_from_before_a_change_count_for_nothing():
    """Autocast keeps what it converted of a weight until its block ends."""

    def build() -> nn.Module:
        with seeded(1):
            layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)]
            return nn.Sequential(*layers)

    def trained() -> float:
        pair, loss = (batch, target), nn.functional.cross_entropy
        found = fanin.compare(build, pair, loss, schemes=["default"], steps=20)
        assert found["default"].final is not None
        return found["default"].final

    batch, target = torch.randn(32, 6), torch.randint(3, (32,))
    plain, model = build(), build()
    told, curve = fanin.init_(plain, batch, "lsuv"), trained()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
        measured = fanin.init_(model, batch, "lsuv")
        inside = model(batch).detach().float()
        assert trained() == pytest.approx(curve, rel=0.02)
        assert torch.is_autocast_cache_enabled()
    assert [a.std for a in measured] == pytest.approx([a.std for a in told], rel=0.02)
    torch.testing.assert_close(inside, plain(batch).detach(), rtol=0.05, atol=0.05)
