"""Targets: what is built, from which seed, and what is said when it cannot be."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fanin.errors import MissingPackageError, TargetError
from fanin.targets import hf, load

EXAMPLES = Path(__file__).parent.parent / "examples"


def write(folder: Path, text: str, name: str = "user.py") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


LINEAR = """
import torch
from torch import nn

def build():
    return nn.Linear(3, 2)

def pair():
    return nn.Linear(3, 2), torch.randn(4, 3)

def triple():
    return nn.Linear(3, 2), torch.randn(4, 3), lambda output: output.sum()
"""


class TestFactories:
    def test_a_model_takes_its_batch_from_the_inputs(self, tmp_path: Path) -> None:
        target = load(f"{write(tmp_path, LINEAR)}:build", inputs=["4x3"])
        assert isinstance(target.model, nn.Linear)
        assert target.batch.shape == (4, 3)
        assert target.loss is None

    def test_batch_and_loss_of_the_factory_are_used(self, tmp_path: Path) -> None:
        target = load(f"{write(tmp_path, LINEAR)}:triple")
        assert target.loss is not None
        assert target.loss(target.model(target.batch)).shape == ()

    def test_inputs_replace_the_batch_of_the_factory(self, tmp_path: Path) -> None:
        assert load(f"{write(tmp_path, LINEAR)}:pair", inputs=["9x3"]).batch.shape == (9, 3)

    def test_name_is_the_target_as_given(self, tmp_path: Path) -> None:
        name = f"{write(tmp_path, LINEAR)}:pair"
        assert load(name).name == name

    def test_a_class_is_a_factory(self, tmp_path: Path) -> None:
        path = write(tmp_path, "from torch import nn\nclass Net(nn.Identity): pass\n")
        assert type(load(f"{path}:Net", inputs=["2"]).model).__name__ == "Net"

    def test_a_module_is_found_in_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, LINEAR, "module_in_cwd.py")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "module_in_cwd", raising=False)
        assert load("module_in_cwd:pair").batch.shape == (4, 3)

    def test_a_dotted_module_is_found(self) -> None:
        assert isinstance(load("torch.nn:Identity", inputs=["1"]).model, nn.Identity)

    def test_construction_goes_through_build(self, tmp_path: Path) -> None:
        seen: list[object] = []

        def build(construct: Any) -> object:
            seen.append(construct())
            return seen[0]

        target = load(f"{write(tmp_path, LINEAR)}:build", inputs=["4x3"], build=build)
        assert seen == [target.model]


class TestSeed:
    def test_the_seed_decides_weights_and_batch(self, tmp_path: Path) -> None:
        name = f"{write(tmp_path, LINEAR)}:build"
        first, again, other = (load(name, inputs=["4x3"], seed=seed) for seed in (1, 1, 2))
        assert same(first.model, again.model)
        assert torch.equal(first.batch, again.batch)
        assert not same(first.model, other.model)
        assert not torch.equal(first.batch, other.batch)

    def test_numpy_and_random_are_seeded_too(self, tmp_path: Path) -> None:
        text = """
import random
import numpy as np
import torch
from torch import nn

def build():
    return nn.Identity(), torch.tensor([random.random(), np.random.rand()])
