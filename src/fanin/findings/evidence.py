"""All that the rules may look at: what was measured, and nothing that can still be changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fanin.architecture import Layer
from fanin.branches import ResidualBranch
from fanin.calls import Call
from fanin.findings.closed import constant
from fanin.layers import Depth, LayerStats
from fanin.numbers import Audit
from fanin.passes import Pass
from fanin.probe import Cell
from fanin.sides import Side, sides
from fanin.symmetry import RowSet, Symmetry
from fanin.towers import towers
from fanin.wording import layer_named

__all__ = ["Evidence", "Station", "Tower", "depth_of", "stations", "towers_of"]


@dataclass(frozen=True)
class Station:
    """A place on the trunk, which every path from the batch to the output passes, or on a tower.

    Attributes:
        index: of its call.
        place: layer name, or module path of a sum.
        rms: of the signal there.
        variation: RMS deviation across samples over rms.
        norm: Euclidean norm of the cotangent; stays put under a fan_in start, whatever the shapes.
        cell: everything measured there.
        layer: the weighted layer, None for a sum.
    """

    index: int
    place: str
    rms: float
    variation: float | None
    norm: float | None
    cell: Cell
    layer: Layer | None

    @property
    def shown(self) -> str:
        """The place in words."""
        return layer_named(self.place)


@dataclass(frozen=True)
class Tower:
    """A chain of places that some paths from the batch pass, and others go around.

    Attributes:
        run: the places.
        apart: whether it begins at the batch itself.
        reset: index of the last normalization in front of its last layer, -1 without one.
    """

    run: tuple[Station, ...]
    apart: bool
    reset: int


@dataclass(frozen=True)
class Evidence:
    """What the rules judge.

    Attributes:
        seen: the one forward and backward pass.
        layers: statistics of each layer, in order of execution.
        branches: residual branches; those of the layers point to them.
        trunk: what was measured where every path passes.
        towers: the same of chains that paths go around.
        symmetry: copies, deadlocks and clones.
        audits: the entries of each parameter.
        depth: growth along depth.
        samples: batch size.
        input_variation: how different the samples of the batch are, relative to their size.
        input_rms: size of the largest floating input of the batch.
        limit: largest finite value of the dtype that training will use, and its name.
        out_of_range: (call, value) of the first result beyond the limit.
        rows: parameters that are sets of rows, some of which look like copies.
        repeats: (parameter, repeated rows, rows) of matrices with many bit-identical rows.
        unwritten: parameters that were allocated and never written (a watched construction).
        idle: (parameter, std, bound in std) of truncations that cut nothing (a watched
            construction).
        lost: parameters that a weight is computed from, where an initializer drew that weight and
            not them (a watched construction).
        shared: pairs of parameters that lie in the same memory.
        thrown: parameters of the shape of a draw that went nowhere (a watched construction).
        refused: what the forward or the loss raised where entries are not finite; the pass was then
            made with zeros in their place.
        misplaced: last layers that their biases hold where they hardly learn, for no gain.
        met: the loss given, where the output is where it is least; `seen` is then without it.
        at_unit: a loss of which guesses are not known, were no output larger than 1 in size; where
            it is large.
    """

    seen: Pass
    layers: tuple[LayerStats, ...]
    branches: tuple[ResidualBranch, ...]
    trunk: tuple[Station, ...]
    symmetry: Symmetry
    audits: tuple[Audit, ...]
    depth: Depth
    samples: int | None
    input_variation: float | None
    limit: tuple[float, str]
    input_rms: float | None = None
    out_of_range: tuple[Call, float] | None = None
    towers: tuple[Tower, ...] = ()
    rows: tuple[RowSet, ...] = ()
    repeats: tuple[tuple[str, int, int], ...] = ()
    unwritten: tuple[str, ...] = ()
    idle: tuple[tuple[str, float, float], ...] = ()
    lost: tuple[str, ...] = ()
    shared: tuple[tuple[str, str], ...] = ()
    thrown: tuple[str, ...] = ()
    refused: str = ""
    misplaced: frozenset[str] = frozenset()
    met: float | None = None
    at_unit: float | None = None

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """What single tensors of the batch go through alone."""
        return sides(self.seen.architecture)

    @cached_property
    def passed(self) -> frozenset[int]:
        """Calls that every path from the batch, or from the tensor of a side, passes."""
        read = self.seen.architecture
        return frozenset(read.trunk).union(*(side.passed for side in self.sides))

    @cached_property
    def zeros(self) -> frozenset[str]:
        """Parameters whose entries are all zero."""
        return frozenset(a.name for a in self.audits if a.zero)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Parameters that stay as they are."""
        return frozenset(p.name for p in self.seen.architecture.parameters if not p.trainable)

    @cached_property
    def constant(self) -> set[int]:
        """Calls that the batch reaches through weights of zero alone, for now."""
        return constant(self.seen, self.zeros - self.frozen)

    @cached_property
    def sizes(self) -> Mapping[str, float]:
        """Root mean square of each parameter's entries."""
        return {a.name: a.rms for a in self.audits}

    def place(self, call: Call) -> str:
        """Name of the layer a call belongs to, else of the module it ran in."""
        layer = self.seen.architecture.layer_of.get(call.index)
        return call.module if layer is None else layer.name

    def order(self, name: str) -> int:
        """Place of a layer or parameter in the order of execution."""
        for i, layer in enumerate(self.layers):
            if layer.name == name or name in layer.parameters:
                return i
        return len(self.layers)


