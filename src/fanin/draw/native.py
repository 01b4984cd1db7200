"""The draw compiled from C, where it was built: which instruction set is used, and the call.

The library is `compiled/draw.so` beside this file; the build hook makes it where a C compiler is
found.  Without it everything is drawn by the numpy reference, to the same bits.  The environment
variable FANIN_DRAW chooses by name: "reference", "scalar", "avx2", "avx512", "avx512-gather" or
"neon".
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fanin.draw import philox
from fanin.draw.gaussian import COLUMNS, fixed_point
from fanin.draw.philox import Key
from fanin.errors import ArgumentError
from fanin.window import Rows

__all__ = [
    "CHOICE",
    "FORMS",
    "KINDS",
    "REFERENCE",
    "SETS",
    "Backend",
    "Queue",
    "backend",
    "mapped",
    "present",
]

LIBRARY = Path(__file__).with_name("compiled") / "draw.so"
CHOICE = "FANIN_DRAW"
REFERENCE = "reference"
#: Instruction sets as the library numbers them; AVX-512 twice: rows of the table are gathered, or
#: permuted from registers.
SETS = {"scalar": 0, "avx2": 1, "avx512": 2, "neon": 3, "avx512-gather": 4}
_BEST = ("avx512-gather", "avx512", "avx2", "neon", "scalar")
# Which way is the quicker differs between processors, and between two microcodes of one: gathering
# takes 0.8 of the time on a Sapphire Rapids, and several times as long on an older Xeon that guards
# against Downfall.  So both ways are timed on this many numbers, so often, the best time counting:
# 0.3 ms once.
_TIMED, _TIMES = 1 << 14, 5
#: What is drawn, and how it is written.
KINDS = {"words": 0, "normal": 1, "uniform": 2, "between": 3}
FORMS = {"integer": 0, "float32": 1, "float64": 2, "bfloat16": 3, "float16": 4}
# Elements in one call, which Ctrl-C has to wait for: a tenth of a second.
_SLICE = 1 << 26
# Fewer are drawn on one thread: starting another takes as long as some ten thousand of them.
_ALONE = 1 << 16


class _Job(ctypes.Structure):
    """`Job` of draw.c."""

    _fields_ = (
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("first", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("shift", ctypes.c_float),
        ("shifted", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("form", ctypes.c_int32),
    )


class _Rows(ctypes.Structure):
    """`Rows` of draw.c."""

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("repeats", ctypes.c_uint64),
        ("stride", ctypes.c_uint64),
        ("step", ctypes.c_uint64),
    )


class _Task(ctypes.Structure):
    """`Task` of draw.c."""

    _fields_ = (
        ("job", _Job),
        ("rows", _Rows),
        ("out", ctypes.c_void_p),
        ("before", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Backend:
    """What draws on the CPU.

    Attributes:
        name: "reference", or an instruction set.
        because: why it is the reference; empty for compiled code.
    """

    name: str
    because: str = ""

    @property
    def compiled(self) -> bool:
        """Whether compiled code draws."""
        return self.name != REFERENCE

    def __str__(self) -> str:
        if self.compiled:
            return f"compiled C, {self.name}"
        return f"numpy reference ({self.because})"


def backend() -> Backend:
    """What draws on the CPU of this machine.

    Raises:
        ArgumentError: FANIN_DRAW names something that is not there.

    >>> backend().name in ("reference", *SETS)
    True
    """
    return _chosen(os.environ.get(CHOICE, ""))


@lru_cache(maxsize=16)
def _chosen(choice: str) -> Backend:
    there = present()
    if choice == REFERENCE:
        return Backend(REFERENCE, f"{CHOICE}={REFERENCE}")
    if choice and choice not in there:
        allowed = ", ".join([REFERENCE, *there])
        raise ArgumentError(f"{CHOICE}: {choice!r}; this machine has {allowed}")
    if not there:
        return Backend(REFERENCE, f"no compiled draw: {_why_not()}")
    return Backend(choice or there[0])


def _why_not() -> str:
    if not LIBRARY.exists():
        return "it is built where a C compiler is found"
    wrong = "cannot be loaded" if _library() is None else "draws other bits"
    return f"it {wrong}: install anew"


@lru_cache(maxsize=1)
def present() -> tuple[str, ...]:
    """The instruction sets of this machine that code was compiled for, the best first.

    Only those that draw the bits of the reference: a library that is older than this file, or made
    by a compiler with a fault, is not used.
    """
    library = _library()
    if library is None:
        return ()
    there = (name for name in _BEST if library.fanin_has(SETS[name]))
    best = [name for name in there if _agrees(library, SETS[name])]
    if best[:2] == ["avx512-gather", "avx512"]:
        best[:2] = _quicker(library, best[0], best[1])
    return tuple(best)


def _quicker(library: ctypes.CDLL, *names: str) -> list[str]:
    """The sets, the one that maps words to normals in less time first."""
    words = philox.words(Key(0, 0), 0, _TIMED)
    best = dict.fromkeys(names, math.inf)
    for _, name in itertools.product(range(_TIMES), names):
        numbers = words.copy()
        began = time.perf_counter()
        library.fanin_map(_Job(kind=KINDS["normal"]), numbers.ctypes.data, _TIMED, SETS[name])
        best[name] = min(best[name], time.perf_counter() - began)
    return sorted(names, key=best.__getitem__)


def _agrees(library: ctypes.CDLL, number: int) -> bool:
    """Whether a set draws what the reference draws, where rows change and a carry is needed."""
    key, start, count = Key(2**64 - 1, 0x0123456789ABCDEF), 2**34 - 100, 256
    job = _Job(key.low, key.high, 0, 0, 0.0, 0.0, 0, KINDS["normal"], FORMS["integer"])
    drawn = np.empty(count, np.int32)
    library.fanin_write(_Task(job, _Rows(start, count, 1), drawn.ctypes.data), 1, 1, number)
    lower = [2**k + d for k in range(3, 32) for d in (-1, 0, 1)] + [0]
    ends = np.array([*lower, *(2**32 - 1 - end for end in lower)], np.uint32)
    mapped = ends.copy()
    library.fanin_map(job, mapped.ctypes.data, mapped.size, number)
    return np.array_equal(drawn, fixed_point(philox.words(key, start, count))) and np.array_equal(
        mapped.view(np.int32), fixed_point(ends)
    )


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """The library, with its table set; None where there is none of this version and machine.

    A function that takes other arguments than in the version before has another name, too.
    """
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for name in ("fanin_has", "fanin_map", "fanin_table", "fanin_write"):
            getattr(library, name)
    except (OSError, AttributeError):
        return None
    columns = np.ascontiguousarray(COLUMNS, dtype=np.uint32)
    library.fanin_table.argtypes = (ctypes.c_void_p,)
    library.fanin_table(columns.ctypes.data)
    library.fanin_write.argtypes = (
        ctypes.POINTER(_Task), ctypes.c_uint64, ctypes.c_int, ctypes.c_int,
    )  # fmt: skip
    library.fanin_map.argtypes = (
        ctypes.POINTER(_Job), ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int,
    )  # fmt: skip
    return library


class Queue:
    """Values that are to be written to memory by compiled code, all together.

    The threads share the work on everything that is in the queue.  A call for each tensor takes
    longer: threads are started, wait for the slowest, and the caller works between the calls while
    they rest (0.15 ms for each tensor of half a million values on two cores, a third of its draw).

    Only where `backend().compiled`.
    """

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._held: list[object] = []
        self._count = 0

    def put(
        self,
        address: int,
        key: Key,
        rows: Rows,
        kind: str,
        form: str,
        *,
        scale: float = 0.0,
        shift: float = 0.0,
        shifted: bool = False,
        first: int = 0,
        width: int = 0,
        owner: object = None,
    ) -> None:
        """Ask for elements of a stream; they are written by `run`, or before.

        Args:
            address: of the part that the rows are of, with room for values of the form.
            key: of the stream.
            rows: which words, and where in the part their values stand.
            kind: of `KINDS`.
            form: of `FORMS`.
            scale: what a number is multiplied with, in float32.
            shift: what is then added, in float32, where `shifted`.
            shifted: whether anything is added.
            first: the first word between two bounds.
            width: how many words lie between them, below 2³².
            owner: of the memory, which is kept until then.
        """
        job = _Job(
            key.low, key.high, first, width, scale, shift, int(shifted), KINDS[kind], FORMS[form]
        )
        size = {"float64": 8, "bfloat16": 2, "float16": 2}.get(form, 4)
        self._held.append(owner)
        for part in _slices(rows):
            count = part.count * part.repeats
            if self._count + count > _SLICE:
                self.run()
                self._held.append(owner)
            asked = _Rows(part.start, part.count, part.repeats, part.stride, part.step)
            self._tasks.append(_Task(job, asked, address + part.place * size))
            self._count += count

    def run(self, threads: int | None = None) -> None:
        """Write everything that was asked for.

        Args:
            threads: at most; torch's number of threads by default.
        """
        if not self._tasks:  # as always where nothing is compiled
            return
        library = _library()
        assert library is not None  # nothing is asked for without
        tasks = (_Task * len(self._tasks))(*self._tasks)
        most = torch.get_num_threads() if threads is None else threads
        used = most if self._count >= _ALONE else 1
        library.fanin_write(tasks, len(tasks), used, SETS[backend().name])
        self._tasks, self._held, self._count = [], [], 0


def _slices(rows: Rows) -> Iterator[Rows]:
    """The rows, in calls of at most `_SLICE` elements."""
    if rows.count * rows.repeats <= _SLICE:
        yield rows
        return
    if rows.count > _SLICE:
        for repeat in range(rows.repeats):
            for at in range(0, rows.count, _SLICE):
                yield Rows(
                    rows.start + repeat * rows.stride + at,
                    min(_SLICE, rows.count - at),
                    place=rows.place + repeat * rows.step + at,
                )
        return
    most = max(1, _SLICE // max(rows.count, 1))
    for first in range(0, rows.repeats, most):
        yield replace(
            rows,
            start=rows.start + first * rows.stride,
            repeats=min(most, rows.repeats - first),
            place=rows.place + first * rows.step,
        )


def mapped(words: NDArray[np.uint32], kind: str, first: int = 0, width: int = 0) -> None:
    """Turn words into numbers in place, as `fill` does: for tests of all 2³² of them.

    Args:
        words: contiguous, a multiple of 16 of them.
        kind: of `KINDS`.
        first: the first word between two bounds.
        width: how many lie between them, below 2³².

    Raises:
        ArgumentError: another number of words.
    """
    library = _library()
    assert library is not None  # compiled code was asked for
    job = _Job(0, 0, first, width, 0.0, 0.0, 0, KINDS[kind], 0)
    if library.fanin_map(job, words.ctypes.data, words.size, SETS[backend().name]):
        raise ArgumentError(f"words: {words.size} of them; a multiple of 16 is needed")
