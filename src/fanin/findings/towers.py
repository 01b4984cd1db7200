"""P201–P203 beside the trunk: towers with an output or a sum of their own, and deep branches.

What begins at the batch is judged like the trunk: nothing else brings these layers the samples.  A
branch inside a model may be as small as its author likes, in one step; one that vanishes or
explodes layer by layer is no design, but the model around it may train: a warning.  All healthy
models of the zoo together keep a signal of 0.08 and a gradient of 0.3 in such chains (limits: 1e-4)
and grow to 4 (256); the largest step is left out each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from fanin.findings.evidence import Evidence, Station, Tower
from fanin.findings.reach import live
from fanin.findings.rules import Finding, finding
from fanin.findings.signals import (
    EXPLODED,
    spread_of,
    vanishing_gradient,
    vanishing_signal,
)

__all__ = ["RULES"]

# Layers that a chain has at least: of the two steps between three, one is left out, and the other
# may be a small last layer (1e-5), a design.  (Chains of three in the healthy zoo keep 0.08.)
LEAST = 4


def beside_the_trunk(evidence: Evidence) -> Iterator[Finding]:
    """P201, P202, P203 of each tower, the longest first; what a shorter one repeats is left out."""
    told: dict[str, set[str]] = {}
    for tower in sorted(evidence.towers, key=lambda t: -len(t.run)):
        for found in _judged(evidence, tower):
            if not tower.apart and found.severity != "error":
                continue
            if told.setdefault(found.code, set()).issuperset(found.layers):
                continue
            told[found.code].update(found.layers)
            yield found if tower.apart else replace(found, severity="warning")


def _judged(evidence: Evidence, tower: Tower) -> Iterator[Finding]:
    if sum(s.layer is not None for s in tower.run) < LEAST:
        return
    run = [s for s in live(evidence, tower.run) if s.rms > 0]
    while run and not tower.apart and _is_scale(run[-1]):
        run.pop()  # how little of a branch is added is its author's choice: LayerScale, ReZero
    if sum(s.layer is not None for s in run) < LEAST:
        return
    stretch = [s for s in run if s.index >= tower.reset]
    if len(stretch) > 1:
        yield from vanishing_signal(stretch)
        yield from _exploding_signal(stretch)
    heard = [s for s in run if s.norm and math.isfinite(s.norm)]
    if len(heard) > 2:
        yield from vanishing_gradient(heard)


def _is_scale(station: Station) -> bool:
    return station.layer is not None and station.layer.op == "scale"


def _exploding_signal(run: Sequence[Station]) -> Iterator[Finding]:
    steps = [math.log(spread_of(b) / spread_of(a)) for a, b in pairwise(run) if _spreads(a, b)]
    growth = math.exp(sum(steps) - max([*steps, 0.0]))
    if growth > EXPLODED:
        first, last = run[0], run[-1]
        yield finding(
            "P202",
            "error",
            [s.place for s in run if spread_of(s) > spread_of(first) * EXPLODED] or [last.place],
            measured=f"spread {spread_of(first):.3g} at {first.shown} → {spread_of(last):.3g} at "
            f"{last.shown}, ×{growth:.3g} without the largest step",
            expected=f"below ×{EXPLODED:g} from its first layer (or its last norm) to its end",
            message="The signal grows layer by layer.",
        )


def _spreads(*places: Station) -> bool:
    return all(spread_of(s) > 0 for s in places)


RULES = (beside_the_trunk,)
