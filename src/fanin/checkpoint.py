"""A model written as one safetensors file, with the recipe and the seed that made it."""

from __future__ import annotations

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

__all__ = ["RECIPE", "SEED", "origin", "save"]

RECIPE, SEED = "fanin.recipe", "fanin.seed"


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


def origin(path: str | Path) -> tuple[Recipe, int]:
    """The recipe and the seed that a file was made from.

    Raises:
        RecipeError: the file is none that fanin wrote.
    """
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise RecipeError(f"{path}: it cannot be read: {error}") from error
    if RECIPE not in metadata or SEED not in metadata:
        raise RecipeError(f"{path}: it holds no recipe; fanin init writes one into its files")
    return from_toml(metadata[RECIPE]), int(metadata[SEED])
