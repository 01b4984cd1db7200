"""Where the values of a parameter stand: one tensor of a checkpoint, or parts of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fanin.assignment import Recipe
from fanin.errors import ArgumentError, FaninError, RecipeError
from fanin.fused import Fused, Part, parts_of
from fanin.verifying.stored import Checkpoint, Stored
from fanin.window import Window

__all__ = ["Box", "Source", "fused_sources"]

Shape = tuple[int, ...]

# Elements compared at once: 4 MiB in float32, which stay in the processor's cache.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Box:
    """A box of a stored tensor that is a box of a parameter.

    Attributes:
        stored: the tensor.
        sizes: of the box.
        there: first index of the box in the tensor, for each of its dimensions.
        here: first index of the box in the parameter.  A stack has a dimension more, in front.
    """

    stored: Stored
    sizes: Shape
    there: Shape
    here: Shape


@dataclass(frozen=True)
class Source:
    """Where the values of a parameter stand.

    Attributes:
        key: the tensor in the checkpoint; the first of them where there are several.
        shape: of the parameter as it was found.
        boxes: what makes it up.
    """

    key: str
    shape: Shape
    boxes: tuple[Box, ...]

    @classmethod
    def of(cls, key: str, stored: Stored) -> Source:
        """A tensor that is the parameter."""
        none = (0,) * len(stored.shape)
        return cls(key, stored.shape, (Box(stored, stored.shape, none, none),))

    @property
    def kind(self) -> str:
        """The name of its dtype; of several, of the first that cannot be drawn."""
        kinds = dict.fromkeys(box.stored.kind for box in self.boxes)
        return " and ".join(kinds)

    @property
    def dtype(self) -> torch.dtype | None:
        """None where it is none that can be drawn, or not one."""
        dtypes = {box.stored.dtype for box in self.boxes}
        return dtypes.pop() if len(dtypes) == 1 else None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def held(self) -> int:
        """Number of elements that the checkpoint holds: fewer where only some rows are joined."""
        return sum(math.prod(box.sizes) for box in self.boxes)

    def whole(self) -> Tensor:
        """All values.

        Raises:
            ArgumentError: a file cannot be read.
        """
        values = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        for window, piece in self.pieces():
            values[window.slices] = piece
        return values

    def pieces(self) -> Iterator[tuple[Window, Tensor]]:
        """The values piece by piece, each with the part of the parameter that it is.

        Raises:
            ArgumentError: a file cannot be read.
        """
        for box in self.boxes:
            for piece in Window.pieces(box.sizes, _PIECE):
                here = _placed(piece, self.shape, box.here)
                there = _placed(piece, box.stored.shape, box.there)
                yield here, box.stored.read(there).view(here.sizes)


def _placed(piece: Window, shape: Shape, starts: Shape) -> Window:
    """A part of a box as a part of the tensor that has the box."""
    stack = len(shape) - len(piece.shape)
    runs = [((at, at + 1),) for at in starts[:stack]]
    moved = (
        tuple((a + at, b + at) for a, b in dim)
        for dim, at in zip(piece.runs, starts[stack:], strict=True)
    )
    return Window(shape, (*runs, *moved))


def fused_sources(fused: Fused, held: Checkpoint, recipe: Recipe) -> dict[str, Source]:
    """The sources of parameters that stand in the checkpoint joined, or cut.

    Args:
        fused: as `Plan.apply_` takes it: pattern of a tensor → what it is made of.  The tensor may
            be the checkpoint's and its parts the recipe's, or the other way round.
        held: the checkpoint.
        recipe: which names its parameters.

    Raises:
        ArgumentError: a pattern fits nothing, or its parts are not there or do not make it up.
    """
    if not isinstance(fused, Mapping):
        raise ArgumentError(f"fused: {fused!r}; a mapping of names to lists of names is needed")
    stored = {name: tensor.shape for name, tensor in held.tensors.items()}
    drawn = {a.parameter: tuple(a.shape) for a in recipe.assignments}
    found: dict[str, Source] = {}
    for pattern, names in fused.items():
        one, whose = {pattern: names}, "the recipe"
        try:
            joined = _parts(one, stored, drawn)
            if joined:
                found |= _joined(joined, held)
                continue
            whose = "the checkpoint"
            cut = parts_of(one, drawn, stored)
        except RecipeError as error:
            told = f"its parts are not those of {whose} ({error})"
            raise ArgumentError(f"fused: {pattern!r}: {told}") from error
        found |= {name: _cut(drawn[name], parts, held) for name, parts in cut.items()}
    return found


def _parts(
    fused: Fused, shapes: Mapping[str, Shape], logical: Mapping[str, Shape]
) -> dict[str, tuple[Part, ...]]:
    """As `parts_of`; {} where the pattern fits nothing."""
    try:
        return parts_of(fused, shapes, logical)
    except RecipeError:
        raise
    except FaninError:
        return {}


def _joined(parts: Mapping[str, Sequence[Part]], held: Checkpoint) -> dict[str, Source]:
    """Parameters that stand in one tensor."""
    shapes: dict[str, Shape] = {}
    keys: dict[str, str] = {}
    boxes: dict[str, list[Box]] = {}
    for key, some in parts.items():
        for part in some:
            sizes = part.sizes[len(part.sizes) - len(part.shape) :]
            box = Box(held.tensors[key], sizes, part.starts, _first(part))
            boxes.setdefault(part.name, []).append(box)
            shapes[part.name] = part.shape
            keys.setdefault(part.name, key)
    return {name: Source(keys[name], shapes[name], tuple(s)) for name, s in boxes.items()}


def _cut(shape: Shape, parts: Sequence[Part], held: Checkpoint) -> Source:
    """A parameter that stands in several tensors."""
    boxes = []
    for part in parts:
        sizes = part.sizes[len(part.sizes) - len(part.shape) :]
        boxes.append(Box(held.tensors[part.name], sizes, _first(part), part.starts))
    return Source(parts[0].name, shape, tuple(boxes))


def _first(part: Part) -> Shape:
    """First index of the part in its logical parameter."""
    return tuple(part.first if dim == part.axis else 0 for dim in range(len(part.shape)))
