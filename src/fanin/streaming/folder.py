"""The folder of a checkpoint: what is there, what is unfinished, how the new takes its place.

Everything is written into a folder within it, `.fanin-unfinished`, and moved to its own name when
all of it is complete.  There is

    manifest.json   which checkpoint is written, and whether it is being moved already
    NAME.part       a file that is being written
    NAME            a finished file
    NAME.sum        the sum of its bytes, written before the file gets its name
    rank-K.json     a sign of life of process K; rank-K.lock is held while it lives

Every file appears in one step, its bytes safely on the disk before.  So whatever ends a run, the
next one finds each file finished or not, and finds out which.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

from fanin.errors import ArgumentError
from fanin.streaming.shards import INDEX, SINGLE, Shard
from fanin.wording import listed

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # there are none on Windows: two runs in one folder are not noticed
    fcntl = None

__all__ = ["STAGING", "Folder", "Manifest", "amount"]

STAGING = ".fanin-unfinished"
_MANIFEST = "manifest.json"
_FORMAT = 1
# Files that transformers would read as part of the checkpoint.
_WEIGHTS = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors|model\.safetensors\.index\.json")
_SPARE = 1 << 20  # bytes left free, for manifests and folders


@dataclass(frozen=True)
class Manifest:
    """Which checkpoint is written.

    Attributes:
        run: the same for the same tensors, recipe, seed and division into files.
        told: the same in words, for errors.
        launch: another one each time it is started.
        moving: whether all files are complete and on their way to their names.
    """

    run: str
    told: str
    launch: str
    moving: bool = False


class Folder:
    """The folder of a checkpoint.

    Args:
        path: of the folder.
        shards: the files of weights that it is to hold.
        beside: the other files, name → bytes, in the order in which they are moved.
    """

    def __init__(self, path: Path, shards: Sequence[Shard], beside: Mapping[str, bytes]) -> None:
        self.path, self.shards, self.beside = path, shards, beside
        self.staging = path / STAGING
        self.moving = False  # whether finished files may be under their own names already

    # ── what is there ────────────────────────────────────────────────────────────────────────

    def manifest(self) -> Manifest | None:
        """What is being written; None where nothing is."""
        try:
            told = json.loads((self.staging / _MANIFEST).read_bytes())
            if told.pop("format") != _FORMAT:
                raise ValueError
            return Manifest(**told)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArgumentError(
                f"{self.path}: what is unfinished there cannot be read, or was begun by another "
                f"version of fanin; delete {self.staging}"
            ) from error

    def is_complete(self) -> bool:
        """Whether the folder holds this checkpoint: every file, its header and its size."""
        return (
            all(_begins(self.path / shard.file, shard) for shard in self.shards)
            and all((self.path / name).is_file() for name in self.beside)
            and not self._stale()
            and self.manifest() is None
        )

    def require_free(self, overwrite: bool) -> None:
        """Raise ArgumentError where files are in the way."""
        if self.path.exists() and not self.path.is_dir():
            raise ArgumentError(f"{self.path}: cannot be written into: it is a file, not a folder")
        there = [name for name in self._names() if self._is_foreign(name)] + self._stale()
        folders = [name for name in there if (self.path / name).is_dir()]
        if folders:
            raise ArgumentError(f"{self.path}: {folders[0]} is a folder there; move it elsewhere")
        if there and not overwrite:
            verb = "is" if len(there) == 1 else "are"
            raise ArgumentError(
                f"{self.path}: {listed(there)} {verb} already there; --overwrite "
                "(overwrite=True) replaces an older checkpoint once the new one is complete"
            )

    def require_space(self) -> None:
        """Raise ArgumentError where the disk has no room for what is to be written."""
        place = self.path
        while not place.exists():
            place = place.parent
        needed = sum(s.size for s in self.shards if self.located(s) is None) + _SPARE
        free = shutil.disk_usage(place).free
        if self.staging.is_dir():  # what was begun gives its room back
            free += sum(part.stat().st_size for part in self.staging.glob("*.part"))
        if needed > free:
            raise ArgumentError(
                f"{self.path}: {amount(needed)} are needed, and {amount(free)} are free on its disk"
            )

    def located(self, shard: Shard) -> Path | None:
        """Where a finished file is; None where there is none."""
        if not self._sum(shard).exists():
            return None
        for path in (self.staging / shard.file, *([self.path / shard.file] * self.moving)):
            if path.exists():
                return path
        return None

    def sum_of(self, shard: Shard) -> str:
        """The sum that was written down for a finished file; "" where there is none."""
        try:
            return self._sum(shard).read_text(encoding="ascii")
        except (OSError, ValueError):
            return ""

    # ── what is written ──────────────────────────────────────────────────────────────────────

    def begin(self, manifest: Manifest) -> None:
        """Make the folder ready for a run, or for going on with it."""
        for sign in self.staging.glob("rank-*.json"):
            sign.unlink(missing_ok=True)
        if not manifest.moving:
            for name, data in self.beside.items():
                _settle(self.staging / name, data)
        self.declare(manifest)

    def declare(self, manifest: Manifest) -> None:
        """Write the manifest."""
        told = {"format": _FORMAT, **asdict(manifest)}
        _settle(self.staging / _MANIFEST, json.dumps(told, indent=2).encode())
        self.moving = manifest.moving

    def part(self, shard: Shard) -> Path:
        """A new, empty file to write a shard into."""
        path = self.staging / f"{shard.file}.part"
        path.write_bytes(b"")
        return path

    def settle(self, shard: Shard) -> None:
        """Bring what is written of a file to the disk."""
        with (self.staging / f"{shard.file}.part").open("r+b") as file:
            os.fsync(file.fileno())

    def finish(self, shard: Shard, total: str) -> None:
        """Give a written file its name, its bytes and their sum safely on the disk."""
        self.settle(shard)
        _settle(self._sum(shard), total.encode())
        (self.staging / f"{shard.file}.part").replace(self.staging / shard.file)
        _sync(self.staging)

    def redo(self, shard: Shard, overwrite: bool) -> None:
        """Forget a finished file that is not what it was.

        Raises:
            ArgumentError: it was moved already, and may be somebody else's by now.
        """
        staged = self.staging / shard.file
        if not staged.exists() and not overwrite:
            raise ArgumentError(
                f"{self.path / shard.file}: was changed since it was written; move it elsewhere, "
                "and the same command writes it again"
            )
        self._sum(shard).unlink(missing_ok=True)
        staged.unlink(missing_ok=True)

    def drop(self, shards: Sequence[Shard]) -> None:
        """Remove what was begun of some files."""
        for shard in shards:
            with contextlib.suppress(OSError):
                (self.staging / f"{shard.file}.part").unlink()

    def publish(self, manifest: Manifest) -> None:
        """Move all files to their names: weights, then what stands beside them, the index last.

        What makes an older checkpoint readable is removed first, so that at no moment the old and
        the new can be read as one.
        """
        self.declare(replace(manifest, moving=True))
        names = self._names()
        for name in (SINGLE, INDEX):
            if name not in names or (self.staging / name).exists():
                (self.path / name).unlink(missing_ok=True)
        for name in self._stale():
            (self.path / name).unlink(missing_ok=True)
        for name in names:
            if (self.staging / name).exists():
                (self.staging / name).replace(self.path / name)
        _sync(self.path)

    def clear(self, keep: str = "") -> None:
        """Remove all that is unfinished; the manifest first, without which the rest is nothing."""
        with contextlib.suppress(FileNotFoundError):
            (self.staging / _MANIFEST).unlink()
        for _ in range(10):  # another process may give a last sign of life meanwhile
            for path in self.staging.glob("*"):
                if path.name != keep:
                    path.unlink(missing_ok=True)
            if keep:
                return
            with contextlib.suppress(OSError):
                self.staging.rmdir()
            if not self.staging.exists():
                return
            time.sleep(0.05)

    def tidy(self, existed: bool) -> None:
        """After a failure: leave nothing where nothing is finished."""
        if any(self.located(shard) for shard in self.shards):
            return
        self.clear()
        if not existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @contextlib.contextmanager
    def locked(self, rank: int) -> Iterator[str]:
        """Keep another run of the same process out; gives the name of the lock.

        Raises:
            ArgumentError: there is one.
        """
        self.staging.mkdir(parents=True, exist_ok=True)
        name = f"rank-{rank}.lock"
        with (self.staging / name).open("w") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ArgumentError(
                        f"{self.path}: another run of fanin is writing into it"
                    ) from error
            yield name

    # ── names ────────────────────────────────────────────────────────────────────────────────

    def _names(self) -> list[str]:
        return [*(shard.file for shard in self.shards), *self.beside]

    def _is_foreign(self, name: str) -> bool:
        """Whether a file of this name is there that no run of this checkpoint moved there."""
        ours = self.moving and not (self.staging / name).exists()
        path = self.path / name
        return (path.exists() or path.is_symlink()) and not ours

    def _sum(self, shard: Shard) -> Path:
        return self.staging / f"{shard.file}.sum"

    def _stale(self) -> list[str]:
        """Files of weights that are not of this checkpoint."""
        if not self.path.is_dir():
            return []
        names = set(self._names())
        there = (path.name for path in self.path.iterdir())
        return sorted(name for name in there if _WEIGHTS.fullmatch(name) and name not in names)


def _begins(path: Path, shard: Shard) -> bool:
    """Whether a file has the header and the size of a shard."""
    try:
        with path.open("rb") as file:
            return (
                os.fstat(file.fileno()).st_size == shard.size
                and file.read(len(shard.header)) == shard.header
            )
    except OSError:
        return False


def _settle(path: Path, data: bytes) -> None:
    """Write a small file in one step."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    with contextlib.suppress(OSError):  # some systems open no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def amount(size: int) -> str:
    """A number of bytes in words: three digits."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} bytes"
