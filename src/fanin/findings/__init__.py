"""Rules: from what was measured to what is wrong, why, and how to mend it."""

from fanin.findings.catalogue import RULES, Rule
from fanin.findings.evidence import Evidence, Station, Tower, depth_of, stations, towers_of
from fanin.findings.judge import judge
from fanin.findings.rules import Finding, document

__all__ = [
    "RULES",
    "Evidence",
    "Finding",
    "Rule",
    "Station",
    "Tower",
    "depth_of",
    "document",
    "judge",
    "stations",
    "towers_of",
]
