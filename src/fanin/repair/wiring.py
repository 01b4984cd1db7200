"""Which entries of which parameters belong to a unit, and which inputs of a layer are copies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fanin.architecture import weighted_source
from fanin.calls import Call, Observer
from fanin.guard import private, reseed, watching
from fanin.layers import TOLERANCES
from fanin.operations import Weighted
from fanin.sketch import Directions, joint, labels, project
from fanin.slopes import dead_units
from fanin.trace import Watch, trace

__all__ = ["Wire", "wiring"]

Rows = NDArray[np.int64]


@dataclass
class Wire:
    """How one layer's units sit in its parameters.

    Attributes:
        parameter: the main weight.
        units: [units, entries]: flat indices into the weight of each unit's incoming weights.
        others: the same for its biases and recurrent matrices.
        inputs: class of each input feature: the same number for features that are equal on the
            whole batch; None where they are not told.
        silent: input features that are zero on the whole batch.
        dead: which units are flat on the whole batch.
    """

    parameter: str
    units: Rows | None = None
    others: dict[str, Rows] = field(default_factory=dict)
    inputs: NDArray[np.int64] | None = None
    silent: int = 0
    dead: NDArray[np.bool_] | None = None


def wiring(model: nn.Module, batch: Any, seed: int, wanted: Collection[str]) -> dict[str, Wire]:
    """Main weight → its wire, from one watched forward pass; the model stays as it is.

    Args:
        model: to be watched.
        batch: it is run on.
        seed: of everything random.
        wanted: weights whose units are looked up (an index for each entry).
    """
    look = _Look(model, seed, wanted)
    with watching(model) as guard:
        reseed(seed)
        watch = Watch(model, model.named_parameters(), guard, look)
        look.calls = watch.calls
        trace(model, private(batch), None, watch)
    return look.found


class _Look(Observer):
    """An observer that notes the wires."""

    def __init__(self, model: nn.Module, seed: int, wanted: Collection[str]) -> None:
        self.found: dict[str, Wire] = {}
        self._wanted = wanted
        self.calls: list[Call] = []
        self._parameters = dict(model.named_parameters())
        self._directions = Directions(seed)
        self._at: dict[int, tuple[Wire, tuple[int, ...]]] = {}

    def weighted(self, call: Call, weighted: Weighted, output: Tensor) -> None:
        """Note the units and the inputs of a layer."""
        name = self._main(call)
        if not weighted.unit_dims or not name or output.numel() == 0:
            return
        wire = self.found.setdefault(name, Wire(name))
        self._at[call.index] = (wire, weighted.unit_dims)
        if wire.units is None and name in self._wanted:
            wire.units = self._rows(name, weighted.weights[0][1], weighted)
        if wire.units is not None:
            self._note_others(wire, call, weighted)
        sketch = self._inputs(weighted)
        if sketch is not None:
            silent = np.flatnonzero(~sketch.any(axis=1))
            kind = str(weighted.inputs[0].dtype).removeprefix("torch.")
            seen = labels(sketch, TOLERANCES.get(kind, TOLERANCES["float32"]))
            seen[silent] = len(seen) + silent  # equal on this batch; on others who knows
            if wire.inputs is None:
                wire.inputs = seen
            elif len(wire.inputs) == len(seen):
                wire.inputs = joint(wire.inputs, seen)
            else:
                wire.inputs = np.arange(len(wire.inputs))
            wire.silent = len(silent)

    def _main(self, call: Call) -> str:
        """The parameter that a call's weight is, or that has the weight's shape."""
        operand = call.operands[0]
        known = [n for n in operand.parameters if n in self._parameters]
        alike = [n for n in known if tuple(self._parameters[n].shape) == operand.shape]
        return (alike or known or [""])[0]

    def activation(self, call: Call, inputs: Tensor, output: Tensor) -> None:
        """Note the dead units of the layer that feeds a nonlinearity."""
        source = weighted_source(self.calls, call)
        if source is None or source.index not in self._at or len(source.shape) != inputs.dim():
            return
        if output.shape != inputs.shape:  # a gate halves its units
            return
        wire, dims = self._at[source.index]
        mask = dead_units(call.curve, inputs.detach(), dims)
        if mask is not None:
            flat = mask.reshape(-1).cpu().numpy()
            again = wire.dead is not None and wire.dead.shape == flat.shape
            wire.dead = flat & wire.dead if again else flat

    # ---- where a unit's numbers are --------------------------------------------------------------

    def _rows(self, name: str, operand: Tensor, weighted: Weighted) -> Rows | None:
        """[units, entries]: places in the parameter of each unit's entries."""
        places = _places(self._parameters[name], operand)
        if places is None or weighted.rows is None:
            return None
        return np.asarray(weighted.rows(places).cpu().numpy())

    def _note_others(self, wire: Wire, call: Call, weighted: Weighted) -> None:
        assert wire.units is not None
        count = len(wire.units)
        for operand, (role, tensor) in zip(call.operands[1:], weighted.weights[1:], strict=False):
            name = next(iter(operand.parameters), "")
            if len(operand.parameters) != 1 or name in wire.others:
                continue
            places = _places(self._parameters[name], tensor)
            if places is None or places.numel() % count:
                continue
            if role.startswith("recurrent") and places.dim() == 2 and weighted.rows is not None:
                wire.others[name] = weighted.rows(places).cpu().numpy()
            elif "bias" in role:
                wire.others[name] = places.reshape(-1, count).T.cpu().numpy()

    def _inputs(self, weighted: Weighted) -> NDArray[np.float64] | None:
        """A sketch of each feature that the layer reads: equal for equal features."""
        if weighted.layout.count("i") != 1 or "b" in weighted.layout or not weighted.inputs:
            return None
        x, size = weighted.inputs[0].detach(), weighted.weights[0][1].shape
        wanted = size[weighted.layout.index("i")]
        at = -1
        if weighted.op.startswith("conv"):
            at = -(1 + weighted.layout.count("k"))
        if x.dim() < 2 or not x.is_floating_point() or x.shape[at] != wanted or not x.numel():
            return None
        return np.asarray(project(x, (at,), self._directions, 0).cpu().numpy())


def _places(parameter: Tensor, operand: Tensor) -> Tensor | None:
    """For each entry of an operand its flat place in the parameter; None where it has none."""
    if operand.shape == parameter.shape and operand.stride() == parameter.stride():
        return torch.arange(parameter.numel(), device="cpu").reshape(parameter.shape)
    if not parameter.is_contiguous() or parameter.numel() == 0:
        return None
    try:
        same = operand.untyped_storage()._cdata == parameter.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # of tensors without storage
        return None
    if not same:
        return None
    reach = sum((n - 1) * s for n, s in zip(operand.shape, operand.stride(), strict=True))
    first = operand.storage_offset() - parameter.storage_offset()
    if first < 0 or first + reach >= parameter.numel():
        return None
    flat = torch.arange(parameter.numel(), device="cpu")
    return flat.as_strided(operand.shape, operand.stride(), first)
