"""What is found about copies: one plain value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "DEAD_UNITS",
    "FROZEN_ZERO",
    "NO_SLOPE",
    "SATURATED",
    "STILL",
    "TWO_ZEROS",
    "UNSEEN",
    "UNUSED",
    "Cause",
    "Deadlock",
    "Identity",
    "Symmetry",
    "UnitClass",
]

#: Why no gradient ever reaches a parameter.
Cause = Literal[
    "two zero factors",
    "a frozen zero",
    "dead units",
    "a function without slope",
    "an activation in its flat part",
    "no weight of the model moves",
    "nothing that was watched says why",
    "unused",
]
TWO_ZEROS: Final = "two zero factors"  # each waits for the other
FROZEN_ZERO: Final = "a frozen zero"  # nothing passes it, and it never changes
DEAD_UNITS: Final = "dead units"
NO_SLOPE: Final = "a function without slope"  # rounding, or a softmax over one value
SATURATED: Final = "an activation in its flat part"  # a sigmoid that is exactly 0 or 1
# All that is computed reaches the loss times zero; offsets of the output alone move.
STILL: Final = "no weight of the model moves"
UNSEEN: Final = "nothing that was watched says why"  # it is used where nothing can be measured
UNUSED: Final = "unused"


@dataclass(frozen=True)
class Identity:
    """The four identities of a class of units at one virtual step.

    Each value is the largest absolute difference between two members of the class: of what they
    receive (pre-activation), what they give (after the activation), the gradient of their incoming
    weights, and the update of these weights.  A row of a parameter receives and gives its values;
    gradient and update are its own.
    """

    step: int
    inputs: float
    outputs: float
    gradients: float
    updates: float


@dataclass(frozen=True)
class UnitClass:
    """Units of one layer, or rows of one parameter, that start as copies of one another.

    Attributes:
        layer: module or parameter path; of rows that of the parameter.
        units: indices of the copies.
        kind: whether they stay copies, part by themselves, or stay each other's negative.
        step: locked and mirrored: virtual steps it was shown for; self-breaking: the step at which
            the class had separated.
        certificate: the four identities at every virtual step.
        rows: how many rows the parameter has; 0 where the copies are units of a layer.
    """

    layer: str
    units: tuple[int, ...]
    kind: Literal["locked", "self-breaking", "mirrored"]
    step: int
    certificate: tuple[Identity, ...] = ()
    rows: int = 0


@dataclass(frozen=True)
class Deadlock:
    """A parameter that received no gradient in any virtual step.

    Attributes:
        parameter: its path.
        layer: the layer that uses it.
        cause: why.
        because: the parameters, layers or functions that hold it.
    """

    parameter: str
    layer: str
    cause: Cause
    because: tuple[str, ...] = ()


@dataclass(frozen=True)
class Symmetry:
    """Everything found about copies.

    Attributes:
        steps: virtual steps taken; 0 means that there was nothing to prove.
        dtype: dtype of the virtual steps, or None.
        classes: classes of identical or mirrored units, and of identical rows.
        deadlocks: parameters that never receive a gradient.
        clones: groups of module or parameter paths that start bit-identical.
    """

    steps: int = 0
    dtype: str | None = None
    classes: tuple[UnitClass, ...] = ()
    deadlocks: tuple[Deadlock, ...] = ()
    clones: tuple[tuple[str, ...], ...] = ()
