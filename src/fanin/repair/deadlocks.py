"""Remedies for gradients that never come: S102, and P205's dead units."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fanin.architecture import Layer
from fanin.assignment import Assignment
from fanin.findings import Finding
from fanin.kinds import NORMS
from fanin.repair.case import DRAWN, Case
from fanin.repair.signals import DROWNED, without_bias
from fanin.repair.wiring import Wire
from fanin.symmetry import NO_SLOPE, STILL, UNUSED
from fanin.wording import layer_named, listed

__all__ = ["dead_units", "gradient_deadlock"]

# No default bias is larger: that of one input lies within ± 1, with an rms of 0.58.
_LARGE_BIAS = 0.6
_NO_START = (UNUSED, NO_SLOPE)  # no values of the parameters end these
# How much a zero is meant: what comes first is given a value first.
_ORDINARY, _SCALE, _LAST, _MEANT = range(4)
_SCALES = ("norm_scale", "branch_scale", "scale", "magnitude")
_FACTORS = (*DRAWN, "computed", "unknown", *_SCALES)


def gradient_deadlock(case: Case, _finding: Finding, level: int) -> list[Assignment]:
    """One of the factors that hold each other at zero is given a value, the other stays.

    Zeros that have a purpose (a residual branch's last layer, LoRA's B, an output layer) are the
    last to be changed.  Where dead units hold the gradient, these are brought back to life.
    """
    held = [d for d in case.report.symmetry.deadlocks if d.cause not in _NO_START]
    flat = {b for d in held for b in d.because if b not in case.roles}
    revived = {a.parameter: a for a in _alive_again(case, flat, level)}
    if revived:  # a zero behind dead units may be sound
        return list(revived.values())
    if level == 0 and any(f.code == "P207" for f in case.report.findings):
        drowning = list(without_bias(case, case.roles, DROWNED, least=1.0))
        if drowning:  # so may one beside a layer that its biases hold dead (LoRA's B)
            return drowning
    if level == 0 and any(d.cause == STILL for d in held):
        shut = list(without_bias(case, case.roles, DROWNED, least=_LARGE_BIAS))
        if shut:  # a gate, or what else stands last before the loss
            return shut
    chosen = {name: group for group in _groups(case) for name in _chosen(case, group)}
    if any(_meant(case, name) < _LAST for name in chosen):
        # those that have a purpose wait: what is given a value now may free them
        chosen = {name: group for name, group in chosen.items() if _meant(case, name) < _LAST}
    made = {
        name: case.alive(name, f"a zero that held {_others(group, name)} and itself")
        for name, group in chosen.items()
    }
    if level > 1 and not made:
        names = case.parameters_at((d.parameter for d in held), _FACTORS)
        made = {n: case.alive(n, "no gradient reached it") for n in names}
    return list(made.values())


def _others(group: Sequence[str], name: str) -> str:
    return listed((n for n in group if n != name), 2) or "the layers before it"


def _groups(case: Case) -> Iterator[list[str]]:
    """Zero factors that hold one another, in the order of execution."""
    order = {
        n: i
        for i, layer in enumerate(case.evidence.seen.architecture.layers)
        for n in layer.parameters
    }
    owner = {
        y.name: y.weight[0] for y in case.evidence.seen.architecture.layers if len(y.weight) == 1
    }
    zeros = {n for n in case.zeros if _may_hold(case, n)}
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for deadlock in case.report.symmetry.deadlocks:
        if deadlock.cause in _NO_START:
            continue
        named = [deadlock.parameter, *(owner.get(b, b) for b in deadlock.because)]
        holders = [n for n in named if n in zeros]
        for name in holders:
            root[find(name)] = find(holders[0])
    groups: dict[str, list[str]] = {}
    for name in sorted(root, key=lambda n: order.get(n, len(order))):
        groups.setdefault(find(name), []).append(name)
    yield from groups.values()


def _may_hold(case: Case, name: str) -> bool:
    role = case.roles.get(name)
    return role is not None and role.trainable and role.kind in _FACTORS


def _chosen(case: Case, group: Sequence[str]) -> list[str]:
    """Those of a group that are given a value: the least meant ones, the last of a kind stays."""
    levels = {name: _meant(case, name) for name in group}
    least = min(levels.values())
    chosen = [name for name in group if levels[name] == least]
    return chosen[:-1] if len(chosen) == len(group) > 1 else chosen


def _meant(case: Case, name: str) -> int:
    role = case.roles[name]
    if role.head or role.low_rank == "B":
        return _MEANT
    if role.last and role.branch is not None:
        return _LAST
    return _SCALE if role.kind in _SCALES else _ORDINARY


# ---- dead units ----------------------------------------------------------------------------------


def dead_units(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Biases of the dead units first, then their weights, then all of their layers."""
    if level > 1:
        names = case.parameters_at(finding.layers, ("weight", "bias", "norm_scale", "norm_shift"))
        return case.all_anew(names, "its units are dead")
    found = _alive_again(case, finding.layers, level)
    return list({a.parameter: a for a in found}.values())


