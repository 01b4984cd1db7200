"""P201–P206: what becomes of signal and cotangent along depth.

Everything is judged on the *trunk*: the places that every path from the batch to the output passes.
A branch may start at zero, or at 1e-6; the trunk may not.  (What vanishes or explodes layer by
layer beside it: `fanin.findings.towers`.)  Thresholds lie between what the labelled networks of
``benchmarks/trainability.py`` and the healthy zoo of ``tests/zoo`` show; both figures stand beside
each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from fanin.architecture import Architecture, Layer
from fanin.findings.evidence import Evidence, Station
from fanin.findings.in_time import exploding_in_time, step_by_step
from fanin.findings.reach import TAME, from_nothing, gain, large_inputs, live, loud, outlier
from fanin.findings.rules import Finding, finding
from fanin.kinds import NORMS, PRODUCTS, RECURRENT
from fanin.probe import Cell
from fanin.wording import layer_named, listed

__all__ = [
    "ABOVE_TARGET",
    "EXPLODED",
    "EXPLODING",
    "PRIOR",
    "RULES",
    "SATURATING",
    "saturated",
    "spread_of",
    "stretch",
    "vanishing_gradient",
    "vanishing_signal",
]

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
# A first layer flooded by its biases is no base to measure growth from, nor what a norm makes of
# samples that are all the same.
LEAST_SPREAD = 0.01
# A head whose outputs differ by less than this share of their size sits where its bias puts it: the
# prior of a rare class, on purpose.
PRIOR = 0.3
# A step of the cotangent this small is a sum that cancels: what is left of it is rounding.  A
# constant output layer behind a norm leaves 6e-8, and the norm 3e-7 of that.
CANCELLED = 1e-6


def stretch(evidence: Evidence) -> list[Station]:
    """The live trunk after its last normalization, which makes all scales before it harmless."""
    weighted = max((s.index for s in evidence.trunk if s.layer is not None), default=-1)
    resets = [i for i in evidence.seen.architecture.normalizations if i <= weighted]
    alive = [s for s in live(evidence) if s.rms > 0]
    last = max(resets, default=-1)  # a softmax behind the last layer normalizes no layer
    return [s for s in alive if s.index >= last]


def spread_of(station: Station) -> float:
    """The part of the signal that differs between samples (all of it in a batch of one).

    What large constant biases add is no growth.
    """
    return station.rms if station.variation is None else station.rms * station.variation


def signal(evidence: Evidence) -> Iterator[Finding]:
    """P201, P202: the scale of the signal."""
    run = stretch(evidence)
    if len(run) > 1:
        yield from vanishing_signal(run)
        if from_nothing(evidence, run) is None:  # else P207 tells of it
            yield from _exploding_signal(evidence, run)


def vanishing_signal(run: Sequence[Station]) -> Iterator[Finding]:
    """P201 of a stretch without norms."""
    steps = [math.log(b.rms / a.rms) for a, b in pairwise(run)]
    total = sum(steps)
    decay = math.exp(total - min([*steps, 0.0]))
    if decay < VANISHING:
        yield finding(
            "P201",
            "error" if decay < VANISHED else "warning",
            (s.place for s in run if s.rms < run[0].rms * VANISHING),
            measured=f"rms {run[0].rms:.3g} at {run[0].shown} → "
            f"{run[-1].rms:.3g} at {run[-1].shown}, ×{math.exp(total / len(steps)):.3g} a layer",
            expected="about the same rms at every depth (×1 a layer)",
            message="The signal shrinks layer by layer until next to nothing is left of it.",
        )


def _exploding_signal(evidence: Evidence, run: Sequence[Station]) -> Iterator[Finding]:
    top = max(run, key=spread_of)
    base, origin = _origin(evidence, run[0])
    growth = spread_of(top) / base
    wild = growth > RISING and _above_target(evidence, run)
    if growth > EXPLODING or wild:
        again = step_by_step(evidence, run[0].layer) if origin == BEGINNING else None
        high = [s for s in run if spread_of(s) > base * RISING]
        places = [name for s in high for name in _made_by(evidence, s)]
        yield finding(
            "P202",
            "error" if growth > EXPLODED or wild or _chaotic(evidence) else "warning",
            places,
            measured=f"spread {base:.3g} at {origin} → "
            f"{spread_of(top):.3g} at {top.shown} (×{growth:.3g})",
            expected=f"below ×{EXPLODING:g} from the first layer (or the last norm) to the output",
            message=f"The signal grows {'step by step' if again else 'layer by layer'}.",
            **(again or {}),
        )


def _made_by(evidence: Evidence, station: Station) -> list[str]:
    """The name of a place; of a sum in the model itself, those of the layers that make it large."""
    if station.place:
        return [station.place]
    return [name for name, op in loud(evidence, station.index).items() if op != "shift"] or [""]


BEGINNING = "its beginning"  # a place before the trunk


def _origin(evidence: Evidence, first: Station) -> tuple[float, str]:
    """Spread of the signal where a stretch begins, and the place.

    A recurrence, or a pair of towers, has only its end on the trunk.  It begins with what its first
    calls give, or with the batch where that is larger.
    """
    read, cells = evidence.seen.architecture, evidence.seen.cells
    scale = _scale(evidence, first)
    own = max(spread_of(first), LEAST_SPREAD * max(first.rms, scale)), first.shown
    before = sorted(read.ancestors({first.index}))
    weighted, later = {i for i in before if i in cells and cells[i].count}, set()
    for call in (read.trace.calls[i] for i in before):
        if read.normalizes(call):
            return own
        if any(i in weighted or i in later for i in call.behind):
            later.add(call.index)
    begun = {i for i in weighted - later if read.trace.calls[i].varies}
    if begun == {first.index} and read.trace.calls[first.index].op != "rnn_relu":
        return own
    given = (cells[i].rms for i in begun - {first.index})
    entered = max([evidence.input_rms or 0.0, *given])
    return min(own, (entered, BEGINNING)) if entered > 0 else own


def _scale(evidence: Evidence, station: Station) -> float:
    """The scale of a norm, which is the size of what it gives of anything that differs."""
    if station.layer is None or station.layer.op not in NORMS:
        return 0.0
    return evidence.sizes.get(station.layer.weight[0], 0.0)


def _above_target(evidence: Evidence, run: Sequence[Station]) -> bool:
    target = evidence.seen.target_rms
    return bool(target) and run[-1].rms > ABOVE_TARGET * (target or 0.0)


def _chaotic(evidence: Evidence) -> bool:
    growths = [g for _, g in _force_growth(live(evidence))]
    return max(growths, default=0.0) > FORCE


def _force_growth(run: Sequence[Station]) -> list[tuple[Station, float]]:
    """Each place with its force over that of the last place with as many positions: what a pooling
    over positions takes from the signal is no growth of the gradient."""
    last = {_positions(s): _force(s) for s in run}
    return [(s, _force(s) / last[_positions(s)]) for s in run if last[_positions(s)]]


def _positions(station: Station) -> int:
    units = station.layer.units if station.layer is not None else None
    return station.cell.count // (units or 1)


def _force(station: Station) -> float:
    """Cotangent × signal: what a relative change at this place does to the loss."""
    return (station.norm or 0.0) * spread_of(station) * math.sqrt(station.cell.count)


def gradient(evidence: Evidence) -> Iterator[Finding]:
    """P203, P204: the scale of the cotangent on its way to the input."""
    yield from _cancelling_gradient(evidence)
    yield from exploding_in_time(evidence)
    run = [s for s in live(evidence) if s.norm and math.isfinite(s.norm) and s.rms > 0]
    if len(run) > 2:
        yield from vanishing_gradient(run)
    if not any(c.op in NORMS for c in evidence.seen.architecture.trace.calls):
        places = {s.index for s in stretch(evidence)}
        run = [s for s in run if s.index in places]
        if len(run) > 2:
            yield from _exploding_gradient(run)


def _cancelling_gradient(evidence: Evidence) -> Iterator[Finding]:
    """A loss that pulls at the output, while what reaches all weights together is rounding."""
    layers = evidence.seen.architecture.layers
    counts = {p.name: math.prod(p.shape) for p in evidence.seen.architecture.parameters}
    given = evidence.seen.gradients.items()
    norms = {name: g * math.sqrt(counts[name]) for name, g in given if g is not None}
    last = next((s for s in reversed(evidence.trunk) if s.layer is not None and s.norm), None)
    # Behind zeros that train only biases have a gradient, which balanced classes cancel, and the
    # flat sides of leaky units let the zeros' own through: they grow, and then all do.
    weights = {name for y in layers for name in y.weight}
    only_biases = weights.isdisjoint(name for name, g in given if g)
    zeros = not weights.isdisjoint(evidence.zeros - evidence.frozen)
    if last is None or (only_biases and zeros) or _is_flat(evidence):
        return
    biases = {name for y in layers for name in y.parameters[len(y.weight) :]}
    largest = max(norms.values(), default=0.0)
    inside = max((g for name, g in norms.items() if name not in biases), default=0.0)
    limit = CANCELLED * (last.norm or 0.0)
    if 0.0 < largest < limit:
        told = _CANCELLED
    elif 0.0 < inside < limit and not zeros:
        told = _LOST
    else:
        return
    yield finding(
        "P203",
        "error",
        [last.place],
        measured=f"gradient of the output: norm {last.norm:.3g}; of any weight: at most "
        f"{inside or largest:.3g}",
        expected=f"at least one gradient above ×{CANCELLED:g} that of the output",
        **told,
    )


def _is_flat(evidence: Evidence) -> bool:
    """Whether a layer on the trunk is dead or saturated, which is said of it already."""
    cells = [s.cell for s in evidence.trunk]
    return any((c.dead or 0.0) >= DEAD or (c.saturated or 0.0) >= SATURATED for c in cells)


_CANCELLED = {
    "message": "The gradient cancels on its way to the weights: none of them moves.",
    "why": "The loss compares outputs that are the same at every place, as scores that do not "
    "depend on what they score; equal changes of all of them leave it as it is.",
    "fix": "Look for a layer at zero, or frozen there, that was to make the outputs differ.",
}
_LOST = {
    "message": "Next to nothing of the gradient reaches a weight: only biases move.",
    "why": "What the weights compute reaches the loss times factors that are next to zero, each of "
    "which keeps the gradient from the others.",
    "fix": "Look for gates or scales next to zero that are multiplied with one another, and bring "
    "all but one of them to about one.",
}


def vanishing_gradient(run: Sequence[Station]) -> Iterator[Finding]:
    """P203 of places that have a gradient."""
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
            measured=f"norm {norms[-1]:.3g} at {run[-1].shown} → {norms[0]:.3g} at {run[0].shown}, "
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
            f"from {run[-1].shown} to {worst.shown}",
            expected=f"below ×{GRADIENT_EXPLODING:g}",
            message="The gradient grows layer by layer on its way to the input.",
        )


def dead(evidence: Evidence) -> Iterator[Finding]:
    """P205: layers whose units are flat on every sample."""
    zero, read = evidence.zeros, evidence.seen.architecture
    found: dict[str, list[tuple[str, float]]] = {"error": [], "warning": []}
    terms: dict[str, list[str]] = {"error": [], "warning": []}
    for layer in read.layers:
        cells = evidence.seen.cells_of(layer)
        length = read.trace.length  # behind it comes the loss
        shares = [c.dead for c in cells if c.dead is not None and (c.dead_at or 0) < length]
        if not shares or not layer.units or min(shares) < DEAD:
            continue
        if layer.weight[0] in zero or _behind_closed_norm(evidence, layer, zero):
            continue  # the zero is the cause, and S102 names it
        if not any(c.squares for c in cells) and _named_before(evidence, layer, zero):
            continue  # it is given zeros by what is dead, or starts at zero
        places = sum(c.count for c in cells) // layer.units
        if places >= FEW or (min(shares) == 1.0 and layer.units >= FEW):
            flat = {c.dead_at for c in cells if c.dead_at is not None}
            beside = flat.union(layer.calls).isdisjoint(evidence.passed)
            severity = "warning" if beside else "error"
            found[severity].append((layer.name, min(shares)))
            terms[severity] += _summed(read, flat)
    for severity, dying in found.items():
        if dying:
            yield finding(
                "P205",
                severity,
                [*(n for n, _ in dying), *terms[severity]],
                measured=listed(
                    (f"{n}: {s:.0%} of its units dead" for n, s in dying), 4, apart="; "
                ),
                expected=f"below {DEAD:.0%} (a healthy layer has a few)",
                message="Units are in the flat part of their activation for every sample of the "
                "batch.",
            )


def _summed(read: Architecture, flat: Iterable[int]) -> list[str]:
    """The layers whose outputs are added to be what a nonlinearity is given."""
    owner = {i: y.name for y in read.layers for i in y.calls if y.units is not None}
    met = [read.first_met({i}, owner, onward=False) for i in flat]
    return [owner[i] for found in met if len(found) > 1 for i in sorted(found)]


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
    read = evidence.seen.architecture
    heads, trunk = read.heads, evidence.passed
    found: dict[tuple[str, _Cause, bool], list[tuple[str, float, float]]] = {}
    norms: dict[str, list[str]] = {}
    for layer in read.layers:
        cells = _given_samples(evidence, layer)
        shares = [c.saturated for c in cells if c.saturated is not None]
        if not shares:
            continue
        at_bias = layer in heads and all((c.variation or 0.0) < PRIOR for c in cells)
        if at_bias and layer.name not in evidence.misplaced:
            continue
        share, central = min(shares), bool(set(layer.calls) & trunk)
        on_trunk = central or not {c.dead_at for c in cells}.isdisjoint(trunk)
        if not central and all(c.offset for c in cells) and _is_beside(evidence, layer):
            continue  # a gate that starts shut, or open, beside a way around it
        rms = max(c.rms for c in cells)
        full = SATURATED_GATES if layer.op in RECURRENT else SATURATED
        if share >= (SATURATING if on_trunk else full):
            fatal = on_trunk or layer.name in evidence.misplaced
            severity = "error" if fatal and share >= full else "warning"
            gate = layer.op in RECURRENT or layer.activation in _GATES
            norms[layer.name] = _shifting(evidence, layer)
            told = _SHIFTED if norms[layer.name] else _cause(evidence, layer, rms)
            kind = (severity, told, gate)
            found.setdefault(kind, []).append((layer.name, share, rms))
    for (severity, (cause, fix, by), gate), flat in found.items():
        shown = (f"{n}: {s:.0%} in the flat part (rms {r:.3g})" for n, s, r in flat)
        yield finding(
            "P206",
            severity,
            [*by, *(n for n, _, _ in flat), *(n for name, _, _ in flat for n in norms[name])],
            measured=listed(shown, 4, apart="; "),
            expected=f"below {SATURATING:.0%}",
            message=f"{cause} units sit where their activation is flat.",
            fix=fix or (_SMALLER if gate else None),
        )


def _given_samples(evidence: Evidence, layer: Layer) -> list[Cell]:
    """What was measured at the calls of a layer, but for those that are given the same whatever the
    batch is, where there are others: the first step of a recurrence starts from zeros."""
    calls, cells = evidence.seen.architecture.trace.calls, evidence.seen.cells
    varied = [cells[i] for i in layer.calls if i in cells and calls[i].varies]
    return varied or evidence.seen.cells_of(layer)


_GATES = frozenset({"sigmoid", "hardsigmoid", "glu"})
_SMALLER = "Draw smaller weights: nn.init.xavier_normal_(w), with a gain of 1, biases near zero."
_NO_BIAS = "Set the biases of this layer near zero: nn.init.zeros_(b)."


class _Cause(NamedTuple):
    """Why units are where their activation is flat, in words, what to do if it is not usual, and
    the layer to blame, where that is another one."""

    told: str
    fix: str | None = None
    by: tuple[str, ...] = ()


_SHIFTED = _Cause(
    "The shifts of the norm behind them are so large that most",
    "Set the shift of this norm near zero: nn.init.zeros_(norm.bias).",
)
# Of the mean square that a layer gives; the rest is what it makes of its inputs.
_BY_BIASES = 0.5


def _cause(evidence: Evidence, layer: Layer, rms: float) -> _Cause:
    normalize = large_inputs(evidence, layer.name)
    if normalize is not None:
        return _Cause("The inputs are so large that most", normalize)
    biases = () if layer.op in RECURRENT else layer.parameters[len(layer.weight) :]
    moved = sum(evidence.sizes[name] ** 2 for name in biases)
    if moved > _BY_BIASES * rms**2 and gain(evidence, layer) < TAME:
        return _Cause("The biases are so large that most", _NO_BIAS)
    one = outlier(evidence, layer.name)
    if one is None:
        return _Cause("Most")
    told = f"The weights of {layer_named(one.name)} are so large that most"
    return _Cause(told, one.fix, (one.name,))


# A norm gives a signal of unit size: a smaller shift leaves some of it where its activation bends.
_SHIFT = 1.0


def _shifting(evidence: Evidence, layer: Layer) -> list[str]:
    """Norms between a layer and its activation whose shift is large, also beside their scale."""
    read, sizes = evidence.seen.architecture, evidence.sizes
    norms = {i: y for y in read.layers if y.op in NORMS for i in y.calls}
    layers = {i for y in read.layers for i in y.calls if y.units is not None}
    met = read.first_met(set(layer.calls), norms.keys() | layers, onward=True)
    behind = dict.fromkeys(norms[i] for i in sorted(met & norms.keys()))
    return [
        norm.name
        for norm in behind
        if any(sizes[n] > max(_SHIFT, sizes[norm.weight[0]]) for n in norm.parameters[1:])
    ]


def _is_beside(evidence: Evidence, layer: Layer) -> bool:
    """Whether the batch reaches the loss around the products that a gate takes part in."""
    read = evidence.seen.architecture
    products, queue, seen = set(), list(layer.calls), set(layer.calls)
    while queue:
        for call in read.followers[queue.pop()]:
            if call.op in PRODUCTS and len(set(call.sources)) > 1:
                products.add(call.index)
            elif call.index not in seen:
                seen.add(call.index)
                queue.append(call.index)
    return read.open_way(read.entries, products | seen, onward=True)


RULES = (signal, gradient, dead, saturated)
