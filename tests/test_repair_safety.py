"""Whatever happens in a repair, what it does not name stays, and what it cannot do it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn
from zoo import Case
from zoo.bad_input import BAD, ODD, Calls
from zoo.blocks import LoRA, classify, mlp, zero_
from zoo.checks import QUIET, parametrize, unchanged
from zoo.faults import FAULTS
from zoo.healthy import HEALTHY
from zoo.mending import mend, mended, same_bits

import fanin
from fanin.errors import ArgumentError, BatchError, FaninError, ForwardError, ModelError

pytestmark = QUIET

BY_NAME = {case.name: case for case in [*FAULTS, *BAD, *ODD]}
MANY = settings(max_examples=14, deadline=None, derandomize=True)


def ill(counts: dict[str, int] | None = None, stop: tuple[str, int] | None = None):
    """Three faults, one behind the other: a NaN, a dead layer, a zero first layer.

    With a norm's buffers, a gradient, a hook, and a counter that can stop it.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        Calls({} if counts is None else counts, stop),
        nn.Linear(24, 24),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(24, 3),
    )
    with torch.no_grad():
        model[7].weight[1, 5] = torch.nan
        model[4].bias.fill_(-100.0)
        model[1].weight.zero_()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].register_forward_hook(lambda *_: None)
    return model, torch.randn(16, 10), classify(16, 3)


