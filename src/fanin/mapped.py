"""Tensors inside of `torch.vmap`, as they lie in memory: the mapped dimension first."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._functorch import pyfunctorch

from fanin.nested import map_tensors, tensors_in

__all__ = ["is_mapped", "outside", "plainly"]


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is that of a transform such as vmap, and has no values of its own."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def outside(*values: Any) -> tuple[Any, ...] | None:
    """What a call inside of vmap is given and gives, with all its tensors as they lie in memory.

    None outside of vmap, and where a dimension other than the first is mapped, or another transform
    is under way: there a tensor is no longer what it was outside.
    """
    functorch: Any = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return None
    found = {id(t): _in_memory(t) for t in tensors_in(values) if is_mapped(t)}
    if not found or any(t is None for t in found.values()):
        return None

    def replaced(tensor: Tensor) -> Tensor:
        own = found.get(id(tensor))
        return tensor if own is None else own

    return tuple(map_tensors(replaced, value) for value in values)


def _in_memory(tensor: Tensor) -> Tensor | None:
    functorch: Any = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        if functorch.maybe_get_bdim(tensor) != 0:
            return None
        tensor = functorch.get_unwrapped(tensor)
    return None if is_mapped(tensor) else tensor


def plainly() -> AbstractContextManager[Any]:
    """Work inside of vmap as if outside, as on what `outside` gives."""
    context: AbstractContextManager[Any] = pyfunctorch.temporarily_clear_interpreter_stack()
    return context
