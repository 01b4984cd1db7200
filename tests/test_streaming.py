"""Checkpoints written in pieces: the values, the files, and what ends a run at any moment."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

import fanin
from fanin.assignment import Assignment, Recipe
from fanin.checkpoint import origin
from fanin.cli import cli
from fanin.cli.progress import ByteBar
from fanin.errors import ArgumentError, ModelError, RecipeError
from fanin.streaming import Ranks, Written, ranks_of, write
from fanin.streaming import folder as folders
from fanin.streaming import pieces as cutting
from fanin.streaming.entries import Entry
from fanin.streaming.shards import split
from fanin.targets import load

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSIFIER = f"{EXAMPLES / 'classifier.py'}:build"
STAGING = folders.STAGING


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that small tensors have many, of uneven ends."""
    monkeypatch.setattr(cutting, "PIECE", 1000)


class Net(nn.Module):
    """What a state can hold: norms, a table with padding, a tied output, numbers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(97, 12, padding_idx=3)
        self.body = nn.Sequential(nn.Linear(12, 30), nn.BatchNorm1d(30), nn.ReLU())
        self.middle = nn.Linear(30, 12)
        self.head = nn.Linear(12, 97, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("passing", torch.arange(5), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.middle(self.body(self.table(tokens))))
        return logits


FORMS = {"b": torch.bool, "h": torch.float16, "l": torch.int64, "u": torch.uint8}
FORMS |= {"f": torch.float8_e4m3fn}
TOKENS = torch.arange(16)


def on_meta(build: Callable[[], nn.Module] = Net) -> nn.Module:
    with torch.device("meta"):
        return build()


def planned(scheme: str = "auto", **arguments: Any) -> fanin.Plan:
    return fanin.plan(on_meta(), TOKENS.to("meta"), scheme=scheme, **arguments)


def applied(plan: fanin.Plan, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = Net().to(dtype)
    plan.apply_(model, seed)
    return model


def contents(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def state_in(place: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in place.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name])
        for name in wanted
    )


def without(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if name not in names}


# ── the values ───────────────────────────────────────────────────────────────────────────────


class TestValues:
    @pytest.mark.parametrize(
        ("dtype", "jobs"),
        [
            (torch.float32, 1), (torch.float32, 3), (torch.bfloat16, 3), (torch.float16, 1),
            (torch.float64, 3),
        ],
    )  # fmt: skip
    def test_they_are_those_of_apply(self, tmp_path: Path, dtype: torch.dtype, jobs: int) -> None:
        plan = planned()
        written = write(on_meta(), plan, tmp_path, seed=5, dtype=dtype, jobs=jobs, shard_size=2000)
        assert len(written.files) > 1
        wanted = without(applied(plan, 5, dtype).state_dict(), "head.weight")
        assert same_state(state_in(tmp_path), wanted)

    @pytest.mark.parametrize("piece", [8, 48, 333, 10**6])
    def test_the_size_of_pieces_changes_nothing(
        self, tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = planned()
        monkeypatch.setattr(cutting, "PIECE", piece)
        write(on_meta(), plan, tmp_path / "a")
        monkeypatch.undo()
        write(on_meta(), plan, tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.parametrize(
        "scheme",
        ["orthogonal", "hadamard", "trunc_normal", "looks_linear", "he_normal", "centred"],
    )
    def test_schemes_that_need_the_whole_matrix(self, tmp_path: Path, scheme: str) -> None:
        shapes = {"weight": ((24, 40), "oi"), "other": ((3, 8, 8), "boi")}
        extra = "arguments = { centred = true }" if scheme == "centred" else ""
        named = "he_normal" if scheme == "centred" else scheme
        entries = (
            f'[[assignment]]\nparameter = "{name}"\nscheme = "{named}"\ngain = 0.5\n'
            f'fan = {shape[-1]}\nshape = {list(shape)}\nlayout = "{layout}"\n{extra}'
            for name, (shape, layout) in shapes.items()
        )
        plan = fanin.Plan.from_toml("\n".join(['format = 1\nscheme = "auto"', *entries]))
        models = [
            nn.ParameterDict({n: torch.empty(s, device=device) for n, (s, _) in shapes.items()})
            for device in ("meta", "cpu")
        ]
        write(models[0], plan, tmp_path, seed=2)
        plan.apply_(models[1], 2)
        assert same_state(state_in(tmp_path), dict(models[1].state_dict()))

    def test_rows_and_padding_are_those_of_the_whole_tensor(self, tmp_path: Path) -> None:
        rows = tuple(float(k) for k in range(1, 98))
        plan = planned("he_normal")
        assigned = [
            replace(a, arguments={**a.arguments, "rows": rows, "padding": 96}, layout="oi")
            if a.parameter == "table.weight"
            else a
            for a in plan
        ]
        recipe = fanin.Plan(tuple(assigned), plan.untouched, plan.scheme)
        write(on_meta(), recipe, tmp_path)
        found = state_in(tmp_path)
        assert torch.equal(found["table.weight"], applied(recipe).get_parameter("table.weight"))
        assert not found["table.weight"][96].any()
        assert found["table.weight"][95].any()

    def test_what_has_values_is_written_as_it_is(self, tmp_path: Path) -> None:
        model = on_meta()
        model.get_submodule("middle").weight = nn.Parameter(
            torch.randn(12, 30).t().contiguous().t()
        )
        plan = planned()
        kept = {"middle.weight": "given"}
        left = tuple(a for a in plan if a.parameter not in kept)
        write(model, Recipe(left, kept), tmp_path, dtype=torch.bfloat16)
        given = model.get_parameter("middle.weight")
        assert torch.equal(state_in(tmp_path)["middle.weight"], given.to(torch.bfloat16))

    def test_values_that_are_scaled_and_regions_are_those_of_apply(self, tmp_path: Path) -> None:
        """A repair's recipe: what is kept counts, and the rest of a region."""
        torch.manual_seed(0)
        shapes = {"a": (40, 30), "b": (40, 30), "c": (40, 30)}
        values = {name: torch.randn(shape) for name, shape in shapes.items()}
        part = {"outputs": (3, 39), "kept": 0.5}
        recipe = Recipe(
            (
                Assignment("a", "kept", 0.25, 1.0, None, "", (40, 30), "oi"),
                Assignment("b", "normal", 0.1, 0.1, None, "", (40, 30), "oi", arguments=part),
            ),
            {"c": "as it is"},
        )
        model, again = (
            nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in values.items()})
            for _ in range(2)
        )
        write(model, recipe, tmp_path, seed=9)
        assert all(torch.equal(model[name], values[name]) for name in values)  # not touched
        fanin.Plan.of(recipe).apply_(again, 9)
        assert same_state(state_in(tmp_path), dict(again.state_dict()))

    def test_dtypes_without_a_draw_and_odd_shapes(self, tmp_path: Path) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.empty = nn.Parameter(torch.empty(0, 7, device="meta"))
                self.scalar = nn.Parameter(torch.empty((), device="meta"))
                for name, dtype in FORMS.items():
                    self.register_buffer(name, (torch.arange(601) % 2).to(dtype))

        model = Odd()
        scalar = Assignment("scalar", "normal", 0.5, 0.5, None, "", ())
        write(model, Recipe((scalar,), {"empty": "it is empty"}), tmp_path)
        found, state = state_in(tmp_path), model.state_dict()
        assert found.keys() == state.keys()
        assert found["scalar"].item() != 0
        assert found["empty"].shape == (0, 7)
        for name in FORMS:
            assert found[name].dtype == state[name].dtype
            assert torch.equal(found[name].float(), state[name].float())

    def test_every_tensor_begins_at_a_multiple_of_its_item(self, tmp_path: Path) -> None:
        write(on_meta(), planned(), tmp_path, dtype=torch.float16, shard_size=1500)
        sizes = {"F16": 2, "I64": 8}
        for path in tmp_path.glob("*.safetensors"):
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            del header["__metadata__"]
            for told in header.values():
                assert (8 + length + told["data_offsets"][0]) % sizes[told["dtype"]] == 0

    def test_norms_start_fresh(self, tmp_path: Path) -> None:
        write(on_meta(), planned(), tmp_path)
        found = state_in(tmp_path)
        assert not found["body.1.running_mean"].any()
        assert (found["body.1.running_var"] == 1).all()
        assert found["body.1.num_batches_tracked"].dtype == torch.int64
        assert "passing" not in found

    def test_buffers_that_the_model_itself_initializes(self, tmp_path: Path) -> None:
        """`_init_weights` of transformers, and `reset_parameters`; not what they draw."""

        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.empty(3))
                self.register_buffer("steps", torch.ones(4))
                self.register_buffer("long", torch.zeros(2, dtype=torch.int64))

            def reset_parameters(self) -> None:
                nn.init.normal_(self.weight)
                self.steps.copy_(torch.arange(4.0))
                self.long.fill_(7)

        class Half(Own):
            def reset_parameters(self) -> None:
                self.steps[:3] = 0

        class Drawn(Own):
            def reset_parameters(self) -> None:
                super().reset_parameters()
                nn.init.normal_(self.steps)

        class Library(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Half()

            def _init_weights(self, module: nn.Module) -> None:
                if isinstance(module, Half):
                    module.steps.fill_(0.5)
                    module.long.fill_(1)

        class Positions(nn.Module):
            """A frozen table that the module above it fills, as Whisper has one."""

            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(5, 4)
                self.table.weight.requires_grad_(False)
                self.free = nn.Embedding(5, 4)

            def _init_weights(self, module: nn.Module) -> None:
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight)
                if isinstance(module, Positions):
                    module.table.weight.copy_(torch.arange(20.0).view(5, 4))

        free = Assignment("free.weight", "normal", 0.5, 0.5, None, "", (5, 4), "vo")
        positions = on_meta(Positions)
        write(positions, Recipe((free,), {"table.weight": "frozen"}), tmp_path / "positions")
        assert state_in(tmp_path / "positions")["table.weight"].flatten().tolist() == [*range(20)]
        with pytest.raises(ModelError, match=r"'free\.weight'"):
            write(positions, Recipe((), dict.fromkeys(("table.weight", "free.weight"), "")), "x")
        scalar = Assignment("weight", "normal", 0.5, 0.5, None, "", (3,))
        inner = replace(scalar, parameter="inner.weight")
        state = torch.get_rng_state()
        model = on_meta(Own)
        write(model, Recipe((scalar,)), tmp_path / "own")
        assert torch.equal(torch.get_rng_state(), state)
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        found = state_in(tmp_path / "own")
        assert (found["steps"].tolist(), found["long"].tolist()) == ([0, 1, 2, 3], [7, 7])
        write(on_meta(Library), Recipe((inner,)), tmp_path / "library")
        assert state_in(tmp_path / "library")["inner.steps"].tolist() == [0.5] * 4
        for build in (Half, Drawn):
            with pytest.raises(ModelError, match="the buffer 'steps'"):
                write(on_meta(build), Recipe((scalar,)), tmp_path / "x")
        partly = on_meta(Own)
        partly.weight = nn.Parameter(torch.zeros(3))  # has values: it is not to be reset
        with pytest.raises(ModelError, match="the buffer 'steps'"):
            write(partly, Recipe((), {"weight": "given"}), tmp_path / "x")
        assert not partly.weight.any()

    def test_torch_keeps_its_number_of_threads_and_its_random_state(self, tmp_path: Path) -> None:
        before, state = torch.get_num_threads(), torch.get_rng_state()
        write(on_meta(), planned(), tmp_path, jobs=4)
        assert torch.get_num_threads() == before
        assert torch.equal(torch.get_rng_state(), state)


