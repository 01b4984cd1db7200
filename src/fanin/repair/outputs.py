"""What a model gives on a batch, and whether it is the same still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fanin.guard import private, reseed, untouched
from fanin.nested import arguments, tensors_in

__all__ = ["finite", "forward", "same_outputs"]

# Relative to the largest output: float32 sums in another order differ by less; in the short formats
# by a few times the precision.
PRESERVED, ROUNDINGS = 1e-5, 8.0


def forward(model: nn.Module, batch: Any, seed: int) -> list[Tensor]:
    """The floating tensors of a model's output; the model and all random states stay."""
    with torch.inference_mode(False), torch.no_grad(), untouched(model):
        reseed(seed)
        args, kwargs = arguments(private(batch))
        output = model(*args, **kwargs)
    return [t.detach().clone() for t in tensors_in(output) if t.is_floating_point()]


def same_outputs(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether all outputs agree, to the precision of a sum in another order.

    What was not finite has nothing to keep.
    """
    return len(before) == len(after) and all(map(_same, before, after))


def finite(outputs: Sequence[Tensor]) -> bool:
    """Whether every value is a number."""
    return all(bool(torch.isfinite(t).all()) for t in outputs)


def _same(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:
        return False
    kept = torch.isfinite(before)
    was, now = before[kept].double(), after[kept].double()
    largest = float(was.abs().max()) if len(was) else 0.0
    precision = max(PRESERVED, ROUNDINGS * torch.finfo(before.dtype).eps)
    return bool(((was - now).abs() <= precision * largest).all())
