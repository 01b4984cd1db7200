"""Ends the writing of a checkpoint at every one of its steps: `test_streaming` runs it.

    python tests/crashing.py FOLDER    writes how many ends were tried

Each run is a process of its own, forked from this one, which starts no threads, and ends by
`os._exit` before its n-th operation on files, or in the middle of one that writes: as after
SIGKILL, no handler runs.  After each, the older checkpoint is untouched or the new one complete;
and the same command, ended once more or not, makes the files of a run that nothing ended.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fanin.assignment import Assignment, Recipe
from fanin.streaming import folder as folders
from fanin.streaming import pieces as cutting
from fanin.streaming import write

ENDED = 137
SIZES = (30, 20), (7, 3), (33, 9)
SHARD = 3000  # of the two files one holds a tensor of several pieces, the other several tensors
OLD = {"model-00001-of-00009.safetensors": b"old", "model.safetensors.index.json": b"old"}
OLD |= {"recipe.toml": b"old", "model-00002-of-00003.safetensors": b"old"}


def model() -> nn.Module:
    return nn.ParameterDict({f"p{k}": torch.empty(s, device="meta") for k, s in enumerate(SIZES)})


def recipe() -> Recipe:
    return Recipe(
        tuple(
            Assignment(f"p{k}", "normal", 0.5, 0.5, None, "", shape, "oi")
            for k, shape in enumerate(SIZES)
        )
    )


def run(place: Path, overwrite: bool, end: int = 0) -> int:
    """Write in a process of its own that ends at its operation number `end`; its exit status."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        _die_at(end)
        write(model(), recipe(), place, shard_size=SHARD, overwrite=overwrite, jobs=1)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the process has to end here
        traceback.print_exc()
        os._exit(1)


def _die_at(end: int) -> None:
    count = itertools.count(1)

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **extra: Any) -> Any:
            if next(count) == end:
                os._exit(ENDED)
            return function(*arguments, **extra)

        return call

    def halved(self: cutting.Worker, path: Path, piece: cutting.Piece) -> bytes:
        if next(count) == end:
            write_piece(self, path, piece)
            os.truncate(path, piece.offset + piece.size // 2)
            os._exit(ENDED)
        return write_piece(self, path, piece)

    write_piece = cutting.Worker.write
    cutting.Worker.write = halved  # type: ignore[method-assign]
    os.fsync = dying(os.fsync)
    for name in ("replace", "unlink", "rmdir", "mkdir", "write_bytes"):
        setattr(Path, name, dying(getattr(Path, name)))


def contents(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def nothing_lost(place: Path, wanted: dict[str, bytes], old: dict[str, bytes]) -> bool:
    """Whether the older files are all there, or every new one is, here or on its way."""
    there = contents(place) if place.exists() else {}
    if old.items() <= there.items():
        return True
    new = {name.removeprefix(f"{folders.STAGING}/"): data for name, data in there.items()}
    return wanted.items() <= new.items()


def main() -> int:
    cutting.PIECE = 1000
    os.fsync = lambda handle: None  # the system lives on, and keeps what it was given
    base, chance = Path(sys.argv[1]), random.Random(0)
    reference = base / "reference"
    assert run(reference, False) == 0
    wanted = contents(reference)
    assert len(wanted) == 4
    ends = 0
    for old in ({}, OLD):
        for end in itertools.count(1):
            place = base / "place"
            shutil.rmtree(place, ignore_errors=True)
            if old:
                place.mkdir()
            for name, data in old.items():
                (place / name).write_bytes(data)
            status = run(place, bool(old), end)
            if status == 0:
                break
            assert status == ENDED, (old, end)
            assert nothing_lost(place, wanted, old), (old, end)
            if end % 3 == 0 and run(place, bool(old), chance.randrange(1, 40)) == ENDED:
                assert nothing_lost(place, wanted, old), (old, end)
            write(model(), recipe(), place, shard_size=SHARD, overwrite=bool(old), jobs=1)
            assert contents(place) == wanted, (old, end, sorted(contents(place)))
            ends += 1
    sys.stdout.write(json.dumps({"ends": ends}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