# ── other readers ────────────────────────────────────────────────────────────────────────────


def configurations() -> Iterator[tuple[str, Any]]:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {**small, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64}
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 16}
    gpt |= {"bos_token_id": 1, "eos_token_id": 2}
    for tied in (True, False):
        tie = {"tie_word_embeddings": tied}
        yield "GPT2LMHeadModel", transformers.GPT2Config(**gpt, **tie)
        yield "LlamaForCausalLM", transformers.LlamaConfig(**llama, **tie)
        yield "MixtralForCausalLM", transformers.MixtralConfig(**llama, **tie, num_local_experts=4)
    yield (
        "DeepseekV3ForCausalLM",
        transformers.DeepseekV3Config(
            **{**llama, "num_key_value_heads": 4}, moe_intermediate_size=8, n_routed_experts=8,
            first_k_dense_replace=1, n_group=1, topk_group=1, num_experts_per_tok=2, q_lora_rank=8,
            kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
        ),
    )  # fmt: skip
    yield (
        "BertForMaskedLM",
        transformers.BertConfig(**small, intermediate_size=48, vocab_size=64),
    )
    yield (
        "ViTForImageClassification",
        transformers.ViTConfig(**small, intermediate_size=48, image_size=32, patch_size=8),
    )
    yield (
        "ResNetForImageClassification",
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    )


