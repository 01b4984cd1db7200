"""Which units are copies of one another, and the proof of it.

Units whose pre-activations and cotangents agree are candidates.  On a float64 copy of the
parameters a few steps of permutation-equivariant training (per-tensor normalized gradients) are
taken: what is still equal is locked, what has separated was breaking by itself, and a parameter
that never received a gradient is deadlocked.  A model without candidates pays for no copy and no
step, and one whose zeros open for a step or two in float32.

result      what is found
steps       the virtual steps
copies      units that agree: candidates, locked, breaking by themselves, mirrored
rows        rows of one parameter (latents, registers, means) that agree
deadlocks   parameters that never move, and what holds them
examining   examine: all of it
"""

from fanin.symmetry.examining import examine
from fanin.symmetry.result import (
    FROZEN_ZERO,
    NO_SLOPE,
    SATURATED,
    STILL,
    TWO_ZEROS,
    UNSEEN,
    UNUSED,
    Deadlock,
    Identity,
    Symmetry,
    UnitClass,
)
from fanin.symmetry.rows import alike_rows
from fanin.symmetry.steps import LOCK_TOLERANCE, RowSet

__all__ = [
    "FROZEN_ZERO",
    "LOCK_TOLERANCE",
    "NO_SLOPE",
    "SATURATED",
    "STILL",
    "TWO_ZEROS",
    "UNSEEN",
    "UNUSED",
    "Deadlock",
    "Identity",
    "RowSet",
    "Symmetry",
    "UnitClass",
    "alike_rows",
    "examine",
]
