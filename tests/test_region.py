"""Parts of tensors: named, drawn, kept, split, and written into recipes that read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from zoo.checks import unchanged

from fanin.apply import apply_
from fanin.assignment import KEPT, REGION, REPAIR, Assignment, Recipe
from fanin.errors import ArgumentError, RecipeError
from fanin.fill import by_parts, factored, fill_
from fanin.planning import Plan
from fanin.recipe import from_toml, to_toml
from fanin.region import check_region, groups_of, mask, named
from fanin.repair.merging import merged

MANY = settings(max_examples=150, deadline=None, derandomize=True)
NAMES = {"o": "outputs", "i": "inputs", "v": "inputs", "b": "matrices"}
LAYOUTS = ("o", "oi", "io", "vo", "boi", "bio", "oikk", "iok", "")


@st.composite
def shaped(draw: st.DrawFn) -> tuple[tuple[int, ...], str]:
    layout = draw(st.sampled_from(LAYOUTS))
    dims = len(layout) or draw(st.integers(0, 3))
    return tuple(draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))), layout


@st.composite
def parted(draw: st.DrawFn) -> tuple[tuple[int, ...], str, np.ndarray]:
    """A shape, its layout, and any entries of it: slices, single ones, all or none."""
    shape, layout = draw(shaped())
    part = np.zeros(shape, dtype=np.bool_)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(shape) - 1)))
        if shape:
            np.moveaxis(part, at, 0)[draw(st.integers(0, shape[at] - 1))] = True
    for index in draw(st.lists(st.integers(0, part.size - 1), max_size=3)):
        part.reshape(-1)[index] = True
    return shape, layout, part


def assigned(
    shape: tuple[int, ...] = (4, 3),
    layout: str = "oi",
    scheme: str = "normal",
    gain: float = 0.5,
    name: str = "weight",
    **arguments: Any,
) -> Assignment:
    return Assignment(name, scheme, gain, abs(gain), None, "why", shape, layout, 1, arguments)


def model_of(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> nn.Module:
    """One parameter of consecutive numbers from 1 on."""
    model = nn.Module()
    values = 1 + torch.arange(math.prod(shape), dtype=dtype).reshape(tuple(shape))
    model.weight = nn.Parameter(values)
    return model


def applied(assignment: Assignment, model: nn.Module | None = None, seed: int = 0) -> Tensor:
    model = model_of(assignment.shape) if model is None else model
    apply_(Recipe((assignment,), {}, REPAIR), model, seed=seed)
    return model.weight.detach()


def whole(assignment: Assignment, seed: int = 0) -> Tensor:
    """The same draw for all of the tensor."""
    tensor = torch.empty(assignment.shape)
    return fill_(tensor, assignment.scheme, gain=assignment.gain, seed=seed, name="weight")


# ── names of parts ───────────────────────────────────────────────────────────────────────────


@MANY
@given(parted())
def test_the_names_of_a_part_name_exactly_that_part(case):
    shape, layout, part = case
    arguments = named(part, layout)
    check_region("normal", arguments, shape, layout)
    found = mask(shape, layout, arguments)
    if part.all():
        assert arguments == {}
        assert found is None
    elif part.any():
        assert found is not None
        assert found.shape == part.shape
        assert (found == part).all()
    else:
        assert arguments == {}


@MANY
@given(shaped(), st.data())
def test_whole_slices_are_named_as_such(case, data):
    shape, layout = case
    letters = [c for c in "oibv" if layout.count(c) == 1 and shape[layout.index(c)] > 1]
    if not letters:
        return
    letter = data.draw(st.sampled_from(letters))
    at = layout.index(letter)
    chosen = data.draw(st.sets(st.integers(0, shape[at] - 1), min_size=1, max_size=shape[at] - 1))
    part = np.zeros(shape, dtype=np.bool_)
    np.moveaxis(part, at, 0)[sorted(chosen)] = True
    arguments = named(part, layout)
    rest = math.prod(shape) // shape[at]
    if rest > 1:
        assert arguments == {NAMES[letter]: tuple(sorted(chosen))}


@pytest.mark.parametrize(
    ("layout", "shape", "arguments", "expected"),
    [
        ("oi", (2, 3), {"outputs": (1,)}, [[0, 0, 0], [1, 1, 1]]),
        ("oi", (2, 3), {"inputs": (0, 2)}, [[1, 0, 1], [1, 0, 1]]),
        ("io", (2, 3), {"inputs": (0,)}, [[1, 1, 1], [0, 0, 0]]),
        ("vo", (2, 3), {"inputs": (1,)}, [[0, 0, 0], [1, 1, 1]]),
        ("oi", (2, 3), {"entries": (0, 5)}, [[1, 0, 0], [0, 0, 1]]),
        ("oi", (2, 3), {"outputs": (0,), "entries": (4,)}, [[1, 1, 1], [0, 1, 0]]),
        ("oi", (2, 3), {"outputs": (0,), "inputs": (2,)}, [[1, 1, 1], [0, 0, 1]]),
        ("boi", (2, 1, 2), {"matrices": (1,)}, [[[0, 0]], [[1, 1]]]),
        ("oi", (2, 3), {"outputs": ()}, [[0, 0, 0], [0, 0, 0]]),
        ("o", (3,), {"outputs": [0, 1]}, [1, 1, 0]),
    ],
)
def test_the_parts_that_arguments_name(layout, shape, arguments, expected):
    assert mask(shape, layout, arguments).astype(int).tolist() == expected


@pytest.mark.parametrize("arguments", [{}, {"outputs": None}, {"kept": 0.5}, {"split": ((0, 1),)}])
def test_without_a_name_the_part_is_the_whole(arguments: dict):
    assert mask((2, 3), "oi", arguments) is None


WRONG = [
    ("normal", {"outputs": (4,)}, "outputs: 4; indices below 4"),
    ("normal", {"outputs": (-1,)}, "outputs: -1"),
    ("normal", {"outputs": (1.0,)}, "outputs: 1.0"),
    ("normal", {"outputs": (True,)}, "outputs: True"),
    ("normal", {"outputs": 2}, "outputs: 2; a list of indices"),
    ("normal", {"outputs": "01"}, "outputs: '01'"),
    ("normal", {"inputs": (3,)}, "inputs: 3; indices below 3"),
    ("normal", {"entries": (12,)}, "entries: 12; indices below 12"),
    ("normal", {"matrices": (0,)}, "matrices: the layout 'oi' has no one such dimension"),
    ("normal", {"outputs": (0,), "kept": math.inf}, "kept: inf"),
    ("normal", {"outputs": (0,), "kept": "half"}, "kept: 'half'"),
    ("normal", {"outputs": (0,), "kept": True}, "kept: True"),
    ("normal", {"outputs": (0,), "kept": 10**400}, "kept: 1000"),
    ("normal", {"padding": 4}, "padding: 4; one of the 4 rows"),
    ("normal", {"padding": -1}, "padding: -1"),
    ("normal", {"padding": True}, "padding: True"),
    ("normal", {"padding": 1.0}, "padding: 1.0"),
    (KEPT, {"padding": "1"}, "padding: '1'"),
    ("normal", {"rows": (1.0, 2.0, 3.0)}, "rows: a number for each of the 4 outputs"),
    ("normal", {"rows": (1.0, 2.0, 3.0, True)}, "rows: a number"),
    ("normal", {"rows": (1.0, 2.0, 3.0, math.nan)}, "rows: a number"),
    ("normal", {"rows": (1.0, 2.0, 3.0, 10**400)}, "rows: a number"),
    ("normal", {"rows": "wide"}, "rows: a number"),
    (KEPT, {"rows": ()}, "rows: a number"),
    (KEPT, {"outputs": (0,)}, "outputs: nothing is drawn"),
    (KEPT, {"split": ((0, 1),)}, "split: nothing is drawn"),
    (KEPT, {"kept": 0.5}, "kept: 0.5"),
    ("normal", {"split": ((0,),)}, "split: ((0,),); groups of two"),
    ("normal", {"split": ()}, "split: ()"),
    ("normal", {"split": (0, 1)}, "split: (0, 1)"),
    ("normal", {"split": "01"}, "split: '01'"),
    ("normal", {"split": ((0, 3),)}, "split: 3; indices below 3"),
    ("normal", {"split": ((0, 1),), "along": "b"}, "along: 'b'"),
    ("normal", {"split": ((0, 1),), "along": "k"}, "along: 'k'"),
    ("normal", {"split": ((0, 1),), "along": 0}, "along: 0"),
]


@pytest.mark.parametrize(("scheme", "arguments", "message"), WRONG)
def test_a_part_that_the_tensor_has_not_is_one_clear_error(scheme, arguments, message):
    """Alike where it is checked, where it is applied, and where a recipe is written."""
    with pytest.raises(ArgumentError) as caught:
        check_region(scheme, arguments, (4, 3), "oi")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assignment = assigned(scheme=scheme, **arguments)
    model = model_of((4, 3))
    with unchanged(model, None), pytest.raises(ArgumentError):
        applied(assignment, model)
    with pytest.raises(RecipeError, match="weight"):
        to_toml(Recipe((assignment,), {}, REPAIR))


def test_a_split_needs_its_dimension_once():
    check_region("normal", {"split": ((0, 3),), "along": "o"}, (4, 3), "oi")
    with pytest.raises(ArgumentError, match="along"):
        check_region("normal", {"split": ((0, 1),)}, (4,), "o")
    with pytest.raises(ArgumentError, match="along"):
        check_region("normal", {"split": ((0, 1),)}, (4, 3), "")


def test_factors_need_outputs():
    check_region("normal", {"rows": (1, 2.0, 0.5)}, (4, 3), "io")
    for shape, layout in (((4,), "i"), ((), ""), ((0,), "v")):
        with pytest.raises(ArgumentError, match=r"^rows: .* 0 outputs"):
            check_region("normal", {"rows": ()}, shape, layout)


def test_groups_come_as_tuples():
    assert groups_of({"split": [[0, 1], [2, 4, 5]]}) == ((0, 1), (2, 4, 5))


# ── drawn in part ────────────────────────────────────────────────────────────────────────────


@MANY
@given(parted(), st.sampled_from([None, 0.25, -1.5]), st.integers(0, 3))
def test_only_the_part_is_drawn_and_it_is_that_of_the_whole(case, kept, seed):
    """An entry's value is a function of its own place: what is beside it changes nothing."""
    shape, layout, part = case
    arguments = named(part, layout)
    if not arguments:
        return
    assignment = assigned(shape, layout, **arguments)
    if kept is not None:
        assignment = replace(assignment, arguments={**arguments, "kept": kept})
    now = applied(assignment, seed=seed)
    inside = torch.from_numpy(part)
    assert torch.equal(now[inside], whole(assignment, seed)[inside])
    rest = model_of(shape).weight.detach()[~inside]
    assert torch.equal(now[~inside], rest if kept is None else rest * kept)