# In bfloat16 a model may keep some of its parameters in float32.
@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "bfloat16") for case in range(10)), (0, "float32")]
)
def test_transformers_loads_exactly_the_applied_model(
    tmp_path: Path, case: int, dtype: str
) -> None:
    transformers = pytest.importorskip("transformers")
    name, config = list(configurations())[case]
    config.architectures = [name]
    config.save_pretrained(tmp_path / "config")
    target = load(f"hf:{tmp_path / 'config'}", meta=True)
    plan = fanin.plan(getattr(transformers, name)(config), target.batch)
    place = tmp_path / "start"
    write(target.model, plan, place, seed=3, dtype=getattr(torch, dtype), shard_size=20_000)
    wanted = getattr(transformers, name)(config).to(getattr(torch, dtype))
    plan.apply_(wanted, 3)
    found, told = getattr(transformers, name).from_pretrained(place, output_loading_info=True)
    assert not any(told.values())
    assert found.dtype == getattr(torch, dtype)
    state, strict = found.state_dict(), getattr(found, "_keep_in_fp32_modules_strict", None) or ()
    for key, tensor in wanted.state_dict().items():
        kept = not set(strict).isdisjoint(key.split("."))  # in the dtype of the model
        assert state[key].dtype == (torch.float32 if kept else tensor.dtype), key
        assert torch.equal(state[key].float(), tensor.float()), key
        if key in (written := state_in(place)):
            assert written[key].dtype == state[key].dtype, key


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MixtralForCausalLM"])
def test_the_automatic_classes_of_transformers_find_the_model(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = dict(configurations())[name]
    config.save_pretrained(tmp_path / "config")
    result = run("init", f"hf:{tmp_path / 'config'}", "--out", tmp_path / "start", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    assert type(model).__name__ == name
    assert (tmp_path / "start" / "generation_config.json").is_file()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpointing_loads_it(tmp_path: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    if not hasattr(dcp, "HuggingFaceStorageReader"):
        pytest.skip("this torch reads no safetensors")
    plan = planned()
    write(on_meta(), plan, tmp_path, shard_size=1500)
    wanted = without(applied(plan).state_dict(), "head.weight")
    state = {name: torch.full_like(tensor, 7) for name, tensor in wanted.items()}
    reader = dcp.HuggingFaceStorageReader(str(tmp_path))
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert same_state(state, wanted)


def test_a_single_file_is_loaded_by_safetensors_into_the_tied_model(tmp_path: Path) -> None:
    plan = planned()
    assert write(on_meta(), plan, tmp_path).files == ("model.safetensors",)
    model = Net()
    assert load_model(model, tmp_path / "model.safetensors") == (set(), [])
    assert same_state(model.state_dict(), applied(plan).state_dict())


def test_the_folder_tells_its_origin(tmp_path: Path) -> None:
    plan = planned()
    write(on_meta(), plan, tmp_path, seed=11, shard_size=1500)
    recipe, seed = origin(tmp_path)
    assert (fanin.Plan.of(recipe), seed) == (plan, 11)
    assert origin(min(tmp_path.glob("*.safetensors"))) == (recipe, seed)
    text = (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(f"# mine\n{text}", encoding="utf-8")
    assert origin(tmp_path)[1] == 11  # a comment is no change
    edited = text.replace('because = "', 'because = "not ', 1)
    (tmp_path / "recipe.toml").write_text(edited, encoding="utf-8")
    with pytest.raises(RecipeError, match="is not the recipe that model-00001"):
        origin(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    with pytest.raises(RecipeError, match=r"recipe\.toml: it cannot be read"):
        origin(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        origin(tmp_path / "nothing")


def test_the_index_and_the_metadata_of_the_files(tmp_path: Path) -> None:
    written = write(on_meta(), planned(), tmp_path, shard_size=1500, seed=4)
    told = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(told["weight_map"].values()) == set(written.files)
    tensors = {}
    for file in written.files:
        with safe_open(tmp_path / file, "pt") as opened:
            assert opened.metadata()["format"] == "pt"
            assert opened.metadata()["fanin.seed"] == "4"
            tensors |= dict.fromkeys(opened.keys(), file)
    assert tensors == told["weight_map"]
    bytes_ = sum(t.nbytes for t in state_in(tmp_path).values())
    assert told["metadata"]["total_size"] == bytes_


# ── what cannot be ───────────────────────────────────────────────────────────────────────────


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"shard_size": 0}, "shard_size: 0; a positive number"),
            ({"jobs": 0}, "jobs: 0; an integer from 1 to 64"),
            ({"jobs": 65}, "jobs: 65"),
            ({"seed": -1}, "seed: -1"),
            ({"dtype": torch.int64}, "dtype: torch.int64; one of float32"),
        ],
    )
    def test_arguments(self, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            write(on_meta(), planned(), tmp_path / "x", **arguments)
        assert not (tmp_path / "x").exists()

    def test_a_persistent_buffer_without_a_value_is_named(self, tmp_path: Path) -> None:
        model, plan = on_meta(), planned()
        model.register_buffer("steps", torch.empty(3, device="meta"))
        with pytest.raises(ModelError, match=r"the buffer .steps. is on the meta device"):
            write(model, plan, tmp_path / "x")
        assert not (tmp_path / "x").exists()
        model.register_buffer("steps", torch.empty(3, device="meta"), persistent=False)
        write(model, plan, tmp_path / "x")

    def test_a_parameter_that_is_left_alone_is_named_with_the_reason(self, tmp_path: Path) -> None:
        plan = planned()
        left = tuple(a for a in plan if a.parameter != "middle.bias")
        with pytest.raises(ModelError, match=r"'middle\.bias' .* \(no idea\)"):
            write(on_meta(), Recipe(left, {"middle.bias": "no idea"}), tmp_path / "x")

    def test_a_frozen_parameter_needs_a_value_or_leave(self, tmp_path: Path) -> None:
        model = on_meta()
        model.get_parameter("middle.bias").requires_grad_(False)
        with pytest.raises(ModelError, match=r"'middle\.bias' .*\(it is frozen\)"):
            write(model, planned(), tmp_path / "x")
        write(model, planned(), tmp_path / "x", frozen=True)

    @pytest.mark.parametrize(
        ("scheme", "arguments", "number"),
        [
            ("normal", {}, 9),
            ("normal", {"outputs": None, "split": None}, 9),
            ("normal", {"outputs": (1,)}, 1),
            ("normal", {"split": ((0, 1),)}, 1),
            ("kept", {}, 1),
            ("orthogonal", {}, 1),
        ],
    )
    def test_what_needs_all_values_is_one_piece(
        self, scheme: str, arguments: dict[str, Any], number: int
    ) -> None:
        """36 rows of 60 numbers of 4 bytes, 4 rows to a piece of 1000 bytes."""
        shape = (36, 60)
        assignment = Assignment("w", scheme, 0.5, 0.5, None, "", shape, "oi", 1, arguments)
        entry = Entry("w", shape, torch.float32, "w", assignment, torch.zeros(shape))
        header, *pieces = cutting.pieces(split([entry], 10**6, {})[0])
        assert header.entry is None
        assert len(pieces) == number
        assert sum(piece.window.count for piece in pieces) == entry.size // 4

    def test_values_that_are_kept_have_to_be_there(self, tmp_path: Path) -> None:
        model = nn.Linear(3, 2, bias=False, device="meta")
        kept = Assignment("weight", "kept", 0.5, 1.0, None, "", (2, 3), "oi")
        with pytest.raises(ModelError, match="the recipe keeps values of it"):
            write(model, Recipe((kept,)), tmp_path / "x")

    def test_a_recipe_for_another_model(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="another model: weight"):
            write(nn.Linear(3, 2, device="meta"), planned(), tmp_path / "x")

    def test_a_recipe_may_name_a_tied_parameter_by_its_other_path(self, tmp_path: Path) -> None:
        plan = planned()
        renamed = tuple(
            replace(a, parameter="head.weight") if a.parameter == "table.weight" else a
            for a in plan
        )
        write(on_meta(), Recipe(renamed), tmp_path / "a")
        write(on_meta(), plan, tmp_path / "b")
        assert same_state(state_in(tmp_path / "a"), state_in(tmp_path / "b"))

    def test_values_that_overflow_are_refused_before_anything_is_written(
        self, tmp_path: Path
    ) -> None:
        model = nn.Linear(3, 2, bias=False, device="meta")
        recipe = Recipe((Assignment("weight", "normal", 1e5, 1e5, None, "", (2, 3), "oi"),))
        with pytest.raises(ArgumentError, match="float16"):
            write(model, recipe, tmp_path / "x", dtype=torch.float16)
        assert not (tmp_path / "x").exists()

    def test_extra_state_that_is_no_tensor(self, tmp_path: Path) -> None:
        class Told(nn.Linear):
            def get_extra_state(self) -> dict[str, int]:
                return {"step": 3}

        recipe = Recipe((), {"weight": "", "bias": ""})
        with pytest.raises(ModelError, match="'_extra_state' of its state is no tensor"):
            write(Told(3, 2), recipe, tmp_path / "x")

    def test_what_has_no_tensors(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="nothing to write"):
            write(nn.ReLU(), Recipe(()), tmp_path / "x")

    def test_a_lazy_parameter(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="lazy"):
            write(nn.LazyLinear(3), Recipe((), {"weight": "", "bias": ""}), tmp_path / "x")


# ── the folder ───────────────────────────────────────────────────────────────────────────────


class TestFolder:
    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        place = tmp_path / "start"
        place.write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(ArgumentError, match="it is a file, not a folder"):
                write(on_meta(), planned(), place, overwrite=overwrite)
        with pytest.raises(ArgumentError, match="cannot be written: Not a directory"):
            write(on_meta(), planned(), place / "deeper")
        assert place.read_text() == "mine"

    def test_a_folder_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(30, os.strerror(30))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(ArgumentError, match="start: cannot be written: Read-only file system"):
            write(on_meta(), planned(), tmp_path / "start")

    @pytest.mark.parametrize(
        "name",
        [
            "model.safetensors",
            "config.json",
            "recipe.toml",
            "model.safetensors.index.json",
            "model-00003-of-00007.safetensors",
        ],
    )
    def test_files_in_the_way_stay(self, tmp_path: Path, name: str) -> None:
        model: Any = on_meta()
        if name == "config.json":
            model = pretend_transformers(model)
        (tmp_path / name).write_text("mine")
        with pytest.raises(ArgumentError, match=f"{name} is already there"):
            write(model, planned(), tmp_path)
        assert contents(tmp_path) == {name: b"mine"}

    def test_a_folder_in_the_place_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.toml").mkdir()
        with pytest.raises(ArgumentError, match=r"recipe\.toml is a folder there"):
            write(on_meta(), planned(), tmp_path, overwrite=True)

    def test_a_link_to_nowhere_is_somebodys(self, tmp_path: Path) -> None:
        link = tmp_path / "model.safetensors"
        link.symlink_to(tmp_path / "later")
        with pytest.raises(ArgumentError, match="is already there"):
            write(on_meta(), planned(), tmp_path)
        assert link.is_symlink()

    def test_what_a_link_points_to_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("mine")
        place = tmp_path / "start"
        place.mkdir()
        (place / "model.safetensors").symlink_to(tmp_path / "elsewhere")
        write(on_meta(), planned(), place, overwrite=True)
        assert (tmp_path / "elsewhere").read_text() == "mine"
        assert not (place / "model.safetensors").is_symlink()

    def test_look_alikes_are_nobodys_business(self, tmp_path: Path) -> None:
        names = ("model.bin", "my-model.safetensors", "model-1-of-2.safetensors", "tokenizer.json")
        for name in names:
            (tmp_path / name).write_text("mine")
        write(on_meta(), planned(), tmp_path)
        write(on_meta(), planned(), tmp_path, seed=1, overwrite=True)
        assert all((tmp_path / name).read_text() == "mine" for name in names)

    def test_overwriting_leaves_nothing_of_the_older_checkpoint(self, tmp_path: Path) -> None:
        write(on_meta(), planned(), tmp_path, shard_size=1500)
        many = set(contents(tmp_path))
        write(on_meta(), planned(), tmp_path, shard_size=4000, overwrite=True)
        few = set(contents(tmp_path))
        assert few != many
        write(on_meta(), planned(), tmp_path, overwrite=True)
        assert set(contents(tmp_path)) == {"model.safetensors", "recipe.toml"}
        write(on_meta(), planned(), tmp_path, shard_size=1500, overwrite=True)
        assert set(contents(tmp_path)) == many

    def test_the_older_checkpoint_is_whole_until_the_new_one_is(self, tmp_path: Path) -> None:
        write(on_meta(), planned(), tmp_path, shard_size=1500)
        before = contents(tmp_path)

        def stop(done: int, total: int) -> None:
            if done > total / 2:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            write(
                on_meta(), planned(), tmp_path, seed=1, shard_size=900, overwrite=True,
                progress=stop, jobs=1,
            )  # fmt: skip
        after = contents(tmp_path)
        assert before.items() <= after.items()
        assert all(name.startswith(STAGING) for name in after.keys() - before.keys())

    def test_the_same_again_is_done_already(self, tmp_path: Path) -> None:
        first = write(on_meta(), planned(), tmp_path, shard_size=1500)
        before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        again = write(on_meta(), planned(), tmp_path, shard_size=1500)
        assert (first.kept, again.kept) == (0, len(again.files))
        assert before == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        with pytest.raises(ArgumentError, match="already there"):
            write(on_meta(), planned(), tmp_path, shard_size=1500, seed=1)
        path = tmp_path / first.files[0]
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ArgumentError, match="already there"):
            write(on_meta(), planned(), tmp_path, shard_size=1500)

    def test_too_little_room_is_known_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(ArgumentError, match=r"1\.06 MB are needed, and 1 kB are free"):
            write(on_meta(), planned(), tmp_path / "x" / "y")
        assert not (tmp_path / "x" / "y").exists()

    def test_a_disk_that_fills_up_leaves_what_is_finished(self, tmp_path: Path) -> None:
        """The system refuses to write: here, files longer than a limit."""
        shapes = {f"p{k}": (20, 20) for k in range(4)} | {"p4": (40, 40)}
        model = nn.ParameterDict({n: torch.empty(s, device="meta") for n, s in shapes.items()})
        recipe = Recipe(
            tuple(Assignment(n, "normal", 1.0, 1.0, None, "", s, "oi") for n, s in shapes.items())
        )
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4500, limit[1]))
        try:
            with pytest.raises(ArgumentError, match=r"cannot be written: File too large.*goes on"):
                write(model, recipe, tmp_path / "a", shard_size=1600, jobs=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, before)
        assert not list(tmp_path.rglob("*.part"))
        assert not list((tmp_path / "a").glob("*.safetensors"))
        assert write(model, recipe, tmp_path / "a", shard_size=1600).kept >= 3
        write(model, recipe, tmp_path / "b", shard_size=1600)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_a_failure_at_the_start_leaves_no_folder(self, tmp_path: Path) -> None:
        def fail(done: int, total: int) -> None:
            raise RuntimeError("at once")

        with pytest.raises(RuntimeError):
            write(on_meta(), planned(), tmp_path / "x", progress=fail)
        assert not (tmp_path / "x").exists()
        with pytest.raises(RuntimeError):
            write(on_meta(), planned(), tmp_path, progress=fail)
        assert contents(tmp_path) == {}

    def test_two_runs_in_one_folder(self, tmp_path: Path) -> None:
        errors: list[BaseException] = []

        def meet(done: int, total: int) -> None:
            if not errors:
                try:
                    write(on_meta(), planned(), tmp_path)
                except ArgumentError as error:
                    errors.append(error)

        write(on_meta(), planned(), tmp_path, progress=meet, jobs=1)
        assert "another run of fanin is writing into it" in str(errors[0])
        assert (tmp_path / "model.safetensors").is_file()


