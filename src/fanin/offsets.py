"""Last layers whose biases hold them where their activation is flat: a prior, or a mistake?"""

from __future__ import annotations

import contextlib

import torch

from fanin.apply import copied
from fanin.architecture import Layer
from fanin.errors import FaninError
from fanin.findings.signals import PRIOR, SATURATING
from fanin.kinds import RECURRENT
from fanin.passes import Pass, Subject, run_pass
from fanin.probe import Recorder

__all__ = ["misplaced"]

# Gradient that arrives at such a layer, over that without its biases.  A prior of a rare class (the
# sigmoid of −4.6) under cross-entropy keeps 0.6 of it with one positive in ten, and all of it with
# positives alone; under a squared error 0.04 to 0.08, and Adam has learned as much after 300 steps
# as without.  A sigmoid of −6 keeps 0.01 to 0.02 there, and ends at 0.020 for 0.0017; a tanh of ±5
# keeps 2e-4.
FAINTER = 0.03


def misplaced(subject: Subject, seen: Pass) -> frozenset[str]:
    """Last layers that start farther from the targets than without biases, and hardly learn there.

    A prior, as the bias of a rare class is, brings the loss down.

    Args:
        subject: what is checked.
        seen: its first pass; another is made only where such a layer sits in the flat part.
    """
    suspects, inner = {}, seen.architecture.inner
    for layer in seen.architecture.layers if seen.named_loss else ():
        if layer.op in RECURRENT or not inner.isdisjoint(layer.calls):
            continue
        cells = seen.cells_of(layer)
        flat = [c.saturated for c in cells if c.saturated is not None]
        if flat and min(flat) >= SATURATING and all((c.variation or 0.0) < PRIOR for c in cells):
            suspects[layer.name] = layer
    biases = [n for layer in suspects.values() for n in layer.parameters[len(layer.weight) :]]
    if not biases:
        return frozenset()
    with contextlib.suppress(FaninError), copied(subject.model, biases):
        with torch.no_grad():
            for name, parameter in subject.model.named_parameters():
                if name in biases:
                    parameter.zero_()
        other, _ = run_pass(subject, Recorder(subject.seed, subject.samples))
        if other.loss < seen.loss:
            return frozenset(
                name
                for name, layer in suspects.items()
                if _heard(seen, layer) < FAINTER**2 * _heard(other, layer)
            )
    return frozenset()


def _heard(seen: Pass, layer: Layer) -> float:
    """Square of the norm of the gradient at what a layer gives."""
    return sum(cell.cotangent_squares or 0.0 for cell in seen.cells_of(layer))
