"""P204 in time: a gradient that grows over the uses of layers that work on what they made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from fanin.architecture import Layer
from fanin.findings.evidence import Evidence
from fanin.findings.rules import Finding, finding
from fanin.kinds import RECURRENT, RECURRENT_LAYERS
from fanin.neighbours import unrolled
from fanin.wording import listed

__all__ = ["exploding_in_time", "step_by_step"]

# Growth of the cotangent over T uses of a layer on what it made: the largest over that of the last
# use, or of what reads the state, and over T, which a recurrence that keeps gradients can reach
# where every step has a loss of its own.  Tanh networks of width 32: sound (random recurrent
# weights of std 0.3) up to 0.1 over 20 and 60 steps; std 0.5 learns half as much as it should at 5
# over 20 steps, which is let pass, and nothing at 1.5e4 over 60; std 1 nothing at 1.3e3 over 20.
EXPLODED_IN_TIME, EXPLODING_IN_TIME = 100.0, 10.0
# In one call the steps are not seen: there the norm of the gradient of a recurrent matrix, over
# that of cotangent and state together.  No recurrence that keeps gradients has more than T (Cauchy
# and Schwarz), and in most the parts are not aligned: RNN, GRU and LSTM over 20 and 60 steps that
# learn have up to 0.01 T, those that learn half or nothing from 0.01 T on, most above 0.13 T.
EXPLODED_IN_ONE, EXPLODING_IN_ONE = 1.0, 0.1
STEPS = 3  # fewer have no time

_OF_A_STATE = {
    "why": "A recurrent layer multiplies its state by the same weights at every step, so outputs "
    "and gradients grow like a power of these.",
    "fix": "Draw the recurrent weights orthogonal (nn.init.orthogonal_): that keeps the state's "
    "size.",
}
_USED_AGAIN = {
    "why": "Layers that are used again and again, on what they helped to make, multiply it by the "
    "same weights each time, so outputs and gradients grow like a power of these.",
    "fix": "Draw the weights of these layers smaller (std 1/√fan_in), or let each use count for "
    "less: a smaller step of a solver, 1/√(number of uses) of what each adds.",
}


class _InTime(NamedTuple):
    """Growth of the gradient over the steps of a recurrent layer."""

    place: str  # the layer, or the matrix of a layer that has several
    severe: float  # 1: as much as an error needs
    slight: float  # 1: as much as a warning needs
    measured: str


def exploding_in_time(evidence: Evidence) -> Iterator[Finding]:
    """P204 of layers that work on what they made, in several calls or in one."""
    read = evidence.seen.architecture
    again = unrolled(read)
    found: dict[Layer, _InTime] = {}
    for layer in read.layers:
        grown = None
        if not again.isdisjoint(layer.calls):
            grown = _over_calls(evidence, layer)
        elif layer.op in RECURRENT_LAYERS:
            grown = _in_one_call(evidence, layer)
        if grown is not None and grown.slight > 1.0:
            found[layer] = grown
    if found:
        state = any(_keeps_state(evidence, layer) for layer in found)
        yield finding(
            "P204",
            "error" if any(g.severe > 1.0 for g in found.values()) else "warning",
            [g.place for g in found.values()],
            measured=listed((g.measured for g in found.values()), 3, apart="; "),
            expected="no growth from step to step",
            message="The gradient grows step by step on its way to the first one.",
            **(_OF_A_STATE if state else _USED_AGAIN),
        )


def step_by_step(evidence: Evidence, layer: Layer | None) -> dict[str, str] | None:
    """Why what passes a layer grows by a power, and what to do, if the layer works on what it made:
    in one call, or called once for each step."""
    if layer is None or not (layer.op in RECURRENT or len(layer.calls) > 1):
        return None
    return _OF_A_STATE if _keeps_state(evidence, layer) else _USED_AGAIN


def _keeps_state(evidence: Evidence, layer: Layer) -> bool:
    """Whether a layer is recurrent, or is given what it made with no other layer between."""
    read = evidence.seen.architecture
    if layer.op in RECURRENT:
        return True
    others = {i for y in read.layers if y.units is not None for i in y.calls}
    met = read.first_met(layer.calls[:1], others, onward=True)
    return not met.isdisjoint(layer.calls[1:])


def _over_calls(evidence: Evidence, layer: Layer) -> _InTime | None:
    cells = evidence.seen.cells_of(layer)
    norms = [math.sqrt(c.cotangent_squares) for c in cells if c.cotangent_squares]
    if len(norms) < STEPS or not all(map(math.isfinite, norms)):
        return None
    # Where steps have outputs of their own, a loss may weight the last one with next to nothing.
    given = max([norms[-1], *_read_off(evidence, layer)])
    growth = max(norms) / given
    measured = (
        f"{layer.name}: cotangent of up to {max(norms):.3g} over {len(norms)} steps, {given:.3g} "
        f"where the state is read off (×{growth:.3g})"
    )
    share = growth / len(norms)
    return _InTime(layer.name, share / EXPLODED_IN_TIME, share / EXPLODING_IN_TIME, measured)


def _read_off(evidence: Evidence, layer: Layer) -> list[float]:
    """Norms of the cotangents of the layers that read what a layer makes, and give it nothing."""
    read, cells = evidence.seen.architecture, evidence.seen.cells
    behind, before = read.descendants(layer.calls), read.ancestors(layer.calls[-1:])
    calls = (y.calls for y in read.layers if before.isdisjoint(y.calls))
    found = [cells[i] for own in calls if behind.issuperset(own) for i in own if i in cells]
    norms = (math.sqrt(c.cotangent_squares or 0.0) for c in found)
    return [norm for norm in norms if math.isfinite(norm)]


def _in_one_call(evidence: Evidence, layer: Layer) -> _InTime | None:
    """The worst of its recurrent matrices (two where it runs both ways)."""
    read, cell = evidence.seen.architecture, evidence.seen.cells.get(layer.calls[0])
    if cell is None or len(layer.calls) > 1 or not cell.cotangent_squares or not cell.squares:
        return None
    operands = [
        o
        for o in read.trace.calls[layer.calls[0]].operands
        if o.role.removesuffix("_reverse") == "recurrent" and len(o.parameters) == 1
    ]
    width = math.prod(read.trace.calls[layer.calls[0]].shape[-1:])
    steps = cell.count / (width * (evidence.samples or 1))
    scale = math.sqrt(cell.cotangent_squares * cell.squares)
    worst, name = 0.0, ""
    for operand in operands:
        (parameter,) = operand.parameters
        gradient = evidence.seen.gradients.get(parameter) or 0.0
        norm = gradient * math.sqrt(math.prod(operand.shape))
        if norm > worst:
            worst, name = norm, parameter
    if steps < STEPS or not math.isfinite(worst):
        return None
    measured = (
        f"{name}: gradient of norm {worst:.3g}, ×{worst / scale:.3g} that of cotangent and state "
        f"together, over {steps:.0f} steps"
    )
    share = worst / scale / steps
    return _InTime(name, share / EXPLODED_IN_ONE, share / EXPLODING_IN_ONE, measured)