def counted(**options: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    model, batch, loss = ill(counts)
    fanin.repair_(model, batch, loss, **options)
    return counts


def spread(total: int, most: int = 3) -> list[int]:
    """The first, the last and some between."""
    return sorted({1, 2, total, *(1 + i * (total - 1) // (most - 1) for i in range(most))})


# ── all that is not named stays ──────────────────────────────────────────────────────────────


def test_three_faults_one_behind_the_other_are_mended_and_all_else_stays():
    """Gradients, buffers, hooks, modes and random states are held by the snapshot of `mend`."""
    done = mend(*ill())
    assert done.repair.ok
    assert done.entries == {"1.weight": 24, "4.bias": 24, "7.weight": 1}


@pytest.mark.parametrize("name", ["zeros-under-sigmoid", "three-nan-in-one-weight"])
def test_a_mended_model_in_eval_mode_stays_in_it(name: str):
    model, batch, loss = BY_NAME[name].build()
    model.eval()
    model[1].train()
    done = mend(model, batch, loss)
    assert done.repair.ok
    assert [m.training for m in model] == [number == 1 for number in range(len(model))]
    assert not model.training


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_keeps_its_state_and_its_parameters(kind):
    torch.manual_seed(0)
    model, batch, loss = mlp(10, 32, 4), torch.randn(40, 10), classify(40, 4)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model(batch)).backward()
        optimizer.step()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    before = copy.deepcopy(optimizer.state_dict())
    done = mend(model, batch, loss)
    assert done.repair.changed == ("0.bias",)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert state.keys() == after["state"][number].keys()
        for key, value in state.items():
            now = after["state"][number][key]
            assert torch.equal(now, value) if isinstance(value, torch.Tensor) else now == value
    held = optimizer.param_groups[0]["params"]
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    was = done.now("0.bias").clone()
    optimizer.zero_grad()
    loss(model(batch)).backward()
    optimizer.step()
    assert not torch.equal(model[0].bias.detach(), was)


def test_the_model_works_on_as_if_only_the_named_entries_had_been_written():
    """Trained on, it is to the bit what the same values give in a model that was never watched."""
    done = mended(BY_NAME["dead-layer-in-the-middle"])
    other = copy.deepcopy(done.original)
    other.load_state_dict(done.model.state_dict())
    ends = []
    for model in (copy.deepcopy(done.model), other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            done.loss(model(done.batch)).backward()
            optimizer.step()
        ends.append(model)
    assert same_bits(*ends)


def test_the_gradient_of_an_earlier_forward_is_right_or_refused():
    """What autograd kept of it is held against what was written since."""
    model, batch, loss = BY_NAME["dead-layer-in-the-middle"].build()
    value, bias = loss(model(batch)), model[4].bias
    (expected,) = torch.autograd.grad(value, bias, retain_graph=True)
    mend(model, batch, loss)  # changes a bias, which no gradient needs
    assert torch.equal(torch.autograd.grad(value, bias)[0], expected)
    model, batch, loss = BY_NAME["circulant-in-the-middle"].build()
    value = loss(model(batch))
    mend(model, batch, loss)  # changes weights, which the gradients before them need
    with pytest.raises(RuntimeError, match="inplace"):
        value.backward()


@pytest.mark.parametrize(
    ("value", "preserve"),
    [
        (0.0, False),
        (0.0, True),
        (-0.0, False),
        (-0.0, True),
    ],
)
def test_the_sign_of_a_zero_stays(value: float, preserve: bool):
    """Columns that are split, and rows that are drawn, leave zeros of both signs beside them."""
    model, batch, loss = BY_NAME["one-cloned-pair"].build()
    with torch.no_grad():
        model[0].weight[:3, :5] = value
        model[2].weight[:2, 9:14] = value
    done = mend(model, batch, loss, warnings=True, preserve=preserve)
    assert done.repair.changed


# ── parameters that are shared, frozen, wrapped, or of another dtype ─────────────────────────


def test_a_tied_weight_is_mended_once_and_stays_tied():
    model, tokens, loss = BY_NAME["tied-head-of-variance-one"].build()
    done = mend(model, tokens, loss, warnings=True)
    assert done.repair.changed == ("embed.weight",)
    assert model.head.weight is model.embed.weight


def test_a_bad_entry_of_a_tied_weight_is_mended_once():
    model, tokens, loss = BY_NAME["embedding-of-variance-one"].build()
    with torch.no_grad():
        model.embed.weight[:] /= 50
        model.embed.weight[7, 3] = torch.nan
    done = mend(model, tokens, loss)
    assert done.entries == {"embed.weight": 1}
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize(
    "name",
    [
        "zeros-under-relu-and-softmax",
        "constants",
        "dead-layer-in-the-middle",
        "three-nan-in-one-weight",
        "tanh-net-with-weights-of-ten",
        "huge-weights-in-a-deep-relu-net",
        "one-cloned-pair",
    ],
)
def test_frozen_parameters_are_never_changed(name: str):
    """Every other layer is frozen, guilty or not."""
    model, batch, loss = BY_NAME[name].build()
    frozen = [f"{number}." for number in range(2, len(model), 4)]
    for number in range(2, len(model), 4):
        model[number].requires_grad_(False)
    done = mend(model, batch, loss, warnings=True)
    assert not any(p.startswith(tuple(frozen)) for p in done.repair.changed)
    assert done.repair.ok or "errors left" in str(done.repair) or "no remedy" in str(done.repair)


def test_frozen_nan_is_told_and_left():
    torch.manual_seed(0)
    model = mlp(10, 16, 16, 4)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    model[2].requires_grad_(False)
    done = mend(model, torch.randn(20, 10), classify(20, 4))
    assert not done.repair.changed
    assert not done.repair.ok
    assert "N401" in str(done.repair)


ANY_DTYPE = [
    "zeros-under-relu-and-softmax",
    "circulant-in-the-middle",
    "constant-lstm",
    "lora-with-both-factors-zero",
    "dead-layer-in-the-middle",
    "three-nan-in-one-weight",
    "tiny-weights-in-a-deep-net",
    "net2net-without-noise",
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in ANY_DTYPE),
        *((name, torch.float64) for name in ANY_DTYPE[::3]),
    ],
)
def test_a_model_of_another_dtype_is_mended_in_it(name: str, dtype: torch.dtype):
    model, batch, loss = BY_NAME[name].build()
    model, batch = model.to(dtype), batch.to(dtype)
    mse = name == "circulant-in-the-middle"
    criterion = (lambda out: out.square().mean()) if mse else loss
    done = mend(model, batch, criterion, warnings=True)
    assert done.repair.changed
    assert done.repair.ok, str(done.repair)
    assert {p.dtype for p in model.parameters()} == {dtype}
    other = copy.deepcopy(done.original)
    fanin.Plan.from_toml(done.repair.plan.to_toml()).apply_(other)
    assert same_bits(other, model)


def test_the_same_fault_is_mended_with_the_same_numbers_in_every_precision():
    """bfloat16 holds the rounded values of what float32 is given."""
    drawn = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, batch, loss = BY_NAME["zero-first-layer-under-relu"].build()
        done = mend(model.to(dtype), batch.to(dtype), loss)
        drawn[dtype] = done.now("0.weight").double()
    exact = drawn[torch.float64]
    assert torch.allclose(drawn[torch.float32], exact, rtol=1e-6)
    assert torch.allclose(drawn[torch.bfloat16], exact, rtol=1e-2)


@pytest.mark.parametrize("wrap", ["data-parallel", "compiled"])
def test_a_wrapped_model_is_mended_under_the_paths_of_the_original(wrap: str):
    model, batch, loss = BY_NAME["dead-layer-in-the-middle"].build()
    wrapped = nn.DataParallel(model) if wrap == "data-parallel" else torch.compile(model)
    repair = fanin.repair_(wrapped, batch, loss)
    assert repair.changed == ("2.bias",)
    assert repair.ok
    assert same_bits(model, mended(BY_NAME["dead-layer-in-the-middle"]).model)
    other = BY_NAME["dead-layer-in-the-middle"].build()[0]
    repair.plan.apply_(other)
    assert same_bits(model, other)


def normed(width: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(width, width)) for _ in range(2)]
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), layers[0], nn.ReLU(), layers[1])


