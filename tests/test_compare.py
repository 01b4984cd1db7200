"""`fanin.compare`: the same trainings, from different starts, and nothing of the user's changed."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from page_reader import Page
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import fanin
from fanin.cli.compare import compare as command
from fanin.cli.program import Program
from fanin.cli.progress import ShareBar
from fanin.comparing import Batches, Comparison, Run, Training, compare, train_
from fanin.comparing.text import Scale
from fanin.errors import ArgumentError, BatchError, FaninError, ForwardError, LossError, ModelError
from fanin.summary import to_text
from fanin.wording import visible

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
EXAMPLE = f"{Path(__file__).parent.parent / 'examples' / 'classifier.py'}:build"


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def zeros(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)


def huge(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1e3)


def runs(comparison: Comparison) -> list[tuple[Run, ...]]:
    return [outcome.runs for outcome in comparison.outcomes]


@pytest.fixture(scope="module")
def two() -> Comparison:
    """One good start and one that cannot learn, at two rates with two seeds."""
    return compare(
        build, (X, Y), F.cross_entropy,
        schemes={"auto": "auto", "zeros": zeros}, steps=60, rates=(0.001, 0.3), seeds=(0, 1),
    )  # fmt: skip


class TestComparison:
    def test_every_start_is_trained_at_every_rate_with_every_seed(self, two: Comparison) -> None:
        for outcome in two.outcomes:
            found = [(run.rate, run.seed) for run in outcome.runs]
            assert found == [(0.001, 0), (0.001, 1), (0.3, 0), (0.3, 1)]

    def test_figures_are_medians_over_the_seeds_at_the_best_rate(self, two: Comparison) -> None:
        outcome = two["auto"]
        assert outcome.best_rate == 0.3
        finals = [run.final for run in outcome.runs if run.rate == 0.3]
        assert outcome.final == sum(finals) / 2
        assert outcome.curve[-1] == (60, outcome.final)
        assert outcome.curve[0] == (0, outcome.start)
        assert outcome.diverged == 0

    def test_the_best_start_is_the_one_that_learned(self, two: Comparison) -> None:
        assert two.best is two["auto"]
        assert two["auto"].final < 0.5 < two["zeros"].final
        assert two["auto"].accuracy is not None
        assert two["auto"].accuracy > 0.85

    def test_every_start_is_checked_before_it_is_trained(self, two: Comparison) -> None:
        assert two["auto"].report.ok
        assert "S101" in {finding.code for finding in two["zeros"].report.findings}
        assert two["zeros"].report.loss == pytest.approx(math.log(3))
        assert two["zeros"].start == pytest.approx(math.log(3))

    def test_a_start_that_was_not_compared_is_named(self, two: Comparison) -> None:
        with pytest.raises(KeyError, match=r"'he'.*auto, zeros"):
            two["he"]

    def test_the_default_is_one_rate_for_the_model_as_it_is_and_three_schemes(self) -> None:
        found = compare(build, (X, Y), F.cross_entropy, steps=2)
        starts = ["default", "auto", "he_normal", "xavier_normal"]
        assert [o.scheme for o in found.outcomes] == starts
        assert (found.rates, found.seeds, found.optimizer) == ((0.1,), (0,), "sgd")


class TestStarts:
    def test_as_built_differs_by_seed_and_is_what_the_seed_builds(self) -> None:
        first, second = compare(
            build, (X, Y), F.cross_entropy, schemes="default", steps=1, seeds=(3, 4)
        )["default"].runs
        with torch.random.fork_rng():
            torch.manual_seed(3)
            expected = F.cross_entropy(build()(X), Y)
        assert first.start == pytest.approx(float(expected.detach()), rel=1e-6)
        assert first.start != second.start

    def test_a_scheme_is_what_init_makes_of_it(self) -> None:
        run = compare(build, (X, Y), F.cross_entropy, schemes=("he_normal",), steps=1, seeds=5)
        model = build()
        fanin.init_(model, X, "he_normal", seed=5)
        expected = float(F.cross_entropy(model(X), Y).detach())
        assert run["he_normal"].start == pytest.approx(expected, rel=1e-6)

    def test_a_plan_is_a_start(self) -> None:
        plan = fanin.plan(build(), X, "he_normal")
        found = compare(
            build,
            (X, Y),
            F.cross_entropy,
            schemes={"he_normal": "he_normal", "mine": plan},
            steps=5,
        )
        assert found["mine"].runs == found["he_normal"].runs

    def test_a_function_is_a_start_and_gives_it_its_name(self) -> None:
        found = compare(build, (X, Y), F.cross_entropy, schemes=[zeros, "default"], steps=3)
        assert [outcome.scheme for outcome in found.outcomes] == ["zeros", "default"]

    def test_an_alias_is_a_scheme(self) -> None:
        found = compare(build, (X, Y), F.cross_entropy, schemes=("kaiming_normal",), steps=1)
        assert found.outcomes[0].scheme == "kaiming_normal"


class TestBatches:
    def test_one_batch_is_trained_on_in_full(self) -> None:
        """By hand: gradient descent on the whole batch."""
        model = build()
        start = [p.detach().clone() for p in model.parameters()]
        found = compare(model, (X, Y), F.cross_entropy, schemes="default", steps=3, rates=0.2)
        losses = []
        for _ in range(4):
            loss = F.cross_entropy(model(X), Y)
            losses.append(float(loss.detach()))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.2 * gradient
        assert found["default"].runs[0].at == (0, 1, 2, 3)
        assert found["default"].runs[0].losses == pytest.approx(losses, rel=1e-6)
        assert not all(map(torch.equal, model.parameters(), start))

    @pytest.mark.parametrize("form", ["list", "generator", "function", "loader"])
    def test_many_batches_are_read_once_and_go_round(self, form: str) -> None:
        pairs = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]
        given: dict[str, Callable[[], Any]] = {
            "list": lambda: pairs,
            "generator": lambda: iter(pairs),
            "function": lambda: lambda step: pairs[step % 4],
            "loader": lambda: torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(X, Y), batch_size=8
            ),
        }
        expected = compare(build, pairs * 5, F.cross_entropy, schemes="default", steps=20)
        found = compare(build, given[form](), F.cross_entropy, schemes="default", steps=20)
        assert runs(found) == runs(expected)

    def test_many_batches_give_the_mean_loss_since_the_record_before(self) -> None:
        levels = [1.0, 2.0, 3.0, 4.0, 5.0]
        model = nn.Linear(1, 1, bias=False)
        training = Training(
            Batches(lambda step: torch.tensor([[levels[step]]]), many=True, paired=False),
            lambda output: output.sum() * 0.0 + output.detach().sum() / model.weight.sum(),
            steps=5,
            optimizer=torch.optim.SGD,
            every=2,
        )
        with torch.random.fork_rng():
            run = train_(model, training, rate=0.1)
        assert run.at == (0, 2, 4)
        assert run.losses == pytest.approx((1.0, 2.5, 4.5), rel=1e-6)

    @pytest.mark.parametrize("model", [build, build()])
    def test_a_shuffled_loader_is_the_same_whatever_the_random_state(self, model: Any) -> None:
        data = torch.utils.data.TensorDataset(X, Y)
        found = []
        for seed in (1, 2):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
                found.append(compare(model, loader, F.cross_entropy, schemes="default", steps=9))
        assert runs(found[0]) == runs(found[1])

    def test_a_batch_without_target_and_a_loss_of_the_output(self) -> None:
        found = compare(build, X, lambda output: F.cross_entropy(output, Y), steps=3)
        paired = compare(build, (X, Y), F.cross_entropy, steps=3)
        assert runs(found) == runs(paired)

    def test_the_outputs_own_loss(self) -> None:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = build()

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.net(x)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        found = compare(Whole, {"x": X, "labels": Y}, schemes="default", steps=3)
        assert len(found["default"].runs[0].accuracies) == 4

    def test_a_forward_that_writes_into_its_input_meets_a_fresh_copy(self) -> None:
        class Shifting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = build()

            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = self.net(x.clone())
                x += 1
                return result

        kept = X.clone()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Shifting()
        found = compare(model, (X, Y), F.cross_entropy, schemes="default", steps=4)
        plain = compare(model.net, (X, Y), F.cross_entropy, schemes="default", steps=4)
        assert torch.equal(X, kept)
        assert runs(found) == runs(plain)


class TestAccuracy:
    def shares(self, loss: Any, target: Tensor, outputs: int, **options: Any) -> Run:
        model = nn.Sequential(nn.Linear(6, outputs, bias=False))
        found = compare(model, (X, target), loss, schemes="default", steps=2, **options)
        return found["default"].runs[0]

    @pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
    def test_classes_are_counted(self, loss: Any) -> None:
        guess = X[:, :3].argmax(1)
        run = compare(
            nn.Linear(6, 3, bias=False), (X, guess), loss, steps=1,
            schemes={"reading": lambda m: m.weight.data.copy_(torch.eye(3, 6))},
        )["reading"].runs[0]  # fmt: skip
        assert run.accuracies[0] == 1.0

    def test_ignored_targets_do_not_count(self) -> None:
        guess = X[:, :3].argmax(1)
        guess[:16] = -100
        guess[16:24] = (guess[16:24] + 1) % 3
        run = compare(
            nn.Linear(6, 3, bias=False), (X, guess), F.cross_entropy, steps=1,
            schemes={"reading": lambda m: m.weight.data.copy_(torch.eye(3, 6))},
        )["reading"].runs[0]  # fmt: skip
        assert run.accuracies[0] == 0.5

    def test_two_classes_are_counted_from_logits(self) -> None:
        target = (X[:, :1] > 0).float()
        run = compare(
            nn.Linear(6, 1, bias=False), (X, target), F.binary_cross_entropy_with_logits, steps=1,
            schemes={"reading": lambda m: m.weight.data.copy_(torch.eye(1, 6))},
        )["reading"].runs[0]  # fmt: skip
        assert run.accuracies[0] == 1.0

    def test_shares_as_targets_and_other_losses_tell_none(self) -> None:
        assert (
            self.shares(F.binary_cross_entropy_with_logits, X.sigmoid()[:, :2], 2).accuracy is None
        )
        assert self.shares(F.mse_loss, X[:, :2], 2).accuracies == ()

    def test_two_losses_in_one_step_tell_none(self) -> None:
        run = self.shares(lambda o, t: F.cross_entropy(o, t) + F.cross_entropy(-o, t), Y, 3)
        assert run.accuracies == ()

    def test_a_function_of_the_user_comes_first(self) -> None:
        run = self.shares(F.cross_entropy, Y, 3, accuracy=lambda output, target: 0.25)
        assert run.accuracies == (0.25, 0.25, 0.25)


class TestDivergence:
    def test_nan_ends_a_training_at_once(self) -> None:
        found = compare(
            build, X, lambda output: output.pow(4).sum(), schemes=["default"], steps=500, rates=10.0
        )
        (run,) = found["default"].runs
        assert run.diverged is not None
        assert "NaN at step" in run.diverged
        assert math.isnan(run.losses[-1])
        assert run.at[-1] < 20
        assert run.final == math.inf
        assert found.best is None
        assert "every start diverged" in str(found)

    def test_a_loss_that_stays_far_above_its_start_ends_a_training(self) -> None:
        model = nn.Linear(1, 1, bias=False)  # each step multiplies the weight by -1.5
        found = compare(
            model, torch.ones(1, 1), lambda o: 0.5 * o.square().sum(),
            schemes={"one": lambda m: nn.init.ones_(m.weight)}, steps=300, rates=2.5,
        )  # fmt: skip
        (run,) = found["one"].runs
        assert run.diverged is not None
        assert "10 × its start" in run.diverged
        # 1.5^(2·step) passes 10 at step 3, and has to stay there for 20 steps.
        assert run.at[-1] == 22
        assert math.isfinite(run.losses[-1])

    def test_a_spike_that_heals_is_no_divergence(self) -> None:
        scale = [1.0] * 40
        scale[5:15] = [1e3] * 10
        step = iter(range(1000))
        model = nn.Linear(1, 1)

        def loss(output: Tensor) -> Tensor:
            return output.square().sum() * 0.0 + scale[next(step) % 40]

        batches = Batches(lambda _: torch.ones(1, 1), many=True, paired=False)
        with torch.random.fork_rng():
            run = train_(model, Training(batches, loss, 40, torch.optim.SGD, 1), rate=0.1)
        assert run.diverged is None

    def test_infinity_may_heal(self) -> None:
        losses = [math.inf, math.inf, 1.0, 0.5, 0.4]
        step = iter(range(1000))
        batches = Batches(lambda _: torch.ones(1, 1), many=True, paired=False)

        def loss(output: Tensor) -> Tensor:
            return output.sum() * 0.0 + losses[next(step)]

        with torch.random.fork_rng():
            run = train_(nn.Linear(1, 1), Training(batches, loss, 5, torch.optim.SGD, 1), rate=0.1)
        assert run.diverged is None
        assert run.losses == pytest.approx(losses)

    def test_the_rate_that_survives_is_the_best(self) -> None:
        found = compare(
            build, X, lambda output: output.pow(4).mean(), schemes=["default"], steps=60,
            rates=(100.0, 0.01), seeds=(0, 1),
        )  # fmt: skip
        assert found["default"].best_rate == 0.01
        assert all(run.diverged for run in found["default"].runs if run.rate == 100.0)
        assert found["default"].diverged == 0

    def test_other_starts_go_on(self) -> None:
        found = compare(
            build, X, lambda output: output.pow(4).mean(), schemes=[huge, "default"], steps=40
        )
        assert found["huge"].diverged == 1
        assert found.best is found["default"]


class TestSameAgain:
    def test_a_comparison_depends_on_its_arguments_alone(self) -> None:
        def dropping() -> nn.Module:
            return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))

        found = []
        for seed in (1, 2):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                found.append(
                    runs(compare(dropping, (X, Y), F.cross_entropy, steps=10, seeds=(0, 1)))
                )
        assert found[0] == found[1]

    @pytest.mark.parametrize("model", [build, build()])
    def test_a_function_that_draws_is_seeded(self, model: Any) -> None:
        def drawn(seeds: tuple[int, ...]) -> tuple[Run, ...]:
            starts = {"drawn": lambda m: nn.init.normal_(m[0].weight)}
            return compare(model, (X, Y), F.cross_entropy, schemes=starts, steps=2, seeds=seeds)[
                "drawn"
            ].runs

        first, second = drawn((0, 1))
        assert first.start != second.start
        assert drawn((1, 0)) == (second, first)

    def test_a_start_has_the_same_curve_in_any_company(self) -> None:
        alone = compare(build, (X, Y), F.cross_entropy, schemes=("he_normal",), steps=10)
        among = compare(build, (X, Y), F.cross_entropy, schemes=(zeros, "he_normal"), steps=10)
        assert alone["he_normal"].runs == among["he_normal"].runs

    def test_dropout_is_the_same_for_every_start(self) -> None:
        """Two names of one start have one curve."""

        def dropping() -> nn.Module:
            return nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.5), nn.Linear(12, 3))

        found = compare(
            dropping, (X, Y), F.cross_entropy, schemes={"a": "auto", "b": "auto"}, steps=10
        )
        assert found["a"].runs == found["b"].runs


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Every random state is the same after the test."""
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


