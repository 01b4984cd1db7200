"""Which units are copies of one another, and the proof of it.

Units whose pre-activations and cotangents agree are candidates.  On a float64 copy of the
parameters a few steps of permutation-equivariant training (per-tensor normalized gradients) are
taken: what is still equal is locked, what has separated was breaking by itself, and a parameter
that never received a gradient is deadlocked.  A model without candidates pays for no copy and no
step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fanin.architecture import Architecture, Layer
from fanin.calls import Call
from fanin.clones import clones
from fanin.errors import ForwardError
from fanin.layers import fingerprints, tolerance_of, unit_labels
from fanin.nested import map_batch
from fanin.operations import PASSIVE
from fanin.probe import Cell, Pass, Recorder, Stand, Subject, run_pass
from fanin.sketch import classes, labels

__all__ = ["FROZEN_ZERO", "NO_SLOPE", "Deadlock", "Identity", "Symmetry", "UnitClass", "examine"]

# Virtual steps: a zero factor delays by one step each, and no intended start stacks more than two.
STEPS = 4
STEP_SIZE = 0.1  # of each tensor's own RMS; large enough to separate, small enough to kill nothing
# Equal values drift apart by round-off alone, by a factor of about two a step; 1e-16 · 2⁴ is far
# below.
LOCK_TOLERANCE = 1e-9
# In float64 a sum that cancels exactly leaves about 1e-16 of its terms.
NOISE = 1e-12


@dataclass(frozen=True)
class _Precision:
    """What the virtual steps are computed in, and what its rounding asks for.

    Attributes:
        dtype: of parameters, buffers and batch.
        lock: relative difference below which two units are the same.
        noise: share of the largest gradient below which one is nothing but rounding.
    """

    dtype: torch.dtype
    lock: float
    noise: float


_DOUBLE = _Precision(torch.float64, LOCK_TOLERANCE, NOISE)
# For a model that takes no float64, such as one with a kernel of its own.  Of the 101 faults and
# traps of tests/zoo that take steps, 99 get the same findings in either, two an S103 (info) more.
_SINGLE = _Precision(torch.float32, 1e-4, 1e-6)

FROZEN_ZERO = "a frozen zero"  # cause of a deadlock: nothing passes it, and it never changes
NO_SLOPE = "a function without slope"  # the same: rounding, or a softmax over one value
# Such functions; and those that have none over a single value.
_FLAT = frozenset({"sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "heaviside"})
_RELATIVE = frozenset({"softmax", "log_softmax", "normalize", "layer_norm", "rms_norm"})
# A cotangent below the least float32 is zero there: the far tail of GELU has one in float64.
LEAST = 1e-45

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Identity:
    """The four identities of a class of units at one virtual step.

    Each value is the largest absolute difference between two members of the class: of what they
    receive (pre-activation), what they give (after the activation), the gradient of their incoming
    weights, and the update of these weights.
    """

    step: int
    inputs: float
    outputs: float
    gradients: float
    updates: float


@dataclass(frozen=True)
class UnitClass:
    """Units of one layer that start as copies of one another.

    Attributes:
        layer: module or parameter path.
        units: indices of the copies.
        kind: "locked", "self-breaking" or "mirrored".
        step: locked and mirrored: virtual steps it was shown for; self-breaking: the step at which
            the class had separated.
        certificate: the four identities at every virtual step.
    """

    layer: str
    units: tuple[int, ...]
    kind: str
    step: int
    certificate: tuple[Identity, ...] = ()


@dataclass(frozen=True)
class Deadlock:
    """A parameter that received no gradient in any virtual step.

    Attributes:
        parameter: its path.
        layer: the layer that uses it.
        cause: "two zero factors", `FROZEN_ZERO`, "dead units", `NO_SLOPE` or "unused".
        because: the parameters, layers or functions that hold it.
    """

    parameter: str
    layer: str
    cause: str
    because: tuple[str, ...] = ()


@dataclass(frozen=True)
class Symmetry:
    """Everything found about copies.

    Attributes:
        steps: virtual steps taken; 0 means that there was nothing to prove.
        dtype: dtype of the virtual steps, or None.
        classes: classes of identical or mirrored units.
        deadlocks: parameters that never receive a gradient.
        clones: groups of module or parameter paths that start bit-identical.
    """

    steps: int = 0
    dtype: str | None = None
    classes: tuple[UnitClass, ...] = ()
    deadlocks: tuple[Deadlock, ...] = ()
    clones: tuple[tuple[str, ...], ...] = ()


def examine(
    subject: Subject, seen: Pass, progress: Callable[[str], None]
) -> tuple[Symmetry, dict[str, int]]:
    """Find copies in a pass that was seen, and prove them by virtual steps.

    Args:
        subject: what was seen.
        seen: its first pass.
        progress: told in a few words what is under way.

    Returns:
        what was found, and the distinct units of each layer that has copies, by name.

    Raises:
        ForwardError: the model, the loss or the backward pass raised in a virtual step.
        LossError: the loss is not a scalar connected to a parameter in a virtual step.
    """
    twins = clones(subject.model)
    suspects = _suspects(seen)
    stuck = [n for n, g in seen.gradients.items() if g == 0.0 and _size(subject.model, n) > 0]
    unused = tuple(
        Deadlock(n, n.rpartition(".")[0] or n, "unused")
        for n, g in seen.gradients.items()
        if g is None
    )
    if not suspects and not stuck:
        return Symmetry(deadlocks=unused, clones=twins), {}
    progress("proving symmetry")
    run = _trained(subject, seen, suspects)
    found, distinct = run.classes()
    return (
        Symmetry(
            steps=STEPS,
            dtype=str(run.precision.dtype).removeprefix("torch."),
            classes=found,
            deadlocks=(*run.deadlocks(stuck), *unused),
            clones=twins,
        ),
        distinct,
    )


def _trained(subject: Subject, seen: Pass, suspects: frozenset[Key]) -> _VirtualRun:
    """A run in float64; in float32 where something in the model takes no float64."""
    try:
        return _VirtualRun(subject, seen, suspects, _DOUBLE).train()
    except ForwardError:
        if _runs(subject, seen, suspects, _DOUBLE) is None:  # not by chance, so it may be the dtype
            single = _runs(subject, seen, suspects, _SINGLE)
            if single is not None:
                return single
        raise


def _runs(
    subject: Subject, seen: Pass, suspects: frozenset[Key], precision: _Precision
) -> _VirtualRun | None:
    with contextlib.suppress(ForwardError):
        return _VirtualRun(subject, seen, suspects, precision).train()
    return None


def _suspects(seen: Pass) -> frozenset[Key]:
    """Layers where some units agree to the precision of the pass."""
    # A head's units are told apart by the target alone: those of a zero head for classes that the
    # batch lacks are equal, and there is nothing to mend.
    found, heads = set(), seen.architecture.heads
    for layer in seen.architecture.layers:
        if layer.units is None or layer.units < 2 or not layer.trainable or layer in heads:
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
            found.add((layer.op, layer.weight))
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


def _size(model: nn.Module, name: str) -> int:
    return model.get_parameter(name).numel()


class _VirtualRun:
    """A few training steps on a copy of the parameters, and what they showed."""

    def __init__(
        self, subject: Subject, seen: Pass, keep: frozenset[Key], precision: _Precision
    ) -> None:
        self._subject, self._seen, self._keep = subject, seen, keep
        self.precision = precision
        self._batch = map_batch(self._copy, subject.batch)
        self._originals = dict(subject.model.named_parameters())
        self._copies = {
            n: self._copy(p.detach()).clone().requires_grad_(p.requires_grad)
            for n, p in self._originals.items()
        }
        named = subject.model.named_buffers()
        self._buffers = {n: self._copy(b.detach()).clone() for n, b in named}
        self._zero = {n for n, p in self._copies.items() if not bool(p.detach().any())}
        self._frozen = {n for n, p in self._copies.items() if not p.requires_grad}
        self._listen = any(g == 0.0 for g in seen.gradients.values())
        self.passes: list[Pass] = []
        self._moved: set[str] = set()

    def _copy(self, tensor: Tensor) -> Tensor:
        dtype = self.precision.dtype
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def train(self) -> _VirtualRun:
        """Take the virtual steps; the last pass only looks."""
        for step in range(STEPS + 1):
            seen, gradients = self._pass()
            self.passes.append(seen)
            moving = {
                n: g
                for n, g in gradients.items()
                if g is not None and not self._noise(n, seen, step)
            }
            self._moved |= moving.keys()
            if step < STEPS:
                self._step(moving)
        return self

    def _pass(self) -> tuple[Pass, dict[str, Tensor | None]]:
        subject = self._subject
        recorder = Recorder(subject.seed, subject.samples, keep=self._keep, listen=self._listen)
        tensors = {**self._copies, **self._buffers}
        named_buffers = dict(subject.model.named_buffers())
        substitute = {id(self._originals[n]): c for n, c in self._copies.items()}
        substitute |= {id(named_buffers[n]): b for n, b in self._buffers.items()}

        model = subject.model
        if isinstance(model, nn.DataParallel):  # functional_call refuses it
            model = model.module
            tensors = {name.removeprefix("module."): t for name, t in tensors.items()}

        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, tensors, args, kwargs)

        return run_pass(
            replace(subject, batch=map_batch(lambda t: t.detach().clone(), self._batch)),
            recorder,
            Stand(call, self._copies, substitute, self.precision.dtype),
        )

    def _noise(self, name: str, seen: Pass, step: int) -> bool:
        """Whether a gradient is nothing but the round-off of a sum that cancels."""
        rms = seen.gradients[name]
        if not rms or not math.isfinite(rms):
            return True
        largest = max(g for g in seen.gradients.values() if g is not None and math.isfinite(g))
        if rms > self.precision.noise * largest:
            return False
        first = self._seen.gradients.get(name)
        return step > 0 or not first or not 0.5 < first / rms < 2.0

    @torch.no_grad()
    def _step(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            parameter = self._copies[name]
            largest = float(gradient.abs().max())
            rms = largest * float((gradient / largest).abs().square().mean().sqrt())
            scale = float(parameter.abs().square().mean().sqrt())
            if scale == 0.0:
                width = parameter[0].numel() if parameter.dim() > 1 else 100
                scale = 1.0 / max(width, 1) ** 0.5
            parameter.add_(gradient, alpha=-STEP_SIZE * scale / rms)

    # ---- what the steps showed -------------------------------------------------------------------

    def classes(self) -> tuple[tuple[UnitClass, ...], dict[str, int]]:
        """Locked, self-breaking and mirrored classes, and distinct units by layer name."""
        found: list[UnitClass] = []
        distinct: dict[str, int] = {}
        for layer in self._seen.architecture.layers:
            if (layer.op, layer.weight) not in self._keep or layer.units is None:
                continue
            locked = self._locked(layer)
            gone = sum(len(c) - 1 for c in locked)
            distinct[layer.name] = layer.units - gone
            found += [
                UnitClass(layer.name, c, "locked", STEPS, self._certificate(layer, c))
                for c in locked
            ]
            found += self._breaking(layer, locked)
            found += self._mirrors(layer)
        return tuple(found), distinct

    def _locked(self, layer: Layer) -> list[tuple[int, ...]]:
        """Units that agree in every pass."""
        numbers = None
        for seen in self.passes:
            now = _joint(layer, seen, self.precision.lock)
            if now is None or (numbers is not None and len(now) != len(numbers)):
                return []
            if numbers is not None:
                now = np.unique(numbers * (now.max() + 1) + now, return_inverse=True)[1]
            numbers = now
        if numbers is None:
            return []
        parts = [p for c in classes(numbers) for p in self._alike(layer, c)]
        return sorted(parts)

    def _alike(self, layer: Layer, members: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The parts of a class that are copies.

        Units that never received a gradient are copies only where their weights agree too; units of
        different weights are merely silent on this batch.  So are rows of zeros that are added to
        another signal, as LoRA's B is: it is that signal that holds them, while others move.
        """
        silent = all(_silent(p, layer, members) for p in self.passes)
        rows = self._kept(0, layer, "weight")
        if not silent or rows is None or max(members) >= len(rows):
            return [members]
        flat = rows[list(members)].reshape(len(members), -1).cpu().numpy()
        if not flat.any():
            apart = len(members) < len(rows) and _summed(self._seen.architecture, layer)
            return [] if apart else [members]
        return [
            tuple(members[i] for i in part) for part in classes(labels(flat, self.precision.lock))
        ]

    def _breaking(self, layer: Layer, locked: list[tuple[int, ...]]) -> list[UnitClass]:
        """Classes that start with equal, non-zero pre-activations and separate."""
        forward, _ = fingerprints(_of(self.passes[0], layer), self.passes[0].cells)
        if forward is None:
            return []
        moving = np.flatnonzero(np.linalg.norm(forward, axis=1) > 0)
        together = {frozenset(c) for c in locked}
        result = []
        for part in classes(labels(forward[moving], self.precision.lock)):
            members = tuple(int(moving[i]) for i in part)
            step = self._separated(layer, members)
            if frozenset(members) not in together and step is not None:
                certificate = self._certificate(layer, members)
                result.append(UnitClass(layer.name, members, "self-breaking", step, certificate))
        return result

    def _separated(self, layer: Layer, members: tuple[int, ...]) -> int | None:
        for step, seen in enumerate(self.passes):
            forward, _ = fingerprints(_of(seen, layer), seen.cells)
            if forward is None:
                continue
            apart = set(labels(forward, self.precision.lock)[list(members)])
            if len(apart) == len(members):
                return step
        return None

    def _mirrors(self, layer: Layer) -> list[UnitClass]:
        held: set[tuple[int, ...]] | None = None
        for seen in self.passes:
            forward, cotangent = fingerprints(_of(seen, layer), seen.cells)
            if forward is None or cotangent is None:
                return []
            now = set(_mirrored(forward, cotangent, self.precision.lock))
            held = now if held is None else held & now
        return [UnitClass(layer.name, pair, "mirrored", STEPS) for pair in sorted(held or ())]

    def _certificate(self, layer: Layer, members: tuple[int, ...]) -> tuple[Identity, ...]:
        rows = []
        for step in range(STEPS):
            weight, later = self._kept(step, layer, "weight"), self._kept(step + 1, layer, "weight")
            update = None if weight is None or later is None else later - weight
            inputs = _difference(self._kept(step, layer, "input"), members)
            output = self._kept(step, layer, "output")
            rows.append(
                Identity(
                    step=step,
                    inputs=inputs,
                    outputs=inputs if output is None else _difference(output, members),
                    gradients=_difference(self._kept(step, layer, "gradient"), members, update),
                    updates=_difference(update, members),
                )
            )
        return tuple(rows)

    def _kept(self, step: int, layer: Layer, what: str) -> Tensor | None:
        seen = self.passes[step]
        for index in _of(seen, layer).calls:
            cell: Cell | None = seen.cells.get(index)
            if cell is not None and what in cell.kept:
                return cell.kept[what]
        return None

    def deadlocks(self, stuck: list[str]) -> tuple[Deadlock, ...]:
        """Parameters of `stuck` that no virtual step moved, each with what holds it."""
        held = [n for n in stuck if n not in self._moved]
        if not held:
            return ()
        read = self.passes[0].architecture
        dead = {i for i, c in self.passes[0].cells.items() if c.dead == 1.0}
        dead = {i for i in dead if all(_dead_at(p, i) for p in self.passes)}
        still = [n for n in (*held, *sorted(self._frozen)) if n in self._zero]
        zeros = {n: at for n in still if (at := read.factors({n}))}
        found = (self._deadlock(name, held, zeros, dead, read) for name in held)
        return tuple(d for d in found if d is not None)

    def _deadlock(
        self,
        name: str,
        held: list[str],
        zeros: Mapping[str, set[int]],
        dead: set[int],
        read: Architecture,
    ) -> Deadlock | None:
        users = [layer for layer in read.layers if name in layer.parameters]
        if not users:
            return None
        beside = _beside(read, name, [n for n in held if n in self._zero])
        if beside and name in self._zero:
            return Deadlock(name, users[0].name, "two zero factors", beside)
        own = {i for layer in users for i in layer.calls}
        cells = [p.cells[i] for p in self.passes for i in own if i in p.cells]
        silent = not any((c.cotangent_squares or 0.0) > LEAST**2 for c in cells)
        stops = dead.union(*zeros.values()) if zeros else dead
        reach = read.first_met(own, stops, onward=silent)
        others = {n: at for n, at in zeros.items() if n != name}
        partners = {n for n, at in others.items() if silent and _multiplied(read, own, at)}
        factors = [n for n, at in others.items() if (at & reach) - own or n in partners]
        if read.open_way(own, stops, onward=silent):  # a zero gradient of another cause
            factors = [n for n in factors if n not in self._frozen or n in partners]
        met = reach | own if silent else reach
        flat = [y.name for y in read.layers if set(y.calls) & dead & met]
        if not factors and not flat:
            functions = self._without_slope(read, own) if silent else ()
            return Deadlock(name, users[0].name, NO_SLOPE, functions) if functions else None
        cause = "two zero factors" if factors or name in self._zero else "dead units"
        if factors and self._frozen.issuperset(factors):
            cause = FROZEN_ZERO
        return Deadlock(name, users[0].name, cause, tuple(dict.fromkeys([*factors, *flat]))[:8])

    def _without_slope(self, read: Architecture, start: set[int]) -> tuple[str, ...]:
        """Functions that get a gradient, and hand none of it back to what `start` makes.

        Where anything moves, only those that are known to have none: a loss may be weighted with
        zero on purpose.
        """
        heard = frozenset[int]().union(*(p.heard for p in self.passes))
        met, seen, queue = [], set(start), list(start)
        while queue:
            for call in read.followers.get(queue.pop(), ()):
                if call.index in heard:
                    met.append(call)
                elif call.index not in seen:
                    seen.add(call.index)
                    queue.append(call.index)
        known = [c for c in met if _has_no_slope(c) or not self._moved]
        return tuple(dict.fromkeys(f"{c.op} in {c.module}" if c.module else c.op for c in known))


