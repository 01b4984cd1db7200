"""A plan is written into a model whole or not at all, and decides every bit of what it writes."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from zoo import blocks, seeded
from zoo.blocks import Residual, mlp
from zoo.checks import QUIET, unchanged
from zoo.healthy import HEALTHY

import fanin
import fanin.fill.filling
from fanin import apply, draw
from fanin.apply import apply_, kept, lent
from fanin.assignment import Assignment, Recipe
from fanin.errors import ArgumentError, FaninError, ForwardError, ModelError, RecipeError
from fanin.planning import Plan, init_, plan

pytestmark = QUIET

BY_NAME = {case.name: case for case in HEALTHY}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(value) for name, value in model.named_parameters()}


def built(name: str) -> tuple[nn.Module, Any]:
    return BY_NAME[name].build()[:2]


# ── all or nothing ───────────────────────────────────────────────────────────────────────────

BREAKS = (KeyboardInterrupt, SystemExit, MemoryError, RuntimeError, ArgumentError)


def break_at(monkeypatch: pytest.MonkeyPatch, stop: int, error: type[BaseException]) -> list[str]:
    """Let the `stop`-th draw of a parameter write, and raise."""
    seen: list[str] = []
    assign = fanin.apply.assign_

    def breaking(tensor, assignment, seed, name, window=None, queue=None):
        assign(tensor, assignment, seed, name, window)  # at once, without the queue
        seen.append(name)
        if len(seen) == stop:
            raise error("stop")

    monkeypatch.setattr(fanin.apply, "assign_", breaking)
    return seen


@pytest.mark.parametrize("error", BREAKS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("stop", [1, 3, 8])
def test_an_error_in_the_middle_puts_everything_back(monkeypatch, stop: int, error):
    model, batch = built("mlp-batch-norm")
    found = plan(model, batch)
    seen = break_at(monkeypatch, stop, error)
    with unchanged(model, batch), pytest.raises(error):
        found.apply_(model)
    assert len(seen) == stop


def test_of_two_assignments_of_one_parameter_the_last_one_counts():
    """As in a recipe for a model whose tables were not tied; the second may build on the first."""
    first = Assignment("weight", "normal", 1.0, 0.5, None, "", (300, 300), "oi")
    other = dataclasses.replace(first, scheme="uniform", std=2.0)
    half = dataclasses.replace(other, arguments={"outputs": tuple(range(150))})
    alone = {}
    for name, assignments in {"other": (other,), "first": (first,)}.items():
        model = nn.Linear(300, 300, bias=False)
        apply_(Recipe(assignments, {}), model, seed=3)
        alone[name] = model.weight.detach().clone()
    for _ in range(5):  # threads that both write would not do the same each time
        apply_(Recipe((first, other), {}), model, seed=3)
        assert torch.equal(model.weight, alone["other"])
        apply_(Recipe((first, half), {}), model, seed=3)
        assert torch.equal(model.weight[:150], alone["other"][:150])
        assert torch.equal(model.weight[150:], alone["first"][150:])


def test_of_parameters_that_share_memory_the_last_one_counts():
    """Views of one tensor, and what is meant to be a tie but makes a second parameter."""
    memory = torch.zeros(400, 300)
    model = nn.Module()
    model.a, model.b = nn.Parameter(memory), nn.Parameter(memory[100:])
    model.c = nn.Parameter(memory[-1])
    a = Assignment("a", "normal", 1.0, 0.5, None, "", (400, 300), "oi")
    b = dataclasses.replace(a, parameter="b", shape=(300, 300), std=2.0)
    c = dataclasses.replace(a, parameter="c", scheme="zeros", shape=(300,), layout="o", std=0.0)
    alone = {n: nn.Parameter(torch.empty(k, 300)) for n, k in (("a", 400), ("b", 300))}
    for name, assignment in (("a", a), ("b", b)):
        fanin.fill.realize_(alone[name], assignment, 3, name)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(10):
            apply_(Recipe((a, b, c), {}), model, seed=3)
            assert torch.equal(model.a[:100], alone["a"][:100])
            assert torch.equal(model.a[100:-1], alone["b"][:-1])
            assert not model.c.any()
    finally:
        torch.set_num_threads(threads)


def test_an_error_once_all_is_written_puts_everything_back(monkeypatch):
    """What waits is written together at the end."""
    run = draw.Queue.run

    def breaking(queue: draw.Queue) -> None:
        run(queue)
        raise KeyboardInterrupt

    model, batch = built("mlp-batch-norm")
    found = plan(model, batch)
    monkeypatch.setattr(draw.Queue, "run", breaking)
    with unchanged(model, batch), pytest.raises(KeyboardInterrupt):
        found.apply_(model)


@pytest.mark.parametrize("error", BREAKS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("stop", [1, 5, 9, 12])  # 6 parameters, twice
def test_an_error_in_init_puts_everything_back_wherever_it_comes(monkeypatch, stop: int, error):
    """In the pass that measures, and in the one that writes."""
    model, batch = mlp(6, 16, 16, 3), torch.randn(16, 6) * 40
    model[0].weight.grad = torch.ones_like(model[0].weight)
    break_at(monkeypatch, stop, error)
    with unchanged(model, batch), pytest.raises(error):
        init_(model, batch)


def test_a_nan_that_was_there_comes_back(monkeypatch):
    model, batch = mlp(6, 16, 3), torch.randn(16, 6)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
        model[2].weight[1] = -0.0
    found = plan(model, batch)
    break_at(monkeypatch, 3, RuntimeError)
    with unchanged(model, batch), pytest.raises(RuntimeError):
        found.apply_(model)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupt_in_a_forward_of_the_plan_leaves_no_trace(stop: int):
    calls: list[int] = []

    class Stop(nn.Module):
        def forward(self, x):
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), Stop(), nn.ReLU(), nn.Linear(16, 3))
    batch = torch.randn(16, 6) * 30
    if stop < 3:
        with unchanged(model, batch), pytest.raises(KeyboardInterrupt):
            init_(model, batch)
    else:  # it runs twice: to be read, to be measured
        init_(model, batch)


def test_a_forward_that_fails_on_planned_values_leaves_no_trace():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            if float(self.first.bias.detach().abs().sum()) == 0:
                raise ValueError("only biases")
            return self.last(self.first(x).relu())

    model, batch = Picky(), torch.randn(16, 6)
    with unchanged(model, batch), pytest.raises(ForwardError, match="only biases"):
        init_(model, batch)


def test_what_is_kept_comes_back_and_only_that():
    model = mlp(3, 4, 2)
    before = all_bits(model)
    with kept(model) as keep:
        keep(model[0].weight).data.fill_(7.0)
    assert (model[0].weight == 7).all()

    def broken() -> None:
        with kept(model) as keep:
            keep(model[2].weight).data.fill_(7.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert bits(model[2].weight) == before["2.weight"]


def test_what_is_lent_is_given_back():
    model = mlp(3, 4, 2)
    before, recipe = all_bits(model), plan(model, torch.randn(5, 3), "ones")

    def broken() -> None:
        with lent(recipe, model):
            assert (model[0].weight == 1).all()
            raise KeyboardInterrupt

    with lent(recipe, model):
        assert (model[2].weight == 1).all()
    assert all_bits(model) == before
    with pytest.raises(KeyboardInterrupt):
        broken()
    assert all_bits(model) == before


def test_gradients_buffers_hooks_modes_and_random_states_stay():
    model, batch = built("mlp-batch-norm")
    model[4].eval()
    model[0].register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    grads = [p.grad for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    init_(model, batch)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert all(map(torch.equal, model.buffers(), buffers))
    assert not model[4].training
    assert model[0].training
    assert len(model[0]._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_parameters_stay_the_same_objects_for_optimizers():
    model, batch = built("mlp-relu-4")
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    init_(model, batch)
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == before


# ── what is drawn ────────────────────────────────────────────────────────────────────────────


def test_tied_parameters_are_drawn_once_under_their_first_name():
    model, batch = built("language-model-tied")
    found = init_(model, batch, seed=5)
    assert model.head.weight is model.tokens.weight
    assert "head.weight" not in found
    alone = torch.empty_like(model.tokens.weight)
    a = found["tokens.weight"]
    fanin.fill_(alone, a.scheme, fan=a.fan, gain=a.gain, seed=5, name="tokens.weight", layout="vo")
    assert bits(alone) == bits(model.tokens.weight)


def test_a_recipe_may_call_a_tied_parameter_by_any_of_its_names():
    model, batch = built("language-model-tied")
    found = plan(model, batch)
    renamed = Recipe(
        tuple(
            dataclasses.replace(a, parameter="head.weight") if a.parameter == "tokens.weight" else a
            for a in found.assignments
        ),
        found.untouched,
    )
    drawn = apply_(renamed, model, seed=2)
    assert "tokens.weight" in drawn
    first = all_bits(model)
    found.apply_(model, 2)
    assert all_bits(model) == first


def test_frozen_parameters_are_left_alone_unless_asked():
    model, batch = built("frozen-backbone")
    before = all_bits(model)
    found = init_(model, batch)
    changed = {name for name, value in all_bits(model).items() if value != before[name]}
    assert changed == {"head.weight", "head.bias"}
    assert {a.parameter for a in found} == changed
    everything = init_(model, batch, frozen=True)
    changed = {name for name, value in all_bits(model).items() if value != before[name]}
    assert "backbone.stem.0.weight" in changed
    assert all(not p.requires_grad for p in model.backbone.parameters())
    assert len(everything) == len(list(model.named_parameters()))


def test_a_plan_for_all_is_applied_to_what_trains():
    model, batch = mlp(6, 16, 3), torch.randn(16, 6)
    found = plan(model, batch)
    model[0].requires_grad_(False)
    before = all_bits(model)
    found.apply_(model)
    assert all_bits(model)["0.weight"] == before["0.weight"]
    assert all_bits(model)["2.weight"] != before["2.weight"]
    found.apply_(model, frozen=True)
    assert all_bits(model)["0.weight"] != before["0.weight"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_holds_the_same_values_rounded_once(dtype: torch.dtype):
    def started(kind: torch.dtype) -> nn.Module:
        model = nn.Sequential(
            nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
        )
        found = plan(model, torch.randn(8, 6))
        found.apply_(model.to(kind), seed=11)
        return model

    wide, narrow = started(torch.float64), started(dtype)
    assert {p.dtype for p in narrow.parameters()} == {dtype}
    for (name, a), b in zip(wide.named_parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(
            b.double(), a, rtol=float(torch.finfo(dtype).eps), atol=1e-9, msg=name
        )
    if dtype in (torch.bfloat16, torch.float16):
        single = started(torch.float32)
        for a, b in zip(single.parameters(), narrow.parameters(), strict=True):
            assert bits(a.to(dtype)) == bits(b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_of_any_dtype_is_planned_and_started(dtype: torch.dtype):
    model, batch = mlp(6, 64, 64, 3).to(dtype), torch.randn(64, 6).to(dtype)
    init_(model, batch)
    with torch.no_grad():
        hidden = model[:3](batch).float()
    assert float(hidden.square().mean().sqrt()) == pytest.approx(1.0, rel=0.3)


# ── a value depends on (seed, name, index) and nothing else ──────────────────────────────────


class Wide(nn.Module):
    """Parameters in another order, more of them, and other modules."""

    def __init__(self, reverse: bool, more: bool) -> None:
        super().__init__()
        layers = [("a", nn.Linear(6, 16)), ("b", nn.Linear(16, 16)), ("c", nn.Linear(16, 3))]
        for name, layer in reversed(layers) if reverse else layers:
            self.add_module(name, layer)
        if more:
            self.extra = nn.Linear(16, 16)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.c(self.extra(x).relu() if hasattr(self, "extra") else x)


def test_other_parameters_and_the_order_of_construction_do_not_count():
    batch = torch.randn(32, 6)
    models = [Wide(reverse, more) for reverse in (False, True) for more in (False, True)]
    for model in models:
        init_(model, batch, "he_normal", seed=4)
    for name in ("a.weight", "b.weight", "c.weight"):
        assert len({bits(model.get_parameter(name)) for model in models}) == 1, name


def test_the_same_name_in_another_plan_has_the_same_normals():
    """Two stds, one shape: the numbers are multiples of each other."""
    model, batch = mlp(6, 16, 16, 3), torch.randn(16, 6)
    init_(model, batch, "he_normal", seed=4)
    one = model[2].weight.detach().clone()
    init_(model, batch, "he_normal", seed=4, gain=2.0)
    torch.testing.assert_close(model[2].weight.detach(), 2 * one, rtol=1e-6, atol=0)
    init_(model, batch, "lecun_normal", seed=4)
    torch.testing.assert_close(model[2].weight.detach() * math.sqrt(2), one, rtol=1e-6, atol=0)


def test_seeds_and_names_give_other_values():
    model, batch = mlp(8, 8, 8, 3), torch.randn(16, 8)
    found = plan(model, batch, "he_normal")
    found.apply_(model, 0)
    first = all_bits(model)
    found.apply_(model, 1)
    second = all_bits(model)
    assert first["0.weight"] != second["0.weight"]
    assert first["0.bias"] == second["0.bias"]
    assert bits(model[0].weight) != bits(model[2].weight)


def test_strides_and_memory_formats_do_not_count():
    def started(spoil: Callable[[nn.Module], Any]) -> dict[str, list[float]]:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        spoil(model)
        init_(model, torch.randn(4, 3, 8, 8), "he_normal")
        return {name: p.tolist() for name, p in model.named_parameters()}

    def transposed(model: nn.Module) -> None:
        model[3].weight = nn.Parameter(torch.randn(288, 4).t())
        assert not model[3].weight.is_contiguous()

    plain = started(lambda m: m)
    assert started(lambda m: m.to(memory_format=torch.channels_last)) == plain
    assert started(transposed) == plain


CHILD = """
import hashlib, torch
import fanin
from torch import nn
model = nn.Sequential(nn.Linear(70, 90), nn.ReLU(), nn.Linear(90, 90), nn.ReLU(), nn.Linear(90, 5))
batch = torch.linspace(-1, 1, 64 * 70).view(64, 70)
for threads in (1, 2):
    torch.set_num_threads(threads)
    for scheme in ("he_normal", "lecun_trunc_normal"):  # QR may depend on LAPACK's threads
        fanin.init_(model, batch, scheme, seed=9)
        values = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        print(threads, torch.get_num_threads(), hashlib.sha256(values).hexdigest())