def stations(seen: Pass, indices: Iterable[int]) -> tuple[Station, ...]:
    """Those of some calls that are measured, and part of the model."""
    found = []
    trace, layer_of = seen.architecture.trace, seen.architecture.layer_of
    for index in indices:
        cell, layer, call = seen.cells.get(index), layer_of.get(index), trace.calls[index]
        if cell is None or cell.count == 0 or not call.varies or index >= trace.length:
            continue
        found.append(
            Station(
                index=index,
                place=layer.name if layer is not None else call.module,
                rms=cell.rms,
                variation=cell.variation,
                norm=None if cell.cotangent_squares is None else cell.cotangent_squares**0.5,
                cell=cell,
                layer=layer,
            )
        )
    return tuple(found)


def towers_of(seen: Pass) -> tuple[Tower, ...]:
    """The chains beside the trunk that have a place at all."""
    found, read = [], seen.architecture
    for calls, apart in towers(read):
        run = stations(seen, calls)
        last = max((s.index for s in run if s.layer is not None), default=-1)
        norms = (i for i in calls if i <= last and read.normalizes(read.trace.calls[i]))
        if run:
            found.append(Tower(run, apart, max(norms, default=-1)))
    return tuple(found)


# A turn is named only where a run of layers changes the scale by this factor in one direction.
TURN = 10.0


def depth_of(trunk: Sequence[Station]) -> Depth:
    """Growth per layer along the trunk, and where the longest sustained change begins."""
    signal = [(s.place, s.rms) for s in trunk if s.rms > 0 and math.isfinite(s.rms)]
    back = [(s.place, s.norm) for s in reversed(trunk) if s.norm and math.isfinite(s.norm)]
    return Depth(
        signal_growth=_growth(signal),
        cotangent_growth=_growth(back),
        signal_turn=_turn(signal),
        cotangent_turn=_turn(back),
    )


def _growth(values: Sequence[tuple[str, float]]) -> float | None:
    if len(values) < 2:
        return None
    return float(math.exp(math.log(values[-1][1] / values[0][1]) / (len(values) - 1)))


def _turn(values: Sequence[tuple[str, float]]) -> str | None:
    best, where, start = math.log(TURN), None, 0
    for i in range(1, len(values)):
        rising = values[i][1] >= values[i - 1][1]
        if i > 1 and rising != (values[i - 1][1] >= values[i - 2][1]):
            start = i - 1
        change = abs(math.log(values[i][1] / values[start][1]))
        if change > best:
            best, where = change, values[start][0]
    return where
