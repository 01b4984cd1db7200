"""The training loop of a comparison: the same for every start, stopped where it diverges."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fanin.comparing.batches import Batches, cause
from fanin.comparing.record import Run
from fanin.errors import ArgumentError, FaninError, ForwardError, LossError
from fanin.guard import reseed
from fanin.mapped import is_mapped
from fanin.nested import arguments, tensors_in

__all__ = ["OPTIMIZERS", "Training", "every", "train_"]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = MappingProxyType(
    {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
)

# Intervals between records: about what a plot of 100 columns can show apart ...
_INTERVALS = 50
# ... and fewer with many batches, so that the mean over an interval is no matter of luck.
_MEANS = 20
# A loss this many times the one at the start is beyond what a bumpy first phase shows ...
_BLOWN_UP = 10.0
# ... when it stays there for this many steps; a single spike often heals.
_PATIENCE = 20


@dataclass(frozen=True)
class Training:
    """How every start is trained.

    Attributes:
        batches: the batch of every step.
        loss: of an output, or of an output and a target; None uses the output's own ``.loss``.
        steps: updates, at least 1.
        optimizer: called with the parameters and ``lr=``.
        every: updates from one record to the next.
        accuracy: takes what the loss takes and gives a share (0 to 1); None counts the right
            guesses where a known classification loss is computed.
    """

    batches: Batches
    loss: Callable[..., Any] | None
    steps: int
    optimizer: Callable[..., torch.optim.Optimizer]
    every: int
    accuracy: Callable[..., Any] | None = None


def every(steps: int, many: bool) -> int:
    """Updates from one record to the next, with one batch or with many.

    >>> every(30, many=False), every(200, many=False), every(200, many=True)
    (1, 4, 10)
    """
    return -(-steps // (_MEANS if many else _INTERVALS))


def train_(
    model: nn.Module,
    training: Training,
    *,
    rate: float,
    seed: int = 0,
    tell: Callable[[int, float], None] | None = None,
) -> Run:
    """Train `model` in place, in the mode it is in, and record the curve.

    With one batch the recorded loss is that before each update and after the last; with many it
    is the mean over the steps since the record before.  A training is stopped where the loss is
    NaN, or stays above ten times that at the start.  The random states of the process are set:
    the caller keeps them.

    Args:
        model: is trained, so give a copy.
        training: batches, loss, steps, optimizer.
        rate: learning rate.
        seed: of everything random in the training (dropout).
        tell: told the updates made and the loss at every record.

    Raises:
        ForwardError: model, loss, backward or optimizer raised.
        LossError: the loss is not a scalar, or the output has none.
        ArgumentError: the optimizer cannot be made, or the accuracy is not a number.

    >>> model, x = nn.Linear(2, 1), torch.ones(4, 2)
    >>> batches = Batches(lambda _: x, many=False, paired=False)
    >>> plan = Training(batches, lambda y: y.square().mean(), 10, torch.optim.SGD, every=5)
    >>> train_(model, plan, rate=0.1).at
    (0, 5, 10)
    """
    reseed(seed)
    optimizer = _optimizer(training, model, rate)
    curve, watch = _Curve(), _Divergence()
    many, steps = training.batches.many, training.steps
    last = steps - 1 if many else steps  # with one batch, once more after the last update
    why = None
    for step in range(last + 1):
        due = step % training.every == 0 or step == last
        try:
            value, accuracy = _forward(model, training, step, many or due)
            loss = float(value.detach())
            why = watch.reason(step, loss)
            if why is None and step < steps:
                _update_(optimizer, value)
        except FaninError:
            raise
        except Exception as error:
            raise ForwardError(
                f"model: step {step:,} of its training raised {cause(error)}"
            ) from error
        if many or due or why:
            curve.add(loss, accuracy)
        if due or why:
            curve.close(step)
            if tell is not None:
                tell(step, loss)
        if why is not None:
            break
    if why is None and not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        why = f"a parameter is not finite after {steps:,} steps"
    return Run(rate, seed, tuple(curve.at), tuple(curve.losses), curve.known(), why)


class _Curve:
    """The points so far: at each, the means over what was added since the one before."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.losses: list[float] = []
        self._accuracies: list[float | None] = []
        self._window: list[tuple[float, float | None]] = []

    def add(self, loss: float, accuracy: float | None) -> None:
        self._window.append((loss, accuracy))

    def close(self, step: int) -> None:
        losses = [loss for loss, _ in self._window]
        shares = [share for _, share in self._window if share is not None]
        self.at.append(step)
        self.losses.append(sum(losses) / len(losses))
        self._accuracies.append(sum(shares) / len(shares) if shares else None)
        self._window.clear()

    def known(self) -> tuple[float, ...]:
        """The accuracies, or nothing where one is missing."""
        known = tuple(share for share in self._accuracies if share is not None)
        return known if len(known) == len(self.at) else ()


