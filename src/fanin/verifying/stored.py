"""The tensors of a checkpoint as they stand in its safetensors files, read a run at a time.

The bytes are read, not mapped: pages of a mapped file count as the process's own memory, which
would then grow to the size of the checkpoint.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fanin import draw
from fanin.errors import ArgumentError
from fanin.streaming.entries import CODES
from fanin.window import Window
from fanin.wording import listed

__all__ = ["Checkpoint", "Stored", "open_checkpoint"]

_DTYPES = {CODES[dtype]: dtype for dtype in draw.DTYPES}
_INDEX = ".safetensors.index.json"
_FILE = ".safetensors"

_SPAN = 1 << 20  # elements read at once to take some of them


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Attributes:
        path: of the file.
        form: its dtype, as safetensors names it.
        shape: of the tensor.
        offset: of its first byte in the file.
    """

    path: Path
    form: str
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> torch.dtype | None:
        """None where it is none that can be drawn."""
        return _DTYPES.get(self.form)

    @property
    def kind(self) -> str:
        """The name of its dtype: torch's, or else that of safetensors."""
        return self.form if self.dtype is None else str(self.dtype).removeprefix("torch.")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self, window: Window) -> Tensor:
        """The values of a part of the tensor, in row-major order.

        Raises:
            ArgumentError: the file cannot be read, or has become shorter.
        """
        rows = list(window.rows())
        if len(rows) == 1 and rows[0].repeats == 1:
            return self._run(rows[0].start, rows[0].count)
        values = torch.empty(window.count, dtype=self.dtype, device="cpu")
        for some in rows:
            most = max(1, _SPAN // max(some.stride, 1))  # runs that are read in one go
            for first in range(0, some.repeats, most):
                sizes = min(most, some.repeats - first), some.count
                start = some.start + first * some.stride
                run = self._run(start, (sizes[0] - 1) * some.stride + some.count)
                place = some.place + first * some.step
                strided = run.as_strided(sizes, (some.stride, 1))
                values.as_strided(sizes, (some.step, 1), place).copy_(strided)
        return values

    def _run(self, start: int, count: int) -> Tensor:
        """`count` elements that follow one another."""
        assert self.dtype is not None  # others are not read
        size = self.dtype.itemsize
        place = self.offset + start * size
        try:
            read = np.fromfile(self.path, np.uint8, count * size, offset=place)
        except OSError as error:
            raise ArgumentError(f"{self.path}: cannot be read: {error.strerror}") from error
        if read.size < count * size:
            raise ArgumentError(f"{self.path}: it became shorter while it was read")
        return torch.from_numpy(read).view(self.dtype)


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a checkpoint hold.

    Attributes:
        tensors: by name.
        aliases: names that were left out because they are tied → the name that holds the values.
    """

    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read where the tensors of a checkpoint stand; no values are read.

    Args:
        path: a safetensors file, an index of several, or a folder with one of them.

    Raises:
        ArgumentError: there is none, it is not whole, or the index does not fit its files.
    """
    if not isinstance(path, (str, Path)):
        raise ArgumentError(f"checkpoint: {type(path).__name__}; a path is needed")
    place = Path(path)
    if place.is_dir():
        place = _inside(place)
    if not place.exists():
        raise ArgumentError(f"{path}: there is no such file or folder")
    if not place.is_file():
        raise ArgumentError(f"{path}: it is no file and no folder")
    if place.name.endswith(".json"):
        return _indexed(place)
    tensors, metadata = _header(place)
    return Checkpoint(tensors, _aliases(metadata, tensors))


def _inside(folder: Path) -> Path:
    """The checkpoint of a folder: as transformers names it, else the only one there is."""
    for name in (f"model{_FILE}", f"model{_INDEX}"):
        if (folder / name).exists():
            return folder / name
    for ending in (_INDEX, _FILE):
        found = sorted(path.name for path in folder.glob(f"*{ending}"))
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise ArgumentError(f"{folder}: it holds {listed(found)}; name one of them")
    raise ArgumentError(f"{folder}: it holds no model{_FILE} and no model{_INDEX}")


def _indexed(index: Path) -> Checkpoint:
    """A checkpoint of several files."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except OSError as error:
        raise ArgumentError(f"{index}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArgumentError(f"{index}: it is no index of a checkpoint") from error
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise ArgumentError(f"{index}: weight_map: a file for each tensor is needed")
    files: dict[str, Mapping[str, Stored]] = {}
    metadata: dict[str, str] = {}
    for name in dict.fromkeys(places.values()):
        if not (index.parent / name).is_file():
            raise ArgumentError(f"{index}: it names {name}, which is not there")
        files[name], told = _header(index.parent / name)
        metadata.update(told)
    tensors = {}
    for key, name in places.items():
        if key not in files[name]:
            raise ArgumentError(f"{index}: it says that {name} holds {key!r}, which it does not")
        tensors[key] = files[name][key]
    return Checkpoint(tensors, _aliases(metadata, tensors))


def _header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Where the tensors of one file stand, and its metadata."""
    try:
        with safe_open(str(path), "pt"):  # every offset and the length of the file are checked
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
    except SafetensorError as error:
        with path.open("rb") as file:
            saved = file.read(2) == b"PK"  # an archive
        told = f"it is no whole safetensors file: {error}"
        if saved:
            told = (
                "it is no whole safetensors file but one of torch.save; load it, and write it by "
                "safetensors.torch.save_file"
            )
        raise ArgumentError(f"{path}: {told}") from error
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror or error}") from error
    metadata = header.pop("__metadata__", None) or {}
    data = 8 + length
    tensors = {
        name: Stored(path, said["dtype"], tuple(said["shape"]), data + said["data_offsets"][0])
        for name, said in header.items()
    }
    return tensors, metadata


def _aliases(metadata: Mapping[str, str], tensors: Mapping[str, Stored]) -> dict[str, str]:
    """safetensors writes tied tensors once, and the other names into the metadata."""
    return {
        name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors
    }
