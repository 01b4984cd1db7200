"""Adapters beside frozen weights, which their author made to change nothing at the start.

A low-rank pair is known from what it does and drawn like any other (`branches.low_rank_pairs`).
Others (a third factor, scaled rows, tables, blocks) differ from library to library; what they have
in common is that their own start is exactly zero, which a new draw of one factor would spoil.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from fanin.roles import Role

__all__ = ["at_rest"]

# Entries of the adapter over those of the frozen weights beside it, at most: rank 8 of a matrix of
# 32 × 32 has a half.  More is a part of the model that is trained beside one that is not.
_SHARE = 0.5
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def at_rest(model: nn.Module, roles: Sequence[Role]) -> dict[str, str]:
    """Parameters of such adapters → why they keep their values; empty on the meta device.

    >>> layer = nn.Module()
    >>> layer.base = nn.Linear(8, 8).requires_grad_(False)
    >>> layer.block = nn.Parameter(torch.zeros(2, 8))
    >>> list(at_rest(nn.ModuleList([layer]), [Role("0.block", (2, 8), True, "unknown")]))
    ['0.block']
    """
    own = dict(model.named_parameters())
    pairs = {role.parameter for role in roles if role.low_rank}
    beside: dict[str, list[str]] = {}
    frozen: dict[str, int] = {}  # path of a module → entries of frozen matrices in it
    for name, parameter in own.items():
        if not parameter.requires_grad and parameter.dim() > 1:
            for path in _above(name):
                frozen[path] = frozen.get(path, 0) + parameter.numel()
    for name, parameter in own.items():
        holder = next((path for path in _above(name) if path in frozen), "")
        if parameter.requires_grad and holder and not parameter.is_meta:
            beside.setdefault(holder, []).append(name)
    found: dict[str, str] = {}
    for holder, names in beside.items():
        matrices = [n for n in names if own[n].dim() > 1]
        size = sum(math.prod(own[n].shape) for n in matrices)
        if isinstance(model.get_submodule(holder), _LISTS) or size > _SHARE * frozen[holder]:
            continue
        zeros = [n for n in matrices if not torch.count_nonzero(own[n].detach())]
        alone = len(matrices) == 1  # two that are zero would never move
        if zeros and (alone or len(zeros) < len(matrices)) and not pairs.issuperset(matrices):
            told = f"an adapter beside frozen weights that changes nothing: {zeros[0]} is zero"
            found |= dict.fromkeys(names, told)
    return found


def _above(name: str) -> list[str]:
    """Paths of the modules that hold a parameter, the innermost first, without the model itself."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
