"""Where an activation is flat: the borders beyond which its slope is zero, or next to nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FLAT", "Flat", "dead_units", "flat_parts"]


@dataclass(frozen=True)
class Flat:
    """Borders of the flat parts of an activation.

    Attributes:
        zero_below: slope is exactly zero at and below this input.
        zero_above: slope is exactly zero at and above this input.
        faint_below: slope and output are under 1e-7 at and below this input: next to a unit
            that is alive, nothing in float32.
        weak: slope is under 5 % of its largest beyond ± this input.
    """

    zero_below: float | None = None
    zero_above: float | None = None
    faint_below: float | None = None
    weak: float | None = None


# tanh: 1 - tanh² < 0.05 beyond 2.178; sigmoid: σ(1-σ) < 0.05/4 beyond 4.357; the others by their
# definitions in torch.nn.functional.  Slope and output are 1e-7 or less from -5.82 on for gelu (its
# tanh form: -5.40), from -19.07 on for silu and mish, from -16.12 on for softplus (of beta 1).
FLAT = {
    "relu": Flat(zero_below=0.0),
    "relu6": Flat(zero_below=0.0, zero_above=6.0),
    "threshold": Flat(zero_below=0.0),
    "hardtanh": Flat(zero_below=-1.0, zero_above=1.0, weak=1.0),
    "hardsigmoid": Flat(zero_below=-3.0, zero_above=3.0, weak=3.0),
    "hardswish": Flat(zero_below=-3.0),
    "sigmoid": Flat(weak=4.357),
    "logsigmoid": Flat(),
    "tanh": Flat(weak=2.178),
    "softsign": Flat(weak=3.472),
    "erf": Flat(weak=1.731),
    "gelu": Flat(faint_below=-5.82),
    "silu": Flat(faint_below=-19.07),
    "mish": Flat(faint_below=-19.07),
    "softplus": Flat(faint_below=-16.12),
}


def flat_parts(
    op: str, inputs: Tensor, unit_dims: tuple[int, ...]
) -> tuple[float | None, float | None]:
    """Share of dead units, and share of saturated (unit, sample) pairs, of an activation's inputs.

    A unit is dead when its slope is zero, or too faint to count, on the whole batch.  None where it
    does not apply: a smooth activation has no dead share unless some unit is dead.

    >>> import torch
    >>> flat_parts("relu", torch.tensor([[-1.0, 2.0], [-3.0, -4.0]]), (-1,))
    (0.5, None)
    """
    flat = FLAT.get(op)
    if flat is None or inputs.numel() == 0:
        return None, None
    inputs = inputs.detach()
    mask = dead_units(op, inputs, unit_dims)
    dead = None if mask is None else float(mask.float().mean())
    if dead == 0.0 and flat.zero_below is None:
        dead = None
    weak = None
    if flat.weak is not None:
        beyond = (inputs > flat.weak) | (inputs < -flat.weak)
        weak = int(torch.count_nonzero(beyond)) / beyond.numel()
    return dead, weak


def dead_units(op: str, inputs: Tensor, unit_dims: tuple[int, ...]) -> Tensor | None:
    """Which units of an activation's inputs are flat on the whole batch; None: cannot be told.

    >>> import torch
    >>> dead_units("relu", torch.tensor([[-1.0, 2.0], [-3.0, -4.0]]), (-1,)).tolist()
    [True, False]
    """
    flat = FLAT.get(op)
    if flat is None or not unit_dims or inputs.numel() == 0:
        return None
    border = flat.faint_below if flat.zero_below is None else flat.zero_below
    if border is None:
        return None
    units = {d % inputs.dim() for d in unit_dims}
    others = tuple(d for d in range(inputs.dim()) if d not in units)
    if flat.zero_above is None:  # the largest input decides, and no mask of all is needed
        return (inputs.amax(others) if others else inputs) <= border
    mask = (inputs <= border) | (inputs >= flat.zero_above)
    return mask.all(others) if others else mask
