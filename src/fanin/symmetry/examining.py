"""From what one pass saw to what virtual steps prove."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from fanin.architecture import Key
from fanin.clones import clones
from fanin.errors import ForwardError, LossError
from fanin.passes import Pass, Subject
from fanin.symmetry.copies import suspects, unit_classes
from fanin.symmetry.deadlocks import deadlocks, has_no_slope
from fanin.symmetry.result import UNUSED, Deadlock, Symmetry
from fanin.symmetry.rows import row_classes
from fanin.symmetry.steps import DOUBLE, FAINT, SINGLE, Precision, RowSet, VirtualRun

__all__ = ["examine"]


def examine(
    subject: Subject,
    seen: Pass,
    gradients: dict[str, Tensor | None],
    rows: Sequence[RowSet],
    progress: Callable[[str], None],
) -> tuple[Symmetry, dict[Key, int]]:
    """Find copies in a pass that was seen, and prove them by virtual steps.

    Args:
        subject: what was seen.
        seen: its first pass.
        gradients: of that pass, where any of them is zero; given up.
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
    idle = _idle(seen)
    stuck = [
        n
        for n, g in seen.gradients.items()
        if g == 0.0 and parameters[n].numel() > 0 and n not in idle
    ]
    unused = tuple(
        Deadlock(n, n.rpartition(".")[0] or n, UNUSED)
        for n, g in seen.gradients.items()
        if g is None
    )
    if not (alike or stuck or rows) or not math.isfinite(seen.loss):  # NaN proves nothing
        return Symmetry(deadlocks=unused, clones=twins), {}
    progress("proving symmetry")
    opened = None if alike or rows else _opened(subject, seen, gradients, stuck)
    gradients.clear()
    if opened is not None:
        steps, dtype = opened.steps, _shown(opened)
        return Symmetry(steps=steps, dtype=dtype, deadlocks=unused, clones=twins), {}
    run = _trained(subject, seen, alike, rows)
    found, distinct = unit_classes(run)
    held = deadlocks(run, stuck)  # of the passes of the run, before rows ask for more
    return (
        Symmetry(
            steps=run.steps,
            dtype=_shown(run),
            classes=(*found, *row_classes(run)),
            deadlocks=(*held, *unused),
            clones=twins,
        ),
        distinct,
    )


def _idle(seen: Pass) -> set[str]:
    """Parameters that this batch leaves unused, as those of experts that nobody visits."""
    used: dict[str, bool] = {}
    for call in seen.architecture.trace.calls:
        for name in call.parameters:
            used[name] = used.get(name, False) or 0 not in call.shape
    return {name for name, some in used.items() if not some}


def _shown(run: VirtualRun) -> str:
    return str(run.precision.dtype).removeprefix("torch.")


def _opened(
    subject: Subject, seen: Pass, gradients: dict[str, Tensor | None], stuck: Sequence[str]
) -> VirtualRun | None:
    """A run that brings each of some parameters a gradient; None where a closer look is needed.

    Zeros that an author means, as those at the end of residual branches, open after a step or two:
    that takes neither float64 nor a measurement.  Of gradients that have vanished float32 knows
    nothing, and the rounding of what hands none on looks like one: a norm over a single unit
    multiplies it by one over the root of its eps.
    """
    sizes = [g for g in seen.gradients.values() if g is not None]
    if any(has_no_slope(call) for call in seen.architecture.trace.calls) or max(sizes) < FAINT:
        return None
    single = all(p.dtype == SINGLE.dtype for p in subject.model.parameters())
    other = () if single else (ForwardError, LossError)  # something that takes no float32
    with contextlib.suppress(*other):
        run = VirtualRun(subject, seen, frozenset(), (), SINGLE)
        if run.opens(stuck, gradients):
            return run
    return None


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
