"""The values of the parameters themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["TINY", "Audit", "audit"]


@dataclass(frozen=True)
class Audit:
    """What the entries of one parameter look like.

    Attributes:
        name: parameter path.
        count: entries.
        nonfinite: entries that are NaN or infinite.
        rms: root mean square of the finite entries.
        max_abs: largest finite magnitude.
        tiny: share of (sampled) entries that are non-zero but below `TINY`.
        outliers: entries on a clamped bound far out in the tail.
        bound: that bound; 0 without outliers.
    """

    name: str
    count: int
    nonfinite: int
    rms: float
    max_abs: float
    tiny: float
    outliers: int
    bound: float

    @property
    def zero(self) -> bool:
        """Whether there are entries, and all are zero."""
        return self.count > 0 and self.max_abs == 0.0 and not self.nonfinite

    @property
    def uniform(self) -> bool:
        """Whether the entries look uniform (bound/rms = √3) rather than normal."""
        return self.rms > 0 and abs(self.max_abs / self.rms / 3**0.5 - 1) < 0.02


TINY = 1e-30  # no scheme, at any width or depth, draws weights near this; leftover integers look so
# The largest of 1e12 normal draws stays below 7.2 σ; an exact bound beyond 8 σ was put there.
FAR = 8.0
# Share of float32 entries on exactly the largest magnitude that a continuous draw never reaches; a
# clamp at 3 σ leaves 2.7e-3.
CLAMPED = 1e-3
# The nearest bound that truncated normals use is 2 σ; tables of sines end at 1.5.
NEAREST = 1.8
_SAMPLE = 65_536


def audit(model: nn.Module) -> tuple[Audit, ...]:
    """Look at every parameter's entries once."""
    return tuple(_audit(name, p.detach()) for name, p in model.named_parameters())


def _audit(name: str, values: Tensor) -> Audit:
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.numel() == 0 or not values.is_floating_point():
        return Audit(name, values.numel(), 0, 0.0, 0.0, 0.0, 0, 0.0)
    wide = torch.float32 if values.element_size() < 4 else None
    norm = float(torch.linalg.vector_norm(values, dtype=wide))
    nonfinite = 0
    finite = values
    if not math.isfinite(norm):
        nonfinite = int((~torch.isfinite(values)).sum())
        finite = values[torch.isfinite(values)].double()
        norm = float(torch.linalg.vector_norm(finite)) if finite.numel() else 0.0
    if finite.numel() == 0:
        return Audit(name, values.numel(), nonfinite, 0.0, 0.0, 0.0, 0, 0.0)
    low, high = (float(v) for v in torch.aminmax(finite))
    largest, rms = max(abs(low), abs(high)), norm / finite.numel() ** 0.5
    sample = finite.flatten()[:: max(1, finite.numel() // _SAMPLE)].abs()
    tiny = float(((sample > 0) & (sample < TINY)).float().mean())
    drawn = rms > 0 and values.dim() > 1 and values.element_size() >= 4  # biases are often set
    outliers = _outliers(finite, sample, largest) if drawn else 0
    return Audit(
        name, values.numel(), nonfinite, rms, largest, tiny, outliers, largest if outliers else 0.0
    )


def _outliers(values: Tensor, sample: Tensor, bound: float) -> int:
    """Entries exactly on ±`bound` in a bell: clamped there, or far out in its tail."""
    ordered = np.sort(sample.cpu().numpy())
    places = np.array([0.5, 0.6827]) * (len(ordered) - 1)
    middle, inner = np.interp(places, np.arange(len(ordered)), ordered)
    sigma, distinct = middle / 0.6745, 1 + np.count_nonzero(np.diff(ordered))
    if sigma == 0 or abs(inner / sigma - 1) > 0.1 or distinct < len(ordered) // 2:
        return 0  # no bell: 68.27 % of a normal lie within 1 σ
    if bound <= FAR * sigma and ordered[-1] != bound:
        return 0  # where a share of CLAMPED lies on the bound, some of the sample does
    met = values.abs() == bound
    on = int(torch.count_nonzero(met))
    for dim in range(values.dim() if values.dim() > 1 else 0):
        whole = met.movedim(dim, 0).flatten(1).all(1)
        if on * values.shape[dim] == values.numel() and int(whole.sum()) == 1:
            return 0  # one unit was given that value; a clamp meets entries anywhere
    clamped = on >= max(3, CLAMPED * values.numel()) and bound > NEAREST * sigma
    return on if clamped or bound > FAR * sigma else 0
