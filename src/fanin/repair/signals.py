"""Remedies for scales: P201–P207, N403, N404, O301 and W502."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

from fanin.apply import copied
from fanin.assignment import Assignment
from fanin.findings import Finding
from fanin.measuring import Target, measure_
from fanin.operations import NORMS, RECURRENT
from fanin.policies.auto import HEAD_GAIN, target_size
from fanin.policies.targets import TOLERANCE, uncertain
from fanin.repair.case import Case
from fanin.roles import Role

__all__ = ["collapsed", "exploding", "loss_above_chance", "packed", "saturated", "vanishing"]

_WEIGHTS = ("weight", "recurrent", "projection")
_DRAWN = (*_WEIGHTS, "bias", "recurrent_bias", "norm_scale", "norm_shift")
_PASSES = 6  # until no layer is scaled in the wrong direction


def vanishing(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Weights scaled up in one pass from the first guilty one; then the stretch drawn anew."""
    if level == 0:
        return _calibrated(case, finding.layers, up=True)
    return _anew(case, finding, level)


def exploding(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Weights scaled down in one pass from the first guilty one; then the stretch drawn anew."""
    if level == 0:
        return _calibrated(case, finding.layers, up=False)
    return _anew(case, finding, level)


def saturated(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The guilty layers' weights scaled down and their biases at zero; then drawn anew."""
    if level:
        return _anew(case, finding, level)
    names = case.parameters_at(finding.layers)
    made = [*_moderate(case, names), *_without_bias(case, names, finding.layers)]
    done = {a.parameter for a in made}
    measured = _calibrated(case, finding.layers, up=False, only=names)
    return [*made, *(a for a in measured if a.parameter not in done)]


def collapsed(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Swapped norms as in a new model; biases that drown the signal at zero; then drawn anew."""
    if level > 1:
        return _anew(case, finding, level - 1)
    ops = {y.name: y.op for y in case.evidence.layers}
    norms = [n for n in finding.layers if ops.get(n) in NORMS]
    if norms:
        names = case.parameters_at(norms, ("norm_scale", "norm_shift"))
        made = [case.planned_anew(n, "its scale was zero and its shift was not") for n in names]
        return [a for a in made if a is not None]
    if level:
        return _calibrated(case, finding.layers, up=True)
    before = _until(case, finding.layers)
    return list(_without_bias(case, case.parameters_at(before), finding.layers))


def loss_above_chance(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The output layer scaled down; where it is a table too, to the size that a new one has."""
    if level:
        return _anew(case, finding, level)
    made = []
    sizes = {y.name: y.rms for y in case.evidence.layers}
    for name in case.parameters_at([finding.layer], (*_WEIGHTS, "table")):
        role, rms = case.roles[name], sizes.get(finding.layer) or 0.0
        if role.kind == "table":
            plan, own = case.planned.get(name), case.audits[name].rms
            factor = plan.std / own if plan is not None and own > 0 else 1.0
        else:
            factor = HEAD_GAIN / rms if rms > 0 and math.isfinite(rms) else 1.0
        if 0 < factor < 1:
            because = "the output layer: its logits start near zero, the loss at that of guessing"
            made.append(case.scaled(name, _short(factor), because))
    return made


def packed(case: Case, finding: Finding, _level: int) -> list[Assignment]:
    """Queries, keys and values scaled as the three matrices that they are."""
    made = []
    for name in case.parameters_at(finding.layers, ("weight",)):
        rms, shape = case.audits[name].rms, case.roles[name].shape
        factor = math.sqrt(1 / shape[1]) / rms if len(shape) == 2 and rms > 0 else 1.0
        if shape[0] == 3 * shape[1]:
            because = "three matrices in one: Xavier of each block"
            made.append(case.scaled(name, _short(factor), because))
    return made


# ---- scaled --------------------------------------------------------------------------------------


def _calibrated(
    case: Case, guilty: Collection[str], up: bool, only: Collection[str] | None = None
) -> list[Assignment]:
    """One forward pass in which each weight is brought to its size while the pass runs.

    A layer whose own size is right once its input is right stays as it is.
    """
    wanted = dict(_targets(case, guilty, up, only))
    factors: dict[str, tuple[float, ...]] = {}
    for _ in range(_PASSES):
        with copied(case.model, wanted):
            factors = measure_(case.model, case.batch, wanted)
        wrong = [n for n, f in factors.items() if (f[0] > 1) is not up]
        if not wrong:
            break
        wanted = {n: t for n, t in wanted.items() if n not in wrong}
    because = f"scaled {'up' if up else 'down'} in one pass over the batch, to a root mean square"
    return [case.scaled(n, f[0], f"{because} of {wanted[n].size:.3g}") for n, f in factors.items()]


def _targets(
    case: Case, guilty: Collection[str], up: bool, only: Collection[str] | None
) -> Iterator[tuple[str, Target]]:
    named = set(case.parameters_at(guilty))
    for name, role in case.roles.items():
        plain = role.kind == "weight" and role.trainable and role.part is None
        free = uncertain(role) or name in named
        if not plain or not free or name in case.zeros or (only is not None and name not in only):
            continue
        if role.attention and name not in named:
            continue
        yield name, Target(_size(role, up), TOLERANCE)


def _size(role: Role, up: bool) -> float:
    """Of the output; a head is left between the size of a new one and 1."""
    return target_size(role) * (HEAD_GAIN if role.head and up else 1.0)


def _moderate(case: Case, names: Iterable[str]) -> Iterator[Assignment]:
    """Recurrent layers, whose gates no pass can measure: down to the size in a new model."""
    for name in names:
        role, plan = case.roles[name], case.planned.get(name)
        own = case.audits[name].rms
        gated = role.op in RECURRENT and role.kind in _WEIGHTS
        if gated and plan is not None and 0 < plan.std < own / TOLERANCE:
            yield case.scaled(name, _short(plan.std / own), "gates in their flat part: scaled down")


def _without_bias(
    case: Case, names: Iterable[str], guilty: Collection[str]
) -> Iterator[Assignment]:
    """Biases larger than what their weights make of the input: as in a new model."""
    sizes = {y.name: y for y in case.evidence.layers}
    owner = {n: y.name for y in case.evidence.layers for n in y.parameters}
    for name in names:
        role = case.roles[name]
        if role.kind not in ("bias", "recurrent_bias", "norm_shift") or name in case.zeros:
            continue
        layer = sizes.get(owner.get(name, ""))
        rms = case.audits[name].rms
        spread = (layer.rms or 0.0) * (layer.variation or 0.0) if layer is not None else 0.0
        if rms > spread or layer is None or layer.name in guilty:
            made = case.planned_anew(name, f"a bias of {rms:.3g} beside a signal of {spread:.3g}")
            if made is not None:
                yield made


def _until(case: Case, guilty: Collection[str]) -> list[str]:
    """The layers up to the last guilty one."""
    order = [y.name for y in case.evidence.layers]
    last = max((i for i, n in enumerate(order) if n in guilty), default=-1)
    return order[: last + 1]


def _short(factor: float) -> float:
    return float(f"{factor:.4g}")  # a recipe is read by people


# ---- drawn anew ----------------------------------------------------------------------------------


def _anew(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The guilty layers as in a new model (level 1); all that lead to them and on (level 2)."""
    if level > 2:
        return []
    places = list(finding.layers)
    if level == 2:
        places = [y.name for y in case.evidence.layers]
    names = case.parameters_at(places, _DRAWN)
    made = [case.planned_anew(n, f"{finding.name}: rescaling was not enough") for n in names]
    return [a for a in made if a is not None]
