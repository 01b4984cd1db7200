"""Remedies for single entries and whole parameters that nobody drew: N401, N402, W503–W505."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fanin.assignment import Assignment
from fanin.findings import Finding
from fanin.findings.numbers import HUGE
from fanin.repair.case import Case, Mask

__all__ = ["clamped", "idle_initializer", "idle_truncation", "non_finite", "unwritten"]

# Up to this share of bad entries the rest of the parameter is what somebody drew or trained.
# Leftover memory shows by more: every second entry or so is huge, tiny or no number.
ISOLATED = 0.1


def non_finite(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Single entries are drawn again at the parameter's own scale; many, and all of it is."""
    if level:
        return []
    found = []
    for name in case.parameters_at(finding.layers):
        if case.audits[name].nonfinite:
            values = case.model.get_parameter(name).detach()
            bad = ~torch.isfinite(values)
            found.append(_mended(case, name, _numpy(bad), "not finite"))
    return found


def unwritten(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """What was never written is drawn as in a new model; a few odd entries alone."""
    if level:
        return []
    found = []
    for name in finding.layers:
        role = case.roles.get(name)
        if role is None or not role.trainable:
            continue
        values = case.model.get_parameter(name).detach()
        bad = ~(values.abs() <= HUGE)
        if name in case.evidence.unwritten or not bad.any():
            bad = torch.ones_like(bad)
        found.append(_mended(case, name, _numpy(bad), "memory that nobody wrote"))
    return found


def _mended(case: Case, name: str, bad: Mask, what: str) -> Assignment:
    count, total = int(bad.sum()), bad.size
    role = case.roles[name]
    if count <= max(1.0, ISOLATED * total) and count < total:
        because = f"{count} of {total} entries {what}"
        if role.kind in ("weight", "recurrent", "projection", "table"):
            return case.own(name, because, bad)
        return _usual(case, name, because, bad)
    return _usual(case, name, what, None)


def _usual(case: Case, name: str, because: str, part: Mask | None) -> Assignment:
    """As in a new model; parameters that no scheme knows: ones for scales, zeros for the rest."""
    made = case.planned_anew(name, because, part)
    if made is not None:
        return made
    if case.roles[name].kind == "token":
        return case.own(name, because, part)
    scale = case.roles[name].kind in ("norm_scale", "branch_scale", "scale", "magnitude", "slope")
    if scale or len(case.roles[name].shape) < 2:
        return case.constant(name, 1.0 if scale else 0.0, because, part)
    return case.alive(name, because, part)


def idle_truncation(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Drawn with the std that was meant, cut at ±2σ."""
    if level:
        return []
    stds = {name: std for name, std, _ in case.evidence.idle}
    made = []
    for name in case.parameters_at(finding.layers):
        if name in stds:
            bare = case.own(name, f"cut at ±2σ of its std {stds[name]:g}")
            made.append(replace(bare, scheme="trunc_normal", gain=stds[name], std=stds[name]))
    return made


def idle_initializer(case: Case, _finding: Finding, level: int) -> list[Assignment]:
    """The parameters behind the computed weight, as in a new model."""
    if level:
        return []
    names = [n for n in case.evidence.lost if n in case.roles]
    return case.all_anew(names, "its initializer drew the weight computed from it")


def clamped(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The entries on the bound are drawn again, at the scale of the others."""
    if level:
        return []
    made = []
    for name in case.parameters_at(finding.layers):
        audit = case.audits[name]
        if audit.outliers:
            values = case.model.get_parameter(name).detach()
            part = _numpy(values.abs() == audit.bound)
            made.append(case.own(name, f"{audit.outliers} entries on a bound far out", part))
    return made


def _numpy(values: torch.Tensor) -> Mask:
    return np.asarray(values.cpu().numpy())
