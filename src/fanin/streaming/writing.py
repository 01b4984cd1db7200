"""Write a checkpoint: draw its tensors in pieces, and survive whatever ends the run."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fanin.assignment import Recipe
from fanin.draw import DTYPES, key
from fanin.errors import ArgumentError, ModelError
from fanin.reading import bare
from fanin.streaming.beside import beside, metadata, run_of
from fanin.streaming.entries import entries
from fanin.streaming.folder import Folder, Manifest, amount
from fanin.streaming.pieces import Piece, Worker, digest, pieces, rehearse
from fanin.streaming.ranks import PATIENCE, Ranks, Signs
from fanin.streaming.shards import Shard, split
from fanin.summary import count

__all__ = ["SHARD_SIZE", "Progress", "Written", "write"]

#: Bytes of one file: what the hub of Hugging Face recommends at most is 50 GB; smaller files are
#: shared more evenly, and less is lost when a run ends.
SHARD_SIZE = 5 * 10**9
_MOST_JOBS = 64  # threads with a piece of memory each: 256 MiB
_DEFAULT_JOBS = 8  # more draw faster than disks write
_MOST_FILES = 99_999  # five digits in their names
_AHEAD = 1  # files begun while another waits for the disk
# Pieces brought to the disk at once, 256 MiB: it works while others are drawn, and little waits in
# the memory of the system.
_SETTLED = 64

#: Told (bytes done, bytes in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: of the checkpoint.
        files: of weights, by name.
        tensors: number of them.
        bytes: of all files of weights.
        kept: files that an earlier run had finished, and that were as it left them.
    """

    folder: Path
    files: tuple[str, ...]
    tensors: int
    bytes: int
    kept: int

    def __str__(self) -> str:
        number = "all" if self.kept == len(self.files) else str(self.kept)
        there = f", {number} of them written by an earlier run" if self.kept else ""
        what = f"{count(self.tensors, 'tensor')}, {amount(self.bytes)}"
        return f"{what} in {count(len(self.files), 'file')}{there}"


def write(
    model: nn.Module,
    recipe: Recipe,
    folder: str | Path,
    *,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    dtype: torch.dtype | None = None,
    jobs: int | None = None,
    frozen: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - a value
    patience: float = PATIENCE,
) -> Written:
    """Draw a model's parameters straight into a checkpoint of safetensors files.

    The values are those of `plan.apply_` on the model in that dtype.  Memory does not grow with the
    model.  Ended at any moment, the same call goes on where it stopped; the files are the same,
    byte for byte.

    Args:
        model: usually on the meta device; what has values and is not drawn is written as it is.
        recipe: what its parameters are drawn from; a plan is one.
        folder: of the checkpoint; made where it is not there.
        seed: of every draw, 0 to 2**64 − 1.
        shard_size: bytes of one file; a tensor larger than that gets a file of its own.
        dtype: of floating-point tensors in the files; by default each keeps its own.
        jobs: pieces drawn at once, 1 to 64; by default the number of processors, up to 8.
        frozen: whether parameters that require no gradient are drawn too.
        overwrite: whether an older checkpoint is replaced, when the new one is complete.
        progress: is told (bytes done, bytes in all), from several threads, one at a time.
        ranks: which of several processes this is; each writes its own files.
        patience: seconds after which a process that gives no sign of life is given up.

    Raises:
        RecipeError: the recipe is for another model.
        ModelError: a parameter or a persistent buffer would have no value.
        ArgumentError: an argument, or a draw, is not possible; the folder cannot be written; files
            are in the way.

    >>> import tempfile
    >>> from fanin.assignment import Assignment
    >>> with torch.device("meta"):
    ...     model = nn.Linear(3, 2, bias=False)
    >>> normal = Assignment("weight", "normal", 0.02, 0.02, None, "", (2, 3), "oi")
    >>> with tempfile.TemporaryDirectory() as place:
    ...     print(write(model, Recipe((normal,)), place, dtype=torch.bfloat16).files)
    ('model.safetensors',)

    Source: the format is that of https://github.com/huggingface/safetensors.
    """
    _check_arguments(model, seed, shard_size, dtype, jobs)
    model = bare(model)
    found = entries(model, recipe, frozen=frozen, dtype=dtype)
    if not found:
        raise ModelError("model: it has no parameters and no buffers, so there is nothing to write")
    for entry in found:
        rehearse(entry, seed)
    run = run_of(split(found, shard_size, {}), recipe, seed)
    shards = split(found, shard_size, metadata(recipe, seed, run))
    if len(shards) > _MOST_FILES:
        raise ArgumentError(
            f"shard_size: {shard_size}; that makes {len(shards)} files, at most {_MOST_FILES} are "
            "allowed"
        )
    told = f"seed {seed}, {len(shards)} files, recipe and tensors {run[:8]}"
    manifest = Manifest(run, told, uuid.uuid4().hex)
    place = Folder(Path(folder), shards, beside(model, recipe, seed, shards))
    mine = [shard for number, shard in enumerate(shards) if ranks.owns(number)]
    writer = _Writer(place, mine, seed, jobs or _processors(), overwrite, progress)
    try:
        kept = _lead if ranks.rank == 0 else _follow
        number = kept(place, manifest, writer, ranks, overwrite, patience)
    except OSError as error:
        finished = any(place.located(shard) for shard in shards)
        rest = "; what is finished stays, and the same command goes on" if finished else ""
        raise ArgumentError(
            f"{place.path}: cannot be written: {error.strerror or error}{rest}"
        ) from error
    size = sum(shard.size for shard in shards)
    return Written(place.path, tuple(s.file for s in shards), len(found), size, number)


