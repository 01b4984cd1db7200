"""Statistics of signals and of their cotangents, taken call by call while a pass runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fanin.architecture import Key, key_of, weighted_source
from fanin.calls import Call, Observer
from fanin.criteria import DIFFERENCES, PARTS, guessing, subtracted, targets
from fanin.focus import Focus, focus_of_fused, focus_of_softmax
from fanin.gates import Gates, gates_of
from fanin.guesses import Parts
from fanin.kinds import BENDING, PASSIVE, RECURRENT, RECURRENT_CELLS
from fanin.mapped import is_mapped
from fanin.nested import tensors_in
from fanin.operations import Weighted, as_rows
from fanin.sketch import Directions, project
from fanin.slopes import constant, flat_parts

__all__ = ["ALIKE", "Cell", "Recorder", "relative_spread", "rms"]


@dataclass
class Cell:
    """What was measured at one weighted call (filled while the pass runs)."""

    count: int = 0
    dtype: str = "float32"
    total: float = 0.0
    squares: float = 0.0
    max_abs: float = 0.0
    nonfinite: int = 0
    bad_weight: bool = False  # what it is multiplied with is not finite
    variation: float | None = None
    given: float | None = None  # RMS deviation of the input across samples; where these are alike
    token_variation: float | None = None
    forward: np.ndarray | None = None
    cotangent: np.ndarray | None = None
    cotangent_squares: float | None = None
    cotangent_nonfinite: int = 0
    dead: float | None = None
    dead_at: int | None = None  # the call that is flat
    saturated: float | None = None
    gates: Gates | None = None
    offset: bool = False  # a sigmoid's inputs lie close together, in a part that is not quite flat
    shut: bool = False  # some of its units are gates, not the first to be bent, that pass nothing
    kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rms(self) -> float:
        """Root mean square of the output's entries; 0 without any."""
        return float((self.squares / self.count) ** 0.5) if self.count else 0.0


