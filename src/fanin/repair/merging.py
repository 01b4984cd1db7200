"""One assignment for each parameter, whatever was prescribed for it one after the other."""

from __future__ import annotations

from dataclasses import replace

from fanin.assignment import KEPT, REGION, Assignment

__all__ = ["merged"]


def merged(before: Assignment | None, after: Assignment) -> Assignment:
    """What two prescriptions do one after the other, from the values that the parameter had.

    >>> once = Assignment("w", KEPT, 0.5, 0.1, None, "too large", (4, 2), "oi")
    >>> merged(once, replace(once, gain=0.5)).gain
    0.25
    """
    if before is None:
        return after
    if after.scheme == KEPT:
        return _scaled(before, after)
    if not after.partial:
        return after
    if _splits(after) or _splits(before):
        return before
    if before.scheme == KEPT:
        return replace(after, arguments={**after.arguments, "kept": before.gain})
    if not before.partial:
        return before  # all of it was drawn anew already
    arguments = {**before.arguments, **after.arguments}
    for name in REGION:
        union = {i for a in (before, after) for i in a.arguments.get(name) or ()}
        if union:
            arguments[name] = tuple(sorted(union))
    return replace(after, arguments=arguments, because=_both(before, after))


def _splits(assignment: Assignment) -> bool:
    return assignment.arguments.get("split") is not None


def _scaled(before: Assignment, after: Assignment) -> Assignment:
    factor = after.gain
    made = replace(
        before,
        gain=before.gain * factor,
        std=before.std * factor,
        because=_both(before, after),
    )
    if before.scheme != KEPT and before.partial and not _splits(before):
        kept = float(before.arguments.get("kept", 1.0)) * factor
        made = replace(made, arguments={**before.arguments, "kept": kept})
    return made


def _both(before: Assignment, after: Assignment) -> str:
    told = after.because.partition("; ")[0]  # what is drawn, and how, was told before
    return before.because if told in before.because else f"{before.because}; then {told}"
