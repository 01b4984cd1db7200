"""One parameter, or a part of it, written as it was assigned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fanin.assignment import KEPT, OF_TENSOR, Assignment
from fanin.draw import Queue
from fanin.errors import ArgumentError
from fanin.fill.filling import realize_, taken
from fanin.region import check_region, groups_of, mask
from fanin.window import Window

__all__ = ["assign_"]

_OF_PARTS = frozenset(OF_TENSOR) - {"groups"}  # which say what is done beside the scheme


def assign_(
    tensor: Tensor,
    assignment: Assignment,
    seed: int,
    name: str,
    window: Window | None = None,
    queue: Queue | None = None,
) -> None:
    """Draw one parameter; then what belongs to its tensor: rows of their own scale, padding.

    Args:
        tensor: the parameter, or a part of it.
        assignment: what the whole parameter starts as.
        seed: 0 to 2⁶⁴ − 1.
        name: under which it is drawn.
        window: which part the tensor is; all of it by default.  The part has the values that it
            would have in the whole.
        queue: where what can wait is put, to be written together; the tensor has its values once
            that is run.

    Raises:
        ArgumentError: the assignment cannot be, or is for another shape.

    >>> plan = Assignment("w", "normal", 1.0, 0.02, None, "GPT-2", (4, 6), "oi")
    >>> whole, part = torch.empty(4, 6), torch.empty(2, 3)
    >>> assign_(whole, plan, 0, "w")
    >>> assign_(part, plan, 0, "w", Window.box((4, 6), (1, 3), (2, 3)))
    >>> torch.equal(part, whole[1:3, 3:])
    True
    """
    window = Window.whole(tensor.shape) if window is None else window
    padding, rows = (assignment.arguments.get(n) for n in ("padding", "rows"))
    if padding is not None or rows is not None:
        queue = None  # what is drawn is worked on below
    _write(tensor, assignment, seed, name, window, queue)
    if padding is None and rows is None:
        return
    with torch.no_grad():
        values = tensor.detach()
        if rows is not None:
            at = assignment.layout.index("o")
            shape = [1] * values.dim()
            shape[at] = -1
            held = [rows[index] for index in window.indices(at)]
            values.mul_(torch.tensor(held, dtype=values.dtype, device=values.device).view(shape))
        if padding is not None:
            values[_held(window, 0, [int(padding)])] = 0


def _write(
    tensor: Tensor,
    assignment: Assignment,
    seed: int,
    name: str,
    window: Window,
    queue: Queue | None,
) -> None:
    """Draw a tensor, or the region of it that is named; what is kept is multiplied at most."""
    given, shape = assignment.arguments, window.shape
    try:
        check_region(assignment.scheme, given, shape, assignment.layout)
    except ArgumentError as error:
        raise ArgumentError(f"{assignment.parameter!r}: {error}") from error
    if assignment.scheme == KEPT:
        with torch.no_grad():
            tensor.detach().mul_(assignment.gain)
        return
    whole = assignment
    if not given.keys().isdisjoint(_OF_PARTS):
        own = {name: value for name, value in given.items() if name not in _OF_PARTS}
        whole = replace(assignment, arguments=own)
    if given.get("split") is not None:
        _split_(tensor, assignment, whole, seed, name, window)
        return
    region = mask(shape, assignment.layout, given)
    if region is None:
        realize_(tensor, whole, seed, name, window, queue)
        return
    drawn = torch.empty_like(tensor.detach())
    realize_(drawn, whole, seed, name, window)
    with torch.no_grad():
        values = tensor.detach()
        chosen = taken(torch.from_numpy(region), window).to(values.device)
        kept = given.get("kept")
        rest = values if kept is None else values * kept
        values.copy_(torch.where(chosen, drawn, rest))


def _split_(
    tensor: Tensor, assignment: Assignment, whole: Assignment, seed: int, name: str, window: Window
) -> None:
    """Add what was drawn, less its mean over each group along a dimension; the rest stays."""
    at = assignment.layout.index(assignment.arguments.get("along", "i"))
    drawn = torch.empty(window.shape, dtype=tensor.dtype, device=tensor.device)
    realize_(drawn, whole, seed, name)
    full = ((0, window.shape[at]),)
    with torch.no_grad():
        values = tensor.detach()
        drawn = taken(drawn, window.with_runs(at, full))
        for group in groups_of(assignment.arguments):
            mean = drawn.index_select(at, _index(group, values)).mean(at, keepdim=True)
            places = _index(_held(window, at, group), values)
            ours = _index([i for i in group if _held(window, at, [i])], values)
            noise = drawn.index_select(at, ours) - mean
            values.index_copy_(at, places, values.index_select(at, places) + noise)


def _held(window: Window, dim: int, indices: Sequence[int]) -> list[int]:
    """Where those of some indices of the whole tensor stand that the part holds."""
    found = []
    for index in indices:
        before = 0
        for a, b in window.runs[dim]:
            if a <= index < b:
                found.append(before + index - a)
            before += b - a
    return found


def _index(indices: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(indices, dtype=torch.int64, device=like.device)
