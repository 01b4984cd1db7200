"""Parts of a tensor: named by its outputs, inputs, matrices or single entries; and its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanin.assignment import KEPT, REGION
from fanin.errors import ArgumentError

__all__ = ["check_region", "groups_of", "mask", "named"]

Mask = NDArray[np.bool_]

# Which dimension an argument counts along.
_LETTERS = {"outputs": "o", "inputs": "iv", "matrices": "b"}
_ALONG = ("i", "o", "b")


def check_region(
    scheme: str, arguments: Mapping[str, Any], shape: Sequence[int], layout: str
) -> None:
    """Raise ArgumentError where the arguments name what a tensor of this shape has not.

    That is a part of it, its row of padding (`padding`), or a factor for each output (`rows`).

    >>> check_region("normal", {"outputs": (0, 3)}, (4, 2), "oi")
    >>> check_region("normal", {"outputs": (0, 9)}, (4, 2), "oi")
    Traceback (most recent call last):
    fanin.errors.ArgumentError: outputs: 9; indices below 4 are needed
    """
    named_parts = [name for name in (*REGION, "split") if arguments.get(name) is not None]
    if scheme == KEPT and named_parts:
        raise ArgumentError(f"{named_parts[0]}: nothing is drawn where the values are kept")
    kept = arguments.get("kept")
    if kept is not None and (scheme == KEPT or not _is_number(kept)):
        raise ArgumentError(f"kept: {kept!r}; a number beside a part that is drawn is needed")
    for name in REGION:
        indices = arguments.get(name)
        if indices is not None:
            size = int(np.prod(shape)) if name == "entries" else _size(name, shape, layout)
            _check_indices(name, indices, size)
    if arguments.get("split") is not None:
        along = arguments.get("along", "i")
        if along not in _ALONG or layout.count(along) != 1:
            raise ArgumentError(f"along: {along!r}; one of the dimensions {layout!r} is needed")
        for group in groups_of(arguments):
            _check_indices("split", group, shape[layout.index(along)])
    _check_rows(arguments, shape, layout)


def _check_rows(arguments: Mapping[str, Any], shape: Sequence[int], layout: str) -> None:
    padding, rows = arguments.get("padding"), arguments.get("rows")
    table = shape[0] if shape else 0
    if padding is not None and not (_is_whole(padding) and 0 <= padding < table):
        raise ArgumentError(f"padding: {padding!r}; one of the {table} rows is needed")
    if rows is not None:
        outputs = shape[layout.index("o")] if "o" in layout else 0
        numbers = isinstance(rows, (list, tuple)) and all(map(_is_number, rows))
        if not numbers or len(rows) != outputs or "o" not in layout:
            raise ArgumentError(f"rows: a number for each of the {outputs} outputs is needed")


def groups_of(arguments: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The groups of `split`.

    Raises:
        ArgumentError: they are no groups of two or more.
    """
    groups = arguments["split"]
    sound = isinstance(groups, (list, tuple)) and groups
    if not sound or not all(isinstance(g, (list, tuple)) and len(g) > 1 for g in groups):
        raise ArgumentError(f"split: {groups!r}; groups of two or more indices are needed")
    return tuple(tuple(g) for g in groups)


def mask(shape: Sequence[int], layout: str, arguments: Mapping[str, Any]) -> Mask | None:
    """Which entries the arguments name; None where they name no part, so the whole tensor.

    >>> mask((2, 2), "oi", {"outputs": (1,)})
    array([[False, False],
           [ True,  True]])
    """
    if all(arguments.get(name) is None for name in REGION):
        return None
    found = np.zeros(tuple(shape), dtype=np.bool_)
    for name, letters in _LETTERS.items():
        if arguments.get(name) is not None:
            at = _dimension(letters, layout)
            np.moveaxis(found, at, 0)[list(arguments[name])] = True
    if arguments.get("entries") is not None:
        found.reshape(-1)[list(arguments["entries"])] = True
    return found


def named(part: Mask, layout: str) -> dict[str, tuple[int, ...]]:
    """The shortest arguments that name these entries; {} for the whole tensor.

    >>> import numpy as np
    >>> part = np.zeros((3, 2), dtype=bool)
    >>> part[1] = True
    >>> named(part, "oi"), named(~np.zeros((3, 2), dtype=bool), "oi")
    ({'outputs': (1,)}, {})
    """
    if part.all():
        return {}
    left = part.copy()
    found: dict[str, tuple[int, ...]] = {}
    for name, at in _sides(layout, part.ndim):
        whole = part.all(axis=tuple(d for d in range(part.ndim) if d != at))
        moved = np.moveaxis(left, at, 0)
        fresh = [int(i) for i in np.flatnonzero(whole) if moved[i].any()]
        if fresh:
            found[name] = tuple(fresh)
            moved[fresh] = False
    if left.any():
        found["entries"] = tuple(int(i) for i in np.flatnonzero(left))
    return found


def _sides(layout: str, dims: int) -> Iterator[tuple[str, int]]:
    for name, letters in _LETTERS.items():
        if len(layout) == dims and sum(layout.count(c) for c in letters) == 1:
            yield name, _dimension(letters, layout)


def _dimension(letters: str, layout: str) -> int:
    return next(i for i, letter in enumerate(layout) if letter in letters)


def _size(name: str, shape: Sequence[int], layout: str) -> int:
    letters = _LETTERS[name]
    if len(layout) != len(shape) or sum(layout.count(c) for c in letters) != 1:
        raise ArgumentError(f"{name}: the layout {layout!r} has no one such dimension")
    return int(shape[_dimension(letters, layout)])


def _check_indices(name: str, indices: Any, size: int) -> None:
    if not isinstance(indices, (list, tuple)):
        raise ArgumentError(f"{name}: {indices!r}; a list of indices is needed")
    for index in indices:
        if not _is_whole(index) or not 0 <= index < size:
            raise ArgumentError(f"{name}: {index!r}; indices below {size} are needed")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
