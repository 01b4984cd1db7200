"""Repairs a model, and holds what came of it against what the model was."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fanin
from zoo import Case
from zoo.snapshot import Snapshot, snapshot

__all__ = ["Mended", "mend", "mended", "other_bits", "same_bits"]

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Mended:
    """A repaired model beside what it was."""

    original: nn.Module
    model: nn.Module
    batch: Any
    loss: Any
    repair: fanin.Repair

    def was(self, name: str) -> Tensor:
        return self.original.get_parameter(name).detach()

    def now(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach()

    def changed(self, name: str) -> Tensor:
        """Which entries of a parameter have other bits."""
        return other_bits(self.was(name), self.now(name))

    @property
    def entries(self) -> dict[str, int]:
        return {c.parameter: c.entries for c in self.repair.changes}


def other_bits(one: Tensor, other: Tensor) -> Tensor:
    """Where two tensors differ; the sign of a zero and the payload of a NaN count."""
    form = _WHOLE[one.element_size()]
    return one.detach().contiguous().view(form) != other.detach().contiguous().view(form)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same parameters and buffers, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(
        bool((a == b).all()) if not a.is_floating_point() else not other_bits(a, b).any()
        for a, b in zip(mine.values(), theirs.values(), strict=True)
    )


def mend(model: nn.Module, batch: Any, loss: Any = None, **options: Any) -> Mended:
    """Repair a model.  Fails when anything is other than `Repair.changes` says."""
    original = copy.deepcopy(model)
    before = snapshot(model, batch)
    repair = fanin.repair_(model, batch, loss, **options)
    after = snapshot(model, batch)
    done = Mended(original, model, batch, loss, repair)
    bare, was = _bare(model), dict(_bare(original).named_parameters())
    names = {bare.get_parameter(name).data_ptr(): name for name in repair.changed}
    moved = {place: names.get(_address(before, place)) for place in _moved(before, after)}
    assert None not in moved.values(), before.difference(after)
    assert set(moved.values()) == set(repair.changed)
    assert repair.changed == tuple(c.parameter for c in repair.changes)
    assert set(repair.changed) == {a.parameter for a in repair.plan}
    for change in repair.changes:
        now = bare.get_parameter(change.parameter)
        assert change.entries == int(other_bits(was[change.parameter], now).sum()), change
        assert change.total == now.numel()
        assert change.because
    return done


_DONE: dict[tuple[int, bool], Mended] = {}


def mended(case: Case, warnings: bool = False) -> Mended:
    """The repair of a case of the zoo, made once."""
    key = (id(case), warnings)  # a case cannot be hashed, and lives as long as the zoo
    if key not in _DONE:
        _DONE[key] = _mended(case, warnings)
    return _DONE[key]


def _mended(case: Case, warnings: bool) -> Mended:
    if case.watched:
        _, batch, loss = case.build()
        with fanin.recording() as record:
            model = case.build()[0]
        return mend(model, batch, loss, warnings=warnings, record=record, **case.options)
    model, batch, loss = case.build()
    return mend(model, batch, loss, warnings=warnings, **case.options)


def _bare(model: nn.Module) -> nn.Module:
    """The model inside of a wrapper of torch's."""
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, nn.DataParallel) else inner


def _moved(before: Snapshot, after: Snapshot) -> set[str]:
    return {
        place
        for place in {**before, **after}
        if place not in before or place not in after or before[place] != after[place]
    }


def _address(seen: Snapshot, place: str) -> int:
    """Where the tensor lies whose bits a snapshot keeps at a place; 0 where it keeps others."""
    tensor = place.removesuffix("'s bits")
    return seen.get(f"{tensor}'s memory", (0, 0, 0))[2] if tensor != place else 0