class Recorder(Observer):
    """Measures every weighted call while the pass runs; keeps numbers, not tensors.

    Args:
        seed: of the directions that units are compared along.
        samples: batch size, or None.
        limit: magnitude at which a result counts as out of range; None to not look at every call.
        keep: keys of the layers whose tensors are kept for the certificate.
        listen: whether it is noted which results have a gradient that is not all zero.
    """

    def __init__(
        self, seed: int, samples: int | None, *, limit: float | None = None,
        keep: frozenset[Key] = frozenset(), listen: bool = False,
    ) -> None:  # fmt: skip
        self.cells: dict[int, Cell] = {}  # weighted calls, and sums where branches meet
        self.parts = Parts(_on_gradient)
        self.targets: dict[int, float] = {}
        self.guesses: dict[int, tuple[float, float]] = {}
        self.differences: dict[int, Tensor] = {}  # call → what may be a target, taken from a signal
        self.numbers: dict[int, Tensor] = {}  # call → its result, where that is a single number
        self.picked: dict[int, float] = {}
        self.focus: dict[int, Focus] = {}  # of the softmaxes, and of fused attentions
        # call → the layer whose units it shows, and the range of each unit
        self.ranges: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        # call → fingerprint and values of its units behind a norm that takes their means away
        self.behind_norm: dict[int, tuple[np.ndarray, Tensor | None]] = {}
        self.first_bad: tuple[Call, float] | None = None
        self.first_bad_gradient: Call | None = None
        self.judged: list[Tensor] | None = None  # what known losses are given; None: not kept
        self.calls: list[Call] = []
        self._samples, self._limit, self._keep = samples, limit, keep
        self._listen = listen
        self.heard: set[int] = set()
        self._directions = Directions(seed)
        self._bent: set[int] = set()
        self._unit_dims: dict[int, tuple[int, ...]] = {}
        self._turn: dict[int, int] = {}  # how many calls of its layer came before a call
        self._occurrences: dict[Key, int] = {}

    def weighted(self, call: Call, weighted: Weighted, output: Tensor) -> None:
        """Measure the output of a weighted call, and its cotangent when that arrives."""
        values = output.detach()
        cell = self.cells[call.index] = Cell(dtype=str(values.dtype).removeprefix("torch."))
        key = key_of(call)
        occurrence = self._turn[call.index] = self._occurrences.get(key, 0)
        self._occurrences[key] = occurrence + 1
        _measure(cell, values)
        if cell.nonfinite:
            cell.bad_weight = not bool(torch.isfinite(weighted.weights[0][1]).all())
        if call.varies and self._samples:
            cell.variation = _spread(values, self._samples)
            if cell.variation is not None and cell.variation < ALIKE and weighted.inputs:
                cell.given = _deviation(weighted.inputs[0].detach(), self._samples)
        dims = weighted.unit_dims
        if call.op in _BOUNDED and values.numel():
            state = weighted.inputs[1] if call.op in RECURRENT_CELLS else values
            cell.gates = gates_of(weighted, state.detach())
            cell.saturated = None if cell.gates is None else cell.gates.flat
        if dims and values.numel():
            self._unit_dims[call.index] = dims
            cell.token_variation = _token_spread(values, dims, self._samples)
            cell.forward = _numpy(project(values, dims, self._directions, occurrence))
        keep = key in self._keep
        if keep:
            _keep_forward(cell, weighted, values)
        if output.requires_grad:
            _on_gradient(output, lambda g: self._backward(cell, g, dims, occurrence, keep))
        if weighted.memory is not None and weighted.memory.requires_grad:
            # The output's own gradient, where it has one, comes later and stays.
            _on_gradient(weighted.memory, lambda g: self._backward(cell, g, dims, occurrence, keep))

    def _backward(
        self, cell: Cell, gradient: Tensor, dims: tuple[int, ...], occurrence: int, keep: bool
    ) -> None:
        norm = _norm(gradient.detach())
        cell.cotangent_squares = norm * norm
        if not math.isfinite(norm):
            cell.cotangent_nonfinite = int((~torch.isfinite(gradient)).sum())
        if dims and gradient.numel():
            cell.cotangent = _numpy(project(gradient, dims, self._directions, occurrence))
        if keep:
            cell.kept["cotangent"] = as_rows(gradient.detach(), dims)

    def activation(self, call: Call, inputs: Tensor, output: Tensor) -> None:
        """Count dead and saturated units at a nonlinearity, for the layer that feeds it."""
        if call.op == "softmax":
            self._focus(call, focus_of_softmax(inputs.detach(), output.detach()))
        source = weighted_source(self.calls, call)
        cell = self.cells.get(source.index) if source is not None else None
        if source is None or cell is None or not inputs.is_floating_point():
            return
        dims = self._unit_dims.get(source.index, ()) if len(source.shape) == inputs.dim() else ()
        if call.op in BENDING:
            self._flat(cell, source, call, inputs.detach(), dims)
        alone = _alone(self.calls, call, source)
        if cell.kept and dims and alone and output.shape == source.shape:
            cell.kept["output"] = as_rows(output.detach(), dims)

    def attended(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See where the queries of fused attention look."""
        self._focus(call, focus_of_fused(args, kwargs))

    def _focus(self, call: Call, found: Focus | None) -> None:
        if found is not None:
            self.focus[call.index] = found

    def _flat(
        self, cell: Cell, source: Call, call: Call, inputs: Tensor, dims: tuple[int, ...]
    ) -> None:
        curve = call.curve
        if call.op == "glu":
            inputs, curve, dims = _gates(inputs, call.shape), "sigmoid", ()
        dead, saturated = flat_parts(curve, inputs, dims)
        if source.index in self._bent:  # units that pass another nonlinearity too are not dead
            cell.dead = None if cell.dead is None else min(cell.dead, dead or 0.0)
            part = curve == "sigmoid" and saturated == 1.0 and inputs.numel() < cell.count
            cell.shut |= part and float(inputs.max()) < -_FAINT
            return
        self._bent.add(source.index)
        cell.dead, cell.dead_at = dead, call.index
        if cell.saturated is None:  # the gates of a recurrent layer were looked at
            cell.saturated = saturated
            cell.offset = curve == "sigmoid" and _close_together(inputs)
        between = self.cells.get(max(call.behind))  # a norm that stands between the two
        if between is not None and between is not cell:
            between.dead = dead

    def step(self, call: Call, inputs: Tensor) -> None:
        """Keep the range of each unit at what may be the first step of an activation."""
        (index,) = call.inputs
        if call.op in _WHOLE or index < 0 or index in self.ranges:
            return
        made = self.calls[index]
        source = made if made.units is not None else weighted_source(self.calls, made)
        dims = self._unit_dims.get(source.index, ()) if source is not None else ()
        if source is None or not dims or made.shape != source.shape or not inputs.numel():
            return
        values = as_rows(inputs.detach(), dims).flatten(1)
        low, high = (v.double().cpu().numpy() for v in torch.aminmax(values, dim=1))
        self.ranges[index] = (source.index, low, high)

    def written(self, start: int, end: int, curve: str) -> None:
        """Correct what single calls said where together they are one activation."""
        if start not in self.ranges:
            return
        source, low, high = self.ranges[start]
        dead = float(constant(curve, low, high).mean())
        for cell in (self.cells[source], self.cells.get(start)):
            if cell is not None:
                cell.dead, cell.dead_at, cell.saturated, cell.offset = dead, end, None, False

    def produced(self, call: Call, output: Tensor) -> None:
        """Measure where branches meet, and parts; look for the first result out of range."""
        self.parts.made(self.calls, call, output)
        if not call.shape:
            self.numbers[call.index] = output.detach().clone()  # more may be added in place
        if call.op in _BY_UNIT:
            self._normed(call, output.detach())
        if call.op == "add" and len(call.inputs) > 1 and not call.operands and output.numel() > 1:
            self._merge(call, output)
        if call.op in PASSIVE and call.varies and len(call.behind) == 1:
            self._pick(call, output)
        if self._listen and output.requires_grad:
            _on_gradient(output, lambda g: self._hear(call.index, g))
        if self._limit is None or self.first_bad is not None or output.numel() == 0:
            return
        if output.requires_grad:
            _on_gradient(output, lambda g: self._look_back(call, g))
        values = output.detach()
        if call.op in _PRODUCTS | _UNBOUNDED or call.units is not None:
            largest = float(torch.linalg.vector_norm(values, math.inf))
        else:  # a mask may hold -inf or the lowest finite value on purpose
            largest = float(values.max()) if values.is_floating_point() else 0.0
            largest = largest if math.isnan(largest) or largest == math.inf else 0.0
        if not largest <= self._limit:  # NaN compares false
            self.first_bad = (call, largest)

    def _normed(self, call: Call, values: Tensor) -> None:
        """What tells units apart behind a norm over samples or positions: their biases do not."""
        made = self.calls[call.behind[0]] if call.behind else call
        dims = self._unit_dims.get(made.index, ())
        if not dims or made.shape != call.shape or all(o.role != "bias" for o in made.operands):
            return
        forward = _numpy(project(values, dims, self._directions, self._turn[made.index]))
        kept = as_rows(values, dims) if self.cells[made.index].kept else None
        self.behind_norm[made.index] = forward, kept

    def absorb(self, followers: Mapping[int, Sequence[Call]]) -> set[int]:
        """Compare units behind such a norm where nothing else reads what the layer gives.

        Returns:
            the calls of these layers.
        """
        alone = {
            index
            for index in self.behind_norm
            if all(after.op in _BY_UNIT for after in followers[index])
        }
        for index in alone:
            cell, (cell.forward, kept) = self.cells[index], self.behind_norm[index]
            if kept is not None:
                cell.kept["input"] = kept
        return alone

    def _hear(self, index: int, gradient: Tensor) -> None:
        if bool(gradient.any()):
            self.heard.add(index)

    def _look_back(self, call: Call, gradient: Tensor) -> None:
        if self.first_bad_gradient is None and not bool(torch.isfinite(gradient).all()):
            self.first_bad_gradient = call

    def _pick(self, call: Call, output: Tensor) -> None:
        whole = math.prod(self.calls[call.behind[0]].shape)
        if not self._samples or math.prod(call.shape) >= whole:
            return
        variation = _spread(output.detach(), self._samples)
        if variation is not None:
            self.picked[call.index] = variation

    def _merge(self, call: Call, output: Tensor) -> None:
        cell = self.cells[call.index] = Cell()
        values = output.detach()
        _measure(cell, values)
        if call.varies and self._samples:
            cell.variation = _spread(values, self._samples)
        if output.requires_grad:
            _on_gradient(output, lambda g: self._backward(cell, g, (), 0, False))

    def criterion(
        self, index: int, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """The loss of guessing, of a known loss or a part of one; of a regression, the target's
        size and the loss of guessing zero."""
        if any(is_mapped(tensor) for tensor in tensors_in((args, kwargs))):
            return  # it has no values, and is no loss of the model's
        if name in DIFFERENCES:
            target = subtracted(args)
            if target is not None:
                self.differences[index] = target
            return
        if self.judged is not None and name not in PARTS:
            self.judged += [t for t in (*args[:1], kwargs.get("input")) if isinstance(t, Tensor)]
        known = targets(name, args, kwargs)
        if known is not None:
            self.targets[index] = known.rms
            if known.guess is not None:
                self.guesses[index] = known.guess
        guess = guessing(name, args, kwargs)
        if guess is not None:
            self.parts.expect(index, name, guess)


# Norms of each unit by itself.
_BY_UNIT = frozenset({"batch_norm", "instance_norm"})

# Activations that are seldom a step of another one.
_WHOLE = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardtanh",
    "hardsigmoid", "hardswish", "softsign", "softmax", "log_softmax", "logsigmoid",
})  # fmt: skip

# Inputs of a sigmoid that an offset of its own moves, as that of a gate which starts shut or open:
# they differ by less than the width of its bend, and float32 still knows its distance from 0 or 1.
_BEND, _FAINT = 2.0, 16.0


def _gates(inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The half of what a gated linear unit is given that its sigmoid takes."""
    halved = [d for d, size in enumerate(shape) if size != inputs.shape[d]]
    return inputs.chunk(2, halved[0])[1] if halved else inputs


def _close_together(inputs: Tensor) -> bool:
    values = inputs.double()
    return float(values.abs().max()) < _FAINT and float(values.std(correction=0)) < _BEND


def _alone(calls: list[Call], call: Call, source: Call) -> bool:
    """Whether `call` shows the units of `source` and nothing that was added to them on the way."""
    while call.index != source.index:
        if len(call.behind) != 1:
            return False
        call = calls[call.behind[0]]
    return True


# Functions whose results mixed-precision training computes in the low precision.
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "baddbmm", "addmm", "einsum"})
# Functions that are infinite somewhere; what makes masks is none of them.
_UNBOUNDED = frozenset({
    "log", "log2", "log10", "log1p", "div", "divide", "true_divide", "rdiv", "rtruediv",
    "reciprocal", "rsqrt", "pow", "logit", "atanh", "erfinv",
})  # fmt: skip
_BOUNDED = RECURRENT - {"rnn_relu", "rnn_relu_cell"}


