"""Where what differs between samples is lost in one place, and what has shut it out: for P207.

Elsewhere it fades, layer by layer, as weights shrink it beside biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fanin.findings.evidence import Evidence, Station
from fanin.kinds import NORMS
from fanin.wording import listed

__all__ = ["LEAST_GIVEN", "Lost", "lost"]

# What differs at the input of an output layer that is not to blame for its likeness: gates shut by
# a bias of -15 leave 3e-7 of 1.
LEAST_GIVEN = 1e-3
# A norm gives what it reads the size of its scale: less than this share of it is the work of an
# eps above the variance.  eps 32 in the place of 1e-5 leaves 0.1 of a torch default's output.
_SHARE = 0.3
# Scales below this let the default biases behind them drown the signal: 0.001 leaves 0.005 of it.
_FAINT = 0.1
# Deviation of a signal whose variance is well above the eps of a norm: √1e-5 = 3e-3.
_ABOVE_EPS = 1e-2
# A norm to blame lets no more than this share of the variation through, with the layer behind it.
_LET_THROUGH = 0.5
# What is lost at once: of the networks of the zoo, those that fade leave 0.24 and more from one
# layer to what the next one reads, those that are shut 9e-12 and less.
_AT_ONCE = 1e-2
_ALL = 0.99  # share of units that are dead or saturated: all but a few


class Lost(NamedTuple):
    """What to say of the place."""

    why: str
    fix: str


def lost(evidence: Evidence, first: Station) -> Lost | None:
    """What shuts out the difference that is gone at `first`; None where it faded on its way."""
    before = [s for s in evidence.trunk if s.index < first.index]
    return (
        _norms(evidence, [*before, first])
        or _computed(evidence, first)
        or _flat(before)
        or _shut(before)
        or _between(evidence, before, first)
        or _stuck(before)
    )


def _deviation(station: Station) -> float:
    return (station.variation or 0.0) * station.rms


def _norms(evidence: Evidence, way: Sequence[Station]) -> Lost | None:
    """Norms whose scale is next to zero, or whose eps is larger than the variance."""
    scales, widths = [], []
    for before, norm, after in zip(way, way[1:], [*way[2:], way[-1]], strict=False):
        if norm.layer is None or norm.layer.op not in NORMS or _deviation(before) < _ABOVE_EPS:
            continue
        left = min(norm.variation or 0.0, after.variation or 0.0)
        operand = evidence.seen.architecture.trace.calls[norm.index].operands[0]
        if operand.offset != 0.0 or left > _LET_THROUGH * (before.variation or 0.0):
            continue
        scale = evidence.sizes.get(norm.layer.weight[0], 1.0)
        if scale < _FAINT:
            scales.append(f"{scale:.2g} at {norm.shown}")
        elif norm.rms < _SHARE * scale:
            widths.append(f"{norm.rms:.2g} at {norm.shown}")
    if scales:
        return Lost(
            f"The scales of norms are next to zero ({listed(scales, 4)}): beside the shift and the "
            "biases behind them, little of what differs is left.",
            "Start the scales of norms at one; zero is for the last norm of a residual branch.",
        )
    if widths:
        return Lost(
            f"Norms give less than their scale ({listed(widths, 4)}): their eps is larger than the "
            "variance of what they read, and the biases behind them drown what is left.",
            "Give eps by its name: the second argument of BatchNorm2d(n, n) is eps. 1e-5 is usual.",
        )
    return None


def _computed(evidence: Evidence, first: Station) -> Lost | None:
    """A weight that comes to nothing where it is computed."""
    operands = evidence.seen.architecture.trace.calls[first.index].operands
    if not operands or first.layer is None or (first.cell.given or 0.0) < LEAST_GIVEN:
        return None
    if operands[0].offset is not None or first.layer.op in NORMS:
        return None
    return Lost(
        f"What {first.shown} reads differs from sample to sample; the weight that is computed from "
        f"{listed(operands[0].parameters, 3)} hands next to nothing of it on.",
        "Look at how that weight is computed: a step of quantization that is larger than its "
        "entries rounds them to zero, and so do masks and scales that are shut.",
    )


def _flat(before: Sequence[Station]) -> Lost | None:
    """Units that are all dead or saturated."""
    for station in reversed(before):
        dead, saturated = station.cell.dead or 0.0, station.cell.saturated or 0.0
        if max(dead, saturated) >= _ALL:
            code = "P205" if dead >= _ALL else "P206"
            return Lost(
                f"The units of {station.shown} are in the flat part of their activation: what lies "
                "behind gets the same for every sample.",
                f"Bring those units back ({code}): biases near zero, weights at the gain of the "
                "activation.",
            )
    return None


def _shut(before: Sequence[Station]) -> Lost | None:
    """Units that are gates, of the last layer whose output still differs."""
    for station in reversed(before):
        if station.cell.shut:
            return Lost(
                f"The units of {station.shown} that are gates are shut: what lies behind gets the "
                "same for every sample.",
                "Open those gates (P206): their part of the biases near zero.",
            )
        if _deviation(station) >= LEAST_GIVEN:
            return None
    return None


def _stuck(before: Sequence[Station]) -> Lost | None:
    """A gate of a recurrent layer that lets nothing in, or nothing out."""
    for station in reversed(before):
        gates = station.cell.gates.stuck if station.cell.gates is not None else ()
        gate = max(gates, key=lambda gate: gate.share, default=None)
        if gate is not None and gate.share >= _ALL:
            return Lost(
                f"The {gate.gate} of {station.shown} is stuck: what lies behind gets the same for "
                "every sample.",
                "Bring that gate back (P206): its biases near zero, weights at a gain of 1.",
            )
    return None


def _between(evidence: Evidence, before: Sequence[Station], first: Station) -> Lost | None:
    """What stands between two layers: a gate, a product, branches that are all shut."""
    if first.layer is None:
        return None
    open_ = [s for s in before if _deviation(s) >= LEAST_GIVEN]
    given = _deviation(open_[-1]) if open_ else min(1.0, evidence.input_variation or 0.0)
    start = open_[-1].index if open_ else -1
    left = [first.cell.given or 0.0, *(_deviation(s) for s in before if s.index > start)]
    if max(left) > _AT_ONCE * given:
        return None
    read = evidence.seen.architecture
    way = {i for i in read.ancestors({first.index}) if start < i < first.index}
    names = [y.name for y in read.layers if not way.isdisjoint(y.calls)]
    there = f" ({listed(names, 4)})" if names else ""
    source = f"What {open_[-1].shown} gives" if open_ else "The batch"
    return Lost(
        f"{source} differs from sample to sample, what {first.shown} reads does not: what stands "
        f"between them{there} lets nothing through.",
        "Open what stands between them: a gate that is shut, a factor of zero, units that are all "
        "dead.",
    )
