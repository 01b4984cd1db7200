"""`fanin.compare`: the same model trained from several starts, on the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from torch import nn

from fanin import draw
from fanin.checking import check
from fanin.comparing import figures, html, text
from fanin.comparing.batches import Batches, gather
from fanin.comparing.building import Source
from fanin.comparing.record import Outcome, Record, Run
from fanin.comparing.starts import Start, read
from fanin.comparing.text import plot
from fanin.comparing.training import OPTIMIZERS, Training, every, train_
from fanin.errors import ArgumentError
from fanin.guard import random_state, reseed, uncached
from fanin.plain import as_json, to_plain
from fanin.report import Report
from fanin.report.figure import Figure
from fanin.report.page import write
from fanin.report.wording import number
from fanin.summary import to_text

__all__ = [
    "Batches",
    "Comparison",
    "Outcome",
    "Run",
    "Training",
    "compare",
    "plot",
    "train_",
]

Tell = Callable[[str, float], None]  # what is under way, and the share of it that is done

SCHEMA_VERSION = 1
SCHEMES = ("default", "auto", "he_normal", "xavier_normal")
# One rate each, of those that most tutorials begin with; a fair verdict on a start takes several.
RATES = {"sgd": (0.1,), "adam": (0.001,)}


@dataclass(frozen=True, repr=False)
class Comparison(Record):
    """What `fanin.compare` returns: for every start its report, its curves and its final values.

    Example::

        comparison = fanin.compare(build, (x, y), F.cross_entropy)
        print(comparison)                     # table and curves
        comparison.best.scheme                # the start with the smallest final loss
        comparison["auto"].final              # loss after the last step
        comparison.to_html("starts.html")
    """

    def __getitem__(self, scheme: str) -> Outcome:
        for outcome in self.outcomes:
            if outcome.scheme == scheme:
                return outcome
        known = ", ".join(outcome.scheme for outcome in self.outcomes)
        raise KeyError(f"{scheme!r} was not compared; there is {known}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; a figure that is not finite is "nan", "inf" or "-inf".

        Example::

            comparison.to_dict()["outcomes"][0]["final"]
        """
        best = self.best
        plain = to_plain(replace(self, outcomes=()))
        outcomes = [
            {
                "scheme": outcome.scheme,
                "best_rate": outcome.best_rate,
                "start": to_plain(outcome.start),
                "final": to_plain(outcome.final),
                "accuracy": to_plain(outcome.accuracy),
                "diverged": outcome.diverged,
                "runs": to_plain(outcome.runs),
                "report": outcome.report.to_dict(),
            }
            for outcome in self.outcomes
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "best": best.scheme if best is not None else None,
            "outcomes": outcomes,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return :meth:`to_dict` as strict JSON text in ASCII.

        Example::

            pathlib.Path("starts.json").write_text(comparison.to_json())
        """
        return as_json(self.to_dict(), indent)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML page to ``path`` and return it.

        Raises:
            ArgumentError: the file cannot be written.

        Example::

            comparison.to_html("starts.html")
        """
        return write(html.to_page(self), path)

    def plot(self, kind: str = "loss") -> Figure:
        """Return a figure: it shows itself in a notebook, and saves as SVG, PNG or JSON.

        Args:
            kind: "loss" or "accuracy", by updates, of every start.

        Raises:
            ArgumentError: there is no such kind.

        Example::

            comparison.plot("loss").save("loss.svg")
        """
        return figures.plot(self, kind)

    def __rich__(self) -> RenderableType:
        return text.render(self)

    def __str__(self) -> str:
        return to_text(text.render(self))

    def _repr_html_(self) -> str:
        return html.to_fragment(self)

    def __repr__(self) -> str:
        return f"<fanin.Comparison: {text.conclusion(self)}>"


def compare(
    build: Callable[[], nn.Module] | nn.Module,
    batch: Any,
    loss: Callable[..., Any] | None = None,
    *,
    schemes: Any = SCHEMES,
    steps: int = 200,
    rates: float | Sequence[float] | None = None,
    seeds: int | Sequence[int] = 0,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd",
    accuracy: Callable[..., Any] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Train the same model from several starts, and set verdict, curves and results side by side.

    Every start is checked once, then trained at every rate with every seed: the same batches in
    the same order, the same dropout.  A training whose loss is NaN, or stays above ten times that
    at the start, is stopped and counts as diverged.  Models are trained as copies: the user's
    model, the batches and every random state are left as they were.

    Args:
        build: a function without arguments that returns a fresh model, or a model.
        batch: one batch for every step: a tensor, a tuple (positional arguments) or a dict
            (keyword arguments).  Or one batch a step: a list or loader, of which `steps` are read
            once and kept (again from the first where there are fewer), or a function from the
            step to its batch.
        loss: from the output to a scalar.  Where it needs a target too, as ``F.cross_entropy``
            does, each batch is a pair (batch, target).  Without it the output's own ``.loss``.
        schemes: names of schemes, "default" (as built), plans, or functions that initialize a
            model in place; or a dict from a name to one of these.
        steps: updates in each training, at least 1.
        rates: learning rates, one or several; 0.1 for "sgd" and 0.001 for "adam" by default.
        seeds: one or several; of building, weights, and everything random in the training.
        optimizer: "sgd", "adam", or what is called with the parameters and ``lr=`` and returns an
            optimizer, such as ``torch.optim.AdamW``.
        accuracy: takes what `loss` takes and returns a share from 0 to 1.  Without it the right
            guesses are counted where a known classification loss is computed.
        progress: told in a few words what is under way, and the share of it that is done.

    Raises:
        ArgumentError: an argument has a value that is not allowed, or a start cannot be used.
        BatchError, LossError, ModelError, ForwardError: as in `fanin.check`.

    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> def zeros(model):
    ...     for parameter in model.parameters():
    ...         nn.init.zeros_(parameter)
    >>> compared = compare(
    ...     lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)),
    ...     (x, x[:, :1]),
    ...     nn.functional.mse_loss,
    ...     schemes=("auto", zeros),
    ...     steps=20,
    ... )
    >>> compared.best.scheme, compared["zeros"].report.ok
    ('auto', False)
    """
    starts = read(schemes)
    steps, seeds = draw.integer("steps", steps, 1, 2**63), _seeds(seeds)
    name, factory, rates = _optimizer(optimizer, rates)
    tell = _callable("progress", progress) or (lambda _text, _share: None)
    _callable("loss", loss)
    _callable("accuracy", accuracy)
    with torch.inference_mode(False), torch.enable_grad(), uncached(), _kept():
        source = Source(build, seeds[0])
        with random_state(source.first):
            reseed(seeds[0])  # a loader may shuffle
            batches = gather(batch, loss, steps)
            often = every(steps, batches.many)
            training = Training(batches, loss, steps, factory, often, accuracy)
            reports = [_checked(source, start, training, seeds[0], tell) for start in starts]
            runs = _trained(source, starts, training, rates, seeds, tell)
    return Comparison(
        model=reports[0].model,
        parameters=reports[0].parameters,
        steps=steps,
        rates=rates,
        seeds=seeds,
        optimizer=name,
        outcomes=tuple(
            Outcome(start.name, report, own)
            for start, report, own in zip(starts, reports, runs, strict=True)
        ),
    )


def _checked(source: Source, start: Start, training: Training, seed: int, tell: Tell) -> Report:
    """What `fanin.check` says of a start, before anything is trained."""
    inputs, target = training.batches.at(0)
    loss = training.loss
    tell(f"{start.name}: initializing", 0.0)
    model = source.fresh(seed)
    start.apply_(model, inputs, seed)
    report = check(
        model,
        inputs,
        None if loss is None else lambda output: loss(output, *target),
        progress=lambda doing: tell(f"{start.name}: {doing}", 0.0),
    )
    if report.loss is None:
        raise ArgumentError(
            "loss: None, and the output has no .loss; a function from the output to a scalar is "
            "needed to train"
        )
    return report


def _trained(
    source: Source,
    starts: Sequence[Start],
    training: Training,
    rates: Sequence[float],
    seeds: Sequence[int],
    tell: Tell,
) -> list[tuple[Run, ...]]:
    """Every run: a tuple for each start, rate by rate, in each seed by seed."""
    done, each = 0.0, 1 / (len(starts) * len(rates) * len(seeds))
    found = []
    for start in starts:
        runs = []
        for rate in rates:
            for seed in seeds:
                what = f"{start.name}, rate {rate:g}, seed {seed}"
                model = source.fresh(seed)
                start.apply_(model, training.batches.at(0)[0], seed)
                told = _telling(tell, what, training.steps, done, each)
                runs.append(train_(model, training, rate=rate, seed=seed, tell=told))
                del model  # before the next one is built
                done += each
        found.append(tuple(runs))
    tell("done", 1.0)
    return found


def _telling(
    tell: Tell, what: str, steps: int, done: float, each: float
) -> Callable[[int, float], None]:
    return lambda step, loss: tell(f"{what}: loss {number(loss)}", done + each * step / steps)


@contextmanager
def _kept() -> Iterator[None]:
    """Keep the random state of the CPU and of every GPU: to seed torch seeds them all."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with random_state(), torch.random.fork_rng(devices):
        yield


