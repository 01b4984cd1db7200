"""How far the batch reaches, through which weights, and how large it comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fanin.architecture import Layer
from fanin.findings.evidence import Evidence, Station
from fanin.kinds import RECURRENT

__all__ = [
    "NEXT_TO_ZERO",
    "TAME",
    "Outlier",
    "from_nothing",
    "gain",
    "is_zero",
    "large_inputs",
    "live",
    "loud",
    "outlier",
]

# Inputs of this size are raw (pixels of 0 to 255, years); a normalized batch has an rms of about 1.
LARGE_INPUT = 10.0
# A layer made the sum large where its output has at least this share of the size of the sum.
LOUD = 0.1
#: Weights of this gain (std · √fan_in) put half of the units of a tanh into its flat part by
#: themselves, when inputs have an rms of 1: P(|3.2 z| > 2.178) = 0.5.
TAME = 3.2
#: Weights of this gain (std · √fan_in) are next to zero, from where a layer learns as from zero:
#: one layer of an MLP at 1e-2 to 1e-12 of torch's default trains to the same loss.  A table in
#: front of an MLP, an LSTM, a GRU or a transformer trains in the same number of steps from 1e-2 to
#: 1e-12 of its usual size: 1.1 to 2.3 times as many as from that with Adam, 1.2 to 5.5 times with
#: SGD.
NEXT_TO_ZERO = 1e-2

# Gain (std · √fan_in) of weights that are to blame by themselves, and over the next largest one.
# One layer at 1000 times its usual size, in 5 models: 450 to 1170, 390 times the next one and more.
# Sound starts of 29 models: up to 3; T5's head, its table of N(0, 1) as well: 7, 7 times the next.
OUTLIER, APART = 30.0, 10.0


class Outlier(NamedTuple):
    """A layer whose weights are out of all proportion.

    Attributes:
        name: of the layer.
        most: the gain of its weights.
        following: the next largest gain of any layer.
        usual: std of its weights at a gain of 1.
    """

    name: str
    most: float
    following: float
    usual: float

    @property
    def fix(self) -> str:
        """What to do."""
        return (
            f"Draw the weights of {self.name} at their usual size: std about {self.usual:.2g} "
            "(1/√fan_in), for an embedding 0.02 to 1."
        )


def live(evidence: Evidence, run: Sequence[Station] | None = None) -> list[Station]:
    """A run, by default the trunk, up to the first weights that are all zero: what lies behind them
    only says that.

    Frozen ones stay zero, so what lies behind them stays as it is.
    """
    found, constant = [], evidence.constant
    for station in evidence.trunk if run is None else run:
        if station.index in constant:
            break
        if station.layer is not None and is_zero(evidence, station.layer):
            break
        if not math.isfinite(station.rms):
            break
        found.append(station)
    return found


def is_zero(evidence: Evidence, layer: Layer) -> bool:
    """Whether a layer's weight is zero, for now, where it is used: not as 1 + weight, nor as a
    slope, nor added, as a bias is."""
    if layer.op == "prelu":
        return False
    main = evidence.seen.architecture.trace.calls[layer.calls[0]].operands[0]
    zero = layer.weight[0] in evidence.zeros - evidence.frozen
    bias = layer.op == "shift" and sum(size > 1 for size in main.shape) < 2  # a table is none
    return zero and main.offset == 0.0 and not bias


def gain(evidence: Evidence, layer: Layer) -> float:
    """std · √fan_in of a layer's weights; 1 where they are no matrix or table used as it is."""
    main = evidence.seen.architecture.trace.calls[layer.calls[0]].operands[0]
    if len(layer.weight) > 1 or not layer.fan_in or main.offset != 0.0:
        return 1.0
    return evidence.sizes.get(layer.weight[0], 1.0) * math.sqrt(layer.fan_in)


def from_nothing(evidence: Evidence, run: Sequence[Station]) -> Layer | None:
    """The layer next to zero that a run begins with, if no layer behind it is large.

    What differs more and more between samples is then no signal: dropout takes other parts of the
    same biases from each.
    """
    first = run[0].layer
    if first is None or first.weight[0] in evidence.frozen or gain(evidence, first) >= NEXT_TO_ZERO:
        return None
    large = max(gain(evidence, y) for y in evidence.seen.architecture.layers)
    return first if max(large, *(s.rms for s in run)) < TAME else None


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
    if max(*(gain(evidence, y) for y in ways), *gains, 0.0) >= TAME:
        return None
    if max((_given(evidence, y) for y in ways), default=0.0) < LARGE_INPUT:
        return None  # the model scales them itself
    return f"Normalize the inputs: those of this batch have an rms of {rms:.3g}, not about 1."


def _given(evidence: Evidence, layer: Layer) -> float:
    """Size of what the first layer on a way reads, 0 for others: that of its output over its gain.

    What a recurrent layer gives is bounded, so it is taken to read the batch as it is.
    """
    read = evidence.seen.architecture
    before = read.ancestors(layer.calls).difference(layer.calls)
    if any(read.trace.calls[i].operands for i in before):
        return 0.0
    if layer.op in RECURRENT:
        return evidence.input_rms or 0.0
    size = max((cell.rms for cell in evidence.seen.cells_of(layer)), default=0.0)
    return size / (gain(evidence, layer) or math.inf)


def outlier(evidence: Evidence, place: str) -> Outlier | None:
    """The one layer whose weights are out of all proportion, if the size of what it gives reaches a
    place that is not its own."""
    layers = evidence.seen.architecture.layers
    gains: dict[tuple[str, ...], float] = {}
    for layer in layers:
        gains[layer.weight] = max(gain(evidence, layer), gains.get(layer.weight, 0.0))
    most, following, *_ = [*sorted(gains.values(), reverse=True), 0.0, 0.0]
    large = [y for y in layers if gains[y.weight] == most]
    if not max(OUTLIER, APART * following) <= most < math.inf or not _is_heard(
        evidence, large, place
    ):
        return None
    usual = evidence.sizes[large[0].weight[0]] / most
    return Outlier(large[0].name, most, following, usual)


def _is_heard(evidence: Evidence, layers: Sequence[Layer], place: str) -> bool:
    """Whether the size of what layers give reaches another one: on some way there is no norm."""
    read = evidence.seen.architecture
    calls = {i for y in layers for i in y.calls}
    ends = {i for y in read.layers if y.name == place for i in y.calls}
    norms = {c.index for c in read.trace.calls if read.normalizes(c)}
    met = read.first_met(ends, norms | calls, onward=False)
    return calls.isdisjoint(ends) and not calls.isdisjoint(met)


def loud(evidence: Evidence, end: int) -> dict[str, str]:
    """The layers whose outputs make up a sum and are nearly as large as it, with what they do."""
    architecture, cells = evidence.seen.architecture, evidence.seen.cells
    calls, owner = architecture.trace.calls, architecture.layer_of
    found: dict[str, tuple[float, str]] = {}
    seen, queue = set(), [end]
    while queue:
        index = queue.pop()
        if index in seen:
            continue
        seen.add(index)
        if index in owner and index in cells and calls[index].units is not None:
            name = owner[index].name
            found[name] = max(found.get(name, (0.0, "")), (cells[index].rms, calls[index].op))
        else:
            queue += calls[index].behind
    least = LOUD * cells[end].rms if end in cells else 0.0
    loudest = sorted(found, key=lambda name: found[name], reverse=True)
    return {name: found[name][1] for name in loudest if found[name][0] >= least}
