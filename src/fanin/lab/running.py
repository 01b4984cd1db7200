"""The article's network trained step by step, and what its units have in common at each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from fanin import fill_
from fanin.demo import (
    LEARNING_RATE,
    TEST,
    TRAIN,
    WEIGHT_SEED,
    accuracy,
    network,
    samples,
    starts,
)
from fanin.errors import ArgumentError
from fanin.lab.arithmetic import Cost, Linear, Sigmoid
from fanin.sketch import labels

__all__ = [
    "ACTIVATIONS",
    "BREAK",
    "CHANGES",
    "DRAWN",
    "STARTS",
    "TOLERANCE",
    "LayerState",
    "State",
    "model",
    "run",
    "weights",
]

CONSTANT = 0.5
BREAK = 1e-3  # added to one weight: small beside 0.5, and far above any rounding
# Two units are one when pre-activations and cotangents agree to this share of their norm; the
# figure of fanin's own proof (fanin.symmetry).
TOLERANCE = 1e-9

#: Name of a start -> how its weights are made. Biases are zero.
STARTS: Mapping[str, str] = MappingProxyType(
    {
        "zeros": "every weight 0",
        "constant": f"every weight {CONSTANT}",
        "small": "randn × 0.01",
        "large": "randn × 10",
        "Xavier": "randn × √(1 / fan in)",
        "He": "randn × √(2 / fan in)",
        "Glorot": "randn × √(2 / (fan in + fan out))",
        "orthogonal": "orthogonal rows or columns × √2",
    }
)
#: Those that fanin.demo draws under another name.
DRAWN: Mapping[str, str] = MappingProxyType({"small": "randn×0.01", "large": "randn×10"})

#: Activations of the two hidden layers.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
)

#: What is done to the start: nothing, 1e-3 added to the first weight of a layer, or a layer's
#: weights set to zero.
CHANGES = ("none", "break 1", "break 2", "break 3", "zero 1", "zero 2", "zero 3")

Weights = list[tuple[np.ndarray, np.ndarray]]

_linear: Callable[[Tensor, Tensor, Tensor], Tensor] = Linear.apply
_sigmoid: Callable[[Tensor], Tensor] = Sigmoid.apply
_cost: Callable[[Tensor, Tensor], Tensor] = Cost.apply


@dataclass(frozen=True)
class LayerState:
    """One layer at one step.

    ``weights`` [out][in] and ``biases`` [out].  ``distinct`` of its units really differ.
    ``inputs`` (pre-activations), ``outputs``, ``gradients`` and ``updates`` (of the incoming
    weights) are the largest absolute differences between any two units; 0 is equal in every bit.
    """

    weights: tuple[tuple[float, ...], ...]
    biases: tuple[float, ...]
    distinct: int
    inputs: float
    outputs: float
    gradients: float
    updates: float


@dataclass(frozen=True)
class State:
    """The network after ``step`` updates: cost in nats, accuracies (0 to 1), and its layers."""

    step: int
    cost: float
    train: float
    test: float
    layers: tuple[LayerState, ...]


def weights(start: str, change: str = "none") -> Weights:
    """The starting weights: one pair (weight [out, in], bias [out, 1]) per layer, in float64.

    Raises:
        ArgumentError: unknown start or change.

    Example:
        >>> weight, bias = weights("constant", "break 1")[0]
        >>> weight[:2].tolist()
        [[0.501, 0.5], [0.5, 0.5]]
    """
    _one_of("start", start, STARTS)
    _one_of("change", change, CHANGES)
    drawn = starts()
    if start == "constant":
        made = [(np.full_like(w, CONSTANT), b) for w, b in drawn["zeros"]]
    elif start == "orthogonal":
        made = [(_orthogonal(w.shape, k), b) for k, (w, b) in enumerate(drawn["zeros"], 1)]
    else:
        made = drawn[DRAWN.get(start, start)]
    if change != "none":
        what, layer = change.split()
        weight = made[int(layer) - 1][0]
        if what == "break":
            weight[0, 0] += BREAK
        else:
            weight[:] = 0.0
    return made


def model(start: str, activation: str = "relu", change: str = "none") -> nn.Sequential:
    """The network as a plain torch model: points [samples, 2] to probabilities [samples, 1].

    Raises:
        ArgumentError: unknown start, activation or change.

    Example:
        >>> model("He", "tanh")[1]
        Tanh()
    """
    _one_of("activation", activation, ACTIVATIONS)
    made = network(weights(start, change))
    made[1], made[3] = ACTIVATIONS[activation](), ACTIVATIONS[activation]()
    return made


def run(
    start: str,
    activation: str = "relu",
    change: str = "none",
    steps: Sequence[int] = (0, 1, 10, 1000),
) -> tuple[State, ...]:
    """Train by full-batch gradient descent and tell the state at some steps.

    The arithmetic is that of :mod:`fanin.lab.arithmetic`, so that the page can be compared with it;
    learning rate 0.01, float64, the 300 training points of :mod:`fanin.demo`.

    Args:
        start: a name from ``STARTS``.
        activation: of the hidden layers, a name from ``ACTIVATIONS``.
        change: one of ``CHANGES``.
        steps: numbers of updates, each from 0.

    Returns:
        The states in ascending order of steps, each once.

    Raises:
        ArgumentError: unknown start, activation or change, or a step that is no whole number
            from 0.

    Example:
        >>> before, after = run("constant", "tanh", steps=(0, 100))
        >>> after.layers[0].distinct, after.layers[0].inputs
        (1, 0.0)
        >>> after.cost < before.cost
        True

    Source: the exercise "Initialization" of deeplearning.ai, see :mod:`fanin.demo`.
    """
    for step in steps:
        if type(step) is not int or step < 0:
            raise ArgumentError(f"steps: {step!r} is not a whole number from 0")
    made = model(start, activation, change)
    parameters = [p.detach() for p in made.parameters()]
    wanted, states = set(steps), []
    train, test = samples(*TRAIN), samples(*TEST)
    for step in range(max(wanted, default=-1) + 1):
        for parameter in parameters:
            parameter.requires_grad_()
        passed = _forward(parameters, made[1], train[0])
        cost = _cost(passed[-1][0], train[1])
        received = torch.autograd.grad(cost, [*parameters, *(z for z, _ in passed)])
        gradients, cotangents = received[: len(parameters)], received[len(parameters) :]
        # Not the optimizer's step: it fuses the product with the sum, which rounds once less.
        moved = [
            (p - LEARNING_RATE * g).detach() for p, g in zip(parameters, gradients, strict=True)
        ]
        if step in wanted:
            layers = _layers(parameters, moved, gradients, passed, cotangents)
            right = accuracy(passed[-1][0], train[1])
            new = accuracy(_forward(parameters, made[1], test[0])[-1][0], test[1])
            states.append(State(step, cost.item(), right, new, layers))
        parameters = moved
    return tuple(states)


def _forward(
    parameters: Sequence[Tensor], activation: nn.Module, points: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Pre-activation and output of each layer; the last one's output is a probability."""
    result: list[tuple[Tensor, Tensor]] = []
    x = points
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        z = _linear(x, weight, bias)
        last = weight is parameters[-2]
        x = _sigmoid(z) if last or isinstance(activation, nn.Sigmoid) else activation(z)
        result.append((z, x))
    return result


