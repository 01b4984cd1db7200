"""What a known loss makes of a model that guesses: by chance at classes, zero at numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "CRITERIA",
    "DIFFERENCES",
    "FAR",
    "PARTS",
    "Guess",
    "Targets",
    "by_hand",
    "guessing",
    "subtracted",
    "targets",
]

CRITERIA = frozenset({
    "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "binary_cross_entropy",
    "ctc_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
})  # fmt: skip
# What classification losses written by hand are made of, given scores.
PARTS = frozenset({"softplus", "log_sigmoid", "logsigmoid", "log_softmax", "logsumexp"})
# What regression losses written by hand begin with: (output − target)².
DIFFERENCES = frozenset({"sub", "rsub", "subtract"})

# How far off outputs may be, as a multiple of zero, before a regression loses many steps by it.
# MLPs whose weights, or head, are too large: some train as well as any up to ×13.5; from ×28 all
# end at 50 to 1e5 times the loss (300 steps at the best of five rates).  Tables of variance 1 whose
# rows are multiplied: ×24 at width 512, as good as any.  Healthy zoo: up to ×1.25.
FAR = 32.0
# What a regression loss may be given beside output and target.
_OPTIONS = frozenset({"reduction", "beta", "delta"})


class Targets(NamedTuple):
    """The targets of a regression.

    Attributes:
        rms: their size.
        guess: the loss of outputs of zero, and of outputs `FAR` times as far off; None where the
            loss is no single number.  Targets whose size is below 1 are taken as if it were 1.
    """

    rms: float
    guess: tuple[float, float] | None


class Guess(NamedTuple):
    """What a known function makes of a guess.

    Attributes:
        unit: the mean loss of one guess: ln C for C classes, ln 2 for two.
        result: what the function gives for scores that are all equal, zero where they are logits.
        scores: what a part of a loss written by hand is given; None of a whole loss.
        dim: that the classes are along, where there are some.
    """

    unit: float
    result: float | Tensor
    scores: Tensor | None = None
    dim: int = -1


def guessing(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Guess | None:
    """What guessing makes of a classification loss, or of a part of one; None for other functions.

    >>> round(guessing("cross_entropy", (torch.zeros(8, 10), torch.zeros(8)), {}).unit, 3)
    2.303
    """
    scores, target = _given(args, kwargs)
    if scores is None:
        return None
    if name in PARTS:
        return _of_part(name, scores, args, kwargs)
    if target is None or _is_regression(name):
        return None
    classes = 2 if name.startswith("binary") else [1, *scores.shape][min(2, scores.dim())]
    classes = scores.shape[-1] if name == "ctc_loss" else classes
    if classes < 2:
        return None
    unit = math.log(classes)
    options = [*args[2:], *(kwargs.get(k) for k in _WEIGHING)]
    usual = all(v is None or (isinstance(v, str) and v == "mean") for v in options)
    if usual and name != "ctc_loss":  # which has many ways to guess one target
        return Guess(unit, unit)
    equal = {"nll_loss": -unit, "ctc_loss": -unit, "binary_cross_entropy": 0.5}.get(name, 0.0)
    given = {k: v for k, v in kwargs.items() if k not in ("input", "log_probs")}
    loss: Any = getattr(nn.functional, name)
    try:
        return Guess(unit, loss(torch.full_like(scores.detach(), equal), *args[1:], **given))
    except (RuntimeError, TypeError, ValueError):  # the loss itself will say what is wrong
        return None


# Options by which a classification loss is no plain mean.
_WEIGHING = frozenset({"weight", "pos_weight", "reduction", "size_average", "reduce"})


def _of_part(
    name: str, scores: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Guess | None:
    if name in ("softplus", "log_sigmoid", "logsigmoid"):
        plain = len(args) < 2 and not {"beta", "threshold"} & kwargs.keys()
        unit = math.log(2)
        return Guess(unit, unit if name == "softplus" else -unit, scores) if plain else None
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(dim, int) or scores.dim() == 0 or scores.shape[dim] < 2:
        return None
    unit = math.log(scores.shape[dim])
    return Guess(unit, unit if name == "logsumexp" else -unit, scores, dim)


def targets(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Targets | None:
    """What is known of the targets of a regression; None for other losses.

    The target is what has no gradient, as it may be given first.

    >>> out = torch.zeros(4, requires_grad=True)
    >>> targets("mse_loss", (torch.full((4,), 2.0), out), {})
    Targets(rms=2.0, guess=(4.0, 4096.0))
    """
    pair = [t for t in _given(args, kwargs) if t is not None]
    fixed = [t for t in pair if not t.requires_grad]
    if not _is_regression(name) or len(pair) != 2 or len(fixed) != 1:
        return None
    rms, wanted = _sized(fixed[0])
    options = {k: v for k, v in kwargs.items() if k in _OPTIONS}
    loss: Any = getattr(nn.functional, name)
    try:  # torch's own function for it imports sympy at its first call: half a second and more
        wanted = wanted.expand(np.broadcast_shapes(*(t.shape for t in pair)))
        zero = torch.zeros_like(wanted)
        near, far = (loss(zero, k * wanted, *args[2:], **options) for k in (1.0, FAR))
    except (RuntimeError, TypeError, ValueError):  # the loss itself will say what is wrong
        return Targets(rms, None)
    return Targets(rms, (float(near), float(far)) if near.numel() == 1 else None)


def _sized(target: Tensor) -> tuple[float, Tensor]:
    """The size of a target, and the target as it is where that is 1 or more, else of size 1."""
    wanted = target.detach().double()
    rms = float(wanted.square().mean().sqrt())
    return rms, wanted / min(rms, 1.0) if rms > 0.0 else torch.ones_like(wanted)


def subtracted(args: tuple[Any, ...]) -> Tensor | None:
    """What may be a target: of two tensors of one shape the one that has no gradient."""
    pair = [t for t in args[:2] if isinstance(t, Tensor)]
    fixed = [t.detach() for t in pair if not t.requires_grad]
    alike = len(pair) == 2 and pair[0].shape == pair[1].shape
    return fixed[0] if alike and len(fixed) == 1 and fixed[0].is_floating_point() else None


def by_hand(target: Tensor, power: float, mean: bool) -> Targets:
    """Targets of the mean, or sum, of |output − target| to a power.

    >>> by_hand(torch.full((4,), 2.0), power=2.0, mean=True)
    Targets(rms=2.0, guess=(4.0, 4096.0))
    """
    rms, wanted = _sized(target)
    near = float(wanted.abs().pow(power).mean()) * (1 if mean else wanted.numel())
    return Targets(rms, (near, near * FAR**power))


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    first = args[0] if args else kwargs.get("input", kwargs.get("log_probs"))
    second = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("targets"))
    return (
        first if isinstance(first, Tensor) else None,
        second if isinstance(second, Tensor) else None,
    )


def _is_regression(name: str) -> bool:
    return name.endswith("l1_loss") or name in ("mse_loss", "huber_loss")
