"""Findings as cards: what was found where, and the part of the proof that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from fanin.findings import Finding
from fanin.report.record import Record
from fanin.report.rows import folded_names
from fanin.report.wording import MARKS, copies, listing, places
from fanin.summary import count
from fanin.symmetry import Deadlock, Identity, Symmetry, UnitClass
from fanin.wording import visible

__all__ = ["Card", "Copies", "Held", "Proof", "cards", "named"]

PLACES = 12  # names in a list before the rest fold into a number
CLASSES = 20  # classes of copies in a card that show their certificate
GROUPS = 50  # groups of clones, and of parameters that never move, in a card

CODES = {"locked": "S101", "self-breaking": "S103", "mirrored": "S105"}
# Codes that ask for no change of weights: fanin.repair_ leaves them as they are.
NO_WEIGHTS = ("S103", "W501")
# The figure in which the finding of a rule can be seen.
FIGURES = {
    "S101": "units",
    "P201": "signal",
    "P202": "signal",
    "P203": "signal",
    "P204": "signal",
    "P207": "correlation",
    "P208": "signal",
}


@dataclass(frozen=True)
class Copies:
    """A class of copies: the layer, what became of which units or rows, and the four identities."""

    layer: str
    told: str
    certificate: tuple[Identity, ...]


@dataclass(frozen=True)
class Held:
    """Parameters that never moved for one reason: their names, the cause, and what holds them."""

    parameters: str
    cause: str
    holders: str


@dataclass(frozen=True)
class Proof:
    """What the virtual steps showed.

    Attributes:
        steps: how many, and in which dtype.
        classes: with the four identities at each step.
        held: parameters that never moved.
        clones: names that start bit-identical.
        more: how many classes and groups are left out.
    """

    steps: str
    classes: tuple[Copies, ...] = ()
    held: tuple[Held, ...] = ()
    clones: tuple[str, ...] = ()
    more: int = 0

    def __bool__(self) -> bool:
        return bool(self.classes or self.held or self.clones)


@dataclass(frozen=True)
class Card:
    """A finding as a page shows it.

    Attributes:
        finding: what was found.
        tone: its severity.
        mark: that of the severity.
        where: every place, folded.
        proof: what belongs to it of what the virtual steps showed.
        first: whether it is the first of its code, which explains the rule.
        figure: kind of the figure that shows it, or "".
        mend: the call that mends it, or "" where that is no matter of weights.
    """

    finding: Finding
    tone: str
    mark: str
    where: str
    proof: Proof
    first: bool
    figure: str
    mend: str


def cards(record: Record, figures: Iterable[str] = ()) -> tuple[tuple[Card, ...], Proof]:
    """Return a card for each finding, and the part of the proof that belongs to none of them.

    Args:
        record: the report.
        figures: kinds of the figures that the page has.
    """
    shown, known = [], set(figures)
    claimed: dict[str, set[str]] = {}
    for finding in record.findings:
        where, first = places(finding), finding.code not in claimed
        claimed.setdefault(finding.code, set()).update(where)
        tone = finding.severity if finding.severity in MARKS else "info"
        own = _part(record.symmetry, finding.code, set(where))
        of_rows = bool(own.classes) and all(c.rows for c in own.classes)
        figure = "" if of_rows else FIGURES.get(finding.code, "")
        shown.append(
            Card(
                finding,
                tone,
                MARKS[tone],
                named(where),
                _proof(own),
                first,
                figure if figure in known else "",
                _mend(finding),
            )
        )
    return tuple(shown), _proof(_rest(record.symmetry, claimed))


def _mend(finding: Finding) -> str:
    """The call that mends what was found; one for all errors, since one may rest on another."""
    if finding.severity == "info" or finding.code in NO_WEIGHTS:
        return ""
    also = "" if finding.severity == "error" else ", warnings=True"
    return f"fanin.repair_(model, batch, loss{also})"


def named(names: Sequence[str]) -> str:
    """Write a list of names, repeated blocks folded: ``h.{0..11}.mlp ×12, lm_head``."""
    return listing(folded_names(names, PLACES), PLACES)


def _part(symmetry: Symmetry, code: str, where: Set[str]) -> Symmetry:
    """What a finding of a rule at some places rests on."""
    return _kept(symmetry, lambda its, names: its == code and where >= set(names))


def _rest(symmetry: Symmetry, claimed: Mapping[str, Set[str]]) -> Symmetry:
    """What no finding rests on."""
    return _kept(symmetry, lambda its, names: not claimed.get(its, set()) >= set(names))


def _kept(symmetry: Symmetry, keeps: Callable[[str, Sequence[str]], bool]) -> Symmetry:
    """The parts whose code and names are wanted."""
    return Symmetry(
        symmetry.steps,
        symmetry.dtype,
        tuple(c for c in symmetry.classes if keeps(CODES[c.kind], [c.layer])),
        tuple(d for d in symmetry.deadlocks if keeps("S102", [d.parameter])),
        tuple(g for g in symmetry.clones if keeps("S104", g)),
    )


def _proof(own: Symmetry) -> Proof:
    held = _held(own.deadlocks)
    shown = len(own.classes[:CLASSES]) + len(held[:GROUPS]) + len(own.clones[:GROUPS])
    return Proof(
        f"{count(own.steps, 'virtual step')} in {visible(own.dtype or '–')}",
        tuple(map(_copies, own.classes[:CLASSES])),
        held[:GROUPS],
        tuple(named(group) for group in own.clones[:GROUPS]),
        len(own.classes) + len(held) + len(own.clones) - shown,
    )


def _copies(found: UnitClass) -> Copies:
    return Copies(found.layer, f"{found.kind}: {copies(found, PLACES)}", found.certificate)


def _held(deadlocks: Iterable[Deadlock]) -> tuple[Held, ...]:
    """One entry for each reason that holds parameters still."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for deadlock in deadlocks:
        groups.setdefault((deadlock.cause, deadlock.because), []).append(deadlock.parameter)
    return tuple(
        Held(named(parameters), cause, named(because) if because else "–")
        for (cause, because), parameters in groups.items()
    )
