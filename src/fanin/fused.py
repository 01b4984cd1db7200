"""Parameters that a model keeps in one tensor and a recipe knows by several names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from fanin.errors import ArgumentError, RecipeError
from fanin.window import Runs, Window

__all__ = ["Fused", "Part", "parts_of"]

#: Pattern of a fused parameter → patterns of what it is made of, in order; of some rows where
#: (name, start, stop) is given.
Fused: TypeAlias = Mapping[str, Sequence[str | tuple[str, int, int]]]

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A box of a fused parameter, and which rows of which logical parameter it holds.

    Attributes:
        name: of the logical parameter.
        shape: of the logical parameter.
        starts: first index of the box, for each dimension of the fused parameter.
        sizes: of the box.
        axis: dimension of the logical parameter that was cut.
        first: its first index here.
    """

    name: str
    shape: Shape
    starts: Shape
    sizes: Shape
    axis: int = 0
    first: int = 0

    def window(self, held: Window) -> tuple[Window, tuple[slice | int, ...]]:
        """What a holder of a part of the fused tensor has of this one, and where it stands."""
        window, slices = held.within(self.starts, self.sizes)
        place: tuple[slice | int, ...] = slices
        if len(self.sizes) > len(self.shape):  # stacked: the first dimension is left
            held_here = bool(window.runs[0])
            place = (slices[0].start, *slices[1:]) if held_here else (slice(0, 0), *slices[1:])
            nothing: tuple[Runs, ...] = ((),) * len(self.shape)
            window = Window(self.sizes[1:], window.runs[1:] if held_here else nothing)
        runs = list(window.runs)
        runs[self.axis] = tuple((a + self.first, b + self.first) for a, b in runs[self.axis])
        return Window(self.shape, tuple(runs)), place


def parts_of(
    fused: Fused, shapes: Mapping[str, Shape], logical: Mapping[str, Shape]
) -> dict[str, tuple[Part, ...]]:
    """What each fused parameter is made of.

    Args:
        fused: as the user gave it: ``*`` stands for one part of a path, and is the same in the
            names that a pattern is made of; ``{}`` for the index along the first dimension of a
            stack.
        shapes: of the model's parameters.
        logical: shapes of the parameters of the recipe.

    Raises:
        ArgumentError: a pattern fits no parameter, or is none.
        RecipeError: a part is not in the recipe, or the parts do not make up the tensor.

    >>> made = parts_of({"*.qk": ["*.q", "*.k"]}, {"a.qk": (6, 3)}, {"a.q": (4, 3), "a.k": (2, 3)})
    >>> [(part.name, part.starts, part.sizes) for part in made["a.qk"]]
    [('a.q', (0, 0), (4, 3)), ('a.k', (4, 0), (2, 3))]
    """
    if not isinstance(fused, Mapping):
        raise ArgumentError(
            f"fused: {type(fused).__name__}; a mapping from a pattern to a list of names is needed"
        )
    found: dict[str, tuple[Part, ...]] = {}
    for pattern, names in fused.items():
        _check(pattern, names)
        expression = re.compile("([^.]+)".join(map(re.escape, pattern.split("*"))))
        fits = {name: match for name in shapes if (match := expression.fullmatch(name))}
        if not fits:
            raise ArgumentError(
                f"fused: {pattern!r} fits no parameter; * stands for one part of a path"
            )
        for name, match in fits.items():
            if name in found:
                raise ArgumentError(f"fused: {name!r} fits {pattern!r} and a pattern before it")
            pieces = [_piece(piece, match.groups()) for piece in names]
            found[name] = _parts(name, shapes[name], pieces, logical)
    return found


def _check(pattern: object, names: object) -> None:
    listed = isinstance(names, (list, tuple)) and len(names) > 0
    if not (isinstance(pattern, str) and listed and all(map(_is_piece, cast("Any", names)))):
        raise ArgumentError(
            f"fused: {pattern!r}: {names!r}; a list of names, or (name, start, stop), is needed"
        )


def _is_piece(piece: object) -> bool:
    if not isinstance(piece, (list, tuple)):
        return isinstance(piece, str)
    whole = (isinstance(n, int) and not isinstance(n, bool) for n in piece[1:])
    return len(piece) == 3 and isinstance(piece[0], str) and all(whole)


def _piece(
    piece: str | tuple[str, int, int], groups: Sequence[str]
) -> tuple[str, tuple[int, int] | None]:
    name, rows = (piece, None) if isinstance(piece, str) else (piece[0], (piece[1], piece[2]))
    if name.count("*") > len(groups):
        raise ArgumentError(f"fused: {name!r} has more * than the pattern it is a part of")
    for group in groups[: name.count("*")]:
        name = name.replace("*", group, 1)
    return name, rows


def _parts(
    fused: str,
    shape: Shape,
    pieces: Sequence[tuple[str, tuple[int, int] | None]],
    logical: Mapping[str, Shape],
) -> tuple[Part, ...]:
    if not any("{}" in name for name, _ in pieces):
        return tuple(_along(fused, shape, pieces, logical))
    if not shape:
        raise RecipeError(f"recipe: {fused!r} is a single number, no stack of {pieces[0][0]!r}")
    found = []
    for index in range(shape[0]):
        numbered = [(name.replace("{}", str(index)), rows) for name, rows in pieces]
        for part in _along(fused, shape[1:], numbered, logical):
            starts, sizes = (index, *part.starts), (1, *part.sizes)
            found.append(Part(part.name, part.shape, starts, sizes, part.axis, part.first))
    return tuple(found)


def _along(
    fused: str,
    shape: Shape,
    pieces: Sequence[tuple[str, tuple[int, int] | None]],
    logical: Mapping[str, Shape],
) -> list[Part]:
    """The parts along the one dimension in which their sizes sum to that of the tensor."""
    missing = [name for name, _ in pieces if name not in logical]
    if missing:
        raise RecipeError(f"recipe: {missing[0]!r}, a part of {fused!r}, is not drawn by it")
    for axis in range(len(shape)):
        parts, at = [], 0
        for name, rows in pieces:
            whole = logical[name]
            if len(whole) != len(shape):
                break
            first, stop = rows or (0, whole[axis])
            if not 0 <= first < stop <= whole[axis]:
                break
            starts = tuple(at if d == axis else 0 for d in range(len(shape)))
            sizes = tuple(stop - first if d == axis else n for d, n in enumerate(whole))
            parts.append(Part(name, whole, starts, sizes, axis, first))
            at += stop - first
        others = all(p.sizes[d] == n for p in parts for d, n in enumerate(shape) if d != axis)
        if len(parts) == len(pieces) and others and at == shape[axis]:
            _require_once(fused, parts)
            return parts
    told = ", ".join(f"{name} {list(logical[name])}" for name, _ in pieces)
    raise RecipeError(f"recipe: {fused!r} of the shape {list(shape)} is not made of {told}")


def _require_once(fused: str, parts: Sequence[Part]) -> None:
    """Raise where some rows of a part stand in the tensor twice."""
    for one, other in itertools.combinations(parts, 2):
        first = max(one.first, other.first)
        stop = min(part.first + part.sizes[part.axis] for part in (one, other))
        if one.name == other.name and first < stop:
            raise RecipeError(f"recipe: {fused!r} has rows {first} to {stop} of {one.name!r} twice")
