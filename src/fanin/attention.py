"""Attentions: which layers make queries, keys and values, and which reads the mixed values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.kinds import FUSED
from fanin.operations import ATTENDED

__all__ = [
    "MIXES",
    "Attention",
    "attended",
    "attention_parts",
    "attentions",
    "source_of",
    "way_back",
]

MIXES = frozenset({"matmul", "bmm", "baddbmm", "einsum"}) | FUSED
# Calls that are followed at most: between scores and softmax there are a scale, a mask, a bias and
# changes of dtype; between a layer and the scores also norms and rotations of queries and keys.
_NEAR, _FAR = 12, 24


class Attention(NamedTuple):
    """One attention that was seen.

    Attributes:
        call: its softmax, or all of it in one call.
        parts: ("q", "k" or "v", index of what made it).
        mixed: the call that mixes the values.
        between: the calls from the product of queries and keys to the softmax.
    """

    call: Call
    parts: tuple[tuple[str, int], ...]
    mixed: Call
    between: tuple[Call, ...] = ()


def attentions(architecture: Architecture) -> Iterator[Attention]:
    """Every attention: fused ones, and those written out around a softmax."""
    for call in architecture.trace.calls:
        if call.op in FUSED:
            yield Attention(call, attended(call), call)
        elif call.op == "softmax":
            eager = _eager(architecture, call)
            if eager is not None:
                yield eager


def attention_parts(architecture: Architecture) -> tuple[dict[int, str], dict[int, int]]:
    """Weighted call → its part in an attention, and → the call that mixes that attention."""
    found: dict[int, str] = {}
    where: dict[int, int] = {}
    for _, parts, mixed, _ in attentions(architecture):
        for letter, index in parts:
            source = source_of(architecture, index)
            if source is not None and letter not in found.get(source, ""):
                found[source] = found.get(source, "") + letter
                where.setdefault(source, mixed.index)
        output = (mixed.index,) if mixed.layout else _next_weighted(architecture, mixed)
        for index in output:
            found.setdefault(index, "o")
            where.setdefault(index, mixed.index)
    return found, where


def attended(call: Call) -> tuple[tuple[str, int], ...]:
    """("q", "k" or "v", what made it) of fused attention, of those that are signals; none where
    some are neither signals nor learned."""
    learned = {operand.role for operand in call.operands}
    letters = [x for x, role in zip("qkv", ATTENDED[:3], strict=True) if role not in learned]
    if len(call.sources) < len(letters):
        return ()
    return tuple(zip(letters, call.sources, strict=False))


def _eager(architecture: Architecture, softmax: Call) -> Attention | None:
    """That around a softmax, where it is an attention written out."""
    found = _scores(architecture, softmax)
    mixed: Call | None = softmax
    weights = softmax.index
    for _ in range(_NEAR):
        after = architecture.followers[weights]
        mixed = next((c for c in after if c.op in MIXES and len(c.sources) > 1), None)
        if mixed is not None or len(after) != 1:
            break
        weights = after[0].index
    if mixed is None or found is None:
        return None
    value = next((i for i in mixed.sources if i != weights), None)
    if value is None:
        return None
    scores, between = found
    query, key = [i for i in scores.sources if i >= 0][-2:]
    return Attention(softmax, (("q", query), ("k", key), ("v", value)), mixed, between)


def _scores(architecture: Architecture, softmax: Call) -> tuple[Call, tuple[Call, ...]] | None:
    """The product of two signals that a softmax is taken of, and the calls from it to there.

    Other ways end at a layer, which makes a bias of positions, or at the batch, as a mask does.
    """
    calls = architecture.trace.calls
    ways: list[tuple[int, tuple[Call, ...]]] = [(i, ()) for i in reversed(softmax.behind)]
    seen: set[int] = set()
    while ways:
        index, between = ways.pop()
        call = calls[index]
        if index in seen or call.units is not None or len(between) >= _NEAR:
            continue
        seen.add(index)
        if call.op not in MIXES:
            ways += [(i, (*between, call)) for i in reversed(call.behind)]
        elif not call.operands and sum(i >= 0 for i in call.sources) > 1:
            return call, between
    return None


def way_back(architecture: Architecture, index: int) -> tuple[Call, ...]:
    """The calls from an operand of an attention to the weighted one that it comes from; none where
    it comes from none."""
    way = []
    for _ in range(_FAR):
        if index < 0:
            return ()
        call = architecture.trace.calls[index]
        way.append(call)
        if call.units is not None:
            return tuple(way) if "v" not in call.layout else ()
        if not call.sources:
            return ()
        index = max(call.sources)
    return ()


def source_of(architecture: Architecture, index: int) -> int | None:
    """The weighted call that an operand of an attention comes from."""
    way = way_back(architecture, index)
    return way[-1].index if way else None


def _next_weighted(architecture: Architecture, call: Call) -> Iterable[int]:
    for _ in range(_NEAR):
        after = architecture.followers[call.index]
        weighted = [c.index for c in after if c.units is not None]
        if weighted:
            return weighted
        if len(after) != 1 or len(set(after[0].sources)) > 1:
            return ()
        call = after[0]
    return ()