"""


@pytest.mark.slow
def test_the_number_of_threads_does_not_count():
    """In a process of its own, that may have two."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    path = os.pathsep.join([str(Path(fanin.__file__).parents[1]), *sys.path])
    environment["PYTHONPATH"] = path
    run = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [wanted for wanted, _, _ in lines] == [had for _, had, _ in lines] == [*"1122"]
    one, two = ([values for had, _, values in lines if had == threads] for threads in "12")
    assert one == two
    assert len(set(one)) == 2


def test_global_random_states_neither_decide_nor_move():
    model, batch = mlp(6, 16, 3), torch.randn(16, 6)
    init_(model, batch, seed=3)
    first = all_bits(model)
    torch.manual_seed(99)
    with unchanged(None, batch):
        init_(model, batch, seed=3)
    assert all_bits(model) == first


@pytest.mark.parametrize(
    "name",
    ["vgg", "lstm-classifier", "language-model-tied", "weight-norm", "siren", "mlp-he-relu-12"],
)
def test_the_plan_that_init_returned_gives_the_same_bits_again(name: str):
    model, batch = built(name)
    found = init_(model, batch, seed=8)
    first = all_bits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.123)
    found.apply_(model, seed=8)
    untouched = set(found.untouched)
    again = all_bits(model)
    assert {n: b for n, b in again.items() if n not in untouched} == {
        n: b for n, b in first.items() if n not in untouched
    }
    Plan.from_toml(found.to_toml()).apply_(model, seed=8)
    assert all_bits(model) == again


