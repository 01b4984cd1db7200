"""What a scheme makes of a fan: the link between the gain and the std of an assignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fanin.catalogue import find
from fanin.errors import ArgumentError, RecipeError

__all__ = ["LAYOUT_ARGUMENTS", "Unit", "check_scale", "units"]

#: Arguments that say how a tensor is laid out; every scheme can have them.
LAYOUT_ARGUMENTS = ("groups",)

#: (scheme, fan, arguments, shape, layout, blocks) → std of one weight at gain 1; None where it
#: cannot be told from these.  Raises ArgumentError where they are not allowed.
Unit: TypeAlias = Callable[
    [str, float | None, Mapping[str, Any], Sequence[int], str, int], float | None
]

# Relative.  Six digits are what a person copies from a table.
_TOLERANCE = 1e-6


def units() -> Unit:
    """A function that knows the std at gain 1, and remembers it: most parameters have twins.

    >>> units()("he_normal", 50.0, {}, (10, 50), "oi", 1)
    0.2
    """
    known: dict[object, float | None] = {}

    def unit(
        scheme: str,
        fan: float | None,
        arguments: Mapping[str, Any],
        shape: Sequence[int],
        layout: str,
        blocks: int,
    ) -> float | None:
        # repr: True and 1, and 1.0, are different arguments
        key = (scheme, fan, repr(sorted(arguments.items())), tuple(shape), layout, blocks)
        if key not in known:
            known[key] = _unit(scheme, fan, arguments, shape, layout, blocks)
        return known[key]

    return unit


def check_scale(
    scheme: str, fan: float | None, std: float, gain: float, unit: float | None
) -> None:
    """Check that std and gain say the same, as far as `unit` tells.

    Raises:
        ArgumentError: the scheme has no such gain.
        RecipeError: they contradict each other.
    """
    find(scheme).check_gain(gain)
    if unit is None:
        return
    computed = abs(gain) * unit
    if not math.isclose(std, computed, rel_tol=_TOLERANCE):
        of = "" if fan is None else f" and fan {fan:g}"
        raise RecipeError(
            f"std: {std!r}; {scheme} with gain {gain!r}{of} has std {computed!r}: leave out gain "
            "where std is meant, std where gain is meant"
        )


def _unit(
    name: str,
    fan: float | None,
    arguments: Mapping[str, Any],
    shape: Sequence[int],
    layout: str,
    blocks: int,
) -> float | None:
    scheme = find(name)
    if scheme.scope == "model":
        raise ArgumentError(f"scheme: {name} needs a whole model; one tensor cannot be filled")
    own = {key: value for key, value in arguments.items() if key not in LAYOUT_ARGUMENTS}
    if scheme.form != "matrix" or scheme.fan is not None:
        return scheme.std(fan, **own)
    scheme.complete(own)
    for fans in (fan, _sizes(arguments, shape, layout, blocks), None):
        try:
            return scheme.std(fans, **own)
        except ArgumentError:  # this one needs something else
            continue
    return None


def _sizes(
    arguments: Mapping[str, Any], shape: Sequence[int], layout: str, blocks: int
) -> tuple[int, ...] | None:
    """(inputs, outputs, *kernel) of one matrix of a parameter; None where it is none."""
    if len(layout) != len(shape) or not {"o", "i"} <= set(layout):
        return None
    sides = list(zip(layout, shape, strict=True))
    inputs = math.prod(size for letter, size in sides if letter == "i")
    outputs = math.prod(size for letter, size in sides if letter == "o")
    kernel = [size for letter, size in sides if letter == "k"]
    if "groups" in arguments:  # a transposed convolution: its blocks are along the inputs
        inputs //= blocks
    else:
        outputs //= blocks
    return inputs, outputs, *kernel