def _lead(
    folder: Folder,
    manifest: Manifest,
    writer: _Writer,
    ranks: Ranks,
    overwrite: bool,
    patience: float,
) -> int:
    """What the first process, or the only one, does; returns how many files it kept."""
    before = folder.manifest()
    if before is None and not overwrite and folder.is_complete():
        folder.clear()  # what a run that was ended at its very end has left
        return len(folder.shards)
    same = before is not None and _is_continued(folder, before, manifest, overwrite)
    if before is not None and same and before.moving:
        folder.moving = True
        manifest = replace(manifest, moving=True)
    folder.require_free(overwrite)
    existed = folder.path.exists()
    with folder.locked(0) as lock:
        try:
            if not same:
                folder.clear(keep=lock)
            folder.require_space()
            folder.begin(manifest)
            with Signs(folder, ranks, manifest.launch, patience) as signs:
                kept = writer.work()
                signs.finish()
                signs.wait(
                    lambda: _all_finished(folder) and signs.have_seen(manifest.launch),
                    range(ranks.world),
                )
                folder.publish(manifest)
                folder.clear()
        except BaseException:
            if ranks.world == 1:
                folder.tidy(existed)
            raise
    return kept


def _follow(
    folder: Folder,
    manifest: Manifest,
    writer: _Writer,
    ranks: Ranks,
    overwrite: bool,
    patience: float,
) -> int:
    """What every other process does: its files, between the first one's beginning and end."""

    def there() -> bool:
        """The folder held this checkpoint before; the first process sees so too."""
        return not overwrite and folder.is_complete()

    def begun() -> bool:
        seen = folder.manifest()
        return (seen is not None and seen.run == manifest.run) or there()

    def ended() -> bool:
        seen = folder.manifest()
        return seen is None or seen.run != manifest.run

    with Signs(folder, ranks, manifest.launch, patience) as signs:
        signs.wait(begun, [0])
        seen = folder.manifest()
        if seen is None and there():
            return len(writer.mine)
        folder.moving = seen is not None and seen.moving
        with folder.locked(ranks.rank):
            kept = writer.work()
            signs.finish()
            signs.wait(ended, [0])
    if not folder.is_complete():
        raise ArgumentError(f"{folder.path}: process 0 of {ranks.world} ended before the work did")
    return kept


def _is_continued(folder: Folder, before: Manifest, manifest: Manifest, overwrite: bool) -> bool:
    """Whether this run goes on with the one that was not finished; raises where none may."""
    if before.run == manifest.run:
        return True
    if not overwrite:
        raise ArgumentError(
            f"{folder.path}: an unfinished checkpoint is there ({before.told}), and this is "
            f"another ({manifest.told}); finish that one, delete {folder.staging}, or take "
            "--overwrite (overwrite=True)"
        )
    return False


