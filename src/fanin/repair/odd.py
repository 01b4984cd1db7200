"""The few parameters that no scheme drew, among many that look new: what is tried first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from fanin.assignment import KEPT, Assignment
from fanin.findings import Finding
from fanin.measuring import DIGITS
from fanin.policies.auto import head_gain
from fanin.repair.case import DRAWN, Case
from fanin.repair.fewer import BESIDE
from fanin.roles import Role

__all__ = ["OVERSIZED", "drowning", "odd_ones"]

Trial = Mapping[str, Assignment]  # parameter → what is done to it, together

# A weight this many times the size of a new one was not drawn by any scheme (they differ by 3).
OVERSIZED = 8.0
# Of all parameters at most this share is the exception that a fault comes from.
_FEW = 0.25
# Exceptions that are tried one by one before all of them together; each costs a check.
_TRIED = 4
_KINDS = (*DRAWN, "input", "norm_scale")
_INFINITE = ("N403", "N404")
_TOO_LARGE = ("P202", "P204", *_INFINITE)
_CODES = (*_TOO_LARGE, "P201", "P203", "P207")
# A single number (a temperature, the step of a quantizer) outside of these was not meant: usual
# temperatures and logit scales lie between 0.01 and 64.  What it should be nobody knows, so
# these values are tried, in this order.
_USUAL, _NUMBERS = (0.01, 100.0), (1.0, 0.1, 0.01)
_OF_NUMBERS = (*_CODES, "S101", "S102", "P205", "P206", "P208", "O301")
_NUMBER_KINDS = ("scale", "computed", "unknown")
# A bias of this size in front of an exponential or a quotient leaves float32.
_LARGE_BIAS = 32.0


def odd_ones(case: Case, findings: Iterable[Finding]) -> list[Trial]:
    """Sets of changes that bring exceptions back which may cause the findings, smallest first.

    Whether they do cause it has to be tried: a blur, an identity or a small token is meant so.
    """
    found = list(findings)
    known = [n for n, r in case.roles.items() if r.trainable and _is_known(case, n, r)]
    made = {a.parameter: a for f in found for n in known for a in _mended(case, f, n)}
    norms: Trial = {n: a for n, a in made.items() if case.roles[n].kind == "norm_scale"}
    trials: list[Trial] = []
    if len(made) <= max(1.0, _FEW * len(known)):
        trials += _one_by_one(made)
    numbers = [n for n in case.roles if any(f.code in _OF_NUMBERS for f in found) and _odd(case, n)]
    for value in _NUMBERS if numbers else ():
        told = f"a number outside of {_USUAL[0]:g} to {_USUAL[1]:g}"
        set_to: Trial = {n: case.constant(n, value, told) for n in numbers}
        trials += _one_by_one(set_to)
    # Norms start alike: where most were drawn, they are no exceptions and yet all wrong.
    if len(norms) > 1 and norms not in trials:
        trials.append(norms)
    return [_with_biases(case, trial) for trial in trials]


def drowning(case: Case, sizes: Mapping[str, float]) -> list[Assignment]:
    """Biases as in a new model, where they are larger than what weights give that are scaled down.

    A layer all of which is a thousand times too large is a constant with its weights alone mended:
    small networks, which learn with its bias mended too, then stay at the loss of guessing.

    Args:
        case: under repair.
        sizes: of what the layer of a weight gives, once that is scaled down.
    """
    given = {case.roles[n].call: size for n, size in sizes.items() if not case.roles[n].head}
    found = []
    for name, role in case.roles.items():
        size, rms = given.get(role.call), case.audits[name].rms
        if role.kind == "bias" and role.trainable and size is not None and rms > max(1.0, size):
            found += case.all_anew([name], f"a bias of {rms:.3g} {BESIDE} {size:.3g}")
    return found


def _with_biases(case: Case, trial: Trial) -> Trial:
    down = {n: 1.0 for n, a in trial.items() if a.scheme == KEPT and 0 < a.gain < 1}
    return {**trial, **{a.parameter: a for a in drowning(case, down)}}


def _one_by_one(made: Trial) -> list[Trial]:
    """Each of them, where there are few; then all together."""
    alone: Iterator[Trial] = ({name: made[name]} for name in [*made][:_TRIED])
    return [*alone, made] if len(made) > 1 else [*alone]


def _odd(case: Case, name: str) -> bool:
    """Whether a parameter is one number, of which nothing is known but that none is usually so."""
    role = case.roles[name]
    plain = role.trainable and role.kind in _NUMBER_KINDS and not role.offset
    if not plain or case.audits[name].count != 1 or case.audits[name].nonfinite:
        return False
    return not _USUAL[0] <= case.audits[name].max_abs < _USUAL[1]


def _is_known(case: Case, name: str, role: Role) -> bool:
    """Whether there is an idea of what a new model would have there."""
    if role.kind == "computed":
        return len(role.shape) > 1
    drawn = name in case.planned and case.planned[name].std > 0
    return role.kind == "bias" or (role.kind in (*_KINDS, "magnitude") and drawn)


def _mended(case: Case, finding: Finding, name: str) -> Iterator[Assignment]:
    """A pattern drawn as in a new model, a wrong size brought to that of a new one."""
    role, own = case.roles[name], case.audits[name].rms
    inside = role.kind in DRAWN and not role.head
    if finding.code == "O301" and inside and name in case.parameters_at([finding.layer]):
        yield from _resized(case, finding, name)  # it is laid to a layer before the last
    if finding.code not in _CODES or case.audits[name].nonfinite:
        return
    if role.kind == "bias":
        if own > _LARGE_BIAS and finding.code in _INFINITE:
            yield from case.all_anew([name], f"a bias of {own:.3g}")
    elif own == 0:
        yield from _given_a_value(case, finding, name)
    elif role.kind == "computed" or _is_pattern(case, finding, name):
        yield from _drawn(case, finding, name)
    elif role.kind != "magnitude":
        yield from _resized(case, finding, name)


def _given_a_value(case: Case, finding: Finding, name: str) -> Iterator[Assignment]:
    """Zeros that are divided by their own length, or that nothing passes."""
    role = case.roles[name]
    divided = finding.code == "N403"
    meant = role.last or (role.head and not role.norm_after and role.kind != "computed")
    weight = role.kind in ("weight", "computed")
    if divided and (weight or role.kind == "magnitude") and not meant:
        yield case.alive(name, "zeros, whose quotient is no number")
    elif finding.code == "P207" and role.kind == "computed" and not meant:
        yield case.alive(name, "zeros that every input passes")


def _is_pattern(case: Case, finding: Finding, name: str) -> bool:
    designed = case.planned[name].scheme in ("ones", "constant")
    return finding.code not in _TOO_LARGE and not designed and case.is_pattern(name)


def _drawn(case: Case, finding: Finding, name: str) -> Iterator[Assignment]:
    """One value in place of a draw; of a computed weight also single rows of zeros."""
    if finding.code not in _TOO_LARGE and case.is_pattern(name):
        told = "one value, or a few, in place of a draw"
        computed = case.roles[name].kind == "computed"
        yield from [case.alive(name, told)] if computed else case.all_anew([name], told)
    elif finding.code == "N403":
        values = case.model.get_parameter(name).detach()
        empty = np.asarray((values.flatten(1) == 0).all(1).cpu().numpy())
        if empty.any():
            part = np.zeros(tuple(values.shape), dtype=np.bool_)
            part[empty] = True
            told = f"{int(empty.sum())} rows of zeros, whose quotient is no number"
            yield case.own(name, told, part)


def _resized(case: Case, finding: Finding, name: str) -> Iterator[Assignment]:
    """Many times larger or smaller than a new one: brought to its size."""
    role, plan, own = case.roles[name], case.planned[name], case.audits[name].rms
    usual = plan.std / head_gain(role) if role.head else plan.std
    large = finding.code in (*_TOO_LARGE, "O301")
    if not (OVERSIZED * usual < own if large else OVERSIZED * own < plan.std):
        return
    size = f"{own / usual:.3g} times the size of a new one"
    if role.kind == "norm_scale":
        yield from case.all_anew([name], size)
        return
    wanted = usual if large else plan.std
    factor = float(f"{wanted / own:.{DIGITS}g}")
    yield case.scaled(name, factor, f"{size}, as no other is: scaled to it")
