"""What one check saw, as a plain value: every renderer reads this and computes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from fanin.branches import ResidualBranch
from fanin.findings import Finding
from fanin.layers import Depth, LayerStats
from fanin.starts import Start
from fanin.symmetry import Symmetry

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """The fields of a :class:`fanin.Report`, without the ways to show them.

    It stands apart from ``Report`` so that the renderers can name its type without importing the
    module that imports them.
    """

    model: str
    """Class name of the model."""
    parameters: int
    """Number of elements in all parameters, tied ones counted once."""
    trainable: int
    """Number of elements that require a gradient."""
    tensors: int
    """Number of parameter tensors."""
    dtype: str
    """Floating type of the parameters, such as ``"float32"``."""
    device: str
    """Device of the parameters, such as ``"cpu"``."""
    loss: float | None
    """Loss at the start; None when a random linear functional stood in for it."""
    chance: float | None
    """Loss of guessing (ln C) where a classification loss was seen."""
    seed: int
    """Seed of everything random in the check."""
    samples: int | None
    """Batch size, where the batch has one."""
    mode: str
    """``"train"`` or ``"eval"``."""
    layers: tuple[LayerStats, ...]
    """One entry a weighted layer, in order of execution."""
    depth: Depth
    """How signal and cotangent grow along depth."""
    symmetry: Symmetry
    """Copies among the units, deadlocks and clones, with the certificate."""
    findings: tuple[Finding, ...]
    """Errors, then warnings, then infos; each in order of execution."""
    unnamed: tuple[tuple[str, str], ...]
    """(parameter path, what was seen) where a parameter's use could not be named."""
    seconds: float
    """Wall-clock time of the check."""
    versions: tuple[tuple[str, str], ...]
    """(package, version) pairs."""
    branches: tuple[ResidualBranch, ...] = ()
    """Residual branches, in order of execution; ``LayerStats.branch`` points into them."""
    starts: tuple[Start, ...] = ()
    """One entry a parameter, in the model's order: its values, and what fanin would draw."""
    batch: tuple[str, ...] = ()
    """One line for each tensor of the batch, such as ``"float32 [8, 3, 224, 224]"``."""
    ignored: tuple[str, ...] = ()
    """Codes of the rules that were left out (`select`, `ignore`)."""
    compute_dtype: str = ""
    """Dtype that training computes in: the range that values must stay in."""

    @property
    def ok(self) -> bool:
        """True when no finding has severity ``"error"``."""
        return not any(finding.severity == "error" for finding in self.findings)
