"""P201–P207: what becomes of signal, cotangent and the differences between samples along depth.

Everything is judged on the *trunk*: the places that every path from the batch to the output passes.
A branch may start at zero, or at 1e-6; the trunk may not.  Thresholds lie between what the labelled
networks of ``benchmarks/trainability.py`` and the healthy zoo of ``tests/zoo`` show; both figures
stand beside each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from fanin.architecture import Layer
from fanin.calls import Call
from fanin.findings.evidence import Evidence, Station
from fanin.findings.rules import Finding, finding
from fanin.operations import NORMS, PASSIVE, PRODUCTS, RECURRENT, SUMS
from fanin.probe import ALIKE, Pass
from fanin.wording import listed

__all__ = ["RULES", "large_inputs"]

# Decay of the signal over a stretch without normalization, its largest single step left out (a
# small head or stem is a design, a decay in every layer is not).  Labelled: sound down to 4e-4,
# faulty from 1e-9, grey between.  Healthy zoo: down to 0.1.
VANISHED, VANISHING = 1e-4, 0.03
# Growth of the signal over such a stretch.  Healthy zoo: up to 10.  Residual networks without norms
# train from ×65 (start losses of 50 to 600), those labelled faulty start at ×600 and more.
EXPLODED, EXPLODING, RISING = 256.0, 32.0, 16.0
# With it, what makes a smaller growth fatal.  A regression's output this many times its target:
# labelled sound up to 4, faulty from 41.  The growth of cotangent × signal towards the input:
# labelled sound up to 10, faulty from 95.
ABOVE_TARGET, FORCE = 32.0, 50.0
# Decay of the cotangent from the output to the input, largest step left out.  Labelled: sound down
# to 4e-4, faulty from 1e-4 (grey down to 1e-9); torch's default for tanh and elu over 16 layers,
# 4e-4, does not train.  Healthy zoo: 8e-4; AlexNet, NeRF at torch's default: 1e-3 to 8e-3; VGG-11
# without norms on 32×32 pixels: 4e-4 to 1e-3, Adam stands still for 170 batches.
GRADIENT_VANISHED, GRADIENT_VANISHING = 1e-4, 5e-4
# Growth towards the input of cotangent × signal, which a scale-preserving layer leaves alone: a
# small relative change of an early layer turns the output over.  Labelled: sound up to 10, faulty
# from 1e3.
GRADIENT_EXPLODED, GRADIENT_EXPLODING = 1e3, 1e2
# Variation across samples over that of the batch.  Labelled: sound down to 6e-5 (a convolution;
# 1.1e-3 for fully connected ones), one faulty at 7e-4, the others from 3e-6 down.  Healthy zoo:
# 1.7e-3.
COLLAPSED, COLLAPSING = 2e-5, ALIKE
# What differs at the input of an output layer that is not to blame for its likeness: gates shut by
# a bias of -15 leave 3e-7 of 1.
LEAST_GIVEN = 1e-3
# Share of dead units of a layer.  Labelled: sound up to 0.69, faulty from 0.94.  Healthy zoo: 0.55.
DEAD = 0.9
# Positions below which an inactive unit says nothing: half of a healthy ReLU layer is off on any
# one.
FEW = 16
# Share of (unit, sample) pairs in the flat part.  Labelled: sound up to 0.78, faulty from 0.89.
# Healthy zoo: 0.25.
SATURATED, SATURATING = 0.85, 0.5
# The same for the gates of a recurrent layer.  Labelled: sound up to 0.04, faulty from 0.77.
SATURATED_GATES = 0.7
# A first layer flooded by its biases is no base to measure growth from.
LEAST_SPREAD = 0.01
# A head whose outputs differ by less than this share of their size sits where its bias puts it: the
# prior of a rare class, on purpose.
PRIOR = 0.3
# Inputs of this size are raw (pixels of 0 to 255, years); a normalized batch has an rms of about 1.
LARGE_INPUT = 10.0
# Weights of this gain (std · √fan_in) put half of the units of a tanh into its flat part by
# themselves, when inputs have an rms of 1: P(|3.2 z| > 2.178) = 0.5.
TAME = 3.2
# Weights of this gain (std · √fan_in) are next to zero, from where a layer learns as from zero: one
# layer of an MLP at 1e-2 to 1e-12 of torch's default trains to the same loss.  A table in front of
# an MLP, an LSTM, a GRU or a transformer trains in the same number of steps from 1e-2 to 1e-12 of
# its usual size: 1.1 to 2.3 times as many as from that with Adam, 1.2 to 5.5 times with SGD.
NEXT_TO_ZERO = 1e-2
# A step of the cotangent this small is a sum that cancels: what is left of it is rounding.  A
# constant output layer behind a norm leaves 6e-8, and the norm 3e-7 of that.
CANCELLED = 1e-6
# A batch whose own samples differ by less than this cannot show a collapse.
SAME_BATCH = 1e-3


def _live(evidence: Evidence) -> list[Station]:
    """The trunk up to the first weights that are all zero: what lies behind them only says that."""
    live, constant = [], _constant(evidence)
    for station in evidence.trunk:
        if station.index in constant:
            break
        if station.layer is not None and _is_zero(evidence, station.layer):
            break
        if not math.isfinite(station.rms):
            break
        live.append(station)
    return live


def _is_zero(evidence: Evidence, layer: Layer) -> bool:
    """Whether a layer's weight is zero where it is used: not as 1 + weight, nor as a slope."""
    main = evidence.seen.architecture.trace.calls[layer.calls[0]].operands[0]
    return layer.weight[0] in evidence.zeros and main.offset == 0.0 and layer.op != "prelu"


