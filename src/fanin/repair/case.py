"""Everything a remedy may look at, and the few ways in which it may change a parameter."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fanin.assignment import KEPT, Assignment
from fanin.catalogue import find
from fanin.findings import Evidence
from fanin.numbers import Audit
from fanin.operations import as_rows
from fanin.planning import plan
from fanin.region import named
from fanin.repair.wiring import Wire, wiring
from fanin.report import Report
from fanin.roles import Role

__all__ = ["DRAWN", "GROSS", "TINY", "Case", "Mask"]

Mask = NDArray[np.bool_]

#: Kinds of parameters that are drawn at random, each entry by itself.
DRAWN = ("weight", "recurrent", "projection", "table", "codes", "token", "rows")
# Fewer distinct values than this in a weight are a pattern (zeros, ones, signs), whose size says
# nothing of the size that a random start should have.
_FEW_VALUES = 4
# No two usual schemes differ by this factor (2.5 at most): a size so far from a new one's is wrong.
GROSS = 4.0
# Weights this much smaller than new ones are what averages over copies leave, or a decay: that is
# no scale to draw others at.
TINY = 0.25
_SAMPLE = 4096  # entries that are looked at to tell


@dataclass(frozen=True)
class Case:
    """A model under repair, as the last check saw it.

    Attributes:
        model: with what was changed so far.
        batch: it is checked on.
        roles: of every parameter.
        report: of the last check.
        evidence: behind that report.
        seed: of every draw.
        first: wires of the model as it was when copies were first found in it.
        preserve: whether its output has to stay what it is.
    """

    model: nn.Module
    batch: Any
    roles: Mapping[str, Role]
    report: Report
    evidence: Evidence
    seed: int
    first: Mapping[str, Wire]
    preserve: bool = False

    # ---- what is known ---------------------------------------------------------------------------

    @cached_property
    def audits(self) -> Mapping[str, Audit]:
        """What the entries of each parameter look like."""
        return {a.name: a for a in self.evidence.audits}

    @cached_property
    def zeros(self) -> frozenset[str]:
        """Parameters whose entries are all zero."""
        return self.evidence.zeros

    @cached_property
    def planned(self) -> Mapping[str, Assignment]:
        """How each parameter would start in a new model."""
        return {a.parameter: a for a in plan(self.model, self.batch, seed=self.seed)}

    @cached_property
    def wires(self) -> Mapping[str, Wire]:
        """The wires of the model as it is now; units are looked up where some are at fault."""
        symmetry = self.report.symmetry
        places = {c.layer for c in symmetry.classes}
        places |= {b for d in symmetry.deadlocks for b in d.because}
        places |= {n for f in self.report.findings if f.code == "P205" for n in f.layers}
        return wiring(self.model, self.batch, self.seed, self.parameters_at(places))

    def parameters_at(self, places: Iterable[str], kinds: Collection[str] = ()) -> list[str]:
        """Trainable parameters of the layers (or parameters) named, in the order of execution."""
        named_places = set(places)
        found = [
            n
            for layer in self.evidence.seen.architecture.layers
            if layer.name in named_places or named_places & set(layer.parameters)
            for n in layer.parameters
        ]
        found += [n for n in self.roles if n in named_places]
        known = [n for n in dict.fromkeys(found) if n in self.roles and self.roles[n].trainable]
        return [n for n in known if not kinds or self.roles[n].kind in kinds]

    # ---- what may be done ------------------------------------------------------------------------

    def scaled(self, name: str, factor: float, because: str) -> Assignment:
        """The values as they are, times a factor."""
        rms = self.audits[name].rms if name in self.audits else 0.0
        role = self.roles[name]
        return Assignment(name, KEPT, factor, rms * factor, None, because, role.shape, role.layout)

    def planned_anew(self, name: str, because: str, part: Mask | None = None) -> Assignment | None:
        """Drawn as in a new model; None where a new model leaves it, or it has no values."""
        found = self.planned.get(name)
        if found is None:
            return None
        told = f"{because}; as in a new model: {found.because}"
        return self._within(replace(found, because=told), part)

    def all_anew(self, names: Iterable[str], because: str) -> list[Assignment]:
        """Those of some parameters that a new model draws, as in one."""
        made = (self.planned_anew(name, because) for name in names)
        return [assignment for assignment in made if assignment is not None]

    def alive(self, name: str, because: str, part: Mask | None = None) -> Assignment:
        """Drawn so that it passes a signal on: as in a new model, but never as zeros."""
        found = self.planned_anew(name, because, part)
        if found is not None and found.std > 0:
            return found
        role = self.roles[name]
        if role.kind in ("norm_scale", "branch_scale", "scale", "magnitude"):
            return self.constant(name, 1.0 - (role.offset or 0.0), because, part)
        fan = max(1.0, role.fan_in or math.prod(role.shape[1:]))
        share = 1.0
        if role.last and role.branch is not None:
            share = 1 / math.sqrt(max(1, role.branch.of))
        return self._normal(name, share / math.sqrt(fan) / role.times, because, part)

    def own(self, name: str, because: str, part: Mask | None = None) -> Assignment:
        """Drawn with the scale and the distribution that the parameter has.

        Drawn as in a new model, where what it has is a pattern.
        """
        std = self._own_std(name, part)
        if std is None:
            return self.alive(name, because, part)
        told = f"{because}; at its own std {std:.3g}"
        if self.audits[name].uniform:
            bound = std * math.sqrt(3)
            return self._within(self._bare(name, "uniform", bound, std, told), part)
        return self._normal(name, std, told, part)

    def fresh(self, name: str, because: str, part: Mask | None = None) -> Assignment:
        """Drawn at the scale that the parameter has, unless that is next to nothing."""
        made, live = self.own(name, because, part), self.alive(name, because, part)
        return live if made.std < TINY * live.std else made

    def constant(
        self, name: str, value: float, because: str, part: Mask | None = None
    ) -> Assignment:
        """One value in every entry."""
        scheme = "zeros" if value == 0 else "constant"
        made = self._bare(name, scheme, value or 1.0, abs(value), because)
        return self._within(made, part)

    def values(self, name: str, numbers: Sequence[float], because: str) -> Assignment:
        """A number for each entry of a vector."""
        numbers = [v + 0.0 for v in numbers]  # no −0
        size = math.sqrt(math.fsum(v * v for v in numbers) / max(1, len(numbers)))
        told = f"{because} (root mean square {size:.3g})"
        made = self._bare(name, "ones", 1.0, 1.0, told)
        return replace(made, layout="o", arguments={"rows": tuple(numbers)})

    def split(
        self, name: str, groups: Sequence[tuple[int, ...]], along: str, std: float, because: str
    ) -> Assignment:
        """Noise added that sums to zero over each group of copies."""
        made = self._bare(name, "normal", std, std, because)
        return replace(made, arguments={"split": tuple(groups), "along": along})

    def _normal(self, name: str, std: float, because: str, part: Mask | None) -> Assignment:
        return self._within(self._bare(name, "normal", std, std, because), part)

    def _bare(self, name: str, scheme: str, gain: float, std: float, because: str) -> Assignment:
        role = self.roles[name]
        layout = role.layout if len(role.layout) == len(role.shape) else ""
        if not layout and len(role.shape) == 1:
            layout = "o"
        made = Assignment(name, find(scheme).name, gain, std, None, because, role.shape, layout)
        if role.padding is not None:
            made = replace(made, arguments={"padding": role.padding})
        return made

    def _within(self, assignment: Assignment, part: Mask | None) -> Assignment:
        """The assignment for a part of its parameter alone."""
        if part is None or part.all():
            return assignment
        region = named(part.reshape(assignment.shape), assignment.layout)
        return replace(assignment, arguments={**assignment.arguments, **region})

    def _own_std(self, name: str, part: Mask | None) -> float | None:
        """Root mean square of the entries outside of `part`; of all, where there are none.

        None where the entries are a pattern: their size is not that of a random start.
        """
        values = self.model.get_parameter(name).detach().double().reshape(-1).cpu()
        rest = values
        if part is not None and not part.all():
            rest = values[torch.from_numpy(~part.reshape(-1))]
        rest = rest[torch.isfinite(rest)]
        sample = rest[:: max(1, len(rest) // _SAMPLE)]
        if len(torch.unique(sample)) < min(_FEW_VALUES, len(values)):
            return None
        rms = float(rest.square().mean().sqrt())
        return rms if math.isfinite(rms) and rms > 0 else None

    def is_pattern(self, name: str) -> bool:
        """Whether a parameter holds a few values over and over, as no random start does."""
        return self._own_std(name, None) is None

    def rows(self, name: str) -> NDArray[np.int64]:
        """[rows, entries]: flat places of the entries of each row of a set of rows."""
        dims = next(r.dims for r in self.evidence.rows if r.parameter == name)
        shape = self.roles[name].shape
        places = torch.arange(math.prod(shape), device="cpu").reshape(shape)
        return np.asarray(as_rows(places, dims).numpy())

    def mask(self, name: str, places: NDArray[np.int64] | Sequence[int]) -> Mask:
        """The entries at some flat places of a parameter."""
        found = np.zeros(self.roles[name].shape, dtype=np.bool_)
        found.reshape(-1)[np.asarray(places, dtype=np.int64).reshape(-1)] = True
        return found
