"""``--input``: the batch in words.

``8x3x32x32`` is a tensor of floats from N(0, 1), ``tokens:4x128@32000`` one of integers below
32000, and ``name=SPEC`` gives a keyword argument of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fanin.errors import TargetError
from fanin.targets.source import first_line

__all__ = ["Spec", "draw", "parse"]

_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<tokens>tokens:)?(?P<shape>\d+(?:x\d+)*)(?:@(?P<high>\d+))?"
)


@dataclass(frozen=True)
class Spec:
    """One ``--input``: a shape, integers below ``high`` or floats, positional or by name."""

    name: str | None
    shape: tuple[int, ...]
    high: int | None


def parse(text: str) -> Spec:
    """Read one specification: ``[NAME=]8x3x32x32`` or ``[NAME=]tokens:4x128@32000``."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise TargetError(
            f"--input {text}: allowed is a shape such as 8x3x224x224, tokens:4x128@32000 for "
            "integers, or NAME=… of these for a keyword argument"
        )
    shape = tuple(int(size) for size in match["shape"].split("x"))
    high = None if match["high"] is None else int(match["high"])
    if 0 in shape:
        raise TargetError(f"--input {text}: every size must be at least 1")
    if match["tokens"] and not high:
        raise TargetError(
            f"--input {text}: say below what the integers lie, as in tokens:4x128@32000"
        )
    if high is not None and not match["tokens"]:
        raise TargetError(f"--input {text}: @{high} is for integers, as in tokens:4x128@{high}")
    return Spec(match["name"], shape, high)


def draw(specs: Sequence[Spec], dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Draw the batch: a tensor, a tuple of tensors, or a dict where names are given."""
    named = [spec for spec in specs if spec.name is not None]
    if named and len(named) != len(specs):
        raise TargetError("--input: give either every input a name or none")
    if len({spec.name for spec in named}) != len(named):
        raise TargetError("--input: every name can be given only once")
    try:
        tensors = [
            torch.randn(spec.shape, generator=generator, device="cpu").to(dtype)
            if spec.high is None
            else torch.randint(spec.high, spec.shape, generator=generator, device="cpu")
            for spec in specs
        ]
    except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise TargetError(f"--input: cannot be drawn: {first_line(error)}") from error
    if named:
        return {str(spec.name): tensor for spec, tensor in zip(specs, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