def _measure(cell: Cell, values: Tensor) -> None:
    cell.count = values.numel()
    if cell.count == 0:
        return
    if values.is_complex():
        values = torch.view_as_real(values)
    norm = _norm(values)
    if not math.isfinite(norm):
        cell.nonfinite = int((~torch.isfinite(values)).sum())
        if cell.nonfinite == values.numel():  # no size at all, rather than one of zero
            cell.squares = cell.max_abs = cell.total = math.nan
            return
        values = torch.where(torch.isfinite(values), values, 0).double()
        norm = float(torch.linalg.vector_norm(values))
    low, high = torch.aminmax(values)
    cell.squares, cell.max_abs = norm * norm, max(abs(float(low)), abs(float(high)))
    cell.total = float(values.sum(dtype=_wide(values)))


# Norms whose squares float32 holds (1e-38 to 3e38), with room for a sum over many entries.
_HELD = 1e-12, 1e18


def _norm(values: Tensor) -> float:
    """Euclidean norm; relative to the largest entry where float32 cannot hold the squares."""
    norm = float(torch.linalg.vector_norm(values, dtype=_wide(values)))
    if _HELD[0] < norm < _HELD[1] or values.numel() == 0:
        return norm
    largest = float(torch.linalg.vector_norm(values, math.inf))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    parts = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    scaled = parts.to(_wide(values) or parts.dtype) / largest
    return largest * float(torch.linalg.vector_norm(scaled))


