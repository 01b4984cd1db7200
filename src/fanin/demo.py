"""The article's experiment: one small network, six starts, and what ``check`` says of each.

A network 2-10-5-1 (ReLU, ReLU, sigmoid) learns to tell two noisy circles apart by full-batch
gradient descent.  Only the start differs.  Every start is checked before the training, so the
table sets what was said beside what happened.  The training is that of :mod:`fanin.comparing`.

Source: the exercise "Initialization" of deeplearning.ai, *Improving Deep Neural Networks*, week 1.
Its data, seeds, order of draws and formulas are kept, so that its published numbers come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn.utils import skip_init

from fanin.checking import check
from fanin.comparing import Batches, Comparison, Outcome, Run, Training, plot, train_
from fanin.errors import ArgumentError
from fanin.guard import random_state
from fanin.plain import as_json, to_plain
from fanin.report import Report
from fanin.report.wording import number
from fanin.summary import to_text

__all__ = [
    "ITERATIONS",
    "LEARNING_RATE",
    "PUBLISHED",
    "TEST",
    "TRAIN",
    "WEIGHT_SEED",
    "Certificate",
    "Cost",
    "Demo",
    "Published",
    "Row",
    "accuracy",
    "circles",
    "demo",
    "last_record",
    "network",
    "samples",
    "starts",
    "train",
]

Array = NDArray[np.float64]
Weights = list[tuple[Array, Array]]

WIDTHS = (2, 10, 5, 1)
LEARNING_RATE = 0.01
ITERATIONS = 15_000
RECORD_EVERY = 1_000
TRAIN, TEST = (300, 1), (100, 2)  # number of points and seed
WEIGHT_SEED = 3

# The standard deviation of the weights of one layer, from its fan in and fan out.
SCALES: Mapping[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "zeros": lambda _in, _out: 0.0,
        "randn×0.01": lambda _in, _out: 0.01,
        "randn×10": lambda _in, _out: 10.0,
        "He": lambda fan_in, _out: (2 / fan_in) ** 0.5,
        "Xavier": lambda fan_in, _out: (1 / fan_in) ** 0.5,
        "Glorot": lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5,
    }
)


@dataclass(frozen=True)
class Published:
    """What the exercise prints for a start: cost at iteration 14,000 and test accuracy (0 to 1)."""

    cost: float
    test: float


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "zeros": Published(0.6931471805599453, 0.50),
        "randn×10": Published(0.38278, 0.86),
        "He": Published(0.07357895962677366, 0.96),
    }
)


@dataclass(frozen=True)
class Certificate:
    """The symmetry certificate of one layer: what stayed equal over every virtual step.

    ``units`` of the layer's ``of`` units are copies of one another.  ``inputs`` (pre-activations),
    ``outputs`` (activations), ``gradients`` and ``updates`` (of the incoming weights) are the
    largest absolute differences between two copies; 0 means equal in every bit.
    """

    layer: str
    units: int
    of: int
    steps: int
    inputs: float
    outputs: float
    gradients: float
    updates: float


@dataclass(frozen=True)
class Row:
    """One start: the verdict before training, and what training did.

    ``distinct``: distinct units of each layer, ``"1/10"``; ``cost``: the last recorded cost in
    nats (at iteration 14,000 unless the run was shortened); ``train`` and ``test``: accuracies
    (0 to 1).
    """

    start: str
    verdict: str
    ok: bool
    distinct: tuple[str, ...]
    cost: float
    train: float
    test: float
    published: Published | None
    certificate: tuple[Certificate, ...]


@dataclass(frozen=True)
class Demo:
    """The table of the six starts and their comparison; ``to_json()`` writes it.

    ``str()`` and ``rich`` show the table, the curves and the certificates.
    """

    iterations: int
    rows: tuple[Row, ...]
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """The rows as plain data; non-finite numbers as the strings "nan", "inf" and "-inf"."""
        return {
            "schema_version": 1,
            "iterations": self.iterations,
            "rows": to_plain(self.rows),
            "comparison": self.comparison.to_dict(),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The rows as JSON text in ASCII, ``indent`` spaces per level (None: one line)."""
        return as_json(self.to_dict(), indent)

    def __rich__(self) -> RenderableType:
        recorded = last_record(self.iterations)
        parts: list[RenderableType] = [
            f"Two circles, network 2-10-5-1, {self.iterations:,} steps of gradient descent",
            _table(self.rows),
            f"cost in nats, at iteration {recorded:,}; published: cost, test accuracy\n"
            "randn×10: torch's gradient of this loss is zero everywhere (S102); it learns\n"
            "because the exercise writes the gradient by hand, past the flat sigmoid\n",
            plot(self.comparison),
        ]
        for row in self.rows:
            if row.certificate:
                parts += [
                    f"\n{row.start}: largest difference between two copies, over all virtual steps",
                    _certificate_table(row.certificate),
                ]
        return Group(*parts)

    def __str__(self) -> str:
        return to_text(self.__rich__())