def _all_finished(folder: Folder) -> bool:
    return all(folder.located(shard) is not None for shard in folder.shards)


class _Writer:
    """Verifies the files that are finished, and writes the others."""

    def __init__(
        self,
        folder: Folder,
        mine: Sequence[Shard],
        seed: int,
        jobs: int,
        overwrite: bool,
        progress: Progress | None,
    ) -> None:
        self.mine = mine
        self._folder, self._jobs, self._overwrite = folder, jobs, overwrite
        self._worker = Worker(seed)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._progress, self._done = progress, 0
        self._total = sum(shard.size for shard in mine)

    def work(self) -> int:
        """Bring every file of this process to its end; returns how many had come to it before."""
        self._advance(0)
        with _threads(self._jobs) as pool:
            try:
                left = [shard for shard in self.mine if not self._is_whole(pool, shard)]
                waiting: deque[tuple[Shard, list[Future[bytes]]]] = deque()
                for shard in left:
                    waiting.append((shard, self._begin(pool, shard)))
                    if len(waiting) > _AHEAD:
                        self._finish(*waiting.popleft())
                while waiting:
                    self._finish(*waiting.popleft())
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._folder.drop(self.mine)
                raise
        return len(self.mine) - len(left)

    def _is_whole(self, pool: ThreadPoolExecutor, shard: Shard) -> bool:
        """Whether a file was finished and still has the bytes that were written."""
        path = self._folder.located(shard)
        if path is None:
            return False
        if path.stat().st_size == shard.size:
            read = [pool.submit(self._read, path, piece) for piece in pieces(shard)]
            if digest([sums.result() for sums in read]) == self._folder.sum_of(shard):
                return True
            self._advance(-shard.size)
        self._folder.redo(shard, self._overwrite)
        return False

    def _begin(self, pool: ThreadPoolExecutor, shard: Shard) -> list[Future[bytes]]:
        path = self._folder.part(shard)
        return [pool.submit(self._write, path, piece) for piece in pieces(shard)]

    def _finish(self, shard: Shard, written: Sequence[Future[bytes]]) -> None:
        sums = []
        for number, piece in enumerate(written, 1):
            sums.append(piece.result())
            if number % _SETTLED == 0:
                self._folder.settle(shard)
        self._folder.finish(shard, digest(sums))

    def _write(self, path: Path, piece: Piece) -> bytes:
        return self._one(self._worker.write, path, piece)

    def _read(self, path: Path, piece: Piece) -> bytes:
        return self._one(self._worker.read, path, piece)

    def _one(self, work: Callable[[Path, Piece], bytes], path: Path, piece: Piece) -> bytes:
        """One piece; where another failed, nothing any more."""
        if self._stop.is_set():
            return b""
        try:
            sums = work(path, piece)
        except BaseException:
            self._stop.set()
            raise
        self._advance(piece.size)
        return sums

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


@contextlib.contextmanager
def _threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the processors: each draw takes its part of torch's number of threads."""
    number = torch.get_num_threads()
    each = max(1, number // jobs)
    try:
        with ThreadPoolExecutor(jobs, "fanin", lambda: torch.set_num_threads(each)) as pool:
            yield pool
    finally:
        torch.set_num_threads(number)


def _processors() -> int:
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        count = os.cpu_count() or 1
    return min(count, _DEFAULT_JOBS)


def _check_arguments(
    model: object, seed: int, shard_size: int, dtype: torch.dtype | None, jobs: int | None
) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: {type(model).__name__} is not a torch.nn.Module")
    key(seed, "model")  # raises where a seed is none
    if not _is_count(shard_size):
        raise ArgumentError(f"shard_size: {shard_size!r}; a positive number of bytes is needed")
    if jobs is not None and not (_is_count(jobs) and jobs <= _MOST_JOBS):
        raise ArgumentError(f"jobs: {jobs!r}; an integer from 1 to {_MOST_JOBS} is needed")
    if dtype is not None and dtype not in DTYPES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ArgumentError(f"dtype: {dtype!r}; one of {allowed} is needed")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
