"""What the dimensions of a parameter are, where a call is given a part of it, or it reshaped."""

from __future__ import annotations

import math

from fanin.axes import letters
from fanin.calls import Call, Operand

__all__ = ["layout_of", "outputs_given"]


def layout_of(shape: tuple[int, ...], whole: bool, call: Call, operand: Operand) -> str:
    """What each dimension of a parameter is, in the letters of `Call.layout`.

    Args:
        shape: of the parameter.
        whole: whether the weight is the parameter, and not computed from it and others.
        call: that uses it.
        operand: that it is there.
    """
    if whole and operand.axes is not None and _given_as(call, operand):
        return letters(_given_as(call, operand), operand.axes, shape)
    layout = call.layout if operand is call.operands[0] else "oi"
    turned = operand.shape[:-2] + operand.shape[:-3:-1]
    if operand.turned or (shape != operand.shape and shape == turned):
        layout = layout[:-2] + layout[:-3:-1]
    return layout


def outputs_given(call: Call, operand: Operand, at: int) -> int:
    """How many outputs of dimension `at` of a parameter a call is given at once."""
    axes = zip(_given_as(call, operand), operand.shape, operand.axes or (), strict=False)
    return math.prod(size for letter, size, held in axes if letter == "o" and at in held)


def _given_as(call: Call, operand: Operand) -> str:
    """What the dimensions of an operand are; "" where it is not known which those are."""
    layout = call.layout if operand is call.operands[0] else "oi"
    return layout if operand.axes is not None and len(operand.axes) == len(layout) else ""
