"""`fanin.repair_`: from the findings of a check to the smallest change that clears them.

The order is that of causes: each round treats the first kind of fault that is left, writes what was
prescribed so far into the model as it was given, and checks again.  A remedy that did not do is
followed by the next stronger one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fanin import draw
from fanin.apply import Trial, trial
from fanin.assignment import REPAIR, Assignment
from fanin.checking import examined
from fanin.construction import Record
from fanin.errors import ArgumentError
from fanin.findings import Evidence, Finding
from fanin.planning import Plan
from fanin.reading import bare
from fanin.repair.case import Case
from fanin.repair.changes import Change, changes
from fanin.repair.merging import merged
from fanin.repair.odd import odd_ones
from fanin.repair.outputs import finite, forward, same_outputs
from fanin.repair.remedies import TIERS, Remedy
from fanin.repair.result import Repair
from fanin.repair.thawed import thawed
from fanin.repair.wiring import Wire, wiring
from fanin.report import Report
from fanin.roles import Role, roles

__all__ = ["Change", "Repair", "repair_"]

# Rounds of treatment and check; a chain of faults that hide one another is never this long, and a
# fault that no remedy clears is given up earlier.
ROUNDS = 16
# Treated wherever an error is, though a network that squashes such values may train as it is.
CAUSES = ("N402",)
# Warnings that may be what an error comes from, if no remedy for the error itself has cleared it.
HIDDEN = ("S101", "W505")
# Remedies of growing strength that a rule has at most.
STRENGTHS = 5
# Exceptions among the parameters that are tried one by one before all of them together; each costs
# a check.
FEW = 4


def repair_(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    seed: int = 0,
    warnings: bool = False,
    preserve: bool = False,
    all_or_nothing: bool = False,
    frozen: bool = False,
    dtype: torch.dtype | str | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
    record: Record | None = None,
) -> Repair:
    """Change as little of a model as clears what a check finds, in place, and prove it.

    Copies are drawn again, all but one of each class; one of two zeros that hold each other is
    given a value; weights that let the signal vanish or explode are scaled in one pass over the
    batch; dead units get new biases; entries that are no numbers are drawn again.  All else stays
    bit for bit: other parameters, other entries of the same parameter, buffers, gradients, random
    states and the optimizer's state.  Then the model is checked again.

    Args:
        model: to be mended.
        batch: as `fanin.check` takes it.
        loss: from the model's output to a scalar, the mean loss; as `fanin.check` takes it.
        seed: of every draw, and of the checks.
        warnings: whether findings that are warnings are mended too.
        preserve: whether the output has to stay what it is (a widened, upcycled or duplicated
            model).  Copies, warnings or not, are parted by splitting what they send on unevenly;
            of all other remedies those are left that leave the output on the batch alone.
        all_or_nothing: whether the model is put back where a fault remains.
        frozen: whether parameters that require no gradient may be changed too; they stay frozen.
        dtype: that training will compute in, for the range that values must stay in.
        select: prefixes of the finding codes to mend; all by default.
        ignore: prefixes of the finding codes to leave alone.
        progress: told in a few words what is under way.
        record: what `fanin.recording` saw of the model's construction.

    Returns:
        what was changed and why, the reports before and after, and the plan that does the same to
        another copy of the model.

    Raises:
        ArgumentError, BatchError, LossError, ModelError: as `fanin.check`.  Whatever is raised, an
            interrupt included, the model is as it was.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> _ = nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
    >>> mended = repair_(model, torch.randn(32, 8))
    >>> mended.changed, mended.before.ok, mended.after.ok
    (('0.weight',), False, True)
    """
    _check_arguments(
        model, warnings=warnings, preserve=preserve, frozen=frozen, all_or_nothing=all_or_nothing
    )
    model = bare(model)
    options = {"seed": seed, "dtype": dtype, "select": select, "ignore": ignore}
    tell = progress or (lambda _: None)
    look = _Look(model, batch, loss, options, record, tell)
    before, evidence = look(())
    surgery = _Surgery(look, warnings, preserve)
    if not surgery.wanted(before):
        return Repair((), before, before, surgery.plan({}), preserved=preserve)
    with trial(model) as bench:
        if frozen:
            with thawed(model):
                state = surgery.operate(bench, *look(()))
            bench.use(state.chosen.values(), seed)
            after, _ = look(state.chosen)  # of what stays frozen
        else:
            state = surgery.operate(bench, before, evidence)
            after = state.report
        chosen = state.chosen
        failed = any(f.severity == "error" for f in surgery.wanted(after))
        if failed and all_or_nothing:
            chosen, after = {}, before
        bench.use(chosen.values(), seed)
        made = changes(model, bench.originals(), chosen)
        kept = {c.parameter: chosen[c.parameter] for c in made}
    held = (n for n, p in model.named_parameters() if not p.requires_grad)
    return Repair(
        changed=tuple(kept),
        before=before,
        after=after,
        plan=surgery.plan(kept),
        changes=made,
        undone=failed and all_or_nothing,
        preserved=preserve,
        met=state.met,
        frozen=tuple(held) if failed and not frozen else (),
    )


def _check_arguments(model: object, **switches: object) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: {type(model).__name__} is not a torch.nn.Module")
    for name, given in switches.items():
        if not isinstance(given, (bool, np.bool_)):
            raise ArgumentError(f"{name}: {given!r:.40}; True or False is needed")


@dataclass(frozen=True)
class _Look:
    """Checks the model as it is at the moment."""

    model: nn.Module
    batch: Any
    loss: Callable[[Any], Tensor] | None
    options: Mapping[str, Any]
    record: Record | None
    progress: Callable[[str], None]

    def __call__(self, written: Iterable[str]) -> tuple[Report, Evidence]:
        record = None if self.record is None else self.record.without(tuple(written))
        return examined(
            self.model,
            self.batch,
            self.loss,
            progress=self.progress,
            record=record,
            **self.options,
        )

    def outputs(self) -> list[Tensor]:
        """What the model gives on the batch, at the same random draws each time."""
        return forward(self.model, self.batch, self.options["seed"])


class Left(NamedTuple):
    """What is left to clear, the most telling first; the less, the better."""

    errors: int
    findings: int
    tier: int  # less the place of the first cause that is left: a later one is nearer to the end
    extent: int  # layers that the findings name, and copies in locked classes


@dataclass(frozen=True)
class _State:
    """A set of assignments, the report on the model with them, what is left to clear, and the codes
    that were met on the way."""

    chosen: dict[str, Assignment]
    report: Report
    left: Left
    met: tuple[str, ...]


@dataclass
class _Surgery:
    """Chooses remedies, round after round.

    Attributes:
        look: checks the model.
        warnings: whether warnings are treated too.
        preserve: whether the output must stay.
        tried: (remedy, place) → how often it was tried.
        causes: rules that are treated too, wherever an error is.
    """

    look: _Look
    warnings: bool
    preserve: bool
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    causes: tuple[str, ...] = ()

    def wanted(self, report: Report) -> list[Finding]:
        """The findings that are to be cleared."""
        severities = ("error", "warning") if self.warnings else ("error",)
        copies = ("S101",) if self.preserve else ()  # whoever widened a model asks for these
        return [f for f in report.findings if f.severity in severities or f.code in copies]

    def plan(self, chosen: Mapping[str, Assignment]) -> Plan:
        """The plan that does the same to another copy of the model."""
        names = [n for n, _ in self.look.model.named_parameters()]
        left = {n: "nothing to mend" for n in names if n not in chosen}
        return Plan(tuple(chosen[n] for n in names if n in chosen), left, REPAIR)

    def operate(self, bench: Trial, report: Report, evidence: Evidence) -> _State:
        """The best set of assignments that was found, with the report on it."""
        found = {
            r.parameter: r if self._drawable(r) else replace(r, trainable=False)
            for r in roles(evidence.seen.architecture, self.look.model)
        }
        outputs = self.look.outputs() if self.preserve else None
        start = self._case(found, report, evidence, {})
        alone = None if self.preserve else self._exceptions(bench, start)
        if alone is not None:
            return alone
        best = self._state({}, report, ())
        for causes in (CAUSES, (*CAUSES, *HIDDEN)):
            self.causes = causes
            self.tried.clear()
            bench.use((), start.seed)
            best = min(best, self._rounds(bench, start, outputs), key=lambda state: state.left)
            hidden = any(f.code in HIDDEN for f in report.findings if f.severity == "warning")
            if not best.left.errors or not hidden:
                break
        return best

    def _exceptions(self, bench: Trial, case: Case) -> _State | None:
        """What no scheme drew changed, one by one or all together, where that alone clears all."""
        made = odd_ones(case, self.wanted(case.report))
        trials = [{name: assignment} for name, assignment in made.items()][:FEW]
        before = self._state({}, case.report, ())
        for chosen in [*trials, made] if len(made) > 1 else trials:
            self.look.progress(f"changing {', '.join(chosen) if len(chosen) == 1 else len(chosen)}")
            bench.use(chosen.values(), case.seed)
            report, _ = self.look(chosen)
            state = self._state(chosen, report, before.met)
            if not state.left.findings and len(report.findings) <= len(case.report.findings):
                return state
        bench.use((), case.seed)
        return None

    def _drawable(self, role: Role) -> bool:
        """Whether a parameter's values can be drawn: no complex ones, none in short integers."""
        return self.look.model.get_parameter(role.parameter).dtype in draw.DTYPES

    def _rounds(self, bench: Trial, case: Case, outputs: Sequence[Tensor] | None) -> _State:
        """Treat and check until nothing is left, or nobody has anything to offer."""
        chosen: dict[str, Assignment] = {}
        state = best = self._state(chosen, case.report, ())
        for number in range(ROUNDS):
            fresh = self._prescribed(case, chosen)
            if fresh is None:
                break
            self.look.progress(f"round {number + 1}: changing {len(fresh)} parameters")
            bench.use(fresh.values(), case.seed)
            if outputs is not None and not same_outputs(outputs, self.look.outputs()):
                bench.use(chosen.values(), case.seed)
                continue
            chosen = fresh
            if outputs is not None and not finite(outputs):
                outputs = self.look.outputs()  # what is to be kept shows only now
            report, evidence = self.look(chosen)
            case = self._case(case.roles, report, evidence, case.first)
            state = self._state(chosen, report, state.met)
            best = min(best, state, key=lambda s: s.left)
            if not best.left.findings:
                break
        return best

    def _state(self, chosen: dict[str, Assignment], report: Report, met: Iterable[str]) -> _State:
        codes = (f.code for f in self.wanted(report))
        return _State(chosen, report, self._left(report), tuple(dict.fromkeys((*met, *codes))))

    def _left(self, report: Report) -> Left:
        """What is left to clear."""
        wanted = self.wanted(report)
        tiers = [i for i, tier in enumerate(TIERS) for f in wanted if f.code in tier]
        locked = [c for c in report.symmetry.classes if c.kind == "locked"]
        extent = sum(len(f.layers) for f in wanted) + sum(len(c.units) - 1 for c in locked)
        return Left(
            errors=sum(f.severity == "error" for f in wanted),
            findings=len(wanted),
            tier=-min(tiers, default=len(TIERS)),
            extent=extent,
        )

    def _case(
        self,
        found: Mapping[str, Role],
        report: Report,
        evidence: Evidence,
        first: Mapping[str, Wire],
    ) -> Case:
        look = self.look
        seed = look.options["seed"]
        if not first and any(f.code == "S101" for f in report.findings):
            first = wiring(look.model, look.batch, seed, ())
        return Case(look.model, look.batch, found, report, evidence, seed, first, self.preserve)

    def _prescribed(
        self, case: Case, chosen: Mapping[str, Assignment]
    ) -> dict[str, Assignment] | None:
        """With what the first tier that is left has to offer; None where nobody has anything."""
        findings = self._causes(case.report)
        for severity in ("error", "warning"):
            for tier in TIERS:
                listed = [f for f in findings if f.code in tier and f.severity == severity]
                fresh = dict(chosen)
                for finding in listed:
                    self._treat(case, finding, tier[finding.code], fresh)
                    if self.preserve and fresh != chosen:
                        break  # each is held against the output by itself
                if fresh != chosen:
                    return fresh
        return None

    def _causes(self, report: Report) -> list[Finding]:
        """What is to be cleared, and the rest of the same kind.

        Memory that nobody wrote is what other errors come from.
        """
        wanted = self.wanted(report)
        codes = {*self.causes, *(f.code for f in wanted if f.severity == "error")}
        behind = [f for f in report.findings if f.code in codes and f not in wanted]
        return [*(replace(f, severity="error") for f in behind), *wanted] if wanted else []

    def _treat(
        self, case: Case, finding: Finding, remedy: Remedy, fresh: dict[str, Assignment]
    ) -> None:
        """Add the weakest remedy that was not tried yet and changes something."""
        before, place = dict(fresh), (remedy.__name__, finding.layer)
        while self.tried[place] < STRENGTHS:
            made = remedy(case, finding, self.tried[place])
            self.tried[place] += 1
            for assignment in made:
                name = assignment.parameter
                fresh[name] = merged(fresh.get(name), assignment)
            if fresh != before:
                return
