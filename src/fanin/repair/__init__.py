"""`fanin.repair_`: from the findings of a check to the smallest change that clears them.

The order is that of causes: each round treats the first kind of fault that is left, writes what was
prescribed so far into the model as it was given, and checks again.  A remedy that did not do is
followed by the next stronger one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fanin import draw
from fanin.apply import Trial, trial
from fanin.assignment import REPAIR, Assignment
from fanin.checking import check_given, examined
from fanin.clones import shared
from fanin.construction import Record
from fanin.draw.tensors import SMALLEST
from fanin.errors import ArgumentError, LossError
from fanin.findings import Evidence, Finding
from fanin.planning import Plan
from fanin.reading import bare
from fanin.repair.beside import Beside, blamed, odd_settings, righted
from fanin.repair.case import Case
from fanin.repair.changes import Change, changes
from fanin.repair.fewer import fewest, kindred
from fanin.repair.merging import merged
from fanin.repair.odd import odd_ones
from fanin.repair.outputs import finite, forward, same_outputs
from fanin.repair.remedies import TIERS, Remedy
from fanin.repair.result import Repair
from fanin.repair.thawed import thawed
from fanin.repair.wiring import Wire, wiring
from fanin.report import Report
from fanin.roles import Role, roles
from fanin.wording import listed

__all__ = ["Change", "Repair", "repair_"]

# Rounds of treatment and check; a chain of faults that hide one another is never this long, and a
# fault that no remedy clears is given up earlier.
ROUNDS = 16
# Treated wherever an error is, though a network that squashes such values may train as it is.
CAUSES = ("N402",)
# Warnings that may be what an error comes from, if no remedy for the error itself has cleared it.
HIDDEN = ("S101", "W505")
# Rules whose first remedy may change more than is needed: of zeros that hold one another all but
# one, though some come free with the others.
MANY = ("S102",)
# Remedies of growing strength that a rule has at most.
STRENGTHS = 5
# Buffers and settings that are tried one by one before all of them together; each costs a check.
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
    check_given(loss, progress, record)
    model = bare(model)
    options = {"seed": seed, "dtype": dtype, "select": select, "ignore": ignore}
    tell = progress or (lambda _: None)
    look = _Look(model, batch, loss, options, record, tell)
    before, evidence = look(())
    surgery = _Surgery(look, warnings, preserve)
    if not surgery.wanted(before):
        return Repair((), before, before, surgery.plan({}), preserved=preserve)
    with trial(model) as bench:
        beside = surgery.beside(before)
        with righted(beside), thawed(model) if frozen else nullcontext():
            given = look(()) if frozen or beside else (before, evidence)
            state = surgery.operate(bench, *given)
            causes = tuple(blamed(odd) for odd in beside)
            causes = causes or surgery.elsewhere(bench, state)
        chosen, after = state.chosen, state.report
        if causes and not beside and not _clears_a_cause(before, after):
            chosen, after = {}, before
        elif frozen or beside:
            bench.use(chosen.values(), seed)
            after, _ = look(chosen)  # of what stays frozen, or is not put right
        failed = any(f.severity == "error" for f in surgery.wanted(after))
        if failed and all_or_nothing:
            chosen, after = {}, before
        bench.use(chosen.values(), seed)
        made = changes(model, bench.originals(), chosen)
        kept = {c.parameter: chosen[c.parameter] for c in made}
    held = [n for n, p in model.named_parameters() if not p.requires_grad]
    return Repair(
        changed=tuple(kept),
        before=before,
        after=after,
        plan=surgery.plan(kept),
        changes=made,
        undone=failed and all_or_nothing,
        preserved=preserve,
        met=state.met,
        frozen=tuple(held) if failed and not frozen and not causes else (),
        causes=causes,
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
        made: (remedy, place) → what it has changed.
        doubtful: parameters that may not have had to be changed: a remedy that did not do, and all
            that a stronger one has drawn.
        causes: rules that are treated too, wherever an error is.
        start: the model as it was given.
    """

    look: _Look
    warnings: bool
    preserve: bool
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    made: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    causes: tuple[str, ...] = ()
    start: Case | None = None

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

    def beside(self, report: Report) -> list[Beside]:
        """The buffers and settings with which, once they are as usual, errors go."""
        best: list[Beside] = []
        least = len(_errors(report))
        for odd in self._sets(odd_settings(self.look.model)) if least else ():
            self.look.progress("trying without " + ("1 setting" if len(odd) == 1 else "settings"))
            with righted(odd):
                after = self._report(())
            if after is None or not _codes(after) <= _codes(report):
                continue
            if len(_errors(after)) < least:
                best, least = odd, len(_errors(after))
            if not least:
                break
        return best

    def _report(self, written: Iterable[str]) -> Report | None:
        """What a check says; nothing where the loss is no number any more."""
        try:
            return self.look(written)[0]
        except LossError:
            return None

    @staticmethod
    def _sets(found: list[Beside]) -> list[list[Beside]]:
        """One by one, where there are few; then all."""
        alone = [[odd] for odd in found] if 1 < len(found) <= FEW else []
        return [*alone, found] if found else []

    def elsewhere(self, bench: Trial, state: _State) -> tuple[str, ...]:
        """Why no weight mends what is left: it is there whatever weights are drawn.

        Nothing where some of it is gone with new ones, nor where frozen parameters may hold it.
        """
        case, model = self.start, self.look.model
        if case is None or not state.left.errors or self.preserve:
            return ()
        if not all(p.requires_grad for p in model.parameters()):
            return ()
        self.look.progress("drawing all weights anew, to see whether the fault is theirs")
        bench.use(_all_anew(case), case.seed)
        anew = self._report(case.planned)
        stays = [f for f in _errors(anew) if f.code in _codes(state.report)] if anew else []
        if not _codes(state.report) <= {f.code for f in stays}:
            return ()
        for odd in self._sets(odd_settings(model)):
            with righted(odd):
                report = self._report(case.planned)
            if report is not None and not _errors(report):
                return tuple(blamed(o) for o in odd)
        told = listed(f"{f.code} at {f.layer or 'the model itself'}" for f in stays)
        return (
            f"{told}: still there with every weight drawn anew; look at what else takes part there "
            "(constants, buffers, the batch, the loss)",
        )

    def operate(self, bench: Trial, report: Report, evidence: Evidence) -> _State:
        """The best set of assignments that was found, with the report on it."""
        best = self._state({}, report, ())
        if not best.left.findings:
            return best
        found = {
            r.parameter: r if self._drawable(r) else replace(r, trainable=False)
            for r in roles(evidence.seen.architecture, self.look.model)
        }
        for _, name in shared(self.look.model):  # what is in it is another's
            found[name] = replace(found[name], trainable=False)
        outputs = self.look.outputs() if self.preserve else None
        self.start = start = self._case(found, report, evidence, {})
        alone = None if self.preserve else self._exceptions(bench, start)
        if alone is not None:
            return alone
        for causes in (CAUSES, (*CAUSES, *HIDDEN)):
            self.causes = causes
            self.tried.clear()
            bench.use((), start.seed)
            best = min(best, self._rounds(bench, start, outputs), key=lambda state: state.left)
            hidden = any(f.code in HIDDEN for f in report.findings if f.severity == "warning")
            if not best.left.errors or not hidden:
                break
        return best if self.preserve else self._fewer(bench, best, start.seed)

    def _exceptions(self, bench: Trial, case: Case) -> _State | None:
        """What no scheme drew changed, a little or all of it, where that alone clears all.

        The first that brings no other warning is taken, or else the first.
        """
        before = self._state({}, case.report, ())
        known = {(f.code, f.severity) for f in case.report.findings}
        found: _State | None = None
        for chosen in odd_ones(case, self.wanted(case.report)):
            self.look.progress(
                f"changing {next(iter(chosen)) if len(chosen) == 1 else len(chosen)}"
            )
            state = self._tried(bench, chosen, case.seed, before.met)
            if state is None or state.left.findings or not _no_more(state.report, case.report):
                continue
            if all(
                f.severity == "info" or (f.code, f.severity) in known for f in state.report.findings
            ):
                return state
            found = found or state
        bench.use((), case.seed)
        return found

    def _tried(
        self, bench: Trial, chosen: Mapping[str, Assignment], seed: int, met: Iterable[str]
    ) -> _State | None:
        bench.use(chosen.values(), seed)
        report = self._report(chosen)
        return None if report is None else self._state(dict(chosen), report, met)

    def _fewer(self, bench: Trial, best: _State, seed: int) -> _State:
        """Without the changes that turn out not to be needed."""
        names = [n for n in best.chosen if n in self.doubtful]
        if best.left.findings or len(best.chosen) < 2:
            return best
        found = {frozenset[str](): best}

        def holds(back: frozenset[str]) -> bool:
            self.look.progress(f"taking {len(back)} of {len(best.chosen)} changes back")
            rest = {n: a for n, a in best.chosen.items() if n not in back}
            if not rest:
                return False
            state = self._tried(bench, rest, seed, best.met)
            if state is None or state.left.findings or not _no_more(state.report, best.report):
                return False
            found[back] = state
            return True

        return found[fewest(kindred(best.chosen, names), holds)]

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
        """What is left to clear; a loss far above guessing follows from any other error."""
        wanted = self.wanted(report)
        if any(f.code != "O301" for f in _errors(report)):
            wanted = [f for f in wanted if f.code != "O301"]
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
            made = [a for a in made if not 0 < a.std < SMALLEST]  # which no draw makes
            drawn = self.made.setdefault(place, set())
            drawn |= {a.parameter for a in made}
            if self.tried[place] or finding.code in MANY:
                self.doubtful |= drawn
            self.tried[place] += 1
            for assignment in made:
                name = assignment.parameter
                fresh[name] = merged(fresh.get(name), assignment)
            if fresh != before:
                return


def _errors(report: Report) -> list[Finding]:
    return [f for f in report.findings if f.severity == "error"]


def _codes(report: Report) -> set[str]:
    return {f.code for f in _errors(report)}


def _clears_a_cause(before: Report, after: Report) -> bool:
    """Whether anything is gone that is no consequence of what is left."""
    gone, left = _codes(before) - _codes(after), _codes(after)
    return min(map(_place, gone), default=len(TIERS)) < min(map(_place, left), default=0)


def _place(code: str) -> int:
    """Where a rule stands in the order of causes; one that has no remedy is last."""
    return max((i for i, tier in enumerate(TIERS) if code in tier), default=len(TIERS))


def _no_more(report: Report, before: Report) -> bool:
    """Whether a report says no more than another one, apart from notes."""
    one, other = (sum(f.severity != "info" for f in r.findings) for r in (report, before))
    return one <= other


def _all_anew(case: Case) -> list[Assignment]:
    """Every weight as in a new model; what no plan knows, at random."""
    names = [n for n, r in case.roles.items() if r.trainable]
    return [case.planned[n] if n in case.planned else case.alive(n, "") for n in names]
