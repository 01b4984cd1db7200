"""Attentions: which layers make queries, keys and values, and which reads the mixed values."""

from __future__ import annotations

from collections.abc import Iterable

from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.operations import ATTENDED

__all__ = ["FUSED", "MIXES", "attended", "attention_parts", "source_of"]

# The second is that of a call whose query, key, value or mask is learned.
FUSED = frozenset({"scaled_dot_product_attention", "attention"})
MIXES = frozenset({"matmul", "bmm", "baddbmm", "einsum"}) | FUSED
# Calls that are followed at most: between scores and softmax there are a scale, a mask, a bias and
# changes of dtype; between a layer and the scores also norms and rotations of queries and keys.
_NEAR, _FAR = 12, 24


def attention_parts(architecture: Architecture) -> tuple[dict[int, str], dict[int, int]]:
    """Weighted call → its part in an attention, and → the call that mixes that attention."""
    found: dict[int, str] = {}
    where: dict[int, int] = {}
    for call in architecture.trace.calls:
        if call.op in FUSED:
            parts, mixed = attended(call), call
        elif call.op == "softmax":
            eager = _eager(architecture, call)
            if eager is None:
                continue
            three, mixed = eager
            parts = tuple(zip("qkv", three, strict=True))
        else:
            continue
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


def _eager(architecture: Architecture, softmax: Call) -> tuple[tuple[int, ...], Call] | None:
    """(q, k, v) and the mixing call around a softmax of an attention written out."""
    scores = softmax
    for _ in range(_NEAR):
        if not scores.behind:
            return None
        scores = architecture.trace.calls[scores.behind[0]]
        if scores.op in MIXES:
            break
        if scores.units is not None:
            return None
    mixed: Call | None = softmax
    weights = softmax.index
    for _ in range(_NEAR):
        after = architecture.followers[weights]
        mixed = next((c for c in after if c.op in MIXES and len(c.sources) > 1), None)
        if mixed is not None or len(after) != 1:
            break
        weights = after[0].index
    signals = [i for i in scores.sources if i >= 0]
    if mixed is None or scores.operands or len(signals) < 2:
        return None
    value = next((i for i in mixed.sources if i != weights), None)
    return None if value is None else ((*signals[-2:], value), mixed)


def source_of(architecture: Architecture, index: int) -> int | None:
    """The weighted call that an operand of an attention comes from."""
    for _ in range(_FAR):
        if index < 0:
            return None
        call = architecture.trace.calls[index]
        if call.units is not None:
            return index if "v" not in call.layout else None
        if not call.sources:
            return None
        index = max(call.sources)
    return None


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
