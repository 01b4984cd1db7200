"""Adapters beside frozen weights, which their author made to change nothing at the start.

A low-rank pair is known from what it does and drawn like any other (`branches.low_rank_pairs`).
Others (a third factor, scaled rows, tables, blocks) differ from library to library; what they have
in common is that their own start is exactly zero, which a new draw of one factor would spoil.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fanin.roles import Role

__all__ = ["at_rest"]


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
    heads = {role.parameter for role in roles if role.head}
    bases: dict[str, list[Tensor]] = {}  # path of a module → the frozen matrices in it
    beside: dict[str, list[str]] = {}
    for name, parameter in own.items():
        if not parameter.requires_grad and parameter.dim() > 1:
            for path in _above(name):
                bases.setdefault(path, []).append(parameter)
    for name, parameter in own.items():
        holder = next((path for path in _above(name) if path in bases), "")
        if parameter.requires_grad and holder:
            beside.setdefault(holder, []).append(name)
    found: dict[str, str] = {}
    for holder, names in beside.items():
        matrices = {n: own[n].detach() for n in names if own[n].dim() > 1}
        if any(own[name].is_meta for name in names) or len(bases[holder]) > 1:
            continue
        if not heads.isdisjoint(matrices) or pairs.issuperset(matrices):
            continue
        zero = _zero_of(bases[holder][0], matrices)
        if zero:
            told = f"an adapter beside frozen weights that changes nothing: {zero} is zero"
            found |= dict.fromkeys(names, told)
    return found


def _zero_of(base: Tensor, matrices: Mapping[str, Tensor]) -> str:
    """The matrix that keeps an adapter of one frozen weight at rest; "" where that is not sound.

    All are of low rank beside the weight, and one at most is zero: two would never move.
    """
    least = min(base.shape)
    low = all(sum(size >= least for size in m.shape) < 2 for m in matrices.values())
    zeros = [name for name, m in matrices.items() if not torch.count_nonzero(m)]
    others = [m for name, m in matrices.items() if name not in zeros]
    sound = all(bool(torch.isfinite(m).all()) and bool((m != m.flatten()[0]).any()) for m in others)
    return zeros[0] if low and sound and len(zeros) == 1 else ""


def _above(name: str) -> list[str]:
    """Paths of the modules that hold a parameter, the innermost first, without the model itself."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
