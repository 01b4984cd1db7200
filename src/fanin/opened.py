"""Composite torch functions, opened: the calls inside of them reach the watch."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fanin.operations import Weighted, recurrent

__all__ = ["open_recurrent", "transparent"]


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
        report(recurrent(name, x, start, part, directions, biases), out)
        x = out[0]
        last.append(tuple(out[1:]))
        if dropout and training and layer < layers - 1:
            x = F.dropout(x, dropout, training=True)
    return (x, *(torch.cat(parts) for parts in zip(*last, strict=True)))


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