@pytest.mark.parametrize("scheme", ["lsuv", "within_layer"])
def test_measured_plans_give_the_same_bits_again(scheme: str):
    model, batch = built("vgg") if scheme == "lsuv" else (mlp(6, 16, 16, 3), torch.randn(32, 6) * 9)
    found = init_(model, batch, scheme, seed=8)
    first = all_bits(model)
    Plan.from_toml(found.to_toml()).apply_(model, seed=8)
    assert all_bits(model) == first


# ── meta ─────────────────────────────────────────────────────────────────────────────────────


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def stack() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )


def test_a_model_on_meta_gets_memory_and_the_same_values():
    batch = torch.randn(8, 6)
    model, other = empty(stack), stack()
    found = init_(model, batch, seed=2)
    assert not any(p.is_meta for p in model.parameters())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())
    found.apply_(other, seed=2)
    assert all_bits(model) == all_bits(other)
    assert torch.isfinite(model(batch)).all()


def test_ties_are_kept_when_memory_is_made():
    model = empty(lambda: blocks.LanguageModel(width=16, depth=1))
    assert model.head.weight is model.tokens.weight
    init_(model, torch.randint(0, 101, (2, 8)))
    assert model.head.weight is model.tokens.weight
    assert not model.head.weight.is_meta


def test_a_failure_on_meta_leaves_the_model_on_meta(monkeypatch):
    model = empty(stack)
    before = list(model.parameters())
    break_at(monkeypatch, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        init_(model, torch.randn(8, 6))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.is_meta for p in model.parameters())


