"""Towers and branches: what every path into a place passes, while other paths go around it.

The trunk of an actor and a critic that share nothing is empty, and that of ``x + body(x)`` has no
layer of the body.  Yet each of them is a chain in which a signal may vanish like in any other.  In
the words of graph theory: the dominators of what a merge is given, up to the one that all paths
into the merge share.
"""

from __future__ import annotations

from collections.abc import Iterable

from fanin.architecture import Architecture
from fanin.calls import BATCH

__all__ = ["Chain", "towers"]

#: Calls in order, and whether it begins at the batch itself.
Chain = tuple[tuple[int, ...], bool]


def towers(architecture: Architecture) -> tuple[Chain, ...]:
    """Every chain of two calls or more that ends in a merge of paths, each once."""
    calls, goal = architecture.trace.calls, architecture.goal
    before: dict[int, int] = {}  # call → the last call that all paths into it pass
    depth = {BATCH: 0}
    found: dict[tuple[int, ...], bool] = {}
    ends = [(c.index, [*c.behind, *([BATCH] if c.entry else [])]) for c in calls]
    for index, given in [*ends, (len(calls), list(goal))]:
        reached = [i for i in dict.fromkeys(given) if i in depth]
        if not reached:
            continue
        shared = reached[0]
        for other in reached[1:]:
            shared = _shared(before, depth, shared, other)
        before[index], depth[index] = shared, depth[shared] + 1
        for end in reached if len(reached) > 1 else ():
            chain = tuple(_chain(before, end, shared))
            if len(chain) > 1:
                found[chain] = shared == BATCH
    return tuple(found.items())


def _shared(before: dict[int, int], depth: dict[int, int], one: int, other: int) -> int:
    """The last call that all paths into either of two calls pass."""
    while one != other:
        if depth[one] < depth[other]:
            one, other = other, one
        one = before[one]
    return one


def _chain(before: dict[int, int], end: int, start: int) -> Iterable[int]:
    """From behind `start` to `end`, in order."""
    found = []
    while end != start:
        found.append(end)
        end = before[end]
    return reversed(found)
