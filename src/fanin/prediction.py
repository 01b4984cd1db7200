"""What theory says the signal does along depth, for the weights that a model really has.

The mean-field maps of wide layers (`fanin.moments`) are followed call by call: size and
correlation of two samples go through linear layers, convolutions, nonlinearities, layer norms and
sums.  Where a call is not understood (attention, pooling, a product of signals) the line ends; it
starts anew at the next layer whose signal was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fanin import moments
from fanin.architecture import Architecture
from fanin.calls import Call, Operand
from fanin.kinds import PASSIVE
from fanin.passes import Pass
from fanin.probe import Cell

__all__ = ["Prediction", "between_samples", "predictions"]

_MIXING = frozenset({"linear", "matmul", "mm", "conv1d", "conv2d", "conv3d"})
_CENTRING = frozenset({"layer_norm", "group_norm"})
_NORMS = _CENTRING | {"rms_norm"}
# One token of many is not like all of them.
_CHOOSING = {"select", "narrow", "__getitem__", "index_select", "gather", "take_along_dim"}
# In train mode dropout makes what it keeps larger, and its rate is not known here.
_KEEPING = PASSIVE - _CHOOSING - {name for name in PASSIVE if "dropout" in name}
_SUMS = frozenset({"add", "radd"})


@dataclass(frozen=True)
class Prediction:
    """What the maps say of a layer's pre-activation.

    Attributes:
        rms: root mean square.
        correlation: of two different samples, −1 to 1; None where that of the input is not known.
    """

    rms: float
    correlation: float | None


@dataclass(frozen=True)
class _Signal:
    """Mean over the units, second moment, and E[x x'] over two samples (None: not known)."""

    second: float
    product: float | None
    mean: float = 0.0

    @property
    def correlation(self) -> float | None:
        if self.product is None or self.second == 0:
            return None
        return min(1.0, max(-1.0, self.product / self.second))


def between_samples(variation: float | None, samples: int | None) -> float | None:
    """Mean correlation of two different samples (the cosine of their signals) from the variation.

    Args:
        variation: RMS deviation across samples over RMS.
        samples: their number.

    >>> between_samples(0.0, 8), between_samples(1.0, 2)
    (1.0, -1.0)
    """
    if variation is None or samples is None or samples < 2:
        return None
    shared = 1 - min(variation, 1.0) ** 2  # |mean over samples|² over the mean square
    return (samples * shared - 1) / (samples - 1)


def predictions(
    seen: Pass, sizes: Mapping[str, float], samples: int | None
) -> dict[str, Prediction]:
    """Layer name → what the maps predict there, from the last place where they could not.

    Args:
        seen: the measured pass.
        sizes: parameter → root mean square of its entries.
        samples: batch size.
    """
    architecture = seen.architecture
    names = {layer.calls[0]: layer.name for layer in architecture.layers if len(layer.calls) == 1}
    signals: dict[int, _Signal] = {}
    found: dict[str, Prediction] = {}
    for call in architecture.trace.calls[: architecture.trace.length]:
        if not call.varies:
            continue
        told = _through(call, signals, sizes, architecture)
        signal = told or _measured(seen.cells.get(call.index), samples)
        if signal is None or not math.isfinite(signal.second):
            continue
        signals[call.index] = signal
        if told is not None and call.index in names and signal.second >= 0:
            size = math.sqrt(signal.second)
            found[names[call.index]] = Prediction(size, signal.correlation)
    return found


def _measured(cell: Cell | None, samples: int | None) -> _Signal | None:
    if cell is None or cell.count == 0 or cell.nonfinite:
        return None
    second, mean = cell.squares / cell.count, cell.total / cell.count
    alike = between_samples(cell.variation, samples)
    return _Signal(second, None if alike is None else alike * second, mean)


def _through(
    call: Call,
    signals: Mapping[int, _Signal],
    sizes: Mapping[str, float],
    architecture: Architecture,
) -> _Signal | None:
    """The signal that a call makes of those it takes; None where that is not understood."""
    inputs = [signals[i] for i in call.sources if i in signals]
    if len(inputs) != len(call.sources):
        return None
    if len(inputs) == 2 and call.op in _SUMS and not call.operands:
        return _sum(*inputs) if call.sources[0] != call.sources[1] else None
    if len(inputs) != 1:
        return None
    (signal,) = inputs
    if call.op in _MIXING and call.units is not None:
        return _mixed(call, signal, sizes, architecture)
    if call.op in _NORMS:
        return _normed(call, signal, sizes)
    if call.operands:
        return None
    if call.op in _KEEPING:
        return signal
    if call.op == "scale" and call.option is not None:
        return _scaled(signal, call.option**2, 0.0)
    return _bent(call, signal)


def _sum(one: _Signal, two: _Signal) -> _Signal:
    """Of two signals that have nothing in common but their means."""
    shared = 2 * one.mean * two.mean
    product = None
    if one.product is not None and two.product is not None:
        product = one.product + two.product + shared
    return _Signal(one.second + two.second + shared, product, one.mean + two.mean)


def _scaled(signal: _Signal, square: float, shift: float) -> _Signal:
    """Times weights of this mean square, plus biases of that one."""
    product = None if signal.product is None else square * signal.product + shift
    return _Signal(square * signal.second + shift, product)


def _mixed(
    call: Call, signal: _Signal, sizes: Mapping[str, float], architecture: Architecture
) -> _Signal | None:
    operands = {operand.role: _size(operand, sizes) for operand in call.operands}
    weight, bias = operands.pop("weight", None), operands.pop("bias", 0.0)
    fan = call.mean_fan_in or call.fan_in
    if weight is None or bias is None or operands or not fan:
        return None
    return _scaled(signal, fan * weight**2 * _inside(call, architecture), bias**2)


def _inside(call: Call, architecture: Architecture) -> float:
    """Share of a convolution's taps that lie inside of its input, for a kernel centred on it."""
    source = call.sources[0]
    taps = call.layout.count("k")
    if not taps or source < 0:
        return 1.0
    before = architecture.trace.calls[source].shape[-taps:]
    kernel = call.operands[0].shape[-taps:]
    share = 1.0
    for n, out, k in zip(before, call.shape[-taps:], kernel, strict=False):
        if n < 1 or out < 1:
            return 1.0
        stride = max(1, round(n / out))
        padding = max(0, -(-((out - 1) * stride + k - n) // 2))
        starts = (place * stride - padding for place in range(out))
        inside = sum(min(s + k, n) - max(s, 0) for s in starts)
        share *= min(1.0, max(0.0, inside / (out * k)))
    return share


def _normed(call: Call, signal: _Signal, sizes: Mapping[str, float]) -> _Signal | None:
    operands = {operand.role: _size(operand, sizes) for operand in call.operands}
    scale, shift = operands.pop("weight", 1.0), operands.pop("bias", 0.0)
    centre = signal.mean**2 if call.op in _CENTRING else 0.0
    second = signal.second - centre
    if scale is None or shift is None or operands or second <= 0:
        return None
    product = None if signal.product is None else (signal.product - centre) / second
    mean = 0.0 if call.op in _CENTRING else signal.mean / math.sqrt(second)
    made = _scaled(_Signal(1.0, product), scale**2, shift**2)
    return _Signal(made.second, made.product, mean * scale)


def _bent(call: Call, signal: _Signal) -> _Signal | None:
    """Through a nonlinearity, as if the signal were Gaussian with this mean and variance."""
    variance = signal.second - signal.mean**2
    if call.curve is None or variance <= 0:
        return None
    with np.errstate(all="ignore"):
        made = moments.function(call.curve)(signal.mean + math.sqrt(variance) * _GRID)
    if not np.isfinite(made).all():  # beyond where the activation is finite
        return None
    second = float(made**2 @ _DENSITY)
    alike = None
    if signal.product is not None:
        alike = min(1.0, max(-1.0, (signal.product - signal.mean**2) / variance))
    parts = (_hermite() @ (made * _DENSITY)) ** 2
    rest = second - float(parts.sum())
    product = None if alike is None else float(parts @ alike**_DEGREES) + rest * alike**_TERMS
    return _Signal(second, product, float(made @ _DENSITY))


# E[φ(u) φ(v)] = Σ aₖ² cᵏ for a correlation c, with the Hermite coefficients aₖ of φ (Mehler's
# formula).  What lies behind the last term is treated as one more of them.  Against the quadrature
# of `fanin.moments` the correlation behind relu, gelu, tanh or hardtanh is off by at most 4e-4, in
# a hundredth of the time.
_TERMS = 40
_DEGREES = np.arange(_TERMS)
_GRID = np.linspace(-9.0, 9.0, 3601)  # 0, where most activations bend, is one of its points
_DENSITY = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()


@lru_cache(maxsize=1)
def _hermite() -> NDArray[np.float64]:
    """Hermite polynomials of unit second moment on the grid, [terms, points]."""
    rows = [np.ones_like(_GRID), _GRID]
    for k in range(1, _TERMS - 1):
        rows.append((_GRID * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return np.stack(rows)


def _size(operand: Operand, sizes: Mapping[str, float]) -> float | None:
    """Root mean square of an operand that is a parameter as it stands."""
    if operand.offset != 0.0 or len(operand.parameters) != 1:
        return None
    return sizes.get(operand.parameters[0])
