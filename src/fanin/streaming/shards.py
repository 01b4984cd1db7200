"""Which file each tensor of a checkpoint goes to, and where in it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fanin.streaming.entries import CODES, Entry

__all__ = ["INDEX", "SINGLE", "Shard", "index", "split"]

#: The names that transformers looks for.
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NUMBERED = "model-{number:05d}-of-{count:05d}.safetensors"
# The values of every tensor begin at a multiple of this many bytes, so that a file can be mapped.
_ALIGNED = 8


@dataclass(frozen=True, eq=False)
class Shard:
    """One safetensors file.

    Attributes:
        file: its name.
        entries: the tensors, in the order of the file.
        metadata: of its header.
    """

    file: str
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]

    @cached_property
    def header(self) -> bytes:
        """The bytes before the values."""
        told: dict[str, object] = {"__metadata__": dict(sorted(self.metadata.items()))}
        at = 0
        for entry in self.entries:
            end = at + entry.size
            code, shape = CODES[entry.dtype], list(entry.shape)
            told[entry.name] = {"dtype": code, "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return struct.pack("<Q", len(text)) + text

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(entry.size for entry in self.entries)

    def places(self) -> Iterator[tuple[Entry, int]]:
        """Each tensor, and where in the file its values begin."""
        at = len(self.header)
        for entry in self.entries:
            yield entry, at
            at += entry.size


def split(
    entries: Sequence[Entry], shard_size: int, metadata: Mapping[str, str]
) -> tuple[Shard, ...]:
    """Put tensors into files, in their order; a tensor larger than a file gets its own.

    Args:
        entries: of the checkpoint.
        shard_size: bytes of values in one file.
        metadata: of every file.

    >>> import torch
    >>> pair = [Entry(name, (3,), torch.float32) for name in "ab"]
    >>> [shard.file for shard in split(pair, 12, {})]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    >>> [shard.file for shard in split(pair, 24, {})]
    ['model.safetensors']

    Source: `split_torch_state_dict_into_shards` of huggingface_hub, which names files in this way.
    """
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.size > shard_size:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.size
    count = len(groups)
    files = [_NUMBERED.format(number=k + 1, count=count) for k in range(count)]
    return tuple(
        Shard(file, tuple(_aligned(group)), metadata)
        for file, group in zip([SINGLE] if count == 1 else files, groups, strict=True)
    )


def index(shards: Sequence[Shard]) -> bytes:
    """What says in which file each tensor is."""
    total = sum(entry.size for shard in shards for entry in shard.entries)
    where = {entry.name: shard.file for shard in shards for entry in shard.entries}
    told = {
        "metadata": {**shards[0].metadata, "total_size": total},
        "weight_map": dict(sorted(where.items())),
    }
    return json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"


def _aligned(group: Iterable[Entry]) -> list[Entry]:
    """Wide dtypes first, so that every tensor begins at a multiple of its item size."""
    return sorted(group, key=lambda entry: -entry.dtype.itemsize)