class Shared:
    """A model whose every part is noted, to be compared later."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(
                nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)
            )
        self.kept = {k: v.clone() for k, v in self.model.state_dict().items()}

    def check(self) -> None:
        for key, value in self.model.state_dict().items():
            assert torch.equal(value, self.kept[key]), key
        assert all(p.grad is None for p in self.model.parameters())


@pytest.mark.usefixtures("unchanged")
class TestNothingChanges:
    def test_the_users_model(self) -> None:
        shared = Shared()
        compare(shared.model, (X, Y), F.cross_entropy, steps=5)
        shared.check()

    def test_a_model_that_the_function_returns_every_time(self) -> None:
        shared = Shared()
        found = compare(
            lambda: shared.model, (X, Y), F.cross_entropy, schemes=("default", zeros), steps=5
        )
        shared.check()
        again = compare(shared.model, (X, Y), F.cross_entropy, schemes="default", steps=5)
        assert found["default"].runs == again["default"].runs

    def test_a_part_that_the_function_returns_every_time(self) -> None:
        shared = Shared()
        compare(lambda: nn.Sequential(shared.model, nn.ReLU()), (X, Y), F.cross_entropy, steps=5)
        shared.check()

    @pytest.mark.parametrize("moment", ["initializing", "loss"])
    def test_an_interrupt(self, moment: str) -> None:
        shared = Shared()
        told = []

        def progress(text: str, share: float) -> None:
            told.append(text)
            if moment in text:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compare(shared.model, (X, Y), F.cross_entropy, steps=5, progress=progress)
        assert moment in told[-1]
        shared.check()

    def test_a_start_that_raises(self) -> None:
        shared = Shared()

        def broken(model: nn.Module) -> None:
            zeros(model)
            raise RuntimeError("two\nlines")

        with pytest.raises(
            ArgumentError, match=r"^schemes: 'broken' raised RuntimeError: two lines$"
        ):
            compare(shared.model, (X, Y), F.cross_entropy, schemes=[broken], steps=5)
        shared.check()

    def test_gradients_may_be_off_outside(self) -> None:
        with torch.inference_mode():
            found = compare(build, (X, Y), F.cross_entropy, schemes=("auto",), steps=30)
        assert found["auto"].final < found["auto"].start


GOOD: dict[str, Any] = {"build": build, "batch": (X, Y), "loss": F.cross_entropy, "steps": 2}


class TestBadInput:
    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"build": 3}, ArgumentError, r"^build: 3 is int"),
            ({"build": lambda: 3}, ArgumentError, r"^build: it returned int"),
            ({"build": lambda: 1 / 0}, ArgumentError, r"^build: it raised ZeroDivisionError"),
            ({"build": nn.ReLU()}, ModelError, r"no parameters"),
            ({"loss": 3}, ArgumentError, r"^loss: 3 is int"),
            ({"loss": lambda a, b, c: a}, ArgumentError, r"^loss: it takes \(a, b, c\)"),
            ({"loss": None, "batch": X}, ArgumentError, r"^loss: None"),
            ({"loss": lambda output, target: output}, LossError, r"^loss: it returned a tensor"),
            ({"batch": []}, BatchError, r"^batch: it holds no batch"),
            ({"batch": 3}, BatchError, r"^batch: 3 of type int"),
            ({"batch": X}, BatchError, r"^batch: the loss takes an output and a target"),
            ({"batch": lambda step: 1 / 0}, BatchError, r"^batch: the function given raised"),
            ({"batch": (X * math.nan, Y)}, BatchError, r"NaN"),
            ({"batch": (X * nn.Parameter(X), Y)}, BatchError, r"autograd graph"),
            ({"batch": [(X, Y), (X[:, :2], Y)]}, ForwardError, r"^model: step 1 of its training"),
            ({"schemes": ()}, ArgumentError, r"^schemes: there is none"),
            ({"schemes": ["defualt"]}, ArgumentError, r"'defualt'; did you mean default\?"),
            ({"schemes": "hee_normal"}, ArgumentError, r"hee_normal.*he_normal"),
            ({"schemes": ("auto", "auto")}, ArgumentError, r"^schemes: two are called 'auto'"),
            ({"schemes": [3]}, ArgumentError, r"^schemes: 3 is int"),
            ({"schemes": {3: "auto"}}, ArgumentError, r"^schemes: the name 3"),
            ({"schemes": "fixup"}, ArgumentError, r"^schemes: 'fixup' cannot be applied"),
            ({"steps": 0}, ArgumentError, r"^steps: 0"),
            ({"steps": True}, ArgumentError, r"^steps: True"),
            ({"rates": ()}, ArgumentError, r"^rates: there is none"),
            ({"rates": "fast"}, ArgumentError, r"^rates: 'fast'"),
            ({"seeds": -1}, ArgumentError, r"^seeds: -1"),
            ({"optimizer": "sdg"}, ArgumentError, r"^optimizer: 'sdg'; sgd, adam"),
            ({"optimizer": torch.optim.AdamW}, ArgumentError, r"^rates: None"),
            ({"optimizer": lambda p, lr: 3, "rates": 1}, ArgumentError, r"^optimizer: it returned"),
            ({"optimizer": lambda p: p, "rates": 1}, ArgumentError, r"^optimizer: called with"),
            ({"optimizer": torch.optim.LBFGS, "rates": 1}, ArgumentError, r"^optimizer: LBFGS"),
            ({"accuracy": 3}, ArgumentError, r"^accuracy: 3"),
            ({"accuracy": lambda o, t: "high"}, ArgumentError, r"^accuracy: it returned 'high'"),
            ({"progress": 3}, ArgumentError, r"^progress: 3"),
        ],
    )
    def test_it_is_one_line_that_names_the_argument(
        self, changed: dict[str, Any], error: type[FaninError], message: str, unchanged: None
    ) -> None:
        with pytest.raises(error, match=message) as raised:
            compare(**{**GOOD, **changed})
        assert len(str(raised.value).splitlines()) == 1

    def test_a_plan_for_another_model(self) -> None:
        plan = fanin.plan(nn.Linear(6, 3), X)
        with pytest.raises(ArgumentError, match=r"^schemes: 'plan' cannot be applied: recipe"):
            compare(build, (X, Y), F.cross_entropy, schemes=[plan])

    def test_a_model_that_cannot_be_copied(self) -> None:
        class Alone(nn.Linear):
            def __deepcopy__(self, memo: Any) -> Any:
                raise TypeError("there is only one")

        with pytest.raises(ModelError, match="give a function"):
            compare(Alone(6, 3), (X, Y), F.cross_entropy)

    @given(st.floats().filter(lambda rate: not 0 < rate < math.inf))
    def test_a_rate_is_positive_and_finite(self, rate: float) -> None:
        with pytest.raises(ArgumentError, match=r"^rates: "):
            compare(**GOOD, rates=rate)

    @given(st.one_of(st.floats(), st.text(), st.none(), st.integers(max_value=0)))
    def test_steps_are_a_whole_number(self, steps: Any) -> None:
        with pytest.raises(ArgumentError, match=r"^steps: "):
            compare(**{**GOOD, "steps": steps})


class TestOptimizers:
    def test_adam_and_ones_own(self) -> None:
        adam = compare(build, (X, Y), F.cross_entropy, schemes="default", steps=5, optimizer="adam")
        own = compare(
            build, (X, Y), F.cross_entropy, schemes="default", steps=5,
            optimizer=torch.optim.Adam, rates=0.001,
        )  # fmt: skip
        assert adam.rates == (0.001,)
        assert runs(adam) == runs(own)
        assert (adam.optimizer, own.optimizer) == ("adam", "Adam")

    def test_frozen_parameters_stay(self) -> None:
        model = build()
        model[0].weight.requires_grad_(False)
        given = []

        def noting(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
            given.append(len(parameters))
            return torch.optim.SGD(parameters, lr=lr)

        compare(
            model, (X, Y), F.cross_entropy, schemes="default", steps=2, optimizer=noting, rates=0.1
        )
        assert given == [3]


class TestProgress:
    def test_it_is_told_the_loss_and_a_growing_share(self) -> None:
        told: list[tuple[str, float]] = []
        compare(
            build, (X, Y), F.cross_entropy, schemes=("auto", zeros), steps=100, seeds=(0, 1),
            progress=lambda text, share: told.append((text, share)),
        )  # fmt: skip
        shares = [share for _, share in told]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert any(text.startswith("zeros, rate 0.1, seed 1: loss 1.1") for text, _ in told)
        assert len(told) < 250


NASTY = "<script>alert(1)</script>\x1b[31m&"


@pytest.fixture(scope="module")
def nasty() -> Comparison:
    """Eight starts, one of a bad name, one that diverges."""
    starts: dict[str, Any] = {f"start number {index}": "default" for index in range(6)}
    return compare(
        build, X, lambda output: output.pow(4).mean(), steps=60, seeds=(0, 1), rates=(0.01, 0.03),
        schemes={**starts, NASTY: "auto", "huge": huge},
    )  # fmt: skip


class TestShown:
    def test_the_table_has_a_row_for_each_start(self, two: Comparison) -> None:
        lines = str(two).splitlines()
        assert lines[0].startswith("✓ auto came furthest: loss 0.")
        assert "123 parameters" in lines[1]
        assert "60 steps of sgd, rates 0.001, 0.3, seeds 0, 1" in lines[1]
        (zero,) = [line for line in lines if line.strip().startswith("zeros") and "S101" in line]
        assert zero.split()[:4] == ["zeros", "✗", "S101,", "S102"]
        assert "1.1" in zero
        assert "S10" not in lines[lines.index(zero) - 1]

    @pytest.mark.parametrize("width", [60, 80, 100])
    def test_no_line_is_wider_than_the_terminal(self, width: int, nasty: Comparison) -> None:
        page = io.StringIO()
        Console(file=page, width=width, color_system=None).print(nasty)
        assert max(map(len, page.getvalue().splitlines())) <= width

    def test_the_plot_shows_six_curves_and_says_how_many_more(self, nasty: Comparison) -> None:
        shown = str(nasty)
        assert "(2 more starts not drawn)" in shown
        assert all(mark in shown for mark in "●○◆◇▲△")

    def test_a_training_that_diverged_is_marked(self, nasty: Comparison) -> None:
        (line,) = [line for line in str(nasty).splitlines() if line.strip().startswith("huge")]
        assert "2 of 2" in line
        assert line.rstrip().endswith("×")

    def test_names_cannot_reach_the_terminal_or_the_page(
        self, nasty: Comparison, tmp_path: Path
    ) -> None:
        assert "\x1b" not in str(nasty)
        for text in (
            nasty.to_html(tmp_path / "page.html").read_text(encoding="utf-8"),
            nasty._repr_html_(),
        ):
            assert "\x1b" not in text
            page = Page(text)
            assert visible(NASTY) in page.text
            assert "alert(1)" not in "".join(page.scripts)

    def test_the_page_is_whole_and_loads_nothing(self, nasty: Comparison, tmp_path: Path) -> None:
        page = Page(nasty.to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
        page.assert_sound()
        assert page.rows("One row for each start") == 8

    def test_a_notebook_shows_the_table_and_the_loss_and_runs_nothing(
        self, nasty: Comparison
    ) -> None:
        page = Page(nasty._repr_html_())
        assert not page.open
        assert not page.scripts
        assert page.tags.count("svg") >= 1
        assert page.rows("One row for each start") == 8

    def test_a_page_that_cannot_be_written_is_one_clear_error(
        self, two: Comparison, tmp_path: Path
    ) -> None:
        with pytest.raises(ArgumentError, match=r"path: .* cannot be written"):
            two.to_html(tmp_path / "no" / "page.html")

    def test_json_is_strict_and_complete(self, nasty: Comparison) -> None:
        plain = json.loads(nasty.to_json(), parse_constant=pytest.fail)
        assert plain == nasty.to_dict()
        assert plain["schema_version"] == 1
        assert plain["best"] == nasty.best.scheme if nasty.best else None
        last = plain["outcomes"][-1]
        assert last["scheme"] == "huge"
        assert last["final"] == "inf"
        assert last["report"]["schema_version"] == 1
        assert len(last["runs"]) == 4
        assert set(last["runs"][0]) == {
            "rate", "seed", "at", "losses", "accuracies", "diverged",
        }  # fmt: skip

    def test_repr_is_short(self, two: Comparison) -> None:
        assert repr(two).startswith("<fanin.Comparison: ✓ auto came furthest: loss 0.")

    def test_a_start_far_above_the_others_does_not_press_them_flat(self) -> None:
        usual = ((0, 2.3), (10, 1.0))
        far = ((0, 1e13), (10, math.nan))
        scale = Scale.of([usual, usual, far])
        assert (scale.low, scale.high, scale.logarithmic) == (1.0, 2.3, False)
        assert scale.place(1e13) == 1.0
        assert scale.place(math.nan) is None

    def test_losses_of_different_size_are_drawn_logarithmically(self) -> None:
        scale = Scale.of([((0, 10.0), (5, 0.1))])
        assert scale.logarithmic
        assert scale.place(1.0) == pytest.approx(0.5)
        assert scale.at(0.5) == pytest.approx(1.0)

    def test_losses_near_one_another_are_told_apart_on_the_axis(self) -> None:
        near = compare(build, X, lambda o: 1.2 + o.mean(), schemes={"a": "default"}, steps=2)
        labels = [line.split()[0] for line in to_text(near).splitlines() if " ┤" in line]
        assert len(set(labels)) == 3, labels

    def test_a_curve_of_one_value_is_drawn(self, two: Comparison) -> None:
        flat = Scale.of([((0, 0.0), (5, 0.0))])
        assert flat.place(0.0) == 0.5
        still = compare(build, X, lambda o: o.sum() * 0.0, schemes={"a": "default"}, steps=1)
        assert "a came furthest: loss 0" in to_text(still)


class TestCommand:
    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(Program("fanin", commands={"compare": command}), arguments)

    def test_it_shows_the_table_and_writes_both_files(self, tmp_path: Path) -> None:
        written, page = tmp_path / "out.json", tmp_path / "out.html"
        done = self.run(
            "compare", EXAMPLE, "--schemes", "default,auto", "--schemes", "zeros", "--steps", "3",
            "--rate", "0.1", "--rate", "0.2", "--seeds", "0,1", "--optimizer", "adam",
            "--json", str(written), "--html", str(page),
        )  # fmt: skip
        assert (done.exit_code, done.stderr) == (0, "")
        plain = json.loads(written.read_text())
        assert [each["scheme"] for each in plain["outcomes"]] == ["default", "auto", "zeros"]
        assert (plain["steps"], plain["rates"], plain["seeds"]) == (3, [0.1, 0.2], [0, 1])
        assert plain["optimizer"] == "adam"
        assert "zeros" in done.stdout
        assert page.read_text().startswith("<!doctype html>")

    def test_the_model_as_built_differs_by_seed(self) -> None:
        done = self.run(
            "compare", EXAMPLE, "--schemes", "default", "--steps", "1", "--seeds", "0,1",
            "--json", "-",
        )  # fmt: skip
        first, second = json.loads(done.stdout)["outcomes"][0]["runs"]
        assert first["losses"][0] != second["losses"][0]

    def test_a_factory_may_give_pairs(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.py"
        path.write_text(
            "import torch\nfrom torch import nn\n"
            "def build():\n"
            "    print('building')\n"
            "    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]\n"
            "    return nn.Linear(4, 3), batches, nn.functional.cross_entropy\n"
        )
        done = self.run("compare", f"{path}:build", "--steps", "4", "--json", "-")
        assert done.exit_code == 0
        assert json.loads(done.stdout)["outcomes"][0]["runs"][0]["at"] == [0, 1, 2, 3]
        assert "building" in done.stderr

    def test_inputs_and_quiet(self) -> None:
        done = self.run("compare", EXAMPLE, "--input", "16x3x8x8", "--steps", "1", "--quiet")
        assert (done.exit_code, done.stdout) == (0, "")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--schemes", "hee_normal"], "he_normal"),
            (["--schemes", ","], "names no start"),
            (["--rate", "-1"], "rates: -1"),
            (["--seeds", "a"], "is not a list of whole numbers"),
            (["--steps", "0"], "--steps"),
            (["--html", "-"], "a page needs a file"),
            (["--json", "/"], "it is a folder"),
        ],
    )
    def test_what_cannot_run_is_status_2_and_one_line(
        self, arguments: list[str], message: str
    ) -> None:
        done = self.run("compare", EXAMPLE, *arguments)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr

    def test_an_interrupt_is_status_130_and_leaves_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_arguments: Any, **_options: Any) -> None:
            raise KeyboardInterrupt

        # By its place in sys.modules: the command has the name of its module.
        monkeypatch.setattr(sys.modules["fanin.cli.compare"], "compare_starts", interrupted)
        done = self.run("compare", EXAMPLE, "--json", str(tmp_path / "out.json"))
        assert (done.exit_code, done.stderr) == (130, "fanin: interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_the_bar_is_for_terminals(self) -> None:
        for terminal in (True, False):
            page = io.StringIO()
            with ShareBar(Console(file=page, force_terminal=terminal, width=100)) as bar:
                bar("auto [bold]: loss 0.31", 0.5)
            assert ("auto [bold]: loss 0.31" in page.getvalue()) == terminal
