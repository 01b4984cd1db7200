"""Which matrices a tensor is made of.

A layout has one letter for each dimension: o output, i input, k kernel tap, b independent matrix,
v row of a table.  `Linear` is "oi", `Conv2d` "oikk", `ConvTranspose2d` "iokk", ``x @ W`` "io", a
stack of experts "boi", an embedding "vo" (each of its rows is one input).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from fanin.catalogue.scheme import is_number
from fanin.errors import ArgumentError

__all__ = ["Matrices", "read_layout"]

_LETTERS = "boivk"


@dataclass(frozen=True)
class Matrices:
    """A tensor seen as `count` matrices [outputs, inputs, *kernel].

    Attributes:
        layout: a letter for each dimension of the split tensor.
        split: sizes of the dimensions, with blocks and groups as dimensions of their own.
    """

    layout: str
    split: tuple[int, ...]

    def sizes(self, letters: str) -> tuple[int, ...]:
        """Sizes of the dimensions with one of these letters."""
        return tuple(n for n, c in zip(self.split, self.layout, strict=True) if c in letters)

    @property
    def count(self) -> int:
        """Number of independent matrices."""
        return math.prod(self.sizes("b"))

    @property
    def outputs(self) -> int:
        """Outputs of one matrix."""
        return math.prod(self.sizes("o"))

    @property
    def inputs(self) -> int:
        """Inputs of one matrix, kernel taps not counted."""
        return math.prod(self.sizes("iv"))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel."""
        return self.sizes("k")

    @property
    def is_matrix(self) -> bool:
        """Whether there are both outputs and inputs."""
        return "o" in self.layout and bool(self.sizes("iv"))

    @property
    def fans(self) -> tuple[float, float] | None:
        """(fan_in, fan_out), where the layout says them.

        A transposed convolution (inputs before outputs) does not: its stride counts too.
        """
        strided = "k" in self.layout and self.layout.find("i") < self.layout.find("o")
        if not self.is_matrix or strided or 0 in self.split:
            return None
        taps = math.prod(self.kernel)
        inputs = math.prod(self.sizes("i"))  # of a table, one row is picked
        return float(inputs * taps), float(self.outputs * taps)

    def cut(self, tensor: Tensor) -> Tensor:
        """A view of the tensor with blocks and groups as dimensions of their own."""
        return tensor.view(self.split)

    def views(self, tensor: Tensor) -> Iterator[Tensor]:
        """A view [*outputs, *inputs, *kernel] of each matrix, in order."""
        letters = self.layout.replace("v", "i")
        order = sorted(range(len(letters)), key=lambda d: "boik".index(letters[d]))
        ordered = self.cut(tensor).permute(order)
        for index in product(*map(range, self.sizes("b"))):
            yield ordered[index]


def read_layout(shape: Sequence[int], layout: Any, blocks: int = 1, groups: int = 1) -> Matrices:
    """The matrices of a tensor of this shape.

    Args:
        shape: of the tensor.
        layout: a letter for each dimension.
        blocks: equal parts along the outputs, each a matrix of its own (q, k, v; gates).
        groups: of a convolution: equal parts along the first dimension, transposed or not.

    Raises:
        ArgumentError: the layout does not fit the shape, or the parts are not equal.

    >>> packed = read_layout((96, 32), "oi", blocks=3)
    >>> packed.count, packed.outputs, packed.inputs
    (3, 32, 32)
    """
    size = "×".join(map(str, shape)) or "()"
    if not isinstance(layout, str) or set(layout) - set(_LETTERS):
        raise ArgumentError(
            f"layout: {layout!r}; a letter for each dimension is needed: o output, i input, k tap, "
            "b independent matrix, v row of a table"
        )
    if len(layout) != len(shape):
        raise ArgumentError(f"layout: {layout!r} has {len(layout)} letters; the shape is {size}")
    for name, value in (("blocks", blocks), ("groups", groups)):
        if not is_number(value) or value < 1 or value != int(value):
            raise ArgumentError(f"{name}: {value!r}; a positive integer is needed")
    letters, pending = "", int(blocks)
    split: list[int] = []
    for dim, (letter, length) in enumerate(zip(layout, shape, strict=True)):
        number = int(groups) if dim == 0 else 1
        if letter == "o" and pending > 1:
            number, pending = number * pending, 1
        if length % number:
            raise ArgumentError(
                f"{'groups' if dim == 0 and length % groups else 'blocks'}: dimension {dim} of "
                f"{size} cannot be cut into {number} equal parts"
            )
        letters += f"b{letter}" if number > 1 else letter
        split += [number, length // number] if number > 1 else [length]
    if pending > 1:
        raise ArgumentError(f"blocks: {blocks}; layout {layout!r} has no outputs to cut")
    return Matrices(letters, tuple(split))