def _constant(evidence: Evidence) -> set[int]:
    """Calls that the batch reaches through weights of zero alone: they give one value, or zero."""
    read, cells = evidence.seen.architecture, evidence.seen.cells
    found = {c.index for c in read.trace.calls if _is_closed(c, evidence.zeros)}
    zero = {i for i in found if i in cells and cells[i].squares == 0.0}
    for call in read.trace.calls if found else ():
        given = {i for i in call.inputs if i < 0 or read.trace.calls[i].varies}
        handed = call.op in PASSIVE or (call.op in SUMS and len(set(call.sources)) > 1)
        factor = call.op in _PRODUCTS and not zero.isdisjoint(given)
        if (given and found >= given) or factor:
            found.add(call.index)
        if factor or (handed and given and zero >= given and not call.operands):
            zero.add(call.index)
    return found


def _is_closed(call: Call, zeros: frozenset[str]) -> bool:
    """Whether a matrix or table of zeros is all that a call makes its result of."""
    if not call.operands or not call.layout:
        return False
    main = call.operands[0]
    plain = len(main.parameters) == 1 and main.offset == 0.0
    return plain and main.parameters[0] in zeros and call.op not in RECURRENT


# What is zero where one of its factors is.
_PRODUCTS = PRODUCTS | {"matmul", "mm", "bmm", "einsum"}


def _stretch(evidence: Evidence) -> list[Station]:
    """The live trunk after its last normalization, which makes all scales before it harmless."""
    weighted = max((s.index for s in evidence.trunk if s.layer is not None), default=-1)
    resets = [i for i in evidence.seen.architecture.normalizations if i <= weighted]
    live = [s for s in _live(evidence) if s.rms > 0]
    last = max(resets, default=-1)  # a softmax behind the last layer normalizes no layer
    return [s for s in live if s.index >= last]


def _spread(station: Station) -> float:
    """The part of the signal that differs between samples (all of it in a batch of one).

    What large constant biases add is no growth.
    """
    return station.rms if station.variation is None else station.rms * station.variation


def signal(evidence: Evidence) -> Iterator[Finding]:
    """P201, P202: the scale of the signal."""
    run = _stretch(evidence)
    if len(run) > 1:
        yield from _vanishing_signal(run)
        yield from _exploding_signal(evidence, run)


def _vanishing_signal(run: Sequence[Station]) -> Iterator[Finding]:
    steps = [math.log(b.rms / a.rms) for a, b in pairwise(run)]
    total = sum(steps)
    decay = math.exp(total - min([*steps, 0.0]))
    if decay < VANISHING:
        yield finding(
            "P201",
            "error" if decay < VANISHED else "warning",
            (s.place for s in run if s.rms < run[0].rms * VANISHING),
            measured=f"rms {run[0].rms:.3g} at {run[0].place} → "
            f"{run[-1].rms:.3g} at {run[-1].place}, ×{math.exp(total / len(steps)):.3g} a layer",
            expected="about the same rms at every depth (×1 a layer)",
            message="The signal shrinks layer by layer until next to nothing is left of it.",
        )