def test_what_is_not_drawn_stays_bit_for_bit():
    """NaN with its payload, infinities, and zeros of both signs."""
    odd = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf, 1e-45, 3.0])
    odd = torch.cat([odd, torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)])
    model = model_of((2, 7))
    with torch.no_grad():
        model.weight[0] = odd
    now = applied(assigned((2, 7), outputs=(1,)), model)
    assert torch.equal(now[0].view(torch.int32), odd.view(torch.int32))
    assert not torch.equal(now[1], model_of((2, 7)).weight[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_part_keeps_the_dtype_and_the_memory_of_its_tensor(dtype: torch.dtype):
    model = model_of((4, 3), dtype)
    memory = model.weight.data_ptr()
    for assignment in (
        assigned(outputs=(1, 2), kept=0.5),
        assigned(split=((0, 2),)),
        assigned(scheme=KEPT, gain=2.0),
        assigned(scheme="zeros", gain=1.0, entries=(0,)),
    ):
        assignment = replace(assignment, std=0.0) if assignment.scheme == "zeros" else assignment
        assert applied(assignment, model).dtype is dtype
    assert model.weight.data_ptr() == memory
    assert model.weight[0, 0] == 0


def test_a_part_of_a_tensor_that_is_not_contiguous():
    model = nn.Module()
    model.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
    was = model.weight.detach().clone()
    now = applied(assigned(outputs=(3,), entries=(1,)), model)
    changed = now != was
    assert changed[3].all()
    assert changed[0].tolist() == [False, True, False]
    assert not changed[1:3].any()


def test_a_structured_scheme_is_cut_from_its_whole_matrix():
    """Rows of an orthogonal matrix are orthogonal to one another, whichever are taken."""
    assignment = assigned((6, 6), scheme="orthogonal", gain=1.0, outputs=(1, 4))
    now = applied(replace(assignment, std=6**-0.5))
    rows = now[[1, 4]].double()
    assert torch.allclose(rows @ rows.T, torch.eye(2, dtype=torch.float64), atol=1e-6)


def test_what_is_kept_is_multiplied_and_nothing_is_drawn():
    assert torch.equal(applied(assigned(scheme=KEPT, gain=0.25)), model_of((4, 3)).weight * 0.25)
    now = applied(assigned(scheme=KEPT, gain=-1.0))
    assert torch.equal(now, -model_of((4, 3)).weight)


def test_a_frozen_parameter_is_not_drawn_in_part_either():
    model = model_of((4, 3))
    model.weight.requires_grad_(False)
    with unchanged(model, None):
        applied(assigned(outputs=(1,)), model)


def test_an_error_after_a_part_was_drawn_takes_it_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    good = assigned(name="0.weight", outputs=(0,))
    bad = assigned((2, 4), name="1.weight", outputs=(2,))
    rest = {"0.bias": "", "1.bias": ""}
    with unchanged(model, None), pytest.raises(ArgumentError, match="outputs: 2"):
        apply_(Recipe((good, bad), rest, REPAIR), model)


# Scheme and arguments; whether a part is drawn, whether the values before count.
DRAWN = [
    ("normal", {}, False, False),
    ("normal", dict.fromkeys((*REGION, "split", "kept")), False, False),
    ("normal", {"kept": 0.5}, False, False),
    ("normal", {"rows": (1.0, 2.0, 3.0, 4.0)}, False, False),
    (KEPT, {}, False, True),
    ("normal", {"outputs": (1,)}, True, True),
    ("normal", {"inputs": (1,), "kept": 0.5}, True, True),
    ("normal", {"entries": ()}, True, True),
    ("normal", {"split": ((0, 1),)}, True, True),
]


@pytest.mark.parametrize(("scheme", "arguments", "partial", "keeps"), DRAWN)
def test_values_count_where_they_are_scaled_or_beside_what_is_drawn(
    scheme: str, arguments: dict, partial: bool, keeps: bool
):
    assignment = assigned(scheme=scheme, **arguments)
    assert (assignment.partial, assignment.keeps_values) == (partial, keeps)
    other = model_of((4, 3))
    with torch.no_grad():
        other.weight += 1
    assert torch.equal(applied(assignment), applied(assignment, other)) is not keeps


@pytest.mark.parametrize(("scheme", "arguments", "partial", "keeps"), DRAWN)
def test_a_part_beside_kept_values_is_drawn_in_one_go_on_each_machine(
    scheme: str, arguments: dict, partial: bool, keeps: bool
):
    assert by_parts(assigned(scheme=scheme, **arguments)) is not partial
    if scheme != KEPT:
        assert factored(assigned(scheme="orthogonal", **arguments)) is not keeps


@pytest.mark.parametrize(("scheme", "arguments", "partial", "keeps"), DRAWN)
def test_a_repair_of_a_part_is_merged_with_what_was_prescribed_before(
    scheme: str, arguments: dict, partial: bool, keeps: bool
):
    """After a factor a part keeps it for the rest; what is drawn as a whole forgets it."""
    after = assigned(scheme=scheme, **arguments)
    made = merged(assigned(scheme=KEPT, gain=0.25), after)
    if not keeps:
        assert made == after
    elif not partial:
        assert made.gain == 0.125
    elif "split" in arguments:
        assert made.scheme == KEPT
    else:
        assert made.arguments == {**arguments, "kept": 0.25}


def test_parts_are_merged_into_their_union():
    none = dict.fromkeys((*REGION, "split"))
    before, after = assigned(**{**none, "outputs": (1, 2)}), assigned(outputs=(2, 3), entries=(0,))
    found = merged(before, after).arguments
    assert {name: value for name, value in found.items() if value is not None} == {
        "outputs": (1, 2, 3),
        "entries": (0,),
    }
    assert merged(assigned(**none), after) == assigned(**none)  # all of it was drawn already
    assert merged(assigned(split=((0, 1),)), after).arguments == {"split": ((0, 1),)}


# ── split ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("layout", "shape", "along", "groups"),
    [
        ("oi", (5, 6), None, ((0, 3), (1, 2, 5))),
        ("io", (6, 5), None, ((0, 3), (1, 2, 5))),
        ("oi", (6, 5), "o", ((0, 3), (1, 2, 5))),
        ("boi", (4, 3, 2), "b", ((0, 1, 2, 3),)),
        ("oikk", (3, 6, 2, 2), "i", ((0, 5), (1, 4))),
    ],
)
def test_noise_that_is_split_sums_to_zero_over_each_group(layout, shape, along, groups):
    arguments = {"split": groups} | ({} if along is None else {"along": along})
    model = model_of(shape)
    with torch.no_grad():
        model.weight.mul_(0.01)
    was = model.weight.detach().clone()
    now = applied(assigned(shape, layout, gain=0.5, **arguments), model)
    at = layout.index(along or "i")
    added = (now - was).movedim(at, 0)
    for group in groups:
        part = added[list(group)]
        assert (part != 0).all()
        assert torch.allclose(part.sum(0), torch.zeros_like(part[0]), atol=1e-6)
        assert 0.1 < float(part.std()) < 1.0
    outside = [i for i in range(shape[at]) if not any(i in g for g in groups)]
    assert torch.equal(now.movedim(at, 0)[outside], was.movedim(at, 0)[outside])


def test_a_split_leaves_what_reads_copies_alike_as_it_was():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5).double(), torch.randn(7, 3).double()
    copies = x[:, [0, 1, 2, 0, 1, 0]]
    was = layer(copies)
    plan = assigned((5, 6), split=((0, 3, 5), (1, 4)))
    before = layer.weight.detach().clone()
    apply_(Recipe((plan,), {"bias": ""}, REPAIR), layer)
    assert float((layer.weight - before).detach().abs().max()) > 0.1
    assert torch.allclose(layer(copies), was, atol=1e-14)


