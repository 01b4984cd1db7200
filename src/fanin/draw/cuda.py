"""The draw on an NVIDIA GPU, by Triton where it is installed: straight into the tensor.

torch's builds for CUDA bring Triton along; fanin does not ask for it, and never imports it before
a tensor on CUDA is to be filled.  Before values of a dtype are drawn on a GPU for the first time,
some thousands of them, from every row of the normal table, are compared with the reference.  Where
Triton is absent or one bit differs, values are drawn on the CPU and copied, to the same bits.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fanin.draw import philox
from fanin.draw.gaussian import COLUMNS, UNIT, fixed_point
from fanin.draw.philox import Key
from fanin.draw.truncation import interval
from fanin.draw.values import Values

__all__ = ["Launch", "available", "fill"]

#: start, count, repeats, stride: see `fill`.
Launch = tuple[int, int, int, int]

# Blocks of four values in a tile, so two for a thread; warps of a program; and tiles that it draws
# at most, fewer where less than PROGRAMS would be left: an H100 runs 2000 at once.  There
# (benchmarks/draw_cuda.py --sweep) other sizes are up to 4 % slower.
BLOCKS = 256
WARPS = 4
TILES = 16
PROGRAMS = 2**13
# The upper 13 bits of a float32 are its row: 0, or 127 and the position of the highest bit (0 to
# 30) with four more bits.  What lies between 0 and 1.0 is never read.
_ONE = 127 * 16
_ROWS = _ONE + 31 * 16
_SPAN = 2**16  # bytes: more than those of all rows
# In one launch a row of several is counted in 32 bits.
_LONGEST = 2**30


def available(tensor: Tensor) -> bool:
    """Whether `fill` draws into this tensor; the first time for a GPU and dtype it is tried.

    Args:
        tensor: a dense one of float32, float64, bfloat16 or float16.

    Warns:
        RuntimeWarning: once for a GPU and dtype, where Triton is there and fails, or draws other
            bits.

    >>> available(torch.empty(3))
    False
    """
    return tensor.device.type == "cuda" and _proven(tensor.device, tensor.dtype)


def fill(tensor: Tensor, key: Key, rows: Launch, values: Values) -> None:
    """Write values of a stream to a tensor on a GPU for which `available` holds.

    Args:
        tensor: contiguous, of one dimension.
        key: of the stream.
        rows: (start, count, repeats, stride): `repeats` rows of `count` values each, the words of
            which begin at start, start + stride, start + 2·stride, …
        values: what is drawn.
    """
    with torch.cuda.device(tensor.device):
        _launch(_kernels(), tensor, key, rows, values)


def _launch(kernels: ModuleType, tensor: Tensor, key: Key, rows: Launch, values: Values) -> None:
    """The same by these kernels, on the device that is current."""
    start, count, repeats, stride = rows
    if count * repeats == 0:
        return
    if stride == count:  # rows that follow one another
        count, repeats = count * repeats, 1
    aligned = start % 4 == 0 and count % 4 == 0 and (repeats == 1 or stride % 4 == 0)
    first_lane = start % 4 if aligned or repeats == 1 else 3  # of a row with the most blocks
    per_row = (first_lane + count + 3) // 4
    if repeats > 1 and per_row >= _LONGEST:
        for index, row in enumerate(tensor.view(repeats, count)):
            _launch(kernels, row, key, (start + index * stride, count, 1, count), values)
        return
    kind, first, width = _words(values)
    blocks = per_row * repeats
    # A power of 2: then all blocks of a program of `draw` have the upper half of their number in
    # common, as it begins at a multiple of its blocks in the stream.
    tiles = min(1 << max((blocks // (BLOCKS * PROGRAMS)).bit_length() - 1, 0), TILES)
    skipped = start // 4 % (BLOCKS * tiles) if repeats == 1 else 0
    programs = -(-(skipped + blocks) // (BLOCKS * tiles))
    common = (
        tensor,
        _table(tensor.device),
        *philox.round_keys(key),
        key.high,
        2,  # see `_folded`
        start,
        count,
        tiles,
        first,
        width,
        float(values.scale),
        float(values.shift),
    )
    options = {
        "KIND": kind,
        "SHIFTED": values.shifted,
        "ALIGNED": aligned,
        "BLOCKS": BLOCKS,
        "num_warps": WARPS,
        "enable_fp_fusion": False,  # product and sum are rounded one after the other
    }
    if repeats == 1:
        kernels.draw[(programs,)](*common, skipped, **options)
    else:
        inverse = -(-(2**20) // per_row)
        rows_of = (stride, repeats, per_row, inverse)
        kernels.draw_rows[(programs,)](*common, *rows_of, LONG=per_row >= BLOCKS, **options)


def _words(values: Values) -> tuple[str, int, int]:
    """Kind, first word and width; between all words there is nothing to be mapped."""
    bounds = values.bounds
    if bounds is None or bounds.width == 2**32:
        return "uniform" if values.kind == "uniform" else "normal", 0, 0
    return values.kind, bounds.first, bounds.width


@lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    return importlib.import_module("fanin.draw.cuda_kernel")


@lru_cache(maxsize=64)
def _table(device: torch.device) -> Tensor:
    """−c0 (of 32 bits), c1, c2 and c3 of each row, side by side: one load gives a row.

    It begins at a multiple of _SPAN, so that the address of a row is a disjunction.  c0 is negated
    because adding a shifted number is one instruction, and subtracting it two.
    """
    c0, *others = COLUMNS.astype(np.uint32)
    rows = torch.from_numpy(np.stack([-c0, *others], axis=1).view(np.int32))
    memory = torch.zeros(2 * _SPAN // 4, dtype=torch.int32, device=device)
    first = -memory.data_ptr() % _SPAN // 4
    table = memory[first : first + _SPAN // 4].view(-1, 4)
    table[0] = rows[0]
    table[_ONE:_ROWS] = rows[1:]
    return table


@lru_cache(maxsize=256)
def _proven(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU draws the bits of the reference."""
    if importlib.util.find_spec("triton") is None or torch.version.cuda is None:
        return False
    try:
        with torch.cuda.device(device):
            problem = _difference(_kernels(), device, dtype)
    except Exception as error:  # noqa: BLE001 - of a compiler, a driver, a folder: the CPU draws
        line = str(error).strip().partition("\n")[0]
        problem = f"failed: {type(error).__name__}: {line}"
    if problem:
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"the draw of {name} by Triton on {device} {problem}; values are drawn on the CPU "
            "and copied, to the same bits",
            RuntimeWarning,
            stacklevel=2,
        )
    return not problem


