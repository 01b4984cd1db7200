"""A few virtual steps of training on a copy of the parameters, each pass watched."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fanin.architecture import Key, Layer
from fanin.calls import Call
from fanin.errors import FaninError
from fanin.nested import map_batch
from fanin.operations import Weighted, as_rows
from fanin.passes import Noise, Pass, Stand, Subject, run_pass
from fanin.probe import Cell, Recorder

__all__ = [
    "DOUBLE",
    "FAINT",
    "LOCK_TOLERANCE",
    "SINGLE",
    "STEPS",
    "Precision",
    "RowSet",
    "VirtualRun",
    "counterpart",
]

# Virtual steps: a zero factor delays by one step each, and few intended starts stack more than two.
# More are taken while each brings a gradient to another parameter: six norms of scale zero in a
# row, which train, take 7, eight take 10.
STEPS, MOST_STEPS = 4, 12
STEP_SIZE = 0.1  # of each tensor's own RMS; large enough to separate, small enough to kill nothing
# Equal values drift apart by round-off alone, by a factor of about two a step; 1e-16 · 2¹² is far
# below.
LOCK_TOLERANCE = 1e-9
# In float64 a sum that cancels exactly leaves about 1e-16 of its terms.
NOISE = 1e-12


@dataclass(frozen=True)
class Precision:
    """What the virtual steps are computed in, and what its rounding asks for.

    Attributes:
        dtype: of parameters, buffers and batch.
        lock: relative difference below which two units are the same.
        noise: share of the largest gradient below which one is nothing but rounding.
    """

    dtype: torch.dtype
    lock: float
    noise: float


DOUBLE = Precision(torch.float64, LOCK_TOLERANCE, NOISE)
# Share of the largest gradient that one has which is no rounding in float32, without a closer look.
# Zeros that open leave 2e-4 and more in nearly all of tests/zoo; the rounding of a norm over a
# single unit, which hands no gradient on, 1.5e-5.
OPENED = 1e-4
# Gradients below this are next to the least that float32 holds, one over them above the largest.
FAINT = 1e-30
# For a model that takes no float64, such as one with a kernel of its own.  Of the 101 faults and
# traps of tests/zoo that take steps, 99 get the same findings in either, two an S103 (info) more.
SINGLE = Precision(torch.float32, 1e-4, 1e-6)

Kept = Literal["weight", "gradient", "input", "output"]


@dataclass(frozen=True)
class RowSet:
    """A parameter that is read as a set of rows.

    Attributes:
        parameter: its path.
        dims: those of its dimensions that count the rows; the others are entries of a row.
    """

    parameter: str
    dims: tuple[int, ...]


class _Listener(Recorder):
    """Also notes at which positions of a result a gradient arrives, of any sample."""

    def __init__(self, seed: int, samples: int | None, keep: frozenset[Key], listen: bool) -> None:
        super().__init__(seed, samples, keep=keep, listen=listen)
        self._where = bool(keep)
        self.arrived: dict[int, Tensor] = {}
        self.signals: set[int] = set()

    def produced(self, call: Call, output: Tensor) -> None:
        super().produced(call, output)
        self.signals.add(call.index)
        if self._where and output.requires_grad:

            def note(gradient: Tensor | None) -> None:
                if gradient is not None:
                    with torch._C.DisableTorchFunction():
                        some = gradient.detach() != 0
                        self.arrived[call.index] = some.any(0) if some.dim() > 1 else some

            output.register_hook(note)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _Blind(Recorder):
    """Measures nothing, where the gradients of the parameters are all that is asked for."""

    def weighted(self, call: Call, weighted: Weighted, output: Tensor) -> None:
        pass

    def activation(self, call: Call, inputs: Tensor, output: Tensor) -> None:
        pass

    def attended(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        pass

    def step(self, call: Call, inputs: Tensor) -> None:
        pass

    def produced(self, call: Call, output: Tensor) -> None:
        pass


class VirtualRun:
    """A few training steps on a copy of the parameters, and what they showed.

    Attributes:
        seen: the pass of the model itself that was suspicious.
        keep: layers of which every pass keeps what their units received and gave.
        rows: parameters that are sets of rows, some of which look like copies.
        precision: of the steps.
        zero: parameters that start at zero.
        frozen: parameters that take no gradient.
        passes: of every step, and one after the last.
        held: of every pass, the rows of these parameters and those of their gradients (None where
            there is none).
        moved: parameters that received a gradient in any of them.
        arrived: call → where a gradient came to its result in any pass, the first dimension
            (samples) aside; of every call where there are layers to keep.
        signals: calls that give numbers, rather than true or false or an index.
    """

    def __init__(
        self,
        subject: Subject,
        seen: Pass,
        keep: frozenset[Key],
        rows: Sequence[RowSet],
        precision: Precision,
    ) -> None:
        self._subject, self.seen, self.keep, self.rows = subject, seen, keep, rows
        self.precision = precision
        self._batch = map_batch(self._input, subject.batch)
        self._originals = dict(subject.model.named_parameters())
        self._copies = {
            n: self._copy(p.detach()).clone().requires_grad_(p.requires_grad)
            for n, p in self._originals.items()
        }
        named = subject.model.named_buffers()
        self._buffers = {n: self._copy(b.detach()).clone() for n, b in named}
        self.zero = {n for n, p in self._copies.items() if not bool(p.detach().any())}
        for name in seen.absorbed:  # they would only leave round-off, and that grows
            self._copies[name].detach().zero_()
        self.frozen = {n for n, p in self._copies.items() if not p.requires_grad}
        self._listen = any(g == 0.0 for g in seen.gradients.values())
        self.passes: list[Pass] = []
        self.held: list[dict[str, tuple[Tensor, Tensor | None]]] = []
        self.moved: set[str] = set()
        self.arrived: dict[int, Tensor] = {}
        self.signals: set[int] = set()

    def _copy(self, tensor: Tensor) -> Tensor:
        dtype = self.precision.dtype
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def _input(self, tensor: Tensor) -> Tensor:
        """A leaf stays one; what was computed stays in its graph."""
        if tensor.is_leaf:
            return self._copy(tensor.detach()).requires_grad_(tensor.requires_grad)
        return self._copy(tensor)

    def train(self) -> VirtualRun:
        """Take the virtual steps; the last pass only looks.

        Zeros in a row open one after the other: while a step brings a gradient to parameters that
        had none, it is not the last.
        """
        for step in range(MOST_STEPS + 1):
            before = len(self.moved)
            moving = self._look(self._listener())
            self.held.append(self._rows(moving))
            if step >= STEPS and len(self.moved) == before:
                break
            if step < MOST_STEPS:
                self._step(moving)
        return self

    def opens(self, names: Collection[str], gradients: dict[str, Tensor | None]) -> bool:
        """Take steps until each of some parameters has a gradient, or one brings none of them any.

        Nothing else is measured.  `gradients` are those of the first pass, and are given up.
        """
        self.passes.append(self.seen)
        opened: set[str] = set()
        moving = self._moving(gradients, 0)
        gradients.clear()
        for _ in range(MOST_STEPS):
            self._step(moving)
            moving.clear()
            before = len(opened)
            moving = self._look(_Blind(self._subject.seed, self._subject.samples))
            sizes = {n: self.passes[-1].gradients[n] or 0.0 for n in moving}
            least = OPENED * max(sizes.values(), default=0.0)
            opened.update(n for n in names if sizes.get(n, 0.0) > least)
            if opened.issuperset(names):
                return True
            if len(opened) == before:
                return False
        return False

    def _look(self, recorder: Recorder) -> dict[str, Tensor]:
        """The gradients of one pass, those that are only round-off aside."""
        seen, gradients = self._pass(recorder)
        self.passes.append(seen)
        return self._moving(gradients, self.steps)

    def _moving(self, gradients: Mapping[str, Tensor | None], step: int) -> dict[str, Tensor]:
        seen = self.passes[-1]
        moving = {
            n: g.to_dense() if g.is_sparse else g
            for n, g in gradients.items()
            if g is not None and not self._noise(n, seen, step)
        }
        self.moved |= moving.keys()
        return moving

    @property
    def steps(self) -> int:
        """Virtual steps that were taken."""
        return len(self.passes) - 1

    def _rows(self, gradients: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, dims in ((r.parameter, r.dims) for r in self.rows):
            gradient = gradients.get(name)
            value = as_rows(self._copies[name].detach(), dims).clone()
            found[name] = value, None if gradient is None else as_rows(gradient, dims)
        return found

    def elsewhere(self) -> Mapping[str, Tensor | None]:
        """Gradients after the last step on another batch, with any loss of the outputs that the
        loss reads; none where the model refuses it."""
        with contextlib.suppress(FaninError):
            return self._pass(self._listener(), elsewhere=True)[1]
        return {}

    def disturbed(self, names: Collection[str]) -> Mapping[str, Tensor | None]:
        """Gradients after the last step, with noise of a step's size on some parameters; none where
        the model refuses it."""
        before = {n: self._copies[n].detach().clone() for n in names}
        noise = Noise(self._subject.seed)
        with torch.no_grad():
            for name in names:
                self._copies[name].add_(noise.like(self._copies[name]), alpha=STEP_SIZE)
        try:
            return self._pass(self._listener())[1]
        except FaninError:
            return {}
        finally:
            with torch.no_grad():
                for name, values in before.items():
                    self._copies[name].copy_(values)

    def _listener(self) -> _Listener:
        return _Listener(self._subject.seed, self._subject.samples, self.keep, self._listen)

    def _pass(
        self, recorder: Recorder, elsewhere: bool = False
    ) -> tuple[Pass, dict[str, Tensor | None]]:
        subject = self._subject
        placed = _placed(self._originals, subject.model)
        with self._called() if placed else self._lent() as stand:
            if elsewhere:
                stand = replace(stand, noise=Noise(subject.seed))
            found = run_pass(subject, recorder, stand)
        if not isinstance(recorder, _Listener):
            return found
        self.signals |= recorder.signals
        for index, some in recorder.arrived.items():
            before = self.arrived.get(index)
            same = before is not None and before.shape == some.shape
            self.arrived[index] = before | some if before is not None and same else some
        return found

    @contextmanager
    def _called(self) -> Iterator[Stand]:
        """The model is called with the copies in the place of its own tensors."""
        model = self._subject.model
        own = {**self._originals, **dict(model.named_buffers())}
        substitute = {id(own[n]): copy for n, copy in {**self._copies, **self._buffers}.items()}
        if isinstance(model, nn.DataParallel):  # functional_call refuses it
            model = model.module
        # Every module once: functional_call puts back the copies in one that has two names.
        tensors = {
            f"{path}.{name}".lstrip("."): substitute[id(tensor)]
            for path, module in model.named_modules()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and id(tensor) in substitute
        }

        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, tensors, args, kwargs, tie_weights=False)

        yield Stand(call, self._batch, self._copies, substitute, self.precision.dtype)

    @contextmanager
    def _lent(self) -> Iterator[Stand]:
        """The model's own tensors have the memory of the copies for the length of a block."""
        model = self._subject.model
        own = {**self._originals, **dict(model.named_buffers())}
        kept = {n: (tensor.data, set(tensor._backward_hooks or ())) for n, tensor in own.items()}
        try:
            for n, copy in {**self._copies, **self._buffers}.items():
                own[n].data = copy.data
            yield Stand(model, self._batch, self._originals, {}, self.precision.dtype)
        finally:
            for n, (data, before) in kept.items():
                own[n].data = data
                hooks = own[n]._backward_hooks or {}
                for added in hooks.keys() - before:  # those that listened to its gradient
                    del hooks[added]

    def _noise(self, name: str, seen: Pass, step: int) -> bool:
        """Whether a gradient is nothing but the round-off of a sum that cancels."""
        rms = seen.gradients[name]
        if not rms or not math.isfinite(rms):
            return True
        if rms > self.precision.noise * seen.largest:
            return False
        first = self.seen.gradients.get(name)
        return step > 0 or not first or not 0.5 < first / rms < 2.0

    @torch.no_grad()
    def _step(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            parameter = self._copies[name]
            largest = float(gradient.abs().max())
            rms = largest * float((gradient / largest).abs().square().mean().sqrt())
            if rms < FAINT:
                gradient, rms = gradient / largest, rms / largest
            scale = float(parameter.abs().square().mean().sqrt())
            if scale == 0.0:
                width = parameter[0].numel() if parameter.dim() > 1 else 100
                scale = 1.0 / max(width, 1) ** 0.5
            parameter.add_(gradient, alpha=-STEP_SIZE * scale / rms)

    def kept(self, step: int, layer: Layer, what: Kept) -> Tensor | None:
        """What the pass of a step kept of a layer, one row for each unit."""
        seen = self.passes[step]
        for index in counterpart(seen, layer).calls:
            cell: Cell | None = seen.cells.get(index)
            if cell is not None and what in cell.kept:
                return cell.kept[what]
        return None


def _placed(parameters: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether every parameter is where its name says; torchrl's are not, and cannot be replaced."""
    try:
        return all(model.get_parameter(n) is p for n, p in parameters.items())
    except (AttributeError, RuntimeError):
        return False


def counterpart(seen: Pass, layer: Layer) -> Layer:
    """The same layer as it was seen in another pass."""
    for other in seen.architecture.layers:
        if other.key == layer.key:
            return other
    return layer
