"""Checkpoints that tell the recipe and the seed they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import nn

from fanin.assignment import Recipe
from fanin.errors import RecipeError
from fanin.recipe import from_toml, to_toml

__all__ = ["DIGEST", "RECIPE", "RECIPE_FILE", "SEED", "digest_of", "origin", "save"]

#: What the metadata of a file names: the whole recipe, or its digest where it stands beside it.
RECIPE, DIGEST, SEED = "fanin.recipe", "fanin.recipe.sha256", "fanin.seed"
#: The recipe beside the files of a checkpoint.
RECIPE_FILE = "recipe.toml"


def save(model: nn.Module, path: str | Path, recipe: Recipe, seed: int) -> None:
    """Write a model's parameters and buffers; tied tensors are written once.

    Args:
        model: whose state is written.
        path: of the file.
        recipe: what its parameters were drawn from.
        seed: of the draw.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = {"format": "pt", RECIPE: to_toml(recipe), SEED: str(seed)}
    try:
        save_model(model, str(path), metadata)
    except SafetensorError as error:  # its only way to say that the disk is full
        raise OSError(0, str(error)) from error
    _settle(Path(path))


def _settle(path: Path) -> None:
    """The same bytes for the same content, and the permissions of any new file.

    safetensors writes its metadata in a random order, and files that only their owner can read.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def digest_of(recipe: Recipe) -> str:
    """The SHA-256 of a recipe, however its text is laid out.

    >>> digest_of(Recipe(()))[:8]
    '4636a551'
    """
    return hashlib.sha256(to_toml(recipe).encode()).hexdigest()


def origin(path: str | Path) -> tuple[Recipe, int]:
    """The recipe and the seed that a checkpoint was made from.

    Args:
        path: of a file, or of a folder that `fanin init --out` wrote.

    Raises:
        RecipeError: it is none that fanin wrote, or the recipe beside it was changed since.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = min(path.glob("model*.safetensors"), default=path / "model.safetensors")
    metadata = _metadata(file)
    if SEED in metadata and RECIPE in metadata:
        return from_toml(metadata[RECIPE]), int(metadata[SEED])
    if SEED not in metadata or DIGEST not in metadata:
        raise RecipeError(f"{path}: it holds no recipe; fanin init writes one into its files")
    beside = file.with_name(RECIPE_FILE)
    try:
        recipe = from_toml(beside.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{beside}: it cannot be read: {error}") from error
    if digest_of(recipe) != metadata[DIGEST]:
        raise RecipeError(f"{beside}: it is not the recipe that {file.name} was made from")
    return recipe, int(metadata[SEED])


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(str(file), "pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise RecipeError(f"{file}: it cannot be read: {error}") from error
