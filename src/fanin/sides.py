"""Sides: the layers that one tensor of the batch goes through alone, before it meets the others.

The image and the text encoder of a contrastive model, or the generator in front of a discriminator
that is given real samples as well.  No path from one of several tensors is a path of all, so that
the trunk has no layer of a side; yet what is learned from its tensor has to pass it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanin.architecture import Architecture, Layer

__all__ = ["Side", "sides"]

# Of all trained entries.  Encoders of two inputs have 0.3 and more each; what embeds a time or a
# class beside a network has a few hundredths, and without it most of the network still learns.
_SHARE = 0.25


@dataclass(frozen=True)
class Side:
    """What one tensor of the batch goes through alone.

    Attributes:
        layers: in order of execution.
        entries: the calls that take the tensor.
        passed: the calls that every path from it to the output (or the loss) passes, in order.
    """

    layers: tuple[Layer, ...]
    entries: frozenset[int]
    passed: tuple[int, ...]


def sides(architecture: Architecture) -> tuple[Side, ...]:
    """The sides with at least a quarter of all trained entries; none where one tensor is given."""
    entries: dict[int, set[int]] = {}
    for call in architecture.trace.calls:
        for number in call.given if call.entry else ():
            entries.setdefault(number, set()).add(call.index)
    if len(entries) < 2:
        return ()
    reach = {number: architecture.descendants(starts) for number, starts in entries.items()}
    sizes = {p.name: math.prod(p.shape) for p in architecture.parameters if p.trainable}
    found = []
    for number, starts in entries.items():
        alone = reach[number].difference(*(reach[other] for other in reach if other != number))
        layers = tuple(y for y in architecture.layers if alone.issuperset(y.calls))
        names = {name for layer in layers for name in layer.parameters}
        if sum(sizes.get(n, 0) for n in names) >= _SHARE * sum(sizes.values()):
            found.append(Side(layers, frozenset(starts), architecture.shared(starts)))
    return tuple(side for side in found if side.layers)