def pretend_transformers(model: nn.Module) -> Any:
    """A model with the methods by which transformers writes its configuration."""

    class Config:
        dtype: str | None = None

        def save_pretrained(self, place: str) -> None:
            Path(place, "config.json").write_text("{}")

    model.config = Config()  # type: ignore[assignment]
    model.save_pretrained = None  # type: ignore[assignment]
    return model


# ── going on ─────────────────────────────────────────────────────────────────────────────────


class StoppedError(Exception):
    pass


def stopped_after(place: Path, share: float) -> None:
    """A run that ends by an error when a share of it is done."""

    def stop(done: int, total: int) -> None:
        if done >= share * total:
            raise StoppedError

    with pytest.raises(StoppedError):
        write(on_meta(), planned(), place, jobs=1, shard_size=900, progress=stop)


class TestGoingOn:
    def test_finished_files_are_kept_and_the_end_is_the_same(self, tmp_path: Path) -> None:
        write(on_meta(), planned(), tmp_path / "a", shard_size=900)
        stopped_after(tmp_path / "b", 0.8)
        finished = set((tmp_path / "b" / STAGING).glob("*.safetensors"))
        inodes = {p.name: p.stat().st_ino for p in finished}
        assert finished
        written = write(on_meta(), planned(), tmp_path / "b", shard_size=900)
        assert written.kept == len(finished)
        assert all((tmp_path / "b" / name).stat().st_ino == n for name, n in inodes.items())
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.parametrize("damage", ["a byte", "the end", "a block", "the sum"])
    def test_a_damaged_file_is_written_again(self, tmp_path: Path, damage: str) -> None:
        write(on_meta(), planned(), tmp_path / "a", shard_size=900)
        stopped_after(tmp_path / "b", 0.8)
        finished = sorted((tmp_path / "b" / STAGING).glob("*.safetensors"))
        path = finished[-1]
        data = bytearray(path.read_bytes())
        if damage == "a byte":
            data[-7] ^= 1
        elif damage == "the end":
            del data[-3:]
        elif damage == "a block":
            data[-100:] = bytes(100)
        else:
            path.with_name(f"{path.name}.sum").write_text("0" * 64)
        path.write_bytes(data)
        told: list[tuple[int, int]] = []
        written = write(
            on_meta(), planned(), tmp_path / "b", shard_size=900,
            progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
        assert written.kept == len(finished) - 1
        assert told[-1][0] == told[-1][1] == written.bytes
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.parametrize("what", ["seed", "recipe", "dtype", "shard_size"])
    def test_another_unfinished_checkpoint_is_not_mixed_in(self, tmp_path: Path, what: str) -> None:
        stopped_after(tmp_path, 0.8)
        before = contents(tmp_path)
        other: dict[str, Any] = {"seed": 0, "shard_size": 900}
        plan = planned("he_normal") if what == "recipe" else planned()
        other |= {"seed": 1} if what == "seed" else {}
        other |= {"dtype": torch.float16} if what == "dtype" else {}
        other |= {"shard_size": 901} if what == "shard_size" else {}
        if what == "shard_size":  # the same division is the same checkpoint
            other["shard_size"] = 1500
        with pytest.raises(ArgumentError, match="an unfinished checkpoint is there"):
            write(on_meta(), plan, tmp_path, **other)
        assert contents(tmp_path) == before
        write(on_meta(), plan, tmp_path, overwrite=True, **other)
        write(on_meta(), plan, tmp_path / "clean", **other)
        clean = contents(tmp_path / "clean")
        shutil.rmtree(tmp_path / "clean")
        assert contents(tmp_path) == clean

    def test_values_that_are_given_belong_to_the_checkpoint(self, tmp_path: Path) -> None:
        """Another value of what is not drawn is another checkpoint."""
        models = [nn.Sequential(*(nn.Linear(9, 9) for _ in range(6))) for _ in range(2)]
        recipe = Recipe((), dict.fromkeys(dict(models[0].named_parameters()), "given"))

        def stop(done: int, total: int) -> None:
            if done > 0.8 * total:
                raise StoppedError

        with pytest.raises(StoppedError):
            write(models[0], recipe, tmp_path, shard_size=300, jobs=1, progress=stop)
        with pytest.raises(ArgumentError, match="an unfinished checkpoint"):
            write(models[1], recipe, tmp_path, shard_size=300)
        half = (Assignment("0.weight", "kept", 0.5, 1.0, None, "", (9, 9), "oi"),)
        halved = Recipe(half, without(dict(recipe.untouched), "0.weight"))
        with pytest.raises(StoppedError):
            write(models[0], halved, tmp_path / "x", shard_size=300, jobs=1, progress=stop)
        with pytest.raises(ArgumentError, match="an unfinished checkpoint"):
            write(models[1], halved, tmp_path / "x", shard_size=300)
        write(models[0], recipe, tmp_path, shard_size=300)

    def test_what_cannot_be_read_of_an_unfinished_run_is_named(self, tmp_path: Path) -> None:
        (tmp_path / STAGING).mkdir()
        (tmp_path / STAGING / "manifest.json").write_text("{")
        with pytest.raises(ArgumentError, match=r"delete .*fanin-unfinished"):
            write(on_meta(), planned(), tmp_path)

    def test_an_interrupt_is_no_end(self, tmp_path: Path) -> None:
        write(on_meta(), planned(), tmp_path / "a", shard_size=900)

        def interrupt(done: int, total: int) -> None:
            if done > 0.9 * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(on_meta(), planned(), tmp_path / "b", shard_size=900, jobs=2, progress=interrupt)
        assert not [t for t in threading.enumerate() if t.name.startswith("fanin")]
        assert not list(tmp_path.rglob("*.part"))
        assert write(on_meta(), planned(), tmp_path / "b", shard_size=900).kept > 0
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.slow
    def test_an_end_at_every_step(self, tmp_path: Path) -> None:
        script = Path(__file__).with_name("crashing.py")
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ends"] > 60

    @pytest.mark.slow
    def test_killed_and_interrupted_on_the_command_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C stops at once and says what to do; nothing is left of what SIGKILL cut off."""
        monkeypatch.undo()  # pieces of the usual size
        command = ("init", f"{large_model(tmp_path)}:build", *LARGE, "--out")
        place = tmp_path / "b"
        killed = started(*command, place)
        wait_for(lambda: list(place.rglob("*.part")))
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert not list(place.glob("*.safetensors"))
        interrupted = started(*command, place)
        wait_for(lambda: finished(place) >= 3)
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate()
        assert (interrupted.returncode, out) == (130, "")
        assert err.splitlines() == [
            f"fanin: {place}: unfinished; the same command goes on with it",
            "fanin: interrupted",
        ]
        assert not list(place.rglob("*.part"))
        assert not list(place.glob("*.safetensors"))
        done = run(*command, place)
        assert (done.exit_code, done.stderr) == (0, "")
        assert "by an earlier run" in done.stdout
        assert run(*command, tmp_path / "a", "--quiet").output == ""
        assert contents(tmp_path / "a") == contents(place)


#: A model of 96 MB, in 12 files.
LARGE = ("--shard-size", "8MB", "--dtype", "bfloat16", "--jobs", "1", "--scheme", "he_normal")


def large_model(folder: Path) -> Path:
    path = folder / "large.py"
    path.write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    layers = [nn.Linear(2000, 2000, bias=False) for _ in range(12)]\n"
        "    return nn.Sequential(*layers), torch.zeros(2, 2000)\n"
    )
    return path


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fanin", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def finished(place: Path) -> int:
    return len(list((place / STAGING).glob("*.safetensors")))


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """In a process of its own: 250 MB written with less than a fifth of it in memory at once."""
    script = (
        "import resource, sys, torch\n"
        "from torch import nn\n"
        "from fanin.assignment import Assignment, Recipe\n"
        "from fanin.streaming import write\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "shape = (25_000, 5000)\n"
        "model = nn.ParameterDict({'w': torch.empty(shape, device='meta')})\n"
        "normal = Assignment('w', 'normal', 0.02, 0.02, None, '', shape, 'oi')\n"
        "before = peak()\n"
        "written = write(model, Recipe((normal,)), sys.argv[1], dtype=torch.bfloat16, jobs=4)\n"
        "print(written.bytes, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size > 250e6
    assert grown < 50e6


# ── several processes ────────────────────────────────────────────────────────────────────────


def together(*parts: Callable[[], Any]) -> list[Any]:
    """What each returned or raised, side by side."""
    results: list[Any] = [None] * len(parts)

    def call(number: int) -> None:
        try:
            results[number] = parts[number]()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class TestRanks:
    def part(self, place: Path, rank: int, world: int, **extra: Any) -> Callable[[], Written]:
        model, plan = on_meta(), planned()
        options: dict[str, Any] = {"jobs": 1, "shard_size": 900, "patience": 30.0, **extra}
        return lambda: write(model, plan, place, ranks=Ranks(rank, world), **options)

    @pytest.mark.parametrize("world", [2, 3, 8])
    def test_they_share_the_files(self, tmp_path: Path, world: int) -> None:
        write(on_meta(), planned(), tmp_path / "a", shard_size=900)
        totals: dict[int, int] = {}
        parts = [
            self.part(tmp_path / "b", k, world, progress=lambda _, n, k=k: totals.setdefault(k, n))
            for k in range(world)
        ]
        results = together(*parts)
        assert all(isinstance(result, Written) for result in results), results
        assert sum(totals.values()) == results[0].bytes
        assert len([n for n in totals.values() if n]) == min(world, len(results[0].files))
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_one_that_comes_late_is_waited_for(self, tmp_path: Path) -> None:
        late = self.part(tmp_path, 1, 2)

        def sleeping() -> Written:
            time.sleep(0.5)
            return late()

        first, second = together(self.part(tmp_path, 0, 2), sleeping)
        assert isinstance(first, Written)
        assert isinstance(second, Written)
        assert not (tmp_path / STAGING).exists()

    def test_a_dead_one_is_given_up_and_its_files_are_done_later(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="process 1 of 2 has given no sign of life"):
            self.part(tmp_path, 0, 2, patience=0.3)()
        written = self.part(tmp_path, 0, 1)()
        assert written.kept == (len(written.files) + 1) // 2

    def test_the_first_one_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="process 0 of 2 has given no sign of life"):
            self.part(tmp_path / "x", 1, 2, patience=0.3)()
        assert not (tmp_path / "x").exists()

    def test_one_that_fails_tells_the_others(self, tmp_path: Path) -> None:
        def fail(done: int, total: int) -> None:
            if done:
                raise OSError(28, os.strerror(28))

        first, second = together(
            self.part(tmp_path, 0, 2), self.part(tmp_path, 1, 2, progress=fail)
        )
        assert "No space left on device" in str(second)
        assert str(first).startswith("process 1 of 2 stopped: ")
        assert "No space left on device" in str(first)

    def test_finished_files_that_vanish_are_noticed(self, tmp_path: Path) -> None:
        def vanish(done: int, total: int) -> None:
            for path in (tmp_path / STAGING).glob("*.safetensors"):
                path.unlink()

        parts = (self.part(tmp_path, k, 2, patience=60.0) for k in range(2))
        late = self.part(tmp_path, 0, 1, patience=0.3, progress=vanish)
        with pytest.raises(ArgumentError, match="files that were finished are gone"):
            late()
        assert all(isinstance(result, Written) for result in together(*parts))

    def test_a_finished_checkpoint_is_enough_for_all(self, tmp_path: Path) -> None:
        self.part(tmp_path, 0, 1)()
        results = together(*(self.part(tmp_path, k, 2) for k in range(2)))
        assert [result.kept > 0 for result in results] == [True, True]

    def test_overwriting_together(self, tmp_path: Path) -> None:
        self.part(tmp_path, 0, 1)()
        wanted = contents(tmp_path)
        path = min(tmp_path.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        results = together(*(self.part(tmp_path, k, 2, overwrite=True) for k in range(2)))
        assert [result.kept for result in results] == [0, 0]
        assert contents(tmp_path) == wanted

    def test_the_rest_of_an_unfinished_run_is_shared_by_another_number(
        self, tmp_path: Path
    ) -> None:
        stopped_after(tmp_path, 0.8)
        there = finished(tmp_path)
        results = together(*(self.part(tmp_path, k, 3) for k in range(3)))
        assert sum(result.kept for result in results) == there > 0

    @pytest.mark.parametrize(
        ("environment", "wanted"),
        [
            ({}, Ranks(0, 1)),
            ({"RANK": "3"}, Ranks(0, 1)),
            ({"WORLD_SIZE": "3"}, Ranks(0, 1)),
            ({"RANK": "2", "WORLD_SIZE": "3"}, Ranks(2, 3)),
        ],
    )
    def test_the_environment_of_torchrun(self, environment: dict[str, str], wanted: Ranks) -> None:
        assert ranks_of(environment) == wanted

    @pytest.mark.parametrize("told", [("3", "3"), ("-1", "2"), ("a", "2"), ("0", "0")])
    def test_an_environment_that_cannot_be(self, told: tuple[str, str]) -> None:
        with pytest.raises(ArgumentError, match="RANK, WORLD_SIZE"):
            ranks_of(dict(zip(("RANK", "WORLD_SIZE"), told, strict=True)))

    @pytest.mark.slow
    def test_under_torchrun(self, tmp_path: Path) -> None:
        arguments = ["init", CLASSIFIER, "--shard-size", "4KB"]
        assert run(*arguments, "--out", tmp_path / "a").exit_code == 0
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*command, "-m", "fanin", *arguments, "--out", str(tmp_path / "b")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("; seed 0") == 1
        assert contents(tmp_path / "a") == contents(tmp_path / "b")


# ── the command line ─────────────────────────────────────────────────────────────────────────


class TestCommandLine:
    def test_a_factory_becomes_a_folder(self, tmp_path: Path) -> None:
        place = tmp_path / "start"
        result = run("init", CLASSIFIER, "--out", place, "--seed", 3, "--shard-size", "4KB")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        files = len(list(place.glob("*.safetensors")))
        assert f"kB in {files} files; seed 3" in " ".join(result.stdout.split())
        recipe, seed = origin(place)
        target = load(CLASSIFIER)
        fanin.Plan.of(recipe).apply_(target.model, seed)
        assert same_state(state_in(place), target.model.state_dict())
        again = run("init", CLASSIFIER, "--out", place, "--seed", 3, "--shard-size", "4KB")
        assert again.exit_code == 0
        assert "by an earlier run" in again.stdout

    @pytest.mark.parametrize("option", ["--out", "-o"])
    def test_the_dtype_is_that_of_the_configuration(self, tmp_path: Path, option: str) -> None:
        pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "vocab_size": 31, "dtype": "bfloat16"}
        named = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(sizes | heads | named))
        place = tmp_path / "start.safetensors"
        result = run("init", f"hf:{tmp_path / 'config.json'}", option, place)
        assert result.exit_code == 0, result.stderr
        file = place / "model.safetensors" if place.is_dir() else place
        assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
        if place.is_dir():
            assert json.loads((place / "config.json").read_text())["dtype"] == "bfloat16"
        assert fanin.verify(place).ok

    LEFT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 512), nn.Linear(512, 3)
        self.spare = nn.Linear(512, 512)  # never used, and too large to be built beside the rest
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.rates = nn.Parameter(torch.arange(1.0, 513.0).log())
        self.register_buffer("offsets", torch.arange(5) - 2)

    def forward(self, x):
        h = (self.body(x) * self.rates.exp().reciprocal()).relu()
        return self.head(h) * self.scale.exp()

def build():
    return Net(), torch.randn(8, 6)
"""

    def test_what_the_plan_leaves_alone_starts_as_the_models_own_code_starts_it(
        self, tmp_path: Path
    ) -> None:
        target, places = tmp_path / "net.py", [tmp_path / "a", tmp_path / "b"]
        target.write_text(self.LEFT)
        for place, jobs in zip(places, (1, 4), strict=True):
            options = ("--seed", 3, "--jobs", jobs, "--shard-size", "100KB")
            result = run("init", f"{target}:build", "--out", place, *options)
            assert result.exit_code == 0, result.stderr
        told = " ".join(result.stdout.split())
        assert "scale, rates, spare.weight and 1 more: left alone by the plan" in told
        one, two = (state_in(place) for place in places)
        assert same_state(one, two)
        assert one["scale"] == 2.5
        assert torch.equal(one["rates"], torch.arange(1.0, 513.0).log())
        assert torch.equal(one["offsets"], torch.arange(5) - 2)
        bound = 512**-0.5
        assert float(one["spare.weight"].abs().max()) == pytest.approx(bound, rel=1e-3)
        assert float(one["spare.weight"].std()) == pytest.approx(bound / 3**0.5, rel=0.02)
        assert fanin.verify(places[0]).ok

    def test_another_seed_draws_other_values_of_what_is_left_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "net.py"
        target.write_text(self.LEFT)
        found = []
        for seed in (0, 1):
            place = tmp_path / str(seed)
            assert run("init", f"{target}:build", "--out", place, "--seed", seed).exit_code == 0
            found.append(state_in(place))
        assert not torch.equal(found[0]["spare.weight"], found[1]["spare.weight"])
        assert torch.equal(found[0]["rates"], found[1]["rates"])

    def test_the_temperature_of_clip_is_that_of_its_configuration(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        sizes = {
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 48,
        }  # fmt: skip
        words = {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98}
        config = transformers.CLIPConfig(
            text_config={**sizes, **words},
            vision_config={**sizes, "image_size": 32, "patch_size": 8},
            projection_dim=16, logit_scale_init_value=1.25,
        )  # fmt: skip
        config.architectures = ["CLIPModel"]
        config.save_pretrained(tmp_path)
        result = run("init", f"hf:{tmp_path}", "--out", tmp_path / "start")
        assert result.exit_code == 0, result.stderr
        assert state_in(tmp_path / "start")["logit_scale"] == 1.25

    def test_one_file_is_not_written_by_several(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        result = run("init", CLASSIFIER, "-o", tmp_path / "start.safetensors")
        assert result.exit_code == 2
        assert "take --out DIR for several" in result.stderr

    def test_a_recipe_and_a_dtype(self, tmp_path: Path) -> None:
        recipe, place = tmp_path / "recipe.toml", tmp_path / "start"
        assert run("plan", CLASSIFIER, "-o", recipe).exit_code == 0
        options = ("--recipe", recipe, "--dtype", "float16", "--jobs", 2, "--quiet")
        result = run("init", CLASSIFIER, "--out", place, *options)
        assert (result.exit_code, result.output) == (0, "")
        assert state_in(place)["0.weight"].dtype == torch.float16
        assert fanin.Plan.of(origin(place)[0]) == fanin.Plan.from_toml(recipe.read_text("utf-8"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["-o", "x"], "not both"),
            (["--shard-size", "5 apples"], "is no size such as 5GB"),
            (["--shard-size", "0"], "is no size"),
            (["--shard-size", "-5GB"], "is no size"),
            (["--jobs", "0"], "--jobs"),
            (["--dtype", "int8"], "--dtype"),
        ],
    )
    def test_wrong_options(self, tmp_path: Path, options: list[str], message: str) -> None:
        result = run("init", CLASSIFIER, "--out", tmp_path / "start", *options)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "start").exists()

    @pytest.mark.parametrize(
        "option",
        [["--shard-size", "1GB"], ["--jobs", "2"], ["--dtype", "float16"], ["--overwrite"]],
    )
    def test_options_of_a_folder_need_one(self, tmp_path: Path, option: list[str]) -> None:
        result = run("init", CLASSIFIER, "-o", tmp_path / "x", *option)
        assert result.exit_code == 2
        assert f"{option[0]} goes with --out" in result.stderr

    @pytest.mark.parametrize(
        ("text", "bytes_"),
        [
            ("5GB", 5 * 10**9), ("5gb", 5 * 10**9), ("2GiB", 2**31), ("500 MB", 5 * 10**8),
            ("1.5KB", 1500), ("1024", 1024), ("7B", 7), ("1T", 10**12), ("3M", 3 * 10**6),
        ],
    )  # fmt: skip
    def test_sizes(
        self, tmp_path: Path, text: str, bytes_: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Any] = {}

        def pretend(*_: Any, **extra: Any) -> Written:
            seen.update(extra)
            return Written(tmp_path, ("x",), 1, 1, 0)

        monkeypatch.setattr("fanin.cli.folder.write", pretend)
        result = run("init", CLASSIFIER, "--out", tmp_path, "--shard-size", text)
        assert result.exit_code == 0, result.stderr
        assert seen["shard_size"] == bytes_

    def test_files_in_the_way_are_one_line_and_status_2(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.toml").write_text("mine")
        result = run("init", CLASSIFIER, "--out", tmp_path)
        assert result.exit_code == 2
        assert "recipe.toml is already there" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert contents(tmp_path) == {"recipe.toml": b"mine"}
        assert run("init", CLASSIFIER, "--out", tmp_path, "--overwrite").exit_code == 0
        assert origin(tmp_path)[1] == 0

    def test_a_factory_with_a_buffer_of_its_own_is_told_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(
            "import torch\nfrom torch import nn\n\n\ndef build():\n"
            "    model = nn.Linear(3, 3)\n"
            "    model.register_buffer('steps', torch.arange(100_000))\n"
            "    return model, torch.zeros(2, 3)\n"
        )
        target = f"{tmp_path / 'own.py'}:build"
        result = run("init", target, "--out", tmp_path / "x")
        assert result.exit_code == 2
        assert "the buffer 'steps'" in result.stderr
        assert "-o FILE" in result.stderr
        assert run("init", target, "-o", tmp_path / "x.safetensors").exit_code == 0

    def test_only_the_first_process_speaks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "fanin.cli.folder.write", lambda *_, **__: Written(tmp_path, (), 1, 1, 0)
        )
        for rank, told in (("0", True), ("1", False)):
            result = run("init", CLASSIFIER, "--out", tmp_path, RANK=rank, WORLD_SIZE="2")
            assert result.exit_code == 0
            assert bool(result.output) == told


class TestBar:
    def shown(self, **extra: Any) -> str:
        console = Console(file=io.StringIO(), width=120, **extra)
        with ByteBar("writing [start]", console) as bar:
            bar(25_000_000, 100_000_000)
        file: Any = console.file
        return str(file.getvalue())

    def test_it_shows_bytes_and_the_whole(self) -> None:
        text = self.shown(force_terminal=True)
        assert "writing [start]" in text
        assert "25.0/100.0 MB" in text

    def test_nothing_without_a_terminal(self) -> None:
        assert self.shown(force_terminal=False).strip() == ""

    def test_nothing_when_quiet(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True)
        with ByteBar("writing", console, quiet=True) as bar:
            bar(1, 2)
        file: Any = console.file
        assert file.getvalue() == ""


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], env=environment)
