"""S101 of the rows of one parameter: latents, registers, slots, the means of a mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fanin.architecture import Architecture
from fanin.findings.evidence import Evidence
from fanin.findings.rules import Finding, finding
from fanin.findings.symmetry import COLLAPSED_SHARE, member_list
from fanin.summary import count
from fanin.symmetry import UnitClass
from fanin.wording import listed

__all__ = ["RULES"]

_SHOWN = 3  # parameters whose rows a message lists
_WHY = (
    "Equal rows get equal gradients, so gradient descent, Adam and weight decay keep them equal: "
    "all copies together can do what one row can."
)
_FIX = (
    "Draw every row at random, each its own (for example torch.nn.init.normal_(rows, std=0.02)), "
    "or add something to them that differs from row to row."
)


def locked_rows(evidence: Evidence) -> Iterator[Finding]:
    """S101: an error where the model is made of its rows, and they have collapsed."""
    by_name: dict[str, list[UnitClass]] = {}
    for found in evidence.symmetry.classes:
        if found.rows and found.kind == "locked":
            by_name.setdefault(found.layer, []).append(found)
    collapsed = {n for n, found in by_name.items() if _distinct(found) <= _few(found[0].rows)}
    fatal = bool(collapsed) and _only_way(evidence.seen.architecture, by_name, collapsed)
    for severity, names in (
        ("error", [n for n in by_name if fatal and n in collapsed]),
        ("warning", [n for n in by_name if not (fatal and n in collapsed)]),
    ):
        if names:
            yield _locked(evidence, severity, {n: by_name[n] for n in names})


def _distinct(found: Sequence[UnitClass]) -> int:
    return found[0].rows - sum(len(c.units) - 1 for c in found)


def _few(rows: int) -> float:
    return max(1, COLLAPSED_SHARE * rows)


def _only_way(read: Architecture, by_name: dict[str, list[UnitClass]], collapsed: set[str]) -> bool:
    """Whether the batch reaches the output through these rows alone, with no layer behind them.

    There the signal has as many places as the parameter has rows, which registers beside its tokens
    have not.  The model is made of its rows then, as a mixture is: one of six means that stay equal
    ends at a loss of 2.9 for 1.4.  Layers behind make up for it: a Perceiver whose eight latents
    stay one (of 4, 8, 16 and 32 numbers) learns eight symbols of a set nearly as well as with eight
    (loss 1.53, 1.71, 1.09 and 0.43 for 1.53, 1.65, 0.99 and 0.40).
    """
    calls = read.trace.calls
    every = {c.index for c in calls}
    met = {
        i
        for name in collapsed
        for i in _meeting(read, name)
        if by_name[name][0].rows in calls[i].shape and calls[i].op != "token"
    }
    alone = bool(met) and met.isdisjoint(read.inner)
    return alone and read.reached((), every) and not read.reached(met, every)


def _meeting(read: Architecture, name: str) -> set[int]:
    """The first calls in which what is made of a parameter alone meets the batch."""
    met, seen = set[int](), set[int]()
    for call in read.trace.calls:
        uses = any(name in o.parameters for o in (*call.operands, *call.learned))
        if uses or not seen.isdisjoint(call.behind):
            (met if call.varies else seen).add(call.index)
    return met


def _locked(evidence: Evidence, severity: str, by_name: dict[str, list[UnitClass]]) -> Finding:
    layers = evidence.seen.architecture.layers
    own = {y.parameters[0]: y.name for y in layers if len(y.parameters) == 1}
    places = [place for n in by_name for place in (own.get(n, n), n)]
    shown = (
        f"{n}: {_distinct(found)} distinct of {found[0].rows} rows" for n, found in by_name.items()
    )
    certified = [i for found in by_name.values() for c in found for i in c.certificate]
    differences = (v for i in certified for v in (i.inputs, i.gradients, i.updates))
    worst = max((v for v in differences if not math.isnan(v)), default=0.0)
    wanted = [f"{n}: {found[0].rows}" for n, found in by_name.items()]
    return finding(
        "S101",
        severity,
        places,
        measured=listed(shown, 4, apart="; ", what="parameter"),
        expected="; ".join(wanted[:4]) + " distinct rows",
        message=f"{_where(by_name)} are copies: same values, gradients and updates over "
        f"{evidence.symmetry.steps} steps (largest difference {worst:.1g}).",
        why=_WHY,
        fix=_FIX,
    )


def _where(by_name: dict[str, list[UnitClass]]) -> str:
    parts = [
        f"rows {member_list([c.units for c in found])} of {n}"
        for n, found in list(by_name.items())[:_SHOWN]
    ]
    left = len(by_name) - len(parts)
    text = "; ".join(parts) + (f"; and in {count(left, 'more parameter')}" if left else "")
    return text[0].upper() + text[1:]


RULES = (locked_rows,)
