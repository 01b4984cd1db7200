"""A part of a parameter, drawn by itself, has the bits that it has in the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from windows import windows, windows_of

import fanin
from fanin import draw
from fanin.assignment import KEPT, Assignment
from fanin.draw import cuda, philox
from fanin.draw.values import Values
from fanin.errors import ArgumentError, RecipeError
from fanin.fill import assign_, by_parts, factored, taken
from fanin.window import Window

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def assignment(
    scheme: str, shape: tuple[int, ...], layout: str = "oi", blocks: int = 1, **arguments: Any
) -> Assignment:
    return Assignment("w", scheme, 1.0, 0.1, 8.0, "", shape, layout, blocks, arguments)


CASES: Mapping[str, Assignment] = {
    "normal": assignment("normal", (6, 5)),
    "kernel": assignment("he_normal", (4, 3, 2, 2), "oikk"),
    "uniform": assignment("xavier_uniform", (7, 4)),
    "trunc_normal": assignment("trunc_normal", (5, 6)),
    "far bounds": assignment("trunc_normal", (5, 6), low=-50.0, high=1.0),
    "zeros": assignment("zeros", (5, 6)),
    "constant": assignment("constant", (9,), "o"),
    "centred": assignment("he_normal", (6, 5), centred=True),
    "orthogonal": assignment("orthogonal", (6, 5)),
    "orthogonal gates": assignment("orthogonal", (12, 3), blocks=4),
    "orthogonal kernel": assignment("orthogonal", (4, 3, 2, 2), "oikk"),
    "delta_orthogonal": assignment("delta_orthogonal", (4, 3, 3, 3), "oikk"),
    "looks_linear": assignment("looks_linear", (6, 8)),
    "hadamard": assignment("hadamard", (8, 4)),
    "hadamard turned": assignment("hadamard", (4, 8), "io"),
    "sparse": assignment("sparse", (8, 6)),
    "identity": assignment("identity", (5, 4)),
    "dirac": assignment("dirac", (4, 3, 3), "oik"),
    "experts": assignment("orthogonal", (3, 4, 5), "boi"),
    "mirrored_bias": assignment("mirrored_bias", (7,), "o"),
    "chrono_bias": assignment("chrono_bias", (8,), "o", t_max=20.0),
    "rows": assignment("normal", (4, 5), rows=(0.5, 1.0, 2.0, -1.0)),
    "rows of x @ W": assignment("normal", (5, 4), "io", rows=(0.5, 1.0, 2.0, -1.0)),
    "padding": assignment("normal", (6, 3), "vo", padding=2),
    "kept": assignment(KEPT, (4, 5)),
    "some outputs": assignment("normal", (6, 5), outputs=(1, 4)),
    "some outputs, rest halved": assignment("orthogonal", (6, 5), outputs=(1, 4), kept=0.5),
    "entries": assignment("normal", (6, 5), entries=(0, 7, 29)),
    "split": assignment("normal", (6, 5), split=((0, 3), (1, 2, 4)), along="i"),
    "split outputs": assignment("normal", (6, 5), split=((0, 3), (1, 2, 4)), along="o"),
}


def before(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a parameter holds: for assignments that keep some of it."""
    count = int(np.prod(shape))
    return (torch.arange(count) / 8 - 1).reshape(shape).to(dtype)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=20)
@given(data=st.data())
def test_a_part_is_what_it_is_in_the_whole(case: str, data: st.DataObject) -> None:
    plan = CASES[case]
    window = data.draw(windows_of(plan.shape))
    dtype = data.draw(st.sampled_from(DTYPES))
    whole = before(plan.shape, dtype)
    part = taken(whole, window).clone()
    assign_(whole, plan, 3, "name")
    assign_(part, plan, 3, "name", window)
    assert torch.equal(part, taken(whole, window))


@pytest.mark.parametrize("case", CASES)
def test_the_whole_is_a_part(case: str) -> None:
    plan = CASES[case]
    whole, same = (before(plan.shape, torch.float32) for _ in range(2))
    assign_(whole, plan, 3, "name")
    assign_(same, plan, 3, "name", Window.whole(plan.shape))
    assert torch.equal(whole, same)
    assert not torch.equal(whole, before(plan.shape, torch.float32)) or case == KEPT