# ── in a recipe ──────────────────────────────────────────────────────────────────────────────


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Of one to six parameters, each with a part, a factor, a split, or none of them."""
    found = []
    for number in range(draw(st.integers(1, 6))):
        shape, layout, part = draw(parted())
        name = draw(st.sampled_from([f"h.{number}.w", f"w{number}", f"h.{number}.mlp.0.b"]))
        kind = draw(st.sampled_from(["part", "part", KEPT, "split", "whole", "rows"]))
        gain = draw(st.floats(1e-3, 1e3))
        arguments: dict[str, Any] = {}
        if kind == "part":
            arguments = dict(named(part, layout))
            if draw(st.booleans()):
                arguments["kept"] = draw(st.floats(-10, 10))
        elif kind == "rows" and layout.count("o") == 1:
            size = shape[layout.index("o")]
            arguments["rows"] = tuple(
                draw(st.lists(st.floats(-9, 9), min_size=size, max_size=size))
            )
        elif kind == "split" and layout.count("i") == 1 and shape[layout.index("i")] > 1:
            arguments = {"split": (tuple(range(shape[layout.index("i")])),), "along": "i"}
        scheme = KEPT if kind == KEPT else "normal"
        made = Assignment(name, scheme, gain, gain, None, "part {0}", shape, layout, 1, arguments)
        found.append(made)
    return Recipe(tuple(found), {"left": "nothing to mend"}, REPAIR)


@MANY
@given(recipes())
def test_parts_come_back_from_a_recipe_exactly(recipe: Recipe):
    text = to_toml(recipe)
    again = from_toml(text)
    assert again == recipe
    assert [repr(a) for a in again.assignments] == [repr(a) for a in recipe.assignments]
    assert to_toml(again) == text


@MANY
@given(parted(), st.sampled_from([None, 0.5]))
def test_a_recipe_that_was_read_does_what_the_plan_does(case, kept):
    shape, layout, part = case
    arguments = dict(named(part, layout)) | ({} if kept is None else {"kept": kept})
    recipe = Recipe((assigned(shape, layout, **arguments),), {}, REPAIR)
    one, other = model_of(shape), model_of(shape)
    apply_(recipe, one)
    Plan.from_toml(to_toml(recipe)).apply_(other)
    assert torch.equal(one.weight, other.weight)


def test_a_recipe_written_by_hand():
    text = """
    format = 1
    scheme = "repair"
    [[assignment]]
    parameter = "h.{0,1}.weight"
    scheme = "normal"
    std = 0.02
    shape = [4, 3]
    layout = "oi"
    arguments = { outputs = [1, 3], kept = 0.5 }
    [[assignment]]
    parameter = "out.weight"
    scheme = "kept"
    gain = 0.125
    shape = [2, 4]
    """
    recipe = from_toml(text)
    assert [a.parameter for a in recipe.assignments] == ["h.0.weight", "h.1.weight", "out.weight"]
    assert recipe.assignments[0].arguments == {"outputs": (1, 3), "kept": 0.5}
    assert (recipe.assignments[2].scheme, recipe.assignments[2].gain) == (KEPT, 0.125)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('scheme = "normal"\nstd = 0.1\narguments = { outputs = [4] }', "outputs: 4"),
        ('scheme = "normal"\nstd = 0.1\narguments = { outputs = 1 }', "outputs: 1"),
        ('scheme = "normal"\nstd = 0.1\narguments = { entries = [-1] }', "entries: -1"),
        ('scheme = "normal"\nstd = 0.1\narguments = { split = [[0]] }', "split"),
        ('scheme = "normal"\nstd = 0.1\narguments = { kept = "x", outputs = [0] }', "kept"),
        ('scheme = "kept"\ngain = 1.0\narguments = { outputs = [0] }', "nothing is drawn"),
        ('scheme = "kept"', "gain"),
        ('scheme = "keep"\ngain = 1.0', "keep"),
    ],
)
def test_a_recipe_with_an_impossible_part_is_refused_and_says_where(line: str, word: str):
    text = f"""
format = 1
scheme = "repair"
[[assignment]]
parameter = "a.weight"
{line}
shape = [4, 3]
layout = "oi"
"""
    with pytest.raises(RecipeError) as caught:
        from_toml(text)
    assert word in str(caught.value)
    assert "assignment 1" in str(caught.value) or "a.weight" in str(caught.value)


def test_a_recipe_of_a_repair_for_another_model_changes_nothing():
    model = nn.Linear(5, 4)
    recipe = Recipe((assigned(outputs=(1,)),), {"bias": ""}, REPAIR)
    with unchanged(model, None), pytest.raises(RecipeError, match="another model"):
        apply_(recipe, model)


def test_two_repairs_are_compared_by_their_parts():
    one = Plan((assigned(outputs=(1,)),), {}, REPAIR)
    other = Plan((assigned(outputs=(1, 2)),), {}, REPAIR)
    assert not one.diff(one)
    assert "weight" in str(one.diff(other))
