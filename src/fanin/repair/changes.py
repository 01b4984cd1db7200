"""How a parameter differs from what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fanin.assignment import Assignment
from fanin.plain import to_plain

__all__ = ["Change", "changes"]


@dataclass(frozen=True)
class Change:
    """What a repair did to one parameter.

    Attributes:
        parameter: its path.
        entries: that have another value now.
        total: entries that it has.
        before: root mean square of the changed entries as they were; nan where none was finite.
        after: the same now.
        because: why.
    """

    parameter: str
    entries: int
    total: int
    before: float
    after: float
    because: str

    def to_dict(self) -> dict[str, Any]:
        """The change as plain data; a size that is nan is None."""
        none = {k: None for k in ("before", "after") if math.isnan(getattr(self, k))}
        return {**to_plain(self), **none}


def changes(
    model: nn.Module, originals: Mapping[str, Tensor], chosen: Mapping[str, Assignment]
) -> tuple[Change, ...]:
    """One change for each parameter that is not what it was, in the model's order."""
    found = []
    for name, parameter in model.named_parameters():
        if name not in originals or name not in chosen:
            continue
        before, now = originals[name], parameter.detach()
        other = (before != now) & ~(before.isnan() & now.isnan())
        count = int(other.sum())
        if count:
            found.append(
                Change(
                    name,
                    count,
                    now.numel(),
                    _rms(before[other]),
                    _rms(now[other]),
                    chosen[name].because,
                )
            )
    return tuple(found)


def _rms(values: Tensor) -> float:
    finite = values[torch.isfinite(values)].double()
    return float(finite.square().mean().sqrt()) if finite.numel() else math.nan