def test_the_parameters_behind_weight_norm_are_what_is_mended():
    """A magnitude of zero closes the layer; a NaN hides in one direction."""
    model, batch, loss = normed(), torch.randn(32, 10), classify(32, 24)
    with torch.no_grad():
        model[2].parametrizations.weight.original0.zero_()
        nn.init.zeros_(model[2].bias)
    done = mend(model, batch, loss)
    assert done.repair.ok, str(done.repair)
    assert set(done.repair.changed) <= {
        "2.parametrizations.weight.original0",
        "2.parametrizations.weight.original1",
        "2.bias",
    }
    assert model[2].weight.std() > 0
    model = normed()
    with torch.no_grad():
        model[2].parametrizations.weight.original1[3, 4] = torch.nan
    done = mend(model, batch, loss)
    assert done.entries == {"2.parametrizations.weight.original1": 1}
    assert done.repair.ok


def test_a_signal_that_fades_under_weight_norm_is_restored():
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)) for _ in range(4)]
    model = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())), nn.Linear(16, 4))
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original0.mul_(1e-3)
    done = mend(model, torch.randn(32, 16), classify(32, 4))
    assert not done.repair.before.ok
    assert done.repair.ok


def test_the_frozen_base_of_an_adapter_stays():
    torch.manual_seed(0)
    model = nn.Sequential(LoRA(nn.Linear(10, 16)), nn.Tanh(), LoRA(nn.Linear(16, 4)))
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.A)
    done = mend(model, torch.randn(40, 10), classify(40, 4))
    assert done.repair.changed == ("0.A", "2.A")


# ── interrupts and errors ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize(
    "options", [{}, {"preserve": True, "warnings": True}], ids=["", "preserve"]
)
def test_ctrl_c_at_any_pass_leaves_the_model_as_it_was(kind: str, options: dict):
    times = counted(**options)[kind]
    assert times > 5
    for stop in spread(times):
        model, batch, loss = ill({}, (kind, stop))
        with unchanged(model, batch), pytest.raises(KeyboardInterrupt):
            fanin.repair_(model, batch, loss, **options)


def test_ctrl_c_in_the_progress_callback_leaves_the_model_as_it_was():
    told: list[str] = []
    model, batch, loss = ill()
    fanin.repair_(model, batch, loss, progress=told.append)
    assert any("round" in text for text in told)
    for number in spread(len(told), most=4):
        calls: list[str] = []

        def progress(text: str, stop: int = number, calls: list[str] = calls) -> None:
            calls.append(text)
            if len(calls) == stop:
                raise KeyboardInterrupt

        model, batch, loss = ill()
        with unchanged(model, batch), pytest.raises(KeyboardInterrupt):
            fanin.repair_(model, batch, loss, progress=progress)


def raising(loss: Callable, stop: int, error: BaseException, calls: list[int]) -> Callable:
    def criterion(output):
        calls.append(1)
        if len(calls) == stop:
            raise error
        return loss(output)

    return criterion


def test_a_loss_that_raises_at_any_call_leaves_the_model_as_it_was():
    model, batch, loss = ill()
    calls: list[int] = []
    fanin.repair_(model, batch, raising(loss, 0, RuntimeError(), calls))
    stops = [(stop, error) for stop in spread(len(calls)) for error in (RuntimeError, SystemExit)]
    for stop, error in [*stops, (len(calls), KeyboardInterrupt)]:
        model, batch, loss = ill()
        with unchanged(model, batch), pytest.raises((error, FaninError)):
            fanin.repair_(model, batch, raising(loss, stop, error("no"), []))