def _difference(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> str:
    """How values drawn on a device differ from the reference; "" where they do not."""
    if not np.array_equal(_numbers(kernels, _ends(), device), fixed_point(_ends())):
        return "gives other numbers"
    key = Key(2**64 - 1, 0x0123456789ABCDEF)
    for values, rows in _samples():
        _, count, repeats, _ = rows
        drawn = torch.empty(count * repeats, dtype=dtype, device=device)
        _launch(kernels, drawn, key, rows, values)
        expected = torch.from_numpy(_reference(key, rows, values)).to(dtype)
        if not torch.equal(drawn.cpu().view(torch.uint8), expected.view(torch.uint8)):
            return f"gives other values ({values.kind})"
    return ""


def _samples() -> Iterator[tuple[Values, Launch]]:
    """What is compared: all kinds, where the counter carries, in one row and in several."""
    yield Values("normal", np.float32(UNIT)), (2**34 - 2048, 4096, 1, 0)
    # The mean is where z often is, so that one rounding more or less of the sum shows.
    yield Values("normal", np.float32(0.3 * UNIT), np.float32(0.1)), (2**34 - 2047, 41, 100, 43)
    yield Values("uniform", np.float32(0.1 * 2.0**-24)), (0, 4096, 1, 0)
    yield Values("between", np.float32(UNIT), bounds=interval(-2.0, 1.0)), (0, 4096, 1, 0)


def _reference(key: Key, rows: Launch, values: Values) -> NDArray[np.float32]:
    start, count, repeats, stride = rows
    starts = (start + row * stride for row in range(repeats))
    return np.concatenate([values.of(philox.words(key, first, count)) for first in starts])


@lru_cache(maxsize=1)
def _ends() -> NDArray[np.uint32]:
    """Words at the ends of every row of the table and near powers of two, and their complements."""
    rows = {
        ((16 + part) << octave >> 4) + d
        for octave, part, d in itertools.product(range(32), range(16), (-1, 0, 1))
    }
    lower = np.array(sorted(row & (2**31 - 1) for row in rows), np.uint32)
    words = np.concatenate([lower, ~lower])
    return np.resize(words, -(-words.size // BLOCKS) * BLOCKS)


def _numbers(
    kernels: ModuleType, words: NDArray[np.uint32], device: torch.device
) -> NDArray[np.int32]:
    """z·2²⁸ of a multiple of BLOCKS words, by a device."""
    source = torch.from_numpy(words.view(np.int32)).to(device)
    drawn = torch.empty_like(source)
    kernels.numbers[(len(words) // BLOCKS,)](source, drawn, _table(device), 2, BLOCK=BLOCKS)
    result: NDArray[np.int32] = drawn.cpu().numpy()
    return result
