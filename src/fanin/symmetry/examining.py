"""From what one pass saw to what virtual steps prove."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from fanin.architecture import Key
from fanin.clones import clones
from fanin.errors import ForwardError
from fanin.passes import Pass, Subject
from fanin.symmetry.copies import suspects, unit_classes
from fanin.symmetry.deadlocks import deadlocks
from fanin.symmetry.result import UNUSED, Deadlock, Symmetry
from fanin.symmetry.steps import DOUBLE, SINGLE, Precision, VirtualRun

__all__ = ["examine"]


def examine(
    subject: Subject, seen: Pass, progress: Callable[[str], None]
) -> tuple[Symmetry, dict[Key, int]]:
    """Find copies in a pass that was seen, and prove them by virtual steps.

    Args:
        subject: what was seen.
        seen: its first pass.
        progress: told in a few words what is under way.

    Returns:
        what was found, and the distinct units of each layer that has copies, by its key.

    Raises:
        ForwardError: the model, the loss or the backward pass raised in a virtual step.
        LossError: the loss is not a scalar connected to a parameter in a virtual step.
    """
    twins = clones(subject.model)
    alike = suspects(seen)
    parameters = dict(subject.model.named_parameters())  # not every name is a path of modules
    stuck = [n for n, g in seen.gradients.items() if g == 0.0 and parameters[n].numel() > 0]
    unused = tuple(
        Deadlock(n, n.rpartition(".")[0] or n, UNUSED)
        for n, g in seen.gradients.items()
        if g is None
    )
    if not alike and not stuck:
        return Symmetry(deadlocks=unused, clones=twins), {}
    progress("proving symmetry")
    run = _trained(subject, seen, alike)
    found, distinct = unit_classes(run)
    return (
        Symmetry(
            steps=run.steps,
            dtype=str(run.precision.dtype).removeprefix("torch."),
            classes=found,
            deadlocks=(*deadlocks(run, stuck), *unused),
            clones=twins,
        ),
        distinct,
    )


def _trained(subject: Subject, seen: Pass, alike: frozenset[Key]) -> VirtualRun:
    """A run in float64; in float32 where something in the model takes no float64."""
    try:
        return VirtualRun(subject, seen, alike, DOUBLE).train()
    except ForwardError:
        if _runs(subject, seen, alike, DOUBLE) is None:  # not by chance, so it may be the dtype
            single = _runs(subject, seen, alike, SINGLE)
            if single is not None:
                return single
        raise


def _runs(
    subject: Subject, seen: Pass, alike: frozenset[Key], precision: Precision
) -> VirtualRun | None:
    with contextlib.suppress(ForwardError):
        return VirtualRun(subject, seen, alike, precision).train()
    return None
