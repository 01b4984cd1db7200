"""A checkpoint held against its recipe: every bit, the first that differs, and what is certain."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fanin
from fanin.assignment import Assignment, Recipe
from fanin.checkpoint import save
from fanin.cli import cli
from fanin.errors import ArgumentError, FaninError, RecipeError
from fanin.fill import assign_
from fanin.summary import to_text
from fanin.verifying import Checked, pieces, render, source

SEED = 7
LARGE = (700, 2100)  # more than one piece


def normal(name: str, shape: tuple[int, ...], std: float = 0.02, **arguments: object) -> Assignment:
    layout = "oikk"[: len(shape)]
    return Assignment(name, "normal", std, std, None, "", shape, layout, arguments=arguments)


def constant(name: str, scheme: str, size: int) -> Assignment:
    gain = float(scheme == "ones")
    return Assignment(name, scheme, 1.0, gain, None, "", (size,), "o")


WEIGHT, SCALE, BIAS = (
    normal("0.weight", (24, 40)),
    constant("1.weight", "ones", 24),
    constant("1.bias", "zeros", 24),
)
ROTATION = Assignment("2.weight", "orthogonal", 1.0, 24**-0.5, None, "", (24, 24), "oi")
RECIPE = Recipe((WEIGHT, SCALE, BIAS, ROTATION), {"3.weight": "it is frozen"})


def start(
    recipe: Recipe = RECIPE, dtype: torch.dtype = torch.float32, seed: int = SEED
) -> dict[str, Tensor]:
    found = {}
    for assignment in recipe.assignments:
        tensor = torch.empty(assignment.shape, dtype=dtype)
        assign_(tensor, assignment, seed, assignment.parameter)
        found[assignment.parameter] = tensor
    return found


@pytest.fixture
def verified(tmp_path: Path) -> Callable[..., fanin.Verification]:
    def run(
        tensors: Mapping[str, Tensor], recipe: Recipe = RECIPE, **extra: object
    ) -> fanin.Verification:
        path = tmp_path / "model.safetensors"
        metadata = extra.pop("metadata", None)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)  # type: ignore[arg-type]
        return fanin.verify(path, recipe, SEED, **extra)  # type: ignore[arg-type]

    return run


Verify = Callable[..., fanin.Verification]


def states(found: fanin.Verification) -> dict[str, str]:
    return {tensor.name: tensor.state for tensor in found.tensors}


class TestTheStart:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_every_bit_is_the_same_in_the_dtype_of_the_checkpoint(
        self, verified: Verify, dtype: torch.dtype
    ) -> None:
        found = verified(start(dtype=dtype))
        assert found.ok
        assert set(states(found).values()) == {"same"}
        assert found.verdict == "4 of 4 tensors are at their start, to the bit"
        assert {t.dtype for t in found.tensors} == {str(dtype).removeprefix("torch.")}
        assert all(t.told == "" for t in found.tensors)

    def test_of_a_model_that_a_plan_was_applied_to(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(8 * 36, 5))
        plan = fanin.init_(model, torch.randn(4, 3, 8, 8), seed=3)
        save(model, tmp_path / "m.safetensors", plan, 3)
        found = fanin.verify(tmp_path / "m.safetensors")  # recipe and seed from the file
        assert found.ok
        assert (found.seed, found.scheme) == (3, "auto")
        assert found["1.running_mean"].state == "not in the recipe"

    def test_rows_and_padding_are_part_of_it(self, verified: Verify) -> None:
        rows = replace(WEIGHT, arguments={"rows": tuple(1 + k / 7 for k in range(24))})
        table = Assignment("t", "normal", 0.1, 0.1, None, "", (9, 4), "vo", 1, {"padding": 2})
        recipe = Recipe((rows, table))
        tensors = start(recipe)
        assert tensors["t"][2].count_nonzero() == 0
        assert verified(tensors, recipe).ok
        tensors["t"][2, 1] = 1e-30
        assert verified(tensors, recipe)["t"].first == (2, 1)

    def test_of_many_pieces(self, verified: Verify) -> None:
        recipe = Recipe((normal("large", LARGE),))
        assert math.prod(LARGE) > source._PIECE
        found = verified(start(recipe), recipe)
        assert found.ok
        assert found["large"].entries == math.prod(LARGE)

    def test_no_more_than_a_piece_is_read_or_drawn_at_once(
        self, verified: Verify, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = Recipe((normal("large", LARGE), normal("wide", (2, 3, 1 << 19))))
        tensors = start(recipe)
        sizes: list[int] = []
        read, drawn = np.fromfile, pieces.assign_

        def fromfile(path: Path, dtype: type, count: int, offset: int) -> np.ndarray:
            sizes.append(count // 4)
            return read(path, dtype, count, offset=offset)

        def assign(tensor: Tensor, *rest: object) -> None:
            sizes.append(tensor.numel())
            drawn(tensor, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(np, "fromfile", fromfile)
        monkeypatch.setattr(pieces, "assign_", assign)
        assert verified(tensors, recipe).ok
        assert max(sizes) <= source._PIECE
        assert sum(sizes) == 2 * sum(t.numel() for t in tensors.values())

    def test_of_scalars_and_of_nothing(self, verified: Verify) -> None:
        recipe = Recipe((normal("one", ()), normal("none", (0, 3))))
        tensors = start(recipe)
        assert verified(tensors, recipe).ok
        tensors["one"] += 1
        assert verified(tensors, recipe)["one"].first == ()

    def test_drawn_in_a_wider_dtype_then_rounded(self, verified: Verify) -> None:
        """A float32 model that is saved in bfloat16 is rounded twice in rows and matrices."""
        rows = replace(WEIGHT, arguments={"rows": tuple(1 + k / 7 for k in range(24))})
        recipe = Recipe((rows,))
        rounded = {name: tensor.bfloat16() for name, tensor in start(recipe).items()}
        direct = start(recipe, torch.bfloat16)
        assert not torch.equal(rounded["0.weight"], direct["0.weight"])
        for tensors, told in (
            (rounded, "drawn in float32, then rounded to bfloat16"),
            (direct, ""),
        ):
            tensor = verified(tensors, recipe)["0.weight"]
            assert (tensor.state, tensor.told, tensor.differing) == ("same", told, 0)


class TestADifference:
    def test_of_one_bit_is_found(self, verified: Verify) -> None:
        tensors = start()
        tensors["0.weight"].view(torch.int32)[3, 17] ^= 1
        found = verified(tensors)
        weight = found["0.weight"]
        assert not found.ok
        assert found.verdict == "3 of 4 tensors are at their start, to the bit; 1 differs"
        assert (weight.state, weight.differing, weight.entries) == ("differs", 1, 24 * 40)
        assert weight.first == (3, 17)
        assert weight.found == float(tensors["0.weight"][3, 17])
        assert weight.expected == float(start()["0.weight"][3, 17])
        assert weight.largest == pytest.approx(abs(weight.found - weight.expected), rel=1e-6)
        assert "[3, 17]" in str(found)

    @pytest.mark.parametrize("scheme", ["normal", "orthogonal"])
    @settings(max_examples=12, deadline=None)
    @given(data=st.data())
    def test_is_found_wherever_it_is(
        self, tmp_path_factory: pytest.TempPathFactory, scheme: str, data: st.DataObject
    ) -> None:
        shape = (3, 5, 90, 1000) if scheme == "normal" else (24, 24)
        layout = "bboi" if scheme == "normal" else "oi"
        recipe = Recipe((Assignment("w", scheme, 1.0, 1.0, None, "", shape, layout),))
        tensors = start(recipe)
        path = tmp_path_factory.mktemp("one") / "w.safetensors"
        indices = st.tuples(*(st.integers(0, n - 1) for n in shape))
        places = data.draw(st.lists(indices, min_size=1, max_size=3, unique=True))
        changed = tensors["w"].clone()
        for place in places:
            changed[place] += 1.0
        save_file({"w": changed}, path)
        found = fanin.verify(path, recipe, SEED)["w"]
        assert (found.state, found.first, found.differing) == ("differs", min(places), len(places))
        assert found.largest == pytest.approx(1.0, rel=1e-5)

    @pytest.mark.parametrize("place", [(0, 0), (350, 1049), (699, 2099)])
    def test_in_a_large_tensor(self, verified: Verify, place: tuple[int, int]) -> None:
        recipe = Recipe((normal("large", LARGE),))
        tensors = start(recipe)
        tensors["large"].view(torch.int32)[place] ^= 1 << 5
        assert verified(tensors, recipe)["large"].first == place

    def test_of_the_sign_of_zero_alone(self, verified: Verify) -> None:
        tensors = start()
        tensors["1.bias"][5] = -0.0
        bias = verified(tensors)["1.bias"]
        assert (bias.state, bias.first, bias.largest) == ("differs", (5,), 0.0)
        assert math.copysign(1.0, bias.found or 1.0) == -1.0 or str(bias.found) == "-0.0"

    def test_after_one_step_of_training(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        model[0].bias.requires_grad_(False)
        batch = torch.randn(32, 8)
        plan = fanin.init_(model, batch, seed=SEED)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(batch).square().mean().backward()
        optimizer.step()
        save(model, tmp_path / "m.safetensors", plan, SEED)
        found = fanin.verify(tmp_path / "m.safetensors")
        assert states(found) == {
            "0.weight": "differs",
            "2.weight": "differs",
            "2.bias": "differs",
            "0.bias": "left as it was",
        }
        assert found["0.bias"].told
        assert found["2.weight"].told == ""  # nothing is certain of it

    def test_of_another_seed_is_in_all_that_is_random(self, verified: Verify) -> None:
        found = verified(start(seed=SEED + 1))
        assert states(found) == {
            "0.weight": "differs",
            "1.weight": "same",
            "1.bias": "same",
            "2.weight": "differs",
        }
        weight = found["0.weight"]
        assert weight.differing > 0.99 * weight.entries

    def test_of_another_recipe(self, verified: Verify) -> None:
        other = Recipe((replace(WEIGHT, gain=0.03, std=0.03), *RECIPE.assignments[1:]))
        weight = verified(start(other))["0.weight"]
        assert weight.told == "every entry is its start times 1.5, to rounding"


class TestWhatIsCertain:
    """Hints, each beside a look-alike that must not have it."""

    def told(self, verified: Verify, change: Callable[[Tensor], Tensor]) -> str:
        tensors = start()
        tensors["0.weight"] = change(tensors["0.weight"])
        found = verified(tensors)["0.weight"]
        assert found.state == "differs"
        return found.told

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda w: w * 0.98, "every entry is its start times 0.98, to rounding"),
            (lambda w: w * -1, "every entry is its start times -1, to rounding"),
            (lambda w: w * 0, "every entry is 0"),
            (torch.zeros_like, "every entry is 0"),
            (lambda w: torch.full_like(w, 0.5), "every entry is 0.5"),
            (lambda w: w.bfloat16().float(), "it is the start, rounded to bfloat16"),
            (lambda w: w.half().float(), "it is the start, rounded to float16"),
            (lambda w: w * (1 + 2**-23), "every entry is its start, to rounding"),
        ],
    )
    def test_it_is_said(
        self, verified: Verify, change: Callable[[Tensor], Tensor], told: str
    ) -> None:
        if "−" in told or "is 0" in told:
            zeros = self.told(verified, lambda w: change(w) + 0.0)  # no −0
            assert zeros == told
        else:
            assert self.told(verified, change) == told

    def test_not_of_one_entry_more(self, verified: Verify) -> None:
        def scaled(weight: Tensor) -> Tensor:
            weight = weight * 0.98
            weight[-1, -1] *= 1.001
            return weight

        def rounded(weight: Tensor) -> Tensor:
            weight = weight.bfloat16().float()
            weight[5, 5] *= 1.001
            return weight

        def half(weight: Tensor) -> Tensor:
            weight = torch.zeros_like(weight)
            weight[-1, -1] = 1.0
            return weight

        assert [self.told(verified, change) for change in (scaled, rounded, half)] == [""] * 3

    def test_numbers_that_are_none_are_counted(self, verified: Verify) -> None:
        tensors = start()
        tensors["0.weight"][2, 3:6] = math.nan
        tensors["0.weight"][4, 0] = math.inf
        tensors["0.weight"][5, 0] += 0.5
        found = verified(tensors)
        weight = found["0.weight"]
        assert (weight.not_finite, weight.differing, weight.first) == (4, 5, (2, 3))
        assert weight.told == "4 entries are not finite"
        assert weight.largest == pytest.approx(0.5)
        plain = json.loads(found.to_json())["tensors"][0]
        assert (plain["found"], plain["first"]) == ("nan", [2, 3])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_transposed_matrix(self, verified: Verify, dtype: torch.dtype) -> None:
        tensors = start(dtype=dtype)
        tensors["0.weight"] = tensors["0.weight"].T  # another shape
        tensors["2.weight"] = tensors["2.weight"].T  # the same
        found = verified(tensors)
        told = "it is the start, transposed"
        assert (found["0.weight"].state, found["0.weight"].told) == ("other shape", told)
        assert (found["2.weight"].state, found["2.weight"].told) == ("differs", told)
        tensors["0.weight"] = tensors["0.weight"].clone()
        tensors["0.weight"][7, 7] = 1.0
        assert verified(tensors)["0.weight"].told == ""

    def test_a_large_transposed_matrix(self, verified: Verify) -> None:
        recipe = Recipe((normal("large", LARGE),))
        found = verified({"large": start(recipe)["large"].T}, recipe)["large"]
        assert found.told == "it is the start, transposed"

    def test_few_entries_say_nothing_of_a_factor(self, verified: Verify) -> None:
        for size, told in ((3, ""), (30, "every entry is its start times 3, to rounding")):
            recipe = Recipe((normal("w", (1, size)),))
            tensors = {"w": start(recipe)["w"] * 3}
            assert verified(tensors, recipe)["w"].told == told

    def test_a_small_step_in_sixteen_bits_is_no_rounding(self, verified: Verify) -> None:
        tensors = start(dtype=torch.bfloat16)
        step = torch.arange(24) % 2 * 2**-8
        tensors["1.weight"] = tensors["1.weight"] - step.bfloat16()
        scale = verified(tensors)["1.weight"]
        assert (scale.state, scale.differing, scale.told) == ("differs", 12, "")


class TestNames:
    def test_missing_and_extra(self, verified: Verify) -> None:
        tensors = start()
        del tensors["1.bias"]
        tensors["3.weight"] = torch.zeros(2)  # the recipe leaves it
        tensors["head"] = torch.zeros(2)
        found = verified(tensors)
        assert found["1.bias"] == Checked("1.bias", "missing", shape=(24,))
        assert (found["3.weight"].state, found["3.weight"].told) == (
            "left as it was",
            "it is frozen",
        )
        assert found["head"].state == "not in the recipe"
        assert found.verdict == "3 of 4 tensors are at their start, to the bit; 1 is missing"
        assert not found.ok

    def test_what_the_recipe_does_not_draw_does_not_count(self, verified: Verify) -> None:
        assert verified({**start(), "3.weight": torch.ones(2), "head": torch.ones(2)}).ok

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.encoder."])
    def test_a_prefix_of_the_checkpoint(self, verified: Verify, prefix: str) -> None:
        tensors = {prefix + name: tensor for name, tensor in start().items()}
        tensors[f"{prefix}3.weight"] = torch.zeros(2)
        tensors["head"] = torch.zeros(2)
        found = verified(tensors)
        assert found.ok
        assert found["0.weight"].key == f"{prefix}0.weight"
        assert found["3.weight"].state == "left as it was"
        assert any(repr(prefix) in note for note in found.notes)

    def test_a_prefix_of_the_recipe(self, verified: Verify) -> None:
        """A base model saved without the head that the recipe draws too."""
        renamed = [replace(a, parameter=f"model.{a.parameter}") for a in RECIPE.assignments]
        recipe = Recipe((*renamed, normal("head.weight", (3, 4))))
        tensors = {n.removeprefix("model."): t for n, t in start(recipe).items()}
        del tensors["head.weight"]
        found = verified(tensors, recipe)
        assert states(found) == {
            **{a.parameter: "same" for a in renamed},
            "head.weight": "missing",
        }
        assert any("'model.'" in note for note in found.notes)

    def test_no_prefix_is_left_out_where_a_name_agrees_or_two_would_do(
        self, verified: Verify
    ) -> None:
        tensors = {f"a.{name}": tensor for name, tensor in start().items()}
        twice = {f"b.{name}": tensor.clone() for name, tensor in start().items()}
        some = {**tensors, "0.weight": start()["0.weight"]}
        for content, same in (({**tensors, **twice}, 0), (some, 1)):
            found = verified(content)
            assert sum(t.state == "same" for t in found.tensors) == same
            assert sum(t.state == "missing" for t in found.tensors) == 4 - same

    def test_a_recipe_that_draws_nothing_says_so(self, verified: Verify) -> None:
        found = verified(start(), Recipe(()))
        assert (found.ok, found.verdict) == (True, "the recipe draws no tensor")

    def test_another_model_is_named(self, verified: Verify) -> None:
        found = verified({"other": torch.zeros(3)})
        assert any("'0.weight' is not, it has 'other'" in note for note in found.notes)
        assert not found.ok

    def test_the_other_name_of_a_tied_tensor(self, tmp_path: Path, verified: Verify) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.wte = nn.Embedding(20, 8)
                self.a = nn.Linear(8, 20, bias=False)
                self.a.weight = self.wte.weight

            def forward(self, tokens: Tensor) -> Tensor:
                return self.a(self.wte(tokens))  # type: ignore[no-any-return]

        model = Tied()
        plan = fanin.init_(model, torch.randint(20, (4, 6)), seed=1)
        save(model, tmp_path / "tied.safetensors", plan, 1)
        (key,) = load_file(tmp_path / "tied.safetensors")
        assert key == "a.weight"
        assert [a.parameter for a in plan] == ["wte.weight"]
        found = fanin.verify(tmp_path / "tied.safetensors")  # the file's metadata says so
        assert (found.ok, found["wte.weight"].key) == (True, "a.weight")
        # without it nothing is guessed
        tensors = load_file(tmp_path / "tied.safetensors")
        path = tmp_path / "bare.safetensors"
        save_file(tensors, path)
        assert states(fanin.verify(path, plan, 1))["wte.weight"] == "missing"
        assert fanin.verify(path, plan, 1, aliases={"wte.weight": "a.weight"}).ok

    def test_another_shape(self, verified: Verify) -> None:
        found = verified({**start(), "1.bias": torch.zeros(23)})
        bias = found["1.bias"]
        assert (bias.state, bias.shape, bias.found_shape) == ("other shape", (24,), (23,))
        assert "[23], not [24]" in str(found)
        assert found.verdict.endswith("1 has another shape")


class TestFused:
    """What a recipe draws by several names and a checkpoint holds in one, and the reverse."""

    Q, K, V = (normal(f"a.{n}.weight", (rows, 40)) for n, rows in (("q", 24), ("k", 8), ("v", 8)))
    QKV = MappingProxyType({"*.qkv.weight": ["*.q.weight", "*.k.weight", "*.v.weight"]})

    def test_rows_that_are_joined(self, verified: Verify) -> None:
        recipe = Recipe((self.Q, self.K, self.V, BIAS))
        tensors = start(recipe)
        names = [a.parameter for a in recipe.assignments[:3]]
        joined = torch.cat([tensors.pop(name) for name in names])
        found = verified({"a.qkv.weight": joined, **tensors}, recipe, fused=self.QKV)
        assert found.ok
        assert len(found.tensors) == 4
        assert found["a.k.weight"].key == "a.qkv.weight"
        joined.view(torch.int32)[26, 3] ^= 1
        found = verified({"a.qkv.weight": joined, **tensors}, recipe, fused=self.QKV)
        assert states(found) | {"a.k.weight": ""} == {**dict.fromkeys(tensors, "same"),
            **dict.fromkeys(names, "same"), "a.k.weight": ""}  # fmt: skip
        assert found["a.k.weight"].first == (2, 3)

    def test_columns_that_are_joined_and_large(self, verified: Verify) -> None:
        left, right = normal("left", (1500, 900)), normal("right", (1500, 300))
        recipe = Recipe((left, right))
        joined = torch.cat(list(start(recipe).values()), 1)
        fused = {"both": ["left", "right"]}
        assert verified({"both": joined}, recipe, fused=fused).ok
        joined[1400, 1199] += 1.0
        joined[1450, 900] += 1.0
        found = verified({"both": joined}, recipe, fused=fused)
        assert states(found) == {"left": "same", "right": "differs"}
        assert (found["right"].first, found["right"].differing) == ((1400, 299), 2)

    def experts(self) -> tuple[Recipe, dict[str, Tensor]]:
        """Stacks of three experts, gate and up joined, and what each expert has of them."""
        both = Assignment("h.0.gate_up", "normal", 0.1, 0.1, None, "", (3, 10, 4), "boi")
        down = Assignment("h.0.down", "orthogonal", 1.0, 5**-0.5, None, "", (3, 4, 5), "boi")
        recipe = Recipe((both, down))
        tensors = start(recipe)
        cut = {}
        for expert in range(3):
            cut[f"h.0.{expert}.w1"], cut[f"h.0.{expert}.w3"] = tensors["h.0.gate_up"][expert].split(
                5
            )
            cut[f"h.0.{expert}.w2"] = tensors["h.0.down"][expert]
        return recipe, {name: tensor.clone() for name, tensor in cut.items()}

    EXPERTS = MappingProxyType(
        {"h.*.gate_up": ["h.*.{}.w1", "h.*.{}.w3"], "h.*.down": ["h.*.{}.w2"]}
    )

    def test_a_stack_that_is_cut(self, verified: Verify) -> None:
        recipe, cut = self.experts()
        found = verified(cut, recipe, fused=self.EXPERTS)
        assert found.ok
        assert states(found) == {"h.0.gate_up": "same", "h.0.down": "same"}
        cut["h.0.2.w1"][1, 1] += 1.0
        cut["h.0.1.w3"][2, 0] += 1.0
        cut["h.0.2.w2"][3, 4] += 1.0
        found = verified(cut, recipe, fused=self.EXPERTS)
        assert (found["h.0.gate_up"].first, found["h.0.gate_up"].differing) == ((1, 7, 0), 2)
        assert found["h.0.down"].first == (2, 3, 4)

    def test_without_fused_they_are_missing(self, verified: Verify) -> None:
        recipe, cut = self.experts()
        found = verified(cut, recipe)
        assert {t.state for t in found.tensors} == {"missing", "not in the recipe"}

    def test_a_stack_of_what_the_recipe_draws_one_by_one(self, verified: Verify) -> None:
        recipe = Recipe(tuple(normal(f"e.{k}.w", (6, 4)) for k in range(3)))
        stacked = torch.stack(list(start(recipe).values()))
        assert verified({"e.w": stacked}, recipe, fused={"e.w": ["e.{}.w"]}).ok

    def test_parts_of_several_dtypes_are_not_judged(self, verified: Verify) -> None:
        recipe, cut = self.experts()
        cut["h.0.1.w1"] = cut["h.0.1.w1"].bfloat16()
        stack = verified(cut, recipe, fused=self.EXPERTS)["h.0.gate_up"]
        assert (stack.state, stack.dtype) == ("not judged", "float32 and bfloat16")

    @pytest.mark.parametrize(
        ("fused", "message"),
        [
            ({"no.*": ["a"]}, "fits no parameter"),
            ({"h.*.gate_up": ["h.*.{}.w1"]}, "is not made of"),
            ({"h.*.gate_up": ["h.*.{}.w9"]}, "'h.0.0.w9', a part of"),
            ({"h.*.gate_up": []}, "a list of names"),
            (["h"], "a mapping"),
        ],
    )
    def test_a_wrong_pattern_is_one_line(
        self, verified: Verify, fused: object, message: str
    ) -> None:
        recipe, cut = self.experts()
        with pytest.raises(ArgumentError, match=message) as caught:
            verified(cut, recipe, fused=fused)
        assert str(caught.value).startswith("fused: ")
        assert "\n" not in str(caught.value)


class TestWhatCannotBeJudged:
    @pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
    def test_a_dtype_that_is_not_drawn(self, verified: Verify, dtype: torch.dtype) -> None:
        found = verified({**start(), "1.bias": torch.zeros(24, dtype=torch.uint8).to(dtype)})
        assert found["1.bias"].state == "not judged"
        assert "its dtype is" in found["1.bias"].told
        assert not found.ok

    def test_values_that_a_recipe_keeps(self, verified: Verify) -> None:
        kept = Assignment("0.weight", "kept", 0.5, 0.5, None, "", (24, 40), "oi")
        rest = replace(WEIGHT, arguments={"outputs": (1, 2), "kept": 0.5})
        split = replace(WEIGHT, arguments={"split": ((0, 1),), "along": "i"})
        for assignment in (kept, rest, split):
            weight = verified({"0.weight": torch.randn(24, 40)}, Recipe((assignment,)))["0.weight"]
            assert weight.state == "not judged"

    def test_a_part_that_is_none_is_the_whole(self, verified: Verify) -> None:
        none = replace(WEIGHT, arguments={"outputs": None, "split": None})
        tensors = start(Recipe((none,)))
        weight = verified(tensors, Recipe((none,)))["0.weight"]
        assert (weight.state, weight.entries, weight.told) == ("same", 960, "")
        turned = verified({"0.weight": tensors["0.weight"].T.contiguous()}, Recipe((none,)))
        assert turned["0.weight"].told == "it is the start, transposed"

    def test_of_a_part_that_is_drawn_that_part_is(self, verified: Verify) -> None:
        part = replace(WEIGHT, arguments={"outputs": (1, 2)})
        tensor = torch.randn(24, 40)
        tensor[1:3] = start()["0.weight"][1:3]
        recipe = Recipe((part,))
        weight = verified({"0.weight": tensor}, recipe)["0.weight"]
        assert (weight.state, weight.entries) == ("same", 80)
        tensor[2, 39] += 1
        weight = verified({"0.weight": tensor}, recipe)["0.weight"]
        assert (weight.state, weight.first, weight.differing) == ("differs", (2, 39), 1)

    def test_a_start_beyond_the_dtype(self, verified: Verify) -> None:
        recipe = Recipe((replace(WEIGHT, gain=1e5, std=1e5),))
        weight = verified({"0.weight": torch.zeros(24, 40).half()}, recipe)["0.weight"]
        assert weight.state == "not judged"
        assert "overflow" in weight.told


class TestFiles:
    def index(self, folder: Path, shards: list[dict[str, Tensor]]) -> Path:
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file(shard, folder / name, {"format": "pt"})
            places |= dict.fromkeys(shard, name)
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
        return path

    @pytest.fixture
    def shards(self, tmp_path: Path) -> Path:
        tensors = start()
        names = list(tensors)
        parts = [{n: tensors[n] for n in names[:1]}, {n: tensors[n] for n in names[1:]}]
        return self.index(tmp_path, parts)

    def test_a_folder_of_shards_and_its_index(self, shards: Path) -> None:
        for place in (shards.parent, shards, str(shards)):
            assert fanin.verify(place, RECIPE, SEED).ok
        assert len(fanin.verify(shards, RECIPE, SEED).tensors) == 4

    def test_recipe_and_seed_come_from_a_folder_that_was_streamed(self, tmp_path: Path) -> None:
        from fanin.streaming import write

        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(40, 24, bias=False), nn.LayerNorm(24))
        write(model, Recipe(RECIPE.assignments[:3]), tmp_path / "out", seed=5, shard_size=3000)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
        for place in (tmp_path / "out", tmp_path / "out" / "model.safetensors.index.json"):
            found = fanin.verify(place)
            assert (found.ok, found.seed) == (True, 5)

    def test_a_missing_shard(self, shards: Path) -> None:
        (shards.parent / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(ArgumentError, match=r"names model-00002\S+, which is not there"):
            fanin.verify(shards.parent, RECIPE, SEED)

    def test_an_index_that_is_wrong(self, shards: Path) -> None:
        places = json.loads(shards.read_text(encoding="utf-8"))
        places["weight_map"]["more"] = "model-00001-of-00002.safetensors"
        shards.write_text(json.dumps(places), encoding="utf-8")
        with pytest.raises(ArgumentError, match="holds 'more', which it does not"):
            fanin.verify(shards, RECIPE, SEED)
        for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
            shards.write_text(text, encoding="utf-8")
            with pytest.raises(ArgumentError, match=r"index\.json: "):
                fanin.verify(shards, RECIPE, SEED)

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file(start(), path)
        content = path.read_bytes()
        for size in (0, 5, 100, len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(ArgumentError, match="no whole safetensors file"):
                fanin.verify(path, RECIPE, SEED)
        path.write_bytes(b"PK\x03\x04" + bytes(500))
        with pytest.raises(ArgumentError, match="no whole safetensors file"):
            fanin.verify(path, RECIPE, SEED)

    def test_a_flipped_bit_of_the_file_is_a_difference(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file(start(), path)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # of some last entry
        path.write_bytes(content)
        found = fanin.verify(path, RECIPE, SEED)
        (wrong,) = [t for t in found.tensors if t.state != "same"]
        assert wrong.differing == 1
        assert wrong.shape is not None
        assert wrong.first == tuple(n - 1 for n in wrong.shape)

    def test_folders_without_one_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=r"holds no model\.safetensors"):
            fanin.verify(tmp_path, RECIPE, SEED)
        save_file(start(), tmp_path / "one.safetensors")
        assert fanin.verify(tmp_path, RECIPE, SEED).ok
        save_file(start(), tmp_path / "two.safetensors")
        with pytest.raises(ArgumentError, match=r"one\.safetensors, two\.safetensors; name one"):
            fanin.verify(tmp_path, RECIPE, SEED)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="no such file or folder"):
            fanin.verify(tmp_path / "none", RECIPE, SEED)


class TestArguments:
    def test_a_checkpoint_without_a_recipe_needs_one(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file(start(), path)
        with pytest.raises(RecipeError, match=r"recipe: none was given, and .* holds no recipe"):
            fanin.verify(path)
        with pytest.raises(RecipeError, match="seed: none was given"):
            fanin.verify(path, RECIPE)

    def test_what_is_given_goes_before_the_checkpoint(self, tmp_path: Path) -> None:
        model = nn.Linear(4, 3)
        plan = fanin.init_(model, torch.randn(8, 4), seed=1)
        save(model, tmp_path / "m.safetensors", plan, 1)
        assert fanin.verify(tmp_path / "m.safetensors", plan).ok  # the seed of the file
        assert not fanin.verify(tmp_path / "m.safetensors", seed=2).ok

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"seed": -1}, "seed: -1"),
            ({"seed": True}, "seed: True"),
            ({"jobs": 0}, "jobs: 0"),
            ({"recipe": "recipe.toml"}, "recipe: str"),
            ({"aliases": {"no": "0.weight"}}, "alias: 'no'"),
            ({"aliases": {"0.weight": "no"}}, "alias: 'no'"),
        ],
    )
    def test_a_wrong_argument_is_one_line(
        self, tmp_path: Path, arguments: dict[str, object], message: str
    ) -> None:
        path = tmp_path / "model.safetensors"
        save_file(start(), path)
        with pytest.raises(FaninError, match=message) as caught:
            fanin.verify(path, **{"recipe": RECIPE, "seed": SEED, **arguments})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    def test_jobs_change_nothing(self, verified: Verify) -> None:
        tensors = start(seed=SEED + 1)
        del tensors["1.bias"]
        assert verified(tensors, jobs=3) == verified(tensors)

    def test_an_error_of_one_job_ends_all(self, verified: Verify) -> None:
        def progress(text: str, done: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            verified(start(), jobs=2, progress=progress)

    def test_progress_reaches_the_end(self, verified: Verify) -> None:
        shares: list[float] = []
        verified(start(), progress=lambda text, done: shares.append(done))
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


class TestTheTable:
    LONG = "model.layers.10.self_attn.q_proj.weight"
    TOLD = "every entry is its start times 0.98, to rounding"

    def shown(self, name: str, width: int, told: str = TOLD, entries: int = 1 << 24) -> str:
        one = Checked(name, "differs", name, differing=entries, entries=entries, told=told)
        other = Checked("lm_head.weight", "not judged", told="it is int8" if told else "")
        found = fanin.Verification("m", "auto", 0, (one, other), ())
        text = to_text(render(found, full=True), width)
        assert max(map(cell_len, text.splitlines())) <= width
        return text

    @pytest.mark.parametrize("width", [100, 120, 200])
    def test_a_long_name_stays_in_one_line_where_there_is_room(self, width: int) -> None:
        assert self.LONG in self.shown(self.LONG, width)

    def test_the_figures_are_written_in_two_lines_before_a_name_is(self) -> None:
        amount = "16,777,216 of 16,777,216"
        assert amount in self.shown(self.LONG, 120)
        assert amount not in self.shown(self.LONG, 100)
        assert amount in self.shown("h.0.weight", 100)  # nothing is short of room
        few = self.shown(self.LONG, 100, entries=12)
        assert "12 of 12" in few

    def test_a_name_folds_last(self) -> None:
        text = self.shown(self.LONG, 80)
        assert self.LONG not in text
        assert self.LONG in self.shown(self.LONG, 80, told="")
        assert self.LONG[:20] in text

    @pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
    def test_nothing_is_lost_however_narrow_it_is(self, width: int) -> None:
        text = self.shown(self.LONG, width)
        words = f"{self.LONG} differs 16,777,216 of 16,777,216 {self.TOLD} not judged it is int8"
        letters = ("".join(some.split()) for some in (words, text))
        missing = Counter(next(letters)) - Counter(next(letters))
        assert not missing


class TestTheCommand:
    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(cli, ["verify", *map(str, arguments)])

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "start.safetensors"
        model = nn.Sequential(nn.Linear(40, 24, bias=False), nn.LayerNorm(24))
        recipe = Recipe(RECIPE.assignments[:3])
        fanin.Plan.of(recipe).apply_(model, SEED)
        save(model, path, recipe, SEED)
        return path

    def test_zero_at_the_start(self, file: Path) -> None:
        result = self.run(file)
        assert (result.exit_code, result.stderr) == (0, "")
        first, second, *_ = result.stdout.splitlines()
        assert first == "3 of 3 tensors are at their start, to the bit"
        assert second == "recipe: auto, from the checkpoint; seed: 7, from the checkpoint"

    def test_one_where_something_differs(self, file: Path, tmp_path: Path) -> None:
        result = self.run(file, "--seed", 8, "--json", tmp_path / "v.json", "--jobs", 2)
        assert result.exit_code == 1
        assert "1 differs" in result.stdout
        said = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
        assert (said["schema_version"], said["ok"], said["seed"]) == (1, False, 8)
        assert said["tensors"][0]["name"] == "0.weight"
        assert said["tensors"][0]["first"] == [0, 0]

    def test_json_alone_on_stdout_and_nothing_where_quiet(self, file: Path) -> None:
        assert json.loads(self.run(file, "--json", "-").stdout)["ok"]
        quiet = self.run(file, "--quiet", "--seed", 8)
        assert (quiet.exit_code, quiet.output) == (1, "")

    def test_a_recipe_and_an_alias(self, file: Path, tmp_path: Path) -> None:
        place = tmp_path / "recipe.toml"
        place.write_text(fanin.Plan.of(Recipe(RECIPE.assignments[:3])).to_toml(), encoding="utf-8")
        tensors = load_file(file)
        tensors["renamed"] = tensors.pop("0.weight")
        other = tmp_path / "other.safetensors"
        save_file(tensors, other)
        assert self.run(other, "--recipe", place, "--seed", 7).exit_code == 1
        done = self.run(other, "--recipe", place, "--seed", 7, "--alias", "0.weight=renamed")
        assert done.exit_code == 0, done.output

    @pytest.mark.parametrize("rows", [False, True])
    def test_fused_parts_as_in_python(self, tmp_path: Path, rows: bool) -> None:
        recipe = Recipe((TestFused.Q, TestFused.K, TestFused.V, BIAS))
        tensors = start(recipe)
        q, k, v = (tensors.pop(a.parameter) for a in recipe.assignments[:3])
        parts = [q[:16], k, q[16:], v] if rows else [q, k, v]
        told = ["a.q.weight[0:16]", "a.k.weight", "a.q.weight[16:24]", "a.v.weight"]
        names = ",".join(told if rows else ["*.q.weight", "*.k.weight", "*.v.weight"])
        joined = torch.cat(parts)
        joined[20, 3] += 1.0  # a row of k with rows, of q without
        save_file({"a.qkv.weight": joined, **tensors}, tmp_path / "m.safetensors")
        place = tmp_path / "recipe.toml"
        place.write_text(fanin.Plan.of(recipe).to_toml(), encoding="utf-8")
        arguments = (tmp_path / "m.safetensors", "--recipe", place, "--seed", SEED, "--json", "-")
        pattern = f"{'a' if rows else '*'}.qkv.weight"
        result = self.run(*arguments, "--fused", f"{pattern}={names}")
        assert result.exit_code == 1
        found = {t["name"]: t["first"] for t in json.loads(result.stdout)["tensors"]}
        wrong = {"a.k.weight": [4, 3]} if rows else {"a.q.weight": [20, 3]}
        assert found == {**dict.fromkeys(a.parameter for a in recipe.assignments), **wrong}
        assert "missing" in self.run(*arguments).stdout

    def test_fused_can_be_repeated_and_cut_stacks(self, tmp_path: Path) -> None:
        recipe, tensors = TestFused().experts()
        save_file(tensors, tmp_path / "m.safetensors")
        place = tmp_path / "recipe.toml"
        place.write_text(fanin.Plan.of(recipe).to_toml(), encoding="utf-8")
        arguments = [tmp_path / "m.safetensors", "--recipe", place, "--seed", SEED]
        for tensor, parts in TestFused.EXPERTS.items():
            arguments += ["--fused", f"{tensor}={','.join(parts)}"]
        assert self.run(*arguments).exit_code == 0

    def test_equal_rows_are_folded_unless_all_are_asked_for(self, tmp_path: Path) -> None:
        recipe = Recipe(tuple(normal(f"h.{k}.w", (4, 4)) for k in range(6)))
        save_file(start(recipe, seed=1), tmp_path / "m.safetensors")
        place = tmp_path / "recipe.toml"
        place.write_text(fanin.Plan.of(recipe).to_toml(), encoding="utf-8")
        arguments = (tmp_path / "m.safetensors", "--recipe", place, "--seed", 0)
        folded, full = self.run(*arguments), self.run(*arguments, "--full")
        assert "h.{0..5}.w (6×)" in folded.stdout
        assert "of the first" in " ".join(folded.stdout.split())
        assert all(f"h.{k}.w " in full.stdout for k in range(6))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none.safetensors"], "no such file or folder"),
            ([__file__], "no whole safetensors file"),
            (["FILE", "--recipe", "none.toml"], "cannot be read"),
            (["FILE", "--seed", "-1"], "--seed"),
            (["FILE", "--alias", "a"], "is not OLD=NEW"),
            (["FILE", "--fused", "a"], "is not TENSOR=PART,PART"),
            (["FILE", "--fused", "a=b,"], "is not TENSOR=PART,PART"),
            (["FILE", "--fused", "a=b", "--fused", "a=c"], "'a' is given twice"),
            (["FILE", "--fused", "no=0.weight"], "'no' fits no parameter"),
            (["FILE", "--fused", "0.weight=1.weight[0:2]"], "its parts are not those of"),
            (["FILE", "--jobs", "0"], "--jobs"),
            (["FILE", "--json", "no/folder/x"], "cannot be written"),
        ],
    )
    def test_two_and_one_line_where_it_could_not_run(
        self, file: Path, arguments: list[str], message: str
    ) -> None:
        result = self.run(*(str(file) if a == "FILE" else a for a in arguments))
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


# ── wrappers, and parts ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("inside", ["_orig_mod", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("where", ["recipe", "checkpoint", "both"])
def test_what_wraps_a_module_inside_changes_nothing(verified: Verify, inside: str, where: str):
    path, longer = "0.up.weight", f"0.{inside}.up.weight"
    plain = Recipe((normal(path, (24, 40)), normal("1.weight", (8, 24))))
    named = Recipe((normal(longer, (24, 40)), normal("1.weight", (8, 24))))
    values = start(plain)
    if where != "recipe":
        values[longer] = values.pop(path)
    found = verified(values, plain if where == "checkpoint" else named)
    assert found.ok, str(found)


def test_a_checkpoint_of_some_rows_is_not_judged(verified: Verify):
    whole = start()["0.weight"]
    found = verified({"w": whole[:12]}, Recipe((WEIGHT,)), fused={"w": [("0.weight", 0, 12)]})
    assert not found.ok
    assert found["0.weight"].state == "not judged"
    assert "a part of it" in found["0.weight"].told


def test_the_default_device_is_not_asked(verified: Verify):
    values = start()
    with torch.device("meta"):
        assert verified(values).ok


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": 3}, "checkpoint: int"),
        ({"aliases": ["w"]}, "aliases: list; a mapping"),
        ({"fused": ["w"]}, "fused: .*a mapping"),
    ],
)
def test_an_argument_of_another_kind_is_named(tmp_path: Path, arguments, told: str):
    save_file(start(), tmp_path / "a.safetensors")
    path = arguments.pop("path", tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match=told):
        fanin.verify(path, RECIPE, SEED, **arguments)


def test_another_seed_than_the_checkpoint_names_is_said(tmp_path: Path):
    model = nn.Sequential(nn.Linear(6, 4))
    plan = fanin.init_(model, torch.randn(8, 6), seed=3)
    save(model, tmp_path / "a.safetensors", plan, 3)
    assert "drawn with seed 3, not 4" in str(fanin.verify(tmp_path / "a.safetensors", seed=4))
    assert "not" not in " ".join(fanin.verify(tmp_path / "a.safetensors", seed=3).notes)


def test_a_file_of_torch_is_told_from_a_broken_one(tmp_path: Path):
    torch.save(start(), tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match=r"one of torch\.save; .*save_file"):
        fanin.verify(tmp_path / "a.safetensors", RECIPE, SEED)


def test_a_pipe_is_no_checkpoint(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ArgumentError, match="no file and no folder"):
        fanin.verify(tmp_path / "pipe.safetensors", RECIPE, SEED)
