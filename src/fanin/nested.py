"""Tensors in nested values: batches, arguments of calls, outputs of models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from inspect import signature
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES
from torch.utils.data import DataLoader, Dataset

__all__ = [
    "arguments",
    "inputs_in",
    "map_batch",
    "map_tensors",
    "refuses",
    "signals_in",
    "tensors_in",
]

# What holds tensors that are no part of a batch.
_CLOSED = (type, FunctionType, MethodType, ModuleType, nn.Module, DataLoader, Dataset)
_DEEP = 3  # objects in objects that are looked into


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the forward pass: tensor, tuple or dict.

    A mapping that torch knows as a container of its own kind, as TensorDict, is one argument.
    """
    own = type(batch) in SUPPORTED_NODES and not isinstance(batch, dict)
    if isinstance(batch, Mapping) and not own:
        return (), dict(batch)
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
        return tuple(batch), {}
    return (batch,), {}


def refuses(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the signature of a function or of a module's forward has no place for arguments.

    >>> from torch import nn
    >>> refuses(nn.CrossEntropyLoss(), (1,), {}), refuses(nn.ReLU(), (1,), {})
    (True, False)
    """
    try:
        expected = signature(getattr(function, "forward", function))
    except (TypeError, ValueError):  # written in another language
        return False
    try:
        expected.bind(*args, **kwargs)
    except TypeError:
        return True
    return False


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclass-like outputs, in order.

    >>> import torch
    >>> len(list(tensors_in((torch.ones(1), {"a": [torch.ones(2)]}))))
    2
    """
    found: list[Tensor] = []
    _gather(value, found)
    return iter(found)


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    if type(value) in _PLAIN:  # most arguments of most calls: told by what takes least
        return
    if isinstance(value, (tuple, list)):
        items: Iterable[Any] = value
    elif isinstance(value, Mapping):
        items = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        items = vars(value).values()
    else:
        return
    for item in items:
        _gather(item, found)


_PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device})


def inputs_in(batch: Any, deep: int = _DEEP) -> Iterator[Tensor]:
    """Every tensor of a batch: as `tensors_in`, and what objects hold, as graphs and caches do.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> graph = SimpleNamespace(x=torch.ones(3, 2), edges=[torch.zeros(2, 4)], name="a")
    >>> [tuple(tensor.shape) for tensor in inputs_in((graph, torch.ones(1)))]
    [(3, 2), (2, 4), (1,)]
    """
    if isinstance(batch, Tensor):
        if deep == _DEEP or not isinstance(batch, nn.Parameter):
            yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from inputs_in(item, deep)
    elif deep and _is_object(batch):
        for item in vars(batch).values():
            yield from inputs_in(item, deep - 1)


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, _CLOSED)


def signals_in(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch whose values are a signal: those with floating or complex numbers.

    In a batch without any, bytes of three dimensions or more are: pictures, which a model turns to
    floats by itself.  Other integers are tokens, labels or masks; beside tokens, bytes are a mask.

    >>> import torch
    >>> frames, labels = torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long()
    >>> [tuple(tensor.shape) for tensor in signals_in((frames, labels))]
    [(4, 3, 8, 8)]
    """
    tensors = list(inputs_in(batch))
    floating = [t for t in tensors if t.is_floating_point() or t.is_complex()]
    tokens = any(t.dim() > 1 and t.dtype in (torch.int32, torch.int64) for t in tensors)
    if floating or tokens:
        yield from floating
    else:
        yield from (t for t in tensors if t.dim() > 2 and t.dtype == torch.uint8)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with every tensor in its plain containers replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(map_tensors(function, v) for v in value)
    if type(value) is dict:
        return {k: map_tensors(function, v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, v) for v in value))
    return value


def map_batch(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """A batch with every tensor replaced.

    Containers that torch knows (`torch.utils._pytree`), as TensorDict, keep their kind; other kinds
    of dicts become plain ones.  Objects that hold tensors are copied, where they can be.
    `map_tensors` leaves all of these alone.

    >>> import torch
    >>> map_batch(lambda tensor: tensor + 1, {"a": (torch.ones(1), "text")})
    {'a': (tensor([2.]), 'text')}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    known = SUPPORTED_NODES.get(type(batch))
    if known is not None:
        members, context = known.flatten_fn(batch)
        return known.unflatten_fn([map_batch(function, value) for value in members], context)
    if isinstance(batch, Mapping):
        return {key: map_batch(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_batch(function, value) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_batch(function, value) for value in batch)
    return _mapped(function, batch) if _is_object(batch) else batch


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A deep copy of an object with every tensor replaced; itself where it cannot be had."""
    held = list(inputs_in(value))
    if not held:
        return value
    made = value
    with suppress(Exception):  # what a user's class may raise: a lock, a file, a module in a graph
        made = copy.deepcopy(value, {id(tensor): function(tensor) for tensor in held})
    return made if len(list(inputs_in(made))) == len(held) else value