@pytest.mark.parametrize("where", ["forward", "forward-pre", "backward"])
def test_a_hook_that_raises_at_any_call_leaves_the_model_as_it_was(where: str):
    def hooked(stop: int, calls: list[int]):
        def hook(*_):
            calls.append(1)
            if len(calls) == stop:
                raise ValueError("from the hook")

        model, batch, loss = ill()
        register = {
            "forward": model[4].register_forward_hook,
            "forward-pre": model[4].register_forward_pre_hook,
            "backward": model[4].register_full_backward_hook,
        }
        register[where](hook)
        return model, batch, loss

    calls: list[int] = []
    fanin.repair_(*hooked(0, calls))
    for stop in spread(len(calls)):
        model, batch, loss = hooked(stop, [])
        with unchanged(model, batch), pytest.raises(ForwardError, match="from the hook"):
            fanin.repair_(model, batch, loss)


def test_an_error_between_two_writes_takes_the_first_one_back(monkeypatch):
    """The second draw of a repair fails: memory can run out anywhere."""
    from fanin import apply

    draw, written = apply.assign_, []

    def failing(tensor, assignment, seed, name, window, queue):
        if written:
            raise MemoryError("no memory left")
        draw(tensor, assignment, seed, name, window)  # at once, without the queue
        written.append(assignment.parameter)

    model, batch, loss = BY_NAME["zeros-under-sigmoid"].build()
    with unchanged(model, batch):
        monkeypatch.setattr(apply, "assign_", failing)
        with pytest.raises(MemoryError):
            fanin.repair_(model, batch, loss)
        monkeypatch.undo()
    assert written


def test_gradients_as_small_as_float64_holds_are_no_reason_to_fail():
    """A zero norm in each block, and a head so large that its softmax is 0 or 1."""
    case = next(c for c in HEALTHY if c.name == "resnet-basic-zero-norm")
    model, batch, loss = case.build()
    with torch.no_grad():
        model.head.weight.mul_(1e4)
    assert mend(model, batch, loss).repair.ok


def test_a_repair_works_after_one_that_was_interrupted():
    model, batch, loss = ill({}, ("forward", 6))
    with pytest.raises(KeyboardInterrupt):
        fanin.repair_(model, batch, loss)
    assert fanin.repair_(model, batch, loss).changed == mend(*ill()).repair.changed


# ── bad input ────────────────────────────────────────────────────────────────────────────────


@parametrize(BAD)
def test_bad_input_ends_in_one_clear_error_and_leaves_no_trace(case: Case):
    model, batch, loss = case.build()
    with unchanged(model, batch):
        try:
            repair = fanin.repair_(model, batch, loss, **case.options)
        except FaninError as error:
            came: Any = error
        else:
            assert case.may_work
            assert not repair.changed
            return
    assert isinstance(came, case.raises), f"{type(came).__name__}: {came}"
    assert str(came)
    assert "\n" not in str(came).strip()
    for word in case.words:
        words = (word,) if isinstance(word, str) else word
        assert any(w.lower() in str(came).lower() for w in words), f"no {word!r} in: {came}"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"seed": -1}, ArgumentError),
        ({"seed": 1.5}, ArgumentError),
        ({"seed": True}, ArgumentError),
        ({"seed": 2**64}, ArgumentError),
        ({"dtype": "float17"}, ArgumentError),
        ({"select": ["X9"]}, ArgumentError),
        ({"ignore": ["S999"]}, ArgumentError),
    ],
)
def test_a_bad_option_of_an_ill_model_is_one_clear_error(options: dict, error: type[Exception]):
    model, batch, loss = ill()
    with unchanged(model, batch), pytest.raises(error) as caught:
        fanin.repair_(model, batch, loss, **options)
    assert next(iter(options)) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_ill_model_and_a_bad_batch_are_told_from_each_other():
    model, _, loss = ill()
    batch = torch.full((16, 10), torch.nan)
    with unchanged(model, batch), pytest.raises(BatchError):
        fanin.repair_(model, batch, loss)
    meta = nn.Linear(4, 2, device="meta")
    with pytest.raises(ModelError, match="meta"):
        fanin.repair_(meta, torch.randn(3, 4))


