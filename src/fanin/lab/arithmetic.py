"""The network's arithmetic with every sum in a stated order, in torch autograd.

A browser and a matrix library add the same products in different orders and round differently.
Most starts forget such a difference of 1e-16; weights drawn ten times too large amplify it a
billion times in a thousand steps.  So each sum here runs from the first term to the last, and the
exponential is a formula of basic operations, which IEEE 754 defines to the last bit: the page
(``numbers.js``, the same formulas) then computes the same bits, in any browser.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Cost", "Linear", "Sigmoid", "exponential"]

# Beyond these the exponential is 0 or infinite: within, powers of two are normal numbers.
LIMIT = 708.0
# ln 2 in two parts; the first times a whole number below 2²⁰ is exact (fdlibm, e_exp.c).
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LOG2_E = 1.4426950408889634
# |r| ≤ ln 2 / 2, so the first term left out, r¹⁴/14!, is below 5e-18.
COEFFICIENTS = tuple(1 / math.factorial(n) for n in range(13, -1, -1))
POWERS = torch.tensor([2.0**k for k in range(-1022, 1024)], dtype=torch.float64, device="cpu")


def exponential(x: Tensor) -> Tensor:
    """eˣ in float64 by basic operations alone, within two units in the last place.

    0 below -708 and infinite above 708.

    >>> exponential(torch.tensor([0.0, 3.0], dtype=torch.float64)).tolist()
    [1.0, 20.085536923187668]
    """
    inside = x.clamp(-LIMIT, LIMIT)
    power = torch.floor(inside * LOG2_E + 0.5)
    rest = (inside - power * LN2_HIGH) - power * LN2_LOW
    result = torch.full_like(rest, COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        result = result * rest + coefficient
    result = result * POWERS[power.long() + 1022]
    return torch.where(x > LIMIT, math.inf, torch.where(x < -LIMIT, 0.0, result))


class Linear(torch.autograd.Function):
    """x Wᵀ + b and its gradient, each sum from the first term to the last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Pre-activations [samples, out] of inputs [samples, in]."""
        ctx.save_for_backward(x, weight)
        return _sum(x[:, None, :] * weight, 2) + bias

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""
        (g,) = cotangents
        x, weight = ctx.saved_tensors
        down = _sum(g[:, :, None] * weight, 1)
        return down, _sum(g[:, :, None] * x[:, None, :], 0), _sum(g, 0)


class Sigmoid(torch.autograd.Function):
    """1 / (1 + e⁻ˣ) with the exponential above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The sigmoid of each element."""
        y = 1 / (1 + exponential(-x))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Tensor:
        """The gradient, g · y (1 - y)."""
        (y,) = ctx.saved_tensors
        gradient: Tensor = cotangents[0] * (y * (1 - y))
        return gradient


class Cost(torch.autograd.Function):
    """:class:`fanin.demo.Cost` with the sigmoid above and a correctly rounded sum.

    The gradient is that of the logit, (probability - label) / samples, also where the sigmoid is
    saturated; a product 0 · log 0 counts as missing.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy in nats of logits [samples, 1], a scalar."""
        y = 1 / (1 + exponential(-logits))
        ctx.save_for_backward(y, labels)
        losses = (-y.log() * labels - (1 - y).log() * (1 - labels)).nan_to_num(0.0, posinf=math.inf)
        return logits.new_tensor(math.fsum(losses.flatten().tolist()) / len(labels))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor, None]:
        """The gradient of the logits."""
        y, labels = ctx.saved_tensors
        return cotangents[0] * (y - labels) / len(labels), None


def _sum(terms: Tensor, dim: int) -> Tensor:
    """The sum from the first term to the last; ``Tensor.sum`` adds in blocks."""
    return terms.cumsum(dim).select(dim, -1)
