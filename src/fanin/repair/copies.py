"""Remedies for units and parameters that are copies: S101, S104, S105."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fanin.assignment import Assignment
from fanin.clones import repeats
from fanin.findings import Finding
from fanin.kinds import RECURRENT
from fanin.repair.case import GROSS, Case, Mask
from fanin.repair.wiring import Wire
from fanin.sketch import classes
from fanin.symmetry import UnitClass
from fanin.wording import layer_named

__all__ = ["cloned_layers", "locked_units", "mirrored_units"]

# Noise that parts copies, over the size of what they send on.  What it adds to a sum is zero, so it
# may be large: the larger, the sooner the copies go apart.
NOISE = 0.5
# With more than this share of its inputs copies, a layer that goes on reading them alike lets a few
# directions through and no more; with fewer, it does no harm.
MOST = 0.5
_CHOOSING = ("softmax", "topk", "sigmoid")
# Relative difference up to which two columns were copied from one; float16 checkpoints are coarser.
_SAME = 1e-3


def locked_units(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """One unit of each class stays as it is; the others are drawn again.

    First their incoming weights; where that is not enough, what reads them; then the whole layers.
    """
    found = [c for c in case.report.symmetry.classes if c.kind == "locked"]
    found = [c for c in found if c.layer in finding.layers]
    if found and all(c.rows for c in found):
        return list(_rows(case, found, level))
    found = [c for c in found if not c.rows]
    if case.preserve:
        return _parted(case, found, level)
    if level == 0:
        incoming = [a for layer, group in _by_layer(found) for a in _incoming(case, layer, group)]
        return [*incoming, *_outgoing(case, MOST)]
    if level == 1:
        return list(_outgoing(case, 0.0))
    names = case.parameters_at(finding.layers, ("weight", "recurrent", "table"))
    because = f"all units of {layer_named(finding.layer)} are copies"
    return [case.alive(name, because) for name in names]


def _rows(case: Case, found: Sequence[UnitClass], level: int) -> Iterator[Assignment]:
    """The rows of a parameter that are copies: all but the first, which stays if it is worth it.

    Of the parameters of one module first one alone, which a new model draws at random: means that
    differ part the scales beside them.  Those of a list stand for themselves.
    """
    if case.preserve or level > 1:
        return
    done: set[str] = set()
    names = dict.fromkeys(c.layer for c in found)
    for name in sorted(names, key=lambda n: n not in case.planned or case.planned[n].std == 0):
        module, _, last = name.rpartition(".")
        module = name if last.isdigit() else module
        if level == 0 and module in done:
            continue
        done.add(module)
        group = [c for c in found if c.layer == name]
        rows = case.rows(name)
        again, kept = _drawn_again(case, name, rows, group)
        because = f"{len(again)} rows are copies" + (f" of {kept} that stay" if kept else "")
        yield case.fresh(name, because, case.mask(name, rows[again]))


def _by_layer(found: Sequence[UnitClass]) -> Iterator[tuple[str, list[UnitClass]]]:
    for layer in dict.fromkeys(c.layer for c in found):
        yield layer, [c for c in found if c.layer == layer]


def _wire_of(case: Case, layer: str) -> Wire | None:
    for name in case.parameters_at([layer]):
        if name in case.wires:
            return case.wires[name]
    return None


def _incoming(case: Case, layer: str, group: Sequence[UnitClass]) -> Iterator[Assignment]:
    """The incoming weights of every copy but the first, which stays unless it is all zero."""
    wire = _wire_of(case, layer)
    if wire is None or wire.units is None:
        for name in case.parameters_at([layer], ("weight", "recurrent", "table")):
            yield case.own(name, f"the units of {layer_named(layer)} are copies")
        return
    parts = {wire.parameter: wire.units}
    parts |= {n: rows for n, rows in wire.others.items() if case.roles[n].kind == "recurrent"}
    for name, rows in parts.items():
        if not case.roles[name].trainable:
            continue
        again, kept = _drawn_again(case, name, rows, group)
        because = f"{len(again)} units of {layer_named(layer)} are copies" + (
            f" of {kept} that stay" if kept else ", and all zero"
        )
        if again:
            yield case.fresh(name, because, case.mask(name, rows[again]))
            if name == wire.parameter and len(again) > MOST * len(rows):
                yield from _shared_biases(case, wire, again, because)


def _shared_biases(
    case: Case, wire: Wire, again: Sequence[int], because: str
) -> Iterator[Assignment]:
    """Biases of units that are drawn again, where most of a layer has one and the same."""
    for name, rows in wire.others.items():
        role = case.roles[name]
        if role.kind != "bias" or role.op in RECURRENT or not role.trainable or name in case.zeros:
            continue
        values = case.model.get_parameter(name).detach().reshape(-1)[torch.from_numpy(rows[again])]
        if bool((values == values.reshape(-1)[0]).all()):
            made = case.planned_anew(
                name, f"{because}, with one bias", case.mask(name, rows[again])
            )
            if made is not None:
                yield made


def _drawn_again(
    case: Case, name: str, rows: np.ndarray, group: Sequence[UnitClass]
) -> tuple[list[int], int]:
    """The copies in some classes that are drawn again, and how many stay."""
    values = case.model.get_parameter(name).detach().reshape(-1).double().cpu().numpy()
    large = GROSS * case.alive(name, "").std
    again = [u for c in group for u in _again(c.units, rows, values, large)]
    return again, sum(len(c.units) for c in group) - len(again)


def _again(units: Sequence[int], rows: np.ndarray, values: np.ndarray, large: float) -> list[int]:
    """The copies that are drawn again: all but the first, which stays if it is worth keeping.

    A unit of zeros is not, and no more is one large value repeated.
    """
    inside = [u for u in units if u < len(rows)]
    first = values[rows[inside[0]]] if inside else np.zeros(0)
    flat = first.size > 1 and np.ptp(first) == 0 and abs(first[0]) > large
    return inside if not first.any() or flat else inside[1:]


def _outgoing(case: Case, share: float) -> Iterator[Assignment]:
    """What reads features that were copies at the start: all columns of a class but the first.

    Only where more than a share of a layer's inputs were copies.
    """
    for name, wire in case.first.items():
        role = case.roles.get(name)
        if role is None or not role.trainable or wire.inputs is None or name in case.zeros:
            continue
        if role.layout.count("i") != 1:  # or it is not known which of its dimensions they are
            continue
        columns = case.model.get_parameter(name).detach().movedim(role.layout.index("i"), 0)
        groups = [c for c in classes(wire.inputs) if not share or _equal(columns[list(c)])]
        again = [u for c in groups for u in c[1:]]
        if len(again) > share * (len(wire.inputs) - wire.silent):
            part = np.zeros(role.shape, dtype=np.bool_)
            np.moveaxis(part, role.layout.index("i"), 0)[again] = True
            yield case.fresh(name, f"it read {len(again)} copies alike", part)


def _parted(case: Case, found: Sequence[UnitClass], level: int) -> list[Assignment]:
    """Copies go apart and the output stays: what they send on is split unevenly among them."""
    if level < 2:
        return [a for name in case.first for a in _split(case, name, all_of_them=level == 1)]
    if level > 2:
        return []
    # Routers: whichever of some copies they choose, the output is the same.  The caller verifies.
    made = []
    for layer, group in _by_layer(found):
        wire = _wire_of(case, layer) if _chooses(case, layer) else None
        if wire is not None and wire.units is not None:
            again = [u for c in group for u in c.units[1:] if u < len(wire.units)]
            part = case.mask(wire.parameter, wire.units[again])
            made.append(case.own(wire.parameter, f"{layer} chooses among copies", part))
    return made


def _chooses(case: Case, layer: str) -> bool:
    """Whether a layer's outputs are turned into shares or choices (a router)."""
    read = case.evidence.seen.architecture
    calls = [i for y in read.layers if y.name == layer for i in y.calls]
    return any(c.op in _CHOOSING for i in calls for c in read.followers[i])


