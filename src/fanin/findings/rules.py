"""The form of a finding, and the documents of the rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from fanin.errors import ArgumentError
from fanin.findings.catalogue import RULES
from fanin.wording import did_you_mean

__all__ = ["Finding", "document", "finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd about how a model starts.

    Attributes:
        code: of the rule, such as "S101".
        name: of the rule, such as "locked-units".
        severity: "error" (this model will not train as it should because of how it starts),
            "warning" (odd: slower, wasteful or fragile) or "info".
        layer: the primary place, a module or parameter path.
        layers: every place.
        measured: what was seen.
        expected: what a sound start shows.
        message: one sentence.
        why: why it hurts.
        fix: what to do.
    """

    code: str
    name: str
    severity: str
    layer: str
    layers: tuple[str, ...]
    measured: str
    expected: str
    message: str
    why: str
    fix: str


def document(code_or_name: str) -> str:
    """The Markdown document of a rule, by code or name.

    Raises:
        ArgumentError: there is no such rule; the nearest names are offered.

    >>> document("locked-units").splitlines()[0]
    '# S101 locked-units'
    """
    wanted = code_or_name.strip()
    for rule in RULES.values():
        if wanted.upper() == rule.code or wanted.lower() == rule.name:
            place = files("fanin.findings") / "documents" / f"{rule.code}.md"
            return place.read_text(encoding="utf-8")
    known = [*RULES, *(rule.name for rule in RULES.values())]
    hint = did_you_mean(wanted, known, alike=0.5)  # "dead" is half of "dead-units"
    raise ArgumentError(f"code: there is no rule {code_or_name!r}{hint} (fanin explain lists all)")


def finding(
    code: str,
    severity: str,
    places: Iterable[str],
    *,
    measured: str,
    expected: str,
    message: str,
    why: str | None = None,
    fix: str | None = None,
) -> Finding:
    """A finding of a rule of the catalogue, at one or more places.

    Args:
        code: of the rule.
        severity: one of the rule's.
        places: module or parameter paths, the primary one first; each is kept once, that of the
            model itself where there is no other.
        measured: what was seen.
        expected: what a sound start shows.
        message: one sentence.
        why: why it hurts; the catalogue's text by default.
        fix: what to do; the catalogue's text by default.

    Raises:
        AssertionError: a finding of this rule never has that severity.
    """
    rule, layers = RULES[code], tuple(dict.fromkeys(places))
    layers = tuple(filter(None, layers)) or layers  # sums of the model itself, if nothing else
    if severity not in rule.severities:
        raise AssertionError(f"{code} never has the severity {severity!r}")
    return Finding(
        code=code,
        name=rule.name,
        severity=severity,
        layer=layers[0],
        layers=layers,
        measured=measured,
        expected=expected,
        message=message,
        why=rule.why if why is None else why,
        fix=rule.fix if fix is None else fix,
    )
