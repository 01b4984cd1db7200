"""Scales taken from a batch: one watched forward pass, each weight rescaled while it runs.

Because the watch stands between a call and its result, a weight is rescaled, its call run again,
and the pass goes on with an input that is already right: one pass for any depth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fanin.guard import eager, private, untouched
from fanin.operations import Weighted
from fanin.reading import Unobserved
from fanin.trace import Watch, trace

__all__ = ["Target", "measure_"]


# A signal this far from its size is lost or exploded on its way: no scale of one weight mends that.
# Raw data of 16 bits (root mean square 4e4) is still within.
FURTHEST = 1e5


@dataclass(frozen=True)
class Target:
    """What the output of a weight should be on the batch.

    Attributes:
        size: wanted root mean square (or std, where `centred`) of the output.
        tolerance: factor within which the output is left as it is.
        centred: whether the std counts, not the root mean square.
        units: whether every unit is brought to it, with its mean at zero, by itself.
        bias: parameter that takes the means away, with `units`.
    """

    size: float
    tolerance: float = 1.0
    centred: bool = False
    units: bool = False
    bias: str | None = None


def measure_(
    model: nn.Module, batch: Any, targets: Mapping[str, Target]
) -> dict[str, tuple[float, ...]]:
    """Rescale weights in place in one forward pass, so that each meets its target.

    Args:
        model: whose parameters are changed; all else is put back.
        batch: that the targets are measured on.
        targets: weight → what its output should be.

    Returns:
        parameter → the factor it was multiplied with (one for each unit, with `Target.units`), or
        for a bias its new values.  What met its target already does not appear.

    Raises:
        ForwardError: the model raised.
    """
    found: dict[str, tuple[float, ...]] = {}
    # a forward may take gradients itself, so they stay enabled
    with torch.inference_mode(False), torch.enable_grad(), eager(), untouched(model) as guard:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        watch = Watch(
            model,
            model.named_parameters(),
            guard,
            Unobserved(),
            adjust=_Adjust(model, targets, found),
        )
        trace(model, private(batch), None, watch)
    return found


class _Adjust:
    """Called between a weighted call and its result; the first call of each weight decides."""

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Target],
        found: dict[str, tuple[float, ...]],
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._targets, self._found = dict(targets), found

    def __call__(
        self,
        weighted: Weighted,
        names: tuple[str, ...],
        output: Tensor,
        again: Callable[[], Tensor],
    ) -> Tensor:
        name = names[0] if len(names) == 1 else ""
        target = self._targets.pop(name, None)
        operand = weighted.weights[0][1]
        if target is None or output.numel() == 0 or not output.is_floating_point():
            return output
        parameter = self._parameters[name]
        if operand.numel() != parameter.numel():  # one of several parts: its share is not all
            return output
        if target.units:
            if operand.shape != parameter.shape or operand.stride() != parameter.stride():
                return output  # a transpose: its outputs lie along another dimension
            return self._units(name, parameter, target, weighted, output, again)
        factor = _factor(output, target)
        if factor is None:
            return output
        parameter.data.mul_(factor)
        self._found[name] = (factor,)
        return again()

    def _units(
        self,
        name: str,
        parameter: Tensor,
        target: Target,
        weighted: Weighted,
        output: Tensor,
        again: Callable[[], Tensor],
    ) -> Tensor:
        if len(weighted.unit_dims) != 1 or "o" not in weighted.layout or output.dim() < 2:
            return output
        at = weighted.layout.index("o")
        values = output.detach().double().movedim(weighted.unit_dims[0], 0).flatten(1)
        if len(values) != parameter.shape[at] or values.shape[1] < 2:
            return output
        std = values.std(1, unbiased=False)
        seen = std > 0
        factor = torch.where(seen, target.size / std.clamp_min(1e-300), torch.ones_like(std))
        shape = [1] * parameter.dim()
        shape[at] = -1
        parameter.data.mul_(factor.to(parameter.dtype).view(shape))
        self._found[name] = tuple(float(f) for f in factor)
        bias = self._parameters.get(target.bias or "")
        if target.bias is not None and bias is not None and bias.shape == factor.shape:
            means = (values.mean(1) - bias.detach().double()) * factor
            bias.data.copy_(-means)
            self._found[target.bias] = tuple(float(-m) for m in means)
        return again()


def _factor(output: Tensor, target: Target) -> float | None:
    """What brings the output to its target; None where nothing is to be done, or can be."""
    values = output.detach().double()
    size = float(values.std(unbiased=False) if target.centred else values.square().mean().sqrt())
    if not math.isfinite(size) or size == 0.0:
        return None
    factor = target.size / size
    if not 1 / FURTHEST <= factor <= FURTHEST:
        return None
    if 1 / target.tolerance <= factor <= target.tolerance and target.tolerance > 1:
        return None
    return float(f"{factor:.4g}")  # a recipe is read by people
