"""Rows of one parameter that start equal: latents, registers, the means of a mixture.

Rows are no units of a layer: the model reads the parameter itself, as tokens, queries or slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from fanin.architecture import Architecture
from fanin.calls import Call, Operand
from fanin.kinds import NORMS
from fanin.layers import TOLERANCES
from fanin.operations import LEARNED_INPUT, as_rows
from fanin.passes import Pass
from fanin.sketch import Directions, classes, joint, labels, project
from fanin.symmetry.result import Identity, UnitClass
from fanin.symmetry.steps import RowSet, VirtualRun

__all__ = ["alike_rows", "row_classes"]

_SEED = 0  # of the directions that rows are compared along
# Relative difference up to which gradients of a first pass may be equal.  In the zoo those of
# copies differ by 6e-8 at most (float32), those of rows that part by 0.05 at least.
ALIKE = 1e-3
# Each row has its place there, or meets a copy of the signal; these say nothing else of a row.
_OWN = frozenset({"shift", "scale"})


def alike_rows(
    model: nn.Module, seen: Pass, gradients: Mapping[str, Tensor | None]
) -> tuple[RowSet, ...]:
    """Sets in which some rows are equal, and get equal gradients, to the precision of a pass.

    Where no row has a gradient yet, as behind an output layer of zeros, equal values will do.
    """
    values = dict(model.named_parameters())
    found = []
    for rows in _row_sets(seen.architecture):
        value, gradient = values[rows.parameter], gradients.get(rows.parameter)
        if gradient is None or gradient.is_sparse or value.is_complex():
            continue
        tolerance = TOLERANCES.get(str(value.dtype).removeprefix("torch."), 1e-5)
        equal = labels(_sketch(value, rows), tolerance)
        if classes(equal) and (
            not bool(gradient.any()) or _live(equal, _sketch(gradient, rows), tolerance)
        ):
            found.append(rows)
    return tuple(found)


def _live(equal: np.ndarray, sketch: np.ndarray, tolerance: float) -> bool:
    """Whether some equal rows have gradients that are alike, each for its own size, and not zero.

    One row's may be 10⁶ times the others', as that of a class token of zeros before a norm.  Those
    of a long table lie close together, so each is held against its neighbour and not in chains.
    """
    norms = np.linalg.norm(sketch, axis=1)
    for members in classes(equal):
        live = [m for m in members if norms[m] > 0]
        told = np.column_stack([sketch[live] / norms[live, None], np.log(norms[live])])
        steps = np.abs(np.diff(told[np.argsort(told[:, 0])], axis=0)).max(1)
        if (steps < max(ALIKE, tolerance)).any():
            return True
    return False


def _sketch(tensor: Tensor, rows: RowSet) -> np.ndarray:
    return _fingerprints(as_rows(tensor.detach(), rows.dims))


def _fingerprints(table: Tensor) -> np.ndarray:
    return np.asarray(project(table, (0,), Directions(_SEED), 0).cpu().numpy())


# ---- which parameters are sets of rows -----------------------------------------------------------


def _row_sets(read: Architecture) -> Iterator[RowSet]:
    """The trainable parameters that are read whole, each with the dimensions that count rows."""
    uses: dict[str, list[tuple[Call, Operand]]] = {}
    for call in read.trace.calls:
        for operand in (*call.operands, *call.learned):
            for name in operand.parameters:
                uses.setdefault(name, []).append((call, operand))
    for parameter in read.parameters:
        if parameter.trainable and math.prod(parameter.shape) > 1 and parameter.name in uses:
            dims = _row_dims(read, parameter.shape, uses[parameter.name])
            if dims and math.prod(parameter.shape[d] for d in dims) > 1:
                yield RowSet(parameter.name, dims)


def _row_dims(
    read: Architecture, shape: tuple[int, ...], uses: list[tuple[Call, Operand]]
) -> tuple[int, ...]:
    """The dimensions that count rows; none for weights, biases, norms, and tables that the batch
    picks rows of.

    They are those along which the signal is copied for each row, and what the rows of a matrix
    product are that the parameter is used in besides; else all but the last.
    """
    own, copied, inputs = False, set[int](), set[int]()
    for call, operand in uses:
        if math.prod(operand.shape) < 2:  # one number of all, as a penalty in the loss
            continue
        if operand in call.learned or call.op.startswith("unnamed:"):
            own = True
        elif call.op in NORMS or operand.role.startswith(("bias", "recurrent", "projection")):
            return ()
        elif "v" in call.layout:
            if call.varies:
                return ()
            own = True
        elif call.layout or call.op in LEARNED_INPUT | {"einsum"}:
            inputs |= _inputs(call, operand, shape)
            if not inputs:
                return ()
        else:
            own = True
            copied |= _copied(read, call, operand)
    wide = [d for d, size in enumerate(shape) if size > 1]
    return tuple(sorted(copied or inputs or set(wide[:-1]))) if own else ()


def _inputs(call: Call, operand: Operand, shape: tuple[int, ...]) -> set[int]:
    """The dimension along which a product with the parameter sums over its rows."""
    plain = operand.shape == shape and operand.offset == 0.0 and len(call.layout) == len(shape)
    alone = plain and call.layout.count("i") == 1 and operand is call.operands[0]
    return {call.layout.index("i")} if alone else set()


def _copied(read: Architecture, call: Call, operand: Operand) -> set[int]:
    """Dimensions of a parameter along which a call copies the signal that it is added to."""
    if call.op not in _OWN or operand.axes is None or not call.behind:
        return set()
    given = read.trace.calls[call.behind[-1]].shape
    found = set()
    for back in range(1, min(len(operand.shape), len(call.shape)) + 1):
        copies = back > len(given) or given[-back] < call.shape[-back]
        if copies and operand.shape[-back] == call.shape[-back] > 1:
            found |= set(operand.axes[-back])
    return found


# ---- which rows are locked -----------------------------------------------------------------------


def row_classes(run: VirtualRun) -> tuple[UnitClass, ...]:
    """Classes of rows that stay equal, by the way the model starts and by nothing else.

    They agree in every virtual step.  They would on any batch and with any loss: rows of a table of
    positions that all samples have the same at, or of queries of classes that the batch lacks, do
    not.  And another start would part them: rows that are only summed have one gradient anyway.
    """
    found = [(rows, members) for rows in run.rows for members in _tied(run, rows)]
    if found:
        found = _parted(found, run.elsewhere(), run.precision.lock, apart=False)
    if found:
        names = {rows.parameter for rows, _ in found}
        found = _parted(found, run.disturbed(names), run.precision.lock, apart=True)
    return tuple(
        UnitClass(
            rows.parameter,
            members,
            "locked",
            run.steps,
            _certificate(run, rows, members),
            len(run.held[0][rows.parameter][0]),
        )
        for rows, members in found
    )


def _tied(run: VirtualRun, rows: RowSet) -> list[tuple[int, ...]]:
    """Rows that agree in every pass, in value and gradient, and get one that is not zero."""
    numbers: np.ndarray | None = None
    live: np.ndarray | None = None
    for held in run.held:
        for table in held[rows.parameter]:
            if table is None:
                continue
            now = labels(_fingerprints(table), run.precision.lock)
            numbers = now if numbers is None else joint(numbers, now)
        gradient = held[rows.parameter][1]
        if gradient is not None:
            some = gradient.any(1).cpu().numpy()
            live = some if live is None else live | some
    if numbers is None or live is None:
        return []
    return [c for c in classes(numbers) if live[list(c)].any()]


def _parted(
    found: list[tuple[RowSet, tuple[int, ...]]],
    gradients: Mapping[str, Tensor | None],
    tolerance: float,
    *,
    apart: bool,
) -> list[tuple[RowSet, tuple[int, ...]]]:
    """The classes whose gradients are apart, or are not, in another pass.

    Those that stay together in part are kept as that part.
    """
    kept = []
    for rows, members in found:
        gradient = gradients.get(rows.parameter)
        if gradient is None:
            continue
        numbers = labels(_sketch(gradient, rows)[list(members)], tolerance)
        if apart:
            kept += [(rows, members)] if numbers.any() else []
        else:
            kept += [(rows, tuple(members[i] for i in part)) for part in classes(numbers)]
    return kept


def _certificate(run: VirtualRun, rows: RowSet, members: tuple[int, ...]) -> tuple[Identity, ...]:
    """What a row gives is what it is."""
    found = []
    for step in range(run.steps):
        value, gradient = run.held[step][rows.parameter]
        later = run.held[step + 1][rows.parameter][0]
        apart = _difference(value, members)
        slope = 0.0 if gradient is None else _difference(gradient, members)
        found.append(Identity(step, apart, apart, slope, _difference(later - value, members)))
    return tuple(found)


def _difference(table: Tensor, members: Iterable[int]) -> float:
    part = table[list(members)]
    return float((part - part[:1]).abs().max())
