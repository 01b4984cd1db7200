"""The catalogue of rules and the form of a finding."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from fanin.errors import ArgumentError

__all__ = ["RULES", "Finding", "Rule", "document", "finding"]


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


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue; its document is `document(rule.code)`."""

    code: str
    name: str
    severities: tuple[str, ...]
    summary: str


_ERROR, _WARNING, _INFO = "error", "warning", "info"

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.code: rule
        for rule in (
            Rule("S101", "locked-units", (_ERROR, _WARNING), "units that are and stay copies of one another"),
            Rule("S102", "gradient-deadlock", (_ERROR, _WARNING), "parameters that never receive a gradient"),
            Rule("S103", "self-breaking", (_INFO,), "units that start as copies and separate by themselves"),
            Rule("S104", "cloned-layers", (_WARNING,), "untied parameters that start bit-identical"),
            Rule("S105", "mirrored-units", (_WARNING,), "sign-flipped pairs that stay mirrored"),
            Rule("P201", "vanishing-signal", (_ERROR, _WARNING), "the signal shrinks layer by layer"),
            Rule("P202", "exploding-signal", (_ERROR, _WARNING), "the signal grows layer by layer"),
            Rule("P203", "vanishing-gradient", (_ERROR, _WARNING), "the gradient shrinks on its way to the input"),
            Rule("P204", "exploding-gradient", (_ERROR, _WARNING), "the gradient grows on its way to the input"),
            Rule("P205", "dead-units", (_ERROR, _WARNING), "units whose activation is flat on the whole batch"),
            Rule("P206", "saturated-units", (_ERROR, _WARNING), "units in the flat part of their activation"),
            Rule("P207", "collapsed-inputs", (_ERROR, _WARNING), "different inputs can no longer be told apart"),
            Rule("O301", "loss-above-chance", (_WARNING,), "the loss starts far above that of guessing"),
            Rule("N401", "non-finite-parameter", (_ERROR,), "a parameter holds NaN or infinity"),
            Rule("N402", "unwritten-memory", (_ERROR, _WARNING), "a parameter looks like memory nobody wrote"),
            Rule("N403", "non-finite-signal", (_ERROR,), "the forward or backward pass makes NaN or infinity"),
            Rule("N404", "out-of-range", (_ERROR, _WARNING), "values leave the range of the training dtype"),
            Rule("W501", "unused-parameter", (_WARNING,), "a trainable parameter the forward pass never uses"),
            Rule("W502", "packed-fan", (_WARNING,), "a packed q, k, v matrix scaled as if it were one"),
            Rule("W503", "idle-truncation", (_WARNING,), "a truncated normal whose bounds cut nothing"),
            Rule("W505", "clamped-outliers", (_WARNING,), "tail samples clamped onto a far bound"),
        )
    }
)


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
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ArgumentError(f"code: there is no rule {code_or_name!r}{hint} (fanin explain lists all)")


def finding(
    code: str,
    severity: str,
    places: Iterable[str],
    *,
    measured: str,
    expected: str,
    message: str,
    why: str,
    fix: str,
) -> Finding:
    """A finding of a rule of the catalogue, at one or more places."""
    rule, layers = RULES[code], tuple(dict.fromkeys(places))
    if severity not in rule.severities:
        raise AssertionError(f"{code} is never an {severity}")
    return Finding(code, rule.name, severity, layers[0], layers, measured, expected, message, why, fix)
