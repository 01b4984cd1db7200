"""Every rule on the evidence, most serious first."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fanin.findings import collapse, numbers, rows, signals, stuck, sums, symmetry, towers, wiring
from fanin.findings.evidence import Evidence
from fanin.findings.rules import Finding

__all__ = ["judge"]

_RANK = {"error": 0, "warning": 1, "info": 2}
_RULES: tuple[Callable[[Evidence], Iterable[Finding]], ...] = (
    *numbers.RULES,
    *symmetry.RULES,
    *rows.RULES,
    *signals.RULES,
    *stuck.RULES,
    *towers.RULES,
    *collapse.RULES,
    *sums.RULES,
    *wiring.RULES,
)


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings: errors, then warnings, then infos; each in order of execution."""
    found = [f for rule in _RULES for f in rule(evidence)]
    return tuple(sorted(found, key=lambda f: (_RANK[f.severity], evidence.order(f.layer), f.code)))
