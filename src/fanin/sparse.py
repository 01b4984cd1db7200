"""Layers that read data of which nearly all numbers are zero: bags of words, counts, one-hot rows.

To such a layer each sample is a mean, or a sum, of a few of its rows, as of a table's: a step of
Adam moves what it makes by no more than these rows, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fanin.architecture import Architecture
from fanin.calls import BATCH, Call
from fanin.kinds import PASSIVE
from fanin.measuring import Total
from fanin.nested import inputs_in
from fanin.policies.targets import uncertain
from fanin.roles import Role

__all__ = ["with_sparse"]

# Share of zeros from which data count as sparse.  Adam, 100 steps, the best of four rates, bags of
# 12 in 400 words: MLPs of two hidden layers end at 0.0003 for 0.041 (relu), 0.0006 for 0.019 (tanh)
# and 0.006 for 0.081 (sigmoid), of five at 0.030 for 0.32.  With 40 to 200 words all learn the
# task, a little sooner so.  Where the output layer is next, which is small itself, little is
# gained: at a low rate a graph attention is at 1.43 for 1.18, a graph convolution at 0.43 for 0.60.
SPARSE = 0.9


def with_sparse(
    roles: tuple[Role, ...],
    architecture: Architecture,
    batch: Any,
    total: Total | None,
    device: torch.device,
) -> tuple[Role, ...]:
    """The roles, with those layers marked that read sparse data and whose readers are measured.

    Args:
        roles: of every parameter.
        architecture: of the model.
        batch: that the model has run on; this process's part of it, with `total`.
        total: sums a tensor over the processes that plan together.
        device: where such a tensor is.
    """
    given = list(inputs_in(batch))
    read = {i: given[n] for i, r in enumerate(roles) if (n := _data(r, architecture)) is not None}
    fit = {i: data for i, data in read.items() if _is_read(roles[i], roles, architecture)}
    counts = torch.tensor([_zeros(data) for data in fit.values()], device=device)
    if total is not None and fit:
        counts = total(counts)
    shares = counts[:, 0] / counts[:, 1] if fit else counts
    marked = {i for i, share in zip(fit, shares.tolist(), strict=True) if SPARSE <= share < 1}
    return tuple(replace(r, sparse=True) if i in marked else r for i, r in enumerate(roles))


def _zeros(data: Tensor) -> tuple[float, float]:
    if data.layout != torch.strided:
        return 0.0, 1.0
    return float((data == 0).sum()), float(max(1, data.numel()))


def _data(role: Role, architecture: Architecture) -> int | None:
    """The tensor of the batch that a weight, used once, reads as it is; None where it is none."""
    plain = role.kind == "weight" and sorted(role.layout) == ["i", "o"] and role.part is None
    kept = role.head or role.norm_after or role.branch is not None or role.low_rank
    if not plain or kept or not uncertain(role):
        return None
    uses = [c for c in architecture.trace.calls if role.parameter in c.parameters]
    call: Call = uses[0]
    while BATCH not in call.inputs:
        if len(set(call.sources)) != 1 or call.sources[0] < 0:
            return None
        call = architecture.trace.calls[call.sources[0]]
        if call.op not in PASSIVE:
            return None
    return call.given[0] if len(uses) == 1 and len(call.given) == 1 else None


def _is_read(role: Role, roles: Sequence[Role], architecture: Architecture) -> bool:
    """Whether layers whose size is measured, and no output layer, read what a layer makes."""
    calls = architecture.trace.calls
    measured = {r.parameter for r in roles if r.kind == "weight" and not r.head and uncertain(r)}
    layers = {c.index for c in calls if c.layout}
    norms = {c.index for c in calls if architecture.normalizes(c)}
    if architecture.open_way({role.call}, layers, onward=True):
        return False
    first = architecture.first_met({role.call}, layers | norms, onward=True)
    return all(measured.issuperset(calls[i].parameters[:1]) for i in first - norms)
