"""The biases that have a pattern, in float64 at gain 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanin import draw
from fanin.catalogue.biases import focal_value, log_priors
from fanin.errors import ArgumentError

__all__ = ["VECTORS"]

Array = NDArray[np.float64]
Arguments = Mapping[str, Any]
Shape = tuple[int, ...]


def _hidden(scheme: str, shape: Shape) -> int:
    """Units of an LSTM whose bias has this shape."""
    if len(shape) != 1 or shape[0] % 4:
        raise ArgumentError(
            f"tensor: {scheme} fills an LSTM bias [4·hidden], not the shape {list(shape)}"
        )
    return shape[0] // 4


def _forget_gate(shape: Shape, given: Arguments, _: draw.Key) -> Array:
    values = np.zeros((4, _hidden("forget_gate_bias", shape)))
    values[1] = given["value"]
    return values.reshape(-1)


def _chrono(shape: Shape, given: Arguments, key: draw.Key) -> Array:
    hidden = _hidden("chrono_bias", shape)
    # the middle of one of 2³² equal parts of (0, 1): never 0 or 1
    share = (draw.words(key, 0, hidden) + 0.5) * 2.0**-32
    forget = np.log1p(share * (given["t_max"] - 2.0))  # U(1, t_max − 1) = 1 + u·(t_max − 2)
    return np.concatenate([-forget, forget, np.zeros(2 * hidden)])


def _prior(shape: Shape, given: Arguments, _: draw.Key) -> Array:
    priors = given["priors"]
    if shape != (len(priors),):
        raise ArgumentError(
            f"priors: {len(priors)} given, for a tensor of the shape {list(shape)}; one for each "
            "entry of a vector is needed"
        )
    return np.array(log_priors(priors))


def _focal(shape: Shape, given: Arguments, _: draw.Key) -> Array:
    return np.full(shape, focal_value(given["prior"]))


def _mirrored(shape: Shape, _: Arguments, key: draw.Key) -> Array:
    if len(shape) != 1:
        raise ArgumentError(
            f"tensor: mirrored_bias fills a vector of biases, not the shape {list(shape)}"
        )
    half = draw.normal(key, shape[0] // 2).astype(np.float64)
    return np.concatenate([half, -half, np.zeros(shape[0] % 2)])


VECTORS: Mapping[str, Callable[[Shape, Arguments, draw.Key], Array]] = {
    "forget_gate_bias": _forget_gate,
    "chrono_bias": _chrono,
    "mirrored_bias": _mirrored,
    "prior_bias": _prior,
    "focal_bias": _focal,
}