def test_what_is_drawn_by_parts_and_what_by_one_machine() -> None:
    assert {case for case, plan in CASES.items() if factored(plan)} == {
        *("orthogonal", "orthogonal gates", "orthogonal kernel", "experts"),
        *("delta_orthogonal", "looks_linear"),
    }
    alone = {case for case, plan in CASES.items() if by_parts(plan)}
    assert {"normal", "kernel", "trunc_normal", "zeros", "rows", "padding", KEPT} < alone
    assert not alone & {"orthogonal", "centred", "split", "entries", "hadamard turned", "sparse"}


def test_a_large_orthogonal_matrix_can_be_drawn_by_parts_in_integers() -> None:
    plan = assignment("hadamard", (640, 640))
    assert by_parts(plan)
    rows = [torch.empty(100, 640) for _ in range(7)][:6]
    for k, part in enumerate(rows):
        assign_(part, plan, 0, "w", Window.box((640, 640), (100 * k, 0), (100, 640)))
    drawn = torch.cat(rows).double()
    assert torch.allclose(drawn @ drawn.T, drawn[0].square().sum() * torch.eye(600).double())


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows(), start=st.sampled_from([0, 7]))
def test_a_gpu_is_asked_for_the_same_values(
    monkeypatch: pytest.MonkeyPatch, window: Window, start: int
) -> None:
    """Of a GPU's draw, which has tests of its own, here stands only what it is told."""

    def fill(tensor: Tensor, key: draw.Key, rows: cuda.Launch, values: Values) -> None:
        first, count, repeats, stride = rows
        assert tensor.is_contiguous()
        assert tensor.shape == (count * repeats,)
        words = [philox.words(key, first + k * stride, count) for k in range(repeats)]
        tensor.copy_(torch.from_numpy(np.concatenate([values.of(row) for row in words])))

    key = draw.key(0, "w")
    monkeypatch.setenv("FANIN_DRAW", "reference")
    expected = draw.normal_(torch.empty(window.sizes), key, start=start, window=window)
    monkeypatch.setattr(cuda, "available", lambda tensor: True)
    monkeypatch.setattr(cuda, "fill", fill)
    found = torch.empty(window.sizes)
    version = found._version
    assert torch.equal(draw.normal_(found, key, start=start, window=window), expected)
    assert found._version > version


# ── fused parameters ─────────────────────────────────────────────────────────────────────────


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 4)
        self.out = nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.out(torch.relu(torch.cat([self.q(h), self.k(h)], -1)))


class Together(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.qk, self.out = nn.Linear(6, 12), nn.Linear(12, 6, bias=False)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(3, 8, 5))


FUSED = {"*.qk.weight": ["*.q.weight", "*.k.weight"], "*.qk.bias": ["*.q.bias", "*.k.bias"]}


def plan_apart(scheme: str = "auto") -> fanin.Plan:
    torch.manual_seed(0)
    return fanin.plan(nn.Sequential(Apart(), Apart()), torch.randn(4, 6), scheme)


@pytest.mark.parametrize("scheme", ["auto", "orthogonal", "xavier_uniform"])
def test_fused_parameters_equal_their_unfused_parts(scheme: str) -> None:
    plan = plan_apart(scheme)
    apart, together = nn.Sequential(Apart(), Apart()), nn.Sequential(Together(), Together())
    plan.apply_(apart, seed=5)
    plan.apply_(together, seed=5, fused=FUSED)
    for one, both in zip(apart, together, strict=True):
        assert torch.equal(both.qk.weight, torch.cat([one.q.weight, one.k.weight]))
        assert torch.equal(both.qk.bias, torch.cat([one.q.bias, one.k.bias]))
        assert torch.equal(both.out.weight, one.out.weight)


def test_a_plan_of_a_wrapped_model_gives_the_same_fused() -> None:
    wrapped = nn.Sequential(checkpoint_wrapper(Apart()), Apart())
    plan = fanin.plan(wrapped, torch.randn(4, 6))
    apart, together = nn.Sequential(Apart(), Apart()), nn.Sequential(Together(), Together())
    together[0] = checkpoint_wrapper(together[0])
    plan.apply_(apart, seed=5)
    inside = {
        "0.qk.weight": [f"0._checkpoint_wrapped_module.{n}.weight" for n in "qk"],
        "0.qk.bias": [f"0._checkpoint_wrapped_module.{n}.bias" for n in "qk"],
        "1.qk.weight": ["1.q.weight", "1.k.weight"],
        "1.qk.bias": ["1.q.bias", "1.k.bias"],
    }
    plan.apply_(together, seed=5, fused=inside)
    weight = together[0].get_parameter("_checkpoint_wrapped_module.qk.weight")
    assert torch.equal(weight, torch.cat([apart[0].q.weight, apart[0].k.weight]))