@parametrize(ODD)
def test_odd_input_is_mended_or_left_and_told(case: Case):
    model, batch, loss = case.build()
    if case.name == "forward-that-changes-the-process":
        repair = fanin.repair_(model, batch, loss)
    else:
        done = mend(model, batch, loss, warnings=True)
        repair = done.repair
        again = fanin.Plan.from_toml(repair.plan.to_toml())
        assert again == repair.plan
    assert repair.ok
    assert "\x1b" not in str(repair)
    assert all(len(line) <= 100 for line in str(repair).splitlines())


# ── anything at all ──────────────────────────────────────────────────────────────────────────


def zero(layer: nn.Linear, _: torch.Generator) -> None:
    zero_(layer)


def holes(layer: nn.Linear, generator: torch.Generator) -> None:
    hit = torch.rand(layer.weight.shape, generator=generator) < 0.1
    layer.weight[hit] = torch.nan


def infinite(layer: nn.Linear, _: torch.Generator) -> None:
    layer.weight[0, 0] = -torch.inf


def copies(layer: nn.Linear, _: torch.Generator) -> None:
    layer.weight[:] = layer.weight[0].clone()
    layer.bias[:] = layer.bias[0].clone()


def columns(layer: nn.Linear, _: torch.Generator) -> None:
    layer.weight[:] = layer.weight[:, :1].clone()


def large(layer: nn.Linear, _: torch.Generator) -> None:
    layer.weight.mul_(1e4)


def small(layer: nn.Linear, _: torch.Generator) -> None:
    layer.weight.mul_(1e-4)


def dead(layer: nn.Linear, _: torch.Generator) -> None:
    layer.bias.fill_(-100.0)


def frozen(layer: nn.Linear, _: torch.Generator) -> None:
    layer.requires_grad_(False)


DAMAGES = [zero, holes, infinite, copies, columns, large, small, dead, frozen]


@st.composite
def damaged(draw: st.DrawFn):
    """A small network with anything from one to four damages to its layers."""
    widths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=6))
    act = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU]))
    torch.manual_seed(draw(st.integers(0, 99)))
    model = mlp(5, *widths, act=act)
    batch = torch.randn(24, 5)
    target = torch.randn(24, widths[-1])
    generator = torch.Generator().manual_seed(1)
    names = []
    with torch.no_grad():
        for _ in range(draw(st.integers(1, 4))):
            damage = draw(st.sampled_from(DAMAGES))
            at = draw(st.integers(0, len(widths) - 1))
            damage(model[2 * at], generator)
            names.append(f"{damage.__name__}({2 * at})")
    if not any(p.requires_grad for p in model.parameters()):
        model[0].requires_grad_(True)
    return model, batch, lambda out: F.mse_loss(out, target), names


@MANY
@given(damaged(), st.booleans(), st.booleans())
def test_any_damage_is_mended_or_what_is_left_is_said(case, warnings: bool, preserve: bool):
    model, batch, loss, _ = case
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    done = mend(model, batch, loss, warnings=warnings, preserve=preserve)
    repair = done.repair
    assert set(repair.changed) <= trainable
    errors = [f.code for f in repair.after.findings if f.severity == "error"]
    assert repair.ok == (not errors)
    for code in errors:
        assert code in str(repair)
    assert len(errors) <= sum(f.severity == "error" for f in repair.before.findings)
    other = copy.deepcopy(done.original)
    fanin.Plan.from_toml(repair.plan.to_toml()).apply_(other)
    assert same_bits(other, model)
    with torch.no_grad():
        was, now = done.original(batch), model(batch)
    if preserve and was.isfinite().all():
        assert (now - was).abs().max() <= 1e-5 * was.abs().max()


@MANY
@given(damaged(), st.integers(0, 3))
def test_all_or_nothing_is_all_or_nothing(case, seed: int):
    model, batch, loss, _ = case
    done = mend(model, batch, loss, seed=seed, all_or_nothing=True)
    assert done.repair.ok or not done.repair.changed
    assert done.repair.ok != done.repair.undone


def test_complex_parameters_are_left_alone():
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.zeros(9, dtype=torch.cfloat))
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=16))

    model, batch = Spectrum(), torch.randn(32, 16)
    nn.init.zeros_(model.head.weight)
    before = model.filter.detach().clone()
    fanin.repair_(model, batch)
    assert torch.equal(model.filter, before)


def test_a_warning_without_remedy_undoes_nothing():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    model = Spare()
    with torch.no_grad():
        model.used.weight[1, 1] = torch.nan
    done = fanin.repair_(model, torch.randn(32, 8), warnings=True, all_or_nothing=True)
    assert done.changed == ("used.weight",)
    assert not done.undone
