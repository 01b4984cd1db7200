"""One tensor held against its start, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fanin.assignment import KEPT, Assignment
from fanin.errors import FaninError
from fanin.fill import assign_, by_parts
from fanin.reading import plain
from fanin.region import mask
from fanin.summary import count
from fanin.verifying.result import Checked, State
from fanin.verifying.source import Source
from fanin.window import Window

__all__ = ["compare"]

#: The part of a parameter, what it starts as, and what was found.
Triples = Iterator[tuple[Window, Tensor, Tensor]]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# What a dtype can be rounded from, and what it may have been rounded to on its way.
_WIDER = {
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
}
_NARROWER = {
    torch.float32: (torch.bfloat16, torch.float16),
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
}
# Relative to the largest value: more than the coarsest roundings (bfloat16; a weight, its factor
# and their product) can move an entry.
_ROUNDING = 2.0**-6
# Roundings between two values that are called equal: one multiplication in 16 bits; in more bits
# also a few in a row, since chance does not come so near.
_STEPS = {2: 1.0, 4: 4.0, 8: 4.0}
# Relative to the largest value: by so much two linear algebra libraries differ in double precision.
_LIBRARIES = 1e-12
_FEW = 16  # entries that are not 0: fewer may have a common factor by chance


def compare(
    assignment: Assignment, seed: int, source: Source, tick: Callable[[int], None]
) -> Checked:
    """Hold what stands in a checkpoint against what the assignment draws into its dtype.

    Args:
        assignment: of the parameter.
        seed: of the draw.
        source: where the values stand.
        tick: told how many elements were compared, after each piece.

    Raises:
        ArgumentError: the file cannot be read.
    """
    checked = Checked(
        assignment.parameter,
        "not judged",
        key=source.key,
        shape=tuple(assignment.shape),
        found_shape=source.shape,
        dtype=source.kind,
    )
    start, told = _Start(assignment, seed), _obstacle(assignment, source)
    try:
        if source.shape != checked.shape:
            turned = "" if told else _transposed(start, source)
            return replace(checked, state="other shape", told=turned)
        if told:
            return replace(checked, told=told)
        if assignment.partial:
            return _compare_part(checked, start, source)
        return _compare_whole(checked, start, source, tick)
    except _UndrawnError as error:
        return replace(checked, told=f"its start cannot be drawn: {error}")


def _obstacle(assignment: Assignment, source: Source) -> str:
    """Why the start of a tensor is not known from its recipe and seed; "" where it is."""
    given = assignment.arguments
    if source.held < source.count:
        return "the checkpoint holds a part of it alone"
    if source.dtype is None:
        return f"its dtype is {source.kind}, which is not drawn"
    if assignment.scheme == KEPT or given.get("kept") is not None:
        return "the recipe multiplies values that it does not hold"
    if given.get("split") is not None:
        return "the recipe adds to values that it does not hold"
    if assignment.partial and given.get("rows") is not None:
        return "the recipe multiplies values that it does not hold"
    return ""


def _compare_whole(
    checked: Checked, start: _Start, source: Source, tick: Callable[[int], None]
) -> Checked:
    found, scale = _differences(start.beside(source, tick))
    checked = replace(checked, entries=source.count)
    if not found["differing"]:
        return replace(checked, state="same")
    near = not found["not_finite"] and found["largest"] <= _ROUNDING * scale
    rounded = _rounded_from(start, source) if near else ""
    if rounded:
        return replace(checked, state="same", told=rounded)
    differing = replace(checked, state="differs", **found)
    told = _rounded_to(start, source) if near else ""
    return replace(differing, told=told or _look(differing, start, source))


def _compare_part(checked: Checked, start: _Start, source: Source) -> Checked:
    """Where a part of a tensor is drawn: that part; the rest may be anything."""
    given = start.assignment
    values = source.whole()
    part = mask(given.shape, given.layout, given.arguments)
    assert part is not None  # a part is named
    drawn = start.onto(values.clone())
    found, _ = _differences(iter([(Window.whole(source.shape), drawn, values)]))
    state: State = "differs" if found["differing"] else "same"
    entries = int(np.count_nonzero(part))
    return replace(checked, state=state, entries=entries, told="of the part that is drawn", **found)


class _UndrawnError(Exception):
    """The assignment cannot be drawn into the dtype of the checkpoint."""


class _Start:
    """The values a parameter was assigned: drawn piece by piece where its scheme allows it."""

    def __init__(self, assignment: Assignment, seed: int) -> None:
        self.assignment, self.seed = assignment, seed
        self._whole: dict[torch.dtype, Tensor] = {}
        self._parted = by_parts(assignment)

    def part(self, window: Window, dtype: torch.dtype) -> Tensor:
        """The values of a part that is one range of each dimension."""
        if self._parted:
            return self._drawn(window.sizes, dtype, window)
        if dtype not in self._whole:
            self._whole = {dtype: self._drawn(window.shape, dtype)}
        whole = self._whole[dtype]
        return whole if window.is_whole else whole[window.slices]

    def _drawn(
        self, sizes: Sequence[int], dtype: torch.dtype, window: Window | None = None
    ) -> Tensor:
        return self.onto(torch.empty(tuple(sizes), dtype=dtype, device="cpu"), window)

    def onto(self, tensor: Tensor, window: Window | None = None) -> Tensor:
        """The tensor, after what was assigned is written into it."""
        try:
            name = plain(self.assignment.parameter)
            assign_(tensor, self.assignment, self.seed, name, window)
        except FaninError as error:
            raise _UndrawnError(str(error)) from error
        return tensor

    def beside(
        self,
        source: Source,
        tick: Callable[[int], None] = lambda count: None,
        dtype: torch.dtype | None = None,
        through: torch.dtype | None = None,
    ) -> Triples:
        """Pieces of the start, in the dtype of the checkpoint, each with what is found.

        dtype: in which it is drawn, where it is another; through: to which it is rounded then.
        """
        assert source.dtype is not None  # others are not compared
        for window, values in source.pieces():
            drawn = self.part(window, dtype or source.dtype)
            if through is not None:
                drawn = drawn.to(through)
            yield window, drawn.to(source.dtype), values
            tick(window.count)


def _bits(tensor: Tensor) -> NDArray[Any]:
    """The elements as integers, so that −0 is not 0 and one NaN is itself."""
    flat = tensor.reshape(-1)
    return np.asarray(flat.view(_BITS[flat.element_size()]).numpy())


def _equal(triples: Triples) -> bool:
    return all(np.array_equal(_bits(start), _bits(found)) for _, start, found in triples)


def _differences(triples: Triples) -> tuple[dict[str, Any], float]:
    """What differs, as fields of `Checked`, and the largest start in a piece that does."""
    differing = wild = 0
    first: dict[str, Any] = {}
    largest = scale = 0.0
    for window, start, found in triples:
        unlike = _bits(start) != _bits(found)
        amount = int(np.count_nonzero(unlike))
        if amount:
            place = int(unlike.argmax())
            index = _index(window, place)
            if not first or index < first["first"]:  # parts that are joined may come in any order
                pair = (float(values.reshape(-1)[place]) for values in (start, found))
                first = dict(zip(("first", "expected", "found"), (index, *pair), strict=True))
            gap, infinite = _largest(start, found)
            largest, wild = max(largest, gap), wild + infinite
            scale = max(scale, *map(abs, map(float, torch.aminmax(start))))
        differing += amount
    return {"differing": differing, "largest": largest, "not_finite": wild, **first}, scale


def _index(window: Window, place: int) -> tuple[int, ...]:
    """The index in the whole tensor of an element of a part that is one range of each dimension."""
    inside = map(int, np.unravel_index(place, window.sizes))
    return tuple(runs[0][0] + at for runs, at in zip(window.runs, inside, strict=True))


def _largest(start: Tensor, found: Tensor) -> tuple[float, int]:
    """The largest difference of finite values; and how many that are found are not finite."""
    form = torch.promote_types(start.dtype, torch.float32)
    gaps = found.to(form) - start.to(form)
    low, high = map(float, torch.aminmax(gaps))
    if math.isfinite(low) and math.isfinite(high):
        return max(-low, high), 0
    finite = torch.isfinite(found)
    gaps = gaps[finite].abs()
    return float(gaps.max()) if len(gaps) else 0.0, int(torch.count_nonzero(~finite))


# ── what the difference looks like ───────────────────────────────────────────────────────────


def _rounded_from(start: _Start, source: Source) -> str:
    """Whether the start was drawn in a wider dtype and rounded to that of the checkpoint."""
    assert source.dtype is not None  # others are not compared
    for dtype in _WIDER.get(source.dtype, ()):
        if _equal(start.beside(source, dtype=dtype)):
            return f"drawn in {_named(dtype)}, then rounded to {source.kind}"
    return ""


def _rounded_to(start: _Start, source: Source) -> str:
    """Whether the start was at some time rounded to a narrower dtype."""
    assert source.dtype is not None  # others are not compared
    for dtype in _NARROWER.get(source.dtype, ()):
        ways = start.beside(source, through=dtype), start.beside(source, dtype=dtype)
        if any(map(_equal, ways)):
            return f"it is the start, rounded to {_named(dtype)}"
    return ""


def _look(checked: Checked, start: _Start, source: Source) -> str:
    """What all entries have in common; "" where nothing is certain."""
    if checked.not_finite:
        return f"{count(checked.not_finite, 'entry is', 'entries are')} not finite"
    constant = _constant(source)
    if constant is not None:
        return f"every entry is {constant:g}"
    turned = _transposed(start, source)
    if turned:
        return turned
    factor = _factor(start.beside(source), source)
    if factor is None:
        return ""
    if abs(factor - 1) > _tolerance(source):
        return f"every entry is its start times {factor:.6g}, to rounding"
    # In 16 bits a small step of training is no more than a rounding.
    short = source.dtype is not None and source.dtype.itemsize == 2
    return "" if short else "every entry is its start, to rounding"


def _constant(source: Source) -> float | None:
    """The one value of a tensor of several entries."""
    if source.count < 2:
        return None
    value: Tensor | None = None
    for _, values in source.pieces():
        value = values.reshape(-1)[:1] if value is None else value
        if (_bits(values) != _bits(value)).any():
            return None
    return None if value is None else float(value[0])


def _transposed(start: _Start, source: Source) -> str:
    """Whether a matrix holds its start with rows and columns exchanged."""
    shape = tuple(start.assignment.shape)
    if len(shape) != 2 or source.shape != shape[::-1] or start.assignment.partial:
        return ""
    assert source.dtype is not None  # others are not compared
    for window, values in source.pieces():
        turned = Window(shape, window.runs[::-1])
        if not np.array_equal(_bits(start.part(turned, source.dtype).T), _bits(values)):
            return ""
    return "it is the start, transposed"


def _factor(triples: Triples, source: Source) -> float | None:
    """What every entry of the start was multiplied with; None where there is no such number."""
    factor: float | None = None
    assert source.dtype is not None  # others are not compared
    within, smallest = _tolerance(source), torch.finfo(source.dtype).tiny
    used = 0
    for _, start, found in triples:
        before, after = (t.reshape(-1).double() for t in (start, found))
        if factor is None:
            square = float(before @ before)
            if square == 0:
                return None
            factor = float(before @ after) / square
        wanted = factor * before
        slack = max(_LIBRARIES * float(wanted.abs().max()), within * smallest)
        if bool(((after - wanted).abs() > within * wanted.abs() + slack).any()):
            return None
        used += int(torch.count_nonzero(before))
    return factor if used >= _FEW else None


def _tolerance(source: Source) -> float:
    assert source.dtype is not None  # others are not compared
    return _STEPS[source.dtype.itemsize] * torch.finfo(source.dtype).eps


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
