"""What is decided for a parameter, and for a whole model: plain values, without tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KEPT", "OF_TENSOR", "REGION", "REPAIR", "Assignment", "Recipe", "matrix_sizes"]

#: Stands in the place of a scheme where the values stay what they are, times the gain.
KEPT = "kept"

#: The scheme of a plan that repairs: most values stay what they are.
REPAIR = "repair"

#: Arguments that name the part of a tensor that is drawn; the rest stays as it is.
REGION = ("outputs", "inputs", "matrices", "entries")

#: Arguments that say something of the tensor; every scheme can have them.
OF_TENSOR = ("groups", "padding", "rows", *REGION, "kept", "split", "along")


@dataclass(frozen=True)
class Assignment:
    """How one parameter starts, and why.

    Attributes:
        parameter: canonical path, as ``named_parameters`` gives it.
        scheme: name of a scheme of the catalogue that fills one tensor; "kept" where the values
            stay, times the gain.
        gain: what the scheme's standard deviation is multiplied with (for `normal`, `uniform` and
            `constant`: the value itself).
        std: of one weight (root mean square where it is not random).
        fan: the fan the scheme divides by; None where it uses none.
        because: the reason, one sentence.
        shape: of the parameter.
        layout: what each dimension is: o output, i input, k kernel tap, b independent matrices,
            v row of a table.
        blocks: equal parts along the outputs that are matrices of their own (q, k, v; gates).
        arguments: further arguments of the scheme; and of the tensor: `groups` of a grouped
            transposed convolution (along its inputs), `padding` (a row that is zero),
            `rows` (a factor for each output, measured on a batch).  Where a part of the tensor is
            drawn: the indices `outputs`, `inputs`, `matrices` (along b) or `entries` (flat), and
            `kept`, a factor for the rest.  `split` names groups of indices `along` a dimension
            (i, o or b): what is drawn sums to zero over each group, and is added.
    """

    parameter: str
    scheme: str
    gain: float
    std: float
    fan: float | None
    because: str
    shape: tuple[int, ...] = ()
    layout: str = ""
    blocks: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that the scheme itself takes."""
        return {k: v for k, v in self.arguments.items() if k not in OF_TENSOR}

    @property
    def partial(self) -> bool:
        """Whether only a part is drawn, or what is drawn is added (`split`)."""
        return any(self.arguments.get(name) is not None for name in (*REGION, "split"))

    @property
    def keeps_values(self) -> bool:
        """Whether the values that the parameter had before count: scaled, or beside a part.

        >>> part = Assignment("w", "normal", 1.0, 1.0, None, "", (4, 2), "oi", 1, {"outputs": (1,)})
        >>> part.partial, part.keeps_values
        (True, True)
        >>> scaled = Assignment("w", KEPT, 0.5, 0.1, None, "too large", (4, 2), "oi")
        >>> scaled.partial, scaled.keeps_values
        (False, True)
        """
        return self.scheme == KEPT or self.partial


@dataclass(frozen=True)
class Recipe:
    """The content of a plan: every assignment in the model's order, and what is left alone.

    Attributes:
        assignments: one for each parameter that is drawn.
        untouched: parameter → why it keeps its values.
        scheme: what was asked for: a scheme of the catalogue, "auto" or "repair".
    """

    assignments: tuple[Assignment, ...]
    untouched: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "auto"


def matrix_sizes(
    shape: Sequence[int], layout: str, blocks: int = 1, groups: int = 1
) -> tuple[int, ...] | None:
    """(inputs, outputs, *kernel) of one matrix of a parameter; None where no layout tells them.

    >>> matrix_sizes((96, 32), "oi", blocks=3), matrix_sizes((8, 4, 3, 3), "iokk", groups=2)
    ((32, 32), (4, 4, 3, 3))
    """
    if len(layout) != len(shape) or not {"o", "i"} & set(layout):
        return None
    sides = list(zip(layout, shape, strict=True))
    inputs = math.prod(size for letter, size in sides if letter in "iv")
    outputs = math.prod(size for letter, size in sides if letter == "o")
    kernel = (size for letter, size in sides if letter == "k")
    return inputs // groups, outputs // blocks, *kernel
