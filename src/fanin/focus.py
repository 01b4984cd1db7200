"""How sharply attention looks: queries that put all weight on one of the keys they may choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fanin.operations import ATTENDED

__all__ = ["PICKED", "Focus", "focus_of_fused", "focus_of_softmax"]

#: A query has picked a key that has more than this share of its weight: all others are left a
#: hundredth, and of the gradient of its score, which goes with p(1 - p), 4 % of the most remain.
PICKED = 0.99
# Keys whose scores differ by less than this share of their range are one, as equal tokens are.
_TIED = 1e-5
# Heads of samples, and queries of each, that are looked at; scores, which make queries fewer.
_HEADS, _QUERIES, _SCORES = 16, 64, 2**22
# A query that may choose between fewer keys than these is sharp by chance.
_KEYS = 4
# Scores at or below this are shut by a mask, which is -1e4, -1e9, the least number or -inf.
_SHUT = -9e3
# A smaller mask (-100) is told by what it leaves: one key that stands so many times as far above
# all others as these lie apart.  Of four normal scores that is seen in one of a few hundred rows.
_APART = 4.0


@dataclass(frozen=True)
class Focus:
    """What was seen of the probabilities of one attention.

    Attributes:
        picked: share of the queries that have picked a key.
        queries: that were looked at, and may choose.
        scale: that fused attention multiplies its scores with.
    """

    picked: float
    queries: int
    scale: float = 1.0


def focus_of_softmax(scores: Tensor, probabilities: Tensor) -> Focus | None:
    """That of a softmax over the last dimension; None of another."""
    if scores.dim() < 2 or scores.shape != probabilities.shape or scores.shape[-1] < _KEYS:
        return None
    places = _places(scores.shape[:-1], scores.shape[-1], scores.device)
    total = _at(probabilities, places).float().sum(-1)
    if bool(((total - 1).abs() > 0.01).any()):
        return None
    return _focus(_at(scores, places).float())


def focus_of_fused(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Focus | None:
    """That of `F.scaled_dot_product_attention`, whose scores are made anew for some queries."""
    names = (*ATTENDED, "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    query, key = given["query"].detach(), given["key"].detach()
    if query.dim() < 2 or key.dim() != query.dim() or key.shape[-2] < _KEYS:
        return None
    scale = given.get("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    *heads, rows = _places(query.shape[:-1], key.shape[-2], query.device)
    some = _at(query, [*heads, rows]).float()
    keys = _at(key, [_shared(h, query, key, d) for d, h in enumerate(heads)]).float()
    scores = some @ keys.mT * scale
    if given.get("is_causal"):
        later = torch.arange(key.shape[-2], device=query.device) > rows[:, None]
        scores = scores.masked_fill(later, -math.inf)
    mask = given.get("attn_mask")
    if mask is not None:
        whole = (*query.shape[:-1], key.shape[-2])
        if type(mask) not in (Tensor, nn.Parameter) or not _fits(mask.shape, whole):
            return None  # one that holds no numbers, or keys of more samples than queries
        mask = _at(mask.detach().expand(whole), [*heads, rows])
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    found = _focus(scores)
    return None if found is None else Focus(found.picked, found.queries, scale)


def _fits(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor can be expanded to a shape."""
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(n in (1, size) for n, size in pairs)


def _places(shape: Sequence[int], keys: int, device: torch.device) -> list[Tensor]:
    """Evenly spread indices of heads, for each dimension in front, and of queries."""
    most = max(1, round(_HEADS ** (1 / max(1, len(shape) - 1))))
    limits = [*[most] * (len(shape) - 1), max(1, min(_QUERIES, _SCORES // (_HEADS * keys)))]
    return [
        torch.arange(0, size, max(1, -(-size // limit)), device=device)
        for size, limit in zip(shape, limits, strict=True)
    ]


def _at(tensor: Tensor, places: Sequence[Tensor]) -> Tensor:
    for dim, place in enumerate(places):
        tensor = tensor.index_select(dim, place)
    return tensor


def _shared(place: Tensor, query: Tensor, key: Tensor, dim: int) -> Tensor:
    """The heads of keys that some heads of queries read: one for several, or one for all."""
    return place * key.shape[dim] // query.shape[dim]


def _focus(scores: Tensor) -> Focus | None:
    open_ = scores > _SHUT
    lowest = scores.masked_fill(~open_, math.inf).amin(-1, keepdim=True)
    scores = scores.masked_fill(~open_, -math.inf)
    best = scores.topk(2, -1).values
    top, second = best[..., :1], best[..., 1:]
    alone = top - second > _APART * (second - lowest)
    chosen = ((open_.sum(-1, keepdim=True) >= _KEYS) & top.isfinite() & ~alone)[..., 0]
    queries = int(chosen.sum())
    if not queries:
        return None
    scores, top, lowest = scores[chosen], top[chosen], lowest[chosen]
    alike = scores >= top - _TIED * (top - lowest)
    on_one = (scores.softmax(-1) * alike).sum(-1) > PICKED
    return Focus(float((on_one & ~alike.all(-1)).float().mean()), queries)
