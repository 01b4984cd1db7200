"""One forward pass as plain values: the calls that happened, linked to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fanin.axes import Axes
from fanin.kinds import PARTIAL
from fanin.operations import Weighted

__all__ = ["BATCH", "INTEGERS", "Call", "Observer", "Operand", "Trace"]

BATCH = -1  # the batch's signals (`nested.signals_in`), among the producers of a call
INTEGERS = -2  # its other tensors: tokens, but also masks and labels
_ENTRIES = frozenset({"embedding", "embedding_bag", "one_hot"})  # where integers become a signal


@dataclass(frozen=True)
class Operand:
    """A parameter-derived operand of a call: its role there and the parameters it comes from.

    Attributes:
        role: "weight", "bias", "recurrent", ….
        parameters: those it is, or is computed from.
        shape: of the operand.
        offset: what was added to the parameter (1 in a norm that multiplies with 1 + weight);
            None where it is computed from its parameters in any other way.
        axes: which dimensions of the parameter each of its dimensions holds, where that is known.
        factor: size of the constants that the parameter is multiplied with; None where it is not,
            or not with constants alone.
        kept: share of its inputs that an output keeps, where one of those is a mask.
    """

    role: str
    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    offset: float | None = 0.0
    axes: Axes | None = None
    factor: float | None = None
    kept: float = 1.0

    @property
    def turned(self) -> bool:
        """Whether it is the transpose of the parameter."""
        return self.axes == ((1,), (0,))


@dataclass(frozen=True)
class Call:
    """One torch call that took part in the forward pass.

    Attributes:
        index: place in the order of execution.
        op: canonical name of the operation.
        module: path of the innermost module that was running.
        inputs: indices of the calls that made its signal operands; -1 is the batch's floating
            tensors, -2 its integers (tokens, but also masks and labels).
        shape: of its (first) output.
        operands: what it takes from parameters; empty for a call without weights.
        learned: inputs of a layer that are parameters, or computed from them: queries, a first
            state.
        units: output channels of a weighted call.
        fan_in: inputs summed into one output value.
        fan_out: outputs that one input value reaches.
        varies: whether the output depends on the batch.
        inside: the composite function it was seen in, such as "multi_head_attention_forward".
        sources: like `inputs`, but in the order of the arguments, each as often as it is given.
        layout: what the dimensions of its main weight are (`operations.Weighted.layout`).
        blocks: equal parts of the weight that are matrices of their own.
        mean_fan_in: `fan_in` before rounding, where outputs differ in it.
        padding: row of a table that stands for padding.
        option: the number that a signal is multiplied with, divided by or raised to.
        curve: a nonlinearity as `fanin.moments` takes it, with its arguments.
        given: numbers of the batch's tensors (`nested.tensors_in`) among what it is given.
        terms: what it is given, in order, where that is signals and numbers alone: an int is the
            index of the call that made a signal, a float a number.  Of what keeps values, or is a
            `curve`, the signal; empty where anything else is given.
    """

    index: int
    op: str
    module: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    operands: tuple[Operand, ...] = ()
    learned: tuple[Operand, ...] = ()
    units: int | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    varies: bool = True
    inside: str | None = None
    sources: tuple[int, ...] = ()
    layout: str = ""
    blocks: int = 1
    mean_fan_in: float | None = None
    padding: int | None = None
    option: float | None = None
    curve: str | None = None
    terms: tuple[int | float, ...] = ()
    given: tuple[int, ...] = ()

    @cached_property
    def behind(self) -> tuple[int, ...]:
        """The calls among `inputs`."""
        return tuple(i for i in self.inputs if i >= 0)

    @property
    def entry(self) -> bool:
        """Whether the samples enter here: a floating input, or tokens that are looked up."""
        return BATCH in self.inputs or (self.op in _ENTRIES and self.varies)

    @property
    def partial(self) -> bool:
        """Whether it is a function that is not defined for every number."""
        fraction = self.option is not None and not (self.option >= 0 and self.option.is_integer())
        return self.op in PARTIAL or (self.op == "pow" and fraction)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter path the call uses, the main weight's first."""
        return tuple(dict.fromkeys(p for operand in self.operands for p in operand.parameters))


@dataclass(frozen=True)
class Trace:
    """The calls of one forward pass, in order.

    Attributes:
        calls: in order of execution.
        outputs: indices of the calls that made the model's output.
        length: calls of the model itself; those behind belong to the loss.
        loss: index of the call that made the loss, None when it was not watched.
    """

    calls: tuple[Call, ...]
    outputs: tuple[int, ...]
    length: int
    loss: int | None = None


class Observer:
    """Takes its measurements while the pass runs, so that nothing has to be kept.

    It is told what happens; this one measures nothing, and others what they define.
    """

    def weighted(self, call: Call, weighted: Weighted, output: Tensor) -> None:
        """A call that uses parameters has run."""

    def activation(self, call: Call, inputs: Tensor, output: Tensor) -> None:
        """An elementwise nonlinearity has run."""

    def attended(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Fused attention has run on these arguments."""

    def step(self, call: Call, inputs: Tensor) -> None:
        """A call of one signal, which may be a step of an activation written out, has run."""

    def produced(self, call: Call, output: Tensor) -> None:
        """Any call on a signal has run."""

    def criterion(
        self, index: int, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """A known loss is about to run; its call will have this index."""