"""
        name = f"{write(tmp_path, text)}:build"
        assert torch.equal(load(name, seed=3).batch, load(name, seed=3).batch)

    def test_what_the_file_draws_on_import_does_not_shift_the_factory(self, tmp_path: Path) -> None:
        drawing = write(tmp_path, LINEAR + "\ntorch.randn(100)\n", "drawing.py")
        plain = write(tmp_path, LINEAR)
        assert same(load(f"{drawing}:pair").model, load(f"{plain}:pair").model)

    def test_factory_builds_the_same_model_again(self, tmp_path: Path) -> None:
        target = load(f"{write(tmp_path, LINEAR)}:triple", seed=5)
        again = target.factory()
        assert again is not target.model
        assert same(again, target.model)

    def test_the_random_state_of_the_process_is_untouched(self, tmp_path: Path) -> None:
        def state() -> tuple[Any, ...]:
            return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

        text = "import random, torch\nrandom.seed(7)\ntorch.manual_seed(7)\n" + LINEAR
        name = f"{write(tmp_path, text)}:triple"
        before = state()
        load(name, seed=9).factory()
        assert state() == before
        with pytest.raises(TargetError):
            load(f"{write(tmp_path, 'import torch; torch.randn(3); 1 / 0')}:build")
        assert state() == before


class TestImport:
    def test_the_folder_is_on_the_path_only_for_the_duration(self, tmp_path: Path) -> None:
        write(tmp_path, "WIDTH = 5\n", "neighbour_of_user.py")
        text = "import neighbour_of_user as n\nfrom torch import nn\n"
        text += "def build():\n    import neighbour_of_user\n    return nn.Linear(n.WIDTH, 1)\n"
        before = list(sys.path)
        target = load(f"{write(tmp_path, text)}:build", inputs=["2x5"])
        assert target.model.in_features == 5
        assert sys.path == before

    def test_two_files_of_one_name_are_two_modules(self, tmp_path: Path) -> None:
        for width in (1, 2):
            folder = tmp_path / str(width)
            folder.mkdir()
            path = write(folder, f"from torch import nn\ndef build(): return nn.Linear({width}, 1)")
            assert load(f"{path}:build", inputs=["2x2"]).model.in_features == width

    def test_nothing_is_left_in_the_users_folder(self, tmp_path: Path) -> None:
        load(f"{write(tmp_path, LINEAR)}:pair")
        assert [path.name for path in tmp_path.iterdir()] == ["user.py"]

    def test_dataclasses_of_the_file_work(self, tmp_path: Path) -> None:
        text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        text += "from torch import nn\n@dataclass\nclass Width:\n    of: int = 3\n"
        text += "def build(): return nn.Linear(Width().of, 1)\n"
        assert load(f"{write(tmp_path, text)}:build", inputs=["2x3"]).model.in_features == 3


FAULTY = [
    ("", "build", "there is no build; it defines no function"),
    ("def biuld(): ...\ndef other(): ...", "build", "it defines biuld, other; did you mean biuld?"),
    ("def build(: ...", "build", r"SyntaxError: .* \(line 1\)"),
    ("x = 1\nimport not_there_at_all", "build", r"ModuleNotFoundError: .* \(line 2\)"),
    ("import sys\nsys.exit('no')", "build", r"SystemExit: no \(line 2\)"),
    ("def build():\n    raise KeyError('width')", "build", r"KeyError: 'width' \(line 2\)"),
    ("def build():\n    assert False", "build", r"raised AssertionError \(line 2\)"),
    ("def build():\n    return 3", "build", "a value of type int as the model"),
    ("def build(): ...", "build", "returned None as the model"),
    ("from torch import nn\ndef build(): return (nn.Identity(),) * 4", "build", "a tuple of 4"),
    ("from torch import nn\ndef build(): return nn.Identity(), 1, 2", "build", "int as the loss"),
    ("def build(width): ...", "build", "called without arguments.*missing a required.*'width'"),
    ("from torch import nn\nmodel = nn.Linear(1, 1)", "model", "must be a function"),
    ("build = 3", "build", "type int; it must be a function"),
    (
        "from torch import nn\ndef build(): return nn.Identity()",
        "build",
        "without a batch.*--input",
    ),
]


class TestErrors:
    @pytest.mark.parametrize(("text", "factory", "message"), FAULTY)
    def test_a_faulty_file_is_named_with_its_cause(
        self, text: str, factory: str, message: str, tmp_path: Path
    ) -> None:
        path = write(tmp_path, text)
        with pytest.raises(TargetError, match=message) as caught:
            load(f"{path}:{factory}")
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("", "is not a TARGET"),
            ("nothing", "is not a TARGET"),
            ("hf:", "is not a TARGET"),
            ("models.py", "name the factory too, as in models.py:build"),
            ("no/such/file.py:build", "there is no file no/such/file.py"),
            ("no_such_module:build", "there is no module no_such_module"),
            ("torch.no_such_module:build", "there is no module torch.no_such_module"),
            ("torch.nn:Linaer", "there is no Linaer"),
        ],
    )
    def test_a_target_that_names_nothing(self, target: str, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            load(target, inputs=["1"])

    def test_the_nearest_file_is_offered(self) -> None:
        with pytest.raises(TargetError, match=r"did you mean classifier\.py\?"):
            load(f"{EXAMPLES / 'classifer.py'}:build")

    def test_a_module_that_raises_is_not_taken_for_a_missing_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "import not_there_at_all", "module_that_raises.py")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(TargetError, match=r"cannot be imported.*not_there_at_all"):
            load("module_that_raises:build")

    def test_interrupting_the_file_is_no_target_error(self, tmp_path: Path) -> None:
        modules = set(sys.modules)
        with pytest.raises(KeyboardInterrupt):
            load(f"{write(tmp_path, 'raise KeyboardInterrupt')}:build")
        assert not [name for name in set(sys.modules) - modules if "user" in name]

    @pytest.mark.parametrize("device", ["nowhere", "cuda:99", ""])
    def test_a_device_that_is_not_there(self, device: str) -> None:
        with pytest.raises(TargetError, match="cannot be used"):
            load("torch.nn:Identity", inputs=["1"], device=device)


class TestInputs:
    def test_floats_come_from_the_standard_normal(self) -> None:
        batch = load("torch.nn:Identity", inputs=["100x1000"]).batch
        assert batch.dtype == torch.float32
        assert abs(batch.mean()) < 0.02
        assert abs(batch.std() - 1) < 0.02

    def test_tokens_are_integers_below_the_bound(self) -> None:
        batch = load("torch.nn:Identity", inputs=["tokens:50x100@7"]).batch
        assert batch.dtype == torch.int64
        assert batch.shape == (50, 100)
        assert batch.unique().tolist() == list(range(7))

    def test_several_inputs_are_positional_arguments(self) -> None:
        batch = load("torch.nn:Identity", inputs=["2x3", "tokens:2x4@5"]).batch
        assert [tuple(tensor.shape) for tensor in batch] == [(2, 3), (2, 4)]

    def test_named_inputs_are_keyword_arguments(self) -> None:
        inputs = ["tokens=tokens:4x12@100", "scale=4x16"]
        target = load(f"{EXAMPLES / 'two_inputs.py'}:build", inputs=inputs)
        assert list(target.batch) == ["tokens", "scale"]
        assert target.model(**target.batch).shape == (4, 5)

    def test_floats_have_the_dtype_of_the_model(self, tmp_path: Path) -> None:
        text = "from torch import nn\ndef build(): return nn.Linear(3, 1).double()"
        target = load(f"{write(tmp_path, text)}:build", inputs=["2x3"])
        assert target.batch.dtype == torch.float64

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (["8x"], "allowed is a shape"),
            (["8,3"], "allowed is a shape"),
            (["-1x3"], "allowed is a shape"),
            (["8x3x"], "allowed is a shape"),
            (["0x3"], "at least 1"),
            (["tokens:4x128"], "below what"),
            (["tokens:4x128@0"], "below what"),
            (["4x128@32"], "as in tokens:4x128@32"),
            (["a=2x3", "2x3"], "either every input a name or none"),
            (["a=2x3", "a=2x3"], "only once"),
            (["999999999x999999999x999999999"], "cannot be drawn"),
            (["9999999999999999999999"], "cannot be drawn"),
            (["tokens:2@99999999999999999999999"], "cannot be drawn"),
        ],
    )
    def test_a_wrong_input_is_explained(self, inputs: list[str], message: str) -> None:
        with pytest.raises(TargetError, match=f"--input.*{message}"):
            load("torch.nn:Identity", inputs=inputs)


Pair = namedtuple("Pair", "left right")


class TestDevice:
    def test_model_and_nested_batch_are_moved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = (
            LINEAR + "from collections import namedtuple\nPair = namedtuple('Pair', 'left right')"
        )
        text += "\ndef nested():\n    t = torch.ones(2)\n"
        text += "    return build(), {'a': t, 'b': [t, (t, 'text')], 'c': Pair(t, 3)}\n"
        target = load(f"{write(tmp_path, text)}:nested", device="meta")
        batch = target.batch
        assert target.model.weight.is_meta
        assert batch["a"].is_meta
        assert batch["b"][0].is_meta
        assert batch["b"][1][0].is_meta
        assert batch["b"][1][1] == "text"
        assert batch["c"].left.is_meta
        assert batch["c"].right == 3

    def test_the_factory_builds_on_the_device_too(self, tmp_path: Path) -> None:
        target = load(f"{write(tmp_path, LINEAR)}:pair", device="meta")
        assert next(target.factory().parameters()).is_meta


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 16},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
    },
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    },
    "roberta": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 20,
    },
    "t5": {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 50},
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 1,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 50, "state_size": 4},
    "resnet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "whisper": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": 10,
        "vocab_size": 50,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    },
}


@pytest.fixture(autouse=True)
def quiet_transformers() -> None:
    """Its notes about missing kernels say nothing about what is tested here."""
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.logging.set_verbosity_error()


def config(folder: Path, kind: str, **changes: Any) -> str:
    values = {"model_type": kind, **CONFIGS.get(kind, {}), **changes}
    return f"hf:{write(folder, json.dumps(values), 'config.json')}"


class TestTransformers:
    @pytest.mark.parametrize(
        ("kind", "name", "batch"),
        [
            ("gpt2", "GPT2LMHeadModel", {"input_ids": (2, 16), "labels": (2, 16)}),
            ("llama", "LlamaForCausalLM", {"input_ids": (2, 128), "labels": (2, 128)}),
            ("bert", "BertForMaskedLM", {"input_ids": (2, 128), "labels": (2, 128)}),
            ("roberta", "RobertaForMaskedLM", {"input_ids": (2, 18), "labels": (2, 18)}),
            (
                "t5",
                "T5ForConditionalGeneration",
                {"input_ids": (2, 128), "decoder_input_ids": (2, 128), "labels": (2, 128)},
            ),
            ("vit", "ViTForImageClassification", {"pixel_values": (4, 1, 32, 32), "labels": (4,)}),
            ("mamba", "MambaForCausalLM", {"input_ids": (2, 128), "labels": (2, 128)}),
            (
                "resnet",
                "ResNetForImageClassification",
                {"pixel_values": (4, 3, 224, 224), "labels": (4,)},
            ),
            (
                "whisper",
                "WhisperForConditionalGeneration",
                {
                    "input_features": (2, 80, 20),
                    "decoder_input_ids": (2, 128),
                    "labels": (2, 128),
                },
            ),
        ],
    )
    def test_a_configuration_gives_the_models_own_task(
        self, kind: str, name: str, batch: dict[str, Any], tmp_path: Path
    ) -> None:
        target = load(config(tmp_path, kind))
        assert type(target.model).__name__ == name
        assert {key: tuple(value.shape) for key, value in target.batch.items()} == batch
        loss = target.model(**target.batch).loss
        assert loss.shape == ()
        assert loss.isfinite()

    def test_the_default_of_a_model_type_is_built(self) -> None:
        target = load("hf:squeezebert")
        assert type(target.model).__name__ == "SqueezeBertForMaskedLM"
        assert target.batch["input_ids"].shape == (2, 128)

    @pytest.mark.slow
    def test_gpt2_has_its_124_million_parameters(self) -> None:
        target = load("hf:gpt2")
        assert sum(parameter.numel() for parameter in target.model.parameters()) == 124_439_808
        assert abs(float(target.model(**target.batch).loss.detach()) - np.log(50257)) < 0.3

    @pytest.mark.parametrize(
        ("kind", "architecture", "labels"),
        [
            ("bert", "BertForSequenceClassification", (2,)),
            ("bert", "BertForTokenClassification", (2, 128)),
            ("bert", "BertLMHeadModel", (2, 128)),
            ("bert", "BertModel", None),
            ("gpt2", "GPT2Model", None),
        ],
    )
    def test_architectures_chooses_the_class(
        self, kind: str, architecture: str, labels: tuple[int, ...] | None, tmp_path: Path
    ) -> None:
        target = load(config(tmp_path, kind, architectures=[architecture]))
        assert type(target.model).__name__ == architecture
        assert ("labels" in target.batch) == (labels is not None)
        if labels is not None:
            assert target.batch["labels"].shape == labels
        target.model(**target.batch)

    def test_one_label_is_a_regression(self, tmp_path: Path) -> None:
        changes = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
        target = load(config(tmp_path, "bert", **changes))
        assert target.batch["labels"].is_floating_point()
        assert target.model(**target.batch).loss.isfinite()

    def test_a_folder_with_a_config_is_a_path_too(self, tmp_path: Path) -> None:
        config(tmp_path, "gpt2")
        assert type(load(f"hf:{tmp_path}").model).__name__ == "GPT2LMHeadModel"

    def test_weights_are_float32_whatever_the_checkpoint_was_saved_in(self, tmp_path: Path) -> None:
        target = load(config(tmp_path, "gpt2", dtype="bfloat16"))
        assert {parameter.dtype for parameter in target.model.parameters()} == {torch.float32}

    def test_special_tokens_are_not_drawn(self, tmp_path: Path) -> None:
        target = load(config(tmp_path, "bert", pad_token_id=0, vocab_size=3, eos_token_id=[2]))
        assert target.batch["input_ids"].unique().tolist() == [1]

    def test_the_seed_decides(self, tmp_path: Path) -> None:
        name = config(tmp_path, "gpt2")
        first, again = load(name, seed=4), load(name, seed=4)
        assert same(first.model, again.model)
        assert same(first.factory(), again.model)
        assert torch.equal(first.batch["input_ids"], again.batch["input_ids"])

    def test_inputs_replace_the_inferred_batch(self, tmp_path: Path) -> None:
        target = load(config(tmp_path, "gpt2"), inputs=["input_ids=tokens:3x5@50"])
        assert {key: tuple(value.shape) for key, value in target.batch.items()} == {
            "input_ids": (3, 5)
        }

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hf:gtp2", "neither a model type.*did you mean gpt2"),
            ("hf:openai-community/gpt2", r"\(nothing is downloaded\); did you mean gpt2"),
            ("hf:no/such/config.json", "there is no file no/such/config.json"),
        ],
    )
    def test_an_unknown_name_offers_the_nearest(self, name: str, message: str) -> None:
        with pytest.raises(TargetError, match=message):
            load(name)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "cannot be read"),
            ("[]", "has no model_type"),
            ("{}", "has no model_type"),
            ('{"model_type": "gtp2"}', "no model_type gtp2; did you mean gpt2"),
            ('{"model_type": "gpt2", "architectures": ["GPT2LMHead"]}', "no class GPT2LMHead"),
            ('{"model_type": "gpt2", "n_embd": 7, "n_layer": 1}', "cannot be built"),
        ],
    )
    def test_a_faulty_configuration_is_explained(
        self, text: str, message: str, tmp_path: Path
    ) -> None:
        path = write(tmp_path, text, "config.json")
        with pytest.raises(TargetError, match=message):
            load(f"hf:{path}")

    def test_inputs_that_are_not_known_are_asked_for(self, tmp_path: Path) -> None:
        small = {"d_model": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn_dim": 8}
        with pytest.raises(TargetError, match=r"past_values is not known.*--input past_values"):
            load(config(tmp_path, "patchtst", **small))

    def test_a_model_beyond_the_memory_is_refused_before_it_is_built(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sysconf", lambda _name: 10)
        with pytest.raises(TargetError, match=r"billion parameters.*config.json with fewer layers"):
            load(config(tmp_path, "gpt2"))

    def test_the_hub_is_offline_for_the_duration_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        seen: list[bool] = []
        original = hf._model_class

        def watching(*arguments: Any) -> Any:
            seen.append(huggingface_hub.is_offline_mode())
            return original(*arguments)

        monkeypatch.setattr(hf, "_model_class", watching)
        load(config(tmp_path, "gpt2"))
        assert seen == [True]
        assert huggingface_hub.is_offline_mode() is False
        assert "HF_HUB_OFFLINE" not in os.environ
        assert os.environ["TRANSFORMERS_OFFLINE"] == "0"


def absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)


class TestMissingPackages:
    @pytest.mark.parametrize("name", ["timm", "torchvision", "transformers"])
    def test_the_install_command_is_given(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        source = "hf" if name == "transformers" else name
        with pytest.raises(MissingPackageError, match=f"{source}:x needs .*pip install {name}$"):
            load(f"{source}:x")

    def test_a_broken_package_is_not_called_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "import its_own_dependency", "timm.py")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        with pytest.raises(TargetError, match=r"timm cannot be .*its_own_dependency") as got:
            load("timm:resnet18")
        assert not isinstance(got.value, MissingPackageError)


class Classifier(nn.Module):
    """Stands for an image model of either library."""

    def __init__(self, classes: int = 7, auxiliary: bool = False) -> None:
        super().__init__()
        self.num_classes = classes
        self.pretrained_cfg = {"input_size": (3, 10, 12)}
        self.head = nn.Linear(3, max(classes, 1))
        self.auxiliary = auxiliary

    def forward(self, images: torch.Tensor) -> Any:
        logits = self.head(images.flatten(2).mean(dim=2))
        return SimpleNamespace(logits=logits, aux_logits=logits) if self.auxiliary else logits


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        calls: list[Any] = []
        module = ModuleType("timm")

        def create_model(name: str, **arguments: Any) -> nn.Module:
            calls.append((name, arguments))
            return Classifier(0 if name == "features" else 7)

        names = ["resnet18", "resnet50", "features"]
        vars(module).update(
            create_model=create_model,
            list_models=lambda: names,
            is_model=lambda name: name in names,
        )
        monkeypatch.setitem(sys.modules, "timm", module)
        return calls

    def test_images_and_classes_come_from_the_model(self, timm: list[Any]) -> None:
        target = load("timm:resnet18")
        assert timm == [("resnet18", {"pretrained": False})]
        assert target.batch.shape == (4, 3, 10, 12)
        assert target.loss is not None
        assert target.loss(target.model(target.batch)).isfinite()

    def test_a_model_without_classes_has_no_loss(self) -> None:
        assert load("timm:features").loss is None

    def test_an_unknown_model_offers_the_nearest(self) -> None:
        with pytest.raises(TargetError, match="no model resnet81; did you mean resnet18"):
            load("timm:resnet81")


def torchvision_like(calls: list[dict[str, Any]]) -> ModuleType:
    def builder(kind: str, *, backbone: bool = False, auxiliary: bool = False) -> Any:
        def plain(*, weights: object) -> nn.Module:
            calls.append({"weights": weights})
            return Classifier(auxiliary=auxiliary)

        def on_backbone(*, weights: object, weights_backbone: object = "downloaded") -> nn.Module:
            calls.append({"weights": weights, "weights_backbone": weights_backbone})
            return Classifier()

        function: Any = on_backbone if backbone else plain
        function.__module__ = f"torchvision.models.{kind}"
        return function

    def weights(crop: list[int] | None) -> Any:
        presets = SimpleNamespace(**({} if crop is None else {"crop_size": crop}))
        meta = {"categories": list("abcdefg")}
        return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: presets, meta=meta))

    known = {
        "resnet18": (builder("resnet"), weights([32])),
        "inception_v3": (builder("inception", auxiliary=True), weights([40])),
        "fcn_resnet50": (builder("segmentation.fcn", backbone=True), weights(None)),
        "r3d_18": (builder("video.resnet"), weights([20, 24])),
        "fasterrcnn": (builder("detection.faster_rcnn", backbone=True), weights(None)),
    }
    module = ModuleType("torchvision")
    module.models = SimpleNamespace(  # type: ignore[attr-defined]
        list_models=lambda: list(known),
        get_model_builder=lambda name: known[name][0],
        get_model_weights=lambda name: known[name][1],
    )
    return module


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        monkeypatch.setitem(sys.modules, "torchvision", torchvision_like(calls))
        return calls

    @pytest.mark.parametrize(
        ("name", "shape", "has_loss"),
        [
            ("resnet18", (4, 3, 32, 32), True),
            ("inception_v3", (4, 3, 40, 40), True),
            ("fcn_resnet50", (4, 3, 224, 224), False),
            ("r3d_18", (4, 3, 16, 20, 24), True),
        ],
    )
    def test_images_and_classes_come_from_the_recipe(
        self, name: str, shape: tuple[int, ...], has_loss: bool
    ) -> None:
        target = load(f"torchvision:{name}")
        assert target.batch.shape == shape
        assert (target.loss is not None) == has_loss
        if target.loss is not None:
            assert target.loss(target.model(target.batch)).isfinite()

    def test_no_trained_weights_are_asked_for(self, calls: list[dict[str, Any]]) -> None:
        load("torchvision:resnet18")
        load("torchvision:fcn_resnet50")
        assert calls == [{"weights": None}, {"weights": None, "weights_backbone": None}]

    def test_a_detector_needs_a_factory(self) -> None:
        with pytest.raises(TargetError, match="write a factory"):
            load("torchvision:fasterrcnn")

    def test_an_unknown_model_offers_the_nearest(self) -> None:
        with pytest.raises(TargetError, match="no model resnet81; did you mean resnet18"):
            load("torchvision:resnet81")