def test_a_frozen_or_unused_parameter_on_meta_would_have_no_value():
    model = empty(stack)
    model[2].requires_grad_(False)
    with pytest.raises(ModelError, match=r"2\.weight.*meta.*frozen"):
        init_(model, torch.randn(8, 6))
    assert all(p.is_meta for p in model.parameters())
    init_(model, torch.randn(8, 6), frozen=True)
    assert not model[2].weight.requires_grad
    assert not model[2].weight.is_meta


class Standardized(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
        self.register_buffer("centre", torch.zeros(6))

    def forward(self, x):
        return super().forward(x - self.centre)


def test_a_buffer_on_meta_is_named():
    model = empty(Standardized)
    with pytest.raises(ModelError, match="buffer 'centre'"):
        init_(model, torch.randn(8, 6))
    assert all(p.is_meta for p in model.parameters())


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_running_statistics_on_meta_start_fresh():
    model, made = empty(with_norm), with_norm()
    init_(model, torch.randn(8, 6))
    for name, buffer in made.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)


class Sines(nn.Module):
    """A table that its own initialization writes; it does not belong to the state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", torch.empty(6), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.table.copy_(torch.arange(6.0).sin())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.table)


def test_buffers_on_meta_get_what_the_model_itself_writes():
    model = empty(Sines)
    init_(model, torch.randn(8, 6))
    assert torch.equal(model.table, torch.arange(6.0).sin())


def test_running_statistics_stay_on_meta_when_something_fails(monkeypatch: pytest.MonkeyPatch):
    model, written = empty(with_norm), apply._Keeper.buffers

    def broken(*given: Any) -> None:
        written(*given)
        assert not any(buffer.is_meta for buffer in model.buffers())
        raise KeyboardInterrupt

    monkeypatch.setattr(apply._Keeper, "buffers", broken)
    with pytest.raises(KeyboardInterrupt):
        init_(model, torch.randn(8, 6))
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_a_wrapped_model_gets_the_values_of_the_bare_one():
    bare, batch = mlp(6, 16, 3), torch.randn(8, 6)
    init_(bare, batch, seed=5)
    wrapped = nn.DataParallel(mlp(6, 16, 3))
    found = init_(wrapped, batch, seed=5)
    assert "0.weight" in found
    assert bits(wrapped.module[0].weight) == bits(bare[0].weight)


@pytest.mark.parametrize("model", [None, "model", torch.ones(2)])
def test_what_is_no_model_is_refused(model: object):
    with pytest.raises(ArgumentError, match="is not a torch"):
        apply_(Recipe(()), model)


def test_a_device_that_is_not_there_is_refused_and_nothing_changes():
    model = empty(stack)
    with pytest.raises((RuntimeError, AssertionError, FaninError)):
        init_(model, torch.randn(8, 6), device="cuda:77")
    assert all(p.is_meta for p in model.parameters())


# ── whatever can be planned can be applied ──────────────────────────────────────────────────


USUAL = {"auto", "he_normal", "orthogonal", "lsuv", "mup"}


# The usual schemes for all of these models, any other one for every second.
@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("multihead-attention", 0),
        ("hypernetwork", 0),
        ("lora", 1),
        ("unet", 0),
        ("lstm-projected-language-model", 1),
        ("attention-by-einsum", 1),
        ("weight-norm", 0),
        ("gan-generator", 1),
    ],
)
def test_what_a_scheme_plans_can_be_applied_or_is_refused_before(name: str, half: int):
    model, batch = built(name)
    refused: dict[str, str] = {}
    for number, scheme in enumerate(fanin.schemes):
        if scheme == "prior_bias":  # needs to know the classes
            continue
        if number % 2 != half and scheme not in USUAL:
            continue
        try:
            found = plan(model, batch, scheme)
        except ArgumentError as error:
            refused[scheme] = str(error)
            continue
        found.apply_(model)
        assert Plan.from_toml(found.to_toml()) == found, scheme
        for a in found:
            assert torch.isfinite(model.get_parameter(a.parameter)).all(), (scheme, a)
    assert not USUAL & set(refused)
    for message in refused.values():
        assert message.endswith("has none")


# ── recipes for another model ────────────────────────────────────────────────────────────────


def test_what_is_missing_extra_or_of_another_shape_is_named_and_nothing_changes():
    batch = torch.randn(8, 6)
    found = plan(mlp(6, 16, 3), batch)
    for other, words in (
        (mlp(6, 20, 3), ["0.weight", "[16, 6]", "[20, 6]"]),
        (mlp(6, 16, 16, 3), ["4.weight", "not in the recipe"]),
        (mlp(6, 16, 3, bias=False), ["0.bias", "not in the model"]),
    ):
        with unchanged(other, batch), pytest.raises(RecipeError) as caught:
            found.apply_(other)
        message = str(caught.value)
        assert "another model" in message
        assert "\n" not in message
        for word in words:
            assert word in message, message


def test_only_a_few_mismatches_are_named_in_one_line():
    found = plan(mlp(*[6] * 12), torch.randn(8, 6))
    with pytest.raises(RecipeError, match=r"and 19 more$"):
        found.apply_(mlp(*[7] * 12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scheme": "nothing"}, "nothing"),
        ({"scheme": "fixup"}, "fixup"),
        ({"std": -1.0}, "std"),
        ({"std": math.nan}, "std"),
        ({"gain": math.nan}, "gain"),
        ({"layout": "o"}, "layout"),
        ({"layout": "ox"}, "layout"),
        ({"blocks": 5, "scheme": "orthogonal"}, "blocks"),
        ({"arguments": {"slope": 1}}, "slope"),
        ({"scheme": "dirac"}, "dirac"),
        ({"arguments": {"padding": 99}}, "padding"),
        ({"arguments": {"padding": "x"}}, "padding"),
        ({"arguments": {"rows": (1.0, 2.0)}}, "rows"),
        ({"arguments": {"rows": "wide"}}, "rows"),
    ],
    ids=str,
)
def test_an_assignment_that_cannot_be_is_one_error_and_nothing_changes(change, words: str):
    model, batch = mlp(6, 16, 3), torch.randn(8, 6)
    found = plan(model, batch)
    spoilt = tuple(
        dataclasses.replace(a, **change) if a.parameter == "2.weight" else a
        for a in found.assignments
    )
    with unchanged(model, batch), pytest.raises(FaninError) as caught:
        Plan(spoilt, found.untouched).apply_(model)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None, True])
def test_a_seed_that_cannot_be_is_refused_and_nothing_changes(seed):
    model, batch = mlp(6, 16, 3), torch.randn(8, 6)
    found = plan(model, batch)
    with unchanged(model, batch), pytest.raises(ArgumentError, match="seed"):
        found.apply_(model, seed)
    with unchanged(model, batch), pytest.raises(ArgumentError, match="seed"):
        init_(model, batch, seed=seed)


@pytest.mark.parametrize("device", ["nowhere", "meta", torch.float32])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_a_device_that_cannot_hold_values_is_refused_and_nothing_changes(device, place):
    model, batch = mlp(6, 16, 3).to(place), torch.randn(8, 6)
    with unchanged(model, batch), pytest.raises(ArgumentError, match=r"^device: "):
        init_(model, batch, device=device)


def test_what_a_recipe_does_not_name_and_the_model_has_not_is_an_error_of_the_recipe():
    model = nn.Linear(3, 2)
    weight = Assignment("weight", "he_normal", 1.0, (2 / 3) ** 0.5, 3.0, "", (2, 3), "oi")
    with pytest.raises(RecipeError, match="bias"):
        apply_(Recipe((weight,)), model)
    with pytest.raises(RecipeError, match="ghost"):
        apply_(Recipe((weight,), {"bias": "as it is", "ghost": "?"}), model)


# ── reparametrized weights ───────────────────────────────────────────────────────────────────


class Sizes(nn.Module):
    """Layers wide enough for a std to be measured."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.inlet = nn.Linear(64, 256)
        self.linear = wrap(nn.Linear(256, 128))
        self.conv = wrap(nn.Conv1d(8, 64, 5, padding=2))
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        x = self.linear(self.inlet(x).relu()).relu()
        return self.head(self.conv(x.unflatten(1, (8, 16))).relu().mean(-1))


