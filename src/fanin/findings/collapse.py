"""P207: samples that differ at the input and are the same further on, on the trunk.

Thresholds are set as in `fanin.findings.signals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fanin.architecture import Architecture, Layer
from fanin.findings.closed import shut
from fanin.findings.evidence import Evidence, Station
from fanin.findings.lost import LEAST_GIVEN, Lost, lost
from fanin.findings.reach import NEXT_TO_ZERO, from_nothing, gain, is_zero, live
from fanin.findings.rules import Finding, finding
from fanin.findings.signals import ABOVE_TARGET, EXPLODING, spread_of, stretch
from fanin.kinds import NORMS, PASSIVE
from fanin.passes import Pass
from fanin.probe import ALIKE
from fanin.wording import layer_named, listed

__all__ = ["RULES"]

# Variation across samples over that of the batch.  Labelled: sound down to 6e-5 (a convolution;
# 1.1e-3 for fully connected ones), one faulty at 7e-4, the others from 3e-6 down.  Healthy zoo:
# 1.7e-3.
COLLAPSED, COLLAPSING = 2e-5, ALIKE
# A batch whose own samples differ by less than this cannot show a collapse.
SAME_BATCH = 1e-3


def collapsed(evidence: Evidence) -> Iterator[Finding]:
    """P207: samples that differ at the input and are the same further on."""
    given = evidence.input_variation
    if given is not None and given > SAME_BATCH:
        yield from _same_samples(evidence, given)
    yield from _constant_norms(evidence)


def _same_samples(evidence: Evidence, given: float) -> Iterator[Finding]:
    """Places where samples that differ by `given` in the batch hardly do."""
    scale = min(1.0, given)
    low, starved = _alike(evidence, scale)
    if starved is not None and not _is_its_bias(evidence, starved):
        yield _told(evidence, starved, scale)
    elif starved is None and not low:
        yield from _noise(evidence)
    if not low or _head_alone(evidence, low):
        return
    held = _frozen(evidence, low[0])
    named = {n for d in evidence.symmetry.deadlocks for n in (d.layer, *d.because)}
    if any(y.name in named or y.weight[0] in named for y in held):
        return  # S102 tells of it
    least, frozen = min(s.variation or 0.0 for s in low), [y.name for y in held]
    cause = _held_back(frozen) if frozen else lost(evidence, low[0])
    yield finding(
        "P207",
        "error" if least < COLLAPSED * scale else "warning",
        [*frozen, *(s.place for s in low)],
        measured=f"samples differ by {least:.2g} of the signal's rms at {low[-1].shown}",
        expected=f"above {COLLAPSING * scale:.1g} (the batch's own samples differ by {given:.2g})",
        message="Different inputs can no longer be told apart: the signal is alive, but the "
        "same for all of them.",
        why=cause and cause.why,
        fix=cause and cause.fix,
    )


def _held_back(frozen: Sequence[str]) -> Lost:
    return Lost(
        f"{listed(frozen)}: frozen at or next to zero, and every path from the inputs passes "
        "there. What lies behind learns from biases alone.",
        "Give these weights their usual size before they are frozen, or let them train.",
    )


def _frozen(evidence: Evidence, station: Station) -> list[Layer]:
    """Layers that are frozen at or next to zero, if every way from the batch passes one."""
    read = evidence.seen.architecture
    held = {
        i: y
        for y in read.layers
        if y.weight[0] in evidence.frozen and gain(evidence, y) < NEXT_TO_ZERO
        for i in y.calls
    }
    if station.index in held:
        return [held[station.index]]
    if read.open_way({station.index}, held, onward=False):
        return []
    met = read.first_met({station.index}, held, onward=False)
    return list(dict.fromkeys(held[i] for i in sorted(met)))


def _head_alone(evidence: Evidence, low: Sequence[Station]) -> bool:
    """Whether only the output is alike, for a reason that training undoes at once.

    It may be the mean of the targets, or of equal weights that cancel in what a norm gives; not one
    that drowns an input which gates, or what came before, have all but shut.
    """
    heads = evidence.seen.architecture.heads
    usual = ABOVE_TARGET * (evidence.seen.target_rms or 1.0)
    return all(
        s.layer in heads and (s.cell.given or 0.0) > LEAST_GIVEN and s.rms < usual for s in low
    )


class _Starved(NamedTuple):
    """A place where samples are alike since the layers that lead to it are next to zero."""

    station: Station
    by: list[Layer]


def _alike(evidence: Evidence, scale: float) -> tuple[list[Station], _Starved | None]:
    """Live places where samples hardly differ; and the first that weights next to zero make so.

    A layer that starts next to zero, as a head may on purpose, leaves little that differs, and the
    first steps give it its size, as with weights of zero; unless it is frozen.
    """
    read, alive = evidence.seen.architecture, live(evidence)
    small = [y for y in read.layers if gain(evidence, y) < NEXT_TO_ZERO]
    small = [y for y in small if y.weight[0] not in evidence.frozen]
    faint = {i: y for y in small for i in y.calls}
    end = alive[-1].index if alive else -1
    on_trunk = {y.weight for y in small if end in _behind(read, [y])}
    apart = _sees_samples(evidence) - _unfilled(evidence)
    low: list[Station] = []
    starved: _Starved | None = None
    for station in (s for s in alive if s.index in apart and s.variation is not None):
        least = (COLLAPSED if station.layer in read.heads else COLLAPSING) * scale
        if (station.variation or 0.0) >= least:
            continue
        by = [] if low else _starving(evidence, station, faint, on_trunk)
        if not by:
            low.append(station)
        elif starved is None:
            starved = _Starved(station, by)
    return low, starved


def _starving(
    evidence: Evidence,
    station: Station,
    faint: Mapping[int, Layer],
    on_trunk: set[tuple[str, ...]],
) -> list[Layer]:
    """The layers next to zero (by their calls) that are why samples are alike at a place.

    It is one itself, or no way from the batch leads around them.  None where it would make samples
    alike if it were given more, too; nor where several weights in a row hold one another back.
    """
    read = evidence.seen.architecture
    met, usual, factor = {station.index}, 1.0, False
    if station.index not in faint:
        factor = read.open_way(met, faint, onward=False)
        shut_off = station.index in _behind(read, faint.values())
        if not shut_off or (station.cell.given or 0.0) > NEXT_TO_ZERO:
            return []
        met = read.first_met(met, faint, onward=False)
        usual = 1.0 if station.layer is None else gain(evidence, station.layer)
    weights = {faint[i].weight for i in met}
    others = [y for y in faint.values() if y.weight not in weights]  # a tied head is none
    in_a_row = not on_trunk <= weights or _behind(read, others) >= met
    if in_a_row or (factor and len(weights) > 1) or usual < COLLAPSING * station.rms:
        return []
    return list(dict.fromkeys(faint[i] for i in sorted(met)))


def _behind(read: Architecture, layers: Iterable[Layer]) -> set[int]:
    """Calls that the batch reaches through layers next to zero alone, or times what those give, as
    the edges of a graph are multiplied with its nodes."""
    layers = list(layers)
    plain = {i for y in layers if len(y.parameters) == len(y.weight) for i in y.calls}
    return shut(read, {i for y in layers for i in y.calls}, plain)  # a bias is no next to nothing


def _is_its_bias(evidence: Evidence, starved: _Starved) -> bool:
    """Whether the biases are those of the layer next to zero itself, also where they are added by
    hand: it trains as a layer of zeros with biases does."""
    read, station = evidence.seen.architecture, starved.station
    if station.layer is None or station.layer in starved.by:
        return station.layer in starved.by
    calls = {i for y in starved.by for i in y.calls}
    between = read.descendants(calls) & read.ancestors({station.index})
    others = between.difference(calls, station.layer.calls)
    plain = station.layer.op == "shift" and all(y.op != "embedding" for y in starved.by)
    return plain and others.isdisjoint(i for y in read.layers for i in y.calls)


def _told(evidence: Evidence, starved: _Starved, scale: float) -> Finding:
    """What to say of layers next to zero, where what others add drowns the little they hand on."""
    station = starved.station
    return _next_to_zero(
        evidence,
        [y for y in starved.by if y.weight[0] not in evidence.zeros] or starved.by,
        f"samples differ by {station.variation:.2g} of the signal's rms at {station.shown}",
        f"above {COLLAPSING * scale:.1g} (the batch's own samples differ by {scale:.2g})",
    )


def _noise(evidence: Evidence) -> Iterator[Finding]:
    """The same where dropout hides it: samples differ by what it takes of the biases of each."""
    run = stretch(evidence)
    first = from_nothing(evidence, run) if len(run) > 1 else None
    top = max(run, key=spread_of, default=None)
    if first is None or top is None or spread_of(top) < EXPLODING * spread_of(run[0]):
        return
    yield _next_to_zero(
        evidence,
        [first],
        f"samples differ by {spread_of(run[0]):.2g} there and by {spread_of(top):.2g} at "
        f"{top.shown}, though no layer between them is large",
        "weights of a size that what is added beside them does not drown",
    )


def _next_to_zero(
    evidence: Evidence, layers: Sequence[Layer], differing: str, expected: str
) -> Finding:
    sizes = listed(
        (f"{evidence.sizes[y.weight[0]]:.2g} at {layer_named(y.name)}" for y in layers), 4
    )
    return finding(
        "P207",
        "warning",
        (y.name for y in layers),
        measured=f"weights with an rms of {sizes}; {differing}",
        expected=expected,
        message="Weights next to zero hand on so little that biases, or what else is added, drown "
        "it: different inputs can hardly be told apart.",
        why="They train as weights of zero do: Adam gives them their size in its first steps, SGD "
        "may need many more.",
        fix="Draw these weights at their usual size: std 0.02 to 1 for an embedding, 1/√fan_in for "
        "other layers.",
    )


def _sees_samples(evidence: Evidence) -> set[int]:
    """Calls of layers or before some, and those that see more of the batch than one number made of
    all of it, as a mean loss is."""
    read = evidence.seen.architecture
    found = set(read.inner).union(*(layer.calls for layer in read.layers))
    for call in read.trace.calls:
        if call.shape and (call.entry or any(i in found for i in call.behind)):
            found.add(call.index)
    return found


def _unfilled(evidence: Evidence) -> set[int]:
    """Calls behind a part of the signal that is still the same for all samples, while the whole is
    not: a class token, until attention brings it what the other tokens say."""
    seen = evidence.seen
    calls = seen.architecture.trace.calls
    found: set[int] = set()
    for call in calls:
        if seen.picked.get(call.index, 1.0) < COLLAPSING and _varies(seen, call.behind[0]):
            found.add(call.index)
        given = [i for i in call.inputs if i < 0 or calls[i].varies]  # below 0: the batch itself
        if given and all(i in found for i in given):  # beside a live signal all is live
            found.add(call.index)
    return found


def _varies(seen: Pass, index: int) -> bool:
    """Whether the signal differs between samples at the last place at which that was measured."""
    while index not in seen.cells and index not in seen.picked:
        call = seen.architecture.trace.calls[index]
        if not call.behind or call.op not in PASSIVE | {"token"}:
            return False
        index = max(call.behind)
    cell = seen.cells.get(index)
    variation = seen.picked.get(index) if cell is None else cell.variation
    return variation is not None and variation >= COLLAPSING


def _constant_norms(evidence: Evidence) -> Iterator[Finding]:
    """Norms with a scale of zero and a shift that is not: a constant output."""
    audits = {a.name: a for a in evidence.audits}
    found = []
    for layer in evidence.seen.architecture.layers:
        if layer.op in NORMS and len(layer.parameters) > 1 and len(layer.weight) == 1:
            scale, shift = audits.get(layer.weight[0]), audits.get(layer.parameters[1])
            closed = scale is not None and scale.zero
            if closed and shift is not None and shift.max_abs > 0.0:
                found.append(layer.name)
    trunk = {s.place for s in evidence.trunk}
    if found:
        yield finding(
            "P207",
            "error" if trunk & set(found) else "warning",  # a residual stream carries on around it
            found,
            measured=f"scale 0 and shift not 0 in {len(found)} norm(s)",
            expected="scale 1, shift 0 (scale 0 with shift 0 at the end of a residual branch)",
            message="A norm gives the same output for every input: its scale is zero and its shift "
            "is not.",
            why="Whatever enters, the shift leaves: usually the two were swapped.",
            fix="Set weight to one and bias to zero (module.reset_parameters()).",
        )


def zeros_in_a_row(evidence: Evidence) -> Iterator[Finding]:
    """P207: several layers of zeros on every way from the batch to the end of the run."""
    read = evidence.seen.architecture
    named = {n for d in evidence.symmetry.deadlocks for n in d.because}
    zero = {
        i: y
        for y in read.layers
        if is_zero(evidence, y) and y.weight[0] not in named
        for i in y.calls
        if read.trace.calls[i].layout  # a matrix or a table, and no token or position
    }
    passed: dict[int, tuple[Layer, ...]] = {}  # of each call, the zeros on the way that has fewest
    for call in read.trace.calls if len(zero) > 1 else ():
        ways = [passed[i] for i in call.behind if i in passed] + [()] * call.entry
        if ways:
            own = (zero[call.index],) if call.index in zero else ()
            passed[call.index] = min(ways, key=len) + own
    end = read.trace.loss
    ends = read.trace.outputs if end is None else (end,)
    row = min((passed[i] for i in ends if i in passed), key=len, default=())
    locked = {c.layer for c in evidence.symmetry.classes if c.kind == "locked"}
    if len(row) > 1 and locked.isdisjoint(y.name for y in row):  # else S101 tells of it
        yield finding(
            "P207",
            "warning",
            [y.name for y in row],
            measured=f"{len(row)} layers of zeros on every way from the batch to the end",
            expected="one at most: an output layer, or the last of a residual branch",
            message="Weights of zero in a row hand on nothing but biases: all inputs look the "
            "same, and each layer of zeros holds the others back.",
            why="Only the last of them has a gradient at first. Small MLPs with such a start need "
            "1.2 to 10 times the steps with Adam; SGD stands still.",
            fix="Draw these weights at random (nn.init.kaiming_normal_ or xavier_normal_).",
        )


RULES = (collapsed, zeros_in_a_row)
