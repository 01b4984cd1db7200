"""The few parameters that no scheme drew, among many that look new: what is tried first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fanin.assignment import Assignment
from fanin.findings import Finding
from fanin.measuring import DIGITS
from fanin.policies.auto import head_gain
from fanin.repair.case import DRAWN, Case

__all__ = ["OVERSIZED", "odd_ones"]

# A weight this many times the size of a new one was not drawn by any scheme (they differ by 3).
OVERSIZED = 8.0
# Of all parameters at most this share is the exception that a fault comes from.
_FEW = 0.25
_KINDS = (*DRAWN, "input", "norm_scale")
_TOO_LARGE = ("P202", "P204", "N403", "N404")
_CODES = (*_TOO_LARGE, "P201", "P203", "P207")


def odd_ones(case: Case, findings: Iterable[Finding]) -> dict[str, Assignment]:
    """What would bring the exceptions back that may cause one of the findings; none where many are.

    Whether they do cause it has to be tried: a blur, an identity or a small token is meant so.
    """
    known = [n for n, r in case.roles.items() if r.trainable and r.kind in _KINDS]
    known = [n for n in known if n in case.planned and case.planned[n].std > 0]
    found = (f for f in findings if f.code in _CODES)
    made = {a.parameter: a for f in found for name in known for a in _mended(case, f, name)}
    return made if len(made) <= max(1.0, _FEW * len(known)) else {}


def _mended(case: Case, finding: Finding, name: str) -> Iterator[Assignment]:
    """A pattern drawn as in a new model, a wrong size brought to that of a new one."""
    role, plan, own = case.roles[name], case.planned[name], case.audits[name].rms
    large = finding.code in _TOO_LARGE
    if case.audits[name].nonfinite:
        return
    if own == 0:
        meant = role.last or (role.head and not role.norm_after)
        if finding.code == "N403" and role.kind == "weight" and not meant:
            yield case.alive(name, "zeros, whose quotient is no number")
        return
    if not large and case.is_pattern(name) and plan.scheme not in ("ones", "constant"):
        made = case.planned_anew(name, "one value, or a few, in place of a draw")
        yield from [made] if made is not None else []
        return
    usual = plan.std / head_gain(role) if role.head else plan.std
    if OVERSIZED * usual < own if large else OVERSIZED * own < plan.std:
        wanted = usual if large else plan.std
        size = f"{own / usual:.3g} times the size of a new one"
        factor = float(f"{wanted / own:.{DIGITS}g}")
        yield case.scaled(name, factor, f"{size}, as no other is: scaled to it")