def _exploding_signal(evidence: Evidence, run: Sequence[Station]) -> Iterator[Finding]:
    top = max(run, key=_spread)
    base = max(_spread(run[0]), LEAST_SPREAD * run[0].rms)
    growth = _spread(top) / base
    wild = growth > RISING and _above_target(evidence, run)
    if growth > EXPLODING or wild:
        places = [s.place for s in run if _spread(s) > base * RISING]
        yield finding(
            "P202",
            "error" if growth > EXPLODED or wild or _chaotic(evidence) else "warning",
            places,
            measured=f"spread {base:.3g} at {_shown(run[0])} → "
            f"{_spread(top):.3g} at {_shown(top)} (×{growth:.3g})",
            expected=f"below ×{EXPLODING:g} from the first layer (or the last norm) to the output",
            message="The signal grows layer by layer.",
        )


def _above_target(evidence: Evidence, run: Sequence[Station]) -> bool:
    target = evidence.seen.target_rms
    return bool(target) and run[-1].rms > ABOVE_TARGET * (target or 0.0)


def _chaotic(evidence: Evidence) -> bool:
    growths = [g for _, g in _force_growth(_live(evidence))]
    return max(growths, default=0.0) > FORCE


def _force_growth(run: Sequence[Station]) -> list[tuple[Station, float]]:
    """Each place with its force over that of the last place with as many positions: what a pooling
    over positions takes from the signal is no growth of the gradient."""
    last = {_positions(s): _force(s) for s in run}
    return [(s, _force(s) / last[_positions(s)]) for s in run if last[_positions(s)]]


def _positions(station: Station) -> int:
    units = station.layer.units if station.layer is not None else None
    return station.cell.count // (units or 1)


def _shown(station: Station) -> str:
    return station.place or "the model itself"


def _force(station: Station) -> float:
    """Cotangent × signal: what a relative change at this place does to the loss."""
    return (station.norm or 0.0) * _spread(station) * math.sqrt(station.cell.count)


def gradient(evidence: Evidence) -> Iterator[Finding]:
    """P203, P204: the scale of the cotangent on its way to the input."""
    run = [s for s in _live(evidence) if s.norm and math.isfinite(s.norm) and s.rms > 0]
    if len(run) > 2:
        yield from _vanishing_gradient(run)
    if not any(c.op in NORMS for c in evidence.seen.architecture.trace.calls):
        stretch = {s.index for s in _stretch(evidence)}
        run = [s for s in run if s.index in stretch]
        if len(run) > 2:
            yield from _exploding_gradient(run)


def _vanishing_gradient(run: Sequence[Station]) -> Iterator[Finding]:
    norms = [s.norm or 0.0 for s in run]
    if norms[-2] < CANCELLED * norms[-1]:  # equal weights behind a softmax: the next step has some
        run, norms = run[:-1], norms[:-1]
    steps = [math.log(a / b) for a, b in pairwise(norms)]
    decay = math.exp(sum(steps) - min([*steps, 0.0]))
    if decay < GRADIENT_VANISHING:
        low = [s.place for s in run if (s.norm or 0.0) < norms[-1] * GRADIENT_VANISHING]
        yield finding(
            "P203",
            "error" if decay < GRADIENT_VANISHED else "warning",
            [run[0].place, *low],
            measured=f"norm {norms[-1]:.3g} at {run[-1].place} → {norms[0]:.3g} at {run[0].place}, "
            f"×{math.exp(sum(steps) / len(steps)):.3g} a layer towards the input",
            expected="about the same norm at every depth (×1 a layer)",
            message="The gradient shrinks layer by layer on its way to the input.",
        )


def _exploding_gradient(run: Sequence[Station]) -> Iterator[Finding]:
    growths = _force_growth([s for s in run if s.layer is not None])
    worst, growth = max(growths, key=lambda pair: pair[1], default=(run[0], 0.0))
    if growth > GRADIENT_EXPLODING:
        high = [s.place for s, g in growths if g > GRADIENT_EXPLODING]
        yield finding(
            "P204",
            "error" if growth > GRADIENT_EXPLODED else "warning",
            [worst.place, *high],
            measured=f"cotangent × signal grows ×{growth:.3g} "
            f"from {_shown(run[-1])} to {_shown(worst)}",
            expected=f"below ×{GRADIENT_EXPLODING:g}",
            message="The gradient grows layer by layer on its way to the input.",
        )


