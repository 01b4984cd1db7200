"""Composite torch functions, opened: the calls inside of them reach the watch."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator

from fanin.operations import Weighted, recurrent

__all__ = ["open_recurrent", "transparent", "written_out"]

# Operations that are given functions, by the names that they have inside of torch.
_CONTROL = frozenset({"associative_scan", "cond", "map_impl", "scan", "while_loop"})


def written_out(func: Any) -> Callable[..., Any] | None:
    """torch.cond, while_loop, scan, associative_scan, map: their own Python; None for all else.

    Tensors that are broadcast together are expanded one by one: each stays what it was made from.
    """
    if func is torch.functional.broadcast_tensors:
        return _expanded
    if not isinstance(func, HigherOrderOperator) or func._name not in _CONTROL:
        return None
    kernels: Any = func.py_kernels
    return cast(Callable[..., Any], kernels[torch._C.DispatchKey.CompositeExplicitAutograd])


def _expanded(*given: Any) -> tuple[Tensor, ...]:
    tensors = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
    shapes = [t.shape for t in tensors]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:  # in torch's words, whose own function imports sympy at its first call
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return tuple(t.expand(shape) for t in tensors)


def transparent(func: Any) -> Any:
    """A copy of a composite torch function whose inner calls reach the watch."""

    def answer_false(*_: Any) -> bool:
        return False

    names = {n: answer_false for n in func.__globals__ if n.startswith("has_torch_function")}
    scope = {**func.__globals__, **names}
    copy = types.FunctionType(
        func.__code__, scope, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def open_recurrent(
    name: str,
    func: Any,
    args: tuple[Any, ...],
    report: Callable[[Weighted, tuple[Tensor, ...]], None],
) -> tuple[Tensor, ...]:
    """A fused recurrent call, one layer at a time, so that every hidden layer is seen."""
    packed = (
        isinstance(args[1], Tensor)
        and not isinstance(args[2], bool)
        and isinstance(args[3], (list, tuple))
    )
    if packed:
        x, sizes, hidden, flat, biases, layers, dropout, training, both = args[:9]
        batch_first = False
    else:
        x, hidden, flat, biases, layers, dropout, training, both, batch_first = args[:9]
    directions, states = 2 if both else 1, hidden if name == "lstm" else (hidden,)
    per = len(flat) // layers
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        part = list(flat[layer * per : (layer + 1) * per])
        at = slice(layer * directions, (layer + 1) * directions)
        start = tuple(s[at] for s in states)
        given = start if name == "lstm" else start[0]
        rest = (biases, 1, 0.0, training, both)
        with torch._C.DisableTorchFunction():
            out = (
                _without_cudnn(func, x, sizes, given, part, *rest)
                if packed
                else _without_cudnn(func, x, given, part, *rest, batch_first)
            )
            along = sizes if packed else int(batch_first)
            # The cell states [directions, …, units], side by side as the directions are in x.
            cells = [cell.movedim(0, -2).flatten(-2) for cell in out[2:]]
            apart = (
                cell.reshape(*cell.shape[:-1], directions, -1).movedim(-2, 0) for cell in cells
            )
            out = (out[0], _last(out[0], directions, along), *apart)
        weighted = recurrent(name, x, start, part, directions, biases)
        of_units = (c for c in cells if c.shape[-1] == out[0].shape[-1])  # not with a projection
        report(replace(weighted, memory=next(of_units, None)), out)
        x = out[0]
        last.append(tuple(out[1:]))
        if dropout and training and layer < layers - 1:
            x = F.dropout(x, dropout, training=True)
    return (x, *(torch.cat(parts) for parts in zip(*last, strict=True)))


def _last(states: Tensor, directions: int, along: int | Tensor) -> Tensor:
    """The last state of each direction, read from all of them: the same bits as torch returns.

    So a loss that sees the last state alone has a gradient where the states are measured.

    Args:
        states: [batch, time, …] or [time, batch, …]; [steps, …] where sequences are packed.
        directions: the second runs backwards, and ends at the first step.
        along: the dimension of time; the number of sequences at each step where they are packed.
    """
    parts = states.chunk(directions, -1)
    if isinstance(along, int):
        return torch.stack([part.select(along, -d) for d, part in zip((1, 0), parts, strict=False)])
    sizes = along.tolist()
    starts = [0, *itertools.accumulate(sizes)]
    lengths = [sum(size > i for size in sizes) for i in range(sizes[0])]
    ends = [starts[n - 1] + i for i, n in enumerate(lengths)]
    steps = (ends, list(range(sizes[0])))
    return torch.stack([part[at] for at, part in zip(steps, parts, strict=False)])


def _without_cudnn(func: Any, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """A recurrent call; on a GPU without cuDNN.

    Its backward refuses a model in eval mode, and it warns of the weights of a single layer, which
    lie apart.  `torch.backends.cudnn.flags` would read and write every flag, and raises where
    convolutions and recurrent layers differ in precision; so only this one is changed.
    """
    off = x.is_cuda and torch.backends.cudnn.enabled
    try:
        if off:
            torch._C._set_cudnn_enabled(False)
        found: tuple[Tensor, ...] = func(x, *rest)
        return found
    finally:
        if off:
            torch._C._set_cudnn_enabled(True)
