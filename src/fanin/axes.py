"""Where the dimensions of a parameter go while it is reshaped, turned or picked from.

*Axes* say of each dimension of a tensor that was made of a parameter which dimensions of that
parameter it holds: ``((0,), (1, 2, 3))`` of a kernel [out, in, height, width] as one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Axes", "axes_of", "carried", "letters"]

Axes = tuple[tuple[int, ...], ...]

_RESHAPES = frozenset({
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze",
})  # fmt: skip
# What changes the order of dimensions, or takes one place of some of them.
_MOVES = frozenset({
    "t", "T", "mT", "H", "mH", "adjoint", "transpose", "swapaxes", "swapdims", "permute", "movedim",
    "moveaxis", "select", "unbind", "__getitem__",
})  # fmt: skip
_COPIES = frozenset({
    "expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "unfold",
})  # fmt: skip


def axes_of(dimensions: int) -> Axes:
    """Those of a parameter itself."""
    return tuple((d,) for d in range(dimensions))


def carried(name: str, given: Tensor, made: Tensor, axes: Axes | None) -> Axes | None:
    """The axes of what a function makes of a tensor; None where they cannot be told."""
    strided = given.layout == made.layout == torch.strided
    if axes is None or len(axes) != given.dim() or not strided or name in _COPIES:
        return None
    if name in _RESHAPES:
        return _reshaped(given.shape, made.shape, axes)
    if name in _MOVES:
        return _moved(given, made, axes)
    return axes if made.dim() == given.dim() else None


def _reshaped(before: Sequence[int], after: Sequence[int], axes: Axes) -> Axes | None:
    """Neighbours of the same product hold the same, as few at a time as can be.

    >>> _reshaped((8, 4, 3, 3), (8, 36), axes_of(4)), _reshaped((6, 5), (2, 3, 1, 5), axes_of(2))
    (((0,), (1, 2, 3)), ((0,), (0,), (), (1,)))
    """
    if math.prod(before) != math.prod(after) or not math.prod(before):
        return None
    old = [(size, held) for size, held in zip(before, axes, strict=True) if size > 1]
    new = [size for size in after if size > 1]
    found: list[tuple[int, ...]] = []
    while old and new:
        (whole, held), first, several = old.pop(0), new.pop(0), 1
        while whole != first:
            if whole < first:
                whole, held = whole * old[0][0], held + old.pop(0)[1]
            else:
                first, several = first * new.pop(0), several + 1
        found += [held] * several
    return tuple(found.pop(0) if size > 1 else () for size in after)


def _moved(given: Tensor, made: Tensor, axes: Axes) -> Axes | None:
    """Each dimension of a view has the stride of the one that it is, and its size or less."""
    free = list(range(given.dim()))
    found: list[tuple[int, ...]] = [()] * made.dim()
    for at, (size, step) in enumerate(zip(made.shape, made.stride(), strict=True)):
        if size == 1:
            continue
        fits = (i for i in free if given.stride(i) == step and given.shape[i] >= size)
        place = next(fits, None)
        if place is None:
            return None
        free.remove(place)
        found[at] = axes[place]
    if made.dim() == given.dim():  # those of size 1, in their order
        single = [at for at, size in enumerate(made.shape) if size == 1]
        for at, place in zip(single, free, strict=True):
            found[at] = axes[place]
    return tuple(found)


def letters(layout: str, axes: Axes, shape: Sequence[int]) -> str:
    """The layout of a parameter, from that of what was made of it; "" where it has none.

    A dimension that is not there was picked from: the first of several matrices.  One that counts
    matrices and their outputs counts outputs.

    >>> letters("oi", ((0,), (1, 2, 3)), (8, 4, 3, 3)), letters("oi", ((1,), (2,)), (3, 8, 4))
    ('oiii', 'boi')
    >>> letters("boi", ((0,), (0,), (1,)), (6, 5)), letters("oi", ((0, 1), (0, 1)), (6, 5))
    ('oi', '')
    """
    found = ""
    for d, size in enumerate(shape):
        held = {letter for letter, of in zip(layout, axes, strict=True) if d in of}
        if held <= {"i", "k"} and "i" in held:
            found += "i"
        elif held and held <= {"o", "k", "b"} and "o" in held:
            found += "o"
        elif len(held) == 1:
            found += held.pop()
        elif not held and size == 1:
            found += "i" if "o" in found else "o"
        elif not held and set(found) <= {"b"}:
            found += "b"
        else:
            return ""
    return found
