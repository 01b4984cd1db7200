"""P208: sums in which one term is so large that another is lost in it.

A table of positions lost in a large embedding leaves a model that cannot tell one place from
another; tokens lost in large positions, one that cannot tell the words.  A residual branch behind a
norm adds about 1, whatever the size of its stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from fanin.architecture import Layer
from fanin.branches import Branch, branches
from fanin.calls import Call
from fanin.findings.evidence import Evidence, Station
from fanin.findings.reach import large_inputs, loud
from fanin.findings.rules import Finding, finding
from fanin.kinds import PASSIVE
from fanin.wording import listed

__all__ = ["RULES"]

# Size of a sum over that of a table in it, or over 1.  A small transformer that needs its positions
# trains up to ×10, not from ×30 (320 steps) or ×300 (3000 steps, Adam at 0.01).  Healthy zoo and
# models of transformers: up to 1.5; raw pixels of 0 to 255 in a patch embedding: 85; a normal
# embedding times √4096: 64.
DROWNED, DROWNING = 300.0, 100.0
# What a term comes to in training, whatever it starts at: a table of zeros, a zero last layer or a
# scale of 1e-6 is a delay.
COMES_TO = 1.0
# Samples that differ by less than this share of their size are taken to differ by all of it.
# (Random tokens, and pixels from 0 to 1, differ by 0.5.)
VARIED = 0.1
# Tables made a sum large where they have at least this share of its size.
MOSTLY = 0.5
_SUMS = ("add", "radd")
# Size of a sum over what differs in it between samples, where tables that are the same for all make
# up the rest.  Small GPTs with norms before and behind, a BERT and a vision transformer, 300 to 600
# steps of Adam at 1e-3: positions 10 times as large as the tokens delay the start (a little, but of
# the BERT), and sinusoids of unit size beside tokens of 0.02 (×35) do too (1.29 for 1.2).  From ×30
# to ×50, learned ones let the loss stand still for half of the steps and end behind, at ×100 for
# all of them.
BURIED, BURYING = 100.0, 40.0
# What tokens come to early in training: those with a table of their own or made by a first layer,
# and those whose table is the head as well.  Most of the gradient of that is the head's, and Adam
# divides by it.  Tokens of 0.02 learn beside positions of 2 in 300 steps with a head of their own,
# and in more than 600 if they are it; from 1e-6 they learn as from 0.02.
OWN, SHARED = 0.1, 0.02


class _Drowned(NamedTuple):
    ratio: float  # size of the sum over what the term comes to
    at: int  # call of the sum
    term: str
    size: float  # of the term


def drowned(evidence: Evidence) -> Iterator[Finding]:
    """P208: tables lost in what they are added to; without any, branches lost in their stream."""
    buried = list(_buried(evidence))
    if buried:
        yield from buried
        return
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
    lost = (_lost(evidence, branch) for branch in evidence.seen.architecture.once(branches)[0])
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
    makers = loud(evidence, min(d.at for d in found)) if found else {}
    if worst is None or not makers:  # nothing but the batch is large
        return
    # Only the size of a lookup is its own: that of another layer may come from the batch.
    sure = "embedding" in makers.values() and worst.ratio > DROWNED
    severity = worst_case if sure else "warning"
    counted = "" if worst.size >= COMES_TO else f", counted as {COMES_TO:g}"
    yield finding(
        "P208",
        severity,
        [*makers, *(d.term for d in found)],
        measured=f"rms {evidence.seen.cells[worst.at].rms:.3g} of the sum: ×{worst.ratio:.3g} "
        f"that of {worst.term or 'the model itself'} ({worst.size:.3g}{counted})",
        expected=f"below ×{DROWNING:g}",
        message=message,
        why=why,
        fix=large_inputs(evidence, next(iter(makers))),
    )


def _tables(evidence: Evidence, station: Station) -> Iterator[_Drowned]:
    """The tables that are added to the trunk at a place, if a layer reads the sum."""
    if not _is_normalized(evidence, station):
        return
    for call in _terms(evidence.seen.architecture.trace.calls, station.index):
        table = _table(evidence, call)
        if table is not None:
            name, size = table
            yield _Drowned(station.rms / max(COMES_TO, size), station.index, name, size)


def _is_normalized(evidence: Evidence, station: Station) -> bool:
    """Whether a norm behind a place divides by the size of what is there."""
    read = evidence.seen.architecture
    norm = next((i for i in read.normalizations if i > station.index), None)
    if station.index not in read.inner or norm is None:
        return False
    # Where the norm reads other features than the sum has, a parameter with several dimensions is a
    # bias in pieces, such as one for each head.
    calls = read.trace.calls
    return calls[norm].shape[-1:] == calls[station.index].shape[-1:]


def _table(evidence: Evidence, call: Call) -> tuple[str, float] | None:
    """Name and size of the table that a term is."""
    cells = evidence.seen.cells
    if call.op == "embedding" and call.index in cells:
        return evidence.place(call), cells[call.index].rms
    if call.op == "shift" and _is_table(call):
        name = call.operands[0].parameters[0]
        return name, evidence.sizes.get(name, 0.0)
    return None


def _buried(evidence: Evidence) -> Iterator[Finding]:
    """P208 of tokens in a sum of which next to nothing differs between samples."""
    found = [_burying(evidence, s) for s in evidence.trunk if _is_normalized(evidence, s)]
    worst = max((b for b in found if b is not None), default=None)
    if worst is None or worst.ratio <= BURYING:
        return
    yield finding(
        "P208",
        "error" if worst.ratio > BURIED else "warning",
        [*worst.tables, *worst.tokens],
        measured=f"rms {worst.size:.3g} of the sum, of which {worst.spread:.3g} differs between "
        f"samples (×{worst.ratio:.3g})",
        expected=f"below ×{BURYING:g}",
        message=f"What is the same for all samples is so large that {listed(worst.tokens)} is lost "
        "in it.",
        why="The next norm divides by the size of the sum, so the tokens and their gradient come "
        "to next to nothing: the loss stands still, or starts to fall late.",
        fix=f"Draw {listed(worst.tables)} at the size of what it is added to: "
        "nn.init.normal_(weight, std=0.02), beside tokens of 0.02.",
    )


class _Buried(NamedTuple):
    ratio: float  # size of the sum over what its tokens come to
    size: float  # of the sum
    spread: float  # what differs in it between samples
    tables: tuple[str, ...]
    tokens: tuple[str, ...]


def _burying(evidence: Evidence, station: Station) -> _Buried | None:
    """How deep tokens lie in a sum with tables that are the same for all samples."""
    read, given = evidence.seen.architecture, evidence.input_variation
    calls = read.trace.calls
    fixed = [c for c in _terms(calls, station.index) if c.op == "shift" or not c.varies]
    tables = [t for t in (_table(evidence, call) for call in fixed) if t is not None]
    made = sum(size**2 for _, size in tables) ** 0.5
    if station.variation is None or not given or made < MOSTLY * station.rms:
        return None
    before = read.ancestors(i for i in calls[station.index].behind if calls[i].varies)
    if any(_reads(calls[i], fixed) for i in before):
        return None  # latents, beside what they read
    tokens = [y for y in read.layers if y.units is not None and not before.isdisjoint(y.calls)]
    varying = [y for y in tokens if any(calls[i].varies for i in y.calls)]
    spread = station.rms * station.variation / (given if given < VARIED else 1.0)
    floor = SHARED if any(_is_head(evidence, y) for y in varying) else OWN
    size = station.rms / max(floor, spread)
    names = tuple(n for n, _ in sorted(tables, key=lambda t: -t[1]))
    return _Buried(size, station.rms, spread, names, tuple(y.name for y in varying))


def _reads(call: Call, fixed: Collection[Call]) -> bool:
    """Whether a call takes one of the tables that are added, or is one."""
    own = {name for other in fixed for name in other.parameters}
    taken = {name for operand in call.learned for name in operand.parameters}
    return call in fixed or not own.isdisjoint(taken.union(call.parameters))


def _is_head(evidence: Evidence, layer: Layer) -> bool:
    """Whether the weight of a table is that of another layer too."""
    weights = (y.weight for y in evidence.seen.architecture.layers if y.op != "embedding")
    return layer.op == "embedding" and layer.weight in weights


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


RULES = (drowned,)