def _alive_again(case: Case, layers: Collection[str], level: int) -> Iterator[Assignment]:
    """Dead units brought back; those behind a dead layer are as dead as it, and may be sound.

    A layer whose weight, or the scale of a norm behind it, is all zero is no matter of dead units,
    and no more is one behind a zero that is part of the deadlock.
    """
    read, cells = case.evidence.seen.architecture, case.evidence.seen.cells
    listed = [y for y in read.layers if y.name in layers]
    held = _zeros_that_hold(case)
    for layer in listed:
        own = set(layer.calls)
        before = read.ancestors(own) - own
        behind = any(before & set(y.calls) for y in listed if y.name != layer.name)
        # what its outputs are multiplied with is read on the way to where they are flat
        flat = {cells[i].dead_at for i in own if i in cells} - {None}
        before |= read.ancestors(i for i in flat if i is not None) - own
        above = [y for y in read.layers if before & set(y.calls)]
        factors = [*layer.weight, *_read_by(case, layer, "norm_scale")]
        factors += [n for y in above for n in y.parameters if n in held]
        if case.zeros.isdisjoint(factors):
            yield from _revived(case, layer, level, not behind)


def _zeros_that_hold(case: Case) -> set[str]:
    """Zero factors that deadlocks name, themselves or by their layer."""
    named = {n for d in case.report.symmetry.deadlocks for n in (d.parameter, *d.because)}
    layers = case.evidence.seen.architecture.layers
    named |= {n for y in layers if y.name in named for n in y.parameters}
    return {n for n in named & case.zeros if _may_hold(case, n)}


def _revived(case: Case, layer: Layer, level: int, first: bool) -> Iterator[Assignment]:
    """The dead units of a layer: their biases, or (level 1, or without biases) their weights."""
    names = case.parameters_at([layer.name])
    if layer.op in NORMS:
        for name in names:
            if case.roles[name].kind == "norm_shift" and name not in case.zeros:
                yield case.constant(
                    name, 0.0, f"it holds all units of {layer_named(layer.name)} down"
                )
        return
    wire = next((case.wires[n] for n in names if n in case.wires), None)
    if wire is None or wire.dead is None or not wire.dead.any():
        return
    dead, count = np.flatnonzero(wire.dead), int(wire.dead.sum())
    because = f"{count} of the {len(wire.dead)} units of {layer_named(layer.name)} are dead"
    moved = False
    for name in (
        _read_by(case, layer, "norm_shift") or names
    ):  # a norm takes the bias before it away
        role = case.roles[name]
        if role.kind not in ("bias", "norm_shift") or name in case.zeros:
            continue
        rows = wire.others[name][dead] if name in wire.others else dead
        if role.shape == (len(wire.dead),) or name in wire.others:
            moved = True
            told = f"{because}: their biases start at zero"
            yield case.constant(name, 0.0, told, case.mask(name, rows))
    if first and (level or not moved) and wire.units is not None:
        yield from _redrawn(case, wire, dead, because)


def _redrawn(case: Case, wire: Wire, dead: np.ndarray, because: str) -> Iterator[Assignment]:
    assert wire.units is not None
    inside = dead[dead < len(wire.units)]
    if case.roles[wire.parameter].trainable and len(inside):
        part = case.mask(wire.parameter, wire.units[inside])
        yield case.fresh(wire.parameter, f"{because}: their weights are drawn again", part)


def _read_by(case: Case, layer: Layer, kind: str) -> list[str]:
    """Scales or shifts of the norms that read a layer."""
    read, calls = case.evidence.seen.architecture, set(layer.calls)
    norms = [y for y in read.layers if y.op in NORMS]
    after = [y for y in norms if any(calls & set(read.trace.calls[c].behind) for c in y.calls)]
    known = [n for y in after for n in y.parameters if n in case.roles]
    return [n for n in known if case.roles[n].trainable and case.roles[n].kind == kind]