def dead(evidence: Evidence) -> Iterator[Finding]:
    """P205: layers whose units are flat on every sample."""
    zero = evidence.zeros
    trunk = {s.index for s in evidence.trunk}
    found: dict[str, list[tuple[str, float]]] = {"error": [], "warning": []}
    for layer in evidence.seen.architecture.layers:
        cells = [evidence.seen.cells[i] for i in layer.calls if i in evidence.seen.cells]
        length = evidence.seen.architecture.trace.length  # behind it comes the loss
        shares = [c.dead for c in cells if c.dead is not None and (c.dead_at or 0) < length]
        if not shares or not layer.units or min(shares) < DEAD:
            continue
        if layer.weight[0] in zero or _behind_closed_norm(evidence, layer, zero):
            continue  # the zero is the cause, and S102 names it
        if not any(c.squares for c in cells) and _named_before(evidence, layer, zero):
            continue  # it is given zeros by what is dead, or starts at zero
        places = sum(c.count for c in cells) // layer.units
        if places >= FEW or (min(shares) == 1.0 and layer.units >= FEW):
            severity = "error" if set(layer.calls) & trunk else "warning"
            found[severity].append((layer.name, min(shares)))
    for severity, flat in found.items():
        if flat:
            yield finding(
                "P205",
                severity,
                (n for n, _ in flat),
                measured=listed(
                    (f"{n}: {s:.0%} of its units dead" for n, s in flat), 4, apart="; "
                ),
                expected=f"below {DEAD:.0%} (a healthy layer has a few)",
                message="Units are in the flat part of their activation for every sample of the "
                "batch.",
            )


def _named_before(evidence: Evidence, layer: Layer, zero: frozenset[str]) -> bool:
    """Whether a layer of zeros, or of dead units, lies before a layer."""
    read, cells = evidence.seen.architecture, evidence.seen.cells
    before = read.ancestors(layer.calls).difference(layer.calls)
    return any(
        other.weight[0] in zero
        or any((cells[i].dead or 0.0) >= DEAD for i in other.calls if i in cells)
        for other in read.layers
        if not before.isdisjoint(other.calls)
    )


def _behind_closed_norm(evidence: Evidence, layer: Layer, zero: frozenset[str]) -> bool:
    """Whether a norm whose scale is all zero stands between a layer and its activation."""
    read = evidence.seen.architecture
    norms = [y for y in read.layers if y.op in NORMS and y.weight[0] in zero]
    fed = {i for y in norms for c in y.calls for i in read.trace.calls[c].behind}
    return bool(fed & set(layer.calls))


def saturated(evidence: Evidence) -> Iterator[Finding]:
    """P206: layers that work in the flat part of a bounded activation."""
    heads = evidence.seen.architecture.heads
    trunk = {s.index for s in evidence.trunk}
    found: dict[tuple[str, str | None], list[tuple[str, float, float]]] = {}
    for layer in evidence.seen.architecture.layers:
        cells = [evidence.seen.cells[i] for i in layer.calls if i in evidence.seen.cells]
        shares = [c.saturated for c in cells if c.saturated is not None]
        if not shares:
            continue
        if layer in heads and all((c.variation or 0.0) < PRIOR for c in cells):
            continue
        share, central = min(shares), bool(set(layer.calls) & trunk)
        if not central and all(c.offset for c in cells) and _is_beside(evidence, layer):
            continue  # a gate that starts shut, or open, beside a way around it
        rms = max((c.squares / c.count) ** 0.5 for c in cells if c.count)
        full = SATURATED_GATES if layer.op in RECURRENT else SATURATED
        if share >= (SATURATING if central else full):
            severity = "error" if central and share >= full else "warning"
            kind = (severity, large_inputs(evidence, layer.name))
            found.setdefault(kind, []).append((layer.name, share, rms))
    for (severity, scale), flat in found.items():
        cause = "Most" if scale is None else "The inputs are so large that most"
        shown = (f"{n}: {s:.0%} in the flat part (rms {r:.3g})" for n, s, r in flat)
        yield finding(
            "P206",
            severity,
            (n for n, _, _ in flat),
            measured=listed(shown, 4, apart="; "),
            expected=f"below {SATURATING:.0%}",
            message=f"{cause} units sit where their activation is flat.",
            fix=scale,
        )


def _is_beside(evidence: Evidence, layer: Layer) -> bool:
    """Whether the batch reaches the loss around the products that a gate takes part in."""
    read = evidence.seen.architecture
    products, queue, seen = set(), list(layer.calls), set(layer.calls)
    while queue:
        for call in read.followers.get(queue.pop(), ()):
            if call.op in PRODUCTS and len(set(call.sources)) > 1:
                products.add(call.index)
            elif call.index not in seen:
                seen.add(call.index)
                queue.append(call.index)
    entries = {c.index for c in read.trace.calls if c.entry}
    return read.open_way(entries, products | seen, onward=True)