def circles(samples: int, seed: int) -> tuple[Array, Array]:
    """Two noisy circles of radius 1 (label 0) and 0.8 (label 1).

    Bit for bit ``sklearn.datasets.make_circles(n_samples=samples, noise=.05)`` after
    ``numpy.random.seed(seed)``, without touching the global generator.

    Args:
        samples: number of points, an even number.
        seed: seed of numpy's legacy generator.

    Returns:
        Points, shape (samples, 2), and labels 0.0 or 1.0, shape (samples,).

    Raises:
        ArgumentError: ``samples`` is odd or not positive.

    Example:
        >>> points, labels = circles(300, seed=1)
        >>> points.shape, float(labels.mean())
        ((300, 2), 0.5)

    Source: scikit-learn, ``sklearn/datasets/_samples_generator.py``, ``make_circles``.
    """
    if samples < 2 or samples % 2:
        raise ArgumentError(f"samples must be a positive even number, not {samples}")
    generator = np.random.RandomState(seed)
    angles = np.linspace(0, 2 * np.pi, samples // 2, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    order = np.arange(samples)
    generator.shuffle(order)
    points = np.concatenate([circle, 0.8 * circle])[order]
    labels = np.repeat([0.0, 1.0], samples // 2)[order]
    return points + generator.normal(scale=0.05, size=points.shape), labels


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The points of :func:`circles` [count, 2] and labels [count, 1] as tensors in float64.

    Example:
        >>> points, labels = samples(*TRAIN)
        >>> points.shape, labels.shape
        (torch.Size([300, 2]), torch.Size([300, 1]))
    """
    points, labels = circles(count, seed)
    return torch.from_numpy(points), torch.from_numpy(labels)[:, None]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share (0 to 1) of logits [samples, 1] whose sign is that of their label.

    Example:
        >>> accuracy(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [1.0]]))
        0.5
    """
    return float(((logits > 0) == (labels > 0.5)).double().mean())


def last_record(iterations: int) -> int:
    """The last iteration at which the exercise prints the cost.

    Example:
        >>> last_record(ITERATIONS)
        14000
    """
    return (iterations - 1) // RECORD_EVERY * RECORD_EVERY


def starts() -> Mapping[str, Weights]:
    """The six starts of the network 2-10-5-1, drawn layer by layer with ``randn`` after seed 3.

    Returns:
        Name of the start -> one pair (weight [out, in], bias [out, 1]) per layer, in float64.
        Biases are zero.

    Example:
        >>> [weight.shape for weight, bias in starts()["He"]]
        [(10, 2), (5, 10), (1, 5)]

    Source: the exercise "Initialization"; He: arXiv 1502.01852; Xavier and Glorot: Glorot and
    Bengio (2010), with the forward and with the averaged fan.
    """
    return {name: _draw(scale) for name, scale in SCALES.items()}


def train(
    start: str, iterations: int = ITERATIONS, tell: Callable[[int, float], None] | None = None
) -> tuple[Run, float]:
    """Train one start by full-batch gradient descent with learning rate 0.01, in float64.

    A product 0·log 0 counts as missing in the cost, as in the exercise.

    Args:
        start: a name from :func:`starts`.
        iterations: number of steps, at least 1.
        tell: told the iteration and the cost (nats) at every record.

    Returns:
        The run, whose losses are the costs (nats) at iterations 0, 1,000, 2,000 … and after the
        last, and whose accuracies are those on the training points; and the accuracy (0 to 1) on
        the test points after the last iteration.

    Raises:
        ArgumentError: unknown start, or fewer than one iteration.

    Example:
        >>> run, test = train("zeros", iterations=1)
        >>> run.losses[0], test
        (0.6931471805599453, 0.5)

    Source: the exercise "Initialization" (``init_utils.py``).
    """
    weights = starts().get(start)
    if weights is None:
        raise ArgumentError(f"start must be one of {', '.join(SCALES)}, not {start!r}")
    if iterations < 1:
        raise ArgumentError(f"iterations must be at least 1, not {iterations}")
    points, labels = samples(*TRAIN)
    training = Training(
        batches=Batches(lambda _: (points, labels), many=False, paired=True),
        loss=Cost.apply,
        steps=iterations,
        optimizer=torch.optim.SGD,
        every=RECORD_EVERY,
        accuracy=accuracy,
    )
    # Without its sigmoid, which is part of the cost here: see Cost.
    logits = network(weights)[:-1]
    with random_state():
        run = train_(logits, training, rate=LEARNING_RATE, tell=tell)
    points, labels = samples(*TEST)
    with torch.no_grad():
        return run, accuracy(logits(points), labels)


def demo(progress: Callable[[str], None] | None = None, *, iterations: int = ITERATIONS) -> Demo:
    """Check each of the six starts, then train it, and set the two side by side.

    Args:
        progress: told in a few words what is under way, or None.
        iterations: steps of training per start; the published numbers belong to 15,000.

    Returns:
        One row per start, in the order of :func:`starts`, and their comparison.

    Raises:
        ArgumentError: fewer than one iteration.

    Example:
        >>> table = demo(iterations=1)
        >>> [row.start for row in table.rows if row.distinct == ("1/10", "1/5", "1/1")]
        ['zeros']

    Source: the exercise "Initialization", with :func:`fanin.check` before each training.
    """
    tell = progress or (lambda _: None)
    rows, outcomes = [], []
    for start, weights in starts().items():
        tell(f"{start}: check")
        report = _checked(weights)
        run, test = train(start, iterations, _telling(tell, start, iterations))
        rows.append(_row(start, report, run, test, iterations))
        outcomes.append(Outcome(start, report, (run,)))
    return Demo(iterations, tuple(rows), _comparison(tuple(outcomes), iterations))


def network(weights: Weights) -> torch.nn.Sequential:
    """The network with these weights and biases, in float64.

    Maps points [samples, 2] to probabilities [samples, 1].

    Example:
        >>> network(starts()["He"])[-1]
        Sigmoid()
    """
    model = torch.nn.Sequential()
    for depth, (weight, bias) in enumerate(weights, 1):
        fan_out, fan_in = weight.shape
        # Without the draw that these weights replace: the random state is the user's.
        linear = skip_init(  # type: ignore[no-untyped-call]
            torch.nn.Linear, fan_in, fan_out, dtype=torch.float64
        )
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias[:, 0]))
        last = depth == len(weights)
        model.add_module(f"layer{depth}", linear)
        model.add_module(f"activation{depth}", torch.nn.Sigmoid() if last else torch.nn.ReLU())
    return model


