"""P208: sums in which one term is so large that another is lost in it.

A table of positions lost in a large embedding leaves a model that cannot tell one place from
another.  A residual branch behind a norm adds about 1, whatever the size of its stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fanin.branches import Branch, branches
from fanin.calls import Call
from fanin.findings.evidence import Evidence, Station
from fanin.findings.reach import large_inputs
from fanin.findings.rules import Finding, finding
from fanin.kinds import PASSIVE

__all__ = ["RULES"]

# Size of a sum over that of a table in it, or over 1.  A small transformer that needs its positions
# trains up to ×10, not from ×30 (320 steps) or ×300 (3000 steps, Adam at 0.01).  Healthy zoo and
# models of transformers: up to 1.5; raw pixels of 0 to 255 in a patch embedding: 85; a normal
# embedding times √4096: 64.
DROWNED, DROWNING = 300.0, 100.0
# What a term comes to in training, whatever it starts at: a table of zeros, a zero last layer or a
# scale of 1e-6 is a delay.
COMES_TO = 1.0
# A layer made the sum large where its output has at least this share of the size of the sum.
LOUD = 0.1
_SUMS = ("add", "radd")


class _Drowned(NamedTuple):
    ratio: float  # size of the sum over what the term comes to
    at: int  # call of the sum
    term: str
    size: float  # of the term


def drowned(evidence: Evidence) -> Iterator[Finding]:
    """P208: tables lost in what they are added to; without any, branches lost in their stream."""
    tables = [d for station in evidence.trunk for d in _tables(evidence, station)]
    if any(d.ratio > DROWNING for d in tables):
        yield from _told(
            evidence,
            tables,
            "error",
            "A table is added to a signal so large that what it says is lost.",
        )
        return
    # Adam trains such a stream up to ×1e4, SGD does not from ×30.  Labelled sound: up to 5.8.
    lost = (_lost(evidence, branch) for branch in branches(evidence.seen.architecture)[0])
    yield from _told(
        evidence,
        [d for d in lost if d is not None],
        "warning",
        "The residual stream is so large that what its branches add is lost in it.",
        why="A norm hides the size of the stream from its branches, so each adds about 1. Their "
        "gradients are smaller by the same factor: SGD hardly moves them, Adam takes longer.",
    )


def _told(
    evidence: Evidence, found: list[_Drowned], worst_case: str, message: str, why: str | None = None
) -> Iterator[Finding]:
    found = [d for d in found if d.ratio > DROWNING]
    worst = max(found, default=None)
    loud = _loud(evidence, min(d.at for d in found)) if found else {}
    if worst is None or not loud:  # nothing but the batch is large
        return
    # Only the size of a lookup is its own: that of another layer may come from the batch.
    sure = "embedding" in loud.values() and worst.ratio > DROWNED
    severity = worst_case if sure else "warning"
    counted = "" if worst.size >= COMES_TO else f", counted as {COMES_TO:g}"
    yield finding(
        "P208",
        severity,
        [*loud, *(d.term for d in found)],
        measured=f"rms {evidence.seen.cells[worst.at].rms:.3g} of the sum: ×{worst.ratio:.3g} "
        f"that of {worst.term} ({worst.size:.3g}{counted})",
        expected=f"below ×{DROWNING:g}",
        message=message,
        why=why,
        fix=large_inputs(evidence, next(iter(loud))),
    )


def _tables(evidence: Evidence, station: Station) -> Iterator[_Drowned]:
    """The tables that are added to the trunk at a place, if a layer reads the sum."""
    architecture, cells = evidence.seen.architecture, evidence.seen.cells
    calls = architecture.trace.calls
    norm = next((i for i in architecture.normalizations if i > station.index), None)
    if station.index not in architecture.inner or norm is None:
        return
    # Where the norm reads other features than the sum has, a parameter with several dimensions is a
    # bias in pieces, such as one for each head.
    if calls[norm].shape[-1:] != calls[station.index].shape[-1:]:
        return
    for call in _terms(architecture.trace.calls, station.index):
        if call.op == "embedding" and call.index in cells:
            size, name = cells[call.index].rms, evidence.place(call)
        elif call.op == "shift" and _is_table(call):
            name = call.operands[0].parameters[0]
            size = evidence.sizes.get(name, 0.0)
        else:
            continue
        yield _Drowned(station.rms / max(COMES_TO, size), station.index, name, size)


def _terms(calls: tuple[Call, ...], index: int) -> Iterator[Call]:
    """A sum with a parameter, and the lookups among the terms of a sum."""
    if calls[index].op == "shift":
        yield calls[index]
    elif calls[index].op in _SUMS:
        for term in calls[index].behind:
            while calls[term].op in PASSIVE and len(calls[term].behind) == 1:
                term = calls[term].behind[0]
            if calls[term].op == "embedding":
                yield calls[term]
            elif not calls[term].varies:  # positions and segments, added first
                yield from _terms(calls, term)


def _is_table(call: Call) -> bool:
    """Whether what is added is a parameter with values for each place, not only for channels."""
    operand = call.operands[0]
    return len(operand.parameters) == 1 and sum(n > 1 for n in operand.shape) > 1


def _lost(evidence: Evidence, branch: Branch) -> _Drowned | None:
    """A branch whose norm hides the size of the stream from it, where a norm follows the sum."""
    cells, architecture = evidence.seen.cells, evidence.seen.architecture
    later = any(i > branch.end for i in architecture.normalizations)
    if branch.norm != "before" or not later or branch.end not in cells:
        return None
    added = sum(cells[i].rms ** 2 for i in branch.last if i in cells) ** 0.5
    place = evidence.place(architecture.trace.calls[branch.last[-1]])
    return _Drowned(cells[branch.end].rms / max(COMES_TO, added), branch.end, place, added)


def _loud(evidence: Evidence, end: int) -> dict[str, str]:
    """The layers whose outputs make up a sum and are nearly as large as it, with what they do."""
    architecture, cells = evidence.seen.architecture, evidence.seen.cells
    calls, owner = architecture.trace.calls, architecture.layer_of
    found: dict[str, tuple[float, str]] = {}
    seen, queue = set(), [end]
    while queue:
        index = queue.pop()
        if index in seen:
            continue
        seen.add(index)
        if index in owner and index in cells and calls[index].units is not None:
            name = owner[index].name
            found[name] = max(found.get(name, (0.0, "")), (cells[index].rms, calls[index].op))
        else:
            queue += calls[index].behind
    least = LOUD * cells[end].rms if end in cells else 0.0
    loudest = sorted(found, key=lambda name: found[name], reverse=True)
    return {name: found[name][1] for name in loudest if found[name][0] >= least}


RULES = (drowned,)
