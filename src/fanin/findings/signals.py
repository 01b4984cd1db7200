"""P201–P207: what happens to signal, cotangent and the differences between samples along depth."""

from __future__ import annotations

from collections.abc import Iterator

from fanin.findings.evidence import Evidence
from fanin.findings.rules import Finding

__all__ = ["RULES"]


def nothing(evidence: Evidence) -> Iterator[Finding]:
    return iter(())


RULES = (nothing,)
