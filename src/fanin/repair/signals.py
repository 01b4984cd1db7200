"""Remedies for scales: P201–P208, N403, N404, O301 and W502."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from torch import nn

from fanin.apply import copied
from fanin.assignment import Assignment
from fanin.findings import Finding
from fanin.kinds import NORMS, RECURRENT
from fanin.measuring import DIGITS, Target, measure_
from fanin.policies.auto import head_gain, target_size
from fanin.policies.deep import BIASED
from fanin.policies.rest import STREAM_STD
from fanin.policies.targets import TOLERANCE, uncertain
from fanin.repair.case import DRAWN, GROSS, TINY, Case
from fanin.repair.odd import OVERSIZED, drowning
from fanin.roles import Role

__all__ = [
    "DROWNED",
    "collapsed",
    "drowned",
    "exploding",
    "loss_above_chance",
    "packed",
    "saturated",
    "swapped",
    "vanishing",
    "without_bias",
]

_WEIGHTS = ("weight", "recurrent", "projection")
_REDRAWN = (*DRAWN, "magnitude", "bias", "recurrent_bias", "norm_scale", "norm_shift")
# A head is left where its output is no larger than this; logits of a few are no fault.
LOUD = 4.0
# A bias this many times what differs between inputs makes its layer a constant.
DROWNED = 10.0
# What the automatic choice draws in deep stretches, and how many layers make one of note.
STRUCTURED = ("looks_linear", "orthogonal", "delta_orthogonal")
FEWEST = 4
_PASSES = 6  # until no layer is scaled in the wrong direction


def vanishing(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Weights scaled up in one pass from the first guilty one; then the stretch drawn anew."""
    if level > 1:
        return _anew(case, finding, level - 1)
    return _rescaled(case, finding, up=True, gross=level == 0)