# ---- the arguments -------------------------------------------------------------------------------


def _optimizer(
    optimizer: Any, rates: Any
) -> tuple[str, Callable[..., torch.optim.Optimizer], tuple[float, ...]]:
    """Name, factory and learning rates."""
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        given = RATES[optimizer] if rates is None else rates
        return optimizer, OPTIMIZERS[optimizer], _rates(given)
    if isinstance(optimizer, str) or not callable(optimizer):
        raise ArgumentError(
            f"optimizer: {optimizer!r:.40}; {', '.join(OPTIMIZERS)}, or a function of the "
            "parameters and lr= that returns an optimizer, is needed"
        )
    if rates is None:
        raise ArgumentError("rates: None; an optimizer of your own needs at least one rate")
    return str(getattr(optimizer, "__name__", type(optimizer).__name__)), optimizer, _rates(rates)


def _rates(given: Any) -> tuple[float, ...]:
    rates = tuple(dict.fromkeys(_several("rates", given)))
    for rate in rates:
        number_ = isinstance(rate, Real) and not isinstance(rate, bool)
        if not number_ or not 0 < rate < math.inf:
            raise ArgumentError(f"rates: {rate!r:.40}; positive finite numbers are needed")
    return tuple(float(rate) for rate in rates)


def _seeds(given: Any) -> tuple[int, ...]:
    return tuple(
        dict.fromkeys(draw.integer("seeds", seed, 0, 2**64) for seed in _several("seeds", given))
    )


def _several(name: str, given: Any) -> list[Any]:
    """One value or several, as a list that is not empty."""
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not values:
        raise ArgumentError(f"{name}: there is none; at least one is needed")
    return values


def _callable(name: str, given: Any) -> Any:
    if given is not None and not callable(given):
        raise ArgumentError(f"{name}: {given!r:.40} is {type(given).__name__}, not a function")
    return given
