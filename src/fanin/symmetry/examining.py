"""From what one pass saw to what virtual steps prove."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from fanin.architecture import Key
from fanin.clones import clones
from fanin.errors import ForwardError
from fanin.passes import Pass, Subject
from fanin.symmetry.copies import suspects, unit_classes
from fanin.symmetry.deadlocks import deadlocks
from fanin.symmetry.result import UNUSED, Deadlock, Symmetry
from fanin.symmetry.rows import row_classes
from fanin.symmetry.steps import DOUBLE, SINGLE, Precision, RowSet, VirtualRun

__all__ = ["examine"]


def examine(
    subject: Subject, seen: Pass, rows: Sequence[RowSet], progress: Callable[[str], None]
) -> tuple[Symmetry, dict[Key, int]]:
    """Find copies in a pass that was seen, and prove them by virtual steps.

    Args:
        subject: what was seen.
        seen: its first pass.
        rows: parameters that looked in it like sets of rows with copies among them.
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
    if not alike and not stuck and not rows:
        return Symmetry(deadlocks=unused, clones=twins), {}
    progress("proving symmetry")
    run = _trained(subject, seen, alike, rows)
    found, distinct = unit_classes(run)
    held = deadlocks(run, stuck)  # of the passes of the run, before rows ask for more
    return (
        Symmetry(
            steps=run.steps,
            dtype=str(run.precision.dtype).removeprefix("torch."),
            classes=(*found, *row_classes(run)),
            deadlocks=(*held, *unused),
            clones=twins,
        ),
        distinct,
    )


def _trained(
    subject: Subject, seen: Pass, alike: frozenset[Key], rows: Sequence[RowSet]
) -> VirtualRun:
    """A run in float64; in float32 where something in the model takes no float64."""
    try:
        return VirtualRun(subject, seen, alike, rows, DOUBLE).train()
    except ForwardError:
        again = _runs(subject, seen, alike, rows, DOUBLE)
        if again is None:  # not by chance, so it may be the dtype
            again = _runs(subject, seen, alike, rows, SINGLE)
            if again is not None:
                return again
        raise


def _runs(
    subject: Subject,
    seen: Pass,
    alike: frozenset[Key],
    rows: Sequence[RowSet],
    precision: Precision,
) -> VirtualRun | None:
    with contextlib.suppress(ForwardError):
        return VirtualRun(subject, seen, alike, rows, precision).train()
    return None
