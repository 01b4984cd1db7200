"""One watched forward and backward pass: its layers, its loss, its gradients, what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fanin.architecture import Architecture, Layer, read
from fanin.calls import Call, Trace
from fanin.errors import ForwardError, LossError
from fanin.focus import Focus
from fanin.guard import Guard, private, reseed
from fanin.guesses import Chance, chance, regressions, terms_of_loss
from fanin.nested import inputs_in, map_batch, tensors_in
from fanin.operations import Weighted
from fanin.probe import Cell, Recorder, rms
from fanin.trace import Adjust, Watch, trace
from fanin.written import written_after

__all__ = ["Noise", "Pass", "Stand", "Subject", "run_pass"]


@dataclass(frozen=True)
class Subject:
    """What is checked, and how: the same in the first pass and in the virtual steps.

    Attributes:
        model: under check.
        batch: a tensor, a tuple of positional or a dict of keyword arguments.
        loss: from the output to a scalar, or None.
        guard: keeps everything as it was.
        seed: of everything random.
        samples: batch size, None when it cannot be known.
    """

    model: nn.Module
    batch: Any
    loss: Callable[[Any], Tensor] | None
    guard: Guard
    seed: int
    samples: int | None


class Noise:
    """Numbers that no two entries of a tensor have in common.

    Args:
        seed: of their generator.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed % 2**63)

    def like(self, tensor: Tensor) -> Tensor:
        """Normal noise of the tensor's size; of zeros, that of a usual vector as long as a row."""
        drawn = torch.randn(
            tensor.shape, generator=self._generator, dtype=torch.float64, device="cpu"
        )
        width = max(1, tensor.shape[-1] if tensor.dim() else 1)
        return drawn.to(tensor) * (rms(tensor) or 1.0 / math.sqrt(width))

    def added(self, tensor: Tensor) -> Tensor:
        """A floating tensor with noise; integers in another order, and of a picture other bytes."""
        if tensor.layout != torch.strided:
            return tensor
        if tensor.is_floating_point():
            return tensor + self.like(tensor.detach())
        if tensor.dtype == torch.uint8 and tensor.dim() > 2:
            drawn = torch.randint(0, 256, tensor.shape, generator=self._generator, device="cpu")
            return drawn.to(tensor)
        if tensor.dtype not in (torch.int32, torch.int64):
            return tensor
        order = torch.randperm(tensor.numel(), generator=self._generator, device="cpu")
        return tensor.flatten()[order.to(tensor.device)].reshape(tensor.shape)