def test_some_rows_of_each_part_can_be_held() -> None:
    plan, apart, some = plan_apart(), nn.Sequential(Apart(), Apart()), Together()
    plan.apply_(apart, seed=5)
    some.qk, some.norm, some.out = nn.Linear(6, 6), nn.Identity(), nn.Identity()
    model = nn.ModuleDict({"1": some})
    held = fanin.Plan(tuple(a for a in plan if a.parameter.startswith(("1.q.", "1.k."))))
    rows = {f"1.qk.{n}": [(f"1.q.{n}", 4, 8), (f"1.k.{n}", 2, 4)] for n in ("weight", "bias")}
    held.apply_(model, seed=5, fused=rows)
    assert torch.equal(some.qk.weight, torch.cat([apart[1].q.weight[4:], apart[1].k.weight[2:]]))


def test_interleaved_rows_stacks_and_tensors_on_meta() -> None:
    plan = plan_apart()
    rows = [("*.q.weight", 0, 4), ("*.k.weight", 0, 2), ("*.q.weight", 4, 8), ("*.k.weight", 2, 4)]
    apart = nn.Sequential(Apart(), Apart())
    with torch.device("meta"):
        together = nn.Sequential(Together(), Together())
    plan.apply_(apart, seed=5)
    plan.apply_(together, seed=5, fused={**FUSED, "*.qk.weight": rows})
    q, k = apart[1].q.weight, apart[1].k.weight
    assert torch.equal(together[1].qk.weight, torch.cat([q[:4], k[:2], q[4:], k[2:]]))


def test_a_stack_of_experts_equals_its_experts() -> None:
    names = [f"{n}.{kind}" for n in range(3) for kind in ("gate", "up")]
    plan = fanin.Plan(
        tuple(
            Assignment(name, scheme, 1.0, 0.1, 5.0, "", (4, 5), "oi")
            for name, scheme in zip(names, ["normal", "orthogonal"] * 3, strict=True)
        )
    )
    model = Experts()
    plan.apply_(model, seed=2, fused={"up": ["{}.gate", "{}.up"]})
    for n in range(3):
        for half, name in ((model.up[n, :4], f"{n}.gate"), (model.up[n, 4:], f"{n}.up")):
            alone = torch.empty(4, 5)
            (single,) = [a for a in plan if a.parameter == name]
            assign_(alone, single, 2, name)
            assert torch.equal(half, alone)


@pytest.mark.parametrize(
    ("fused", "error", "told"),
    [
        ({"*.kq.weight": ["*.q.weight"]}, ArgumentError, r"'\*\.kq\.weight' fits no parameter"),
        ({"*.qk.weight": []}, ArgumentError, "a list of names"),
        ({"*.qk.weight": "*.q.weight"}, ArgumentError, "a list of names"),
        ({"*.qk.weight": [("*.q.weight", 0)]}, ArgumentError, "a list of names"),
        ({"*.qk.weight": ["*.*.q.weight"]}, ArgumentError, r"more \* than the pattern"),
        ({"*.qk.weight": ["*.q.weight", "*.v.weight"]}, RecipeError, "'0.v.weight', a part of"),
        ({"*.qk.weight": ["*.q.weight"]}, RecipeError, r"\[12, 6\] is not made of 0.q.weight \[8"),
        ({"*.qk.weight": [("*.q.weight", 0, 9), ("*.k.weight", 0, 3)]}, RecipeError, "is not"),
        ({"*.qk.weight": FUSED["*.qk.weight"]}, RecipeError, "qk.bias"),
        (None, RecipeError, "qk"),
        (["*.q.weight"], ArgumentError, "fused: list; a mapping"),
        ({"*.qk.weight": [3]}, ArgumentError, "a list of names"),
        ({"*.qk.weight": [("*.q.weight", 0, 6), ("*.q.weight", 2, 8)]}, RecipeError, "2 to 6 of"),
        (FUSED | {"0.qk.weight": FUSED["*.qk.weight"]}, ArgumentError, "a pattern before it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(fused, error, told) -> None:
    model = nn.Sequential(Together(), Together())
    values = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=told):
        plan_apart().apply_(model, fused=fused)
    assert all(map(torch.equal, values, model.parameters()))