def effective(model: nn.Module, path: str, batch: Tensor) -> Tensor:
    """The weight that a layer multiplied with, as its call saw it."""
    seen: list[Tensor] = []
    layer = model.get_submodule(path)
    hook = layer.register_forward_hook(lambda m, _, __: seen.append(m.weight.detach().clone()))
    with torch.no_grad():
        model(batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=1),
        lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=None),
        lambda layer: nn.utils.weight_norm(layer, dim=None),
    ],
    ids=["old", "new", "new-dim-1", "new-whole", "old-whole"],
)
def test_weight_norm_gives_the_effective_weight_its_planned_std(wrap):
    model, batch = Sizes(wrap), torch.randn(64, 64)
    found = init_(model, batch, "he_normal")
    for path, fan in (("linear", 256), ("conv", 40)):
        weight = effective(model, path, batch)
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / fan), rel=0.03), path
        named = [a.parameter for a in found if a.parameter.startswith(f"{path}.")]
        assert len(named) == 3, named


def test_a_weight_under_the_old_weight_norm_shows_at_once_what_was_drawn():
    layer = nn.utils.weight_norm(nn.Linear(16, 8))
    init_(nn.Sequential(layer), torch.randn(4, 16), "he_normal")
    shown = layer.weight
    layer(torch.randn(4, 16))
    assert torch.equal(shown, layer.weight)
    assert shown.requires_grad


