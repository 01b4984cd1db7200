"""The values each parameter has now, beside what the automatic choice would draw."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fanin.architecture import Architecture, parameters_of
from fanin.assignment import Recipe
from fanin.errors import FaninError
from fanin.planning import closed_forms

__all__ = ["Start", "starts"]

BINS = 40  # a bell of 40 bars reads as a bell; more say nothing new at the size of a page
# Entries that a histogram is made of: every bar's share is then known to 1 % of all entries.
_ENTRIES = 65_536


@dataclass(frozen=True)
class Start:
    """One parameter: its values now, and how the automatic choice would start it.

    Attributes:
        parameter: path, as ``named_parameters`` gives it.
        shape: of the parameter.
        trainable: whether it requires a gradient.
        mean: of the finite values; None where there is none.
        std: of them.
        low: the smallest of them.
        high: the largest of them.
        counts: histogram: values in equal bins from `low` to `high`, of a sample of the entries
            where they are many; empty for tensors of fewer than two dimensions, or of one value.
        scheme: what the automatic choice draws it with; None where it is left as it is.
        planned_std: std of one weight then (root mean square where it is not random).
        fan: the fan that the scheme divides by; None where it uses none.
        because: the reason for the scheme, or for leaving it.
    """

    parameter: str
    shape: tuple[int, ...]
    trainable: bool
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    counts: tuple[int, ...] = ()
    scheme: str | None = None
    planned_std: float | None = None
    fan: float | None = None
    because: str = ""

    @property
    def size(self) -> float | None:
        """What `planned_std` is held against: the std; of a vector the root mean square.

        The values of a vector may all be one, as those of a norm are.
        """
        if self.std is None or self.mean is None:
            return None
        return self.std if len(self.shape) > 1 else math.hypot(self.std, self.mean)


def starts(model: nn.Module, architecture: Architecture) -> tuple[Start, ...]:
    """One entry for each parameter of the model, in its order.

    The scales are those of closed forms: `fanin.plan` also measures a batch where they are not
    enough.
    """
    recipe = _recipe(model, architecture)
    chosen = {assignment.parameter: assignment for assignment in recipe.assignments}
    values = dict(model.named_parameters())
    found = []
    for parameter in parameters_of(model):
        name, planned = parameter.name, chosen.get(parameter.name)
        mean, std, low, high, counts = _described(values[name].detach())
        found.append(
            Start(
                parameter=name,
                shape=tuple(parameter.shape),
                trainable=parameter.trainable,
                mean=mean,
                std=std,
                low=low,
                high=high,
                counts=counts,
                scheme=None if planned is None else planned.scheme,
                planned_std=None if planned is None else planned.std,
                fan=None if planned is None else planned.fan,
                because=recipe.untouched.get(name, "") if planned is None else planned.because,
            )
        )
    return tuple(found)


def _recipe(model: nn.Module, architecture: Architecture) -> Recipe:
    """The automatic choice; where there is none, every parameter is left for that reason."""
    run = architecture.trace
    alone = replace(run, calls=run.calls[: run.length], loss=None)  # as a plan sees it
    try:
        return closed_forms(replace(architecture, trace=alone), model)
    except FaninError as error:
        told = f"no choice: {error}"
        return Recipe((), {p.name: told for p in architecture.parameters})


def _described(
    values: Tensor,
) -> tuple[float | None, float | None, float | None, float | None, tuple[int, ...]]:
    """Mean, std, smallest and largest of the finite values, and their histogram."""
    if not values.is_floating_point() or values.numel() == 0:
        return None, None, None, None, ()
    flat = values.flatten()
    if values.element_size() < 4:
        flat = flat.float()
    low, high = (float(v) for v in torch.aminmax(flat))
    if not (math.isfinite(low) and math.isfinite(high)):
        flat = flat[torch.isfinite(flat)]
        if flat.numel() == 0:
            return None, None, None, None, ()
        low, high = (float(v) for v in torch.aminmax(flat))
    if low == high:
        return low, 0.0, low, high, ()
    largest = max(abs(low), abs(high))
    scaled = flat / largest  # squares of large values leave float32
    variance, mean = torch.var_mean(scaled, correction=0)
    moments = float(mean) * largest, math.sqrt(max(0.0, float(variance))) * largest
    return *moments, low, high, _histogram(flat, low, high) if values.dim() > 1 else ()


def _histogram(flat: Tensor, low: float, high: float) -> tuple[int, ...]:
    sample = flat[:: max(1, flat.numel() // _ENTRIES)].double().cpu()
    width = high - low
    if not math.isfinite(width) or width == 0:
        return ()
    bins = ((sample - low) / width * BINS).long().clamp_(0, BINS - 1)
    return tuple(torch.bincount(bins, minlength=BINS).tolist())
