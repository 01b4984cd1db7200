"""What a scheme makes of a fan: the link between the gain and the std of an assignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from fanin.assignment import KEPT, OF_TENSOR, matrix_sizes
from fanin.catalogue import find
from fanin.errors import ArgumentError, RecipeError
from fanin.region import check_region

__all__ = ["Unit", "check_scale", "units"]

#: (scheme, fan, arguments, shape, layout, blocks) → std of one weight at gain 1; None where it
#: cannot be told from these.  Raises ArgumentError or RecipeError where they are not allowed.
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
    known: dict[Hashable, float | None] = {}

    def unit(
        scheme: str,
        fan: float | None,
        arguments: Mapping[str, Any],
        shape: Sequence[int],
        layout: str,
        blocks: int,
    ) -> float | None:
        _check_tensor(scheme, arguments, shape, layout)
        if scheme == KEPT:
            return None
        own = {name: value for name, value in arguments.items() if name not in OF_TENSOR}
        groups = int(arguments.get("groups", 1))
        # repr: True and 1, and 1.0, are different arguments
        key = (scheme, fan, repr(own), tuple(shape), layout, blocks, groups)
        if key not in known:
            known[key] = _unit(scheme, fan, own, matrix_sizes(shape, layout, blocks, groups))
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
    if scheme == KEPT:
        return
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
    name: str, fan: float | None, arguments: Mapping[str, Any], sizes: tuple[int, ...] | None
) -> float | None:
    scheme = find(name)
    if scheme.scope == "model":
        raise ArgumentError(f"scheme: {name} needs a whole model; one tensor cannot be filled")
    if scheme.form != "matrix" or scheme.fan is not None:
        return scheme.std(fan, **arguments)
    scheme.complete(arguments)
    # a fan that is given counts; a structured matrix takes its sizes, a few take nothing
    for given in (sizes, None) if fan is None else (fan, sizes, None):
        try:
            return scheme.std(given, **arguments)
        except ArgumentError:  # this one needs something else
            continue
    return None


def _check_tensor(
    scheme: str, arguments: Mapping[str, Any], shape: Sequence[int], layout: str
) -> None:
    """Check what the arguments say of the tensor.

    Raises:
        RecipeError, ArgumentError: it is not so for any tensor of this shape.
    """
    check_region(scheme, arguments, shape, layout)
    groups = arguments.get("groups")
    if groups is not None and not (_is_whole(groups) and groups >= 1):
        raise RecipeError(f"groups: {groups!r}; a whole number from 1 on is needed")


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)