def test_weight_norm_in_auto_keeps_the_scale():
    model, batch = Sizes(nn.utils.parametrizations.weight_norm), torch.randn(64, 64)
    init_(model, batch)
    with torch.no_grad():
        hidden = model.linear(model.inlet(batch).relu())
    assert float(hidden.square().mean().sqrt()) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize(
    "wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=["old", "new"]
)
def test_a_spectral_norm_says_that_only_the_shape_counts(wrap):
    model, batch = Sizes(wrap), torch.randn(64, 64)
    found = init_(model, batch)
    told = [a for a in found if "spectral_norm" in a.because]
    assert {a.parameter.partition(".")[0] for a in told} == {"linear", "conv"}
    with torch.no_grad():
        for _ in range(30):  # the power iteration follows the new weight
            model.train()(batch)
    weight = effective(model.eval(), "linear", batch)
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0, rel=0.1)


class Branches(nn.Module):
    """Residual branches without norms, whose last layers start at zero."""

    def __init__(self, wrap):
        super().__init__()
        self.inlet, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.first = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.last = nn.ModuleList(wrap(nn.Linear(32, 32)) for _ in range(2))

    def forward(self, x):
        x = self.inlet(x)
        for first, last in zip(self.first, self.last, strict=True):
            x = x + last(first(x).relu())
        return self.head(x)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["old-weight", "weight", "old-spectral", "spectral"],
)
@pytest.mark.parametrize("scheme", ["auto", "fixup", "zeros"])
def test_a_weight_that_is_divided_by_its_size_is_never_drawn_as_zeros(wrap, scheme):
    model, batch = Branches(wrap), torch.randn(64, 16)
    found = init_(model, batch, scheme)
    with torch.no_grad():
        assert bool(torch.isfinite(model(batch)).all())
    told = [a for a in found if "‖W‖" in a.because or "only a direction" in a.because]
    assert {a.parameter.rpartition("last.")[2][0] for a in told} == {"0", "1"}
    if scheme != "zeros":
        assert fanin.check(model, batch).ok
    if "weight_norm" in wrap.__name__:
        assert not effective(model, "last.0", batch).any()


