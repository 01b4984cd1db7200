"""Calls that the batch cannot be told at: it reaches them through zeros alone."""

from __future__ import annotations

from collections.abc import Collection

from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.kinds import BILINEAR, PASSIVE, RECURRENT, SUMS
from fanin.passes import Pass

__all__ = ["constant", "shut"]


def constant(seen: Pass, zeros: frozenset[str]) -> set[int]:
    """Calls that the batch reaches through weights of zero alone: they give one value, or zero."""
    if not zeros:
        return set()
    read, cells = seen.architecture, seen.cells
    found = {c.index for c in read.trace.calls if _is_closed(c, zeros)}
    zero = {i for i in found if i in cells and cells[i].squares == 0.0}
    return shut(read, found, zero)


def shut(read: Architecture, stops: Collection[int], nothing: Collection[int]) -> set[int]:
    """Calls that the batch reaches through `stops` alone, or times `nothing`: what those of them
    give that give zeros, or next to zero."""
    found, zero = set(stops), set(nothing)
    for call in read.trace.calls:
        given = {i for i in call.inputs if i < 0 or read.trace.calls[i].varies}
        handed = call.op in PASSIVE or (call.op in SUMS and len(set(call.sources)) > 1)
        factor = call.op in BILINEAR and not zero.isdisjoint(given)
        if (given and found >= given) or factor:
            found.add(call.index)
        if factor or (handed and given and zero >= given and not call.operands):
            zero.add(call.index)
    return found


def _is_closed(call: Call, zeros: frozenset[str]) -> bool:
    """Whether a matrix or table of zeros is all that a call makes its result of, if known."""
    if call.op.startswith("unnamed:"):
        return bool(call.parameters) and zeros.issuperset(call.parameters)
    if not call.operands or not call.layout:
        return False
    main = call.operands[0]
    plain = len(main.parameters) == 1 and main.offset == 0.0
    return plain and main.parameters[0] in zeros and call.op not in RECURRENT
