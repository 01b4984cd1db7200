"""What a call is given: numbers, and signals in their order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fanin.kinds import PRODUCTS, QUOTIENTS

__all__ = ["filled", "in_order", "option"]

_FILLED = {
    "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0,
    "new_ones": 1.0,
}  # fmt: skip


def option(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The number that a signal is multiplied with, divided by or raised to."""
    if name not in PRODUCTS | QUOTIENTS | {"pow"}:
        return None
    given = (*(args[1:] if name == "pow" else args), *kwargs.values())
    numbers = (a for a in given if isinstance(a, (int, float)) and not isinstance(a, bool))
    return next((float(a) for a in numbers), None)


def filled(name: str, args: tuple[Any, ...]) -> float | None:
    """The number that a new tensor is filled with."""
    if name in ("full", "full_like", "new_full", "tensor", "scalar_tensor"):
        given = next((a for a in reversed(args) if type(a) in (int, float)), None)
        return None if given is None else float(given)
    return _FILLED.get(name)


def in_order(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an elementwise call is given, by place; (None,) where names give it what none has.

    Both bounds of a clamp, without which it has an infinite one; the condition of a where first,
    which comes second in the method.
    """
    if op == "where" and len(args) == 3 and isinstance(args[1], Tensor):
        first = args[0]
        if args[1].dtype == torch.bool and getattr(first, "dtype", None) != torch.bool:
            args = (args[1], first, args[2])
    if op in ("clamp", "clip"):
        given = {**dict(zip(("min", "max"), args[1:], strict=False)), **kwargs}
        low, high = given.get("min"), given.get("max")
        return (*args[:1], -math.inf if low is None else low, math.inf if high is None else high)
    return (None,) if kwargs else args
