"""Units that agree: suspects of one pass, and what the virtual steps show of them."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from fanin.architecture import Key, Layer
from fanin.calls import Call
from fanin.kinds import BENDING, PASSIVE
from fanin.layers import fingerprints, tolerance_of, unit_labels
from fanin.passes import Pass
from fanin.sketch import classes, joint, labels
from fanin.symmetry.result import Identity, UnitClass
from fanin.symmetry.steps import VirtualRun, counterpart

__all__ = ["suspects", "unit_classes"]


def suspects(seen: Pass) -> frozenset[Key]:
    """Layers where some units agree to the precision of the pass."""
    # The units of a layer at the end are told apart by the target alone: those of a zero head for
    # classes that the batch lacks are equal, and there is nothing to mend.
    found, ends = set(), seen.architecture.ends
    for layer in seen.architecture.layers:
        if layer.units is None or layer.units < 2 or not layer.trainable or layer in ends:
            continue
        forward, cotangent = fingerprints(layer, seen.cells)
        if forward is None or cotangent is None or not np.any(np.isfinite(forward)):
            continue
        tolerance = tolerance_of(layer, seen.cells)
        both = unit_labels(layer, seen.cells, tolerance)
        moving = np.flatnonzero(np.linalg.norm(forward, axis=1) > 0)
        if (
            (both is not None and classes(both))
            or classes(labels(forward[moving], tolerance))
            or _mirrored(forward, cotangent, tolerance)
        ):
            found.add(layer.key)
    return frozenset(found)


def _mirrored(
    forward: np.ndarray, cotangent: np.ndarray, tolerance: float
) -> list[tuple[int, ...]]:
    """Pairs of units that are each other's negative, forward and backward."""
    if (
        forward.shape != cotangent.shape
        or not np.isfinite([_scale(forward), _scale(cotangent)]).all()
    ):
        return []
    moving = np.flatnonzero(
        (np.linalg.norm(forward, axis=1) > 0) & (np.linalg.norm(cotangent, axis=1) > 0)
    )
    if len(moving) < 2:
        return []
    f, c = forward[moving], cotangent[moving]
    lead = np.abs(f).argmax(axis=1)
    sign = np.sign(f[np.arange(len(f)), lead])[:, None]
    scaled = np.hstack([sign * f / _scale(f), sign * c / _scale(c)])
    pairs = classes(labels(scaled, tolerance))
    opposite = [p for p in pairs if len(set(sign[list(p), 0])) == 2]
    return [tuple(int(moving[i]) for i in p) for p in opposite]


def _scale(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(vectors)))) or 1.0


def unit_classes(run: VirtualRun) -> tuple[tuple[UnitClass, ...], dict[Key, int]]:
    """Locked, self-breaking and mirrored classes, and distinct units by layer."""
    found: list[UnitClass] = []
    distinct: dict[Key, int] = {}
    for layer in run.seen.architecture.layers:
        if layer.key not in run.keep or layer.units is None:
            continue
        locked = _locked(run, layer)
        gone = sum(len(c) - 1 for c in locked)
        distinct[layer.key] = layer.units - gone
        found += [
            UnitClass(layer.name, c, "locked", run.steps, _certificate(run, layer, c))
            for c in locked
        ]
        found += _breaking(run, layer, locked)
        found += _mirrors(run, layer)
    return tuple(found), distinct


def _locked(run: VirtualRun, layer: Layer) -> list[tuple[int, ...]]:
    """Units that agree in every pass."""
    numbers = None
    for seen in run.passes:
        now = _joint(layer, seen, run.precision.lock)
        if now is None or (numbers is not None and len(now) != len(numbers)):
            return []
        numbers = now if numbers is None else joint(numbers, now)
    if numbers is None:
        return []
    parts = [p for c in classes(numbers) for p in _alike(run, layer, c)]
    return sorted(parts)