def exploding(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Weights scaled down in one pass from the first guilty one; then the stretch drawn anew.

    A recurrent matrix over whose steps the gradient grows is drawn anew alone first.
    """
    if level > 1:
        return _anew(case, finding, level - 1)
    if level == 0:
        named = [n for n in finding.layers if n in case.roles]
        states = [n for n in named if case.roles[n].kind == "recurrent"]
        drawn = case.all_anew(states, "the gradient grows from step to step")
        if drawn:
            return drawn
    made = _rescaled(case, finding, up=False, gross=level == 0)
    done = {a.parameter for a in made}
    large = list(_oversized(case, done))
    beside = drowning(case, {a.parameter: 1.0 for a in large})
    return [*made, *large, *(a for a in beside if a.parameter not in done)]


def _rescaled(case: Case, finding: Finding, up: bool, gross: bool) -> list[Assignment]:
    """A few layers that are grossly wrong alone; all, where most of them are wrong a little."""
    made = _calibrated(case, finding.layers, up)
    if _needs_structure(case, made):
        return _structured(case, finding)
    few = 2 * len(made) < sum(1 for _ in _targets(case, finding.layers, up, None, False, GROSS))
    if gross and few:
        return _calibrated(case, finding.layers, up, tolerance=GROSS) or made
    return made


def saturated(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The guilty layers' biases at zero, then their weights scaled down, then drawn anew."""
    if level > 1:
        return _anew(case, finding, level - 1)
    names = case.parameters_at(finding.layers)
    if level == 0:
        return list(without_bias(case, names, least=1.0))
    made = list(_moderate(case, names))
    done = {a.parameter for a in made}
    heads = [n for n, role in case.roles.items() if role.head]
    measured = _calibrated(case, finding.layers, up=False, only=[*names, *heads])
    return [*made, *(a for a in measured if a.parameter not in done)]


def swapped(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Norms whose scale is zero and whose shift is not: as in a new model."""
    ops = {y.name: y.op for y in case.evidence.layers}
    norms = [n for n in finding.layers if ops.get(n) in NORMS and level == 0]
    closed = [
        n for n in norms if not case.zeros.isdisjoint(case.parameters_at([n], ("norm_scale",)))
    ]
    names = case.parameters_at(closed, ("norm_scale", "norm_shift"))
    return case.all_anew(names, "its scale was zero and its shift was not")


def collapsed(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Biases that drown the signal at zero; then weights that are next to nothing scaled up; then
    each layer centred and scaled in one pass; then drawn anew."""
    names = case.parameters_at(_until(case, finding.layers))
    if level == 0:
        return list(without_bias(case, names, least=1.0))
    measured = _calibrated(case, finding.layers, up=True, centre=True)
    if level < 3 and _needs_structure(case, measured):
        return _structured(case, finding)
    if level == 1:
        zero = [n for n in names if n in case.zeros and case.roles[n].kind == "weight"]
        made = [case.alive(n, "a zero that every input passes") for n in zero]
        made += _enlarged(case, case.parameters_at(finding.layers, ("table",)))
        return made or _calibrated(case, finding.layers, up=True, only=list(_faint(case, names)))
    return measured if level == 2 else _anew(case, finding, level - 2)


def _faint(case: Case, names: Iterable[str]) -> Iterator[str]:
    """Weights far smaller than new ones."""
    for name in names:
        plan = case.planned.get(name)
        if plan is not None and 0 < case.audits[name].rms < TINY * plan.std:
            yield name


def _enlarged(case: Case, tables: Iterable[str]) -> Iterator[Assignment]:
    """Tables far smaller than new ones brought to the size of these: no pass measures a table."""
    for name in _faint(case, tables):
        plan, own = case.planned[name], case.audits[name].rms
        because = f"{own / plan.std:.3g} times the size of a new one: scaled up to it"
        yield case.scaled(name, _short(plan.std / own), because)


def loss_above_chance(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Biases that drown the signal at zero; without any, the output layer scaled down."""
    if level > 1:
        return _anew(case, finding, level - 1)
    names = case.parameters_at(_until(case, [finding.layer]))
    drowning = list(without_bias(case, names, DROWNED, least=1.0))
    if drowning and level == 0:
        return drowning
    return list(_quiet_head(case, finding.layer))


def _quiet_head(case: Case, layer: str) -> Iterator[Assignment]:
    """The output layer scaled down; where it is a table too, to the size that a new one has."""
    sizes = {y.name: y.rms for y in case.evidence.layers}
    for name in case.parameters_at([layer], (*_WEIGHTS, "table")):
        role, rms = case.roles[name], sizes.get(layer) or 0.0
        if role.kind == "table":
            plan, own = case.planned.get(name), case.audits[name].rms
            factor = plan.std / own if plan is not None and own > 0 else 1.0
        else:
            factor = head_gain(role) / rms if rms > 0 and math.isfinite(rms) else 1.0
        if 0 < factor < 1:
            because = "the output layer: its logits start near zero, the loss at that of guessing"
            yield case.scaled(name, _short(factor), because)


def drowned(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """What is too large in a sum scaled down: a table to the size of those beside it, a layer in
    one pass; then as `exploding`."""
    if level:
        return exploding(case, finding, level - 1)
    names = case.parameters_at(finding.layers)
    tables = [n for n in names if case.roles[n].kind in ("table", "token")]
    made = _calibrated(case, finding.layers, up=False, only=names, tolerance=GROSS)
    for name in tables:
        plan, own = case.planned.get(name), case.audits[name].rms
        beside = min((case.audits[n].rms for n in tables if n != name), default=0.0)
        wanted = max(beside, min(plan.std, STREAM_STD)) if plan is not None else beside
        if 0 < OVERSIZED * wanted < own:
            because = f"too large for what it is added to: scaled down to {wanted:.3g}"
            made.append(case.scaled(name, _short(wanted / own), because))
    return made


def packed(case: Case, finding: Finding, _level: int) -> list[Assignment]:
    """Queries, keys and values scaled as the three matrices that they are."""
    made = []
    for name in case.parameters_at(finding.layers, ("weight",)):
        rms, shape = case.audits[name].rms, case.roles[name].shape
        width = min(shape)  # [3E, E], or [E, 3E] of x @ W
        factor = math.sqrt(1 / width) / rms if len(shape) == 2 and rms > 0 else 1.0
        if max(shape) == 3 * width:
            because = "three matrices in one: Xavier of each block"
            made.append(case.scaled(name, _short(factor), because))
    return made


# ---- scaled --------------------------------------------------------------------------------------


def _calibrated(
    case: Case,
    guilty: Collection[str],
    up: bool,
    only: Collection[str] | None = None,
    centre: bool = False,
    tolerance: float = TOLERANCE,
) -> list[Assignment]:
    """One forward pass in which each weight is brought to its size while the pass runs.

    A layer whose own size is right once its input is right stays as it is.  With `centre`, and
    behind activations with a large mean, its bias takes the mean of each unit away, and what
    differs between inputs is what counts.  Of a head it is what counts too, and its bias stays.
    """
    wanted = dict(_targets(case, guilty, up, only, centre, tolerance))
    found: dict[str, tuple[float, ...]] = {}
    louder: dict[str, Assignment] = {}
    for _ in range(_PASSES):
        biases = {t.bias for t in wanted.values() if t.bias is not None}
        with copied(case.model, {*wanted, *biases, *louder}):
            for bias in louder:
                nn.init.zeros_(case.model.get_parameter(bias))
            found = measure_(case.model, case.batch, wanted)
        free = [n for n in wanted if n in found and not wanted[n].centre]
        wrong = [n for n in free if (found[n][0] > 1) is not up]
        sizes = {n: wanted[n].size for n in wanted if n in found and not (up or n in wrong)}
        left = {a.parameter: a for a in drowning(case, sizes)}
        if not wrong and left.keys() <= louder.keys():
            break
        wanted = {n: t for n, t in wanted.items() if n not in wrong}
        louder |= left
    way = "and centred" if centre else "up" if up else "down"
    because = f"scaled {way} in one pass over the batch, to a root mean square of"
    made = [
        case.scaled(n, _short(found[n][0]), f"{because} {wanted[n].size:.3g}")
        for n in wanted
        if n in found
    ]
    told = "the means of the outputs, taken away"
    hidden = [t.bias for n, t in wanted.items() if not case.roles[n].head]
    made += [case.values(b, found[b], told) for b in hidden if b is not None and b in found]
    return [*made, *louder.values()]


def _targets(
    case: Case,
    guilty: Collection[str],
    up: bool,
    only: Collection[str] | None,
    centre: bool,
    tolerance: float,
) -> Iterator[tuple[str, Target]]:
    named = set(case.parameters_at(guilty))
    biases = {r.call: n for n, r in case.roles.items() if r.kind == "bias" and r.trainable}
    for name, role in case.roles.items():
        role = _scaled_for(case, role)
        plain = role.kind == "weight" and case.roles[name].trainable
        free = uncertain(role) or name in named
        if not plain or not free or name in case.zeros or (only is not None and name not in only):
            continue
        if role.attention and name not in named:
            continue
        size, within = target_size(role), tolerance
        if role.head and up:
            size *= head_gain(role)
        elif role.head:
            within = max(LOUD, tolerance)
        drowned = up and (role.head or role.input.activation in BIASED)
        bias = biases.get(role.call) if centre or drowned else None
        yield (
            name,
            Target(size, within, centred=centre, centre=bias is not None, bias=bias, exact=up),
        )


def _scaled_for(case: Case, role: Role) -> Role:
    """The role of the weight that a parameter scales: of weight norm, its magnitudes."""
    part = role.part
    if part is None:
        return role
    if part.kind == "other" and role.times != 1.0:  # a multiple of it, which scales as it does
        return role
    if part.kind != "magnitude":
        return replace(role, kind="computed")
    pair = (r for r in case.roles.values() if r.part is not None and r.part.weight == part.weight)
    return next((r for r in pair if r.kind == "weight"), role)


def _needs_structure(case: Case, made: Collection[Assignment]) -> bool:
    """Whether most of a deep stretch is guilty: scale alone keeps no inputs apart there."""
    deep = _deep(case)
    guilty = {a.parameter for a in made}.intersection(deep)
    return len(deep) >= FEWEST and 2 * len(guilty) > len(deep)


def _deep(case: Case) -> list[str]:
    """Weights of deep stretches, whose directions a new model chooses too."""
    return [
        n
        for n, a in case.planned.items()
        if a.scheme in STRUCTURED and a.std > 0 and case.roles[n].kind == "weight"
    ]


def _structured(case: Case, finding: Finding) -> list[Assignment]:
    """All of the deep stretches as in a new model: mirrored or orthogonal weights go together."""
    weights = _deep(case)
    calls = {case.roles[n].call for n in weights}
    biases = [n for n, r in case.roles.items() if r.kind == "bias" and r.call in calls]
    because = f"{finding.name}: in a deep stretch scale alone keeps no inputs apart"
    return case.all_anew((n for n in (*weights, *biases) if case.roles[n].trainable), because)


def _oversized(case: Case, done: Collection[str]) -> Iterator[Assignment]:
    """Weights many times the size of a new one, where norms hide it from the forward pass."""
    for name, plan in case.planned.items():
        role, own = case.roles[name], case.audits[name].rms
        usual = plan.std / head_gain(role) if role.head else plan.std
        if role.kind in (*_WEIGHTS, "table") and name not in done and 0 < OVERSIZED * usual < own:
            because = f"{own / usual:.3g} times the size of a new one: scaled down to it"
            yield case.scaled(name, _short(usual / own), because)


def _moderate(case: Case, names: Iterable[str]) -> Iterator[Assignment]:
    """Recurrent layers, whose gates no pass can measure: down to the size in a new model."""
    for name in names:
        role, plan = case.roles[name], case.planned.get(name)
        own = case.audits[name].rms
        gated = role.op in RECURRENT and role.kind in _WEIGHTS
        if gated and plan is not None and 0 < plan.std < own / TOLERANCE:
            yield case.scaled(name, _short(plan.std / own), "gates in their flat part: scaled down")


def without_bias(
    case: Case, names: Iterable[str], times: float = 1.0, least: float = 0.0
) -> Iterator[Assignment]:
    """Biases as in a new model, where they are larger than what their weights make of the input.

    Args:
        case: under repair.
        names: parameters that are looked at.
        times: how much larger, at least.
        least: size from which a bias is large by itself.
    """
    layers = {n: y for y in case.evidence.layers for n in y.parameters}
    for name in names:
        role, layer = case.roles[name], layers.get(name)
        if role.kind not in ("bias", "recurrent_bias", "norm_shift") or name in case.zeros:
            continue
        rms = case.audits[name].rms
        spread = (layer.rms or 0.0) * (layer.variation or 0.0) if layer is not None else 0.0
        if rms > max(times * spread, least):
            yield from case.all_anew([name], f"a bias of {rms:.3g} beside a signal of {spread:.3g}")


def _until(case: Case, guilty: Collection[str]) -> list[str]:
    """The layers up to the last guilty one."""
    order = [y.name for y in case.evidence.layers]
    last = max((i for i, n in enumerate(order) if n in guilty), default=-1)
    return order[: last + 1]


def _short(factor: float) -> float:
    return float(f"{factor:.{DIGITS}g}")


# ---- drawn anew ----------------------------------------------------------------------------------


def _anew(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The guilty layers as in a new model (level 1); all that lead to them and on (level 2)."""
    if level > 2:
        return []
    places = list(finding.layers)
    if level == 2:
        places = [y.name for y in case.evidence.layers]
    names = case.parameters_at(places, _REDRAWN)
    return case.all_anew(names, f"{finding.name}: rescaling was not enough")