def rms(values: Tensor) -> float:
    """Root mean square of the entries; 0 without any."""
    values = values.detach()
    count = values.numel()
    if values.layout == torch.sparse_coo:  # an embedding with sparse gradients
        values = values.coalesce().values()
    return _norm(values) / math.sqrt(count) if count else 0.0


def _wide(values: Tensor) -> torch.dtype | None:
    """float32 for sums over half-precision values; the values' own dtype otherwise."""
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None


def _numpy(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy())


def _keep_forward(cell: Cell, weighted: Weighted, values: Tensor) -> None:
    cell.kept["input"] = as_rows(values, weighted.unit_dims)
    if weighted.rows is None:
        return
    weight, rows = weighted.weights[0][1], weighted.rows
    cell.kept["weight"] = rows(weight.detach()).clone()
    if weight.requires_grad:

        def keep(gradient: Tensor) -> None:
            cell.kept["gradient"] = rows(gradient.detach()).clone()

        _on_gradient(weight, keep, weight=True)


def _on_gradient(tensor: Tensor, take: Callable[[Tensor], None], weight: bool = False) -> None:
    if isinstance(tensor, nn.Parameter) and not weight:
        return  # the model's own, written in place: it would keep the hook

    def unwatched(gradient: Tensor | None) -> None:
        if gradient is None:  # nothing reads this result of a call that has several
            return
        with torch._C.DisableTorchFunction():
            take(gradient)

    tensor.register_hook(unwatched)  # type: ignore[no-untyped-call]  # torch leaves it untyped