def _layers(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    gradients: Sequence[Tensor],
    passed: Sequence[tuple[Tensor, Tensor]],
    cotangents: Sequence[Tensor],
) -> tuple[LayerState, ...]:
    """Each layer at one step: parameters before and after its update, and what led to it."""
    result = []
    for depth, ((z, output), cotangent) in enumerate(zip(passed, cotangents, strict=True)):
        weight, bias = before[2 * depth].detach(), before[2 * depth + 1].detach()
        result.append(
            LayerState(
                weights=tuple(map(tuple, weight.tolist())),
                biases=tuple(bias.tolist()),
                distinct=_distinct(z.detach(), cotangent),
                inputs=_spread(z.detach().T),
                outputs=_spread(output.detach().T),
                gradients=_spread(gradients[2 * depth]),
                updates=_spread(after[2 * depth] - weight),
            )
        )
    return tuple(result)


def _distinct(z: Tensor, cotangent: Tensor) -> int:
    """Units that differ: in pre-activation or cotangent on the data."""
    first = labels(z.T.numpy(), TOLERANCE)
    second = labels(cotangent.T.numpy(), TOLERANCE)
    return len(set(zip(first.tolist(), second.tolist(), strict=True)))


def _spread(rows: Tensor) -> float:
    """Largest difference between any two rows, over all entries."""
    return float((rows.amax(0) - rows.amin(0)).max())


def _orthogonal(shape: tuple[int, ...], layer: int) -> np.ndarray:
    weight = torch.empty(*shape, dtype=torch.float64, device="cpu")
    fill_(weight, "orthogonal", gain=2**0.5, seed=WEIGHT_SEED, name=f"layer{layer}.weight")
    return weight.numpy()


def _one_of(name: str, value: str, allowed: Mapping[str, object] | Sequence[str]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
