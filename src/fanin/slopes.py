"""Where an activation is flat: the borders beyond which its slope is zero, or next to nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fanin import moments

__all__ = ["SIGMOID_WEAK", "Flat", "constant", "dead_units", "flat", "flat_parts"]


@dataclass(frozen=True)
class Flat:
    """Borders of the flat parts of an activation.

    Attributes:
        zero_below: slope is exactly zero at and below this input.
        zero_above: slope is exactly zero at and above this input.
        faint_below: slope is under 1e-7, and so is the distance from the value far below, at and
            below this input: next to a unit that is alive, nothing in float32.
        weak: slope is under 5 % of its largest below the first of these inputs and above the
            second.
    """

    zero_below: float | None = None
    zero_above: float | None = None
    faint_below: float | None = None
    weak: tuple[float, float] | None = None


# A function is tried at so many points between two bounds, at more where it seems to be constant.
# It is where its values differ by less than this share of their distance: a slope that is nothing
# in float32 next to that of a unit that is alive.
_POINTS, _EQUAL = (17, 1025), 1e-7
_ABOUT = 1e-3
#: Beyond ± this the sigmoid's slope is under 5 % of its largest: σ(1-σ) < 0.05/4.
SIGMOID_WEAK = 4.357
# tanh: 1 - tanh² < 0.05 beyond 2.178; the others by their definitions in torch.nn.functional.
# They are 1e-7 or less from -5.82 on for gelu (its tanh form: -5.40), from -19.07 on for silu and
# mish, from -16.12 on for softplus of beta 1 and elu, from -16.69 on for selu.
_FLAT = {
    "relu": Flat(zero_below=0.0),
    "relu6": Flat(zero_below=0.0, zero_above=6.0),
    "relu_squared": Flat(zero_below=0.0),
    "hardsigmoid": Flat(zero_below=-3.0, zero_above=3.0, weak=(-3.0, 3.0)),
    "hardswish": Flat(zero_below=-3.0),
    "sigmoid": Flat(weak=(-SIGMOID_WEAK, SIGMOID_WEAK)),
    "tanh": Flat(weak=(-2.178, 2.178)),
    "softsign": Flat(weak=(-3.472, 3.472)),
    "erf": Flat(weak=(-1.731, 1.731)),
    "gelu": Flat(faint_below=-5.82),
    "gelu_tanh": Flat(faint_below=-5.82),
    "silu": Flat(faint_below=-19.07),
    "elu": Flat(faint_below=-16.12),
    "selu": Flat(faint_below=-16.69),
    "mish": Flat(faint_below=-19.07),
}


def flat(curve: str | None) -> Flat | None:
    """The flat parts of an activation; None where it has none, or is not known.

    Args:
        curve: as `fanin.moments` takes it, with its arguments.

    >>> flat("hardtanh(-2, 2)")
    Flat(zero_below=-2.0, zero_above=2.0, faint_below=None, weak=(-2.0, 2.0))
    """
    if curve is None:
        return None
    known = moments.find(curve)
    if known.base == "hardtanh":
        low, high = known.arguments
        # One that starts at 0 is a rectifier with a bound: half of its units are off at a time.
        return Flat(zero_below=low, zero_above=high, weak=(low, high) if low < 0 < high else None)
    if known.base == "threshold":
        return Flat(zero_below=known.arguments[0])
    if known.base == "softplus":
        return Flat(faint_below=-16.12 / known.arguments[0])
    if known.base == "celu":
        return Flat(faint_below=-16.12 * known.arguments[0])
    return _FLAT.get(known.base)


def flat_parts(
    curve: str | None, inputs: Tensor, unit_dims: tuple[int, ...]
) -> tuple[float | None, float | None]:
    """Share of dead units, and share of saturated (unit, sample) pairs, of an activation's inputs.

    A unit is dead when its slope is zero, or too faint to count, on the whole batch.  None where it
    does not apply: a smooth activation has no dead share unless some unit is dead; where units
    cannot be told apart (no `unit_dims`) all or none are dead.

    >>> import torch
    >>> flat_parts("relu", torch.tensor([[-1.0, 2.0], [-3.0, -4.0]]), (-1,))
    (0.5, None)
    """
    borders = flat(curve)
    if borders is None or inputs.numel() == 0:
        return None, None
    inputs = inputs.detach()
    mask = dead_units(curve, inputs, unit_dims or tuple(range(inputs.dim())))
    if mask is not None and not unit_dims and not bool(mask.all()):
        mask = None
    dead = None if mask is None else float(mask.float().mean())
    if dead == 0.0 and borders.zero_below is None:
        dead = None
    weak = None
    if borders.weak is not None:
        low, high = borders.weak
        beyond = (inputs > high) | (inputs < low)
        weak = int(torch.count_nonzero(beyond)) / beyond.numel()
    return dead, weak


def constant(curve: str, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which units get inputs between which an activation, of any formula, has one value.

    >>> constant("maximum(z, 0)", np.array([-3.0, -3.0]), np.array([-1.0, 1.0])).tolist()
    [True, False]
    """
    function = moments.function(curve)
    alone = low == high  # a value is no range: whether the function bends about it
    low, high = np.where(alone, low - _ABOUT, low), np.where(alone, high + _ABOUT, high)
    flat: np.ndarray = np.isfinite(low) & np.isfinite(high)
    for points in _POINTS:
        at = np.linspace(low[flat], high[flat], points, axis=1)
        values = function(at.ravel()).reshape(at.shape)
        flat[flat] = np.ptp(values, axis=1) <= _EQUAL * (high - low)[flat]
    return flat


def dead_units(curve: str | None, inputs: Tensor, unit_dims: tuple[int, ...]) -> Tensor | None:
    """Which units of an activation's inputs are flat on the whole batch; None: cannot be told.

    >>> import torch
    >>> dead_units("relu", torch.tensor([[-1.0, 2.0], [-3.0, -4.0]]), (-1,)).tolist()
    [True, False]
    """
    borders = flat(curve)
    if borders is None or not unit_dims or inputs.numel() == 0:
        return None
    border = borders.faint_below if borders.zero_below is None else borders.zero_below
    if border is None:
        return None
    units = {d % inputs.dim() for d in unit_dims}
    others = tuple(d for d in range(inputs.dim()) if d not in units)
    if borders.zero_above is None:  # the largest input decides, and no mask of all is needed
        return (inputs.amax(others) if others else inputs) <= border
    mask = (inputs <= border) | (inputs >= borders.zero_above)
    return mask.all(others) if others else mask
