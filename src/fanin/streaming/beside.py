"""What stands beside the weights of a checkpoint, and what each file says of its origin."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fanin.assignment import KEPT, Recipe
from fanin.catalogue import find
from fanin.checkpoint import DIGEST, RECIPE_FILE, SEED, digest_of
from fanin.errors import ModelError
from fanin.recipe import to_toml
from fanin.streaming.entries import CODES, Entry
from fanin.streaming.shards import INDEX, Shard, index

__all__ = ["RUN", "beside", "metadata", "run_of"]

RUN = "fanin.run"


def run_of(files: Sequence[Shard], recipe: Recipe, seed: int) -> str:
    """The same for the same bytes: tensors, division into files, recipe, seed, version of draws."""
    told = {
        "recipe": digest_of(recipe),
        "seed": seed,
        "versions": {a.scheme: _version(a.scheme) for a in recipe.assignments},
        "files": [[shard.file, [_told(entry) for entry in shard.entries]] for shard in files],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def metadata(recipe: Recipe, seed: int, run: str) -> dict[str, str]:
    """What every file of weights says of its origin."""
    return {"format": "pt", DIGEST: digest_of(recipe), SEED: str(seed), RUN: run}


def beside(
    model: nn.Module, recipe: Recipe, seed: int, shards: Sequence[Shard]
) -> dict[str, bytes]:
    """The other files, by name: the recipe; what transformers needs to read the model; the index.

    Raises:
        RecipeError: the recipe cannot be written.
        ModelError: the library of the model cannot write its configuration.
    """
    head = f"# Drawn with --seed {seed}; the files of weights say so too.\n"
    files = {RECIPE_FILE: f"{head}{to_toml(recipe)}".encode()}
    files |= _configuration(model, shards)
    if len(shards) > 1:
        files[INDEX] = index(shards)
    return files


def _configuration(model: nn.Module, shards: Sequence[Shard]) -> dict[str, bytes]:
    """config.json and generation_config.json, as `save_pretrained` of transformers writes them."""
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "save_pretrained") or not hasattr(config, "save_pretrained"):
        return {}
    entries = (entry for shard in shards for entry in shard.entries)
    forms = (entry.dtype for entry in entries if entry.dtype.is_floating_point)
    form = str(next(forms, torch.get_default_dtype())).removeprefix("torch.")
    try:
        config = copy.deepcopy(config)
        setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", form)
        config.architectures = [type(model).__name__]
        with tempfile.TemporaryDirectory() as place:
            config.save_pretrained(place)
            if callable(can := getattr(model, "can_generate", None)) and can():
                model.generation_config.save_pretrained(place)  # type: ignore[operator, union-attr]
            paths = sorted(Path(place).iterdir(), reverse=True)  # config.json last
            return {path.name: path.read_bytes() for path in paths}
    except Exception as error:
        told = " ".join(str(error).split())
        raise ModelError(f"model: its configuration cannot be written: {told}") from error


def _told(entry: Entry) -> list[object]:
    told: list[object] = [entry.name, entry.parameter, CODES[entry.dtype], list(entry.shape)]
    if entry.given is not None and (entry.assignment is None or entry.assignment.keeps_values):
        values = entry.given.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        told.append(hashlib.sha256(values.numpy().data).hexdigest())
    return told


def _version(scheme: str) -> int:
    return 0 if scheme == KEPT else find(scheme).version