def custom(layer: nn.Module) -> nn.Module:
    class Skew(nn.Module):
        def forward(self, x):
            return x - x.flip(0)

    nn.utils.parametrize.register_parametrization(layer, "weight", Skew())
    return layer


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.orthogonal, custom], ids=["orthogonal", "custom"]
)
def test_other_parametrizations_stay_as_they_are_and_are_told(wrap):
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), wrap(nn.Linear(16, 16)), nn.Linear(16, 3))
    batch = torch.randn(16, 6)
    name = "2.parametrizations.weight.original"
    before = bits(model.get_parameter(name))
    found = init_(model, batch)
    assert bits(model.get_parameter(name)) == before
    assert found.untouched[name].startswith("W504")
    assert "2.weight" in found.untouched[name]


def test_two_parametrizations_on_one_weight_are_left_alone_and_told():
    layer = custom(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
    model = nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 3))
    found = plan(model, torch.randn(8, 6))
    names = [f"1.parametrizations.weight.original{i}" for i in (0, 1)]
    assert all(found.untouched[name].startswith("W504") for name in names)


# ── what belongs to a tensor ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["auto", "he_normal", "small_init", "mup"])
def test_the_row_of_padding_is_zero(scheme: str):
    model = nn.Sequential(nn.Embedding(9, 8, padding_idx=2), nn.Flatten(), nn.Linear(40, 3))
    batch = torch.arange(45).view(9, 5) % 9
    found = init_(model, batch, scheme)
    weight = model[0].weight
    assert (weight[2] == 0).all()
    assert (weight[[0, 1, 3, 8]] != 0).any(1).all()
    read = Plan.from_toml(found.to_toml())
    with torch.no_grad():
        weight.fill_(1.0)
    read.apply_(model)
    assert (weight[2] == 0).all()