def _has_no_slope(call: Call) -> bool:
    return call.op in _FLAT or (call.op in _RELATIVE and 1 in call.shape[1:])


def _beside(read: Architecture, name: str, zeros: Sequence[str]) -> tuple[str, ...]:
    """Zeros that one weight is computed from together with a parameter: the factors of a LoRA."""
    operands = (o for call in read.trace.calls for o in call.operands if name in o.parameters)
    found = {n for o in operands for n in o.parameters}
    return tuple(n for n in zeros if n in found and n != name)


_PRODUCTS = frozenset(
    {"mul", "matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
)


def _multiplied(read: Architecture, one: set[int], other: set[int]) -> bool:
    """Whether two layers side by side meet in a product first, as queries and keys do."""
    if one & other:
        return False
    common = read.descendants(one) & read.descendants(other)
    first = min(common, default=None)
    apart = first is not None and first not in one | other
    return apart and read.trace.calls[first or 0].op in _PRODUCTS


def _silent(seen: Pass, layer: Layer, members: tuple[int, ...]) -> bool:
    cotangent = fingerprints(_of(seen, layer), seen.cells)[1]
    return cotangent is not None and not cotangent[list(members)].any()


# With one signal alone: a frozen batch norm adds a constant, a bias of its own a parameter.
_HANDING_ON = PASSIVE | {"mul", "div", "scale", "add", "sub", "shift"}


def _summed(read: Architecture, layer: Layer) -> bool:
    """Whether a layer's output meets another signal in a sum before anything bends it."""
    queue = list(layer.calls)
    while queue:
        for after in read.followers.get(queue.pop(), ()):
            if after.op in ("add", "sub") and len(after.inputs) > 1:
                return True
            if after.op in _HANDING_ON and len(after.inputs) == 1:
                queue.append(after.index)
    return False


def _dead_at(seen: Pass, index: int) -> bool:
    return index in seen.cells and seen.cells[index].dead == 1.0


def _of(seen: Pass, layer: Layer) -> Layer:
    """The same layer as it was seen in another pass."""
    for other in seen.architecture.layers:
        if other.op == layer.op and other.weight == layer.weight:
            return other
    return layer


def _joint(layer: Layer, seen: Pass, tolerance: float) -> np.ndarray | None:
    there = _of(seen, layer)
    if fingerprints(there, seen.cells)[1] is None:
        return None
    return unit_labels(there, seen.cells, tolerance)


def _difference(rows: Tensor | None, members: tuple[int, ...], like: Tensor | None = None) -> float:
    """Largest absolute difference between members; 0 for a gradient that never came."""
    if rows is None:
        return 0.0 if like is not None else math.nan
    inside = [m for m in members if m < len(rows)]
    if len(inside) < 2:
        return math.nan
    part = rows[inside]
    return float((part - part[:1]).abs().max()) if part.numel() else 0.0