@dataclass(frozen=True)
class Stand:
    """What stands in for the model's own tensors in a virtual step; else these themselves.

    Attributes:
        call: runs the model with other tensors in the place of its own.
        batch: that it is run on, in the dtype of `promote`.
        parameters: path → the tensor that stands in.
        substitute: id of one of the model's own tensors → its stand-in, wherever it still turns up.
        promote: floating dtype that every result is brought to, or None.
        noise: makes another batch of the one that there is, and another loss; None for neither.
    """

    call: Callable[..., Any]
    batch: Any
    parameters: Mapping[str, Tensor]
    substitute: Mapping[int, Tensor]
    promote: torch.dtype | None
    noise: Noise | None = None


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Attributes:
        architecture: the layers that were seen.
        loss: value of the loss, or of the random linear functional without one.
        named_loss: whether `loss` is the user's (or the model's own).
        chance: the loss of guessing, where that is known of a classification loss.
        target_rms: size of the target of a regression loss, the largest of a sum of such.
        guess: loss of guessing zero, where it is known regression losses, and loss of outputs
            `criteria.FAR` times as far off; targets smaller than 1 are taken as if of size 1.
        gradients: RMS of each trainable parameter's gradient; None for one that has none.
        cells: what was measured at each weighted call, by its index.
        picked: variation across samples of the results that are a part of what they are given, such
            as one token of many, by their call.
        first_bad: (call, value) of the first result outside of the range that was watched for.
        focus: what the queries of an attention look at, by the call of its softmax, or of it all.
        heard: calls whose result has a gradient that is not all zero, where that was listened for.
        absorbed: biases that a norm of each unit, over the batch, takes away again.
        first_bad_gradient: output of a call at which the gradient was not finite first, on its way
            back; looked for where `first_bad` is.
    """

    architecture: Architecture
    loss: float
    named_loss: bool
    chance: Chance | None
    gradients: Mapping[str, float | None]
    cells: Mapping[int, Cell]
    picked: Mapping[int, float] = field(default_factory=dict)
    focus: Mapping[int, Focus] = field(default_factory=dict)
    target_rms: float | None = None
    guess: tuple[float, float] | None = None
    first_bad: tuple[Call, float] | None = None
    first_bad_gradient: Call | None = None
    heard: frozenset[int] = frozenset()
    absorbed: frozenset[str] = frozenset()

    @cached_property
    def largest(self) -> float:
        """The largest finite gradient of a parameter; 0 where there is none."""
        known = (g for g in self.gradients.values() if g is not None and math.isfinite(g))
        return max(known, default=0.0)

    def cells_of(self, layer: Layer) -> list[Cell]:
        """What was measured at the calls of one of its layers."""
        return [self.cells[i] for i in layer.calls if i in self.cells]


def run_pass(
    subject: Subject, recorder: Recorder, stand: Stand | None = None
) -> tuple[Pass, dict[str, Tensor | None]]:
    """One watched forward and backward pass, with the gradient of each trainable parameter.

    Raises:
        ForwardError: model, loss or backward raised.
        LossError: the loss is not a scalar connected to a parameter.
    """
    reseed(subject.seed)
    model = subject.model
    if stand is None:
        stand = Stand(model, subject.batch, dict(model.named_parameters()), {}, None)
    watch, seen, value, named = _forward(subject, recorder, stand)
    architecture = read(seen, model)
    absorbed = recorder.absorb(architecture.followers)
    for index in recorder.ranges:
        written = written_after(architecture, index)
        if written is not None and not written.scaled:
            recorder.written(index, written.end, written.curve)
    gradients = _gradients(watch, value, stand.parameters)
    loss = float(value.detach())
    size, guess = _aims(architecture, recorder, loss) if named else (None, None)
    result = Pass(
        architecture=architecture,
        loss=loss,
        named_loss=named,
        chance=chance(architecture, recorder.parts.found, loss) if named else None,
        target_rms=size,
        guess=guess,
        gradients={n: None if g is None else rms(g) for n, g in gradients.items()},
        cells=recorder.cells,
        picked=recorder.picked,
        focus=recorder.focus,
        first_bad=recorder.first_bad,
        first_bad_gradient=recorder.first_bad_gradient,
        heard=frozenset(recorder.heard),
        absorbed=frozenset(_absorbed(architecture, absorbed, model)),
    )
    return result, gradients


# What a loss has above its terms by rounding alone: some 1e-7 of it for each in float32.
_ROUNDING = 1e-5


def _aims(
    architecture: Architecture, recorder: Recorder, loss: float
) -> tuple[float | None, tuple[float, float] | None]:
    """Size of the targets of a loss that is a sum of regressions, and what guessing zero costs."""
    by_hand = regressions(architecture, recorder.differences)
    sizes = recorder.targets | {i: known.rms for i, known in by_hand.items()}
    costs = recorder.guesses | {i: known.guess for i, known in by_hand.items() if known.guess}
    size = max((sizes[i] for i, _ in terms_of_loss(architecture, sizes)), default=None)
    terms = terms_of_loss(architecture, costs)
    if not terms or not recorder.numbers:  # a pass that measures nothing but gradients
        return size, None
    rest = loss - sum(times * float(recorder.numbers[i]) for i, times in terms)  # added to them
    rest = rest if abs(rest) > _ROUNDING * abs(loss) else 0.0
    near, far = (rest + sum(times * costs[i][k] for i, times in terms) for k in (0, 1))
    return size, (near, far)


def _absorbed(architecture: Architecture, calls: set[int], model: nn.Module) -> Iterator[str]:
    modules = dict(model.named_modules())
    for index in calls:
        norms = [modules.get(after.module) for after in architecture.followers[index]]
        if all(norm is not None and norm.training for norm in norms):  # else by what it remembers
            for operand in architecture.trace.calls[index].operands:
                if operand.role == "bias":
                    yield from operand.parameters


def _forward(
    subject: Subject, recorder: Recorder, stand: Stand
) -> tuple[Watch, Trace, Tensor, bool]:
    """The forward pass: its watch, its trace, what is to be differentiated, and whether that is a
    loss.  What the backward pass needs of the output, the graph keeps."""
    given, noise = list(inputs_in(subject.batch)), stand.noise
    subject.guard.keep_gradients(given)
    batch = stand.batch if noise is None else map_batch(noise.added, stand.batch)
    batch = private(batch, attached=subject.loss is not None)
    # A loss that takes derivatives by the batch means the copy that the model was given.
    pairs = zip(given, inputs_in(batch), strict=True)
    substitute = {id(own): copy for own, copy in pairs if own.requires_grad}
    extra = ({**substitute, **stand.substitute}, stand.promote)
    watch = Watch(subject.model, stand.parameters.items(), subject.guard, recorder, *extra)
    recorder.calls = watch.calls
    if noise is not None:
        watch.adjust(_other_rows(watch, noise))
        recorder.judged = []
    seen, output, value = trace(stand.call, batch, subject.loss, watch)
    if recorder.judged is not None:
        other = _other_loss(watch, seen, output, recorder.judged, subject)
        value = value if other is None else other
    return (watch, seen, *_objective(output, value, subject.seed))


def _gradients(
    watch: Watch, value: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """The gradient of each trainable parameter; None for what the loss does not depend on.

    A function that computes its blocks anew on the way back (reversible networks) runs a backward
    pass of its own, which leaves their gradients in ``.grad``.
    """
    wanted = {n: p for n, p in parameters.items() if p.requires_grad}
    try:
        with _set_aside(wanted.values()):
            returned = watch.gradients(value, [*wanted.values()])
            pairs = zip(wanted.values(), returned, strict=True)
            found = [p.grad if g is None else g for p, g in pairs]
    except Exception as error:
        told = " ".join(str(error).split())
        if "use_reentrant=True" in told:
            told = "a checkpoint with use_reentrant=True cannot be checked; use use_reentrant=False"
        raise ForwardError(
            f"model: its backward pass raised {type(error).__name__}: {told}"
        ) from error
    if all(g is None for g in found):
        raise LossError("loss: it is not connected to any trainable parameter of the model")
    return dict(zip(wanted, found, strict=True))


@contextmanager
def _set_aside(parameters: Collection[Tensor]) -> Iterator[None]:
    """No parameter has a gradient at the start of a block; behind it each has its own again."""
    kept = [p.grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _other_rows(watch: Watch, noise: Noise) -> Adjust:
    """Adds noise to the rows that the batch picks of a table."""

    def adjust(weighted: Weighted, _: object, made: Tensor, __: object) -> Tensor:
        picked = weighted.op == "embedding" and watch.producers(weighted.inputs)
        return noise.added(made) if picked else made

    return adjust


def _other_loss(
    watch: Watch, seen: Trace, output: Any, judged: list[Tensor], subject: Subject
) -> Tensor | None:
    """A random functional of what the loss has read: outputs, or inside of the model what a known
    loss was given; None where neither is known.

    What a model gives beside (hidden states, its queries) is no aim of its training.
    """
    read = {i for call in seen.calls[seen.length :] for i in call.inputs}
    outputs = [t for t in tensors_in(output) if t.requires_grad]
    outputs = [t for t in outputs if read.intersection(watch.producers(t))]
    found = outputs or [t for t in judged if t.requires_grad]
    return _functional(found, subject.seed) if found else None


def _objective(output: Any, value: Any, seed: int) -> tuple[Tensor, bool]:
    """The scalar to differentiate: the loss, or a random linear functional of the output."""
    if value is not None:
        if value.numel() != 1 or not value.is_floating_point():
            kind = f"{tuple(value.shape)} of {value.dtype}"
            raise LossError(f"loss: it returned a tensor {kind}; a real floating scalar is needed")
        if not value.requires_grad:
            raise LossError("loss: it is not connected to any trainable parameter of the model")
        return value.reshape(()), True
    outputs = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
    if not outputs:
        raise LossError("model: its output holds no floating tensor; give a loss")
    if not any(t.numel() for t in outputs):
        shapes = ", ".join(str(list(t.shape)) for t in outputs)
        raise LossError(f"model: its output is empty ({shapes}); give a batch that it answers to")
    outputs = [t for t in outputs if t.requires_grad]
    if not outputs:
        raise LossError("model: its output is not connected to any trainable parameter")
    return _functional(outputs, seed), False


def _functional(outputs: list[Tensor], seed: int) -> Tensor:
    """Σ cᵢ·outputᵢ with cᵢ ~ N(0, 1): a generic cotangent of unit scale at every output."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for tensor in outputs:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weights = torch.randn(real.shape, generator=generator, dtype=torch.float64, device="cpu")
        terms.append((real * weights.to(device=real.device, dtype=real.dtype)).sum())
    return torch.stack([t.to(terms[0]) for t in terms]).sum()