class _Divergence:
    """Tells from the losses, one after another, whether a training is lost.

    NaN never heals.  Infinity can: a saturated sigmoid costs -log 0 and still has a gradient, so
    it counts as a loss above the limit.
    """

    def __init__(self) -> None:
        self._limit: float | None = None
        self._above = 0

    def reason(self, step: int, loss: float) -> str | None:
        if math.isnan(loss):
            return f"the loss is NaN at step {step:,}"
        if self._limit is None:
            # A loss that starts at zero has no scale, and so no limit.
            self._limit = loss + (_BLOWN_UP - 1) * abs(loss) if loss else math.inf
        self._above = self._above + 1 if loss > self._limit else 0
        if self._above < _PATIENCE:
            return None
        return f"the loss was above {_BLOWN_UP:.0f} × its start for {_PATIENCE} steps to {step:,}"


class _Guesses(TorchFunctionMode):
    """Counts right guesses where a classification loss is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self._shares: list[float | None] = []

    @property
    def share(self) -> float | None:
        """Share of right guesses, where exactly one loss told it."""
        return self._shares[0] if len(self._shares) == 1 else None

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        right = _RIGHT.get(func)
        if right is not None and not any(map(is_mapped, tensors_in((args, kwargs)))):
            given = dict(zip(("input", "target"), args, strict=False)) | kwargs
            with torch.no_grad():
                hits = right(given)
            self._shares.append(float(hits.double().mean()) if hits.numel() else None)
        return func(*args, **kwargs)


def _classes(given: Mapping[str, Any]) -> Tensor:
    """Which samples are guessed right, of scores [N, C, *] and classes [N, *] or shares [N, C, *].

    A target of `ignore_index` is left out.
    """
    scores, target = given["input"], given["target"]
    axis = 0 if scores.dim() == 1 else 1
    guess = scores.argmax(axis)
    if target.is_floating_point():
        return torch.eq(guess, target.argmax(axis))
    return torch.eq(guess, target)[target != given.get("ignore_index", -100)]


def _binary(threshold: float) -> Callable[[Mapping[str, Any]], Tensor]:
    """Which of the entries are guessed right; none counts where the targets are shares."""

    def right(given: Mapping[str, Any]) -> Tensor:
        scores, target = given["input"], given["target"]
        hard = bool(((target == 0) | (target == 1)).all())
        return torch.eq(scores > threshold, target > 0.5)[... if hard else slice(0)]

    return right


_RIGHT: Mapping[Any, Callable[[Mapping[str, Any]], Tensor]] = MappingProxyType(
    {
        F.cross_entropy: _classes,
        F.nll_loss: _classes,
        F.binary_cross_entropy: _binary(0.5),
        F.binary_cross_entropy_with_logits: _binary(0.0),
    }
)


def _forward(
    model: nn.Module, training: Training, step: int, counted: bool
) -> tuple[Tensor, float | None]:
    """The loss of a step, and its accuracy where that is wanted and known."""
    inputs, target = training.batches.at(step)
    args, kwargs = arguments(inputs)
    guesses = _Guesses() if counted and training.accuracy is None else None
    with guesses or nullcontext():
        output = model(*args, **kwargs)
        value = _own_loss(output) if training.loss is None else training.loss(output, *target)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise LossError(f"loss: step {step:,} gave {value!r:.40}; a scalar tensor is needed")
    if guesses is not None:
        return value.reshape(()), guesses.share
    if not counted or training.accuracy is None:
        return value.reshape(()), None
    return value.reshape(()), _accuracy(training.accuracy, output, *target)


def _update_(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step against the gradient of `loss`."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _own_loss(output: Any) -> Any:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if own is None:
        raise LossError("loss: the output has no .loss, so a loss is needed to train on")
    return own


def _accuracy(accuracy: Callable[..., Any], output: Any, *target: Any) -> float:
    with torch.no_grad():
        share = accuracy(output, *target)
    try:
        return float(share)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"accuracy: it returned {share!r:.40}; a number from 0 to 1 is needed"
        ) from error


def _optimizer(training: Training, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        made: object = training.optimizer(trainable, lr=rate)
    except Exception as error:
        raise ArgumentError(
            f"optimizer: called with the parameters and lr={rate:g}, it raised {cause(error)}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ArgumentError(
            f"optimizer: it returned {type(made).__name__}; a torch.optim.Optimizer is needed"
        )
    try:
        inspect.signature(made.step).bind()
    except TypeError as error:
        raise ArgumentError(
            f"optimizer: {type(made).__name__} evaluates the loss several times in one step; one "
            "that steps on the gradient alone is needed"
        ) from error
    return made
