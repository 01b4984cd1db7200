"""What a comparison saw, as plain values: every training, and what they come to per start."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from fanin.report import Report

__all__ = ["Curve", "Outcome", "Record", "Run"]

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Run:
    """One training: from one start, at one learning rate, with one seed.

    Attributes:
        rate: learning rate.
        seed: of the weights, and of everything random in the training.
        at: updates made before each recorded loss, ascending, the first 0.
        losses: the training loss there, in the units of the loss; with many batches, the mean
            since the record before.
        accuracies: share of right guesses (0 to 1) beside each loss; empty where it is not known.
        diverged: why the training was stopped before its end; None where it was not.

    >>> run = Run(0.1, 0, (0, 5, 10), (2.0, 1.0, 0.5), (), None)
    >>> run.start, run.final, run.accuracy
    (2.0, 0.5, None)
    """

    rate: float
    seed: int
    at: tuple[int, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    diverged: str | None

    @property
    def start(self) -> float:
        """The loss before the first update."""
        return self.losses[0]

    @property
    def final(self) -> float:
        """The last recorded loss; infinity for a training that diverged."""
        return self.losses[-1] if self.diverged is None else math.inf

    @property
    def accuracy(self) -> float | None:
        """The last recorded accuracy (0 to 1), where it is known."""
        return self.accuracies[-1] if self.accuracies else None


@dataclass(frozen=True)
class Outcome:
    """What one start came to: its report, and its runs at every rate with every seed.

    The figures are those of the best rate: the one with the smallest final loss, in the median
    over the seeds, where a diverged run counts as infinite.

    Attributes:
        scheme: name of the start.
        report: what `fanin.check` says of it, with the first seed.
        runs: rate by rate, in each seed by seed.
    """

    scheme: str
    report: Report
    runs: tuple[Run, ...]

    @property
    def best_rate(self) -> float:
        """The learning rate that gave the smallest final loss."""
        rates = dict.fromkeys(run.rate for run in self.runs)
        return min(rates, key=lambda rate: _merit(self._at(rate)))

    @property
    def best_runs(self) -> tuple[Run, ...]:
        """The runs at the best rate, one for each seed."""
        return self._at(self.best_rate)

    @property
    def start(self) -> float:
        """Loss before the first update."""
        return _median(run.start for run in self.best_runs)

    @property
    def final(self) -> float:
        """Loss at the end; infinity where half of the runs or more diverged."""
        return _median(run.final for run in self.best_runs)

    @property
    def accuracy(self) -> float | None:
        """Accuracy at the end (0 to 1), where it is known."""
        known = [run.accuracy for run in self.best_runs if run.accuracy is not None]
        return _median(known) if known else None

    @property
    def diverged(self) -> int:
        """Number of seeds whose run diverged."""
        return sum(run.diverged is not None for run in self.best_runs)

    @property
    def curve(self) -> Curve:
        """(updates made, loss): the median over the seeds that came so far."""
        points: dict[int, list[float]] = {}
        for run in self.best_runs:
            for at, loss in zip(run.at, run.losses, strict=True):
                points.setdefault(at, []).append(loss)
        return tuple((at, _median(points[at])) for at in sorted(points))

    def _at(self, rate: float) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.rate == rate)


@dataclass(frozen=True)
class Record:
    """The fields of a `fanin.compare` result, without the ways to show them.

    Attributes:
        model: class name of the model.
        parameters: elements in all its parameters, tied ones counted once.
        steps: updates in a full training.
        rates: learning rates tried from every start.
        seeds: seeds tried from every start at every rate.
        optimizer: its name.
        outcomes: one for each start, in the order asked for.
    """

    model: str
    parameters: int
    steps: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    optimizer: str
    outcomes: tuple[Outcome, ...]

    @property
    def best(self) -> Outcome | None:
        """The outcome with the smallest final loss; None where every one diverged."""
        best = min(self.outcomes, key=lambda outcome: _merit(outcome.best_runs))
        return best if math.isfinite(best.final) else None


def _merit(runs: Iterable[Run]) -> tuple[float, float, float]:
    """Smaller is better: the final loss, then fewer that diverged, then a longer life."""
    runs = tuple(runs)
    final = _median(run.final for run in runs)
    lost = sum(run.diverged is not None for run in runs)
    return (math.inf if math.isnan(final) else final, lost, -_median(run.at[-1] for run in runs))


def _median(values: Iterable[float]) -> float:
    known = list(values)
    return math.nan if any(math.isnan(value) for value in known) else statistics.median(known)