def _alike(run: VirtualRun, layer: Layer, members: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The parts of a class that are copies.

    Units that never received a gradient are copies only where their weights agree too; units of
    different weights are merely silent on this batch.  So are rows of zeros, while others move,
    that are added to another signal, as LoRA's B is: it is that signal that holds them.  And those
    that a constant takes away, as the mask of a coupling layer does: nothing can make them move.
    """
    silent = all(_silent(p, layer, members) for p in run.passes)
    rows = run.kept(0, layer, "weight")
    if not silent or rows is None or max(members) >= len(rows):
        return [members]
    flat = rows[list(members)].reshape(len(members), -1).cpu().numpy()
    if not flat.any():
        if len(members) == len(rows):
            return [members]
        held = _held_elsewhere(run, layer)
        left = tuple(m for m in members if m not in held)
        return [left] if len(left) > 1 else []
    return [tuple(members[i] for i in part) for part in classes(labels(flat, run.precision.lock))]


def _breaking(run: VirtualRun, layer: Layer, locked: list[tuple[int, ...]]) -> list[UnitClass]:
    """Classes that start with equal, non-zero pre-activations and separate."""
    forward, _ = fingerprints(counterpart(run.passes[0], layer), run.passes[0].cells)
    if forward is None:
        return []
    moving = np.flatnonzero(np.linalg.norm(forward, axis=1) > 0)
    together = {frozenset(c) for c in locked}
    result = []
    for part in classes(labels(forward[moving], run.precision.lock)):
        members = tuple(int(moving[i]) for i in part)
        step = _separated(run, layer, members)
        if frozenset(members) not in together and step is not None:
            certificate = _certificate(run, layer, members)
            result.append(UnitClass(layer.name, members, "self-breaking", step, certificate))
    return result


def _separated(run: VirtualRun, layer: Layer, members: tuple[int, ...]) -> int | None:
    for step, seen in enumerate(run.passes):
        forward, _ = fingerprints(counterpart(seen, layer), seen.cells)
        if forward is None:
            continue
        apart = set(labels(forward, run.precision.lock)[list(members)])
        if len(apart) == len(members):
            return step
    return None


def _mirrors(run: VirtualRun, layer: Layer) -> list[UnitClass]:
    held: set[tuple[int, ...]] | None = None
    for seen in run.passes:
        forward, cotangent = fingerprints(counterpart(seen, layer), seen.cells)
        if forward is None or cotangent is None:
            return []
        now = set(_mirrored(forward, cotangent, run.precision.lock))
        held = now if held is None else held & now
    return [UnitClass(layer.name, pair, "mirrored", run.steps) for pair in sorted(held or ())]


def _certificate(run: VirtualRun, layer: Layer, members: tuple[int, ...]) -> tuple[Identity, ...]:
    rows = []
    for step in range(run.steps):
        weight, later = run.kept(step, layer, "weight"), run.kept(step + 1, layer, "weight")
        update = None if weight is None or later is None else later - weight
        inputs = _difference(run.kept(step, layer, "input"), members)
        output = run.kept(step, layer, "output")
        rows.append(
            Identity(
                step=step,
                inputs=inputs,
                outputs=inputs if output is None else _difference(output, members),
                gradients=_difference(run.kept(step, layer, "gradient"), members, update),
                updates=_difference(update, members),
            )
        )
    return tuple(rows)


def _silent(seen: Pass, layer: Layer, members: tuple[int, ...]) -> bool:
    cotangent = fingerprints(counterpart(seen, layer), seen.cells)[1]
    return cotangent is not None and not cotangent[list(members)].any()


# With one signal alone: a frozen batch norm adds a constant, a bias of its own a parameter.
_HANDING_ON = PASSIVE | {"mul", "div", "scale", "add", "sub", "shift"}
# Functions that keep some units and take others away, by a tensor that is not learned.
_MATMULS = frozenset({"matmul", "mm"})
_MASKS = _MATMULS | {"masked_fill"}
_PICKS = frozenset({"__getitem__", "narrow", "select", "index_select", "gather"})


def _held_elsewhere(run: VirtualRun, layer: Layer) -> set[int]:
    """Units that meet another signal in a sum before anything bends them, or a mask.

    A mask may stand behind functions that bend.
    """
    read, here = run.passes[0].architecture, counterpart(run.passes[0], layer)
    units, held = layer.units or 0, set[int]()
    own = read.descendants(here.calls)
    queue = [(index, False) for index in here.calls]
    seen = {index for index, _ in queue}
    while queue:
        index, bent = queue.pop()
        for after in read.followers[index]:
            if after.op in ("add", "sub") and len(after.inputs) > 1 and not bent:
                return set(range(units))
            chosen = any(i in own and i not in run.signals for i in after.inputs)
            if not chosen and _may_mask(after, units):  # not by what the layer itself gives
                held |= _taken(run, after, index, units)
            if (
                after.op in _HANDING_ON | BENDING
                and len(after.inputs) == 1
                and after.index not in seen
            ):
                seen.add(after.index)
                queue.append((after.index, bent or after.op in BENDING))
    return held


def _may_mask(call: Call, units: int) -> bool:
    if call.op == "where":
        return True
    if len(call.inputs) > 1 or call.operands:
        return call.op == "masked_fill" and not call.operands
    if call.op in _PICKS:  # a position alone takes no unit away
        return units not in call.shape
    return call.op in _MASKS or (call.op == "mul" and call.option is None)


def _taken(run: VirtualRun, call: Call, before: int, units: int) -> set[int]:
    """Units to which a gradient comes behind a call, but in no pass in front of it."""
    behind, front = run.arrived.get(call.index), run.arrived.get(before)
    if behind is None or front is None or behind.dim() == 0 or front.dim() == 0:
        return set()
    if call.op in _MATMULS:
        behind, front = _columns(behind), _columns(front)
    if call.op in _PICKS or (call.op in _MATMULS and len(behind) != len(front)):
        # Which units it keeps is not known; where all that it keeps is alive, no silent one is.
        behind = behind.all()
    while behind.dim() > front.dim():
        behind = behind.any(0)
    try:
        shape = (behind | front).shape
    except RuntimeError:
        return set()
    behind, front = behind.expand(shape), front.expand(shape)
    at = [d for d, n in enumerate(shape) if n == units]
    if len(at) != 1:  # in heads or halves: which unit is which is lost
        return set(range(units)) if bool((behind & ~front).any()) else set()
    behind, front = (t.movedim(at[0], 0).reshape(units, -1).any(1) for t in (behind, front))
    return set((behind & ~front).nonzero().flatten().tolist())


def _columns(some: Tensor) -> Tensor:
    return some.reshape(-1, some.shape[-1]).any(0)


def _joint(layer: Layer, seen: Pass, tolerance: float) -> np.ndarray | None:
    """The class of each unit of a pass, by what it receives and by its cotangent."""
    there = counterpart(seen, layer)
    if fingerprints(there, seen.cells)[1] is None:
        return None
    return unit_labels(there, seen.cells, tolerance)


def _difference(rows: Tensor | None, members: tuple[int, ...], like: Tensor | None = None) -> float:
    """Largest absolute difference between members; 0 for a gradient that never came."""
    if rows is None:
        return 0.0 if like is not None else math.nan
    units = len(rows)
    inside = [m for m in members if m < units]
    if len(inside) < 2:
        return math.nan
    part = rows[inside]
    return float((part - part[:1]).abs().max()) if part.numel() else 0.0
