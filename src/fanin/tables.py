"""Tables: what is added to the rows that are looked up, and what rows are picked by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from torch import nn

from fanin.architecture import Architecture
from fanin.calls import BATCH, INTEGERS, Call, Operand
from fanin.kinds import BENDING, BILINEAR, JOINS, PASSIVE, PRODUCTS, QUOTIENTS, SUMS

__all__ = ["Beside", "beside", "is_direct", "is_read", "picking", "sources", "spreads", "stream"]

# Calls that are followed at most from a table to what is added to its rows.
_NEAR = 12
# Root mean square of learned positions from which rows of 0.02 drown beside them: those of 0.02, as
# published, are below it, those of a unit normal above.
_LARGE = 0.1
_MEANS = frozenset({"mean", "sum"})
# What picks one of several; shares of all of them (softmax) train what they are taken of.
_PICKS = frozenset({"argmin", "argmax", "min", "max", "topk", "sort", "argsort", "multinomial"})
# What brings picks to the form that they are used in.
_PICKED = PASSIVE | SUMS | {"scatter", "one_hot", "eq", "long", "int", "zero"}


@dataclass(frozen=True)
class Beside:
    """What of unit size is added to the rows of a table.

    Attributes:
        factor: number that the rows are multiplied with before it.
        fixed: whether it is the same for every batch (positions); else a signal.
        kept: parameters that it is computed from, in a way not known here, so that their values
            stay; its size is theirs.
    """

    factor: float
    fixed: bool = False
    kept: tuple[str, ...] = ()


def beside(architecture: Architecture, call: Call, model: nn.Module) -> Beside | None:
    """What of unit size is added to a signal before anything else becomes of it.

    As to rows of a table the sines of positions, or the features of the same samples; None where
    there is nothing of that kind.
    """
    found = _added(architecture, call)
    if found is None or not found.kept:
        return found
    own = dict(model.named_parameters())  # a forward may have made others
    kept = (own[name].detach() for name in found.kept if name in own)
    large = (not p.is_meta and float(p.double().square().mean()) > _LARGE**2 for p in kept)
    return found if any(large) else None


def _added(architecture: Architecture, call: Call) -> Beside | None:
    factor, varies = 1.0, call.varies  # rows that are the same for every batch are positions
    before = call.index
    for call in islice(architecture.only_way(before), _NEAR):
        others = [i for i in dict.fromkeys(call.sources) if i != before]
        before = call.index
        if call.op in PRODUCTS and call.option and not others:
            factor *= abs(call.option)
        elif call.op in SUMS and not others and call.option is None and not call.operands:
            return Beside(factor, fixed=True)
        elif call.op in SUMS and any(_has_size(architecture, i) for i in others):
            return Beside(factor) if varies and call.index in architecture.inner else None
        elif call.op == "shift" and any(o.offset is None for o in call.operands):
            kept = tuple(n for o in call.operands if o.offset is None for n in o.parameters)
            return Beside(factor, fixed=True, kept=kept)
        elif call.op not in PASSIVE | SUMS | {"shift"}:
            return None
    return None


def is_direct(architecture: Architecture, call: Call, layered: Collection[int]) -> bool:
    """Whether rows of a table reach the output past every layer.

    Where a layer reads them too, that they are returned, or a term of the loss is made of them (one
    number for the whole batch), asks nothing of their size.
    """
    start, stops = {call.index}, set(layered)
    if architecture.first_met(start, stops, onward=True):
        stops |= _loss_terms(architecture)
        acting = {c.index for c in architecture.trace.calls if c.op not in PASSIVE | JOINS}
        start = architecture.first_met(start, acting, onward=True) - stops
    return architecture.open_way(start, stops, onward=True)


def _loss_terms(architecture: Architecture) -> set[int]:
    """Calls of the model that make one number of a whole batch, unless that is all it returns."""
    trace, goal = architecture.trace, set(architecture.goal)
    numbers = {c.index for c in trace.calls[: trace.length] if not c.shape}
    return numbers - goal if goal <= numbers else numbers


def is_read(architecture: Architecture, call: Call, layered: Collection[int]) -> bool:
    """Whether all that becomes of rows is to be read by layers: beside other rows, added to them or
    multiplied with others (factorization machines, cross networks).

    A mean over rows, as of a bag of words, is read like these.
    """
    products = {
        i
        for i in architecture.descendants([call.index])
        if _multiplies(architecture.trace.calls[i])
        and architecture.first_met({i}, set(layered), onward=True)
    }
    waiting, seen, read = [call.index], set[int](), False
    while waiting:
        for after in architecture.followers[waiting.pop()]:
            others = set(after.behind) - {call.index} - seen - products
            added = after.op in SUMS and not any(_has_size(architecture, i) for i in others)
            if after.index in layered:
                read = True
            elif after.op not in PASSIVE | JOINS | _MEANS | QUOTIENTS and not (
                added or after.index in products
            ):
                return False
            elif after.index not in seen:
                seen.add(after.index)
                waiting.append(after.index)
    return read


def _multiplies(call: Call) -> bool:
    """Whether a call multiplies signals with one another, or one with itself."""
    squares = call.op == "square" or (call.op == "pow" and call.option == 2)
    return (call.op in BILINEAR or squares) and not call.operands


def sources(
    architecture: Architecture, signal: int, layered: Collection[int], drawn: Collection[str]
) -> list[Call]:
    """The tables that a signal comes from; none where one is frozen, or a weight too."""
    calls = architecture.trace.calls
    tables = {c.index for c in calls if "v" in c.layout}
    near = {signal} & tables or architecture.first_met({signal}, tables, onward=False)
    names = {n for i in near for n in calls[i].parameters}
    weights = {n for i in layered for n in calls[i].parameters}
    return [calls[i] for i in near] if names <= set(drawn) - weights else []


def stream(
    architecture: Architecture, call: Call, layered: Collection[int], norms: Collection[int]
) -> float:
    """What rows are multiplied with before norms read them, which do so first; 0 elsewhere.

    So it is beside rows of a table that is the output layer too, or beside positions that keep
    their values: the sizes of those decide.
    """
    readers = {*layered, *norms}
    first = architecture.first_met({call.index}, readers, onward=True).intersection(norms)
    if not first or architecture.open_way({call.index}, readers, onward=True):
        return 0.0
    found = _added(architecture, call)
    if found is not None and found.kept:
        return 0.0
    calls = architecture.trace.calls
    tables = {c.index for c in calls if "v" in c.layout}
    near = architecture.first_met(first, tables.union(layered), onward=False) & tables
    tied = {n for i in near for n in calls[i].parameters}
    if not tied.isdisjoint(n for i in layered for n in calls[i].parameters):
        return 0.0
    factor = 1.0
    for after in islice(architecture.only_way(call.index), _NEAR):
        if len(set(after.sources)) != 1:
            break
        if after.op in PRODUCTS and after.option:
            factor *= abs(after.option)
        elif after.op not in PASSIVE:
            break
    return factor


def spreads(architecture: Architecture, call: Call, operand: Operand) -> bool:
    """Whether a product makes several features of each number of the data, and no wave of them.

    As of the columns of a table: a layer of one input for each (Gorishniy 2021, FT-Transformer).
    """
    if not call.sources or call.sources[0] < 0 or operand.shape[-1:] in ((), (1,)):
        return False
    before = architecture.trace.calls[call.sources[0]]
    if before.shape[-1:] != (1,):
        return False
    while before.op in PASSIVE and len(before.behind) == 1:
        before = architecture.trace.calls[before.behind[0]]
    if before.op not in PASSIVE or before.inputs != (BATCH,):
        return False
    bends = {c.index for c in architecture.trace.calls if c.op in BENDING or c.op == "exp"}
    readers = {c.index for c in architecture.trace.calls if c.layout or architecture.normalizes(c)}
    return not architecture.first_met({call.index}, bends | readers, onward=True) & bends


def _has_size(architecture: Architecture, index: int) -> bool:
    """Whether a signal comes from the data, a layer or a norm, and not from tables alone."""
    waiting, seen = [index], {INTEGERS}
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if index == BATCH:
            return True
        call = architecture.trace.calls[index]
        if "v" in call.layout:
            continue
        if call.units is not None or architecture.normalizes(call):
            return True
        # Of a product the first factor: the other may be a mask.
        waiting += call.sources[:1] if call.op in PRODUCTS else call.sources
    return False


def picking(architecture: Architecture, again: Collection[int]) -> set[int]:
    """The calls whose weight, or table, is what its picks were compared with (codes).

    Args:
        architecture: of the model.
        again: calls of layers that are used again on what they made.
    """
    used = (c for c in architecture.trace.calls if c.layout and c.index not in again)
    return {c.index for c in used if not _compared(architecture, c).isdisjoint(c.parameters)}


def _compared(architecture: Architecture, call: Call) -> set[str]:
    """The parameters that what a call reads, a pick, was compared with to be picked.

    As of the codes of vector quantization, whether a row is looked up or multiplied with a one.
    """
    calls = architecture.trace.calls
    picks, seen, waiting = set[int](), set[int](), [i for i in call.sources if i >= 0]
    while waiting:
        before = calls[waiting.pop()]
        if before.index in seen:
            continue
        seen.add(before.index)
        if before.op in _PICKS:
            picks.add(before.index)
        constant = before.op in PRODUCTS and len(before.sources) == 1
        if (before.op in _PICKED or constant) and not before.operands:
            waiting += before.behind
    found: set[str] = set()
    waiting = [i for pick in picks for i in calls[pick].behind]
    seen = set(waiting)
    while waiting:
        before = calls[waiting.pop()]
        found.update(before.parameters)
        if before.units is None or not before.operands:
            new = set(before.behind) - seen
            seen |= new
            waiting += new
    return found
