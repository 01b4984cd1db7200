"""What one pass says of each weighted layer: figures, and which of its units are alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fanin.architecture import Layer
from fanin.passes import Pass
from fanin.probe import Cell
from fanin.sketch import joint, labels

__all__ = [
    "TOLERANCES",
    "Depth",
    "LayerStats",
    "fingerprints",
    "layer_stats",
    "tolerance_of",
    "unit_labels",
]


@dataclass(frozen=True)
class LayerStats:
    """One weighted layer, in order of execution, and what was measured at its output.

    The output of a weighted layer is its *pre-activation*; the *cotangent* is the gradient of the
    loss with respect to it.

    Attributes:
        name: module or parameter path, as ``named_modules``/``named_parameters`` gives it.
        op: what it does: "linear", "conv2d", "matmul", "embedding", "lstm", "layer_norm", …
        parameters: every parameter path the layer uses.
        calls: how many times it ran in one forward pass.
        fan_in: inputs summed into one output value.
        fan_out: outputs that one input value reaches.
        units: output channels; None for elementwise parameters.
        distinct_units: units that can be told apart by pre-activation or cotangent.
        activation: what follows it, or None.
        rms: root mean square of the pre-activation.
        mean: mean of the pre-activation.
        max_abs: largest magnitude of the pre-activation.
        variation: RMS deviation across samples over rms; 0 means all samples look the same.
        token_variation: the same across positions within a sample.
        correlation: of two different samples: mean cosine of their pre-activations, −1 to 1.
        predicted_rms: what the mean-field maps say of rms, for these weights and from the last
            layer before it of which they say nothing; None for a layer that starts such a line.
        predicted_correlation: the same of the correlation.
        cotangent_rms: RMS of the gradient of the loss at the pre-activation.
        gradient_rms: RMS of the gradient of the loss with respect to the weight.
        dead: share of units whose activation has slope zero on the whole batch.
        saturated: share of (unit, sample) pairs in the flat part of the activation.
        nonfinite: values of the pre-activation that are NaN or infinite.
        trainable: whether any of its parameters requires a gradient.
        branch: index of the residual branch it stands in, among the report's; None outside.
    """

    name: str
    op: str
    parameters: tuple[str, ...]
    calls: int = 1
    fan_in: int | None = None
    fan_out: int | None = None
    units: int | None = None
    distinct_units: int | None = None
    activation: str | None = None
    rms: float | None = None
    mean: float | None = None
    max_abs: float | None = None
    variation: float | None = None
    token_variation: float | None = None
    correlation: float | None = None
    predicted_rms: float | None = None
    predicted_correlation: float | None = None
    cotangent_rms: float | None = None
    gradient_rms: float | None = None
    dead: float | None = None
    saturated: float | None = None
    nonfinite: int = 0
    trainable: bool = True
    branch: int | None = None


@dataclass(frozen=True)
class Depth:
    """How signal and cotangent change along depth.

    Attributes:
        signal_growth: geometric mean factor of the signal's rms per layer; 1 is preserved.
        cotangent_growth: the same for the cotangent, from the output towards the input.
        signal_turn: layer where the longest sustained decay or growth begins; None when flat.
        cotangent_turn: the same for the cotangent.
    """

    signal_growth: float | None = None
    cotangent_growth: float | None = None
    signal_turn: str | None = None
    cotangent_turn: str | None = None


# Products of equal rows differ by rounding alone: about 1e-6 of the layer's scale in float32, one
# unit in the last place of a few entries in the short formats.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}


def tolerance_of(layer: Layer, cells: Mapping[int, Cell]) -> float:
    """Relative difference below which two units of a layer may be the same."""
    kinds = [cells[i].dtype for i in layer.calls if i in cells]
    return max((TOLERANCES.get(k, 1e-5) for k in kinds), default=1e-5)


def fingerprints(
    layer: Layer, cells: Mapping[int, Cell]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Forward and cotangent fingerprints of a layer's units over all its calls."""
    parts = [cells[i] for i in layer.calls if i in cells]
    forward = [c.forward for c in parts if c.forward is not None]
    cotangent = [c.cotangent for c in parts if c.cotangent is not None]
    same = all(f.shape == forward[0].shape for f in forward)
    return (
        np.sum(forward, axis=0) if forward and same else None,
        np.sum(cotangent, axis=0) if cotangent and same else None,
    )


def unit_labels(layer: Layer, cells: Mapping[int, Cell], tolerance: float) -> np.ndarray | None:
    """Class of each unit: same class when pre-activations and cotangents agree."""
    forward, cotangent = fingerprints(layer, cells)
    if forward is None:
        return None
    first = labels(forward, tolerance)
    apart = first.max(initial=-1) + 1 == len(first)
    if apart or cotangent is None or cotangent.shape != forward.shape:
        return first
    return joint(first, labels(cotangent, tolerance))


def layer_stats(layer: Layer, seen: Pass, distinct: int | None) -> LayerStats:
    """Everything measured about one layer, over all its calls."""
    cells = seen.cells_of(layer)
    count = sum(c.count for c in cells)
    squares = [c.cotangent_squares for c in cells if c.cotangent_squares is not None]
    gradients = [g for n in layer.weight if (g := seen.gradients.get(n)) is not None]
    return LayerStats(
        name=layer.name,
        op=layer.op,
        parameters=layer.parameters,
        calls=len(layer.calls),
        fan_in=layer.fan_in,
        fan_out=layer.fan_out,
        units=layer.units,
        distinct_units=distinct,
        activation=layer.activation,
        rms=(sum(c.squares for c in cells) / count) ** 0.5 if count else None,
        mean=sum(c.total for c in cells) / count if count else None,
        max_abs=max((c.max_abs for c in cells), default=None),
        variation=_most(c.variation for c in cells),
        token_variation=_most(c.token_variation for c in cells),
        cotangent_rms=(sum(squares) / count) ** 0.5 if squares and count else None,
        gradient_rms=max(gradients, default=None),
        dead=_least(c.dead for c in cells),
        saturated=_least(c.saturated for c in cells),
        nonfinite=sum(c.nonfinite for c in cells),
        trainable=layer.trainable,
    )


def _most(values: Any) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _least(values: Any) -> float | None:
    return min((v for v in values if v is not None), default=None)
