"""The symmetry lab: one page on which the article's network trains, start beside start.

The page trains the network itself, from weights and data that are embedded in it; :func:`run` is
the same computation in Python, and a test compares the two.
"""

from __future__ import annotations

from fanin.lab.making import page, write
from fanin.lab.running import (
    ACTIVATIONS,
    CHANGES,
    STARTS,
    LayerState,
    State,
    model,
    run,
    weights,
)

__all__ = [
    "ACTIVATIONS",
    "CHANGES",
    "STARTS",
    "LayerState",
    "State",
    "model",
    "page",
    "run",
    "weights",
    "write",
]
