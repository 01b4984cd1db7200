"""New memory for parameters, in large pages where the system gives them on request.

At the first write to a page the system has to clear it.  With pages of 4 KiB that takes as long as
drawing the values, with 2 MiB (Linux, where /sys/kernel/mm/transparent_hugepage/enabled says
"madvise", as most distributions have it) a third of that: 0.15 and 0.05 s for 512 MB on two cores.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["empty_like"]

# Bytes from which on it is worth asking, which takes a microsecond.  Tensors of less than a large
# page fill one side by side; of those below this a model has little.
LEAST = 1 << 18
_PLAIN = (Tensor, torch.nn.Parameter)
_HUGEPAGE = 14  # MADV_HUGEPAGE of Linux, which Python's mmap does not have on all machines


def empty_like(tensor: Tensor, device: torch.device | str | None = None) -> Tensor:
    """An uninitialized tensor like another, as `torch.empty_like`.

    Args:
        tensor: whose shape, dtype and strides it has.
        device: where; that of the tensor by default.

    >>> empty_like(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """
    device = device or tensor.device
    if type(tensor) in _PLAIN and tensor.is_contiguous():  # empty_like of meta takes 40 µs
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        )
    else:
        empty = torch.empty_like(tensor, device=device)
    if type(empty) is Tensor and empty.device.type == "cpu":  # others may have no memory of theirs
        memory = empty.untyped_storage()
        if memory.nbytes() >= LEAST:
            _ask(memory.data_ptr(), memory.nbytes())
    return empty


def _ask(address: int, size: int) -> None:
    """Ask for large pages from an address on; where there are none, nothing changes."""
    advise = _madvise()
    if advise is None:
        return
    # Whole pages, also at the ends: two tensors side by side may share a large one.
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(address + size) // mmap.PAGESIZE) * mmap.PAGESIZE
    advise(start, end - start, _HUGEPAGE)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """The function of the C library; None where it is not Linux's."""
    if sys.platform != "linux":
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