# Columns looked at for the variation across samples: enough that the RMS over them is within 2 %.
_COLUMNS = 4096


def _spread(values: Tensor, samples: int) -> float | None:
    """RMS deviation across samples over RMS, in float64, on evenly spread columns."""
    if samples < 2 or values.dim() == 0 or values.numel() == 0:
        return None
    if values.shape[0] % samples:  # time or features first: then the one axis of that length
        axes = [d for d in range(1, values.dim() - 1) if values.shape[d] == samples]
        if len(axes) != 1:
            return None
        values = values.movedim(axes[0], 0)
    if values.is_complex():
        values = torch.view_as_real(values)
    flat = values.reshape(samples, -1)
    step = max(1, flat.shape[1] // _COLUMNS)
    if step > 1:
        step -= 1 - step % 2  # odd, so that it does not stay on one residue of an even width
    return relative_spread(flat[:, ::step].double(), 0)


#: Samples whose results differ by less than this share of their size are alike.
ALIKE = 1e-3


def _deviation(values: Tensor, samples: int) -> float | None:
    """RMS deviation across samples of a signal."""
    spread = _spread(values, samples) if values.is_floating_point() else None
    return None if spread is None else spread * rms(values)


_PLACES = 64  # positions, and units, that are looked at for the variation inside one sample


def _token_spread(values: Tensor, dims: tuple[int, ...], samples: int | None) -> float | None:
    """RMS deviation over RMS across the positions inside one sample (of two, and some units)."""
    if samples and values.shape[0] > samples and values.shape[0] % samples == 0:
        values = values.reshape(samples, -1, *values.shape[1:])  # samples and tokens in one axis
    units = {d % values.dim() for d in dims}
    places = [d for d in range(1, values.dim()) if d not in units]
    if not samples or values.shape[0] != samples or not places or values.is_complex():
        return None
    part = values[:2].movedim(places, tuple(range(1, 1 + len(places)))).flatten(1, len(places))
    part = part.flatten(2) if part.dim() > 2 else part.unsqueeze(-1)
    if part.shape[1] < 2:
        return None
    rows, columns = (max(1, n // _PLACES) for n in part.shape[1:])
    return relative_spread(part[:, ::rows, ::columns].double(), 1)


def relative_spread(values: Tensor, dim: int) -> float | None:
    """RMS deviation from the mean over `dim`, over RMS; None for what is zero or not finite."""
    values = values.detach()
    size = float(values.square().mean().sqrt())
    if not math.isfinite(size) or size == 0.0:
        return None
    deviation = values - values.mean(dim, keepdim=True)
    return float(deviation.square().mean().sqrt()) / size