class Cost(torch.autograd.Function):
    """Mean cross-entropy in nats of logits [samples, 1], as the exercise computes and derives it.

    The cost takes the logarithm of the probability, so that a saturated sigmoid costs infinity
    (or 0·log 0, which counts as missing).  The gradient is nevertheless that of the logit,
    (probability - label) / samples: the exercise derives it by hand, and a saturated unit learns.
    Neither ``binary_cross_entropy`` does both.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """The cost, a scalar."""
        outputs = torch.sigmoid(logits)
        ctx.save_for_backward(outputs, labels)
        losses = -outputs.log() * labels - (1 - outputs).log() * (1 - labels)
        return losses.nansum() / len(labels)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor, None]:
        """The gradient of the logits."""
        outputs, labels = ctx.saved_tensors
        return cotangents[0] * (outputs - labels) / len(labels), None


def _draw(scale: Callable[[int, int], float]) -> Weights:
    generator = np.random.RandomState(WEIGHT_SEED)
    return [
        (generator.randn(fan_out, fan_in) * scale(fan_in, fan_out), np.zeros((fan_out, 1)))
        for fan_in, fan_out in pairwise(WIDTHS)
    ]


def _checked(weights: Weights) -> Report:
    points, labels = samples(*TRAIN)
    return check(
        network(weights),
        points,
        lambda output: torch.nn.functional.binary_cross_entropy(output, labels),
    )


def _telling(
    tell: Callable[[str], None], start: str, iterations: int
) -> Callable[[int, float], None]:
    return lambda step, cost: tell(f"{start}: step {step:,} of {iterations:,}, cost {number(cost)}")


def _row(start: str, report: Report, run: Run, test: float, iterations: int) -> Row:
    return Row(
        start=start,
        verdict=_verdict(report),
        ok=report.ok,
        distinct=tuple(
            f"{layer.distinct_units}/{layer.units}" for layer in report.layers if layer.units
        ),
        cost=run.losses[run.at.index(last_record(iterations))],
        train=run.accuracies[-1],
        test=test,
        published=PUBLISHED.get(start),
        certificate=tuple(_certificates(report)),
    )


def _comparison(outcomes: tuple[Outcome, ...], iterations: int) -> Comparison:
    return Comparison(
        model="two circles, network 2-10-5-1",
        parameters=outcomes[0].report.parameters,
        steps=iterations,
        rates=(LEARNING_RATE,),
        seeds=(0,),
        optimizer="gradient descent",
        outcomes=outcomes,
    )


def _verdict(report: Report) -> str:
    """``"sound"``, or the gravest severity found with the rules that gave it."""
    for severity in ("error", "warning"):
        rules = [f"{f.code} {f.name}" for f in report.findings if f.severity == severity]
        if rules:
            return f"{severity}: {', '.join(dict.fromkeys(rules))}"
    return "sound"


def _certificates(report: Report) -> Iterator[Certificate]:
    widths = {layer.name: layer.units for layer in report.layers if layer.units is not None}
    for copies in report.symmetry.classes:
        if copies.kind == "locked":
            steps = copies.certificate
            yield Certificate(
                layer=copies.layer,
                units=len(copies.units),
                of=widths[copies.layer],
                steps=copies.step,
                inputs=max(step.inputs for step in steps),
                outputs=max(step.outputs for step in steps),
                gradients=max(step.gradients for step in steps),
                updates=max(step.updates for step in steps),
            )


def _table(rows: tuple[Row, ...]) -> Table:
    # Narrow gaps: "gradient-deadlock" stays in one piece on a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("start", no_wrap=True)
    table.add_column("before training", overflow="fold")
    table.add_column("units", no_wrap=True)
    table.add_column("cost", justify="right", min_width=10, no_wrap=True)
    for name in ("train", "test"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("published", no_wrap=True)
    for row in rows:
        published = row.published
        table.add_row(
            row.start,
            Text(row.verdict, style="green" if row.ok else "red"),
            " ".join(row.distinct),
            f"{row.cost:.6f}",
            f"{row.train:.1%}",
            f"{row.test:.0%}",
            f"{published.cost:.6g}, {published.test:.0%}" if published else "–",
        )
    return table


def _certificate_table(certificate: tuple[Certificate, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for name in ("copies", "steps", "inputs", "outputs", "gradients", "updates"):
        table.add_column(name, justify="right", no_wrap=True)
    for shown in certificate:
        differences = (shown.inputs, shown.outputs, shown.gradients, shown.updates)
        table.add_row(
            shown.layer,
            f"{shown.units} of {shown.of}",
            str(shown.steps),
            *(number(difference, 2) for difference in differences),
        )
    return table