def large_inputs(evidence: Evidence, place: str) -> str | None:
    """What to do where it is the batch, not the weights, that drives a layer too far.

    It reaches the layer past all norms, through weights that take inputs of size 1 no further.
    """
    read, rms = evidence.seen.architecture, evidence.input_rms
    layer = next((y for y in read.layers if y.name == place), None)
    if layer is None or rms is None or rms < LARGE_INPUT:
        return None
    before = read.ancestors(layer.calls)
    norms = {i for i in before if read.normalizes(read.trace.calls[i])}
    if not read.open_way(layer.calls, norms, onward=False):
        return None
    ways = [y for y in read.layers if not before.isdisjoint(y.calls)]
    besides = {n for y in ways for n in y.parameters[len(y.weight) :]}  # recurrent weights, biases
    rows = {p.name: math.prod(p.shape[1:]) for p in read.parameters if p.name in besides}
    gains = [evidence.sizes[n] * math.sqrt(width) for n, width in rows.items()]
    if max(*(_gain(evidence, y) for y in ways), *gains, 0.0) >= TAME:
        return None
    return f"Normalize the inputs: those of this batch have an rms of {rms:.3g}, not about 1."


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
    if starved is not None and starved.station.layer not in starved.by:
        yield _told(evidence, starved, scale)
    if not low or _head_alone(evidence, low):
        return
    least = min(s.variation or 0.0 for s in low)
    yield finding(
        "P207",
        "error" if least < COLLAPSED * scale else "warning",
        (s.place for s in low),
        measured=f"samples differ by {least:.2g} of the signal's rms at {low[-1].place}",
        expected=f"above {COLLAPSING * scale:.1g} (the batch's own samples differ by {given:.2g})",
        message="Different inputs can no longer be told apart: the signal is alive, but the "
        "same for all of them.",
    )


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
    first steps give it its size, as with weights of zero.
    """
    read, live = evidence.seen.architecture, _live(evidence)
    faint = {i: y for y in read.layers if _gain(evidence, y) < NEXT_TO_ZERO for i in y.calls}
    on_trunk = {faint[s.index].weight for s in live if s.index in faint}
    apart = _sees_samples(evidence) - _unfilled(evidence)
    low: list[Station] = []
    starved: _Starved | None = None
    for station in (s for s in live if s.index in apart and s.variation is not None):
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
    met, usual = {station.index}, 1.0
    if station.index not in faint:
        if read.open_way(met, faint, onward=False) or (station.cell.given or 0.0) > NEXT_TO_ZERO:
            return []
        met = read.first_met(met, faint, onward=False)
        usual = 1.0 if station.layer is None else _gain(evidence, station.layer)
    weights = {faint[i].weight for i in met}
    others = {i for i, layer in faint.items() if layer.weight not in weights}  # a tied head is none
    in_a_row = not on_trunk <= weights or not read.open_way(met, others, onward=False)
    if in_a_row or usual < COLLAPSING * station.rms:
        return []
    return list(dict.fromkeys(faint[i] for i in sorted(met)))


def _gain(evidence: Evidence, layer: Layer) -> float:
    """std · √fan_in of a layer's weights; 1 where they are no matrix or table used as it is."""
    main = evidence.seen.architecture.trace.calls[layer.calls[0]].operands[0]
    if len(layer.weight) > 1 or not layer.fan_in or main.offset != 0.0:
        return 1.0
    return evidence.sizes.get(layer.weight[0], 1.0) * math.sqrt(layer.fan_in)


def _told(evidence: Evidence, starved: _Starved, scale: float) -> Finding:
    """What to say of layers next to zero, where what others add drowns the little they hand on."""
    station = starved.station
    layers = [y for y in starved.by if y.weight[0] not in evidence.zeros] or starved.by
    sizes = listed((f"{evidence.sizes[y.weight[0]]:.2g} at {y.name}" for y in layers), 4)
    return finding(
        "P207",
        "warning",
        (y.name for y in layers),
        measured=f"weights with an rms of {sizes}; samples differ by {station.variation:.2g} of "
        f"the signal's rms at {_shown(station)}",
        expected=f"above {COLLAPSING * scale:.1g} (the batch's own samples differ by {scale:.2g})",
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


RULES = (signal, gradient, dead, saturated, collapsed)
