"""Several processes that share the files of a checkpoint, and talk through its folder alone.

Each gives signs of life there.  The first begins and ends the work: it moves the files to their
names when all are finished and everyone has seen that this run is on.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fanin.errors import ArgumentError
from fanin.streaming.folder import Folder

__all__ = ["PATIENCE", "Ranks", "Signs", "ranks_of"]

#: Seconds without a sign of life after which a process is given up.  Network file systems may show
#: a change a minute late, and one process may start that much later than another.
PATIENCE = 300.0
_BEAT = 1.0  # seconds between two signs of life
_LOOK = 0.05  # seconds between two looks at those of others; more when it takes long


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, from 0 on.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def owns(self, number: int) -> bool:
        """Whether a file is this process's to write."""
        return number % self.world == self.rank


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """This process as torchrun numbers it: RANK and WORLD_SIZE, where both are set.

    Raises:
        ArgumentError: they are no numbers, or contradict one another.

    >>> ranks_of({"RANK": "1", "WORLD_SIZE": "4"}), ranks_of({})
    (Ranks(rank=1, world=4), Ranks(rank=0, world=1))
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return Ranks()
    told = environment["RANK"], environment["WORLD_SIZE"]
    try:
        rank, world = map(int, told)
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise ArgumentError(
            f"RANK, WORLD_SIZE: {told[0]!r}, {told[1]!r}; a number and a greater one are needed"
        )
    return Ranks(rank, world)


class Signs:
    """The sign of life of this process while a block runs, and those of the others.

    Args:
        folder: of the checkpoint.
        ranks: which process this is.
        launch: of this process; that of all where it is the first.
        patience: seconds without a sign after which another is given up.
    """

    def __init__(
        self, folder: Folder, ranks: Ranks, launch: str, patience: float = PATIENCE
    ) -> None:
        self._folder, self._ranks, self._launch, self._patience = folder, ranks, launch, patience
        self._beat, self._failed, self._finished = 0, "", False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._seen: dict[int, tuple[Any, float]] = {}

    def __enter__(self) -> Signs:
        if self._ranks.world > 1:
            self._give()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._ranks.world > 1:
            self._thread.join()
            if error is not None:
                self._failed = " ".join(str(error).split()) or type(error).__name__
                self._give()

    def wait(self, done: Callable[[], bool], others: Iterable[int]) -> None:
        """Wait until something is done that other processes do.

        Raises:
            ArgumentError: one of them failed, or has given no sign of life for too long; or all
                have done their part, and what was to be done is not.
        """
        others = [rank for rank in others if rank != self._ranks.rank]
        now = ended = time.monotonic()
        self._seen = {rank: (self._look(rank), now) for rank in others}
        pause = _LOOK
        while not done():
            for rank in others:
                self._require_life(rank)
            if not self._finished or not all(self._look(rank).get("finished") for rank in others):
                ended = time.monotonic()
            elif time.monotonic() - ended > self._patience:
                raise ArgumentError(f"{self._folder.path}: files that were finished are gone")
            time.sleep(pause)
            pause = min(1.5 * pause, _BEAT)

    def finish(self) -> None:
        """Tell the others that this process has done its part."""
        self._finished = True
        if self._ranks.world > 1:
            self._give()

    def have_seen(self, launch: str) -> bool:
        """Whether every other process knows that this run is on."""
        others = (rank for rank in range(self._ranks.world) if rank != self._ranks.rank)
        return all(self._look(rank).get("launch") == launch for rank in others)

    def _require_life(self, rank: int) -> None:
        sign, since = self._look(rank), self._seen[rank]
        # What an earlier launch has left is not of this one.
        if sign.get("failed") and (sign != since[0] or sign.get("launch") == self._launch):
            raise ArgumentError(f"{self._name(rank)} stopped: {sign['failed']}")
        if sign != since[0]:
            self._seen[rank] = sign, time.monotonic()
        elif time.monotonic() - since[1] > self._patience:
            raise ArgumentError(
                f"{self._folder.path}: {self._name(rank)} has given no sign of life for "
                f"{self._patience:g} s; what is finished stays, and the same command goes on"
            )

    def _name(self, rank: int) -> str:
        return f"process {rank} of {self._ranks.world}"

    def _live(self) -> None:
        while not self._ended.wait(_BEAT):
            self._give()

    def _give(self) -> None:
        """Give a sign of life; the folder may be gone already."""
        self._beat += 1
        with contextlib.suppress(OSError, ArgumentError):
            manifest = self._folder.manifest()
            if manifest is None:
                return
            told = {"launch": manifest.launch, "beat": self._beat}
            told |= {"failed": self._failed, "finished": self._finished}
            path = self._folder.staging / f"rank-{self._ranks.rank}.json"
            beside = path.with_name(f"{path.name}.{os.getpid()}.new")
            beside.write_text(json.dumps(told), encoding="utf-8")
            beside.replace(path)

    def _look(self, rank: int) -> dict[str, Any]:
        try:
            path = self._folder.staging / f"rank-{rank}.json"
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}