def _split(case: Case, name: str, all_of_them: bool) -> Iterator[Assignment]:
    role, wire = case.roles.get(name), case.first[name]
    if role is None or not role.trainable or wire.inputs is None or role.layout.count("i") != 1:
        return
    columns = case.model.get_parameter(name).detach().movedim(role.layout.index("i"), 0)
    groups = [g for g in classes(wire.inputs) if all_of_them or _equal(columns[list(g)])]
    if groups:
        std = case.own(name, "").std
        count = sum(map(len, groups))
        because = (
            f"{count} of its inputs are copies of one another: noise that sums to zero over each "
            "class parts them and leaves the output as it is"
        )
        yield case.split(name, groups, "i", NOISE * std, because)


def _equal(columns: Tensor) -> bool:
    """Whether copies are read alike; where they are not, they go apart by themselves."""
    return bool(torch.allclose(columns, columns[:1].expand_as(columns), rtol=_SAME, atol=0.0))


def cloned_layers(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """Every clone but the first is drawn again, under its own name; and rows that repeat others."""
    if level or case.preserve:
        return []
    made = []
    for group in case.report.symmetry.clones:
        first, *rest = (_inside(case, place) for place in group)
        for place, names in zip(group[1:], rest, strict=True):
            for name, twin in zip(names, first, strict=False):
                if _same(case, name, twin):
                    made.append(case.own(name, f"{place} was a copy of {group[0]}"))
    for name, _, _ in case.evidence.repeats:
        part = _repeated(case, name)
        if part is not None and case.roles[name].trainable and name in finding.layers:
            made.append(case.own(name, "rows that repeat others", part))
    return made


def _inside(case: Case, place: str) -> list[str]:
    found = [n for n in case.roles if n == place or n.startswith(f"{place}.")]
    return [n for n in found if case.roles[n].trainable]


def _same(case: Case, name: str, twin: str) -> bool:
    """Whether two parameters are equal and hold numbers that were drawn."""
    one, other = (case.model.get_parameter(n).detach() for n in (name, twin))
    matrix = one.dim() > 1 and name != twin
    drawn = matrix and len(set(one.flatten()[:64].tolist())) > 2
    return drawn and one.shape == other.shape and bool((one == other).all())


def _repeated(case: Case, name: str) -> Mask | None:
    """The rows (or columns) of a weight that repeat an earlier one."""
    values = case.model.get_parameter(name).detach()
    rows, columns = repeats(values)
    part = np.zeros(tuple(values.shape), dtype=np.bool_)
    if len(rows) >= len(columns):
        part.reshape(len(part), -1)[rows] = True
    else:
        part.reshape(len(part), -1)[:, columns] = True
    return part if part.any() else None


def mirrored_units(case: Case, finding: Finding, level: int) -> list[Assignment]:
    """The incoming weights of one of each pair."""
    if level or case.preserve:
        return []
    made = []
    for layer, group in _by_layer(
        [c for c in case.report.symmetry.classes if c.kind == "mirrored"]
    ):
        wire = _wire_of(case, layer)
        if wire is not None and wire.units is not None and layer in finding.layers:
            again = [c.units[1] for c in group]
            part = case.mask(wire.parameter, wire.units[again])
            made.append(case.own(wire.parameter, f"one of each mirrored pair of {layer}", part))
    return made
