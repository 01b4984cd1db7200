"""The recipe file: exact round trips, patterns a person can read and edit, mistakes named."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import tomllib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fanin.assignment import Assignment, Recipe
from fanin.catalogue import find
from fanin.errors import FaninError, RecipeError
from fanin.recipe import Change, Mismatch, check, diff, from_toml, to_toml

MANY = settings(max_examples=150, deadline=None, derandomize=True)
FEW = settings(MANY, max_examples=50)
SCREEN = 60  # lines


def assigned(
    name: str,
    scheme: str = "he_normal",
    shape: tuple[int, ...] = (10, 50),
    layout: str = "oi",
    *,
    gain: float = 1.0,
    because: str = "ReLU follows",
    fan: float | None = 50.0,
    blocks: int = 1,
    **arguments: object,
) -> Assignment:
    fan = fan if find(scheme).fan else None
    std = find(scheme).std(fan, gain, **arguments)
    return Assignment(name, scheme, gain, std, fan, because, shape, layout, blocks, arguments)


def names(recipe: Recipe) -> list[str]:
    return [assignment.parameter for assignment in recipe.assignments]


def patterns(recipe: Recipe) -> list[str]:
    return [entry["parameter"] for entry in tomllib.loads(to_toml(recipe))["assignment"]]


def assert_same(a: Recipe, b: Recipe) -> None:
    assert a == b
    assert names(a) == names(b)
    assert list(a.untouched) == list(b.untouched)
    # `==` takes 0.0 for −0.0, 1 for 1.0 and True for 1
    for x, y in zip(a.assignments, b.assignments, strict=True):
        assert repr(dict(x.arguments)) == repr(dict(y.arguments))
        assert math.copysign(1, x.gain) == math.copysign(1, y.gain)
        assert math.copysign(1, x.std) == math.copysign(1, y.std)


# --- round trip -----------------------------------------------------------------------------------

GAINS = st.sampled_from([1.0, 0.5, 0.1, 1 / 3, 5e-324, 1e300, 0.0]) | st.floats(0, 1e6)
WORDS = st.sampled_from(["ends branch {n} of 24", "1/√(2·{n})", "0{n}.5e-3", "{{{n}}}", "", "x"])
LEAVES = st.sampled_from(
    ["w", "b", "0.w", "1.w", "e.0.w", "e.1.w", "e.2.w", "a1.b2", "{0..3}", "√"]
)
ODD = st.text(st.sampled_from(list('ab.01239{}"\\\n\r\t[]<>‮\x00é√ ')), max_size=12) | st.text(
    max_size=8
)


@st.composite
def structured_names(draw: st.DrawFn) -> list[str]:
    """Blocks of layers, of which each may have parameters more, fewer, or in another order."""
    found: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        prefix = draw(st.sampled_from(["h.", "", "h.0.e", "layer", "a.b.", "h"]))
        leaves = draw(st.lists(LEAVES, max_size=5, unique=True))
        for index in draw(st.lists(st.integers(0, 12), max_size=6).map(sorted) | st.just(range(4))):
            here = (
                draw(st.just(leaves) | st.permutations(leaves)) if draw(st.booleans()) else leaves
            )
            here = here[: draw(st.integers(0, 5))] if draw(st.booleans()) else here
            found += [f"{prefix}{index}.{leaf}" for leaf in here]
        found += draw(st.lists(ODD, max_size=2))
    return list(dict.fromkeys(found))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    found = draw(structured_names())
    few = draw(st.lists(GAINS, min_size=1, max_size=3))
    words = draw(st.lists(WORDS | ODD, min_size=1, max_size=2))
    varied = draw(st.booleans())
    assignments = []
    for at, name in enumerate(found):
        gain = draw(st.sampled_from(few)) if varied else few[0]
        because = draw(st.sampled_from(words)).replace("{n}", str(at if varied else 3))
        scheme = draw(st.sampled_from(["he_normal", "normal", "zeros"])) if varied else "he_normal"
        shape = draw(st.sampled_from([(10, 50), (50, 10), (), (0,)])) if varied else (2, 3)
        arguments = {"negative_slope": 0.1 * (at % 3)} if varied and scheme == "he_normal" else {}
        layout = "" if draw(st.booleans()) and varied else "oiko"[: len(shape)]
        fan = draw(st.sampled_from([50.0, 1 / 3, 1e17])) if varied else 7.0
        assignments.append(
            assigned(
                *(name, scheme, shape, layout),
                gain=gain,
                because=because,
                fan=fan,
                blocks=1 + at % 2 * varied,
                **arguments,
            )
        )
    cut = draw(st.integers(0, len(assignments)))
    untouched = {a.parameter: a.because for a in assignments[cut:]}
    return Recipe(tuple(assignments[:cut]), untouched, draw(st.sampled_from(["auto", "he_normal"])))


@MANY
@given(recipes())
def test_what_is_written_is_read_back_exactly(recipe):
    text = to_toml(recipe)
    assert_same(from_toml(text), recipe)
    assert to_toml(from_toml(text)) == text


def test_arguments_come_back_with_their_types():
    priors = (1, 2.5, 3)
    recipe = Recipe(
        (
            assigned("a", "prior_bias", (3,), "o", priors=priors),
            assigned("b", "variance_scaling", mode="fan_out", distribution="uniform", scale=2.0),
            assigned("c", "normal", centred=True),
            assigned("d", "trunc_normal", low=-3, high=2.0),
        )
    )
    read = from_toml(to_toml(recipe))
    assert_same(read, recipe)
    assert [type(p) for p in read.assignments[0].arguments["priors"]] == [int, float, int]


def test_arguments_that_differ_from_repeat_to_repeat_are_a_list_that_says_so():
    recipe = Recipe(
        tuple(assigned(f"h.{i}.w", negative_slope=i / 4, gain=1 + i / 2) for i in range(5))
    )
    text = to_toml(recipe)
    assert "negative_slope = { each = [0.0, 0.25, 0.5, 0.75, 1.0] }" in text
    assert patterns(recipe) == ["h.{0..4}.w"]
    assert_same(from_toml(text), recipe)


def test_a_scale_for_each_output_fills_lines_and_stays_one_value():
    rows = tuple(1 / (i + 3) for i in range(40))
    recipe = Recipe(
        tuple(
            dataclasses.replace(
                assigned(f"h.{i}.w", shape=(40, 50), negative_slope=i / 4),
                arguments={"negative_slope": i / 4, "rows": rows, "padding": 3},
            )
            for i in range(4)
        )
    )
    text = to_toml(recipe)
    assert patterns(recipe) == ["h.{0..3}.w"]
    assert max(map(len, text.splitlines())) <= 100
    assert_same(from_toml(text), recipe)


def test_none_among_the_arguments_is_left_out_and_lists_become_tuples():
    biased = assigned("a", "prior_bias", (2,), "o", priors=[1, 2])
    given_none = {"priors": [1, 2], "groups": None}
    recipe = Recipe((dataclasses.replace(biased, arguments=given_none),))
    assert from_toml(to_toml(recipe)).assignments[0].arguments == {"priors": (1, 2)}


def test_numbers_of_numpy_are_written_as_numbers():
    a = dataclasses.replace(
        assigned("a", "he_normal"),
        gain=np.float64(1.0),
        fan=np.float64(50),
        shape=(np.int64(10), np.int64(50)),
        arguments={"negative_slope": np.float32(0.0), "groups": np.int32(1)},
    )
    assert from_toml(to_toml(Recipe((a,)))).assignments[0] == a


@pytest.mark.parametrize("name", ['"', "\\", "\n", "<script>", "{0..3}", "}", "a.{", "'''", "‮", ""])
def test_odd_names_and_reasons_stand_for_themselves(name):
    recipe = Recipe((assigned(name, because=name),), {f"{name}.left": name})
    text = to_toml(recipe)
    assert_same(from_toml(text), recipe)
    assert text.replace("\n", "").isprintable()


def test_a_parameter_named_twice_is_not_written():
    for recipe in (
        Recipe((assigned("a"), assigned("a", gain=0.5))),
        Recipe((assigned("a"),), {"a": "frozen"}),
    ):
        with pytest.raises(RecipeError, match="'a': named twice; once is needed"):
            to_toml(recipe)


def test_what_cannot_be_written_is_refused_by_name():
    sound = assigned("h.w")
    for change, message in [
        ({"gain": math.nan}, "'h.w': gain: nan; a finite number is needed"),
        ({"std": math.inf}, "'h.w': std: inf; a finite number is needed"),
        ({"arguments": {"negative_slope": {}}}, "'h.w': negative_slope: dict cannot stand"),
        ({"scheme": "he_norml"}, "did you mean he_normal"),
        ({"std": 0.3}, "'h.w': std: 0.3; he_normal with gain 1.0 and fan 50 has std 0.2"),
        ({"parameter": "\ud800"}, "lone surrogates"),
    ]:
        with pytest.raises(RecipeError) as error:
            to_toml(Recipe((dataclasses.replace(sound, **change),)))
        assert message in str(error.value)


# --- folding --------------------------------------------------------------------------------------


def gpt2(layers: int = 12, width: int = 768) -> Recipe:
    def linear(name: str, outputs: int, inputs: int, *, gain: float = 1.0, because: str, blocks=1):
        weight = assigned(
            *(f"{name}.weight", "lecun_normal", (inputs, outputs), "io"),
            gain=gain,
            because=because,
            fan=inputs,
            blocks=blocks,
        )
        bias = assigned(f"{name}.bias", "zeros", (outputs,), "o", because="a bias starts at zero")
        return [weight, bias]

    def norm(name: str) -> list[Assignment]:
        scale = assigned(f"{name}.weight", "ones", (width,), "o", because="scale of a norm")
        shift = assigned(f"{name}.bias", "zeros", (width,), "o", because="shift of a norm")
        return [scale, shift]

    found = [
        assigned("wte.weight", "normal", (50257, width), "vo", gain=0.02, because="token table"),
        assigned("wpe.weight", "normal", (1024, width), "vo", gain=0.01, because="positions"),
    ]
    small = 1 / math.sqrt(2 * layers)
    for i in range(layers):
        h, branches = f"h.{i}.", f"of {2 * layers} residual branches: 1/√{2 * layers}"
        found += norm(h + "ln_1")
        found += linear(
            h + "attn.c_attn", 3 * width, width, blocks=3, because="q, k, v: 3 matrices of 768"
        )
        ends = f"ends number {2 * i + 1} {branches}"
        found += linear(h + "attn.c_proj", width, width, gain=small, because=ends)
        found += norm(h + "ln_2")
        found += linear(h + "mlp.c_fc", 4 * width, width, because="a norm before, GELU after")
        ends = f"ends number {2 * i + 2} {branches}"
        found += linear(h + "mlp.c_proj", width, 4 * width, gain=1.5335 * small, because=ends)
    found += norm("ln_f")
    masks = {f"h.{i}.attn.bias_mask": "not floating point" for i in range(layers)}
    return Recipe(tuple(found), masks)


def test_gpt2_reads_well(golden):
    recipe = gpt2()
    text = to_toml(recipe)
    golden("recipe_gpt2.toml", text)
    assert_same(from_toml(text), recipe)


def test_a_llama_of_126_layers_fits_two_screens():
    norm = {"scheme": "ones", "shape": (50,), "layout": "o"}
    matrices = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    found = [assigned("model.embed_tokens.weight", "normal", gain=0.02)]
    for i in range(126):
        h, because = f"model.layers.{i}", f"in layer {i + 1}"
        found += [assigned(f"{h}.{leaf}.weight", because=because) for leaf in matrices]
        found += [assigned(f"{h}.{leaf}_layernorm.weight", **norm) for leaf in ("input", "after")]
    found += [assigned("model.norm.weight", **norm), assigned("lm_head.weight")]
    recipe = Recipe(tuple(found))
    text = to_toml(recipe)
    assert len(text.splitlines()) < 2 * SCREEN
    assert max(map(len, text.splitlines())) <= 100
    assert 'because = "in layer {1..126}"' in text
    assert_same(from_toml(text), recipe)


def test_a_gain_that_follows_depth_is_a_list_and_its_std_goes_without_saying():
    recipe = Recipe(tuple(assigned(f"h.{i}.w", gain=1 / math.sqrt(i + 1)) for i in range(12)))
    (entry,) = tomllib.loads(to_toml(recipe))["assignment"]
    assert entry["parameter"] == "h.{0..11}.w"
    assert entry["gain"] == [1 / math.sqrt(i + 1) for i in range(12)]
    assert "std" not in entry
    assert_same(from_toml(to_toml(recipe)), recipe)


def test_experts_within_layers_fold_twice():
    recipe = Recipe(
        tuple(
            assigned(f"h.{i}.{leaf}", gain=1 / (i + 1), because=f"layer {i}, {leaf}")
            for i in range(6)
            for leaf in ("ln", *(f"e.{j}.{w}" for j in range(8) for w in ("up", "down")), "out")
        )
    )
    assert patterns(recipe) == [
        "h.{0..5}.ln",
        "h.{0..5}.e.{0..7}.up",
        "h.{0..5}.e.{0..7}.down",
        "h.{0..5}.out",
    ]
    text = to_toml(recipe)
    assert 'because = "layer {0..5}, e.{[0..7]}.up"' in text
    assert_same(from_toml(text), recipe)


def test_blocks_of_two_kinds_in_turn_fold_and_keep_their_order():
    recipe = Recipe(
        tuple(
            assigned(f"h.{i}.{leaf}")
            for i in range(8)
            for leaf in (("ln", "attn", "mlp") if i % 2 else ("ln", "conv", "mlp"))
        )
    )
    assert sorted(patterns(recipe)) == [
        "h.{0..6..2}.conv",
        "h.{0..7}.ln",
        "h.{0..7}.mlp",
        "h.{1..7..2}.attn",
    ]
    assert_same(from_toml(to_toml(recipe)), recipe)


def test_what_only_some_repeats_have_folds_with_them():
    recipe = Recipe(
        tuple(
            assigned(f"layer.{i}.{leaf}")
            for i in range(6)
            for leaf in ("conv", "bn", *(("downsample",) if i == 0 else ()), "act")
        )
    )
    assert patterns(recipe) == [
        "layer.{0..5}.conv",
        "layer.{0..5}.bn",
        "layer.{0}.downsample",
        "layer.{0..5}.act",
    ]
    assert_same(from_toml(to_toml(recipe)), recipe)


@pytest.mark.parametrize(
    "found",
    [
        ["h.1.a", "h.0.a"],  # falling
        ["h.0.a", "h.1.a", "h.0.b", "h.1.b"],  # leaf by leaf
        ["h.0.a", "h.0.b", "h.1.b", "h.1.a", "h.2.a", "h.2.b"],  # in another order
        ["h.00.a", "h.01.a", "h.02.a"],  # leading zeros
        ["h.9999999999999999999.a", "h.1.a"],
        ["fc1", "fc2"],
        ["0", "1", "2"],
    ],
)
def test_an_order_that_does_not_fold_is_kept(found):
    recipe = Recipe(tuple(map(assigned, found)))
    assert_same(from_toml(to_toml(recipe)), recipe)


def test_many_parameters_that_do_not_fold_are_still_written_and_read():
    random = np.random.default_rng(0)
    recipe = Recipe(
        tuple(
            assigned(f"{random.integers(3)}.w{random.integers(10**6)}.{i}", gain=random.random())
            for i in range(1000)
        )
    )
    assert_same(from_toml(to_toml(recipe)), recipe)


# --- edited by hand -------------------------------------------------------------------------------

HEAD = 'format = 1\nscheme = "auto"\n'


def entry(**fields: str) -> str:
    sound = {"parameter": '"w"', "scheme": '"he_normal"', "fan": "50", "shape": "[10, 50]"}
    lines = {**sound, **fields}
    return "\n".join(["[[assignment]]", *(f"{k} = {v}" for k, v in lines.items() if v), ""])


def read(*entries: str) -> tuple[Assignment, ...]:
    return from_toml(HEAD + "\n".join(entries)).assignments


def test_std_follows_from_gain_and_gain_from_std():
    (a,) = read(entry(gain="0.5"))
    assert (a.gain, a.std) == (0.5, 0.1)
    (a,) = read(entry(std="0.1"))
    assert (a.gain, a.std) == (0.5, 0.1)
    (a,) = read(entry(std="0.1000000001", gain="0.5"))  # copied from a table
    assert (a.gain, a.std) == (0.5, 0.1000000001)
    (a,) = read(entry(scheme='"zeros"', std="0"))
    assert (a.gain, a.std) == (1.0, 0.0)
    (a,) = read(entry(scheme='"constant"', gain="-2"))
    assert (a.gain, a.std) == (-2.0, 2.0)


def test_the_std_of_a_matrix_follows_from_shape_layout_and_blocks():
    (a,) = read(entry(scheme='"orthogonal"', fan="", gain="1", shape="[192, 64]", layout='"oi"'))
    assert a.std == pytest.approx(192**-0.5)
    (a,) = read(
        entry(scheme='"orthogonal"', fan="", gain="1", shape="[192, 64]", layout='"oi"', blocks="3")
    )
    assert a.std == pytest.approx(64**-0.5)
    (a,) = read(
        entry(
            scheme='"orthogonal"',
            fan="",
            gain="1",
            shape="[64, 8, 2]",
            layout='"iok"',
            arguments="{ groups = 4 }",
        )
    )
    assert a.std == pytest.approx(32**-0.5)  # [8, 16·2]


def test_a_block_is_read_number_by_number():
    found = read(
        entry(parameter='"in"', std="1"),
        entry(parameter='"h.{0,1}.a"', std="1"),
        entry(parameter='"h.{0,1}.e.{0..1}.b"', std="1"),
        entry(parameter='"h.{1}.c"', std="1"),
        entry(parameter='"h.{0..1}.d"', std="1"),
        entry(parameter='"h.2.d"', std="1"),
    )
    assert [a.parameter for a in found] == [
        *("in", "h.0.a", "h.0.e.0.b", "h.0.e.1.b", "h.0.d"),
        *("h.1.a", "h.1.e.0.b", "h.1.e.1.b", "h.1.c", "h.1.d", "h.2.d"),
    ]


def test_lists_go_with_the_numbers_as_they_are_written():
    found = read(
        entry(
            parameter='"h.{3..0,7}.w"',
            gain="[1, 2, 3, 4, 5.5]",
            because='"{4..1,0.5} left"',
            shape="[[1, 50], [2, 50], [3, 50], [4, 50], [5, 50]]",
        )
    )
    assert [(a.parameter, a.gain, a.because, a.shape[0]) for a in found] == [
        ("h.0.w", 4.0, "1 left", 4),
        ("h.1.w", 3.0, "2 left", 3),
        ("h.2.w", 2.0, "3 left", 2),
        ("h.3.w", 1.0, "4 left", 1),
        ("h.7.w", 5.5, "0.5 left", 5),
    ]


def test_a_list_of_one_entry_stands_for_all_repeats():
    found = read(entry(parameter='"h.{0,1}.{0,1}"', gain="[[1, 2]]", because='"{[5,6]}, {7}"'))
    assert [(a.gain, a.because) for a in found] == [(1.0, "5, 7"), (2.0, "6, 7")] * 2


def test_the_reason_may_be_left_out_and_comments_are_welcome():
    (a,) = read("# mine\n" + entry(std="0.2  # as published"))
    assert (a.because, a.layout, a.blocks, dict(a.arguments)) == ("", "", 1, {})


ERRORS = {
    "not TOML": (
        HEAD + "[[assignment]\n",
        "recipe: not TOML: Expected ']]' at the end of an array declaration (at line 3, column 13)",
    ),
    "too deep": ("x = " + "[" * 10_000, "recipe: not TOML: "),
    "no format": ('scheme = "auto"', "recipe: format: missing; a whole number is needed"),
    "another format": ('format = 2\nscheme = "auto"', "format: 2; this fanin reads format 1"),
    "format as text": ('format = "1"', "recipe: format: '1'; a whole number is needed"),
    "scheme of all": ('format = 1\nscheme = "atuo"', "recipe: scheme: there is no 'atuo'; did you"),
    "unknown part": (HEAD + "[[asignment]]", "recipe: there is no field 'asignment'; did you mean"),
    "no table": (HEAD + "assignment = 3", "recipe: assignment: 3; entries begin with [[assignment"),
    "no name": (HEAD + "[[assignment]]", "assignment 1: parameter: missing; text is needed"),
    "unknown field": (
        HEAD + entry(gian="1"),
        "assignment 1 'w': there is no field 'gian'; did you mean gain?",
    ),
    "far field": (HEAD + entry(xyz="1"), "there is no field 'xyz'; known are parameter, scheme, "),
    "no scheme": (HEAD + entry(scheme=""), "assignment 1 'w': scheme: missing; text is needed"),
    "unknown scheme": (
        HEAD + entry(scheme='"he_norml"'),
        "assignment 1 'w': scheme: there is no 'he_norml'; did you mean he_normal",
    ),
    "a whole model's": (
        HEAD + entry(scheme='"lsuv"', gain="1"),
        "'w': scheme: lsuv needs a whole model",
    ),
    "no shape": (HEAD + entry(shape=""), "assignment 1 'w': shape: missing; a list of sizes is"),
    "wrong shape": (
        HEAD + entry(shape="[10, -1]"),
        "assignment 1 'w': shape: [10, -1]; a list of sizes is needed",
    ),
    "shape as text": (HEAD + entry(shape='"10"'), "'w': shape: '10'; a list of sizes is needed"),
    "neither": (HEAD + entry(), "'w': std and gain: both missing; one of them is needed"),
    "contradiction": (
        HEAD + entry(std="0.3", gain="1"),
        "'w': std: 0.3; he_normal with gain 1.0 and fan 50 has std 0.2: leave out gain where std "
        "is meant, std where gain is meant",
    ),
    "zeros": (HEAD + entry(scheme='"zeros"', std="1"), "'w': std: 1.0; zeros with gain 1.0"),
    "NaN": (HEAD + entry(gain="nan"), "'w': gain: nan; a finite number is needed"),
    "infinite": (HEAD + entry(std="inf"), "'w': std: inf; a finite number, 0 or more, is needed"),
    "negative std": (HEAD + entry(std="-1"), "'w': std: -1; a finite number, 0 or more, is needed"),
    "negative gain": (HEAD + entry(gain="-1"), "'w': gain: -1.0; he_normal needs a finite number"),
    "huge": (HEAD + entry(gain="1" + "0" * 400), "'w': gain: 1000"),
    "beyond int": (HEAD + entry(gain="1" * 5000), "recipe: not TOML: "),
    "gain as text": (
        HEAD + entry(gain='"1"'),
        "assignment 1 'w': gain: '1'; a finite number is needed",
    ),
    "gain as a flag": (HEAD + entry(gain="true"), "'w': gain: True; a finite number is needed"),
    "a repeat's NaN": (
        HEAD + entry(parameter='"h.{0,1}"', gain="[1, nan]"),
        "'h.1': gain: nan; a finite number is needed",
    ),
    "no fan": (HEAD + entry(fan="", gain="1"), "'w': fan: missing; he_normal divides by"),
    "fan 0": (HEAD + entry(fan="0", gain="1"), "'w': fan: 0; a positive number is needed"),
    "blocks": (HEAD + entry(blocks="0"), "'w': blocks: 0; a whole number from 1 on is needed"),
    "letters": (HEAD + entry(layout='"ox"'), "'w': layout: 'ox'; one of the letters oikbv for"),
    "layout": (HEAD + entry(layout='"o"'), "'w': layout: 'o'; one letter for each of the 2 dim"),
    "reason": (HEAD + entry(std="1", because="1"), "'w': because: 1; text is needed"),
    "arguments": (HEAD + entry(arguments="1"), "'w': arguments: 1; a table is needed"),
    "unknown argument": (
        HEAD + entry(gain="1", arguments="{ slope = 1 }"),
        "'w': slope: he_normal has no such argument; it takes mode, negative_slope",
    ),
    "bad argument": (
        HEAD + entry(gain="1", arguments="{ negative_slope = 'x' }"),
        "'w': negative_slope: 'x'; he_normal needs a finite number",
    ),
    "date": (
        HEAD + entry(gain="1", arguments="{ negative_slope = 2020-01-01 }"),
        "arguments: negative_slope: datetime.date(2020, 1, 1); a number, text, true, false or",
    ),
    "each": (
        HEAD + entry(gain="1", arguments="{ negative_slope = { all = 1 } }"),
        "arguments: negative_slope: there is no field 'all'; known are each",
    ),
    "groups": (
        HEAD + entry(gain="1", arguments="{ groups = 0 }"),
        "'w': groups: 0; a whole number from 1 on is needed",
    ),
    "padding": (
        HEAD + entry(gain="1", arguments="{ padding = 10 }"),
        "'w': padding: 10; one of the 10 rows is needed",
    ),
    "rows": (
        HEAD + entry(gain="1", layout='"oi"', arguments="{ rows = [1, 2] }"),
        "'w': rows: a number for each of the 10 outputs is needed",
    ),
    "unknown std": (
        HEAD + entry(scheme='"orthogonal"', fan="", gain="1"),
        "'w': std: missing; orthogonal does not tell it for this shape and layout",
    ),
    "lone brace": (
        HEAD + entry(parameter='"h.{0"'),
        "assignment 1 'h.{0': parameter: a single {; a brace that is meant literally is doubled",
    ),
    "bad range": (HEAD + entry(parameter='"h.{0..}"'), "parameter: '0..' in braces is no number"),
    "no numbers": (HEAD + entry(parameter='"h.{}"'), "parameter: {} is no list of numbers such as"),
    "commas": (HEAD + entry(parameter='"h.{0,,1}"'), "parameter: {0,,1} is no list of numbers"),
    "words": (HEAD + entry(parameter='"h.{a}"'), "parameter: 'a' in braces is no number"),
    "fraction": (HEAD + entry(parameter='"h.{0.5}"'), "'0.5' in a name is no whole number"),
    "nested": (HEAD + entry(parameter='"h.{[0]}"'), "['0'] in a name is no whole number"),
    "step": (HEAD + entry(parameter='"h.{0..4..0}"'), "parameter: {0..4..0}: the step is 0"),
    "bomb": (HEAD + entry(parameter='"h.{0..999999999}"'), "stands for more than 1000000 numbers"),
    "product": (
        HEAD + entry(parameter='"{0..9999}{0..9999}{0..9999}"'),
        "stands for more than 1000000 parameters",
    ),
    "twice": (
        HEAD + entry(parameter='"h.{0,1,1}"'),
        "assignment 1 'h.{0,1,1}': 'h.1' is named twice; once is needed",
    ),
    "in two": (
        HEAD + entry(parameter='"h.{0..3}"', std="1") + entry(parameter='"h.2"', std="1"),
        "assignment 2 'h.2': 'h.2' is named in assignment 1 'h.{0..3}' too; once is needed",
    ),
    "assigned and left": (
        HEAD + entry(std="1") + '[[untouched]]\nparameter = "w"\nbecause = "frozen"',
        "untouched 1 'w': 'w' is named in assignment 1 'w' too",
    ),
    "list without braces": (HEAD + entry(gain="[1]"), "gain: a list, but the name has no braces"),
    "short list": (
        HEAD + entry(parameter='"h.{0..11}"', gain="[1, 2, 3]"),
        "assignment 1 'h.{0..11}': gain: a list of 3 entries for 12 repeats",
    ),
    "short reason": (
        HEAD + entry(parameter='"h.{0..11}"', gain="1", because='"{0..3}"'),
        "assignment 1 'h.{0..11}': because: a list of 4 entries for 12 repeats",
    ),
    "braces in a reason": (
        HEAD + entry(gain="1", because='"the set {a}"'),
        "because: 'a' in braces is no number; a brace that is meant literally is doubled",
    ),
    "untouched field": (
        HEAD + '[[untouched]]\nparameter = "w"\nwhy = "x"',
        "untouched 1 'w': there is no field 'why'; known are parameter, because",
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_named_in_one_line(text, message):
    with pytest.raises(RecipeError) as error:
        from_toml(text)
    said = str(error.value)
    assert message in said
    assert said.isprintable()
    assert len(said) < 300


def test_text_is_needed():
    with pytest.raises(RecipeError, match="recipe: bytes; text is needed"):
        from_toml(b"format = 1")  # type: ignore[arg-type]


@MANY
@given(
    st.sampled_from(sorted(ERRORS)).map(lambda which: ERRORS[which][0][:2000]),
    st.integers(0, 2000),
    st.integers(0, 20),
    st.text(st.sampled_from(list('{}[]".,0123456789-nainf\n= ')), max_size=6),
)
def test_no_slip_of_the_hand_gives_anything_but_a_recipe_or_a_recipe_error(text, at, cut, typed):
    with contextlib.suppress(RecipeError):
        recipe = from_toml(text[:at] + typed + text[at + cut :])
        assert_same(from_toml(to_toml(recipe)), recipe)


def test_a_recipe_error_is_a_value_error_of_fanin():
    assert issubclass(RecipeError, FaninError)
    assert issubclass(RecipeError, ValueError)


def test_the_examples_of_the_documentation_are_recipes():
    text = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    first, second, repair = map(from_toml, examples)
    assert len(first.assignments) == 25
    assert len(second.assignments) == 12
    last = {a.parameter: a for a in second.assignments}["h.3.experts.1.weight"]
    assert (last.gain, last.because) == (0.25, "expert 1 of layer 3")
    assert dict(last.arguments) == {"negative_slope": 0.4}
    kept = {a.parameter: a for a in repair.assignments}
    assert (kept["body.3.weight"].scheme, kept["body.3.weight"].gain) == ("kept", 0.25)
    assert kept["head.weight"].arguments["outputs"] == (3, 7)
    assert kept["merge.weight"].arguments["split"] == ((0, 8), (1, 9))


# --- against a model ------------------------------------------------------------------------------


def test_a_recipe_fits_the_model_that_it_was_made_for():
    recipe = gpt2(2)
    shapes = {a.parameter: a.shape for a in recipe.assignments}
    assert check(recipe, {**shapes, **dict.fromkeys(recipe.untouched, (1,))}) == ()


def test_what_does_not_fit_is_named_with_both_shapes():
    recipe = Recipe(
        (assigned("same"), assigned("wide"), assigned("gone")), {"left": "frozen", "away": "int"}
    )
    shapes = {
        "same": (10, 50),
        "wide": (10, 64),
        "new": (3,),
        "scalar": (),
        "left": (1,),
        "q": (2,),
    }
    found = check(recipe, shapes, untouchable=["q"])
    assert found == (
        Mismatch("wide", "shape", (10, 50), (10, 64)),
        Mismatch("new", "missing", None, (3,)),
        Mismatch("scalar", "missing", None, ()),
        Mismatch("gone", "extra", (10, 50), None),
        Mismatch("away", "extra", None, None),
    )
    assert [str(mismatch) for mismatch in found] == [
        "wide: [10, 50] in the recipe, [10, 64] in the model",
        "new: [3] in the model, not in the recipe",
        "scalar: [] in the model, not in the recipe",
        "gone: [10, 50] in the recipe, not in the model",
        "away: left alone in the recipe, not in the model",
    ]


def test_a_mismatch_is_one_line_whatever_the_name():
    (mismatch,) = check(Recipe(()), {"a\n\x1b[31m": (1,)})
    assert str(mismatch).isprintable()


# --- against another recipe -----------------------------------------------------------------------


def test_equal_recipes_have_no_difference():
    difference = diff(gpt2(), gpt2())
    assert not difference
    assert str(difference) == "no difference"


def test_a_difference_names_field_before_and_after():
    a = Recipe((assigned("x"), assigned("y"), assigned("old")), {"left": "frozen", "z": "frozen"})
    b = Recipe(
        (assigned("x", gain=0.5), assigned("new"), assigned("y"), assigned("left")),
        {"z": "asked for"},
        "he_normal",
    )
    difference = diff(a, b)
    assert difference
    assert difference.added == ("new",)
    assert difference.removed == ("old",)
    assert difference.changed == (
        Change("", "scheme", "auto", "he_normal"),
        Change("x", "gain", 1.0, 0.5),
        Change("x", "std", 0.2, 0.1),
        Change("left", "untouched", "frozen", None),
        Change("z", "untouched", "frozen", "asked for"),
    )
    assert str(difference).splitlines() == [
        "~ scheme of the recipe: 'auto' → 'he_normal'",
        "- old",
        "+ new",
        "~ x",
        "    gain: 1 → 0.5",
        "    std: 0.2 → 0.1",
        "~ left",
        "    untouched: 'frozen' → assigned",
        "~ z",
        "    untouched: 'frozen' → 'asked for'",
    ]


def test_a_difference_that_repeats_is_shown_once():
    a = Recipe(tuple(assigned(f"h.{i}.w") for i in range(12)))
    b = Recipe(tuple(assigned(f"h.{i}.w", gain=1 / (i + 2)) for i in range(12)))
    difference = diff(a, b)
    assert len(difference.changed) == 24
    assert str(difference).splitlines() == [
        "~ h.{0..11}.w ×12",
        "    gain: 1 → 0.5, …, 1 → 0.0769231",
        "    std: 0.2 → 0.1, …, 0.2 → 0.0153846",
    ]


def test_numbers_that_differ_late_are_shown_to_the_last_digit():
    a, b = assigned("x"), assigned("x", gain=1 + 2**-52)
    assert "gain: 1.0 → 1.0000000000000002" in str(diff(Recipe((a,)), Recipe((b,))))


@FEW
@given(recipes(), recipes())
def test_a_difference_is_empty_exactly_for_the_same_content(a, b):
    same = (
        {x.parameter: x for x in a.assignments} == {x.parameter: x for x in b.assignments}
        and dict(a.untouched) == dict(b.untouched)
        and a.scheme == b.scheme
    )
    assert bool(diff(a, b)) is not same
    assert not diff(a, a)
    assert str(diff(a, b)).replace("\n", "").isprintable()
