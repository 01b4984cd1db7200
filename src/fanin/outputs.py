"""Which calls make the model's output, with no layer behind them that reads what they make."""

from __future__ import annotations

from functools import cached_property

from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.kinds import RECURRENT

__all__ = ["Outputs"]


class Outputs:
    """What makes the output of a model: alone, or mixed with others.

    Layers that only say by which shares values are mixed (the scores of a graph attention) are not
    behind the layer that makes these values.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._heads = {i for layer in architecture.heads for i in layer.calls}

    def made_by(self, call: Call, apart: bool) -> bool:
        """Whether a call makes the output.

        Args:
            call: of a layer.
            apart: whether it stands in no residual branch, and makes no queries, keys or values.
        """
        if call.index in self._heads:
            return True
        matrix = call.units is not None and "i" in call.layout and call.op not in RECURRENT
        if not (matrix and apart):
            return False
        return call.index not in self._architecture.inner or self._makes_values(call)

    def _makes_values(self, call: Call) -> bool:
        """Whether the layers behind a call do nothing but score what it makes."""
        read, stops = self._architecture, self._layers | self._shares
        if not self._shares or not read.open_way({call.index}, stops, onward=True):
            return False
        behind = read.descendants([call.index]).intersection(self._layers) - {call.index}
        return all(self._scores(i) for i in behind)

    def _scores(self, index: int) -> bool:
        """Whether all that a layer makes goes through a softmax."""
        return not self._architecture.open_way({index}, self._shares, onward=True)

    @cached_property
    def _layers(self) -> set[int]:
        return {c.index for c in self._architecture.trace.calls if c.units is not None}

    @cached_property
    def _shares(self) -> set[int]:
        return {c.index for c in self._architecture.trace.calls if c.op == "softmax"}
