"""Stretches of layers between what sets the scale of the signal anew."""

from __future__ import annotations

from fanin.architecture import Architecture

__all__ = ["stretches"]


def stretches(
    architecture: Architecture, resets: set[int], again: set[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Layers with weights before and after each call, counted from the last of `resets`.

    Calls of layers that are used again do not count.
    """
    calls = architecture.trace.calls
    counted = {c.index for c in calls if c.units is not None and "i" in c.layout} - again
    place: dict[int, int] = {}
    reach: dict[int, int] = {}
    for call in calls:
        before = max((reach.get(i, 0) for i in call.behind), default=0)
        place[call.index] = before
        reach[call.index] = 0 if call.index in resets else before + (call.index in counted)
    ahead: dict[int, int] = {}
    for call in reversed(calls):
        here = 0 if call.index in resets else ahead.get(call.index, 0) + (call.index in counted)
        for i in call.behind:
            ahead[i] = max(ahead.get(i, 0), here)
    return place, ahead