def test_gates_blocks_groups_and_experts_are_matrices_of_their_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(12, 12, batch_first=True)
            self.up = nn.ConvTranspose1d(12, 24, 1, groups=3)
            self.down = nn.Conv1d(24, 12, 1, groups=3)
            self.experts = nn.Parameter(torch.randn(4, 12, 12))

        def forward(self, x):
            x = self.rnn(x)[0].transpose(1, 2)
            x = self.down(self.up(x)).transpose(1, 2)
            return torch.einsum("bti,eoi->ebto", x, self.experts).mean(0)

    model, batch = Net(), torch.randn(3, 5, 12)
    init_(model, batch, "orthogonal")
    eye = torch.eye(12)
    for gate in model.rnn.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, eye, atol=1e-5, rtol=0)
    for part in model.up.weight.squeeze(-1).chunk(3):  # [4 inputs, 8 outputs] each
        torch.testing.assert_close(part @ part.T, torch.eye(4), atol=1e-5, rtol=0)
    for part in model.down.weight.squeeze(-1).chunk(3):  # [4 outputs, 8 inputs] each
        torch.testing.assert_close(part @ part.T, torch.eye(4), atol=1e-5, rtol=0)


def test_packed_queries_keys_and_values_are_orthogonal_each():
    model = nn.Sequential(nn.Linear(6, 24), Residual(nn.LayerNorm(24), blocks.Attention(24, 3)))
    init_(model, torch.randn(2, 5, 6), "orthogonal")
    for part in model[1].body[1].qkv.weight.chunk(3):
        torch.testing.assert_close(part @ part.T, torch.eye(24), atol=1e-5, rtol=0)


def test_factors_for_each_output_are_part_of_the_recipe():
    weight = Assignment(
        "weight", "he_normal", 1.0, (2 / 3) ** 0.5, 3.0, "", (2, 3), "oi", 1, {"rows": (1.0, 10.0)}
    )
    plain = dataclasses.replace(weight, arguments={})
    one, two = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    apply_(Recipe((weight,)), one)
    apply_(Recipe((plain,)), two)
    torch.testing.assert_close(one.weight, two.weight * torch.tensor([[1.0], [10.0]]))


def test_functional_weights_are_written_where_the_model_holds_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(40, 60))

        def forward(self, x):
            return F.linear(x, self.w.T)

    model = Net()
    init_(model, torch.randn(30, 40), "he_normal")
    assert float(model.w.detach().std()) == pytest.approx(math.sqrt(2 / 40), rel=0.06)


@pytest.mark.parametrize("wrap", [torch.compile, checkpoint_wrapper], ids=["compile", "checkpoint"])
def test_what_wraps_a_module_inside_changes_no_value(wrap) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3)))

    batch = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    plain, wrapped = build(), build()
    wrapped[1] = wrap(wrapped[1])
    plan = fanin.plan(plain, batch)
    plan.apply_(plain, seed=3)
    plan.apply_(wrapped, seed=3)
    assert all(map(torch.equal, plain.parameters(), wrapped.parameters()))
    for parameter in wrapped.parameters():
        nn.init.zeros_(parameter)
    for model in (plain, wrapped):
        fanin.init_(model, batch, seed=3)
    assert all(map(torch.equal, plain.parameters(), wrapped.parameters()))


@pytest.mark.parametrize("scheme", ["auto", "he_normal"])
def test_a_parameter_whose_entries_share_memory_is_refused_by_name(scheme: str):
    model, batch = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(8, 8)
    model[2].weight.data = torch.ones(4, 1).expand(4, 16)
    with unchanged(model, batch), pytest.raises(ModelError, match=r"'2\.weight' is expanded"):
        fanin.init_(model, batch, scheme)
    with unchanged(model, batch), pytest.raises(ModelError, match=r"'2\.weight' is expanded"):
        fanin.calibrate_(model, batch)


def test_a_forward_that_adds_modules_is_planned_without_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            self.new = nn.Linear(1, 1)
            return self.layer(x)

    model = Net()
    plan = fanin.init_(model, torch.randn(16, 8))
    assert {a.parameter for a in plan} == {"layer.weight", "layer.bias"}
    assert not plan.untouched
